"""Where each defense fails: outcomes by rule, from made-up records."""

import pytest

from purifier_core.config import ADAPTIVE, ATTACKS, COMPARED
from purifier_core.experiments.beyond import Defenses
from purifier_core.experiments.grids import Column
from purifier_core.pages import defenses, report
from purifier_core.records import Record
from purifier_core.runner import Results

GRID = Defenses(profile="small", seeds="0-1", dataset="mnist", attack="all")
ROW, OTHER = ("badnets", "mnist"), ("cl", "mnist")
NONE, TUNED, BOUNDED = Column("none"), Column("finetuning"), Column("bound_feature")


PLACE = {"commit": "0" * 40, "device": "cpu"}


def record(row, column, acc: float, asr: float, seed: int = 0) -> Record:
    cell = GRID.cell(column, row, seed, "small")
    effort = {"images": 1000, "seconds": 5.0}
    return Record(cell, cell.key(), {"fingerprint": "0" * 16, "copy": "c"}, acc, asr, effort=effort, provenance=PLACE)


def results(*records: Record) -> Results:
    mine = Results(GRID, "small", "as asked")
    known = {r.cell: r for r in records}
    mine.sort_out({cell: known.get(cell) for cell in GRID.cells("small")})
    return mine


def test_the_grid_is_every_defense_against_every_attack():
    rows, columns = Defenses(attack="all", dataset="all").rows("small"), GRID.columns()
    assert set(rows) == {(a, d) for a in (*ATTACKS, *ADAPTIVE) for d in ("mnist", "cifar10", "gtsrb")}
    assert [c.defense for c in columns[: len(COMPARED)]] == list(COMPARED)
    assert [c.label for c in columns[len(COMPARED) :]] == ["Bound-Channel", "Bound-Cube", "Bound-Feature"]
    assert Defenses(profile="quick", dataset="all", attack="all").rows("quick") == GRID.rows("small")
    assert {GRID.cell(c, ROW, 0, "small").switch("init") for c in columns} == {"full"}
    clean = {Defenses().cell(TUNED, ("sig", d), 0, "small").clean_size for d in ("mnist", "cifar10", "gtsrb")}
    assert clean == {3000, 2500, 1960}


@pytest.mark.parametrize(
    ("acc", "asr", "word", "costly"),
    [
        (0.97, 0.10, "removes", False),
        (0.92, 0.101, "weakens", True),
        (0.93, 0.50, "weakens", False),
        (0.90, 0.501, "leaves", True),
    ],
)
def test_outcomes_by_the_rules(acc, asr, word, costly):
    mine = results(record(ROW, NONE, 0.98, 1.0), record(ROW, TUNED, acc, asr))
    found = defenses.pairs(mine)
    assert defenses.outcome(found[ROW, NONE], found[ROW, TUNED]) == (word, costly)


def test_a_backdoor_that_never_took_decides_nothing():
    mine = results(
        record(ROW, NONE, 0.98, 1.0),
        record(ROW, TUNED, 0.97, 0.9),
        record(OTHER, NONE, 0.98, 0.49),
        record(OTHER, TUNED, 0.97, 0.0),
    )
    assert defenses.taken(mine) == [ROW]
    (line,) = defenses.reading(mine)
    assert "**Finetuning** removes the backdoor in 0 of 1 rows" in line
    assert "Leaves it on MNIST: BadNets 90." in line


def test_the_reading_counts_and_names():
    other = ("blend", "mnist")
    mine = results(
        record(ROW, NONE, 0.98, 1.0),
        record(other, NONE, 0.98, 1.0),
        record(ROW, BOUNDED, 0.80, 0.02),
        record(other, BOUNDED, 0.97, 0.3),
    )
    (line,) = defenses.reading(mine)
    assert line == (
        "**Bound-Feature** removes the backdoor in 1 of 2 rows, in one of these at the cost of accuracy. "
        "Weakens it on MNIST: Blend 30."
    )
    assert defenses.glued(mine)["defenses_bound_feature_removes"] == 0
    assert defenses.glued(mine)["defenses_rows"] == 2


def test_means_over_seeds_and_what_is_missing():
    mine = results(record(ROW, NONE, 0.98, 1.0), record(ROW, TUNED, 0.9, 0.2), record(ROW, TUNED, 0.8, 0.4, seed=1))
    table = defenses.table(mine)
    assert len(table) == len(GRID.rows("small")) * len(GRID.columns())
    line = table[(table.attack == "BadNets (four corners)") & (table.defense == "Finetuning")].iloc[0]
    assert line.ACC == "85.0 (80.0 to 90.0)"
    assert line["ACC change"] == "-13.0"
    assert (line.seeds, line.images, line.seconds) == ("2", "1,000", "5")
    assert (table[table.defense == "NAD"].ACC == "missing").all()
    assert 'class="results prose sortable"' in defenses.sortable(mine)
    assert len(defenses.figure(mine).axes[0].get_yticklabels()) == 1, "rows without records are left out"
    told = report.provenance(mine)
    assert "seeds 0, 1, not all in every row" in told
    assert told.endswith(f"Missing: {len(table) - 2}.")
    assert defenses.reading(results()) == ["No record at profile small is there yet."]


def test_attackers_who_know_stand_beside_badnets():
    knows = ("adaptive_bound", "mnist")
    mine = results(
        record(ROW, NONE, 0.98, 1.0),
        record(ROW, BOUNDED, 0.98, 0.02),
        record(knows, NONE, 0.96, 1.0),
        record(knows, BOUNDED, 0.95, 0.6),
    )
    assert defenses.attackers(mine) == [
        "**MNIST, BadNets, knows bounds**: ACC without a defense 96.0 % (98.0); "
        "ASR in percent after Bound-Feature 60 (2)."
    ]
    assert defenses.attackers(results()) == []
    assert GRID.cell(Column("abl"), knows, 0, "small") == GRID.cell(Column("abl"), ROW, 0, "small")
