"""Every table and figure once more from scratch, against what an earlier run at quick on another day gave.

Other processors round otherwise, and training amplifies it. So the tolerance is three percentage points, and only the
undefended model and Finetuning's ACC are held to it. Finetuning's ASR may begin to fall in so long a training, and the
other defenses hang on thresholds and may tip over: they run with the schedules of brief.py, at quick's own with -m
long. `quick.csv` is remade by `python tests/test_reference.py`, and names
the code that it comes from.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from brief import BRIEF

from purifier_core.lab import runner
from purifier_core.lab.experiments import EXPERIMENTS
from purifier_core.lab.experiments.supplement import SUPPLEMENT
from purifier_core.lab.profiles import PROFILES
from purifier_core.lab.results import Results

REFERENCE = Path(__file__).with_name("quick.csv")
TOLERANCE = 0.03
STEADY = ("none", "finetuning")
NAMES = [kind.name for kind in SUPPLEMENT]


@pytest.fixture(scope="module", params=["brief", pytest.param("whole", marks=pytest.mark.long)])
def anew(quick, request) -> Iterator[dict[str, Results]]:
    """The whole supplement. In a session with the notebooks the brief one was computed beside other tests."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "brief":
            patch.setitem(PROFILES, "quick", BRIEF)
        experiments = [EXPERIMENTS[name](profile="quick") for name in NAMES]
        yield dict(zip(NAMES, runner.run_all(experiments, workers=min(4, os.cpu_count() or 1)), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_from_scratch_gives_the_numbers_of_an_earlier_one(name, anew):
    earlier = pd.read_csv(REFERENCE, comment="#", index_col="cell")
    results = anew[name]
    assert not results.missing
    steady = [record for record in results.records if record.cell.defense in STEADY]
    assert steady
    for record in steady:
        before = earlier.loc[str(record.cell)]
        assert record.acc == pytest.approx(before.acc, abs=TOLERANCE)
        if record.cell.defense == "none":
            assert record.asr == pytest.approx(before.asr, abs=TOLERANCE)


def write() -> None:
    """Write the reference from the records of this machine."""
    records = {r.cell: r for name in NAMES for r in runner.run(EXPERIMENTS[name](profile="quick")).records}
    lines = {str(cell): {"acc": round(r.acc or 0.0, 6), "asr": round(r.asr or 0.0, 6)} for cell, r in records.items()}
    made = [r.provenance for r in records.values() if r.provenance["commit"]]
    commits = sorted({p["commit"][:9] + ("+changes" if p["dirty"] else "") for p in made})
    table = pd.DataFrame.from_dict(lines, orient="index").rename_axis("cell").sort_index()
    REFERENCE.write_text(f"# acc and asr as fractions; code: {', '.join(commits)}\n{table.to_csv()}")


if __name__ == "__main__":
    sys.exit(write())
