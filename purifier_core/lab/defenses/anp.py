"""Adversarial Neuron Pruning (Wu and Wang, 2021): prune the BatchNorm channels most sensitive to perturbation.

Each channel gets a mask m in [0, 1] on its BatchNorm scale. The masks alone are trained, on
alpha * CE(masked) + (1 - alpha) * CE(masked and adversarially perturbed), and channels whose mask ends at or
below tau are pruned from the untouched model: their scale becomes 0, their shift stays.
"""

import copy
from dataclasses import replace

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from purifier_core.evaluation import accuracy, held_out
from purifier_core.lab.defenses import Defended, Given, Inputs
from purifier_core.lab.draws import rounded
from purifier_core.lab.profiles import ANP_MASKS, ANP_STEPS, Constants
from purifier_core.recipes import Recipe

TAUS = tuple(round(0.05 * k, 2) for k in range(20))
WATCHED = 10
"""How often the training is watched at most: each time a threshold is chosen, which takes longer than an epoch."""


def anp(
    inputs: Inputs,
    *,
    recipe: Recipe = ANP_MASKS,
    steps: int = ANP_STEPS,
    alpha: float = Constants.anp_alpha,
    epsilon: float = Constants.anp_epsilon,
    max_drop: float = Constants.anp_max_drop,
) -> Defended:
    """Train the masks for `steps` batches and prune at the largest tau of TAUS that held-out accuracy allows.

    The masks see 80 % of the clean set; tau is the largest whose accuracy on the other 20 % stays within
    `max_drop` of the given model's. The sweep holds the model pruned at every tau. Where no tau does, the result is the
    given model itself, and the diagnostics say `admissible: False`: ANP found no operating point, it did not repair.
    """
    model = inputs.model
    work, chosen = map(inputs.__getitem__, held_out(len(inputs.images)))
    network = copy.deepcopy(model).train()
    layers = {n: m for n, m in network.named_modules() if isinstance(m, _BatchNorm)}
    if not layers:
        raise ValueError("ANP prunes BatchNorm channels and the model has none")
    scale = {n: m.weight.detach().clone() for n, m in layers.items()}
    shift = {n: m.bias.detach().clone() for n, m in layers.items()}
    masks = {n: nn.Parameter(torch.ones_like(s)) for n, s in scale.items()}
    draws = torch.Generator().manual_seed(inputs.seed)

    def noise(like: torch.Tensor) -> torch.Tensor:
        drawn = torch.rand(like.shape, generator=draws) * 2 * epsilon - epsilon
        return drawn.to(like.device).requires_grad_()

    def run(x: torch.Tensor, weight_noise: dict, bias_noise: dict) -> torch.Tensor:
        values = {}
        for n in layers:
            values[f"{n}.weight"] = scale[n] * (masks[n] + weight_noise.get(n, 0.0))
            values[f"{n}.bias"] = shift[n] * (1 + bias_noise.get(n, 0.0))
        return functional_call(network, values, (x,))

    def loss(_: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        delta, xi = {n: noise(s) for n, s in scale.items()}, {n: noise(s) for n, s in shift.items()}
        flat = [*delta.values(), *xi.values()]
        slopes = torch.autograd.grad(F.cross_entropy(run(x, delta, xi), y), flat)
        with torch.no_grad():
            for value, slope in zip(flat, slopes, strict=True):
                value += epsilon * slope.sign()
                value.requires_grad_(False)
        return alpha * F.cross_entropy(run(x, {}, {}), y) + (1 - alpha) * F.cross_entropy(run(x, delta, xi), y)

    def clamp() -> None:
        with torch.no_grad():
            for mask in masks.values():
                mask.clamp_(0.0, 1.0)

    full = accuracy(model, chosen.images, chosen.labels)

    def choose() -> tuple[str | None, dict[str, nn.Module], dict[str, float]]:
        """The chosen tau, the pruned network and its held-out accuracy at every tau. Equal networks are one object."""
        sweep: dict[str, nn.Module] = {}
        scores: dict[str, float] = {}
        counts: dict[int, str] = {}
        for tau in TAUS:
            label, count = f"{tau:.2f}", sum(int((mask <= tau).sum()) for mask in masks.values())
            alike = counts.setdefault(count, label)
            sweep[label] = sweep[alike] if alike in sweep else prune(model, masks, tau)
            scores[label] = scores[alike] if alike in scores else accuracy(sweep[label], chosen.images, chosen.labels)
        return (
            max((tau for tau, value in scores.items() if value >= full - max_drop), key=float, default=None),
            sweep,
            scores,
        )

    every = max(1, round(steps * recipe.batch_size / len(work.images) / WATCHED))

    def look(_: nn.Module, epoch: int) -> None:
        if inputs.watch is not None and epoch % every == 0:
            tau, points = choose()[:2]
            inputs.watch(points[tau] if tau else model, epoch)

    for parameter in network.parameters():
        parameter.requires_grad_(False)
    effort = work.fit(
        network,
        recipe,
        loss=loss,
        parameters=masks.values(),
        carried=[draws],
        after_step=clamp,
        watch=look if inputs.watch else None,
        steps=steps,
        title="ANP masks",
    )
    best, sweep, scores = choose()
    values = torch.cat([m.detach() for m in masks.values()])
    notes = {
        "admissible": best is not None,
        "tau": best and float(best),
        "pruned": int((values <= float(best)).sum()) if best else 0,
        "channels": len(values),
        "held_out": scores,
    }
    return Defended(sweep[best] if best else copy.deepcopy(model), effort, notes, sweep)


def prune(model: nn.Module, masks: dict[str, nn.Parameter], tau: float) -> nn.Module:
    """A copy of the untouched model with scale 0 in every BatchNorm channel whose mask is at most `tau`."""
    pruned = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, mask in masks.items():
            pruned.get_parameter(f"{name}.weight")[mask <= tau] = 0.0
    return pruned


def defend(given: Given) -> Defended:
    """ANP in the lab. Its masks are trained without weight decay under any switch."""
    switch = given.cell.switch("anp_steps")
    steps = given.profile.anp_steps if switch == "profile" else int(switch)
    masks = given.profile.anp_masks(given.cell.dataset)
    recipe = replace(masks, bf16=rounded(given.cell, given.images.device))
    return anp(given, recipe=recipe, steps=steps, **given.constants)
