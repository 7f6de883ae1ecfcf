"""Numbers over seeds: mean and range, pairs, and what decides."""

import pytest
from made import record

from purifier_core.lab.cells import Cell
from purifier_core.lab.records import Record
from purifier_core.pages.statistics import decided, estimate, paired, took


def records(**asr_by_seed: float) -> list[Record]:
    cells = {Cell(seed=int(seed.removeprefix("s"))): asr for seed, asr in asr_by_seed.items()}
    return [record(cell, 0.9, asr) for cell, asr in cells.items()]


def test_a_number_is_mean_and_range():
    three = estimate({0: 0.9997, 1: 0.887, 2: 0.057})
    assert three.mean == pytest.approx(64.79)
    assert (three.low, three.high, three.n) == pytest.approx((5.7, 99.97, 3))
    assert three.text() == "64.8 (5.7 to 100.0)"
    assert estimate({0: 0.02, 1: -0.01}).text(sign="+") == "+0.5 (-1.0 to +2.0)"


def test_one_seed_is_one_run():
    one = estimate({4: 0.5})
    assert one.text() == "50.0 (one run)"
    assert one.confidence == 0


def test_the_confidence_is_that_of_the_range_for_the_median():
    found = {n: estimate(dict.fromkeys(range(n), 0.5)).confidence for n in (3, 5, 10)}
    assert found == pytest.approx({3: 0.75, 5: 0.9375, 10: 0.998}, abs=1e-4)


def test_a_difference_is_paired_by_seed_and_a_seed_without_a_partner_does_not_enter():
    change = paired(records(s0=0.1, s2=0.5), records(s2=0.9, s1=1.0, s0=0.2), "asr")
    assert change.seeds == (0, 2)
    assert change.values == pytest.approx((-10, -40))
    assert paired(records(s0=0.1), records(s1=0.2), "asr") is None


def test_what_decides():
    assert decided([True] * 3) is True
    assert decided([False] * 5) is False
    assert decided([True, True, False]) == "not decided: the seeds disagree"
    assert decided([True]) == "not decided: one run"
    assert decided([True, True]) == "not decided: 2 seeds"
    assert decided([]) == "not decided: records are missing"


def test_a_backdoor_took_if_every_seed_reaches_90_percent():
    assert took(records(s0=0.9, s1=1.0))
    assert not took(records(s0=0.899, s1=1.0))
    assert not took([])
