"""What the scan finds on clean networks: the null distributions that its p-values come from, and its false alarms.

    python benchmarks/scan_null.py

Trains small clean networks (three datasets, two widths, many seeds; a minute each on one thread, kept under
$PURIFIER_HOME/null), scans each with the clean images that a defense of the lab would get, and writes the scores to
data/scan/null.json, network by network; a run that was stopped goes on. Networks of even seeds give two distributions,
fitted by maximum likelihood. Gumbel's is of each network's largest score over the families whose stamp works. Where
none works there is no such score, and no false alarm, so the p-values are too large rather than too small. Beta's is of
the share of images that the best patch carries, of CIFAR-10's networks alone: theirs carry most. Networks of odd seeds,
which nothing was fitted to, give the share of false alarms. `recipes.Scanning` holds the fits; a test compares.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import nn

from purifier_core.device import prepare, threads
from purifier_core.evaluation import accuracy
from purifier_core.files import ROOT, provenance, save_tensors, write_atomically
from purifier_core.lab.cells import Cell
from purifier_core.lab.data import Split, load
from purifier_core.lab.draws import augmentation, clean_images, derive
from purifier_core.lab.experiments.supplement import same_share
from purifier_core.lab.models import build
from purifier_core.lab.records import Store
from purifier_core.layout import arrange
from purifier_core.recipes import SCANNING, Recipe, Scanning
from purifier_core.scanning import MEASURED, Findings, p_value, scan
from purifier_core.training import fit

EPOCHS = {"mnist": 1, "cifar10": 4, "gtsrb": 6}
WIDTHS = (1 / 16, 1 / 8)
SEEDS = {"mnist": range(100, 104), "cifar10": range(100, 112), "gtsrb": range(100, 104)}
"""CIFAR-10 has most: few of the others' clean networks have stamps that work, and only those can cause an alarm."""
EASIEST = "cifar10"
"""The dataset whose clean networks are carried away most easily by a patch."""
PATH = ROOT / "data" / "scan" / "null.json"


def trained(split: Split, width: float, seed: int, folder: Path) -> tuple[nn.Module, float]:
    """A clean network and its accuracy on the test set, from `folder` or by training."""
    path = folder / f"{split.name}-{round(1 / width)}-{seed}.pt"
    model = arrange(build("vgg16", split.num_classes, width, derive(seed, "init")))
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        model.eval()
    else:
        recipe = Recipe(EPOCHS[split.name], 0.1, batch_size=128, weight_decay=5e-4, cycle=True)
        augment = augmentation(Cell(split.name, profile="small"))
        images, labels = split.train_images, split.train_labels
        fit(model.train(), images, labels, recipe, seed=derive(seed, "backdoor"), augment=augment)
        write_atomically(path, lambda part: save_tensors(model.state_dict(), part))
    return model, accuracy(model, split.test_images, split.test_labels)


def scanned(split: Split, width: float, seed: int, folder: Path) -> dict[str, Any]:
    """One network's scores and margins, as plain values."""
    started = time.perf_counter()
    model, acc = trained(split, width, seed, folder)
    cell = Cell(split.name, "vgg16", "none", 0.1, "scan_repair", same_share(3000, split.name), seed, "small")
    findings = scan(model, *clean_images(split, cell), seed=derive(seed, "defense"))
    return {
        "dataset": split.name,
        "width": width,
        "seed": seed,
        "epochs": EPOCHS[split.name],
        "acc": acc,
        "scores": {candidate.family: round(candidate.score, 4) for candidate in findings.candidates},
        "success": {candidate.family: round(candidate.success, 4) for candidate in findings.candidates},
        "natural": round(findings.natural, 4),
        "margins": {family: _rounded(findings, family) for family in findings.margins},
        "data": split.fingerprint,
        "seconds": round(time.perf_counter() - started, 1),
    }


def _rounded(findings: Findings, family: str) -> list[float]:
    return [round(value, 3) for value in findings.margins[family].values()]


def largest(network: dict[str, Any], works: float) -> float | None:
    """A network's largest score over the families whose stamp works; None where none does."""
    scores, success = network["scores"], network["success"]
    return max((scores[family] for family in scores if success[family] >= works), default=None)


def alarmed(network: dict[str, Any], how: Scanning) -> bool:
    """Whether the scan takes a class of the network for a backdoor's."""
    scores, success = network["scores"], network["success"]
    p_values = {family: p_value(scores[family], how=how) for family in scores}
    p_values["patch"] = p_value(scores["patch"], round(success["patch"] * MEASURED), MEASURED, how)
    return any(success[family] >= how.works and p < how.level for family, p in p_values.items())


def summary(networks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The fits to the networks of even seeds, and the false alarms among those of odd seeds, with a 95 % interval."""
    even = [network for network in networks if network["seed"] % 2 == 0]
    held_out = [network for network in networks if network["seed"] % 2]
    scores = [score for network in even if (score := largest(network, SCANNING.works)) is not None]
    shares = [network["success"]["patch"] for network in even if network["dataset"] == EASIEST]
    location, scale = (round(float(value), 3) for value in stats.gumbel_r.fit(scores))
    carries, leaves, *_ = (round(float(value), 2) for value in stats.beta.fit(shares, floc=0, fscale=1))
    fits = {"location": location, "scale": scale, "patch_carries": carries, "patch_leaves": leaves}
    alarms = sum(alarmed(network, replace(SCANNING, **fits)) for network in held_out)
    interval = stats.binomtest(alarms, len(held_out)).proportion_ci(method="exact")
    return {
        **fits,
        "fitted_to": len(scores),
        "patches_fitted_to": len(shares),
        "held_out": len(held_out),
        "false_alarms": alarms,
        "interval": [round(interval.low, 4), round(interval.high, 4)],
    }


def keep(record: dict[str, Any]) -> None:
    """Write the record whole, or leave the one that is there."""
    write_atomically(PATH, lambda part: part.write_text(json.dumps(record, indent=1) + "\n"))


def main() -> None:
    """Train, scan, write."""
    prepare(torch.device("cpu"))
    folder = Store().models.parent / "null"
    record: dict[str, Any] = json.loads(PATH.read_text()) if PATH.exists() else {"networks": []}
    done = {(network["dataset"], network["width"], network["seed"]) for network in record["networks"]}
    splits = {name: load(name) for name in EPOCHS}
    with threads(1):
        planned = [(name, *pair) for name, seeds in SEEDS.items() for pair in product(WIDTHS, seeds)]
        for name, width, seed in planned:
            if (name, width, seed) in done:
                continue
            record["networks"].append(scanned(splits[name], width, seed, folder))
            print(name, width, seed, record["networks"][-1]["acc"], record["networks"][-1]["scores"], flush=True)
            record["provenance"] = provenance("cpu")
            keep(record)
    fits = summary(record["networks"])
    keep(record | fits)
    print(fits)


if __name__ == "__main__":
    main()
