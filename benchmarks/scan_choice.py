"""Which settings the repair's unlearning takes: chosen by clean images alone, before anything else is measured.

    python benchmarks/scan_choice.py

On MNIST and CIFAR-10 with BadNets and Blend at seed 0 (profile small; networks are trained where they are not cached),
each setting repairs with four fifths of the clean images. On the last fifth: the accuracy, and how often stamps work
that are searched anew against the repaired network, for the classes and families that the scan suspected. Neither knows
the trigger. Of the settings that lose at most one point of accuracy on average, the one whose new stamps work least is
chosen. Everything goes to data/scan/choice.json, run by run; a run that was stopped goes on.
"""

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from purifier_core.device import threads
from purifier_core.evaluation import accuracy, held_out
from purifier_core.files import ROOT, provenance, write_atomically
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
    "as it was": {},
    "lr 0.004": {"lr": 0.004},
    "lr 0.001": {"lr": 0.001},
    "distilled 2": {"distilled": 2.0},
    "mixed 0.4": {"mixed": 0.4},
    "twice as long": {"seen": 40_000},
}
NETWORKS = [(dataset, attack) for dataset in ("cifar10", "mnist") for attack in ("blend", "badnets")]
WORST = 0.01  # accuracy that may be lost
PATH = ROOT / "data" / "scan" / "choice.json"


def new_stamps(model: nn.Module, clean: Clean, held: Clean, findings: Findings) -> float:
    """The mean success on held-out images of stamps searched against `model`, for what the scan suspected."""
    generator = torch.Generator().manual_seed(1)
    successes = []
    for suspect in findings.suspects:
        targets = [suspect.target] * 3
        stamps = search(model, clean, suspect.family, targets, steps=40, per_class=24, generator=generator)
        successes.append(float(margins(model, held, hard(stamps, held), 200)[1].mean()))
    return fmean(successes)


def main() -> None:
    """Scan each network once, repair it with every setting, and write."""
    record: dict[str, Any] = json.loads(PATH.read_text()) if PATH.exists() else {"runs": []}
    done = {(run["dataset"], run["attack"], run["setting"]) for run in record["runs"]}
    for dataset, attack in NETWORKS:
        if all((dataset, attack, setting) in done for setting in SETTINGS):
            continue
        work = Work(Store(), "small", dataset, "cpu", curves=False)
        cell = Cell(dataset, "vgg16", attack, 0.1, "scan_repair", same_share(3000, dataset), 0, "small")
        model, notes = work.backdoored(cell.backdoored())
        images, labels = clean_images(work.split, cell)
        part, rest = held_out(len(images))
        seed = derive(0, "defense")
        with threads(1):
            findings = scan(model, images[part], labels[part], seed=seed)
            before = accuracy(model, images[rest], labels[rest])
            clean = Clean.of(images, labels)
            for setting, changes in SETTINGS.items():
                if (dataset, attack, setting) in done:
                    continue
                how = replace(UNLEARNING, **changes)
                repaired = repair(model, images[part], labels[part], findings, how=how, seed=seed)
                acc = accuracy(repaired, images[rest], labels[rest])
                success = new_stamps(repaired, clean[part], clean[rest], findings) if findings.suspects else None
                run = {"dataset": dataset, "attack": attack, "setting": setting, "changes": changes}
                run |= {"model": notes["digest"], "images": len(images[rest]), "acc_before": before, "acc": acc}
                record["runs"].append(run | {"new_stamps": success, "verdict": findings.verdict})
                print(record["runs"][-1], flush=True)
                _write(record)


def _write(record: dict[str, Any], path: Path = PATH) -> None:
    """The record, with the means of each setting over the networks that all settings have met, and the chosen one."""
    met = {name: {(r["dataset"], r["attack"]) for r in record["runs"] if r["setting"] == name} for name in SETTINGS}
    common = set.intersection(*met.values())
    means = {}
    for name in SETTINGS if common else ():
        runs = [r for r in record["runs"] if r["setting"] == name and (r["dataset"], r["attack"]) in common]
        lost = fmean(r["acc_before"] - r["acc"] for r in runs)
        worked = fmean([r["new_stamps"] for r in runs if r["new_stamps"] is not None] or [1.0])
        means[name] = {"lost": round(lost, 5), "new_stamps": round(worked, 5), "networks": len(runs)}
    allowed = [name for name, mean in means.items() if mean["lost"] <= WORST]
    record |= {"means": means, "chosen": min(allowed, key=lambda name: means[name]["new_stamps"], default=None)}
    record["provenance"] = provenance("cpu")
    text = json.dumps(record, indent=1) + "\n"
    write_atomically(path, lambda part: part.write_text(text))


if __name__ == "__main__":
    main()
