"""Figure 13's arithmetic, by hand."""

from dataclasses import replace

import pytest
from made import record

from purifier_core.lab.cells import Cell
from purifier_core.lab.experiments.supplement import Figure13
from purifier_core.lab.records import Record
from purifier_core.lab.results import Results
from purifier_core.pages import efficiency, scrutiny


def purified(defense: str, asr: float, epochs: float, **switches: str) -> Record:
    cell = Cell(defense=defense, clean_size=3000, profile="small", switches=tuple(switches.items()))
    effort = {"epochs": epochs, "seconds": 5.0, "images": 60_000}
    return record(cell, 0.9, asr, effort=effort)


def replace_seed(record: Record, seed: int) -> Record:
    return replace(record, cell=replace(record.cell, seed=seed))


def test_the_metric():
    assert efficiency.per_epoch(0.0028, 40) == pytest.approx(2.493)  # the published 2.49 of Feature on MNIST
    assert efficiency.per_epoch(1.0, 20) == 0


def test_bars_divide_by_the_epochs_of_the_run():
    experiment = Figure13(dataset="mnist", profile="small")
    mine = [purified("finetuning", 0.5, 10), purified("feature", 0.0, 20, init="random")]
    shown = efficiency.table(Results(experiment, "small", "as asked", mine))
    assert shown.loc[("MNIST", "published"), "ANP"] == "2.36"
    assert shown.loc[("MNIST", "ours"), "Finetuning"] == "5.00 (one run)"
    assert shown.loc[("MNIST", "ours"), "Feature (random)"] == "5.00 (one run)"
    assert shown.loc[("MNIST", "ours"), "ANP"] == "missing"


def test_a_bar_is_the_mean_over_every_seed():
    mine = [replace_seed(purified("finetuning", asr, 10), seed) for seed, asr in enumerate((0.5, 0.6, 1.0))]
    results = Results(Figure13(dataset="mnist", profile="small", seeds="0-2"), "small", "as asked", mine)
    assert efficiency.table(results).loc[("MNIST", "ours"), "Finetuning"] == "3.00 (0.00 to 5.00)"
    ours = efficiency.bars(results).query("source == 'ours'")
    assert list(ours.value) == pytest.approx([3])
    dots = [c for c in efficiency.figure(results).axes[0].collections if len(c.get_offsets()) == 3]
    assert sorted(x for x, _ in dots[0].get_offsets()) == pytest.approx([0, 4, 5])


def test_bars_of_several_sizes_are_said_to_be_so():
    small = [replace_seed(purified("finetuning", 0.5, 10), seed) for seed in (0, 1)]
    large = [purified("feature", 0.0, 40), purified("channel", 0.0, 40)]
    large = [replace(r, cell=replace(r.cell, profile="wide")) for r in large]
    results = Results(Figure13(dataset="mnist", profile="small", seeds="0-1"), "wide", "as asked", [*small, *large])
    profile_and_seeds = efficiency.table(results).loc[("MNIST", "profile, n")]
    assert list(profile_and_seeds[["Finetuning", "Feature (full)", "ANP"]]) == ["small, 2", "wide, 1", "–"]
    line = (
        "Bars of MNIST are of several sizes, so of several networks: Finetuning at small, the others at wide. "
        "Compare within one size."
    )
    assert line in efficiency.reading(results)
    assert line not in efficiency.reading(replace(results, records=small))


def test_anp_without_a_threshold_has_no_bar():
    refused = replace(purified("anp", 1.0, 10), diagnostics={"tau": None})
    results = Results(Figure13(dataset="mnist", profile="small"), "small", "as asked", [refused])
    assert efficiency.table(results).loc[("MNIST", "ours"), "ANP"] == "no threshold"
    assert efficiency.bars(results).query("source == 'ours'").empty
    assert "ANP has no admissible threshold, and so no result: MNIST (one run)." in efficiency.reading(results)


def test_a_backdoor_that_did_not_take_is_told():
    start = Cell(profile="small")
    mine = [purified("finetuning", 0.01, 10)]
    for asr, told in ((0.02, True), (0.95, False)):
        undefended = record(start, 0.9, asr, effort={"epochs": 6})
        lines = efficiency.reading(Results(Figure13(dataset="mnist"), "small", "as asked", [*mine, undefended]))
        assert any("before any defense ASR is 2.0 (one run) %" in line for line in lines) == told


def test_implied_epochs_by_hand():
    table = scrutiny.implied_epochs()
    # MCR: 8.85 +- 0.005 over 0.14 +- 0.005
    assert table.loc["MCR", "N on MNIST"] == f"{8.845 / 0.145:.1f} to {8.855 / 0.135:.1f}" == "61.0 to 65.6"
    assert table.loc["Finetuning", "N on MNIST"] == "at least 11.0"  # 0.055 / 0.005; a bar of 0.00 has no upper bound
    assert table.loc["NAD", "N on any dataset"] == f"at most {100 / 4.865:.1f}"
    assert len(table) == 9


def test_only_the_smallest_row_of_table_3_fits_the_bars():
    table = scrutiny.admissible_epochs()
    assert list(table.loc["3,000 images"]) == ["11 to 22", "12 to 37", "61 to 63", "18 to 20", "42", "40", "40", "40"]
    assert table.loc["6,000 images", "NAD"] == "none"  # ASR 99.98: (1 - ASR) / N = 0.05 would need less than one epoch
    assert "none" not in set(table.loc["3,000 images"])


@pytest.mark.parametrize("draw", [efficiency.figure, efficiency.cost])
def test_figures_are_drawn_with_and_without_records(draw, tmp_path):
    for mine in ([], [purified("finetuning", 0.5, 10)]):
        path = tmp_path / "figure.png"
        draw(Results(Figure13(profile="small"), "small", "as asked", mine)).savefig(path, dpi=40)
        assert path.stat().st_size > 2000
