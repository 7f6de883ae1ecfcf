"""The efficiency curves: what is drawn, and what the published numbers say of their ends."""

import math

import pytest
from made import record

from purifier_core.lab.cells import Cell
from purifier_core.lab.experiments.grids import Column, module
from purifier_core.lab.experiments.supplement import Figure13
from purifier_core.lab.records import Record
from purifier_core.lab.results import Results
from purifier_core.pages import curves

CURVE = {"epochs": [0, 1, 2], "acc": [0.99, 0.8, 0.9], "asr": [1.0, 0.4, 0.2], "images": [1000, 1000], "stages": [1]}


def watched(defense: str, seed: int, curve: dict | None = CURVE, **switches: str) -> Record:
    cell = Cell("mnist", "vgg16", "badnets", 0.1, defense, 3000, seed, "small", tuple(switches.items()))
    return record(cell, 0.9, 0.2, effort={"epochs": 2}, diagnostics={"curve": curve} if curve else {})


def results(*records: Record) -> Results:
    return Results(Figure13(profile="small", seeds="0-1"), "small", "as asked", list(records))


def test_a_panel_for_each_defense_and_a_line_for_each_seed():
    mine = results(watched("finetuning", 0), watched("finetuning", 1), watched("feature", 0, init="random"))
    first, second, third = curves.figure(mine, "mnist").axes
    assert [first.get_title(loc="left"), second.get_title(loc="left")] == ["Finetuning", "Feature (random)"]
    drawn = [line for line in first.lines if len(line.get_xdata()) == 3]
    assert [list(line.get_ydata()) for line in drawn] == [pytest.approx([99, 80, 90]), pytest.approx([100, 40, 20])] * 2
    assert not third.axison


def test_a_first_stage_that_was_not_watched_is_a_gap():
    after_finetuning = CURVE | {"epochs": [0, 21, 22], "stages": [20]}
    epochs, values = curves.unbroken(after_finetuning, "acc")
    assert epochs == [0, 21, 21, 22]
    assert [math.isnan(value) for value in values] == [False, True, False, False]
    every_ninth = CURVE | {"epochs": [0, 9, 29], "stages": [20]}
    assert curves.unbroken(every_ninth, "acc")[0] == [0, 9, 29]


def test_the_published_end_is_marked():
    (first, *_) = curves.figure(results(watched("feature", 0, init="full")), "mnist").axes
    ends = sorted(tuple(point) for ring in first.collections for point in ring.get_offsets())
    assert ends == [(2, pytest.approx(0.28)), (2, pytest.approx(97.82))]


def test_the_published_end_is_left_out_where_the_paper_does_not_give_it():
    assert curves.end_point("mnist", Column("abl")) == {}
    assert curves.end_point("gtsrb", Column("nad")) == {}  # 18 to 20 epochs fit its bars
    assert curves.end_point("gtsrb", module("channel", "full")) == {"asr": pytest.approx(100 - 40 * 2.49)}


def test_what_has_no_curve_is_absent_and_counted(tmp_path):
    mine = results(watched("finetuning", 0), watched("nad", 0, curve=None))
    assert curves.reading(mine) == [
        "A curve is in 1 of the 2 records of defenses shown here; the others are absent. "
        "It is taken on 1,000 clean and 1,000 triggered test images."
    ]
    assert list(curves.curves(mine, "mnist")) == [Column("finetuning")]
    curves.figure(mine, "gtsrb").savefig(tmp_path / "empty.png", dpi=40)
