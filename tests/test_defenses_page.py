"""Where each defense fails: outcomes by rule, from made-up records."""

from dataclasses import replace

import pytest
from made import record

from purifier_core.lab.cells import Cell
from purifier_core.lab.experiments.comparison import Attacks, Defenses
from purifier_core.lab.experiments.grids import Column
from purifier_core.lab.experiments.supplement import Table3
from purifier_core.lab.methods import ATTACKS, COLUMNS, OURS, PAPER, attacks
from purifier_core.lab.records import Record, Store
from purifier_core.lab.results import Results, look_up
from purifier_core.pages import defenses, report

GRID = Defenses(profile="small", seeds="0-2", dataset="mnist", attack="all")
ROW, OTHER = ("badnets", "mnist"), ("cl", "mnist")
NONE, TUNED, BOUNDED = Column("none"), Column("finetuning"), Column("bound_feature")


def at(row, column, acc: float, asr: float, seed: int = 0) -> Record:
    return record(GRID.cell(column, row, seed, "small"), acc, asr)


def results(*records: Record) -> Results:
    return Results(GRID, "small", "as asked", list(records))


def test_the_grid_is_every_defense_against_every_attack():
    rows, columns = Defenses(attack="all", dataset="all").rows("small"), GRID.columns()
    assert set(rows) == {(a, d) for a in attacks(PAPER, OURS) for d in ("mnist", "cifar10", "gtsrb")}
    assert [c.defense for c in columns[: len(COLUMNS)]] == list(COLUMNS)
    assert [c.label for c in columns[len(COLUMNS) :]] == ["Bound-Channel", "Bound-Cube", "Bound-Feature"]
    assert Defenses(profile="quick", dataset="all", attack="all").rows("quick") == GRID.rows("small")
    assert {GRID.cell(c, ROW, 0, "small").switch("init") for c in columns} == {"full"}
    clean = {Defenses().cell(TUNED, ("sig", d), 0, "small").clean_size for d in ("mnist", "cifar10", "gtsrb")}
    assert clean == {3000, 2500, 1960}


SEEDS = (0, 1, 2)


def places(row, column, acc, *asr) -> list[Record]:
    """Records of one place at three seeds; `acc` and `asr` are one value for all or one for each."""
    accs = acc if isinstance(acc, tuple) else (acc,) * 3
    return [at(row, column, accs[s], asr[s % len(asr)], s) for s in SEEDS]


@pytest.mark.parametrize(
    ("acc", "asr", "word", "costly"),
    [
        (0.97, 0.10, "stops", False),
        (0.92, 0.101, "weakens", True),
        (0.93, 0.50, "weakens", False),
        (0.90, 0.501, "leaves", True),
    ],
)
def test_outcomes_by_the_rules(acc, asr, word, costly):
    assert defenses.outcome(places(ROW, NONE, 0.98, 1.0), places(ROW, TUNED, acc, asr)) == (word, costly)


def test_fewer_than_three_seeds_or_seeds_that_disagree_decide_nothing():
    before = places(ROW, NONE, 0.98, 1.0)
    assert defenses.outcome(before, places(ROW, TUNED, 0.9, 0.0)[:1]) == ("not decided: one run",) * 2
    assert defenses.outcome(before, places(ROW, TUNED, 0.9, 0.0)[:2]) == ("not decided: 2 seeds",) * 2
    word, costly = defenses.outcome(before, places(ROW, TUNED, 0.9, 0.0, 0.05, 0.99))
    assert (word, costly) == ("not decided: the seeds disagree", True)


def test_the_cost_is_paired_by_seed():
    """Seeds that differ in accuracy from the start: the means differ by 4 points, each pair by 6."""
    before = places(ROW, NONE, (0.90, 0.98, 0.99), 1.0)
    after = places(ROW, TUNED, (0.84, 0.92, 0.93), 0.0)
    assert defenses.outcome(before, after) == ("stops", True)
    assert defenses.outcome(before[1:], after) == ("not decided: 2 seeds",) * 2, "a seed without a partner"
    line = defenses.table(results(*before[1:], *after)).iloc[1]
    assert line["ACC change"] == "-6.0 (-6.0 to -6.0)"


