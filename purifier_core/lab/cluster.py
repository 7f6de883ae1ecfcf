"""The workers of a Dask cluster: reached, checked, and asked for GPUs. Imported only when a scheduler is named."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from distributed import Client, Worker, get_worker
from distributed.scheduler import KilledWorker

from purifier_core.checks import ConfigError
from purifier_core.files import provenance
from purifier_core.lab.records import Store

LOST = (KilledWorker,)
"""What a task raises when it is given up: several workers died while it ran."""


def _sources() -> str:
    digest = hashlib.sha256()
    package = Path(__file__).parent.parent
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


# read once on import, because a worker may live on while its files change
SOURCES, COMMIT = _sources(), str(provenance("")["commit"])[:12]


@dataclass(frozen=True)
class Site:
    """What every worker must share with the client: its code, and its folder, in which it must find `mark`."""

    home: Path
    mark: Path
    sources: str = SOURCES
    commit: str = COMMIT


@contextmanager
def connected(
    address: str, home: Path, run: str, device: str, say: Callable[[str], Any]
) -> Iterator[Callable[..., Future[Any]]]:
    """How to submit a function and its arguments to the cluster's workers: `submit(function, *arguments)`, a Future.

    A task whose worker dies is run again by another, up to the scheduler's `allowed-failures` (3), then raises one of
    LOST. On "cuda", and on "auto" where a worker offers GPUs, a task takes one unit of the resource GPU. When the
    block ends, queued tasks are cancelled and running ones finish. Raises ConfigError if the scheduler cannot be
    reached or goes away, or if a worker cannot serve: one that joins later is checked before its first task.
    """
    try:
        client = Client(address, timeout=10, set_as_default=False)
    except (OSError, ValueError, TypeError) as problem:
        raise ConfigError(
            f"scheduler={address!r} does not answer ({problem}). Give the address that `dask scheduler` prints, such "
            "as tcp://host:8786, and see that this machine reaches it; or leave it out to compute on this machine."
        ) from problem
    with client, NamedTemporaryFile(dir=Store(home).locks, prefix=f"run-{run}-") as mark:
        site = Site(home, Path(mark.name))
        workers = client.scheduler_info(n_workers=-1)["workers"]
        gpus = sum(worker["resources"].get("GPU", 0) for worker in workers.values())
        if device == "cuda" and workers and not gpus:
            raise ConfigError(
                f"device='cuda', but none of the {len(workers)} workers of {address} offers a GPU; start them with "
                "--resources 'GPU=1', or take device auto or cpu."
            )
        _check_all(client, site)
        say(f"Workers at {address}: {len(workers) or 'none yet; waiting for the first'}.")
        resources = {"GPU": 1} if device == "cuda" or (device == "auto" and gpus) else None
        executor = client.get_executor(pure=False, resources=resources)
        try:
            yield partial(executor.submit, _checked, site)
        except CancelledError as problem:
            raise ConfigError(
                f"the scheduler {address} went away; what was finished is stored. Start it and its workers again, and "
                "the same command goes on."
            ) from problem


def _check_all(client: Client, site: Site) -> None:
    try:
        client.run(check, site)
    except (ImportError, AttributeError, TypeError) as problem:
        raise ConfigError(
            f"a worker does not know this code ({type(problem).__name__}: {problem}); start the workers from an "
            f"environment in which this checkout (commit {site.commit}) is installed."
        ) from problem


def _checked(site: Site, function: Callable[..., Any], *arguments: Any) -> Any:
    _check_once(site)
    return function(*arguments)


@lru_cache(maxsize=1)
def _check_once(site: Site) -> None:
    check(site, get_worker())


def check(site: Site, dask_worker: Worker) -> None:
    """In a worker: raise ConfigError if it runs other code, several tasks at once, or does not share the folder."""
    worker = f"the worker {dask_worker.address}"
    if site.sources != SOURCES:
        raise ConfigError(
            f"{worker} runs other code (commit {COMMIT}, sources {SOURCES}) than this command (commit {site.commit}, "
            f"sources {site.sources}); start the workers anew, from the same checkout."
        )
    if dask_worker.state.nthreads != 1:
        raise ConfigError(
            f"{worker} runs {dask_worker.state.nthreads} tasks at once, and a cell needs a process of its own; start "
            "it with --nthreads 1, and with --nworkers for several."
        )
    if not site.mark.exists():
        raise ConfigError(
            f"{worker} does not see the results folder {site.home} of this command; set PURIFIER_HOME here to a "
            "folder that all machines share under one path."
        )
    Store(site.home).check_writable()
