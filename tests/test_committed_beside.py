"""Beside a run of a small profile stand the committed records of a larger one, and what to judge by."""

import pytest
from made import record

from purifier_core.files import ROOT
from purifier_core.lab.experiments.supplement import Table3
from purifier_core.lab.methods import COLUMNS
from purifier_core.lab.profiles import PROFILES
from purifier_core.lab.records import Store, published
from purifier_core.lab.results import Results
from purifier_core.lab.runner import usual
from purifier_core.pages import committed


def at(profile: str, acc: float = 0.9, asr: float = 0.5, **parameters) -> Results:
    experiment = Table3(profile=profile, **parameters)
    return Results(experiment, profile, "as asked", [record(cell, acc, asr) for cell in experiment.cells(profile)])


@pytest.fixture
def store(tmp_path) -> Store:
    """Finetuning at small, two seeds, and as the only one at paper."""
    store = Store(tmp_path)
    for seed, acc in ((0, 0.98), (1, 0.99)):
        for cell in Table3(methods="none,finetuning", seeds=seed).cells("small"):
            store.save(record(cell, acc, 1.0))
    for cell in Table3(methods="finetuning").cells("paper"):
        store.save(record(cell, 0.9928, 0.9994))
    return store


def test_the_largest_profile_with_every_column_stands_beside_the_run(store):
    assert committed.beside(at("quick", methods="finetuning"), store).profile == "paper"
    assert committed.beside(at("quick", methods="none,finetuning"), store).profile == "small"
    assert committed.beside(at("quick", methods="none,nad"), store) is None


def test_nothing_stands_beside_a_run_of_the_records_own_profile_or_a_larger_one(store):
    assert committed.beside(at("small", methods="finetuning"), store) is not None
    assert committed.beside(at("paper", methods="finetuning"), store) is None
    assert committed.beside(at("small", methods="none,finetuning"), store) is None


def test_a_row_that_is_not_recorded_gives_way_to_the_tables_hardest(store):
    found = committed.beside(at("quick", methods="finetuning", clean_size=1234), store)
    assert found.row == 3000
    assert committed.table(found)["ACC", "run"].to_list() == ["–"]


def test_the_table_shows_the_run_the_records_with_their_range_and_the_paper(store):
    shown = committed.table(committed.beside(at("quick", methods="none,finetuning"), store))
    assert shown.loc["Finetuning", "ACC"].to_list() == ["90.0", "98.5 (98.0 to 99.0)", "99.3"]
    assert shown.loc["Finetuning", ("", "n")] == "2"


def test_the_sentence_calls_a_quick_run_a_smoke_test_and_counts_what_is_near(store):
    said = committed.sentence(committed.beside(at("quick", methods="none,finetuning"), store))
    assert "The run above is a smoke test (5,000 digits" in said
    assert "profile small, 2 seeds" in said
    assert "There 2 of 2 lines lie within 2 points of the published ACC and ASR; in this run 0 do" in said
    near = committed.beside(at("quick", acc=0.99, asr=0.999, methods="none,finetuning"), store)
    assert committed.sentence(near).endswith("in this run 2 do.")


def test_what_a_newcomer_sees_fits_a_terminal_of_a_hundred_columns():
    shown = committed.text(at("quick"))
    assert max(map(len, shown.splitlines())) <= 100
    assert all(method in shown for method in published("table3").method)


def test_the_committed_records_can_stand_beside_every_column_of_table_3():
    found = committed.beside(at("quick"), Store(ROOT / "data"))
    assert {column.defense for column in found.records} == set(COLUMNS) - {"abl"}


def test_profiles_are_listed_from_the_smallest_to_the_largest():
    widths = [profile.width for profile in PROFILES.values()]
    assert next(iter(PROFILES)) == "quick"
    assert list(PROFILES)[-1] == "paper"
    assert widths == sorted(widths)


def test_two_processes_compute_where_a_cell_takes_one_core(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert usual("quick", missing=12) == 2
    assert usual("quick", missing=1) == 1
    assert usual("paper", missing=12) == 1
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert usual("quick", missing=12) == 1
