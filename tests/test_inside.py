"""What the pages say of Purifier's units and of ABL's isolation, by hand."""

from made import record

from purifier_core.lab.cells import Cell
from purifier_core.lab.experiments.supplement import Table4
from purifier_core.lab.records import Record
from purifier_core.lab.results import Results
from purifier_core.pages import inside, report


def shown(*records: Record) -> Results:
    return Results(Table4(profile="small", seeds="0,1"), "small", "as asked", list(records))


def test_isolation_is_told_seed_by_seed_beside_chance():
    abl = [Cell("mnist", "vgg16", "badnets", 0.05, "abl", 0, seed, "small") for seed in (0, 1)]
    mine = [
        record(c, diagnostics={"isolated": 630, "isolation_precision": p}) for c, p in zip(abl, (0.0, 0.7), strict=True)
    ]
    assert inside.isolation(shown(*mine)) == [
        "ABL unlearns the images that it isolated, poisoned or not. The share that carries the trigger, one value for "
        "each seed (chance would give 4.8 %): poison ratio 5 % 0.0, 70.0 % of 630."
    ]
    assert inside.notes(shown()) == []


def test_where_anp_has_no_threshold_is_told():
    anp = [Cell("mnist", "vgg16", "badnets", 0.05, "anp", 3000, seed, "small") for seed in (0, 1)]
    mine = [record(cell, 0.9, 0.1, diagnostics={"tau": tau}) for cell, tau in zip(anp, (None, 0.3), strict=True)]
    assert inside.notes(shown(*mine)) == [
        "ANP has no admissible threshold, and so no result: poison ratio 5 % (1 of 2 seeds)."
    ]
    table = report.table(shown(*mine))
    assert table.loc[("5 %", "ASR", "lowest to highest"), "ANP"] == "one run"  # of the one that has a threshold
    assert report.table(shown(mine[0])).loc[("5 %", "ASR", "ours"), "ANP"] == "no threshold"


def test_units_are_means_over_seeds_in_percent():
    cells = [Cell("mnist", "vgg16", "badnets", 0.05, "channel", 3000, seed, "small") for seed in (0, 1)]
    hit = {"heads": [0.2, 0.4], "first_head_agreement": 0.5, "oracle": 0.0}
    missed = {"first_head_agreement": 1.0, "oracle": 0.75}
    mine = [
        record(cell, acc, 0.1, diagnostics={"clean": missed | {"heads": [acc, 0.1]}, "triggered": hit})
        for cell, acc in zip(cells, (0.8, 0.9), strict=True)
    ]
    table = inside.units(shown(*mine))
    assert list(table.index) == [("5 %", "Channel (full)")]
    assert table.iloc[0].to_dict() == {
        "ACC": "85.0",
        "heads' ACC": "85.0 / 10.0",
        "agrees with first head, clean": "100.0",
        "oracle-mask ACC": "75.0",
        "ASR": "10.0",
        "heads' ASR": "20.0 / 40.0",
        "agrees, triggered": "50.0",
    }
