"""Cells to records: by this process one after the other, or by several at once.

A cell needs its backdoored model, and that model may need a clean one; what several cells share is made once.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from purifier_core.compute import Work
from purifier_core.config import Cell
from purifier_core.profiles import PROFILES, Profile
from purifier_core.records import Record, Store


def compute(
    cells: list[Cell],
    store: Store,
    profile: str,
    device: str,
    report: Callable[[Record, int, int], Any],
    workers: int = 1,
) -> dict[Cell, Record]:
    """The record of every cell, failed ones included: found on the data that is at hand, or computed and stored.

    `report` is called after each computation with the record, how many are done, and how many there are to do.
    """
    store.check_writable()
    works = {dataset: Work(store, profile, dataset, device) for dataset in dict.fromkeys(c.dataset for c in cells)}
    # Records on another copy of the data do not count beside new ones: a table holds one copy.
    found = {cell: store.find(cell, works[cell.dataset].split.fingerprint) for cell in cells}
    done = {cell: record for cell, record in found.items() if record}
    todo = [cell for cell in cells if cell not in done]
    if workers > 1:
        works.clear()
        records = _in_parallel(todo, store.folder.parent, profile, device, workers)
    else:
        records = (_saved(works[cell.dataset], cell) for cell in todo)
    for number, record in enumerate(records, start=1):
        done[record.cell] = record
        report(record, number, len(todo))
    return done


def _saved(work: Work, cell: Cell) -> Record:
    record = work.compute(cell)
    work.store.save(record)
    return record


def _in_parallel(todo: list[Cell], home: Path, profile: str, device: str, workers: int) -> Iterator[Record]:
    """Backdoored models first, those that share a clean model in one task; then their defenses, each a task."""
    groups: dict[Cell, list[Cell]] = {}
    for cell in todo:
        start = cell.backdoored()
        groups.setdefault(start.reference() if start.needs_reference else start, []).append(cell)
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (PROFILES[profile],)) as pool:
        waiting: dict[Future[list[Record]], list[Cell]] = {}
        try:
            for mine in sorted(groups.values(), key=len, reverse=True):
                starts = list(dict.fromkeys(cell.backdoored() for cell in mine))
                undefended = [cell for cell in mine if cell in starts]
                task = pool.submit(_task, home, profile, device, starts, undefended)
                waiting[task] = [cell for cell in mine if cell not in starts]
            while waiting:
                for task in wait(waiting, return_when=FIRST_COMPLETED).done:
                    for cell in waiting.pop(task):
                        waiting[pool.submit(_task, home, profile, device, [], [cell])] = []
                    yield from task.result()
        except BrokenProcessPool as problem:
            raise RuntimeError(
                "a worker was killed, as the system does where memory runs out; run the same again, with fewer "
                "--workers: what is recorded stays."
            ) from problem
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(profile: Profile) -> None:
    os.environ["TQDM_DISABLE"] = "1"  # the bars of several processes would write over each other
    PROFILES[profile.name] = profile  # a caller may have changed it


def _task(home: Path, profile: str, device: str, starts: list[Cell], cells: list[Cell]) -> list[Record]:
    """In a worker: make the models of `starts`, then compute `cells`; all are of one dataset."""
    work = _work(home, profile, (starts or cells)[0].dataset, device)
    for start in starts:
        with suppress(Exception):  # the cells that need this model fail with it, and are recorded so
            work.prepare(start)
    return [_saved(work, cell) for cell in cells]


@lru_cache(maxsize=1)
def _work(home: Path, profile: str, dataset: str, device: str) -> Work:
    return Work(Store(home), profile, dataset, device)
