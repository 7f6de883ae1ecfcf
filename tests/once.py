"""What takes minutes is computed once a session, by the worker that needs it first; the others wait for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from purifier_core.files import ROOT

_HOME = Path(os.environ["PURIFIER_HOME"])
_SHELL = {k: v for k, v in os.environ.items() if not k.startswith(("PURIFIER_", "GITHUB_", "IPYTHONDIR"))}
_BOOK = [str(Path(sys.executable).with_name("jupyter-book")), "build", ".", "-W", "-n", "--keep-going"]
_COMMANDS: dict[str, tuple[list[str], dict[str, str]]] = {
    "quick": ([sys.executable, "tests/brief.py"], dict(os.environ)),
    "book": ([*_BOOK, "--path-output", str(_HOME / "book")], _SHELL),
}
_FIRST = ("test_reference.py", "test_book.py")  # they compute the two


def _done(name: str) -> None:
    """Run a command, unless another worker did."""
    log, status = _HOME / f"{name}.log", _HOME / f"{name}.status"
    command, environment = _COMMANDS[name]
    with FileLock(_HOME / f"{name}.lock"):
        if not status.exists():
            with log.open("w") as out:
                ended = subprocess.run(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)
            status.write_text(str(ended.returncode))
    assert status.read_text() == "0", log.read_text()[-6000:]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that compute for others go first, those that need it last, so that no worker waits."""
    needy = {item.path for item in items if {*_COMMANDS} & {*getattr(item, "fixturenames", ())}}

    def place(item: pytest.Item) -> int:
        if item.path.name in _FIRST:
            return _FIRST.index(item.path.name) - len(_FIRST)
        return 2 if item.path.suffix == ".ipynb" else item.path in needy

    items.sort(key=place)


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> None:
    """In a session with the notebooks, every experiment at quick is recorded in the session's folder by now, with the
    schedules of brief.py. In another, a test computes there what it needs."""
    if any(item.path.suffix == ".ipynb" for item in request.session.items):
        _done("quick")


@pytest.fixture(scope="session")
def book(pytestconfig: pytest.Config) -> Path:
    """The book as `make book` builds it, warnings as errors, from the committed records alone; or that of --book."""
    if given := pytestconfig.getoption("--book"):
        return Path(given)
    _done("book")
    return _HOME / "book" / "_build" / "html"
