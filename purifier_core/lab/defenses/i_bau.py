"""I-BAU (Zeng et al., 2022, "Adversarial Unlearning of Backdoors via Implicit Hypergradient").

Minimax: a universal perturbation that raises the loss, and weights that lower it again. The perturbation depends on the
weights, so their gradient is the implicit one; a fixed-point iteration approximates it.

A round, with the network in eval mode, as in the authors' code (github.com/YiZeng623/I-BAU, defense.py):

1. From d = 0, one step of size 10 for each batch down -CE(f(x + d), f's own answers) + 0.001 |d|^2.
2. For each batch a step of Adam on the hypergradient of CE(f(x'), y). x' has d on 1 % of the images. The hypergradient
   takes 5 iterations of the fixed point of d - 0.1 * slope of the inner loss on the first batch.

Settings as there: 5 rounds, learning rate 1e-3, batches of 100 in a fixed order, no augmentation.
"""

import copy
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from purifier_core.evaluation import to_float
from purifier_core.lab.defenses import Defended, Given, Inputs
from purifier_core.lab.profiles import I_BAU, Constants
from purifier_core.recipes import Recipe
from purifier_core.training import Effort

Inner = Callable[[torch.Tensor], torch.Tensor]
"""From a perturbation to a loss."""


def i_bau(
    inputs: Inputs,
    recipe: Recipe = I_BAU,
    *,
    step: float = Constants.i_bau_step,
    penalty: float = Constants.i_bau_penalty,
    inner_step: float = Constants.i_bau_inner_step,
    iterations: int = Constants.i_bau_iterations,
    portion: float = Constants.i_bau_portion,
) -> Defended:
    """Unlearn for `recipe.epochs` rounds on a copy of the model; the last round is the result."""
    started = time.perf_counter()
    images, labels = inputs.images, inputs.labels
    network = copy.deepcopy(inputs.model).eval()
    weights = list(network.parameters())
    outer = torch.optim.Adam(weights, lr=recipe.lr)
    draws = torch.Generator().manual_seed(inputs.seed)
    batches = list(zip(images.split(recipe.batch_size), labels.split(recipe.batch_size), strict=True))
    losses = []

    def inner(perturbation: torch.Tensor) -> torch.Tensor:
        x, y = batches[0]
        return penalty * perturbation.norm() ** 2 - F.cross_entropy(network(to_float(x) + perturbation), y)

    for round_ in range(recipe.epochs):
        perturbation = _perturbation(network, batches, step, penalty)
        total = 0.0
        for x, y in batches:
            count = max(1, int(portion * len(x)))  # the authors' code sets no minimum: none of fewer than 100
            chosen = torch.zeros(len(x), 1, 1, 1)
            chosen[torch.randperm(len(x), generator=draws)[:count]] = 1.0
            moved = perturbation.requires_grad_()
            loss = F.cross_entropy(network(to_float(x) + chosen.to(x.device) * moved), y)
            slopes = hypergradient(loss, inner, moved, weights, inner_step, iterations)
            for weight, slope in zip(weights, slopes, strict=True):
                weight.grad = slope
            outer.step()
            total += float(loss.detach()) * len(x)
        losses.append(round(total / len(images), 6))
        if inputs.watch is not None:
            inputs.watch(network, round_ + 1)
    image_count = 2 * recipe.epochs * len(images)
    effort = Effort(float(recipe.epochs), image_count, time.perf_counter() - started, losses)
    return Defended(
        network.requires_grad_(True), effort, {"perturbation": round(float(perturbation.detach().norm()), 4)}
    )


def _perturbation(
    network: nn.Module, batches: Sequence[tuple[torch.Tensor, torch.Tensor]], step: float, penalty: float
) -> torch.Tensor:
    """A universal perturbation (1, C, H, W) away from the network's own answers, one step for each batch."""
    perturbation = torch.zeros_like(to_float(batches[0][0][:1]))
    for x, _ in batches:
        clean = to_float(x)
        with torch.no_grad():
            own = network(clean).argmax(1)
        moved = perturbation.requires_grad_()
        loss = penalty * moved.pow(2).sum() - F.cross_entropy(network(clean + moved), own)
        (slope,) = torch.autograd.grad(loss, moved)
        perturbation = moved.detach() - step * slope
    return perturbation


def hypergradient(
    loss: torch.Tensor,
    inner: Inner,
    perturbation: torch.Tensor,
    weights: Sequence[torch.Tensor],
    step: float,
    iterations: int,
) -> list[torch.Tensor]:
    """The gradient of `loss` by the weights, with the perturbation as the fixed point of a step down `inner`.

    J is the Jacobian of that step's result by the perturbation. v is the sum over k < iterations of (J^T)^k applied to
    the loss's slope by the perturbation. The step's dependence on the weights carries v to them.
    """
    by_perturbation, *by_weights = torch.autograd.grad(loss, [perturbation, *weights], retain_graph=True)
    (slope,) = torch.autograd.grad(inner(perturbation), perturbation, create_graph=True)
    stepped = perturbation - step * slope
    v = torch.zeros_like(perturbation)
    for _ in range(iterations):
        (carried,) = torch.autograd.grad(stepped, perturbation, v, retain_graph=True)
        v = carried + by_perturbation
    through = torch.autograd.grad(stepped, weights, v, allow_unused=True)
    return [own if more is None else own + more for own, more in zip(by_weights, through, strict=True)]


def defend(given: Given) -> Defended:
    """I-BAU in the lab."""
    return i_bau(given, given.profile.i_bau, **given.constants)
