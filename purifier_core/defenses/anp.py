"""Adversarial Neuron Pruning (Wu and Wang, 2021): prune the BatchNorm channels most sensitive to perturbation.

Each channel gets a mask m in [0, 1] on its BatchNorm scale. The masks alone are trained, on
alpha * CE(masked) + (1 - alpha) * CE(masked and adversarially perturbed), and channels whose mask ends at or
below tau are pruned from the untouched model: their scale becomes 0, their shift stays.
"""

import copy

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from purifier_core.defenses import Defended, held_out
from purifier_core.profiles import ANP_MASKS, ANP_STEPS, Recipe
from purifier_core.training import Augment, accuracy, fit

ALPHA, EPSILON = 0.2, 0.4
TAUS = tuple(round(0.05 * k, 2) for k in range(20))
MAX_DROP = 0.05
"""Largest loss of held-out accuracy that the threshold may cost (our choice; the paper names none)."""


def anp(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    recipe: Recipe = ANP_MASKS,
    steps: int = ANP_STEPS,
    augment: Augment = Augment(),
    seed: int = 0,
) -> Defended:
    """Train the masks for `steps` batches and prune at the largest tau of TAUS that held-out accuracy allows.

    The masks see 80 % of the clean set; tau is the largest whose accuracy on the other 20 % stays within
    MAX_DROP of the given model's. The sweep holds the model pruned at every tau. Where no tau does, the result is the
    given model itself, and the diagnostics say `admissible: False`: ANP found no operating point, it did not repair.
    """
    work, chosen = held_out(len(images))
    network = copy.deepcopy(model).train()
    layers = {n: m for n, m in network.named_modules() if isinstance(m, _BatchNorm)}
    if not layers:
        raise ValueError("ANP prunes BatchNorm channels and the model has none")
    scale = {n: m.weight.detach().clone() for n, m in layers.items()}
    shift = {n: m.bias.detach().clone() for n, m in layers.items()}
    masks = {n: nn.Parameter(torch.ones_like(s)) for n, s in scale.items()}
    draws = torch.Generator().manual_seed(seed)

    def noise(like: torch.Tensor) -> torch.Tensor:
        drawn = torch.rand(like.shape, generator=draws) * 2 * EPSILON - EPSILON
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
                value += EPSILON * slope.sign()
                value.requires_grad_(False)
        return ALPHA * F.cross_entropy(run(x, {}, {}), y) + (1 - ALPHA) * F.cross_entropy(run(x, delta, xi), y)

    def clamp() -> None:
        with torch.no_grad():
            for mask in masks.values():
                mask.clamp_(0.0, 1.0)

    for parameter in network.parameters():
        parameter.requires_grad_(False)
    effort = fit(
        network,
        images[work],
        labels[work],
        recipe,
        seed=seed,
        augment=augment,
        loss=loss,
        parameters=masks.values(),
        after_step=clamp,
        steps=steps,
        title="ANP masks",
    )
    sweep = {f"{tau:.2f}": prune(model, masks, tau) for tau in TAUS}
    full = accuracy(model, images[chosen], labels[chosen])
    kept = {tau: accuracy(pruned, images[chosen], labels[chosen]) for tau, pruned in sweep.items()}
    allowed = [tau for tau, value in kept.items() if value >= full - MAX_DROP]
    best = max(allowed, key=float) if allowed else None
    values = torch.cat([m.detach() for m in masks.values()])
    notes = {
        "admissible": best is not None,
        "tau": best and float(best),
        "pruned": int((values <= float(best)).sum()) if best else 0,
        "channels": len(values),
        "held_out": kept,
    }
    return Defended(sweep[best] if best else copy.deepcopy(model), effort, notes, sweep)


def prune(model: nn.Module, masks: dict[str, nn.Parameter], tau: float) -> nn.Module:
    """A copy of the untouched model with scale 0 in every BatchNorm channel whose mask is at most `tau`."""
    pruned = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, mask in masks.items():
            pruned.get_parameter(f"{name}.weight")[mask <= tau] = 0.0
    return pruned
