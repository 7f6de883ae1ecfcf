"""Every table and figure once more from scratch, against what an earlier run on another day gave.

With the schedules of brief.py, and with -m long at quick's own. Other processors round otherwise, and training
amplifies it. So the tolerance is three percentage points, and only the undefended model and Finetuning's ACC are held
to it. Finetuning's ASR may begin to fall in so long a training, and the other defenses hang on thresholds and may tip
over. `python tests/test_reference.py brief` remakes brief.csv; with quick it remakes quick.csv. Each names its code.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from brief import BRIEF, shorten

from purifier_core.checks import one_of
from purifier_core.lab import runner
from purifier_core.lab.experiments import EXPERIMENTS, Experiment
from purifier_core.lab.experiments.supplement import SUPPLEMENT
from purifier_core.lab.profiles import PROFILES
from purifier_core.lab.results import Results

FOLDER = Path(__file__).parent
TOLERANCE = 0.03
STEADY = ("none", "finetuning")
NAMES = [kind.name for kind in SUPPLEMENT]


def supplement() -> list[Experiment]:
    """The tables and figures at quick, or what stands for it."""
    return [EXPERIMENTS[name](profile="quick") for name in NAMES]


@pytest.fixture(scope="module", params=["brief", pytest.param("quick", marks=pytest.mark.long)])
def anew(quick, request) -> Iterator[tuple[pd.DataFrame, dict[str, Results]]]:
    """The earlier numbers, and the whole supplement. In a session with the notebooks the brief one is there already."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "brief":
            patch.setitem(PROFILES, "quick", BRIEF)
        earlier = pd.read_csv(FOLDER / f"{request.param}.csv", comment="#", index_col="cell")
        yield earlier, dict(zip(NAMES, runner.run_all(supplement(), workers=min(4, os.cpu_count() or 1)), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_from_scratch_gives_the_numbers_of_an_earlier_one(name, anew):
    earlier, results = anew[0], anew[1][name]
    assert not results.missing
    steady = [record for record in results.records if record.cell.defense in STEADY]
    assert steady
    for record in steady:
        before = earlier.loc[str(record.cell)]
        assert record.acc == pytest.approx(before.acc, abs=TOLERANCE)
        if record.cell.defense == "none":
            assert record.asr == pytest.approx(before.asr, abs=TOLERANCE)


def write(name: str) -> None:
    """Write the reference `name`, "brief" or "quick", from what this machine computes."""
    records = {r.cell: r for results in runner.run_all(supplement(), workers=2) for r in results.records}
    lines = {str(cell): {"acc": round(r.acc or 0.0, 6), "asr": round(r.asr or 0.0, 6)} for cell, r in records.items()}
    made = [r.provenance for r in records.values() if r.provenance["commit"]]
    commits = sorted({p["commit"][:9] + ("+changes" if p["dirty"] else "") for p in made})
    table = pd.DataFrame.from_dict(lines, orient="index").rename_axis("cell").sort_index()
    (FOLDER / f"{name}.csv").write_text(f"# acc and asr as fractions; code: {', '.join(commits)}\n{table.to_csv()}")


if __name__ == "__main__":
    asked = one_of("reference", " ".join(sys.argv[1:]), ("brief", "quick"))
    if asked == "brief":
        shorten()
    write(asked)
