"""The comparison of repairs: its cells, and the table of what each leaves."""

from dataclasses import replace

from made import record

from purifier_core.lab.experiments.comparison import Repairs
from purifier_core.lab.records import Store
from purifier_core.lab.results import look_up
from purifier_core.pages import repairs


def test_every_repair_meets_every_attack_and_a_clean_network():
    grid = Repairs(profile="small", attack="all", dataset="mnist", clean_size=600)
    columns = [column.defense for column in grid.columns()]
    assert columns == ["none", "bound_feature", "scan_repair", "i_bau", "npd", "ft_sam"]
    cells = grid.cells("small")
    assert {cell.attack for cell in cells} >= {"badnets", "blend", "sig", "none"}
    assert {cell.clean_size for cell in cells if cell.defense != "none"} == {600}
    (gtsrb,) = {cell.clean_size for cell in Repairs(dataset="gtsrb").cells("small") if cell.defense == "npd"}
    assert gtsrb == 1960


def test_the_table_tells_what_is_left_and_the_reading_what_was_found(tmp_path):
    grid = Repairs(profile="small", attack="blend", dataset="mnist", seeds="0-1")
    store = Store(tmp_path)
    candidate = {"family": "pixel", "target": 5, "score": 7.25, "p": 0.001}
    for cell in grid.cells("small"):
        if cell.defense == "none":
            store.save(record(cell))
        if cell.defense == "scan_repair":
            notes = {"verdict": "backdoor suspected", "candidates": [replace_p(candidate, 0.5), candidate]}
            store.save(record(cell, 0.98, 0.01 * cell.seed, diagnostics=notes | {"ra": 0.9}))
    results = look_up(grid, store)
    table = repairs.table(results)
    place = "MNIST, Blend"
    assert table.loc[(place, "ASR")].to_dict() == {
        "No Defense": "100.0",
        "Bound-Feature": "missing",
        "Scan-repair": "0.5",
        "I-BAU": "missing",
        "NPD": "missing",
        "FT-SAM": "missing",
    }
    assert table.loc[(place, "RA"), ["No Defense", "Scan-repair"]].tolist() == ["–", "90.0"]
    (line,) = repairs.reading(results)
    assert line.startswith("MNIST, Blend, 2 seeds: seed 0 backdoor suspected, class 5 (pixel, score 7.2, p 0.001)")
    assert repairs.reading(replace(results, records=[])) == ["No record of Scan-repair at profile small is there yet."]


def replace_p(candidate: dict, p: float) -> dict:
    return candidate | {"p": p, "target": 1}
