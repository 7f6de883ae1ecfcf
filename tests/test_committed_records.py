"""The records that the book is made of: whole, of today's code, and complete wherever a seed has begun."""

import subprocess
from collections import defaultdict

import pytest

from purifier_core.experiments import EXPERIMENTS
from purifier_core.records import ROOT, Store, read

LISTED = subprocess.run(["git", "ls-files", "data/results"], cwd=ROOT, capture_output=True, text=True).stdout
COMMITTED = [ROOT / line for line in LISTED.splitlines()]  # what a reader computes beside them is not judged here


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: p.stem)
def test_a_record_is_whole_and_current(path):
    record = read(path)
    assert not record.failed
    assert not record.stale
    assert path == Store(ROOT / "data").path(record.cell, record.data["fingerprint"])
    assert 0 <= record.acc <= 1
    assert 0 <= record.asr <= 1
    assert record.provenance["commit"]
    assert not record.provenance["dirty"]
    if record.cell.dataset == "mnist":
        assert (record.acc_images, record.asr_images) == (10_000, 9_108)


def test_all_defenses_of_a_seed_start_from_one_backdoored_model():
    models = defaultdict(set)
    for record in map(read, COMMITTED):
        models[record.cell.backdoored()].add(record.provenance["backdoored_model"])
    assert models
    assert all(len(found) == 1 for found in models.values())


@pytest.mark.parametrize("name", ["table3", "table4"])
def test_a_seed_that_has_begun_is_complete(name):
    done = {read(path).cell for path in COMMITTED}
    kind = EXPERIMENTS[name]
    for seed in range(10):
        there = [cell in done for cell in kind(**{kind.axis: "all"}, seeds=seed).cells("small")]
        assert all(there) or not any(there), f"{name}, seed {seed}: {sum(there)} of {len(there)} cells"
