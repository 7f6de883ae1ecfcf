"""The device that computes, and how this process uses it."""

import ctypes
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from purifier_core.checks import ConfigError, one_of


def pick_device(name: str = "auto") -> torch.device:
    """The device by name; "auto" is a GPU where there is one. Raises ConfigError for a device that is not there."""
    one_of("device", name, ("auto", "cpu", "cuda"))
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device='cuda' asks for a GPU and none is visible here; allowed: auto, cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def failure(problem: Exception) -> str:
    """The traceback of a failure; where the GPU's memory did not suffice, its last line says what to try."""
    text = "".join(traceback.format_exception(problem))
    if not isinstance(problem, torch.OutOfMemoryError):
        return text
    return f"{text}Out of GPU memory: try fewer --workers, a smaller --profile or batch_size, or --device cpu.\n"


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Inside, torch computes on the CPU with `count` threads; None leaves their number alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fast_in_bf16(device: torch.device) -> bool:
    """Whether `device` is a CPU with instructions for products in bfloat16 (AVX-512 bf16 or AMX).

    There a training step of the paper's VGG-16 took 0.56 of its time in fp32 (benchmarks/speed.py --bf16).
    """
    return device.type == "cpu" and bool({"avx512_bf16", "amx_bf16"} & _has())


def _has() -> set[str]:
    """The processor's abilities by name, as torch reports them."""
    return {name for name, value in torch.cpu.get_capabilities().items() if value is True}


def prepare(device: torch.device) -> None:
    """Set this process up for speed on `device`; it changes no result beyond rounding.

    On a GPU, fp32 products are TF32 (10 bits of mantissa, sums in fp32) and cuDNN tries its algorithms for every shape.
    """
    if device.type == "cpu":
        keep_memory()
    else:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True


@cache
def keep_memory() -> bool:
    """Let this process keep the memory that it frees. Returns whether it does: only glibc can be asked.

    A step frees and takes the same large tensors again and again. By default glibc gives each back to the system, which
    then clears every page anew: a tenth of the time of a training step at width 1/8, a quarter of an evaluation.
    """
    fast, trim_threshold, mmap_max = 1, -1, -4  # of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    # glibc joins its list of small free blocks whenever a large one is freed, so it keeps no such list
    return all([mallopt(mmap_max, 0), mallopt(trim_threshold, 2**31 - 1), mallopt(fast, 0)])


def peak_memory() -> int | None:
    """The most memory that this process has held so far, in MiB; None where the system does not say."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit
