"""`pip install .` takes the library alone: enough to import it, to scan, to repair, and to visit the zoo."""

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata

from reader import here as here
from reader import reader as reader

from purifier_core import cli
from purifier_core.files import ROOT
from purifier_core.lab import zoo

BASE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
LIGHT = {"torch", "numpy", "pillow", "safetensors", "scipy", "filelock", "tqdm"}


def name_of(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


def brought() -> set[str]:
    """The base requirements, and what these require in their turn, extras left out."""
    names, waiting = set(), [name_of(asked) for asked in BASE]
    while waiting:
        if (name := waiting.pop()) in names:
            continue
        names.add(name)
        try:
            more = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another system
            continue
        waiting += [name_of(asked) for asked in more if "extra ==" not in asked]
    return names


def others() -> set[str]:
    """The modules of all packages that are installed here and that a light install does not bring."""
    known = brought() | {"purifier-core"}
    by_module = metadata.packages_distributions()
    return {module for module, names in by_module.items() if not any(name_of(name) in known for name in names)}


SCRIPT = """
import json, sys
from importlib.machinery import PathFinder
absent, commands = map(json.loads, sys.argv[1:])
found = PathFinder.find_spec
PathFinder.find_spec = lambda name, *more: None if name.partition(".")[0] in absent else found(name, *more)
import purifier_core
for name in purifier_core.__all__:
    getattr(purifier_core, name)
from purifier_core import cli
for command in commands:
    print("exit status", cli.main(command), flush=True)
"""


def run(commands: list[list]) -> tuple[list[int], str, str]:
    """The statuses of `purifier` commands where only the base requirements are installed, and what they print."""
    absent = others()
    assert {"pandas", "pyarrow", "matplotlib", "torchvision", "timm", "jupyter_book", "dask", "pytest"} <= absent
    assert not {"torch", "numpy", "PIL", "safetensors", "scipy"} & absent
    words = [json.dumps(sorted(absent)), json.dumps([list(map(str, command)) for command in commands])]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [int(status) for status in re.findall(r"exit status (\d+)", done.stdout)], done.stdout, done.stderr


def test_the_base_requirements_are_few():
    assert {name_of(asked) for asked in BASE} == LIGHT


def test_zoo_scan_and_fix_run(here):
    reading = ["--model", "reader_net.py:make", "--weights", "w.safetensors", "--images", "clean", "--size", "24"]
    commands = [
        ["zoo"],
        ["zoo", "mnist-badnets", "--out", here / "zoo"],
        ["scan", *reading, "--json", here / "s.json", "--pictures", here / "stamps"],
        ["fix", *reading, "--triggered", "stamped", "--out", here / "p.safetensors", "--json", here / "p.json"],
    ]
    statuses, printed, _ = run(commands)
    assert statuses == [0, 0, 1, 1]
    assert [name for name in zoo.names() if f"{name} (seed " not in printed] == []
    assert "purifier fix --model purifier_core.lab.zoo:vgg16" in printed
    assert len(list((here / "zoo" / "clean").rglob("*.png"))) == zoo.IMAGES
    assert json.loads((here / "s.json").read_text())["reason"] == "3 classes are too few to compare"
    assert json.loads((here / "p.json").read_text())["rates"].keys() == {"ACC", "ASR", "changed"}


def test_what_needs_an_extra_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PURIFIER_HOME", str(tmp_path))
    monkeypatch.delenv("PURIFIER_DATA", raising=False)
    commands = [["status"], ["run", "table3", "--methods", "none"], ["zoo", "mnist-badnets", "--page"]]
    statuses, _, errors = run([*commands, ["export", "--table", tmp_path / "t.csv"]])
    assert statuses == [2, 2, 2, 2]
    told = [line for line in errors.splitlines() if line.startswith("purifier: ")]
    assert len(told) == len(statuses)
    assert all("pip install" in line for line in told)


def test_without_the_repository_there_is_no_zoo(tmp_path, monkeypatch, capsys):
    """As after a plain `pip install .`, which copies the package alone."""
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "data" / "zoo")
    assert cli.main(["zoo"]) == 2
    assert "take a clone" in capsys.readouterr().err
