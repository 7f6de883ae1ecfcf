"""Tests and notebooks compute into one temporary folder that they share, never into data/.

The variables must be set before a notebook's kernel starts, hence here and not in a fixture. What hypothesis
keeps for itself goes there too.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

collect_ignore_glob = ["_build/*", "out*.ipynb"]
_home = tempfile.mkdtemp(prefix="purifier-tests-")
os.environ["PURIFIER_HOME"] = _home
os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = os.path.join(_home, "hypothesis")
os.environ.pop("PURIFIER_RECORDS_ONLY", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # networks so small take one core; others compute on the other
os.environ["IPYTHONDIR"] = os.path.join(_home, "ipython")
_startup = Path(_home, "ipython", "profile_default", "startup", "shorten.py")  # what a kernel begins with
_startup.parent.mkdir(parents=True)
_startup.write_text(
    f"import sys\nsys.path.append({str(Path(__file__).with_name('tests'))!r})\n"
    "import brief\nbrief.shorten()\ndel sys, brief\n"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """--book: a built book to read, for whoever works on its pages."""
    parser.addoption("--book", help="test this folder of a built book (_build/html) instead of building one")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove the shared folder."""
    shutil.rmtree(_home, ignore_errors=True)
