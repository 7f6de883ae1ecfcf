"""The main job as a reader runs it: papermill on the notebook, real training, bad parameters refused.

Profile quick has the schedules of brief.py here. The records land in the folder that the notebook's own test shares, so
the work is done once.
"""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from brief import BRIEF

from purifier_core.checks import ConfigError
from purifier_core.lab.experiments import from_notebook
from purifier_core.lab.experiments.supplement import Table3
from purifier_core.lab.profiles import PROFILES
from purifier_core.lab.records import Store

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "table3.ipynb"


def papermill(out: Path, *parameters: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "papermill", str(NOTEBOOK), str(out)]
    for pair in parameters:
        command += ["-p", *pair.split("=")]
    return subprocess.run(command, capture_output=True, text=True)


def test_purifier_takes_nine_times_the_papers_epochs_at_quick():
    """The clean set is a fifteenth of the paper's."""
    assert [sum(stage.epochs for stage in PROFILES[name].purifier) for name in ("quick", "paper")] == [9 * 40, 40]


def test_papermill_trains_and_shows_the_table(quick, tmp_path):
    done = papermill(tmp_path / "out.ipynb", "clean_size=3000", "profile=quick")
    assert done.returncode == 0, done.stderr
    text = json.dumps(nbformat.read(tmp_path / "out.ipynb", as_version=4))
    assert "Profile quick, as asked" in text
    assert "Not the paper's setting" in text
    assert "The run above is a smoke test" in text

    mine = Table3().cells("quick")  # other tests leave their records in the same folder
    found = {(r.cell.defense, r.cell.switch("init")): r for r in Store().all() if r.cell in mine}
    assert len(found) == 12
    assert not any(r.failed for r in found.values())
    undefended = found["none", "full"]
    assert undefended.acc > 0.95
    assert undefended.asr > 0.95
    for (defense, _), record in found.items():
        assert record.asr_images + 99 == record.acc_images == 1000  # 99 of the test digits are fives
        assert record.provenance["backdoored_model"] == undefended.provenance["backdoored_model"]
        if defense in ("channel", "cube", "feature"):
            assert set(record.diagnostics) == {"clean", "curve", "ra", "triggered"}
            assert record.effort["epochs"] == sum(stage.epochs for stage in BRIEF.purifier)
    assert len(found["anp", "full"].diagnostics["sweep"]) == 20
    assert len(found["mcr", "full"].diagnostics["sweep"]) == 11
    tenth = found["mcr", "full"].diagnostics["sweep"]["0.1"]
    assert (tenth["acc"], tenth["asr"]) == (found["mcr", "full"].acc, found["mcr", "full"].asr)


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("clean_sise=3000", "'clean_sise' is not a parameter of table3; its parameters: clean_size, profile"),
        ("clean_size=0", "clean_size=0 is out of range; allowed: 120 to 60000"),
        ("clean_size=abc", "clean_size='abc' is not a number"),
        ("profile=fast", "profile='fast' is not known; allowed: auto, quick, small, wide, paper"),
    ],
)
def test_bad_parameters_are_refused_by_what_the_notebook_calls(parameter, message):
    name, value = parameter.split("=")
    with pytest.raises(ConfigError, match=message):
        from_notebook("table3", {name: int(value) if value.isdigit() else value})


def test_a_bad_parameter_stops_the_notebook(tmp_path):
    done = papermill(tmp_path / "out.ipynb", "clean_sise=3000")
    assert done.returncode != 0
    assert "'clean_sise' is not a parameter of table3; its parameters: clean_size, profile" in done.stderr
