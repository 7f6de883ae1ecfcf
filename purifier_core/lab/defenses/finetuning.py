"""Finetuning: train the whole backdoored model on the clean set."""

import copy
from dataclasses import replace

from purifier_core.lab.defenses import Defended, Given, Inputs
from purifier_core.lab.profiles import FINETUNING
from purifier_core.recipes import Recipe


def finetuning(inputs: Inputs, recipe: Recipe = FINETUNING) -> Defended:
    """Finetune a copy of the model; the last epoch is the result."""
    tuned = copy.deepcopy(inputs.model).train()
    effort = inputs.fit(tuned, recipe, title="finetuning")
    return Defended(tuned, effort)


def defend(given: Given) -> Defended:
    """Finetuning in the lab."""
    return finetuning(given, given.adapted(given.profile.finetuning))


def from_scratch(given: Given) -> Defended:
    """The control: a fresh network trained on the clean set, for as many epochs as Purifier's two stages."""
    heads, everything = given.stages()
    return finetuning(given, replace(everything, epochs=heads.epochs + everything.epochs))
