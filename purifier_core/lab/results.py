"""The records of an experiment, looked up and never computed. Without torch."""

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

from purifier_core.lab.cells import Cell
from purifier_core.lab.experiments.grids import Column, Experiment
from purifier_core.lab.methods import ATTACKS, METHODS, title
from purifier_core.lab.profiles import PROFILES
from purifier_core.lab.records import Record, Store

DECIDES = 3
"""The fewest seeds that decide anything. See `pages.statistics.decided`."""

TAKEN = 0.9
"""The ASR of an undefended network, as a fraction, from which on its backdoor counts as implanted."""

Place = tuple[Any, Column]
"""A row and a column of an experiment: where one number stands."""


Choice = TypeVar("Choice")


def number(cell: Cell) -> Cell:
    """The cell without its seed and size: equal for all runs of the same number."""
    return replace(cell, profile="paper", seed=0)


@dataclass
class Results:
    """The records of an experiment, and its missing and failed cells.

    `profile` is the one that was asked for, or the largest that will do; `reason` says which. All records of one number
    have one profile. All records of one dataset have one copy of it.
    """

    experiment: Experiment
    profile: str
    reason: str
    records: list[Record] = field(default_factory=list)
    missing: list[Cell] = field(default_factory=list)
    failed: list[Record] = field(default_factory=list)

    @cached_property
    def by_place(self) -> dict[Place, list[Record]]:
        """The records behind each number, seed by seed; what is missing is left out."""
        by_number: dict[Cell, list[Record]] = {}
        for record in sorted(self.used, key=lambda record: record.cell.seed):
            by_number.setdefault(number(record.cell), []).append(record)
        numbers = {place: self._number(*place) for place in self.experiment.places(self.profile)}
        return {place: by_number[cell] for place, cell in numbers.items() if cell in by_number}

    def _number(self, row: Any, column: Column) -> Cell:
        return number(self.experiment.cell(column, row, 0, self.profile))

    @property
    def used(self) -> list[Record]:
        """The records behind the numbers: all, or those of the seeds whose backdoor took."""
        return where_taken(self.records) if self.experiment.where_taken else self.records

    @property
    def left_out(self) -> str:
        """The seeds whose records are not used, with the ASR of their undefended networks; empty for none."""
        texts = []
        for record in untaken(self.records) if self.experiment.where_taken else []:
            cell, asr = record.cell, 100 * (record.asr or 0.0)
            texts.append(f"{title(cell.dataset)} {ATTACKS[cell.attack].label}, seed {cell.seed} (ASR {asr:.1f} %)")
        return f"Left out, since the backdoor did not take: {'; '.join(texts)}." if texts else ""

    @property
    def sizes(self) -> list[str]:
        """The profiles of the records, from the largest down."""
        used = {record.cell.profile for record in self.records}
        return [name for name in reversed(PROFILES) if name in used]

    @property
    def shown(self) -> str:
        """The profiles of the records, in words."""
        return ", else ".join(self.sizes) or self.profile

    @property
    def mixed(self) -> str:
        """A caution where records of one seed start from different networks; else nothing."""
        names = ", ".join(str(cell) for cell in retrained(self.records))
        return names and (
            f"Caution: trained more than once, as on two machines: {names}. Its records start from different networks, "
            "so a difference between them is not the defense's alone. Use another seed, or delete these records."
        )

    @property
    def headline(self) -> str:
        """The first line of every output: which profile, why, and a caution unless it is the paper's."""
        caution = "" if self.profile == "paper" else "Not the paper's setting. "
        note = self.experiment.note(self.profile)
        line = f"{caution}Profile {self.profile}, {self.reason}: {PROFILES[self.profile].about}.{note}"
        others = " or ".join(size for size in self.sizes if size != self.profile)
        lacks = f"What it lacks is taken from {others}." if others else ""
        return " ".join(filter(None, (line, lacks, self.mixed, self.left_out)))

    def stop_if_failed(self) -> None:
        """Raise RuntimeError if a cell failed: called after all else is shown, so that the exit status says it."""
        if self.failed:
            lines = "\n".join(describe(record) for record in self.failed)
            raise RuntimeError(f"these cells failed, and are recorded with their tracebacks:\n{lines}")


def records_only() -> bool:
    """Whether computing is forbidden, as in the book: its pages read committed records and show gaps as gaps."""
    return os.environ.get("PURIFIER_RECORDS_ONLY", "") not in ("", "0")


def look_up(experiment: Experiment, store: Store | None = None, reading: bool = False) -> Results:
    """The experiment's records as they are; nothing is computed.

    The book gets the whole table with every recorded seed, and so does a caller with `reading`. Each number then comes
    from the largest profile that has it, or from the one that the experiment asks for.
    """
    store = store or Store()
    if reading or records_only():
        return _read(experiment, store)
    profile, reason = _to_compute(experiment)
    by_cell = _of_one_copy(store, experiment.cells(profile))
    records = [record for record in by_cell.values() if record]
    return Results(experiment, profile, reason, records, [cell for cell, record in by_cell.items() if record is None])


def _to_compute(experiment: Experiment) -> tuple[str, str]:
    """The profile that a run takes, and why: "auto" is paper on a GPU, else quick."""
    if experiment.profile != "auto":
        return experiment.profile, "as asked"
    if experiment.device != "auto" or may_have_gpu():
        from purifier_core.device import pick_device

        if pick_device(experiment.device).type == "cuda":
            return "paper", "a GPU was found"
    return "quick", "no GPU is used"


