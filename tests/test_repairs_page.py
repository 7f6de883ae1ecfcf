"""The comparison of repairs: its cells, the bar, what passes it, and the ROC curve, against counts by hand."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import made
import pytest

from purifier_core.files import ROOT
from purifier_core.lab.cells import Cell
from purifier_core.lab.experiments.comparison import Repairs
from purifier_core.lab.methods import ATTACKS
from purifier_core.lab.records import Record, Store
from purifier_core.lab.results import Results, look_up
from purifier_core.pages import detection, repairs, scan_settings

CANDIDATE = {"family": "pixel", "target": 5, "score": 7.25, "p": 0.001}


def record(cell: Cell, acc: float, asr: float, **diagnostics) -> Record:
    return made.record(cell, acc, asr, diagnostics=diagnostics)


def scanned(verdict: str = "backdoor suspected", target: int = 5, p: float = 0.001, other: float = 0.5) -> dict:
    """The diagnostics of a scan that suspects a class, or none."""
    best = CANDIDATE | {"target": target, "p": p}
    suspects = [best] if verdict == "backdoor suspected" else []
    maximal = {"target": target, "p": other}
    return {"verdict": verdict, "candidates": [best], "suspects": suspects, "p": p, "maximal": maximal}


def filled(tmp_path, grid: Repairs, fill: Callable[[Cell], Record | None]) -> Results:
    """The results of a grid whose cells `fill` gives records for."""
    store = Store(tmp_path)
    for cell in grid.cells("small"):
        if found := fill(cell):
            store.save(found)
    return look_up(grid, store)


def test_every_repair_meets_every_attack_and_a_clean_network():
    grid = Repairs(profile="small", attack="all", dataset="mnist", clean_size=600)
    columns = [column.defense for column in grid.columns()]
    assert columns == ["none", "bound_feature", "scan_repair", "scan_repair_anyway", "i_bau", "npd", "ft_sam"]
    cells = grid.cells("small")
    assert {(cell.attack, cell.defense) for cell in cells} == set(product((*ATTACKS, "none"), columns))
    assert {cell.clean_size for cell in cells if cell.defense != "none"} == {600}
    (gtsrb,) = {cell.clean_size for cell in Repairs(dataset="gtsrb").cells("small") if cell.defense == "npd"}
    assert gtsrb == 1960


def test_beside_one_attack_a_clean_network_is_the_line_alone():
    cells = Repairs(profile="small", attack="sig", dataset="mnist").cells("small")
    assert [cell.defense for cell in cells if cell.attack == "none"] == ["none"]
    assert len([cell for cell in cells if cell.attack == "sig"]) == 7
    assert len(Repairs(profile="small", attack="none").cells("small")) == 7


def one_row(cell: Cell) -> Record | None:
    """MNIST Blend: Scan-repair leaves 0 and 1 % of two seeds, a clean network says 5 by itself in 0.5 %."""
    if cell.attack == "none":
        return record(cell, 0.99, 0.002, own={"blend": {"asr": 0.005, "ra": 0.97}})
    if cell.defense == "none":
        return record(cell, 0.99, 1.0)
    if cell.defense == "scan_repair":
        return record(cell, 0.985, 0.01 * cell.seed, ra=0.9, **scanned())
    return None


def test_fewer_clean_images_stand_beside_the_pages_number(tmp_path):
    grid = Repairs(profile="small", attack="blend", dataset="mnist", seeds="0-1")
    results = filled(tmp_path, grid, one_row)
    assert repairs.fewer(results, Store(tmp_path)).empty
    filled(tmp_path, replace(grid, clean_size=120, seeds=0), one_row)
    table = repairs.fewer(results, Store(tmp_path))
    assert list(table.columns) == ["3,000 (5 %)", "600 (1 %)", "120 (0.2 %)"]
    assert table.loc[("MNIST, Blend", "ASR")].tolist() == ["0.5 (0.0 to 1.0)", "missing", "0.0 (one run)"]


def test_the_table_tells_what_is_left_and_the_reading_what_was_found(tmp_path):
    grid = Repairs(profile="small", attack="blend", dataset="mnist", seeds="0-1")
    results = filled(tmp_path, grid, one_row)
    table = repairs.table(results)
    place = "MNIST, Blend"
    assert table.loc[(place, "ASR")].to_dict() == {
        "No Defense": "100.0 (100.0 to 100.0)",
        "Bound-Feature": "missing",
        "Scan-repair": "0.5 (0.0 to 1.0)",
        "Scan-repair, anyway": "missing",
        "I-BAU": "missing",
        "NPD": "missing",
        "FT-SAM": "missing",
        "a clean network": "0.5 (0.5 to 0.5)",
    }
    assert table.loc[(place, "RA"), "Scan-repair"] == "90.0 (90.0 to 90.0)"
    assert table.loc[(place, "RA"), "No Defense"] == "–", "an older record has none"
    assert table.loc[("MNIST, clean network", "ACC"), "NPD"] == "–", "not asked for beside one attack"
    assert table.loc[(place, "scan")].to_dict() == dict.fromkeys(table, "–") | {"Scan-repair": "named 2 of 2"}
    lines = repairs.reading(results)
    bar = "**As a clean network is: 1 of 1 rows** (100 %; the bar of 80 % is met), of 2 seeds each."
    assert lines[0].startswith(bar)
    assert lines[1].startswith("MNIST, Blend, 2 seeds: seed 0 backdoor suspected, class 5 (pixel, score 7.2, p 0.001)")
    assert repairs.figure(results).axes[0].get_yticklabels()[0].get_text() == "MNIST, Blend"


def test_without_records_one_line_says_so(tmp_path):
    results = filled(tmp_path, Repairs(profile="small", attack="blend", dataset="mnist"), lambda _: None)
    assert repairs.passes(results) == ["No record of Scan-repair at profile small is there yet."]
    assert repairs.absent(results) == "No repair is recorded yet."
    assert repairs.recorded(results) == []
    assert detection.curves(results) == {}
    assert "0 clean networks and 0 backdoored ones" in detection.reading(results)[0]
    assert not any(axis.collections for axis in repairs.figure(results).axes)


def test_each_row_that_misses_the_bar_is_named_first(tmp_path):
    """After Scan-repair: Blend as clean, SIG 4 points above, Trojan 3 points of ACC lost, BadNets not found in seed 1.
    WaNet did not take, and all-to-all is found by any suspicion."""
    asr = {"sig": 0.05}
    acc = {"trojan": 0.96}

    def fill(cell: Cell) -> Record | None:
        if cell.attack == "none" and cell.defense == "none":
            return record(cell, 0.99, 0.002, own={attack: {"asr": 0.01, "ra": 0.9} for attack in ATTACKS})
        if cell.attack == "none" and cell.defense == "scan_repair":
            return record(cell, 0.99, 0.002, ra=0.98, **scanned("nothing stands out", p=0.6, other=0.2))
        if cell.defense == "none":
            return record(cell, 0.99, 0.5 if cell.attack == "wanet" else 0.99)
        if cell.defense != "scan_repair":
            return None
        notes = scanned(target=2 if (cell.attack, cell.seed) in (("badnets", 1), ("badnets_all", 0)) else 5)
        return record(cell, acc.get(cell.attack, 0.985), asr.get(cell.attack, 0.01), ra=0.9, **notes)

    results = filled(tmp_path, Repairs(profile="small", attack="all", dataset="mnist", seeds="0-2"), fill)
    *misses, missed, alarms, bar = repairs.passes(results)
    assert misses == [
        "**MNIST, Trojan** passes: ACC 3.0 points lower, seed by seed.",
        "**MNIST, SIG** passes: ASR 4.0 points above a clean network's.",
    ]
    assert missed == "The scan did not find the backdoor in MNIST, BadNets (four corners) (1 of 3)."
    assert alarms == "The scan suspected 0 of 3 clean networks of this grid (0 to 71 % with 95 % confidence)."
    took = len(ATTACKS) - 1
    assert bar.startswith(f"**As a clean network is: {took - 2} of {took} rows** ({100 * (took - 2) / took:.0f} %; the")
    assert f"in {3 * took - 1} of {3 * took} networks" in bar
    scans = repairs.table(results).xs("scan", level="%")["Scan-repair"]
    assert scans["MNIST, BadNets (four corners)"] == "named 2 of 3"
    assert scans["MNIST, clean network"] == "suspected 0 of 3"
    assert scans["MNIST, BadNets, all-to-all"] == "suspected 3 of 3"
    assert scans["MNIST, WaNet (did not take)"] == "named 3 of 3"
    clean, backdoored = detection.networks(results)
    assert (len(clean), len(backdoored)) == (3, 3 * took)
    curves = detection.curves(results)
    assert curves["the scan"].area == 1
    assert curves["largest margins"].area == 0, "it has the smaller p-values on the clean ones"


def test_what_comes_of_a_repair_whatever_the_scan_says_is_told(tmp_path):
    """The scan misses SIG. Repaired anyway it is as clean, Blend is not; a clean network loses half a point."""

    def fill(cell: Cell) -> Record | None:
        if cell.attack == "none":
            acc = {"none": 0.99, "scan_repair_anyway": 0.985}.get(cell.defense)
            own = {attack: {"asr": 0.01, "ra": 0.9} for attack in ATTACKS}
            return record(cell, acc, 0.002, own=own) if acc else None
        if cell.defense == "none":
            return record(cell, 0.99, 1.0)
        asr = {"sig": 0.01, "blend": 0.3}.get(cell.attack)
        rate = {"scan_repair": 1.0, "scan_repair_anyway": asr}.get(cell.defense)
        return record(cell, 0.985, rate, ra=0.0, **scanned("nothing stands out", p=0.4)) if rate else None

    results = filled(tmp_path, Repairs(profile="small", attack="all", dataset="mnist", seeds="0-1"), fill)
    line = repairs.passes(results)[-1]
    assert line.startswith("Repaired anyway, whatever the scan says: 1 of 2 rows are as a clean network is.")
    assert line.endswith("changes by -0.5 points at worst (mean of a dataset's seeds).")


def test_a_roc_curve_is_counted_from_p_values():
    found = detection.curve(clean=[0.2, 0.5, 0.9, 0.04], backdoored=[0.01, 0.04, 0.3])
    assert found.alarms == (0, 0, 0.25, 0.5, 0.5, 0.75, 1)
    assert found.found == pytest.approx((0, 1 / 3, 2 / 3, 2 / 3, 1, 1, 1))
    area = sum(
        (a - b) * (up + before) / 2
        for a, b, up, before in zip(found.alarms[1:], found.alarms[:-1], found.found[1:], found.found[:-1], strict=True)
    )
    assert found.area == pytest.approx(area), "the trapezoids below the curve"
    assert found.low < found.area < found.high < 1
    whole = detection.curve([0.5] * 10, [0.01] * 40)
    assert whole.area == whole.high == 1
    assert whole.low == pytest.approx(1 / (1 + 1.96**2 / 10)), "as of 10 of 10, by Wilson"


def test_where_the_settings_come_from_is_told():
    choice = json.loads((ROOT / "data" / "scan" / "choice.json").read_text())
    assert scan_settings.chosen(choice) in scan_settings.chosen_on()
    runs = [{"dataset": name, "attack": "blend", "seed": 7} for name in ("mnist", "cifar10")]
    tried = {"a": {}, "b": {}}
    sentence = scan_settings.chosen({"runs": runs, "means": tried, "chosen": "b"})
    assert sentence.startswith(
        "The unlearning's settings (b) were chosen among 2 on MNIST, Blend seed 7, CIFAR-10, Blend seed"
    )
    assert "not chosen yet" in scan_settings.chosen({"runs": runs, "means": {"a": {}}, "chosen": "a"})
