"""Tests and notebooks compute into one temporary folder that they and all workers share, never into data/.

The variables must be set before a worker or a notebook's kernel starts, hence here and not in a fixture. What
hypothesis keeps for itself goes there too.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

collect_ignore_glob = ["_build/*", "out*.ipynb"]
if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker has them from the process that started it
    home = Path(tempfile.mkdtemp(prefix="purifier-tests-"))
    os.environ["PURIFIER_HOME"] = str(home)
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(home / "hypothesis")
    os.environ.pop("PURIFIER_RECORDS_ONLY", None)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # networks so small take one core; the other workers have the others
    os.environ["IPYTHONDIR"] = str(home / "ipython")
    startup = home / "ipython" / "profile_default" / "startup" / "shorten.py"  # what a kernel begins with
    startup.parent.mkdir(parents=True)
    startup.write_text(
        f"import sys\nsys.path.append({str(Path(__file__).with_name('tests'))!r})\n"
        "import brief\nbrief.shorten()\ndel sys, brief\n"
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    """--book: a built book to read, for whoever works on its pages."""
    parser.addoption("--book", help="test this folder of a built book (_build/html) instead of building one")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove the shared folder, once all workers are done."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["PURIFIER_HOME"], ignore_errors=True)
