"""The attacks' page and the landing table, by hand, and the verdicts that change with the records."""

import re

import numpy as np
import pytest
import torch
from made import PLACE, record

from purifier_core.lab.attacks import badnets
from purifier_core.lab.cells import Cell
from purifier_core.lab.experiments.comparison import Attacks, Defenses
from purifier_core.lab.experiments.supplement import Table3
from purifier_core.lab.methods import METHODS
from purifier_core.lab.probes import picture
from purifier_core.lab.records import Store, published
from purifier_core.lab.results import Results
from purifier_core.pages import gallery, overview


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    monkeypatch.setenv("PURIFIER_RECORDS_ONLY", "1")
    return Store(tmp_path)


def test_the_gallery_shows_what_is_there(tmp_path):
    grey = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
    sample = {"clean": picture(grey[0]), "triggered": picture(badnets(grey)[0])}
    mine = [record(Cell(profile="small"), diagnostics={"sample": sample})]
    mine += [record(Cell(attack="cl", profile="small"), 0.98, 0.003)]  # an old record, without a picture
    results = Results(Attacks(dataset="mnist"), "small", "as asked", mine)
    table = gallery.table(results)
    assert list(table.loc[("MNIST", "ASR")]) == ["100.00 (one run)", "missing", "missing", "missing", "0.30 (one run)"]
    assert gallery.reading(results) == [
        "MNIST (profile small): an ASR of 90 % or more in every seed for BadNets (four corners). "
        "In no seed: CL (ASR 0.3 (one run))."
    ]
    shown = [axis for axis in gallery.figure(results).axes if axis.images]
    assert len(shown) == 3  # clean, stamped, and the change
    change = np.asarray(shown[2].images[0].get_array())
    assert (change[16, 16] == 0.5).all()  # grey where the stamp does not reach
    gallery.figure(Results(Attacks(), "small", "as asked")).savefig(tmp_path / "empty.png")


def save_published_table3(store: Store, seed: int) -> None:
    """Table 3's published numbers as records of one seed, under init=full."""
    stated = published("table3").set_index(["clean_size", "method"])
    for cell in Table3(clean_size="all", init="full", seeds=seed).cells("small"):
        line = stated.loc[(cell.clean_size or 3000, METHODS[cell.defense].label)]
        store.save(record(cell, line.acc_percent / 100, line.asr_percent / 100))


def test_a_verdict_follows_the_records_and_counts_methods(store):
    for seed in range(3):
        save_published_table3(store, seed)
    line = overview.table(store).loc["Table 3", "small"]
    assert line.ours.startswith(
        "undefended: 1 of 1 near<br>compared: 5 of 5 near<br><code>full</code>: 3 of 3 near<br>"
    )
    assert line.verdict == (
        "undefended: reproduces (3 seeds, 75 %)<br>compared: reproduces (3 seeds, 75 %)<br>"
        "<code>full</code>: reproduces (3 seeds, 75 %)<br><code>random</code>: not decided: records are missing"
    )
    for seed in range(3):
        for defense in ("channel", "cube", "feature"):
            store.save(record(Cell(defense=defense, clean_size=4500, profile="small", seed=seed), 0.99, 1.0))
    assert "<code>full</code>: does not (3 seeds, 75 %)" in overview.table(store).loc[("Table 3", "small"), "verdict"]


def test_a_method_that_could_change_the_word_leaves_the_verdict_open(store):
    for seed in range(3):
        save_published_table3(store, seed)
    store.save(record(Cell(defense="nad", clean_size=6000, profile="small", seed=1), 0.99, 0.0))
    line = overview.table(store).loc["Table 3", "small"]
    assert "compared: 4 of 5 near, 1 not decided" in line.ours
    assert "compared: not decided: the seeds disagree" in line.verdict
    for defense in ("finetuning", "mcr"):
        for seed in range(3):
            store.save(record(Cell(defense=defense, clean_size=6000, profile="small", seed=seed), 0.99, 0.0))
    assert "compared: 2 of 5 near, 1 not decided" in overview.table(store).loc[("Table 3", "small"), "ours"]


def test_each_size_is_a_line_of_its_own(store):
    """One run at the paper's width decides nothing, and hides no seed of the narrow network."""
    for seed in range(3):
        save_published_table3(store, seed)
    store.save(record(Cell(defense="nad", clean_size=3000, profile="wide"), 0.99, 0.0))
    table = overview.table(store).loc["Table 3"]
    assert list(table.index) == ["wide", "small"]
    assert "reproduces" not in table.loc["wide", "verdict"]
    assert "compared: reproduces (3 seeds, 75 %)" in table.loc["small", "verdict"]


def test_what_has_no_record_is_missing(store):
    table = overview.table(store)
    assert list(table.index.get_level_values(0)) == [
        "Table 3",
        "Table 4",
        "Figure 10",
        "Figure 11",
        "Figure 12",
        "Figure 13",
    ]
    assert set(table.ours) == {"missing"}
    assert set(table.verdict) == {"–"}


def test_a_data_copy_that_is_not_whole_is_said_to_be_so(store):
    for dataset, copy in (
        ("mnist", "MNIST, 60,000 + 10,000 images (c)"),
        ("gtsrb", "GTSRB, 25,087 + 7,949 images (c)"),
    ):
        cell = Cell(dataset, profile="small")
        store.save(record(cell, 0.9, data={"fingerprint": "0" * 16, "copy": copy}))
    whole, partly = overview.copies(store).split(". GTSRB")
    assert whole == "MNIST is whole: 60,000 training and 10,000 test images"
    assert partly.startswith(" is not: the copy has 25,087 of 39,209 training and 7,949 of 12,630 test images.")


def test_progress_and_cost_count_every_cell_once(store):
    store.save(record(Cell(profile="small"), provenance=PLACE | {"wall_seconds": 3600.0}))
    progress = overview.progress(store)
    assert progress.loc[("table3", "small"), "done"] == 1
    assert progress.loc[("figure13", "small"), "seconds"] == 3600
    told = overview.one_seed("small", store)
    cells, hours, missing = re.search(
        r"is (\d+) cells. .* took ([\d.]+) hours of one process. The (\d+) others have no record of seed 0", told
    ).groups()
    assert (int(missing), hours) == (int(cells) - 1, "1.0")
    assert list(overview.origins(store).records) == ["1"] * 5


def test_where_no_backdoor_took_nothing_is_missing(store):
    for attack, asr in (("cl", 0.016), ("blend", 1.0)):
        store.save(record(Cell(attack=attack, profile="small"), 0.99, asr))
    before = overview.progress(store).loc[("defenses", "small")]
    store.save(record(Cell(attack="cl", defense="finetuning", clean_size=3000, profile="small"), 0.99, 0.01))
    after = overview.progress(store).loc[("defenses", "small")]
    row = len(Defenses(attack="cl").columns()) - 1
    assert list(before[["done", "no backdoor"]]) == [2, row]
    assert list(after[["done", "no backdoor", "missing"]]) == [3, row - 1, before.missing]
    assert (before.missing, before.failed) == (before.cells - 2 - row, 0)


def test_seeds_in_short():
    assert overview.ranges({0, 1, 2, 4, 7, 8}) == "0-2, 4, 7-8"
    assert overview.ranges({3}) == "3"
    assert overview.ranges(set()) == ""
