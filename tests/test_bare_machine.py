"""A machine that is lent for its GPU, with PyTorch, pandas and pyarrow and little else, computes the paper's cells."""

import base64
import io
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from purifier_core.files import ROOT
from purifier_core.lab import data
from purifier_core.lab.records import Store

ABSENT = (
    "scipy",
    "matplotlib",
    "seaborn",
    "mlxtend",
    "torchvision",
    "tqdm",
    "safetensors",
    "PIL",
    "dask",
    "distributed",
)
START = f"""
import importlib.util, pathlib, sys
from importlib.machinery import PathFinder
found = PathFinder.find_spec
PathFinder.find_spec = lambda name, *more: None if name.partition(".")[0] in {ABSENT!r} else found(name, *more)
assert not any(map(importlib.util.find_spec, {ABSENT!r}))
"""
SCRIPT = (
    START
    + """
from dataclasses import replace
from purifier_core import cli
from purifier_core.lab.profiles import PROFILES
from purifier_core.recipes import Recipe
short = Recipe(1, 0.01)
tiny = {"width": 1 / 16, "backdoor": short, "finetuning": short, "purifier": (short, short)}
PROFILES["paper"] = replace(PROFILES["paper"], **tiny)
raise SystemExit(cli.main(sys.argv[1:]))
"""
)
IMPORTS = (
    START
    + """
for path in pathlib.Path("purifier_core").rglob("[a-z]*.py"):
    if path.stem != "cluster":
        importlib.import_module(".".join(path.with_suffix("").parts))
"""
)


@pytest.fixture
def prepared(digits, tmp_path, monkeypatch) -> None:
    """A small MNIST in $PURIFIER_DATA that was decoded on a machine with Pillow."""
    monkeypatch.setenv("PURIFIER_DATA", str(tmp_path / "encoded"))
    (tmp_path / "encoded" / "mnist").mkdir(parents=True)
    for part, count in (("train", 800), ("test", 200)):
        encoded = []
        for image in digits.train_images[:count]:
            file = io.BytesIO()
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
            encoded.append({"bytes": file.getvalue(), "path": ""})
        table = pa.table({"image": encoded, "label": digits.train_labels[:count].numpy()})
        pq.write_table(table, tmp_path / "encoded" / "mnist" / f"{part}-00000-of-00001.parquet")
    data.decode("mnist", tmp_path / "decoded")
    monkeypatch.setenv("PURIFIER_DATA", str(tmp_path / "decoded"))


def purifier(*words: str) -> subprocess.CompletedProcess:
    """The command on such a machine, the paper's profile shrunk."""
    return subprocess.run([sys.executable, "-c", SCRIPT, *words], cwd=ROOT, capture_output=True, text=True)


def test_it_computes_stores_and_shows(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("PURIFIER_HOME", str(tmp_path / "home"))
    what = ["table3", "--profile", "paper", "--methods", "none,feature", "--init", "full", "--device", "cpu"]
    done = purifier("run", *what, "--seeds", "0-1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Feature (full)" in done.stdout
    records = {(record.cell.defense, record.cell.seed): record for record in Store().all()}
    assert set(records) == {("none", 0), ("none", 1), ("feature", 0), ("feature", 1)}
    picture = base64.b64decode(records["none", 0].diagnostics["sample"]["triggered"])
    assert Image.open(io.BytesIO(picture)).size == (32, 32)
    drawn = [*what, "--figure", str(tmp_path / "figure.png")]  # a picture needs matplotlib
    for verb, status in (("run", 0), ("show", 1)):
        done = purifier(verb, *drawn)
        assert done.returncode == status
        assert "No module named 'matplotlib'" in done.stderr
        assert "`purifier show` prints them" in done.stderr


def test_every_module_can_be_imported():
    done = subprocess.run([sys.executable, "-c", IMPORTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
