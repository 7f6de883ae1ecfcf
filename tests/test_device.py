"""The device, and what a process sets for speed."""

import subprocess
import sys

import pytest
import torch

from purifier_core.checks import ConfigError
from purifier_core.device import pick_device, threads

AGAIN = """
import resource, sys, torch
from purifier_core.device import prepare
if sys.argv[1] == "prepared":
    prepare(torch.device("cpu"))
for round in range(21):
    torch.ones(2**22)  # 16 MiB, freed at once
    if round == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_unknown_device():
    with pytest.raises(ConfigError, match="allowed: auto, cpu, cuda"):
        pick_device("gpu")


def test_the_number_of_threads_is_put_back():
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.skipif(sys.platform != "linux", reason="what the system's allocator does is known for glibc")
def test_a_prepared_process_keeps_its_memory():
    """A large tensor taken again lies in pages that the system need not clear anew."""
    faults = {
        way: int(subprocess.run([sys.executable, "-c", AGAIN, way], capture_output=True, text=True, check=True).stdout)
        for way in ("plain", "prepared")
    }
    assert faults["prepared"] < 100 < faults["plain"]
