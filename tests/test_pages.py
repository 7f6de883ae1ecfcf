"""What holds of every page of numbers, from the committed records: ranges within bounds, and each record once."""

import re
from dataclasses import replace

import pandas as pd
import pytest

from purifier_core.files import ROOT
from purifier_core.lab.experiments import EXPERIMENTS
from purifier_core.lab.records import Store
from purifier_core.lab.results import DECIDES, Results, look_up, number, untaken
from purifier_core.pages import ablation, defenses, efficiency, gallery, readings, report

VIEWS = {
    "table3": report,
    "table4": report,
    "figure13": efficiency,
    "attacks": gallery,
    "readings": readings,
    "defenses": defenses,
    "switches": ablation,
}
DIFFERENCES = ("difference", "ACC change")
RANGE = re.compile(r"(?:(-?[\d.]+) \()?(-?[\d.]+) to (-?[\d.]+)")


@pytest.fixture(scope="module")
def shown() -> dict[str, Results]:
    return {name: look_up(EXPERIMENTS[name](), Store(ROOT / "data"), reading=True) for name in VIEWS}


def percents(table: pd.DataFrame) -> list[str]:
    """The texts of a table that are no differences."""
    lines = table[[not any(word in str(index) for word in DIFFERENCES) for index in table.index]]
    columns = [name for name in lines if not str(name).endswith(DIFFERENCES) and name not in ("n", "seeds")]
    return [str(text) for text in lines[columns].to_numpy().ravel()]


@pytest.mark.parametrize("name", VIEWS)
def test_a_range_stays_within_0_and_100_and_holds_its_mean(shown, name):
    texts = percents(VIEWS[name].table(shown[name]))
    ranges = [found.groups() for text in texts for found in RANGE.finditer(text)]
    if name != "switches":  # its ranges are those of differences
        assert ranges
    for mean, low, high in ranges:
        assert 0 <= float(low) <= float(mean or low) <= float(high) <= 100


@pytest.mark.parametrize("name", VIEWS)
def test_there_is_no_t_interval(shown, name):
    view = VIEWS[name]
    texts = [*view.table(shown[name]).astype(str).to_numpy().ravel(), *view.reading(shown[name])]
    assert not [text for text in texts if "±" in text or "95 %" in text]


@pytest.mark.parametrize("name", ["figure13", "attacks", "readings", "defenses"])
def test_a_record_stands_in_one_place(name):
    grid = EXPERIMENTS[name](profile="small").full_grid()
    cells = [grid.cell(column, row, 0, "small") for row, column in grid.places("small")]
    assert len(set(cells)) == len(cells)


def test_the_headline_says_why_this_size_is_shown(shown):
    assert "the largest with enough seeds" in shown["defenses"].headline, "one run at wide is passed over"
    assert "the largest with records" in shown["table3"].headline


def test_the_book_shows_every_seed_that_a_number_has_at_its_largest_size(shown):
    """Each place of a table has its own seeds; none is left out because another place lacks it. Where defenses are
    judged, one whose backdoor did not take is, and it is named."""
    assert any("seed 10 (ASR 0.7 %)" in results.headline for results in shown.values())
    seeds: dict = {}
    for record in Store(ROOT / "data").all():
        cell = record.cell
        seeds.setdefault(number(cell), {}).setdefault(cell.profile, set()).add(cell.seed)
    for name, results in shown.items():
        weak = {record.cell for record in untaken(results.records)} if results.experiment.where_taken else set()
        for (row, column), records in results.by_place.items():
            place = number(results.experiment.cell(column, row, 0, results.profile))
            every = seeds[place]
            there = [size for size in results.experiment.sizes if size in every]
            if results.experiment.seeds_first:
                there.sort(key=lambda size: len(every[size]) < DECIDES)
            largest = there[0]
            assert {record.cell.profile for record in records} == {largest}, name
            cells = [replace(place, profile=largest, seed=seed) for seed in sorted(every[largest])]
            usable = [cell.seed for cell in cells if cell.backdoored() not in weak]
            assert [record.cell.seed for record in records] == usable, name
