"""The records as one table: every record a row, every column described."""

import json

import pandas as pd
import pytest

from purifier_core import cli
from purifier_core.files import ROOT
from purifier_core.lab import tidy
from purifier_core.lab.records import Store

COMMITTED = Store(ROOT / "data")


@pytest.fixture(scope="module", params=tidy.ENDINGS)
def table(request, tmp_path_factory) -> pd.DataFrame:
    path = tmp_path_factory.mktemp("table") / f"results{request.param}"
    assert tidy.export(COMMITTED, path) > 100
    return pd.read_csv(path, keep_default_na=False) if request.param == ".csv" else pd.read_parquet(path)


def test_every_record_is_a_row_with_its_numbers(table):
    records = [record for record in COMMITTED.all() if not (record.failed or record.stale)]
    assert len(table) == len(records)
    shown = list(zip(table["key"], table["acc"], table["asr"], table["seed"], strict=True))
    assert shown == [(record.key, record.acc, record.asr, record.cell.seed) for record in records]


def test_a_row_is_one_experiment_on_one_copy_of_the_data(table):
    assert not table.duplicated(["key", "data"]).any()
    assert list(table.columns) == list(tidy.COLUMNS)


def test_no_name_is_taken_for_a_missing_value(table):
    assert {"none", "feature"} <= set(table["defense"])
    assert "init=random" in set(table["switches"])


def test_the_description_names_every_column_with_its_type(tmp_path, monkeypatch):
    monkeypatch.setenv("PURIFIER_HOME", str(tmp_path / "home"))
    assert cli.main(["export", "--table", str(tmp_path / "results.csv"), "--profile", "quick"]) == 1, "no record here"
    assert not list(tmp_path.iterdir())
    tidy.export(COMMITTED, tmp_path / "results.csv", "small")
    package = json.loads((tmp_path / "results.datapackage.json").read_text())
    (resource,) = package["resources"]
    header = (tmp_path / resource["path"]).read_text().splitlines()[0].split(",")
    assert [field["name"] for field in resource["schema"]["fields"]] == header
    assert all(field["description"] and field["type"] for field in resource["schema"]["fields"])
    assert set(pd.read_csv(tmp_path / "results.csv")["profile"]) == {"small"}


@pytest.mark.parametrize("arguments", [["--table", "results.xls"], [], ["a.zip", "--table", "results.csv"]])
def test_what_cannot_be_written_is_refused(arguments, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", *arguments]) == 2
    assert "purifier:" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
