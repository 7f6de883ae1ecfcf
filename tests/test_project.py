"""What holds the repository together: pins, notebooks that match the code, rooms that stay apart and small."""

import re
import subprocess
import sys
import tomllib
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import nbformat
import pytest
import yaml

from purifier_core.lab.experiments import EXPERIMENTS
from purifier_core.lab.records import published

ROOT = Path(__file__).resolve().parent.parent
PAGES = [f"pages.{path.stem}" for path in (ROOT / "purifier_core" / "pages").glob("[a-z]*.py")]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#")


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!\[; ]", requirement)[0]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned_exactly():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = project["project"]["dependencies"] + project["build-system"]["requires"]
    extras = project["project"]["optional-dependencies"]
    asked += [a for extra in extras.values() for a in extra if name_of(a) != project["project"]["name"]]
    pinned = {canonical(n): v for n, v in PINS.items()}
    assert {canonical(name_of(a)) for a in asked} <= set(pinned)
    assert all(re.fullmatch(r"[\w.+!]+", v) for v in pinned.values())
    assert project["build-system"]["requires"] == [f"setuptools=={pinned['setuptools']}"]


def test_conda_installs_the_same_pins():
    """The conda file pins by reference: its pip section is what the Makefile runs."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *plain, pip = environment["dependencies"]
    assert pip["pip"] == ["-c constraints.txt", "-e .[book,cluster,test]"]
    assert "-c constraints.txt -e '.[book,cluster,test]'" in (ROOT / "Makefile").read_text()
    assert plain == ["python=3.11", "pip"]


def test_the_installed_versions_are_the_pins():
    from importlib.metadata import version

    assert {n: version(n) for n in ("torch", "jupyter-book", "papermill", "nbval", "pandas")} == {
        n: PINS[n] for n in ("torch", "jupyter-book", "papermill", "nbval", "pandas")
    }


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "attacks"])  # that is a page of the book
def test_notebook_parameters_are_the_experiments(name):
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert "parameters" in code[0].metadata.tags
    given: dict = {}
    exec(code[0].source, given)
    given.pop("__builtins__")
    assert given == {f.name: f.default for f in fields(EXPERIMENTS[name])}
    assert "from_notebook" in code[1].source


NOT_EXECUTED = yaml.safe_load((ROOT / "_config.yml").read_text())["execute"]["exclude_patterns"]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs_and_checks_its_parameters(path):
    """But for the one that the book shows as it was run: whole, in order, without a fault."""
    notebook = nbformat.read(path, as_version=4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert "parameters" in code[0].metadata.tags
    assert re.search("from_notebook|experiments.parameters", code[1].source)
    if str(path.relative_to(ROOT)) in NOT_EXECUTED:
        assert [c.execution_count for c in code] == list(range(1, len(code) + 1)), "run it anew: make outputs"
        outputs = [o for c in code for o in c.outputs]
        assert not any(o.output_type == "error" or "False" in o.get("text", "") for o in outputs)
        assert re.search(r"profile quick .*run on \d{4}-\d\d-\d\d", outputs[0].text, flags=re.S)
    else:
        assert not any(c.outputs for c in code), "the book executes them"
    assert notebook.metadata.kernelspec.name == "python3"


def test_reading_needs_no_torch():
    """The first module that brings torch in is named."""
    lab = [f"lab.{room}" for room in ("methods", "cells", "experiments", "records", "results", "runner")]
    code = f"""
import sys, importlib
for module in {["recipes", *lab, "cli", *PAGES]}:
    importlib.import_module(f"purifier_core.{{module}}")
    if "torch" in sys.modules:
        sys.exit(module)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_but_notebooks_needs_jupyter():
    heavy = {"papermill", "IPython", "nbformat", "jupyter_book", "mlxtend", "myst_nb"}
    code = f"""
import sys, importlib, pathlib
for path in pathlib.Path("purifier_core").rglob("*.py"):
    importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
sys.exit(str({heavy!r} & set(sys.modules)) if {heavy!r} & set(sys.modules) else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


LIBRARY = "checks files recipes progress device inputs checkpoints evaluation graphs layout training sites purifier"
LIBRARY += " bounds stamps scanning repairing maximal"
LAB = "methods profiles cells records locks archive cache experiments results tidy data draws models attacks poisoning"
LAB += " adaptive breaking defenses probes compute cluster runner zoo packing live"
ROOMS = [*LIBRARY.split(), *(f"lab.{room}" for room in LAB.split()), "pages", "fix", "cli"]
"""From the bottom up: the library, the lab, the pages, and the faces over all of them."""


def rooms_in(code: str) -> set[str]:
    """The rooms that a module imports from."""
    found = re.findall(r"from purifier_core(?:\.([\w.]+))? import ([\w, ]+)", code)
    names = {f"{module}.{name}" if module in ("", "lab") else module for module, ns in found for name in ns.split(", ")}
    return {room_of(name.strip(".")) for name in names}


def room_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[: 2 if parts[0] == "lab" else 1])


def test_an_import_only_points_down():
    for path in (ROOT / "purifier_core").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT / "purifier_core").with_suffix("").parts)
        if module not in ("__init__", "lab.__init__"):
            room = room_of(module.removesuffix(".__init__"))
            above = {name for name in rooms_in(path.read_text()) if ROOMS.index(name) > ROOMS.index(room)}
            assert not above, f"{path} imports {above}"


def test_modules_stay_small():
    lengths = {p.name: len(p.read_text().splitlines()) for p in (ROOT / "purifier_core").rglob("*.py")}
    assert {n: length for n, length in lengths.items() if length > 300} == {}


def test_published_numbers_are_the_supplements():
    table = published("table3")
    assert len(table) == 27
    row = table[(table.clean_size == 3000) & (table.method == "Feature")].iloc[0]
    assert (row.acc_percent, row.asr_percent) == (97.82, 0.28)


def test_the_book_cites_as_the_repository_does():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    page = (ROOT / "book" / "numbers.md").read_text().replace("{ACM MM}", "ACM MM")
    (paper,) = citation["references"]
    wanted = [citation["title"], citation["version"], citation["authors"][0]["name"], paper["title"], paper["doi"]]
    wanted += [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    assert [text for text in wanted if text not in page] == []


def test_every_notebook_has_its_command_in_the_instructions():
    page = (ROOT / "book" / "running.md").read_text()
    names = [path.name for path in (ROOT / "notebooks").glob("*.ipynb")]
    assert [name for name in names if f"papermill notebooks/{name} out.ipynb" not in page] == []


@pytest.mark.parametrize("page", ["README.md", "book/running.md"])
def test_the_code_that_readers_copy_runs(page, tmp_path, monkeypatch):
    import torch
    from torchvision.models import resnet18

    from purifier_core import scanning

    short = replace(scanning.SCANNING, steps=2, restarts=1)
    monkeypatch.setattr(scanning, "scan", partial(scanning.scan, how=short))

    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.S)
    assert blocks
    monkeypatch.chdir(tmp_path)  # they write files
    images, labels = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8), torch.arange(24) % 10
    x = images.float() / 255
    given = {"model": resnet18(num_classes=10), "images": images, "labels": labels, "x": x, "y": labels}
    for block in blocks:
        exec(block, given)
    assert given["logits"].shape == (24, 10)
