"""What goes wrong on real machines: kills, damaged files, full disks, moved clocks, diverged training, planted code."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cache, partial
from itertools import count
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch

from purifier_core import cli
from purifier_core.checks import ConfigError
from purifier_core.lab import cells, compute, data, runner
from purifier_core.lab.experiments.supplement import Table3
from purifier_core.lab.profiles import PROFILES
from purifier_core.lab.records import Store
from purifier_core.lab.results import Results, describe, look_up
from purifier_core.pages import report
from purifier_core.recipes import Recipe

BROAD = Recipe(1, 0.1, batch_size=256)  # an epoch in a quarter of the time
TINY = {"width": 1 / 16, "backdoor": BROAD, "finetuning": Recipe(1, 0.01), "fine_pruning": Recipe(1, 0.01)}
TABLE = Table3(profile="quick", methods="none,finetuning", seeds="0,1")
# the same table in a process of its own, which may kill itself before any of its operations on a file
SCRIPT = f"""
import os, signal, sys
from dataclasses import replace
from purifier_core import cli
from purifier_core.lab.profiles import PROFILES
from purifier_core.recipes import Recipe

PROFILES["quick"] = replace(PROFILES["quick"], **{TINY!r})
left = int(os.environ["OPERATIONS"])

def watch(event, arguments):
    global left
    if event in ("open", "os.rename", "os.remove") and os.environ["PURIFIER_HOME"] in str(arguments[0]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
sys.exit(cli.main(["run", "table3", "--profile", "quick", "--methods", "none,finetuning", "--seeds", "0,1"]))
"""


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    """A quick profile that is over in seconds, and digits that are read once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROFILES, "quick", replace(PROFILES["quick"], **TINY))
        patch.setattr(data, "load", cache(data.load))
        yield


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory) -> Store:
    """The table, computed without a fault."""
    store = Store(tmp_path_factory.mktemp("undisturbed"))
    run(store)
    return store


@pytest.fixture
def store(undisturbed, tmp_path, monkeypatch) -> Store:
    """A copy of the undisturbed one, to damage."""
    shutil.copytree(undisturbed.folder.parent, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("PURIFIER_HOME", str(tmp_path))
    return Store()


def run(store: Store, **changes) -> Results:
    return runner.run(replace(TABLE, **changes), store, say=lambda _: None)


def numbers(store: Store) -> dict:
    """What must be equal however a record came about. A file that cannot be read is an error."""
    with warnings.catch_warnings(action="error"):
        done = [r for r in store.all() if not r.failed]
    for record in done:
        record.diagnostics.get("curve", {}).pop("seconds", None)
    return {r.cell: (r.acc, r.asr, r.diagnostics, r.effort["losses"], r.provenance["backdoored_model"]) for r in done}


def started(home: Path, operations: int = 0) -> subprocess.Popen:
    """The table in a process of its own; it kills itself before that operation on a file, if one is given."""
    environment = os.environ | {"PURIFIER_HOME": str(home), "OPERATIONS": str(operations), "TQDM_DISABLE": "1"}
    return subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.long)])
def test_killed_at_random_moments_nothing_is_lost_or_done_twice(kills, undisturbed, tmp_path):
    whole, moments = numbers(undisturbed), random.Random(kills)
    store, stamps = Store(tmp_path), {}
    for _ in range(kills):
        process = started(tmp_path)
        with suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(2, 6))
        process.kill()
        process.wait()
        assert numbers(store).items() <= whole.items()
        there = {path: path.stat().st_mtime_ns for path in store.folder.rglob("*.json")}
        assert stamps.items() <= there.items()
        stamps = there
        if len(stamps) == len(whole):  # begin again
            shutil.rmtree(tmp_path)
            stamps = {}
    assert started(tmp_path).wait() == 0
    assert numbers(store) == whole


