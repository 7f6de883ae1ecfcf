"""Tests and notebooks compute into one temporary folder that they share, never into data/.

The variable must be set before a notebook's kernel starts, hence here and not in a fixture.
"""

import os
import shutil
import tempfile

import pytest

collect_ignore_glob = ["_build/*", "out*.ipynb"]
_home = tempfile.mkdtemp(prefix="purifier-tests-")
os.environ["PURIFIER_HOME"] = _home
os.environ.pop("PURIFIER_RECORDS_ONLY", None)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove the shared folder."""
    shutil.rmtree(_home, ignore_errors=True)
