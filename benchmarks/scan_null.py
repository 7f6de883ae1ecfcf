"""What the scan scores on clean networks: the null distribution that its p-values come from, and its false alarms.

    python benchmarks/scan_null.py

Trains 32 small clean networks (three datasets, two widths, four or eight seeds; a minute each on one thread, kept under
$PURIFIER_HOME/null), scans each with the clean images that a defense of the lab would get, and writes the scores to
data/scan/null.json, network by network; a run that was stopped goes on. Networks of even seeds give the distribution:
Gumbel's, fitted by maximum likelihood to each network's largest score over the families whose stamp works. Where none
works there is no such score, and no false alarm, so the p-values are too large rather than too small. Networks of odd
seeds, which nothing was fitted to, give the share of false alarms. `recipes.Scanning` holds the fit; a test compares.
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
from purifier_core.scanning import Findings, p_value, scan
from purifier_core.training import fit

EPOCHS = {"mnist": 1, "cifar10": 4, "gtsrb": 6}
WIDTHS = (1 / 16, 1 / 8)
SEEDS = range(100, 104)
MORE = {"cifar10": range(104, 108)}
"""Further seeds of the dataset whose clean networks have stamps that work: only those can cause a false alarm."""
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
    score = largest(network, how.works)
    return score is not None and p_value(score, how) < how.level


def summary(networks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The fit to the networks of even seeds, and the false alarms among those of odd seeds, with a 95 % interval."""
    every = (largest(network, SCANNING.works) for network in networks if network["seed"] % 2 == 0)
    fitted = [score for score in every if score is not None]
    held_out = [network for network in networks if network["seed"] % 2]
    location, scale = (round(float(value), 3) for value in stats.gumbel_r.fit(fitted))
    how = replace(SCANNING, location=location, scale=scale)
    alarms = sum(alarmed(network, how) for network in held_out)
    interval = stats.binomtest(alarms, len(held_out)).proportion_ci(method="exact")
    return {
        "location": how.location,
        "scale": how.scale,
        "fitted_to": len(fitted),
        "held_out": len(held_out),
        "false_alarms": alarms,
        "interval": [round(interval.low, 4), round(interval.high, 4)],
    }


def main() -> None:
    """Train, scan, write."""
    prepare(torch.device("cpu"))
    folder = Store().models.parent / "null"
    record: dict[str, Any] = json.loads(PATH.read_text()) if PATH.exists() else {"networks": []}
    done = {(network["dataset"], network["width"], network["seed"]) for network in record["networks"]}
    splits = {name: load(name) for name in EPOCHS}
    with threads(1):
        planned = [*product(SEEDS, WIDTHS, EPOCHS)]
        planned += [(seed, width, name) for name, seeds in MORE.items() for seed, width in product(seeds, WIDTHS)]
        for seed, width, name in planned:
            if (name, width, seed) in done:
                continue
            record["networks"].append(scanned(splits[name], width, seed, folder))
            print(name, width, seed, record["networks"][-1]["acc"], record["networks"][-1]["scores"], flush=True)
            if len({network["seed"] % 2 for network in record["networks"]}) == 2:
                record |= summary(record["networks"])
            record["provenance"] = provenance("cpu")
            text = json.dumps(record, indent=1) + "\n"
            write_atomically(PATH, lambda part, text=text: part.write_text(text))
    print({name: value for name, value in record.items() if name not in ("networks", "provenance")})


if __name__ == "__main__":
    main()