def may_have_gpu() -> bool:
    """Whether torch, which takes seconds to import, has to be asked. Without a driver's file Linux has no GPU."""
    drivers = ("nvidia", "nvhost", "dxg", "kfd")  # NVIDIA's, its small boards', Windows' in WSL, AMD's
    return sys.platform != "linux" or any(name.startswith(drivers) for name in os.listdir("/dev"))


def _of_one_copy(store: Store, cells: list[Cell]) -> dict[Cell, Record | None]:
    """The records of some cells, of one copy of each dataset: the one with the most records."""
    records = {cell: store.find(cell) for cell in cells}
    main = main_copies(record for record in records.values() if record)
    other = {cell for cell, r in records.items() if r and r.data["fingerprint"] != main[cell.dataset]}
    return records | {cell: store.find(cell, main[cell.dataset]) for cell in other}


def main_copies(records: Iterable[Record]) -> dict[str, str]:
    """For each dataset the fingerprint of the copy that most of these records were computed on."""
    counts = Counter((record.cell.dataset, record.data["fingerprint"]) for record in records)
    return {dataset: copy for (dataset, copy), _ in reversed(counts.most_common())}


def _read(experiment: Experiment, store: Store) -> Results:
    request = experiment.profile
    sizes = experiment.sizes if request == "auto" else (request,)
    grid = experiment.full_grid()
    places = [number(grid.cell(column, row, 0, sizes[-1])) for row, column in grid.places(sizes[-1])]
    by_place = recorded(store, places, sizes)
    records, missing, passed_over = [], [], False
    for place in dict.fromkeys(places):
        choices = [size for size in sizes if (place, size) in by_place]
        largest = choices[:1]
        if experiment.seeds_first:  # a single run of a large network hides no seeds of a small one
            counts = {size: len(by_place[place, size]) for size in choices}
            choices = enough_first(choices, counts.__getitem__)
        if choices:
            passed_over |= choices[:1] != largest
            records += by_place[place, choices[0]]
        else:
            missing.append(place)
    used = [size for size in sizes if any(record.cell.profile == size for record in records)]
    profile = used[0] if used else sizes[-1]
    why = "the largest with enough seeds" if passed_over else "the largest with records"
    reason = "as asked" if request != "auto" else "the reference" if profile == "paper" else why
    seeds = sorted({record.cell.seed for record in records}) or experiment.seeds
    gaps = [replace(place, profile=profile, seed=seeds[0]) for place in missing]
    return Results(replace(grid, seeds=seeds), profile, reason if used else "no records yet", records, gaps)


def retrained(records: Iterable[Record]) -> list[Cell]:
    """The undefended networks that were trained more than once for these records. Another machine rounds otherwise."""
    trainings: dict[Cell, set[str]] = defaultdict(set)
    for record in records:
        if METHODS[record.cell.defense].data != "poisoned":  # such a method trains a network of its own
            trainings[record.cell.backdoored()].add(record.provenance.get("backdoored_model", ""))
    return [cell for cell, networks in trainings.items() if len(networks) > 1]


def untaken(records: Iterable[Record]) -> list[Record]:
    """The undefended networks whose backdoor did not take, if that of another seed took."""
    undefended: dict[Cell, list[Record]] = defaultdict(list)
    for record in records:
        if record.cell.defense == "none" and record.cell.attack in ATTACKS:
            undefended[number(record.cell)].append(record)
    weak = {key: [r for r in group if (r.asr or 0.0) < TAKEN] for key, group in undefended.items()}
    return [record for key, group in weak.items() if len(group) < len(undefended[key]) for record in group]


def where_taken(records: list[Record]) -> list[Record]:
    """The records that a defense is judged by: without the seeds of `untaken`."""
    weak = {record.cell for record in untaken(records)}
    return [record for record in records if record.cell.backdoored() not in weak]


def enough_first(choices: Sequence[Choice], seeds: Callable[[Choice], int]) -> list[Choice]:
    """The choices, first those with enough `seeds` to decide, then the others, each part in its order."""
    return sorted(choices, key=lambda choice: seeds(choice) < DECIDES)


def recorded(store: Store, numbers: list[Cell], sizes: tuple[str, ...]) -> dict[tuple[Cell, str], list[Record]]:
    """The finished records of some numbers, seed by seed, by number and profile; of one copy of each dataset."""
    cells = set(numbers)
    every = [record for record in store.all() if record.cell.profile in sizes and number(record.cell) in cells]
    usable = [record for record in every if not (record.failed or record.stale)]
    main = main_copies(usable)
    groups: dict[tuple[Cell, str], list[Record]] = {}
    for record in sorted(usable, key=lambda record: record.cell.seed):
        if record.data["fingerprint"] == main[record.cell.dataset]:
            groups.setdefault((number(record.cell), record.cell.profile), []).append(record)
    return groups


def describe(record: Record) -> str:
    """A record in one line."""
    if record.acc is None or record.asr is None:
        *_, reason = (record.error or "").strip().split("\n")
        return f"{record.cell} · FAILED: {reason}"
    seconds = record.effort["seconds"]
    return f"{record.cell} · ACC {100 * record.acc:.2f} % · ASR {100 * record.asr:.2f} % · {seconds:.1f} s"
