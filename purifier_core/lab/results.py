"""What is recorded of an experiment: found, never computed. Without torch."""

import os
from collections import Counter
from dataclasses import dataclass, field, replace

from purifier_core.lab.cells import Cell
from purifier_core.lab.experiments.grids import Experiment
from purifier_core.lab.profiles import PROFILES
from purifier_core.lab.records import Record, Store, current


@dataclass
class Results:
    """What a run found or computed for an experiment, which profile it took and why, and what is missing or failed.

    In the book a number that `profile` lacks is taken from the smaller profile `filler`, where that is set.
    """

    experiment: Experiment
    profile: str
    reason: str
    records: list[Record] = field(default_factory=list)
    missing: list[Cell] = field(default_factory=list)
    failed: list[Record] = field(default_factory=list)
    filler: str = ""

    @property
    def shown(self) -> str:
        """The profiles of the records, in words."""
        used = {record.cell.profile for record in self.records}
        return f"{self.profile}, else {self.filler}" if {self.profile, self.filler} <= used else self.profile

    def sort_out(self, found: dict[Cell, Record | None]) -> None:
        """Take the records that were found, and note the cells that have none."""
        self.records = [record for record in found.values() if record]
        self.missing = [cell for cell, record in found.items() if record is None]

    def stop_if_failed(self) -> None:
        """Raise RuntimeError if a cell failed: called after all else is shown, so that the exit status says it."""
        if self.failed:
            lines = "\n".join(describe(record) for record in self.failed)
            raise RuntimeError(f"these cells failed, and are recorded with their tracebacks:\n{lines}")

    @property
    def headline(self) -> str:
        """The first line of every output: which profile, why, and that it is not the paper's where it is not."""
        caution = "" if self.profile == "paper" else "Not the paper's setting. "
        note = self.experiment.note(self.profile)
        line = f"{caution}Profile {self.profile}, {self.reason}: {PROFILES[self.profile].about}.{note}"
        return f"{line} What it lacks is taken from {self.filler}." if self.filler else line


def records_only() -> bool:
    """Whether nothing may be computed: the book's pages read committed records and show gaps as gaps."""
    return os.environ.get("PURIFIER_RECORDS_ONLY", "") not in ("", "0")


def resolve_profile(experiment: Experiment, store: Store, reading: bool) -> tuple[str, str, str]:
    """The profile to use, why, and in the book the profile that fills its gaps.

    "auto" is paper on a GPU, else quick; the book, which computes nothing, takes paper's records, else small's.
    """
    if experiment.profile != "auto":
        return experiment.profile, "as asked", ""
    if reading:
        # quick's records are no one's but this machine's; the book is made of committed ones
        there = [name for name in ("paper", "small") if any(map(store.find, experiment.whole().cells(name)))]
        if len(there) == 2:
            return "paper", "the reference", "small"
        return (there[0], "the largest with records", "") if there else ("small", "no records yet", "")
    from purifier_core.device import pick_device

    if pick_device(experiment.device).type == "cuda":
        return "paper", "a GPU was found", ""
    return "quick", "no GPU is used", ""


def widened(experiment: Experiment, profile: str, done: set[Cell]) -> Experiment:
    """The whole table: every row, and every seed of which it has a cell (the given seeds where it has none)."""
    whole = replace(experiment.whole(), seeds=sorted({c.seed for c in done if c.profile == profile}) or 0)
    seeds = sorted({cell.seed for cell in whole.cells(profile) if cell in done})
    return replace(whole, seeds=seeds or experiment.seeds)


def begun(experiment: Experiment, profile: str, done: set[Cell]) -> list[Cell]:
    """What a reader is shown: of each place the seeds that it has, and its first seed where it has none."""
    every: dict[Cell, None] = {}
    for row, column in experiment.places(profile):
        cells = [experiment.cell(column, row, seed, profile) for seed in experiment.seeds]
        every |= dict.fromkeys([cell for cell in cells if cell in done] or cells[:1])
    return list(every)


def look_up(experiment: Experiment, store: Store | None = None, reading: bool = False) -> Results:
    """The experiment's records as they are; nothing is computed.

    The book, and whoever is only `reading`, gets it widened to all that is recorded.
    """
    store = store or Store()
    reading = reading or records_only()
    profile, reason, filler = resolve_profile(experiment, store, reading)
    cells = experiment.cells(profile)
    if reading:
        done = set(current(store.all())[0])
        experiment = widened(experiment, profile, done)
        cells = begun(experiment, profile, done)
    results = Results(experiment, profile, reason, filler=filler)
    found = _found(cells, store)
    if filler:
        others = begun(widened(experiment, filler, done), filler, done)
        found = _filled(found, _found(others, store), profile)
        seeds = sorted({record.cell.seed for record in found.values() if record})
        results.experiment = replace(experiment, seeds=seeds or experiment.seeds)
    results.sort_out(found)
    return results


def _found(cells: list[Cell], store: Store) -> dict[Cell, Record | None]:
    """The records of some cells, of one copy of each dataset: the one with the most records."""
    found = {cell: store.find(cell) for cell in cells}
    for dataset in {cell.dataset for cell in found}:
        mine = {cell: record for cell, record in found.items() if cell.dataset == dataset}
        copies = Counter(record.data["fingerprint"] for record in mine.values() if record)
        if len(copies) > 1:
            found |= {cell: store.find(cell, copies.most_common(1)[0][0]) for cell in mine}
    return found


def _filled(
    found: dict[Cell, Record | None], other: dict[Cell, Record | None], profile: str
) -> dict[Cell, Record | None]:
    """`found`, and from `other` the numbers of which no seed has a record in it."""

    def number(cell: Cell) -> Cell:
        return replace(cell, profile=profile, seed=0)

    have = {number(cell) for cell, record in found.items() if record}
    kept = {cell: record for cell, record in found.items() if number(cell) in have}
    return kept | {cell: record for cell, record in other.items() if number(cell) not in have}


def describe(record: Record) -> str:
    """A record in one line."""
    if record.acc is None or record.asr is None:
        *_, reason = (record.error or "").strip().split("\n")
        return f"{record.cell} · FAILED: {reason}"
    seconds = record.effort["seconds"]
    return f"{record.cell} · ACC {100 * record.acc:.2f} % · ASR {100 * record.asr:.2f} % · {seconds:.1f} s"
