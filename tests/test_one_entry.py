"""A new thing is one entry and one function: CONTRIBUTING.md's examples, run through cell, record, table and page."""

import re
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from purifier_core import cli
from purifier_core.files import ROOT
from purifier_core.lab import methods, runner
from purifier_core.lab.experiments.beyond import Single
from purifier_core.lab.experiments.comparison import Attacks, Defenses
from purifier_core.lab.profiles import PROFILES
from purifier_core.lab.records import Store
from purifier_core.lab.results import look_up
from purifier_core.pages import defenses, gallery
from purifier_core.recipes import Recipe

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.S)
TABLES = (methods.METHODS, methods.ATTACKS, methods.NETWORKS, methods.DATASETS)
FUNCTIONS = re.compile(r'f?"(\{_AT\}\.reset|\{_MAKE\}|purifier_core\.lab\.models):(\w+)"')


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """The functions of CONTRIBUTING.md in a module, its entries in the tables, and a dataset of random images."""
    module = ModuleType("made_up")
    entries: dict = {}
    for block in BLOCKS:
        if block.startswith('"'):
            entries |= eval("{" + FUNCTIONS.sub(r'"made_up:\2"', block) + "}", vars(methods))
        else:
            exec(block, vars(module))
    monkeypatch.setitem(sys.modules, "made_up", module)
    for table, (name, entry) in zip(TABLES, sorted(entries.items(), key=_order), strict=True):
        monkeypatch.setitem(table, name, entry)
    images = np.random.default_rng(0).integers(0, 256, (1200, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(1200) % 10
    images[np.arange(1200), labels * 3] = 255  # a row of light tells the class
    (tmp_path / "shapes").mkdir()
    for part, where in (("train", slice(0, 1000)), ("test", slice(1000, None))):
        columns = {"image": [image.tobytes() for image in images[where]], "label": labels[where]}
        table = pa.table(columns).replace_schema_metadata({b"source": b"drawn"})
        pq.write_table(table, tmp_path / "shapes" / f"{part}-00000-of-00001.parquet")
    one = Recipe(1, 0.05)
    monkeypatch.setitem(PROFILES, "small", replace(PROFILES["small"], backdoor=Recipe(3, 0.05), finetuning=one))
    monkeypatch.setenv("PURIFIER_DATA", str(tmp_path))
    monkeypatch.setenv("PURIFIER_HOME", str(tmp_path / "home"))
    return Store()


def _order(item) -> int:
    kinds = (methods.Method, methods.Attack, methods.Network, methods.Dataset)
    return kinds.index(type(item[1]))


def test_the_command_computes_it(made_up, capsys):
    what = "--dataset shapes --network plain --attack square --defense reset --profile small --seeds 0-1"
    assert cli.main(["run", "cell", *what.split()]) == 0
    assert "shapes plain square 10% · Reset" in capsys.readouterr().out
    records = [record for record in made_up.all() if record.cell.defense == "reset"]
    assert [record.cell.seed for record in records] == [0, 1]
    assert not any(record.failed or record.stale for record in records)


def test_the_comparison_has_it_as_a_column_of_ours(made_up):
    grid = Defenses(profile="small", dataset="shapes", attack="square")
    columns = {column.defense: column for column in grid.columns()}
    assert columns["reset"].label == "Reset"
    asked = [Single(profile="small", attack="square", dataset="shapes", defense=name) for name in ("none", "reset")]
    records = [record for results in runner.run_all(asked, made_up, lambda _: None) for record in results.records]
    results = look_up(grid, made_up)
    assert {record.cell for record in results.records} == {record.cell for record in records}
    page = defenses.table(results).to_string() + "".join(defenses.reading(results))
    assert "White square" in page
    assert "Shapes" in page
    assert list(gallery.table(look_up(Attacks("small", attack="square", dataset="shapes"), made_up))) == [
        "White square"
    ]


def test_a_name_without_an_entry_is_refused(made_up, capsys):
    assert cli.main(["run", "cell", "--defense", "resett"]) == 2
    assert "Did you mean 'reset'?" in capsys.readouterr().err
