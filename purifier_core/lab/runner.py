"""From an experiment to its records: what is missing is computed once and stored as it goes.

This process computes one cell after the other, or several processes do at once, or the workers of a Dask cluster. A
cell needs its backdoored model, and that model may need a clean one; what several cells share is made once. Other runs
may be at work on the same folder: a cell that one of them has locked is left to it, and looked for at the end.

Torch comes in only where something is computed, so that records can be read without it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from purifier_core.checks import ConfigError
from purifier_core.files import provenance
from purifier_core.lab.cells import Cell
from purifier_core.lab.experiments.grids import Experiment
from purifier_core.lab.locks import locked
from purifier_core.lab.methods import METHODS
from purifier_core.lab.profiles import PROFILES, Profile
from purifier_core.lab.records import Record, Store
from purifier_core.lab.results import Results, describe, look_up, records_only

if TYPE_CHECKING:
    from purifier_core.lab.compute import Work

Submit = Callable[..., Future[Any]]
"""From a function and its arguments to the future of its value, computed by another process."""


def run(
    experiment: Experiment, store: Store | None = None, say: Callable[[str], Any] = print, workers: int | None = 1
) -> Results:
    """Find the experiment's records and compute the missing ones, with as many processes as `workers`; None is `usual`.

    A failing cell is recorded with its traceback and the others go on; KeyboardInterrupt stops at once, and the
    same call later computes only what is still missing. Raises ConfigError or DataError before any computation
    where the profile, the device, the data or the folder cannot serve.
    """
    return run_all([experiment], store, say, workers)[0]


def run_all(
    experiments: Sequence[Experiment],
    store: Store | None = None,
    say: Callable[[str], Any] = print,
    workers: int | None = 1,
    scheduler: str | None = None,
) -> list[Results]:
    """`run` for several experiments at once, which compute what they share only once.

    `scheduler`, the address of a Dask scheduler, has its workers compute; they must share the store's folder.
    """
    if scheduler is not None:
        _check_scheduler(scheduler, experiments, workers)
    store = store or Store()
    every = [look_up(experiment, store) for experiment in experiments]
    for line in dict.fromkeys(results.headline for results in every):
        say(line)
    unfinished = [results for results in every if results.missing]
    if not unfinished or records_only():
        return every

    def report(record: Record, number: int, total: int) -> None:
        say(f"[{number}/{total}] {describe(record)}")

    def way(results: Results) -> tuple[str, str, str]:
        return results.profile, results.experiment.device, results.experiment.curves

    for profile, device, curves in dict.fromkeys(map(way, unfinished)):
        alike = [results for results in unfinished if way(results) == (profile, device, curves)]
        missing = {cell.dataset for results in alike for cell in results.missing}
        cells = [c for results in alike for c in results.experiment.cells(profile) if c.dataset in missing]
        count = usual(profile, sum(len(results.missing) for results in alike)) if workers is None else workers
        updates = _compute(
            list(dict.fromkeys(cells)), store, profile, device, curves == "on", report, say, count, scheduler
        )
        for results in alike:
            records = {record.cell: record for record in results.records} | updates
            by_cell = {cell: records.get(cell) for cell in results.experiment.cells(profile)}
            results.records = [record for record in by_cell.values() if record and not record.failed]
            results.failed = [record for record in by_cell.values() if record and record.failed]
            results.missing = [cell for cell, record in by_cell.items() if record is None or record.failed]
    for line in dict.fromkeys(note for results in unfinished for note in (results.mixed, results.left_out) if note):
        say(line)
    return every


def usual(profile: str, missing: int) -> int:
    """How many processes compute by default: two if a cell keeps one core busy, and there are two cells and two cores.

    The results are the same with any number.
    """
    return min(2, os.cpu_count() or 1, max(1, missing)) if PROFILES[profile].threads == 1 else 1


def _check_scheduler(address: str, experiments: Sequence[Experiment], workers: int | None) -> None:
    if not re.fullmatch(r"(tcp|tls|ws|wss|ucx)://\S+:\d+", address):
        raise ConfigError(f"scheduler={address!r} is no address; write tcp://host:port, as `dask scheduler` prints it.")
    if workers and workers > 1:
        raise ConfigError(f"workers={workers} are processes of this machine; with a scheduler leave them out.")
    if any(experiment.profile == "auto" for experiment in experiments):
        raise ConfigError(
            f"profile='auto' goes by this machine, but others compute; with a scheduler allowed: {', '.join(PROFILES)}."
        )


@dataclass(frozen=True)
class Job:
    """What a worker must know of a run. `run` tells runs apart for workers that outlive them."""

    home: Path
    profile: Profile
    device: str
    curves: bool = True
    run: str = field(default_factory=lambda: uuid4().hex)


def _compute(
    cells: list[Cell],
    store: Store,
    profile: str,
    device: str,
    curves: bool,
    report: Callable[[Record, int, int], Any],
    say: Callable[[str], Any] = print,
    workers: int = 1,
    scheduler: str | None = None,
) -> dict[Cell, Record]:
    """The record of every cell, failed ones included: found on the data that is at hand, or computed and stored.

    By as many processes of this machine as `workers`, or by those of the Dask cluster whose `scheduler` has this
    address. `report` is called for each new record, with its number and the number of cells to compute.
    """
    from purifier_core.lab.compute import Work

    store.check_writable()
    job = Job(store.home, PROFILES[profile], device, curves)
    datasets = dict.fromkeys(cell.dataset for cell in cells)
    with _elsewhere(job, workers, scheduler, say) as (submit, lost):
        if submit and scheduler:
            copies = {dataset: submit(_copy, job, dataset).result() for dataset in datasets}
        else:
            works = {dataset: Work(store, profile, dataset, device, curves) for dataset in datasets}
            copies = {dataset: work.copy for dataset, work in works.items()}
        # Records on another copy of the data do not count beside new ones: a table holds one copy.
        records = {cell: store.find(cell, copies[cell.dataset]["fingerprint"]) for cell in cells}
        finished = {cell: record for cell, record in records.items() if record}
        todo = [cell for cell in cells if cell not in finished]
        if submit:
            works = {}
            run = partial(_by_others, submit, lost, job)
        else:
            run = partial(_by_this, works)
        for number, record in enumerate(_with_those_left(todo, run, say), start=1):
            if not record.data:  # no worker lived to store it
                record = replace(record, data=copies[record.cell.dataset])
                store.save(record)
            finished[record.cell] = record
            report(record, number, len(todo))
    return finished


def _with_those_left(todo: list[Cell], run: Any, say: Callable[[str], Any]) -> Iterator[Record]:
    """The records that `run` finds or computes; last, those of the cells that other runs were computing."""
    cells = []
    for result in run(todo, False):
        if isinstance(result, Cell):
            cells.append(result)
        else:
            yield result
    if cells:
        say(f"{len(cells)} cells are being computed by another run on the same folder; waiting for it.")
        yield from run(cells, True)


def _by_this(works: dict[str, Work], todo: list[Cell], wait_for_others: bool) -> Iterator[Record | Cell]:
    return (_settled(works[cell.dataset], cell, wait_for_others) for cell in todo)


def _settled(work: Work, cell: Cell, wait_for_others: bool) -> Record | Cell:
    """The cell's record, computed if no run has done so. The cell itself, if another run is computing it and nobody
    waits for that."""
    path = work.store.path(cell, work.split.fingerprint)
    with locked(work.store, f"{path.parent.name}-{path.stem}", wait_for_others) as is_ours:
        if not is_ours:
            return cell
        if record := work.store.find(cell, work.split.fingerprint):
            return record
        record = work.compute(cell)
        work.store.save(record)
        return record


@contextmanager
def _elsewhere(
    job: Job, workers: int, scheduler: str | None, say: Callable[[str], Any]
) -> Iterator[tuple[Submit | None, tuple[type[Exception], ...]]]:
    """What submits work to other processes, None for this process alone, and the errors that mean a lost worker.

    When the block ends, for whatever reason, submitted work that has not begun never begins.
    """
    if scheduler:
        try:
            from purifier_core.lab import cluster
        except ImportError as problem:
            raise ConfigError(
                f"scheduler={scheduler!r} needs Dask ({problem}); install it with: pip install -e '.[cluster]'"
            ) from problem
        with cluster.connected(scheduler, job.home, job.run, job.device, say) as submit:
            yield submit, cluster.LOST
    elif workers > 1:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            try:
                yield pool.submit, ()
            except BrokenProcessPool as problem:
                raise RuntimeError(
                    "a worker was killed, as the system does where memory runs out; run the same again, with fewer "
                    "--workers: what is recorded stays."
                ) from problem
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    else:
        yield None, ()


def _by_others(
    submit: Submit, lost: tuple[type[Exception], ...], job: Job, todo: list[Cell], wait_for_others: bool
) -> Iterator[Record | Cell]:
    """Backdoored models first, those that share a clean model in one task; then their defenses, each a task."""
    groups: dict[Cell, list[Cell]] = {}
    for cell in todo:
        start = cell.backdoored()
        groups.setdefault(start.reference() if start.needs_reference else start, []).append(cell)
    waiting: dict[Future[list[Record | Cell]], tuple[list[Cell], list[Cell]]] = {}  # a task's cells, and those after it
    for group in sorted(groups.values(), key=len, reverse=True):
        starts = list(dict.fromkeys(cell.backdoored() for cell in group if METHODS[cell.defense].data != "poisoned"))
        undefended, defended = [c for c in group if c in starts], [c for c in group if c not in starts]
        if starts:
            waiting[submit(_task, job, starts, undefended, wait_for_others)] = undefended, defended
        else:  # only what trains a network of its own, such as ABL
            waiting |= {submit(_task, job, [], [cell], wait_for_others): ([cell], []) for cell in defended}
    while waiting:
        for task in wait(waiting, return_when=FIRST_COMPLETED).done:
            cells, after = waiting.pop(task)
            try:
                results = task.result()
            except lost as problem:
                error = f"{type(problem).__name__}: {problem}"
                yield from (Record(c, c.key(), {}, error=error, provenance=provenance("lost")) for c in cells + after)
                continue
            for cell in after:
                waiting[submit(_task, job, [], [cell], wait_for_others)] = [cell], []
            yield from results


def _task(job: Job, starts: list[Cell], cells: list[Cell], wait_for_others: bool) -> list[Record | Cell]:
    """In a worker: make the models of `starts`, then settle `cells`; all are of one dataset."""
    work = _work(job, (starts or cells)[0].dataset)
    for start in starts:
        with suppress(Exception):  # the cells that need this model fail too, and their records say why
            work.backdoored(start)
    return [_settled(work, cell, wait_for_others) for cell in cells]


def _copy(job: Job, dataset: str) -> dict[str, str]:
    """In a worker: which copy of the data it computes on."""
    return _work(job, dataset).copy


@lru_cache(maxsize=1)
def _work(job: Job, dataset: str) -> Work:
    from purifier_core.lab.compute import Work

    os.environ["TQDM_DISABLE"] = "1"  # the bars of several processes would write over each other
    PROFILES[job.profile.name] = job.profile  # a caller may have changed it
    return Work(Store(job.home), job.profile.name, dataset, job.device, job.curves)
