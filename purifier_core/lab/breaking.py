"""What an attacker can do to a network that was repaired: bring the old trigger back, or do without it.

Both are tried on a clean network too. What works there as well says nothing of the repair.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from purifier_core.evaluation import logits_of, predict, share, to_float
from purifier_core.lab.attacks import Trigger
from purifier_core.recipes import Recipe
from purifier_core.training import Augment, fit

EPSILONS = (8, 16)
"""The largest change of a pixel, of 255, in a re-activation."""
COUNTS = (0, 10, 30)
"""How many poisoned images a re-poisoning has; 0 is finetuning on clean images alone."""
REPOISONING = Recipe(5, 0.01)
STEPS = 100
"""Of the search of a perturbation."""
_BATCH = 64


def perturbation(
    model: nn.Module, images: torch.Tensor, target: int, epsilon: int, seed: int, steps: int
) -> torch.Tensor:
    """One change (3, H, W) of at most `epsilon` / 255 a pixel that carries uint8 images to `target`.

    Each step lowers the cross-entropy of 64 drawn images to `target` by the gradient's sign times a tenth of epsilon.
    Universal adversarial perturbations are Moosavi-Dezfooli et al.'s (2017); by signed steps Shafahi et al.'s (2020).
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    draws = torch.Generator().manual_seed(seed)
    largest = epsilon / 255
    change = torch.zeros(images.shape[1:], device=images.device)
    for _ in range(steps):
        x = to_float(images[torch.randint(len(images), (_BATCH,), generator=draws).to(images.device)])
        change.requires_grad_(True)
        logits = logits_of(model((x + change).clamp(0, 1)))
        aims = torch.full((len(x),), target, device=x.device)
        (slope,) = torch.autograd.grad(F.cross_entropy(logits, aims), change)
        change = (change.detach() - largest / 10 * slope.sign()).clamp(-largest, largest)
    return change


def moved(images: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """uint8 images with a change on them, rounded and cut off as a picture is."""
    return ((to_float(images) + change).clamp(0, 1) * 255).round().to(torch.uint8)


def repoisoned(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    trigger: Trigger,
    target: int,
    count: int,
    seed: int,
    augment: Augment,
) -> nn.Module:
    """A copy of `model` finetuned for five epochs on clean images and stamped copies of `count` of them, or of none."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).to(images.device)
    chosen = order[labels[order] != target][:count]
    x = torch.cat([trigger(images[chosen]), images])
    y = torch.cat([torch.full_like(labels[chosen], target), labels])
    network = copy.deepcopy(model).requires_grad_(True).train()
    fit(network, x, y, REPOISONING, seed=seed, augment=augment, title=f"{count} poisoned images")
    return network


def attacked(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    trigger: Trigger,
    test: torch.Tensor,
    target: int,
    seed: int,
    augment: Augment,
) -> dict[str, Any]:
    """The share of test images of other classes, `test`, that the network calls `target` after each attack.

    images, labels: the clean ones that the attacker has too. `stamped`: a perturbation was searched on stamped images,
    and is put on stamped ones; `plain`: without the trigger. `repoisoned`: the trigger alone, after finetuning.
    """
    others = images[labels != target]
    kinds: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"stamped": trigger, "plain": torch.clone}
    shares: dict[str, Any] = {kind: {} for kind in (*kinds, "repoisoned")}
    for kind, start in kinds.items():
        for epsilon in EPSILONS:
            change = perturbation(model, start(others), target, epsilon, seed, STEPS)
            shares[kind][str(epsilon)] = share(predict(model, moved(start(test), change)) == target)
    for count in COUNTS:
        network = repoisoned(model, images, labels, trigger, target, count, seed, augment)
        shares["repoisoned"][str(count)] = share(predict(network, trigger(test)) == target)
    return shares
