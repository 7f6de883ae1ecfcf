"""One switch at a time: which cells are compared, and the paired differences, by hand."""

from dataclasses import replace

import pytest
from made import record

from purifier_core.checks import ConfigError
from purifier_core.lab.cells import SWITCHES
from purifier_core.lab.experiments.beyond import CHANGES, WITH, WITHOUT, Change, Switches
from purifier_core.lab.experiments.grids import Column
from purifier_core.lab.records import Record
from purifier_core.lab.results import Results
from purifier_core.pages import ablation

GRID = Switches(profile="small", seeds="0-2", switch="all")
TEACHER = Change("nad_eval", "teacher", "nad")
STEPS = Change("anp_steps", "16", "anp")


def at(change: Change, column: Column, seed: int, acc: float, asr: float) -> Record:
    return record(GRID.cell(column, change, seed, "small"), acc, asr)


def results(*records: Record) -> Results:
    return Results(GRID, "small", "as asked", list(records))


def test_bf16_is_compared_at_other_widths_where_the_network_is_the_narrowest():
    grid = Switches(switch="precision")
    names = [ablation.label(change) for change in grid.rows("small")]
    assert names[::3] == [f"precision=bf16: No Defense{width}" for width in ("", " at width 1/4")]
    wide = grid.rows("small")[3]
    sides = [grid.cell(column, wide, 0, "small") for column in (WITHOUT, WITH)]
    assert [cell.width for cell in sides] == [0.25, 0.25]
    assert [cell.switch("precision") for cell in sides] == ["fp32", "bf16"]
    assert len(grid.rows("wide")) == 3


@pytest.mark.parametrize("change", CHANGES, ids=ablation.label)
def test_every_change_is_one_switch(change):
    without, with_it = (GRID.cell(column, change, 0, "small") for column in (WITHOUT, WITH))
    assert without.key() != with_it.key()
    assert set(with_it.switches) - set(without.switches) == {(change.switch, change.value)}


def test_every_released_behaviour_is_among_them():
    # init has a page of its own; on MNIST the sign of CL's patch, whose pixels are all positive there, changes nothing
    assert {c.switch for c in CHANGES} == set(SWITCHES) - {"init", "cl_sign", "width"}


def test_differences_are_paired_by_seed():
    mine = [at(TEACHER, WITHOUT, s, 0.9, a) for s, a in enumerate((0.1, 0.3, 0.5, 0.9))]
    mine += [at(TEACHER, WITH, s, 0.9, a) for s, a in enumerate((0.3, 0.5, 0.7))]  # the last seed has no pair
    mine += [at(STEPS, WITHOUT, 0, 0.95, 0.2), at(STEPS, WITH, 0, 0.955, 0.2)]
    found = ablation.effects(results(*mine))
    assert found[TEACHER, "asr"].mean == pytest.approx(20)
    assert found[TEACHER, "asr"].values == pytest.approx((20, 20, 20))
    assert found[TEACHER, "asr"].seeds == (0, 1, 2)
    assert ablation.verdict(found[TEACHER, "asr"]) == "up"
    assert ablation.verdict(found[STEPS, "acc"]) == "not decided: one run"
    moved, still, _, few = ablation.reading(results(*mine))
    assert moved.endswith("(profile small): nad_eval=teacher: NAD.")
    assert still.endswith(": none.")
    assert few == "Not decided, fewer than 3 seeds: anp_steps=16: ANP (one run)."
    table = ablation.table(results(*mine))
    assert list(table.loc["nad_eval=teacher: NAD"])[-3:] == ["30.0", "50.0", "+20.0 (+20.0 to +20.0)"]
    assert table.loc["fp_select=test: Fine-pruning", "ASR difference"] == "missing"


