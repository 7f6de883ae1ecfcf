"""The ladder of widths: the same cells as elsewhere at the profile's own width, and what changes with the width."""

from dataclasses import replace

import pytest
from made import record

from purifier_core.checks import ConfigError
from purifier_core.lab.cells import Cell
from purifier_core.lab.experiments.beyond import Ladder
from purifier_core.lab.experiments.grids import Column
from purifier_core.lab.experiments.supplement import Table3
from purifier_core.lab.profiles import PROFILES
from purifier_core.lab.records import Record, Store
from purifier_core.lab.results import Results, look_up
from purifier_core.pages import ladder

GRID = Ladder(profile="small", width="all", seeds="0-2")
TUNED = Column("finetuning")


def at(column: Column, width: float, seed: int, asr: float) -> Record:
    return record(GRID.cell(column, width, seed, "small"), asr=asr)


def test_its_lowest_step_is_the_profiles_own_network():
    cell = GRID.cell(TUNED, 0.125, 0, "small")
    assert cell == Table3().cell(TUNED, 3000, 0, "small")
    assert cell.width == PROFILES["small"].width


def test_a_width_is_a_switch_of_network_and_backdoored_network():
    cell = GRID.cell(TUNED, 0.5, 0, "small")
    assert cell.width == cell.backdoored().width == cell.settings()["width"] == 0.5
    bounded = Cell(defense="bound_feature", clean_size=3000, profile="small", switches=(("width", "0.5"),))
    assert bounded.width == 0.5
    assert replace(cell, switches=()).key() != cell.key()


def test_a_profile_of_the_papers_width_has_no_ladder():
    assert Ladder(width="all").rows("wide") == (1.0,)
    assert Ladder(width="all").rows("quick") == (0.125, 0.25, 0.5, 1.0)


def test_an_unknown_width_is_refused():
    with pytest.raises(ConfigError, match=r"width=0.3 is not known; allowed: 0.125, 0.25, 0.5, 1.0, all"):
        Ladder(width=0.3)


def test_what_changes_with_the_width_is_named():
    stays = [at(TUNED, 0.125, seed, 1.0) for seed in range(3)]
    goes = [at(TUNED, 0.25, seed, 0.1) for seed in range(3)]
    single = [at(TUNED, 0.5, 0, 1.0)]
    first, *lines = ladder.reading(Results(GRID, "small", "as asked", [*stays, *goes, *single]))
    assert (
        "With the width the answer changes for Finetuning. For 1 of 1 methods the answer is open at some width."
        in first
    )
    assert "No record yet at width 1." in first
    assert first.endswith("that their range covers the median of all runs.")
    assert lines == [
        "Finetuning: at width 1/8 stays (3 seeds, 75 %), 1/4 does not stay (3 seeds, 75 %), 1/2 not decided: one run."
    ]
    alone = ladder.reading(Results(GRID, "small", "", stays))[0]
    assert "No decided answer changes. No record yet at width 1/4, 1/2, 1." in alone


def test_the_table_has_every_width_and_the_figure_every_method(tmp_path):
    results = Results(GRID, "small", "as asked", [at(TUNED, 0.25, seed, 0.5) for seed in range(3)])
    table = ladder.table(results)
    assert table.loc[("1/4", "ASR"), "Finetuning"] == "50.0 (50.0 to 50.0)"
    assert table.loc[("1/2", "ASR"), "Finetuning"] == "missing"
    assert table.loc[("1/4", "n"), "Finetuning"] == "3"
    picture = ladder.figure(results)
    assert [axis.get_title(loc="left") for axis in picture.axes] == [column.label for column in GRID.columns()]
    picture.savefig(tmp_path / "ladder.png")


def test_the_book_reads_it_at_one_profile(tmp_path):
    """A record of the paper's width at another schedule is no step of this ladder."""
    store = Store(tmp_path)
    wide = Ladder(profile="wide", width=1.0).cell(TUNED, 1.0, 0, "wide")
    store.save(replace(at(TUNED, 0.125, 0, 1.0), cell=wide, key=wide.key()))
    store.save(at(TUNED, 0.125, 0, 1.0))
    results = look_up(Ladder(), store, reading=True)
    assert results.profile == results.shown == "small"
    assert list(results.by_place) == [(0.125, TUNED)]
