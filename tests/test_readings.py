"""The statistics of the three readings, by hand."""

import math

import pytest
from made import record

from purifier_core.lab.experiments.beyond import Readings, Setting
from purifier_core.lab.experiments.grids import Column, module
from purifier_core.lab.records import Record
from purifier_core.lab.results import Results
from purifier_core.pages import readings
from purifier_core.recipes import GRANULARITIES

GRID = Readings(profile="small", seeds="0-2")


def at(setting: Setting, column: Column, seed: int, acc: float, asr: float, **clean) -> Record:
    diagnostics = {"clean": clean, "triggered": {}} if clean else {}
    return record(GRID.cell(column, setting, seed, "small"), acc, asr, diagnostics=diagnostics)


def off_by(init: str, augment: bool, seed: int, acc: float, asr: float) -> list[Record]:
    """Records that lie these fractions above the published values, at every size and module."""
    paper = readings.paper_values()
    return [
        at(
            Setting("mnist", "vgg16", size, augment),
            module(g, init),
            seed,
            paper[size, g, "acc"] / 100 + acc,
            paper[size, g, "asr"] / 100 + asr,
        )
        for size in (6000, 4500, 3000)
        for g in GRANULARITIES
    ]


def results(*records: Record) -> Results:
    return Results(GRID, "small", "as asked", list(records))


def test_distance_is_the_mean_absolute_difference_over_modules_and_sizes():
    mine = results(*off_by("full", True, 0, 0.01, 0.9), *off_by("full", True, 1, -0.03, 0.9))
    found = readings.distances(mine, [Setting("mnist", "vgg16", size) for size in (6000, 4500, 3000)])
    assert set(found) == {("full", "acc"), ("full", "asr")}
    assert found["full", "acc"].mean == pytest.approx(2)  # one seed above, one below: no cancelling
    assert found["full", "asr"].mean == pytest.approx(90)
    assert found["full", "acc"].seeds == (0, 1)


def test_a_seed_with_a_gap_has_no_distance():
    mine = results(*off_by("full", True, 0, 0.01, 0.9)[:-1])
    assert readings.distances(mine, [Setting("mnist", "vgg16", 6000), Setting("mnist", "vgg16", 3000)]) == {}


def test_the_nearest_reading_is_named():
    mine = results(*off_by("full", True, 0, 0.0, 0.9), *off_by("random", False, 0, 0.01, 0.005))
    mine.records += off_by("partial", True, 0, 0.0, 0.1)
    assert list(readings.distance_table(mine).index) == [
        ("6,000, 4,500, 3,000", "partial"),
        ("6,000, 4,500, 3,000", "full"),
        ("3,000", "partial"),
        ("3,000", "full"),
        ("3,000, not augmented", "random"),
    ]
    assert readings.reading(mine)[2].startswith("3,000, not augmented clean images: nearest")


def test_trend_is_the_gain_from_the_smallest_to_the_largest_size():
    table = readings.trend(results(*off_by("partial", True, 0, 0.01, 0.0)))
    assert table.loc["Channel", "published"] == "+1.21"  # 98.75 - 97.54
    assert table.loc["Channel", "partial"] == "+1.21 (one run)"
    assert table.loc["Feature", "random"] == "missing"


def test_the_table_shows_every_reading_and_the_control():
    setting = Setting("mnist", "vgg16", 3000)
    mine = results(*off_by("random", True, 0, 0.0, 0.0), at(setting, Column("scratch"), 0, 0.975, 0.004))
    table = readings.table(mine)
    line = table.loc[("MNIST, VGG-16, 3,000", "Cube", "ACC")]
    assert list(line) == ["89.5", "missing", "missing", "89.5 (one run)", "97.5 (one run)", "1"]
    assert table.loc[("CIFAR-10, ResNet-18, 2,500", "Cube", "ASR"), "published"] == "–"
    assert any("images alone reaches an ACC of 97.5 (one run) %" in s for s in readings.reading(mine))


def test_cube_is_set_beside_its_first_head_and_the_published_value():
    augmented, plain = (Setting("mnist", "vgg16", 3000, augment) for augment in (True, False))
    mine = [at(s, module("cube", "random"), 0, 0.75, 0.0, heads=[0.75]) for s in (augmented, plain)]
    mine.append(at(Setting("cifar10", "vgg16", 2500), module("cube", "full"), 0, 0.25, 0.0, heads=[0.5]))
    assert readings.cube(results(*mine)) == [
        "MNIST, VGG-16, 3,000: Cube's ACC in percent: random 75.0 (one run; its first head alone 75.0); "
        "published 89.5.",
        "MNIST, VGG-16, 3,000, not augmented: Cube's ACC in percent: random 75.0 (one run; its first head alone 75.0); "
        "published 89.5.",
        "CIFAR-10, VGG-16, 2,500: Cube's ACC in percent: full 25.0 (one run; its first head alone 50.0).",
    ]


def test_a_reading_is_nearest_where_every_seed_says_so():
    near = [r for seed in range(3) for r in off_by("random", True, seed, 0.01, 0.005)]
    far = [r for seed in range(3) for r in off_by("full", True, seed, 0.0, 0.9)]
    assert readings.reading(results(*near, *far))[0].endswith("3 seeds; nearest in every seed).")
    far[-9:] = off_by("full", True, 2, 0.0, 0.0)  # the last seed
    assert readings.reading(results(*near, *far))[0].endswith("3 seeds; not decided: the seeds disagree).")
    assert readings.reading(results(*near[:9], *far[:9]))[0].endswith("one run; not decided: one run).")


def test_the_figure_of_the_masks_has_a_dot_for_each_seed(tmp_path):
    setting = Setting("mnist", "vgg16", 3000)
    mine = [
        at(setting, module("cube", "full"), seed, 0.9, 0.1, wrong_mask={"label": label, "mask": 0.6})
        for seed, label in ((0, 0.1), (1, 0.3))
    ]
    for records, wanted in (([], []), (mine, [[10, 30], [60, 60]])):
        picture = readings.figure(results(*records))
        picture.savefig(tmp_path / "figure.png", dpi=40)
        dots = [[x for x, _ in c.get_offsets()] for axis in picture.axes for c in axis.collections]
        assert dots == [pytest.approx(pair) for pair in wanted]


def test_what_the_landing_page_takes_from_here():
    plain, setting = Setting("mnist", "vgg16", 3000, augment=False), Setting("mnist", "vgg16", 3000)
    mine = [r for r in off_by("random", False, 0, 0.01, 0.02) if r.cell.clean_size == 3000]
    mine.append(at(setting, module("feature", "full"), 0, 0.9, 0.1, wrong_mask={"label": 0.1, "mask": 0.6}))
    values = readings.glued(results(*mine))
    assert {r.cell for r in mine[:3]} == {GRID.cell(module(g, "random"), plain, 0, "small") for g in GRANULARITIES}
    assert values["readings_random_plain_acc"] == pytest.approx(1)
    assert values["readings_random_plain_asr"] == pytest.approx(2)
    assert values["readings_mask_feature_full"] == pytest.approx(60)
    assert math.isnan(values["readings_full_acc"])