def test_seeds_that_disagree_decide_nothing():
    mine = [at(STEPS, WITHOUT, s, 0.9, 0.1) for s in range(3)]
    mine += [at(STEPS, WITH, s, 0.9, asr) for s, asr in enumerate((0.1, 0.5, 0.6))]  # +0, +40 and +50 points
    found = ablation.effects(results(*mine))
    assert found[STEPS, "asr"].mean == pytest.approx(30)
    assert ablation.verdict(found[STEPS, "asr"]) == "not decided: the seeds disagree"
    assert ablation.verdict(found[STEPS, "acc"]) == "none"
    moved, still, split, few = ablation.reading(results(*mine))
    assert all(line.endswith(": none.") for line in (moved, still, few))
    assert split == "Not decided, the seeds disagree: anp_steps=16: ANP."


def test_the_forest_plot_has_a_dot_for_each_seed_and_a_hollow_one_for_one_run():
    mine = [at(STEPS, WITHOUT, s, 0.9, 0.1) for s in range(3)]
    mine += [at(STEPS, WITH, s, 0.9, asr) for s, asr in enumerate((0.2, 0.5, 0.6))]
    for count, hollow in ((3, False), (1, True)):
        picture = ablation.figure(results(*[r for r in mine if r.cell.seed < count]))
        (dots,) = picture.axes[1].collections
        assert len(dots.get_offsets()) == count
        assert (tuple(dots.get_facecolor()[0][:3]) == (1, 1, 1)) == hollow


def test_another_choice_of_threshold_is_read_off_the_sweep():
    sweep = {"0.10": {"acc": 0.99, "asr": 1.0}, "0.20": {"acc": 0.95, "asr": 0.1}, "0.90": {"acc": 0.1, "asr": 0.0}}
    chosen = replace(at(STEPS, WITHOUT, 0, 0.99, 1.0), diagnostics={"sweep": sweep})
    found = ablation.effects(results(chosen))
    assert found[ablation.ANP_POINT, "acc"].mean == pytest.approx(-4)
    assert found[ablation.ANP_POINT, "asr"].mean == pytest.approx(-90)
    assert list(ablation.table(results(chosen)).loc["anp_point=test: ANP"])[-3:] == ["100.0", "10.0", "-90.0 (one run)"]


def test_the_learning_rates_stand_side_by_side():
    change = Change("purifier_lr", "older", "cube")
    mine = [at(change, WITHOUT, s, 0.7, 0.1) for s in (0, 1)] + [at(change, WITH, 0, 0.6, 0.9)]
    table = ablation.rates(results(*mine))
    assert list(table.index) == ["Channel", "Cube", "Feature"]
    assert list(table.loc["Cube"]) == ["70.0 (70.0 to 70.0) / 10.0 (10.0 to 10.0)", "60.0 (one run) / 90.0 (one run)"]
    assert list(table.loc["Feature"]) == ["missing", "missing"]


def test_the_forest_plot_is_drawn_with_and_without_records(tmp_path):
    for mine in ([], [at(STEPS, WITHOUT, 0, 0.9, 0.1), at(STEPS, WITH, 0, 0.9, 0.5)]):
        ablation.figure(results(*mine)).savefig(tmp_path / "figure.png", dpi=40)


def test_an_unknown_switch_is_named():
    with pytest.raises(ConfigError, match="switch='nad' is not known; allowed: nad_eval, nad_maps"):
        Switches(switch="nad")


def test_abls_treatments_of_batchnorm_stand_below_each_other():
    frozen, recounted = (Change("abl_bn", value, "abl") for value in ("frozen", "recounted"))
    found = results(at(frozen, WITHOUT, 0, 0.6, 0.0), at(frozen, WITH, 0, 0.99, 1.0), at(recounted, WITH, 0, 0.8, 0.01))
    shown = ablation.batchnorm(found)
    assert list(shown.index) == ["reference", "frozen", "recounted"]
    assert list(shown.ASR) == ["0.0 (one run)", "100.0 (one run)", "1.0 (one run)"]
    assert (ablation.batchnorm(results()) == "missing").all(axis=None)
