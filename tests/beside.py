"""What takes minutes runs in processes of its own, from the start of the session, beside the tests that need none."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from purifier_core.files import ROOT

_HOME = Path(os.environ["PURIFIER_HOME"])
_SHELL = {k: v for k, v in os.environ.items() if not k.startswith(("PURIFIER_", "GITHUB_", "IPYTHONDIR"))}
_BOOK = [str(Path(sys.executable).with_name("jupyter-book")), "build", ".", "-W", "-n", "--keep-going"]
_COMMANDS: dict[str, tuple[list[str], dict[str, str]]] = {
    "quick": ([sys.executable, "tests/brief.py"], dict(os.environ)),
    "book": ([*_BOOK, "--path-output", str(_HOME / "book")], _SHELL),
}
_running: dict[str, subprocess.Popen] = {}


def _begin(name: str) -> None:
    command, environment = _COMMANDS[name]
    with (_HOME / f"{name}.log").open("w") as log:
        _running[name] = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def _wait(name: str) -> None:
    if name in _running:
        assert _running[name].wait() == 0, (_HOME / f"{name}.log").read_text()[-6000:]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin what the chosen tests wait for, and put those behind the others: the book's first, notebooks last."""
    waiting = {item: [name for name in _COMMANDS if name in getattr(item, "fixturenames", ())] for item in items}
    items.sort(key=lambda item: (item.path.suffix == ".ipynb", "quick" in waiting[item], "book" in waiting[item]))
    begun = {name for names in waiting.values() for name in names}
    if config.getoption("--book"):
        begun -= {"book"}
    if not any(item.path.suffix == ".ipynb" for item in items):
        begun -= {"quick"}
    for name in () if config.option.collectonly else sorted(begun):
        _begin(name)


def pytest_sessionfinish() -> None:
    """End what no test waited for, and its own processes."""
    for process in _running.values():
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="session")
def quick() -> None:
    """In a session with the notebooks, every experiment at quick is recorded in the session's folder by now, with the
    schedules of brief.py. In another, a test computes there what it needs."""
    _wait("quick")


@pytest.fixture(scope="session")
def book(pytestconfig: pytest.Config) -> Path:
    """The book as `make book` builds it, warnings as errors, from the committed records alone; or that of --book."""
    if given := pytestconfig.getoption("--book"):
        return Path(given)
    _wait("book")
    return _HOME / "book" / "_build" / "html"
