"""Finetuning: train the whole backdoored model on the clean set."""

import copy
from dataclasses import replace

import torch
from torch import nn

from purifier_core.lab.defenses import Defended, Given
from purifier_core.lab.profiles import FINETUNING
from purifier_core.recipes import Recipe
from purifier_core.training import Augment, Watch, fit


def finetuning(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    recipe: Recipe = FINETUNING,
    augment: Augment = Augment(),
    seed: int = 0,
    watch: Watch | None = None,
) -> Defended:
    """Finetune a copy of `model`; the last epoch is the result."""
    tuned = copy.deepcopy(model).train()
    effort = fit(tuned, images, labels, recipe, seed=seed, augment=augment, watch=watch, title="finetuning")
    return Defended(tuned, effort)


def defend(given: Given) -> Defended:
    """Finetuning in the lab."""
    return finetuning(*given.data, recipe=given.adapted(given.profile.finetuning), **given.options)


def from_scratch(given: Given) -> Defended:
    """The control: a fresh network trained on the clean set, for as many epochs as Purifier's two stages."""
    heads, everything = given.stages()
    recipe = replace(everything, epochs=heads.epochs + everything.epochs)
    return finetuning(*given.data, recipe=recipe, **given.options)
