"""The device, and what a process sets for speed."""

import platform
import re
import sys
from pathlib import Path

import pytest
import torch

from purifier_core.checks import ConfigError
from purifier_core.device import keep_memory, peak_memory, pick_device, threads


def test_unknown_device():
    with pytest.raises(ConfigError, match="allowed: auto, cpu, cuda"):
        pick_device("gpu")


def test_the_number_of_threads_is_put_back():
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what the allocator understands is known for glibc")
def test_a_prepared_process_keeps_its_memory():
    assert keep_memory()


@pytest.mark.skipif(sys.platform != "linux", reason="compared with what Linux says in /proc")
def test_the_peak_of_memory_is_in_mebibytes():
    high = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak_memory() == pytest.approx(int(high[1]) / 1024, rel=0.02)
