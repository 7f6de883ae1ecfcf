"""Past one process: Dask workers that come, die and do not fit, and runs that share a folder without sharing work."""

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from purifier_core import cli
from purifier_core.checks import ConfigError
from purifier_core.files import ROOT
from purifier_core.lab import runner
from purifier_core.lab.cluster import Site, check
from purifier_core.lab.experiments.supplement import Table3
from purifier_core.lab.locks import locked
from purifier_core.lab.profiles import PROFILES
from purifier_core.lab.records import Record, Store
from purifier_core.lab.results import Results
from purifier_core.recipes import Recipe

# finetuning takes about a second, time enough to be killed
TINY = {
    "width": 1 / 16,
    "backdoor": Recipe(1, 0.1, batch_size=256),
    "finetuning": Recipe(10, 0.01),
    "nad": Recipe(1, 0.01),
}
TABLE = {"profile": "quick", "methods": "none,finetuning,nad"}
# the same work in a process of its own, which notes what it computes and trains
SCRIPT = f"""
import os
from dataclasses import replace
from pathlib import Path
from purifier_core.lab import compute, runner
from purifier_core.lab.experiments.supplement import Table3
from purifier_core.lab.profiles import PROFILES
from purifier_core.recipes import Recipe
def noted(method):
    def call(work, cell):
        with open(os.environ["NOTES"], "a") as notes:
            notes.write(f"{{method.__name__}} {{cell}}\\n")
        return method(work, cell)
    return call
compute.Work.compute, compute.Work._train = noted(compute.Work.compute), noted(compute.Work._train)
PROFILES["quick"] = replace(PROFILES["quick"], **{TINY!r})
runner.run(Table3(**{TABLE!r}, seeds="0-1"))
"""


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    """An empty store, and a quick profile that is over in seconds."""
    monkeypatch.setenv("PURIFIER_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(PROFILES, "quick", replace(PROFILES["quick"], **TINY))
    return Store()


@pytest.fixture(scope="module")
def dask() -> Iterator[tuple[LocalCluster, Client]]:
    """Two worker processes on this machine, which a nanny starts again when they die."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
        yield cluster, client


def run_on(address: str, store: Store, say: Callable[[str], object] = lambda _: None, **changes) -> Results:
    return runner.run_all([Table3(**TABLE | changes)], store, say, scheduler=address)[0]


def until(condition: Callable[[], object], seconds: float = 300) -> object:
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


@contextmanager
def killing(client: Client, store: Store, name: str) -> Iterator[None]:
    """Meanwhile the worker that locks a cell of this name is killed."""

    def kill() -> str:
        assert until(lambda: list(store.locks.glob(name)))
        (cell,) = store.locks.glob(name)
        owner = next(pid for pid in client.run(os.getpid).values() if holds(pid, cell))
        os.kill(owner, signal.SIGKILL)
        return cell.name

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill)
        yield
        assert killed.result()


def holds(pid: int, path: Path) -> bool:
    """Whether a process has a file open."""
    return any(os.path.realpath(handle) == str(path) for handle in Path(f"/proc/{pid}/fd").iterdir())


def numbers(records: list[Record]) -> list[tuple]:
    return [(r.cell, r.acc, r.asr, r.provenance["backdoored_model"]) for r in records]


def test_a_killed_worker_costs_its_cell_alone_and_changes_no_number(dask, store, tmp_path):
    cluster, client = dask
    before = set(client.run(os.getpid).values())
    with killing(client, store, "*-finetuning-*.lock"):
        shared = run_on(cluster.scheduler_address, store)
    assert until(lambda: len(before - set(client.run(os.getpid).values())) == 1)
    alone = runner.run(Table3(**TABLE), Store(tmp_path / "alone"), say=lambda _: None)
    assert len(alone.records) == 3
    assert numbers(shared.records) == numbers(alone.records)
    assert list(store.locks.iterdir()) == []


@pytest.mark.long
def test_a_cell_that_kills_its_workers_is_given_up_and_can_be_tried_again(dask, store, monkeypatch):
    cluster, client = dask
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)
    with killing(client, store, "*-finetuning-*.lock"):
        results = run_on(cluster.scheduler_address, store, methods="none,finetuning")
    assert [r.cell.defense for r in results.records] == ["none"]
    (failure,) = results.failed
    assert "KilledWorker" in failure.error
    assert store.path(failure.cell, failure.data["fingerprint"], failed=True).exists()
    assert len(run_on(cluster.scheduler_address, store, methods="none,finetuning").records) == 2
    assert [r.failed for r in store.all()] == [False, False]


def test_an_interrupt_cancels_what_is_queued_and_the_next_run_goes_on(dask, store):
    cluster, _ = dask

    def stop_at_the_first(line: str) -> None:
        if line.startswith("[1/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_on(cluster.scheduler_address, store, stop_at_the_first, methods="none", seeds="0-3")
    assert until(lambda: not cluster.scheduler.tasks)
    assert until(lambda: not list(store.locks.iterdir()))  # what was running is finished
    assert 1 <= len(list(store.all())) < 4
    assert len(run_on(cluster.scheduler_address, store, methods="none", seeds="0-3").records) == 4


@pytest.mark.long
def test_a_scheduler_that_goes_away_ends_the_run_with_a_message(store):
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster:

        def end_at_the_first(line: str) -> None:
            if line.startswith("[1/"):
                cluster.close()

        with pytest.raises(ConfigError, match=r"the scheduler tcp://.* went away; what was finished is stored"):
            run_on(cluster.scheduler_address, store, end_at_the_first, methods="none", seeds="0-1")
    assert len(list(store.all())) >= 1


def test_gpu_work_goes_only_to_workers_that_offer_one(dask, store):
    cluster, _ = dask
    with pytest.raises(ConfigError, match=r"none of the 2 workers .* offers a GPU.*--resources 'GPU=1'"):
        run_on(cluster.scheduler_address, store, device="cuda")
    assert not store.folder.exists() or not list(store.all())


def test_a_worker_that_does_not_see_the_folder_is_named(dask, store, tmp_path):
    _, client = dask
    with pytest.raises(ConfigError, match=r"tcp://.* does not see the results folder .*PURIFIER_HOME"):
        client.run(check, Site(store.home, tmp_path / "nobody-made-this"))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ("RESULT_VERSION = 1", ["--nthreads", "1"], r"tcp://.* runs other code .* start the workers anew"),
        ("", ["--nthreads", "2"], r"tcp://.* runs 2 tasks at once.*--nthreads 1"),
    ],
    ids=["other code", "two at once"],
)
def test_a_worker_that_does_not_fit_ends_the_run_with_a_message(change, options, message, store, tmp_path, capsys):
    shutil.copytree(ROOT / "purifier_core", tmp_path / "purifier_core")
    config = tmp_path / "purifier_core" / "lab" / "cells.py"
    assert change in config.read_text()
    config.write_text(config.read_text().replace(change, change.replace("1", "2")) if change else config.read_text())
    with LocalCluster(n_workers=0, dashboard_address=":0") as cluster, Client(cluster) as client:
        command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address, "--no-dashboard"]
        worker = subprocess.Popen(
            [*command, "--no-nanny", "--local-directory", str(tmp_path / "scratch"), *options],
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            cwd=tmp_path,
            stderr=subprocess.DEVNULL,
        )
        try:
            client.wait_for_workers(1, timeout=300)
            address = cluster.scheduler_address
            assert cli.main(["run", "table3", "--profile", "quick", "--scheduler", address]) == 2
        finally:
            worker.kill()
            worker.wait()
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scheduler", "somewhere"], "scheduler='somewhere' is no address; write tcp://host:port"),
        (["--scheduler", ""], "scheduler='' is no address"),
        (["--scheduler", "tcp://127.0.0.1:9", "--workers", "2"], "with a scheduler leave them out"),
        (["--scheduler", "tcp://127.0.0.1:9", "--profile", "auto"], "allowed: quick, small, wide, paper"),
        (["--scheduler", "tcp://127.0.0.1:9"], "scheduler='tcp://127.0.0.1:9' does not answer"),
    ],
    ids=["no address", "empty", "workers too", "no profile", "unreachable"],
)
def test_a_scheduler_that_cannot_be_used_is_status_2(arguments, message, store, capsys):
    assert cli.main(["run", "table3", "--profile", "quick", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(store.all())


def test_without_the_extra_the_message_says_what_to_install(store, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "purifier_core.lab.cluster", None)
    monkeypatch.delattr("purifier_core.lab.cluster")
    assert cli.main(["run", "table3", "--profile", "quick", "--scheduler", "tcp://127.0.0.1:9"]) == 2
    assert "pip install -e '.[cluster]'" in capsys.readouterr().err


def test_two_runs_on_one_folder_compute_each_cell_once(store, tmp_path):
    notes = tmp_path / "notes"
    environment = os.environ | {"NOTES": str(notes), "TQDM_DISABLE": "1"}
    runs = [
        subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    done = Counter(notes.read_text().splitlines())
    assert sum(line.startswith("compute") for line in done) == 6
    assert sum(line.startswith("_train") for line in done) == 2
    assert set(done.values()) == {1}
    assert any("being computed by another run on the same folder; waiting" in output for output in outputs)
    assert list(store.locks.iterdir()) == []


HOLD = "import sys, time\nfrom pathlib import Path\nfrom purifier_core.lab.locks import locked\n" + (
    "from purifier_core.lab.records import Store\n"
    "with locked(Store(Path(sys.argv[1])), 'cell', wait=True): print('mine', flush=True); time.sleep(600)"
)


def test_a_killed_owner_holds_no_lock(tmp_path):
    store = Store(tmp_path)
    owner = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "mine\n"
    with locked(store, "cell", wait=False) as mine:
        assert not mine
    with locked(store, "another", wait=False) as mine:
        assert mine
    owner.kill()
    owner.wait()
    with locked(store, "cell", wait=False) as mine:
        assert mine
    assert list(store.locks.iterdir()) == []


COUNT = """
import sys
from pathlib import Path
from purifier_core.lab.locks import locked
from purifier_core.lab.records import Store
home = Path(sys.argv[1])
for _ in range(100):
    with locked(Store(home), "counter", wait=True):
        (home / "counter").write_text(str(int((home / "counter").read_text()) + 1))
"""


def test_a_lock_whose_file_comes_and_goes_still_excludes(tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")
    runs = [subprocess.Popen([sys.executable, "-c", COUNT, str(tmp_path)]) for _ in range(3)]
    assert [run.wait(timeout=120) for run in runs] == [0, 0, 0]
    assert counter.read_text() == "300"


def test_a_folder_without_locks_is_named(tmp_path, monkeypatch):
    def no_locks(_file, _how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(ConfigError, match=r"without locks .*PURIFIER_HOME"), locked(Store(tmp_path), "cell", wait=True):
        pass


def test_nothing_else_imports_dask():
    importing = set()
    for path in (ROOT / "purifier_core").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if {name.partition(".")[0] for name in names} & {"dask", "distributed", "dask_jobqueue"}:
                importing.add(path.relative_to(ROOT).as_posix())
    assert importing == {"purifier_core/lab/cluster.py"}