def test_a_backdoor_that_did_not_take_is_one_line_and_no_row():
    mine = results(
        *places(ROW, NONE, 0.98, 1.0),
        *places(ROW, TUNED, 0.97, 0.9),
        *places(OTHER, NONE, 0.98, 0.5, 0.89, 0.89),  # every seed below 90 %
        *places(OTHER, TUNED, 0.97, 0.0),
    )
    assert defenses.taken(mine) == [ROW]
    told, line = defenses.reading(mine)
    assert told.startswith("Did not take")
    assert told.endswith("MNIST, CL: 76.0 (50.0 to 89.0).")
    assert line == "**Finetuning** stops the backdoor in 0 of 1 decided rows. Leaves it: MNIST BadNets 90."
    assert "CL" not in set(defenses.table(mine).attack)
    labels = [tick.get_text() for tick in defenses.figure(mine).axes[0].get_yticklabels()]
    assert labels == ["BadNets"]


def test_a_defense_is_judged_in_the_seeds_whose_backdoor_took_and_the_others_are_named():
    four_seeds = results(
        *places(ROW, NONE, 0.98, 1.0, 0.9, 0.95),
        *places(ROW, TUNED, 0.97, 0.05, 0.0, 0.04),
        at(ROW, NONE, 0.98, 0.899, seed=3),
        at(ROW, TUNED, 0.97, 0.8, seed=3),
    )
    assert defenses.reading(four_seeds) == ["**Finetuning** stops the backdoor in 1 of 1 decided rows."]
    table = defenses.table(four_seeds).set_index("defense")
    assert list(table.loc["Finetuning", ["ASR", "seeds"]].iloc[0]) == ["3.0 (0.0 to 5.0)", "3"]
    left_out = "Left out, since the backdoor did not take: MNIST BadNets (four corners), seed 3 (ASR 89.9 %)."
    assert four_seeds.headline.endswith(left_out)
    assert "seeds 0, 1, 2;" in report.provenance(four_seeds)


def test_no_seed_is_left_out_of_the_attacks_and_the_tables():
    cells = [Cell(profile="small", seed=seed) for seed in range(4)]
    records = [record(cell, 0.99, 0.1 if cell.seed == 3 else 1.0) for cell in cells]
    for experiment in (Attacks(dataset="mnist"), Table3()):
        four_seeds = Results(experiment, "small", "as asked", records)
        assert {len(group) for group in four_seeds.by_place.values()} == {4}
        assert "Left out" not in four_seeds.headline


def test_the_reading_counts_and_names():
    other = ("blend", "mnist")
    mine = results(
        *places(ROW, NONE, 0.98, 1.0),
        *places(other, NONE, 0.98, 1.0),
        *places(("sig", "mnist"), NONE, 0.98, 1.0),
        *places(ROW, BOUNDED, 0.80, 0.02),
        *places(other, BOUNDED, 0.97, 0.3),
        at(("sig", "mnist"), BOUNDED, 0.97, 0.0),
    )
    (line,) = defenses.reading(mine)
    assert line == (
        "**Bound-Feature** stops the backdoor in 1 of 2 decided rows, 1 of them at the cost of accuracy. "
        "Weakens it: MNIST Blend 30. Not decided, one run: 1 rows."
    )
    glued = defenses.glued(mine)
    assert glued["defenses_bound_feature_removes"] == 0
    assert glued["defenses_bound_feature_decided"] == 2
    assert glued["defenses_rows"] == 3


