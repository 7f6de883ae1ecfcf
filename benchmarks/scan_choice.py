"""Which settings the repair's unlearning takes: chosen by clean images and stamps alone, before anything is measured.

    python benchmarks/scan_choice.py

Four networks (profile small): BadNets and Blend on MNIST and CIFAR-10, one seed each. A network of the zoo is taken
where it has that seed, else the cached one, else it is trained. Each setting repairs each network with four fifths of
the clean images. On the last fifth: the accuracy, and how often stamps work that are searched anew against the repaired
network, for the classes and families that the scan suspected. Neither knows the trigger, and no ASR is measured here.
Of the settings that lose at most one point of accuracy on average, the one whose new stamps work least is chosen; where
two are within `NEAR` of each other, the earlier one of `SETTINGS`, so that chance changes nothing. The settings of the
search stay as they were: the null distribution of the scores was made with them.

Everything goes to data/scan/choice.json, run by run; a run that was stopped goes on.
"""

import json
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean
from typing import Any

import torch
from torch import nn

from purifier_core.device import threads
from purifier_core.evaluation import accuracy, held_out
from purifier_core.files import ROOT, provenance, write_atomically
from purifier_core.lab import zoo
from purifier_core.lab.cells import Cell
from purifier_core.lab.compute import Work
from purifier_core.lab.draws import clean_images, derive
from purifier_core.lab.experiments.supplement import same_share
from purifier_core.lab.records import Store
from purifier_core.recipes import UNLEARNING
from purifier_core.repairing import repair
from purifier_core.scanning import Findings, hard, scan
from purifier_core.stamps import Clean, margins, search

SETTINGS: dict[str, dict[str, Any]] = {
    "the trial's": {"lr": 0.002, "mixed": 0.7, "distilled": 4.0},
    "lr 0.004": {"lr": 0.004, "mixed": 0.7, "distilled": 4.0},
    "mixed 0.4": {"lr": 0.002, "mixed": 0.4, "distilled": 4.0},
    "distilled 2": {"lr": 0.002, "mixed": 0.7, "distilled": 2.0},
    "lr 0.001": {"lr": 0.001, "mixed": 0.7, "distilled": 4.0},
}
NETWORKS = (("mnist", "badnets", 7), ("mnist", "blend", 0), ("cifar10", "badnets", 0), ("cifar10", "blend", 1))
WORST = 0.01  # accuracy that may be lost
NEAR = 0.01  # success of new stamps that is no difference
SEARCHES = 3  # new stamps for each suspected class and family
PATH = ROOT / "data" / "scan" / "choice.json"


@dataclass(frozen=True)
class Given:
    """A network to choose on: its weights' digest, its clean images in two parts, and what the scan found."""

    model: nn.Module
    digest: str
    clean: Clean
    seed: int
    findings: Findings
    before: float

    @property
    def parts(self) -> tuple[Clean, Clean]:
        """The images that are worked on, and those that are held out."""
        working, held = held_out(len(self.clean.images))
        return self.clean[working], self.clean[held]


@cache
def given(dataset: str, attack: str, seed: int) -> Given:
    """One of `NETWORKS`, scanned with the images that a repair gets."""
    work = Work(Store(), "small", dataset, "cpu", curves=False)
    cell = Cell(dataset, "vgg16", attack, 0.1, "scan_repair", same_share(3000, dataset), seed, "small")
    model, digest = _network(work, cell)
    clean = Clean.of(*clean_images(work.split, cell))
    working, held = (clean[part] for part in held_out(len(clean.images)))
    seed = derive(seed, "defense")
    findings = scan(model, working.images, working.labels, seed=seed)
    return Given(model, digest, clean, seed, findings, accuracy(model, held.images, held.labels))


def _network(work: Work, cell: Cell) -> tuple[nn.Module, str]:
    name = f"{cell.dataset}-{cell.attack}"
    if name in zoo.names() and zoo.card(name)["cell"]["seed"] == cell.seed:
        return zoo.load(name).model, zoo.card(name)["digest"]
    model, notes = work.backdoored(cell.backdoored())
    return model, notes["digest"]


def measured(start: Given, changes: dict[str, Any]) -> dict[str, Any]:
    """Repair with the changed settings: held-out accuracy, and the success of stamps searched anew; None where the scan
    suspected nothing."""
    working, held = start.parts
    how = replace(UNLEARNING, **changes)
    repaired = repair(start.model, working.images, working.labels, start.findings, how=how, seed=start.seed)
    accuracies = {"acc_before": start.before, "acc": accuracy(repaired, held.images, held.labels)}
    generator = torch.Generator().manual_seed(1)
    successes = []
    for suspect in start.findings.suspects:
        targets = [suspect.target] * SEARCHES
        stamps = search(repaired, working, suspect.family, targets, steps=40, per_class=24, generator=generator)
        successes.append(float(margins(repaired, held, hard(stamps, held), 200)[1].mean()))
    return accuracies | {"new_stamps": fmean(successes) if successes else None}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The means of each setting over the networks that all tried settings have met, and the chosen one."""
    tried = [name for name in SETTINGS if sum(run["setting"] == name for run in runs) == len(NETWORKS)]
    means = {}
    for name in tried:
        its_runs = [run for run in runs if run["setting"] == name]
        accuracy_lost = fmean(run["acc_before"] - run["acc"] for run in its_runs)
        success = fmean([run["new_stamps"] for run in its_runs if run["new_stamps"] is not None] or [1.0])
        means[name] = {"lost": round(accuracy_lost, 5), "new_stamps": round(success, 5)}
    allowed = [name for name in tried if means[name]["lost"] <= WORST]
    least = min((means[name]["new_stamps"] for name in allowed), default=0.0)
    chosen = next((name for name in allowed if means[name]["new_stamps"] <= least + NEAR), None)
    return {"means": means, "chosen": chosen}


def main() -> None:
    """Every setting on every network, one setting after the other."""
    record: dict[str, Any] = json.loads(PATH.read_text()) if PATH.exists() else {"runs": []}
    done = {(run["dataset"], run["attack"], run["seed"], run["setting"]) for run in record["runs"]}
    with threads(1):
        for setting, changes in SETTINGS.items():
            for network in NETWORKS:
                if (*network, setting) in done:
                    continue
                start = given(*network)
                run = dict(zip(("dataset", "attack", "seed"), network, strict=True))
                run |= {"model": start.digest, "verdict": start.findings.verdict}
                run |= {"setting": setting, "changes": changes} | measured(start, changes)
                record["runs"].append(run)
                print(run, flush=True)
                record |= summary(record["runs"]) | {"provenance": provenance("cpu")}
                text = json.dumps(record, indent=1) + "\n"
                write_atomically(PATH, lambda part, text=text: part.write_text(text))


if __name__ == "__main__":
    main()