@pytest.mark.long
def test_killed_before_any_operation_on_a_file_the_run_goes_on(undisturbed, tmp_path):
    for operation in count(1):
        home = tmp_path / str(operation)
        status = started(home, operation).wait()
        assert numbers(Store(home)).items() <= numbers(undisturbed).items()
        if status == 0:  # it has fewer operations
            break
        assert status == -signal.SIGKILL
        assert started(home).wait() == 0
        assert numbers(Store(home)) == numbers(undisturbed)
    assert operation > 20


@pytest.mark.long
def test_a_killed_worker_stops_the_run_with_a_way_out(undisturbed, tmp_path):
    store = Store(tmp_path)
    with pytest.raises(RuntimeError, match="fewer --workers"):
        runner.run(TABLE, store, say=lambda line: line[0] == "[" and active_children()[0].kill(), workers=2)
    assert numbers(store)
    run(store)
    assert numbers(store) == numbers(undisturbed)


def test_a_record_cut_anywhere_is_computed_again(store, undisturbed):
    records = {path: path.read_bytes() for path in store.folder.rglob("*.json")}
    for tenth in range(10):
        for path, whole in records.items():
            path.write_bytes(whole[: tenth * len(whole) // 10])
        with pytest.warns(UserWarning, match="is not a whole record"):
            assert look_up(TABLE, store).records == []
    with pytest.warns(UserWarning, match="computed again"):
        run(store)
    assert numbers(store) == numbers(undisturbed)


@pytest.mark.parametrize("parts", [10, pytest.param(200, marks=pytest.mark.long)])
def test_a_cached_model_cut_anywhere_or_altered_is_made_again(parts, tmp_path, monkeypatch):
    monkeypatch.setitem(PROFILES, "quick", replace(PROFILES["quick"], backdoor=Recipe(0, 0.1)))  # made in no time
    store = Store(tmp_path)
    run(store, methods="none", seeds=0)
    (path,) = store.models.iterdir()
    before, whole = numbers(store), path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 64]) + whole[middle + 1 :]  # a bit of one weight
    for damaged in (flipped, *(whole[: part * len(whole) // parts] for part in range(parts))):
        path.write_bytes(damaged)
        shutil.rmtree(store.folder)
        with pytest.warns(UserWarning, match="is damaged"):
            run(store, methods="none", seeds=0)
        assert numbers(store) == before
    shutil.rmtree(store.folder)
    with warnings.catch_warnings(action="error"):  # what was made again is whole
        run(store, methods="none", seeds=0)


@contextmanager
def disk_with_room_for(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: writing fails as it does on a full disk, for root as well."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_stops_the_run_and_leaves_nothing_partial(store, undisturbed):
    shutil.rmtree(store.folder)
    with ExitStack() as disk:
        fill = partial(disk.enter_context, disk_with_room_for(1000))  # less than a record
        with pytest.raises(OSError, match=r"too large; make room .* PURIFIER_HOME") as stopped:
            runner.run(TABLE, store, say=lambda line: line.startswith("[1/") and fill())
    assert str(store.folder) in stopped.value.filename
    assert len(numbers(store)) == 1
    assert not list(store.folder.rglob("*.part"))
    run(store)
    assert numbers(store) == numbers(undisturbed)


def test_a_model_that_finds_no_room_fails_its_cells_with_a_way_out(store, undisturbed):
    shutil.rmtree(store.folder)
    for path in store.models.glob("*-s1-*"):
        path.unlink()
    with disk_with_room_for(100_000):  # less than a model, more than a record
        results = run(store)
    assert [r.cell.seed for r in results.records + results.failed] == [0, 0, 1, 1]
    assert all("make room" in describe(record) for record in results.failed)
    assert not list(store.models.glob("*-s1-*"))
    run(store)
    assert numbers(store) == numbers(undisturbed)
    assert not list(store.folder.rglob("*.failed.json"))


@pytest.mark.parametrize("why", ["a file in its place", "even root may not write", "no room"])
def test_a_folder_that_cannot_be_written_is_named_before_any_work(why, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    home = {"a file in its place": tmp_path / "file", "even root may not write": "/proc/purifier"}.get(why, tmp_path)
    monkeypatch.setenv("PURIFIER_HOME", str(home))
    monkeypatch.setattr(compute, "Work", lambda *_: pytest.fail("work began"))
    with disk_with_room_for(1000 if why == "no room" else 10**6):
        with pytest.raises(ConfigError, match="PURIFIER_HOME"):
            runner.run(TABLE)
        assert cli.main(["run", "table3", "--profile", "quick"]) == 2
    assert f"{home}/results cannot be written" in capsys.readouterr().err


def test_a_clock_that_is_set_back_changes_nothing(store, undisturbed, monkeypatch):
    for path in store.folder.rglob("*.json"):
        path.unlink()
    clock = count(2**31, -3600)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: next(clock))  # an hour back at every look
        results = run(store)
    assert numbers(store) == numbers(undisturbed)
    assert all(0 <= record.provenance["wall_seconds"] < 60 for record in results.records)
    for year, path in enumerate(p for p in store.folder.parent.rglob("*") if p.is_file()):
        os.utime(path, (year * 10**9, year * 10**9))  # files of 1970, of 2001, of years to come
    monkeypatch.setattr(compute, "Work", lambda *_: pytest.fail("work began"))
    assert run(store).records == results.records


def test_a_gpu_without_memory_fails_the_cell_and_says_what_to_try(store, monkeypatch):
    def full(*_args, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with monkeypatch.context() as patch:
        patch.setattr(compute, "fit", full)
        failed = run(store, seeds=2).failed
    assert len(failed) == 2  # the second for want of the first one's model
    for record in failed:
        assert "Tried to allocate" in record.error
        assert describe(record).endswith("a smaller --profile or batch_size, or --device cpu.")
    assert not run(store, seeds=2).failed


@pytest.mark.parametrize("batch_size", [64, 200])  # of 200 images: a loss is no number, or only what follows the last
def test_training_that_diverges_is_no_result_and_the_others_go_on(batch_size, store, monkeypatch):
    wild = replace(PROFILES["quick"], finetuning=Recipe(1, 1e30, batch_size=batch_size))
    monkeypatch.setitem(PROFILES, "quick", wild)
    results = run(store, methods="none,finetuning,fine_pruning", seeds=0)
    assert [r.cell.defense for r in results.records] == ["none", "fine_pruning"]
    assert [r.cell.defense for r in results.failed] == ["finetuning"]
    assert "try a smaller learning rate" in describe(results.failed[0])
    assert report.table(results)["Finetuning"][3000, "ACC", "ours"] == "missing"


def test_records_of_another_version_are_recognised_counted_and_left_out(store, monkeypatch, capsys):
    old = run(store).records
    files = [store.path(record.cell, record.data["fingerprint"]) for record in old]
    monkeypatch.setattr(cells, "RESULT_VERSION", cells.RESULT_VERSION + 1)
    assert cli.main(["status"]) == 0
    assert "4 records at quick come from another version of the code and are not shown." in capsys.readouterr().out
    for record, file in zip(old, files, strict=True):  # not even under today's name
        shutil.copy(file, store.path(record.cell, record.data["fingerprint"]))
    results = look_up(TABLE, store)
    assert (len(results.missing), results.records) == (4, [])
    assert (report.table(results).loc[(3000, "ACC", "ours")] == "missing").all()
    (new,) = run(store, methods="none", seeds=0).records
    assert new.key != old[0].key
    assert all(file.exists() for file in files)


def test_code_in_place_of_a_cached_model_is_not_run(bomb, store, undisturbed):
    shutil.rmtree(store.folder)
    for path in store.models.glob("*-s1-*"):
        path.write_bytes(bomb)
    with pytest.warns(UserWarning, match="is damaged"):
        run(store)
    assert numbers(store) == numbers(undisturbed)
