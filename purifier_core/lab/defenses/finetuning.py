"""Finetuning: train the whole backdoored model on the clean set."""

import copy

import torch
from torch import nn

from purifier_core.lab.defenses import Defended
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
