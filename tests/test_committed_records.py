"""The records that the book is made of: whole, of today's code, and complete."""

import subprocess

import pytest

from purifier_core.files import ROOT
from purifier_core.lab.experiments.beyond import Readings, Switches
from purifier_core.lab.experiments.comparison import Attacks, Defenses
from purifier_core.lab.experiments.grids import Column
from purifier_core.lab.experiments.supplement import SUPPLEMENT, Table3, Table4
from purifier_core.lab.methods import PAPER, attacks
from purifier_core.lab.records import Store, read
from purifier_core.lab.results import look_up, retrained
from purifier_core.pages.statistics import DECIDES, took

LISTED = subprocess.run(["git", "ls-files", "data/results"], cwd=ROOT, capture_output=True, text=True).stdout
STORE = Store(ROOT / "data")
COMMITTED = [ROOT / line for line in LISTED.splitlines()]  # what a reader computes beside them is not judged here


def test_every_record_is_whole_and_current():
    for path in COMMITTED:
        record = read(path)
        cell = record.cell
        assert not record.failed, path
        assert not record.stale, path
        assert path == STORE.path(cell, record.data["fingerprint"])
        assert 0 <= record.acc <= 1, path
        assert 0 <= record.asr <= 1, path
        assert record.provenance["commit"], path
        assert not record.provenance["dirty"], path
        if cell.dataset == "mnist":
            asr_images = 10_000 if cell.attack == "badnets_all" else 9_108  # 892 are of the one target class
            assert (record.acc_images, record.asr_images) == (10_000, asr_images), path


def test_all_defenses_of_a_seed_start_from_one_backdoored_model():
    records = [read(path) for path in COMMITTED]
    assert all(record.provenance.get("backdoored_model") or record.cell.defense == "abl" for record in records)
    assert retrained(records) == []


@pytest.mark.parametrize("kind", [*SUPPLEMENT, Attacks, Readings], ids=lambda kind: kind.name)
def test_every_table_and_figure_is_whole_at_small(kind):
    """At least one seed of every place."""
    assert look_up(kind(profile="small"), STORE, reading=True).missing == []


@pytest.mark.parametrize("kind", [*SUPPLEMENT, Readings], ids=lambda kind: kind.name)
def test_the_supplement_and_the_readings_have_three_seeds(kind):
    """Every place of them, so that every number can decide."""
    by_place = look_up(kind(profile="small"), STORE, reading=True).by_place
    assert min(map(len, by_place.values())) >= DECIDES


def test_mnists_numbers_have_the_planned_seeds():
    """Ten for Table 3's row of 3,000, five for its other rows, for Table 4 and for the readings."""
    by_kind = {
        kind: look_up(kind(profile="small"), STORE, reading=True).by_place for kind in (Table3, Table4, Readings)
    }
    sizes = {row: [len(records) for (at, _), records in by_kind[Table3].items() if at == row] for row in Table3.every}
    assert min(sizes[3000]) >= 10
    assert min(sizes[4500] + sizes[6000]) >= 5
    assert min(map(len, by_kind[Table4].values())) >= 5
    assert min(len(records) for (row, _), records in by_kind[Readings].items() if row.dataset == "mnist") >= 5


def test_every_defense_has_met_every_attack_that_took_three_times():
    """In a row where no backdoor is, nothing can be removed. ABL and the attackers who know a defense: once each."""
    results = look_up(Defenses(profile="small"), STORE, reading=True)
    by_place = results.by_place
    places = [p for p in results.experiment.places("small") if took(by_place.get((p[0], Column("none")), []))]
    assert len(places) > 100
    once = {(row, c) for row, c in places if c.defense == "abl" or row[0] not in attacks(PAPER)}
    seeds = {place: len(by_place.get(place, [])) for place in places}
    assert {place: n for place, n in seeds.items() if n < (1 if place in once else DECIDES)} == {}


def test_every_switch_has_a_seed():
    done = {read(path).cell for path in COMMITTED}
    assert set(Switches(profile="small", seeds=0, switch="all").cells("small")) <= done


def test_the_committed_records_are_a_few_megabytes():
    assert sum(path.stat().st_size for path in COMMITTED) < 5e6