def test_anp_without_a_threshold_is_no_number():
    column = Column("anp")
    refused = [replace(r, diagnostics={"tau": None}) for r in places(ROW, column, 0.98, 1.0)]
    mine = results(*places(ROW, NONE, 0.98, 1.0), *refused)
    note, line = defenses.reading(mine)
    assert note == "ANP has no admissible threshold, and so no result: MNIST BadNets (3 of 3 seeds)."
    assert line == "**ANP** stops the backdoor in 0 of 1 decided rows. Has no admissible threshold: MNIST BadNets."
    table = defenses.table(mine)
    assert set(table[table.defense == "ANP"].iloc[0][["ACC", "ASR", "ACC change"]]) == {"no threshold"}
    shown = [text.get_text() for text in defenses.figure(mine).axes[0].texts]
    assert "none" in shown


def test_beside_abl_stands_what_it_isolated():
    found = {"isolation_precision": 0.05, "isolated": 660}
    abl = [replace(r, diagnostics=found) for r in places(ROW, Column("abl"), 0.98, 1.0)]
    note, _ = defenses.reading(results(*places(ROW, NONE, 0.98, 1.0), *abl))
    assert note.endswith("seed (chance would give 9.1 %): MNIST BadNets 5.0, 5.0, 5.0 % of 660.")


def test_every_record_stands_in_one_place():
    grid = Defenses(profile="small", attack="all", dataset="all")
    cells = [grid.cell(column, row, 0, "small") for row, column in grid.places("small")]
    assert len(cells) == len(set(cells))
    assert not any(cell.defense == "abl" and ATTACKS[cell.attack].group == OURS for cell in cells)


def test_mean_and_range_over_seeds_and_what_is_missing():
    mine = results(at(ROW, NONE, 0.98, 1.0), at(ROW, TUNED, 0.9, 0.2), at(ROW, TUNED, 0.8, 0.4, seed=1))
    table = defenses.table(mine)
    line = table[(table.attack == "BadNets (four corners)") & (table.defense == "Finetuning")].iloc[0]
    assert line.ACC == "85.0 (80.0 to 90.0)"
    assert line["ACC change"] == "-8.0 (one run)"  # the seed that has both
    assert (line.seeds, line.images, line.seconds) == ("2", "1,000", "5")
    assert (table[table.defense == "NAD"].ACC == "missing").all()
    knows = table[table.attack == "BadNets, knows bounds"].set_index("defense")
    assert set(knows.loc["ABL"]) == {"MNIST", "BadNets, knows bounds", "–"}
    assert 'class="results prose sortable"' in defenses.sortable(mine)
    assert "seeds 0, 1, not all everywhere" in report.provenance(mine)
    assert defenses.reading(results()) == ["No record at profile small is there yet."]
    defenses.figure(results())


def test_attackers_who_know_are_paired_with_badnets_by_seed():
    knows = ("adaptive_bound", "mnist")
    mine = results(
        *places(ROW, NONE, 0.98, 1.0),
        *places(ROW, BOUNDED, 0.98, 0.02, 0.03, 0.04),
        at(knows, NONE, 0.96, 1.0, seed=1),
        at(knows, BOUNDED, 0.95, 0.6, seed=1),
    )
    assert defenses.attackers(mine) == [
        "**MNIST, BadNets, knows bounds**: ACC without a defense 96.0 (-2.0, one run); "
        "ASR after Bound-Feature 60.0 (+57.0, one run)."
    ]
    assert defenses.attackers(results()) == []


def test_one_run_of_a_large_network_hides_no_seeds_of_a_small_one(tmp_path):
    store = Store(tmp_path)
    for seed in SEEDS:
        store.save(at(ROW, NONE, 0.99, 1.0, seed))
    wide = GRID.cell(NONE, ROW, 0, "wide")
    store.save(replace(at(ROW, NONE, 0.99, 1.0), cell=wide, key=wide.key()))
    other = GRID.cell(TUNED, ROW, 0, "wide")
    store.save(replace(at(ROW, TUNED, 0.99, 1.0), cell=other, key=other.key()))
    by_place = look_up(Defenses(dataset="mnist", attack="badnets"), store, reading=True).by_place
    assert [r.cell.profile for r in by_place[ROW, NONE]] == ["small"] * 3
    assert [r.cell.profile for r in by_place[ROW, TUNED]] == ["wide"]  # what no other size has is shown
