"""The numbers beside Figures 10 to 12, by hand."""

import pytest
from made import record

from purifier_core.files import ROOT
from purifier_core.lab.cells import Cell
from purifier_core.lab.experiments.supplement import Figure10, Figure11, Figure12
from purifier_core.lab.records import Record, Store
from purifier_core.lab.results import Results, look_up
from purifier_core.pages import anomaly, report

LAYER = {
    # two classes, four channels; the trigger lights the third beyond both, the fourth no more than the second class
    "classes": [[4.0, 0.0, 0.5, 0.5], [0.0, 3.0, 1.0, 1.0]],
    "clean": [2.0, 1.5, 0.75, 0.75],
    "triggered": [1.0, 1.0, 5.0, 1.0],
    "clean_map": [[1.0, 2.0], [3.0, 2.0]],
    "triggered_map": [[2.0, 4.0], [6.0, 4.0]],
}


def probed(defense: str = "none", seed: int = 0, attack: str = "trojan", **switches: str) -> Record:
    cell = Cell("cifar10", "resnet18", attack, 0.1, defense, 2500, seed, "small", tuple(switches.items()))
    return record(cell, 0.8, 0.9, diagnostics={"activations": LAYER})


def test_channels_lit_beyond_every_class():
    assert anomaly.lit(LAYER) == [2]
    mixture = [0.3 * a + 0.7 * b for a, b in zip(*LAYER["classes"], strict=True)]
    assert anomaly.lit(LAYER | {"triggered": mixture}) == []


def test_the_numbers():
    found = anomaly.numbers(LAYER)
    assert found["channels"] == 1 / 4
    assert found["share"] == 5 / 8
    assert found["clean_share"] == pytest.approx(0.75 / 5)
    assert found["excess"] == 4 / 8
    # triggered: 1/8 1/8 5/8 1/8; classes: 4/5 0 1/10 1/10 and 0 3/5 1/5 1/5
    assert found["nearest"] == pytest.approx((0.125 + 0.475 + 0.425 + 0.075) / 2)
    assert found["between"] == pytest.approx((0.8 + 0.6 + 0.1 + 0.1) / 2)


def test_a_class_without_images_is_no_class():
    assert anomaly.numbers(LAYER | {"classes": [*LAYER["classes"], [0.0] * 4]}) == anomaly.numbers(LAYER)


def test_maps_of_one_shape_correlate_fully():
    found = anomaly.map_numbers(LAYER["clean_map"], LAYER["triggered_map"])
    assert (found["ratio"], found["clean_max"], found["triggered_max"]) == (2, 3, 6)
    assert found["correlation"] == pytest.approx(1)


def test_the_papers_maps():
    clean, triggered = anomaly.published_maps()
    assert clean.shape == triggered.shape == (4, 4)
    assert (clean[3, 2], triggered[3, 2]) == (1.91, 2.43)


def test_tables_have_a_line_for_each_network():
    both = [probed(), probed("feature", init="full")]
    table = anomaly.table(Results(Figure12(profile="small", init="full"), "small", "", both))
    assert list(table.index) == ["No Defense", "Feature (full)"]
    assert table.loc["No Defense", "their share of the magnitude, triggered, %"] == "62.5 (one run)"
    twice = [probed(), probed(seed=1)]
    table = anomaly.table(Results(Figure10(profile="small", seeds="0,1"), "small", "", twice))
    assert table.loc["No Defense", "ASR, %"] == "90.0 (90.0 to 90.0)"
    table = anomaly.table(Results(Figure11(profile="small"), "small", "", [probed(attack="badnets")]))
    assert list(table.index) == ["published", "ours"]
    assert table.loc["ours", "triggered / clean"] == "2.00 (one run)"


@pytest.mark.parametrize("kind", [Figure10, Figure11, Figure12])
def test_figures_are_drawn_with_and_without_records(kind, tmp_path):
    attack = kind().attack
    for mine in ([], [probed(attack=attack), probed("feature", attack=attack)]):
        results = Results(kind(profile="small"), "small", "as asked", mine)
        assert anomaly.reading(results)
        path = tmp_path / "figure.png"
        anomaly.figure(results).savefig(path, dpi=40)
        assert path.stat().st_size > 2000


def test_beside_trojan_stands_what_is_recorded_of_badnets_and_the_other_way_round(tmp_path):
    store = Store(tmp_path)
    for attack in ("trojan", "badnets"):
        store.save(probed(attack=attack))
    for attack, other in (("trojan", "badnets"), ("badnets", "trojan")):
        results = anomaly.another_attack(Results(Figure10(attack=attack), "small", "as asked"), store)
        assert [record.cell.attack for record in results.records] == [other]
        assert results.reason == "the largest with records"


def test_in_the_book_seeds_that_a_single_larger_network_hides_stand_below_it(monkeypatch):
    """Figure 11, from the committed records: one run at `wide`, three seeds at `small`."""
    monkeypatch.setenv("PURIFIER_RECORDS_ONLY", "1")
    store = Store(ROOT / "data")
    results = look_up(Figure11(), store)
    assert results.sizes == ["wide"]
    below = report.at_smaller_sizes(results, anomaly.table, store)
    assert below.count("The same at <code>small</code>") == 1
    assert "figure11-badnets-small" in below
