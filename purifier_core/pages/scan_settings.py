"""Where the settings of the scan and of the unlearning come from, in words: data/scan."""

import json
from functools import cache
from typing import Any

from purifier_core.files import ROOT
from purifier_core.lab.methods import title
from purifier_core.pages.defenses import row_label
from purifier_core.recipes import SCANNING, UNLEARNING

PATCHES = {("mnist", "badnets", 7), ("mnist", "trojan", 1)}
"""The networks that brought in the rule for patches, by dataset, attack and seed."""


def tuned_on() -> set[tuple[str, str, int]]:
    """The networks on which something was chosen, by dataset, attack and seed: they are no test of it."""
    return PATCHES | {(run["dataset"], run["attack"], run["seed"]) for run in _scan("choice")["runs"]}


def chosen_on() -> str:
    """On which networks the settings of the unlearning were chosen, and where the scan's scores come from."""
    null = _scan("null")
    return (
        f"{chosen(_scan('choice'))} The scan's p-values rest on clean networks outside this grid, all of "
        f"{_fitted_to(null)}: the leads of {null['fitted_to']}, the patches of {null['patches_fitted_to']}. On clean "
        f"networks of other datasets too few stamps work to fit anything. It suspected {_alarms(null)}. Patches are "
        "judged apart since the leads had missed MNIST's BadNets (seed 7) and Trojan (seed 1), so these two are no "
        f"test of that. Set last: {100 * UNLEARNING.training_mode:.0f} % of the stamped images are unlearned in "
        "BatchNorm's training mode too. Without it finetuning had brought the triggers of CIFAR-10's and MNIST's Blend "
        "(seed 1) back, so these two are no test of how long the repair lasts. The score was set on clean networks, "
        "and on MNIST's and CIFAR-10's Blend and CIFAR-10's BadNets (seed 0). Tried and not taken: a search for rows "
        "and for columns alone, which would reach CIFAR-10's SIG. With p-values from its own scores, that scan "
        f"suspected {_alarms(_scan('null_columns'))}."
    )


def _alarms(null: dict[str, Any]) -> str:
    """The false alarms among the clean networks held out, and their interval."""
    low, high = (100 * end for end in null["interval"])
    return (
        f"{null['false_alarms']} of {null['held_out']} clean networks that nothing was fitted to ({low:.0f} to "
        f"{high:.0f} % with 95 % confidence)"
    )


def _fitted_to(null: dict[str, Any]) -> str:
    """The datasets of the networks that the leads are fitted to: of even seeds, with a stamp that works."""
    fitted = [n for n in null["networks"] if n["seed"] % 2 == 0 and max(n["success"].values()) >= SCANNING.works]
    return " and ".join(dict.fromkeys(title(network["dataset"]) for network in fitted))


def chosen(choice: dict[str, Any]) -> str:
    """How the settings of the unlearning were chosen, from the record of the choice: of how many, and on what."""
    networks = dict.fromkeys((run["dataset"], run["attack"], run["seed"]) for run in choice["runs"])
    names = ", ".join(f"{row_label((attack, dataset))} seed {seed}" for dataset, attack, seed in networks)
    trial = "a first trial, which had looked at the ASR of networks of MNIST and CIFAR-10 (seed 0) and of two of GTSRB"
    count = len(choice["means"])
    if count < 2:
        return f"The unlearning's settings are not chosen yet: they are those of {trial}, so seed 0 flatters them."
    return (
        f"The unlearning's settings ({choice['chosen']}) were chosen among {count} on {names}, by held-out accuracy "
        "and the success of new stamps; no ASR was measured for it. The candidates lie around the settings of "
        f"{trial}. Every other row is as it came out."
    )


@cache
def _scan(name: str) -> Any:
    return json.loads((ROOT / "data" / "scan" / f"{name}.json").read_text())
