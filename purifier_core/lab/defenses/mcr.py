"""Mode Connectivity Repair (Zhao et al., 2020) along a quadratic Bezier curve.

phi(t) = (1 - t)^2 w0 + 2 t (1 - t) theta + t^2 w1, with w0 the backdoored model, w1 its finetuned copy (only one
suspicious model is at hand; the original uses two), and theta alone trained. The authors' release holds no MCR
code; t = 0.1 is fixed beforehand and the whole curve is reported.
"""

import copy
from dataclasses import replace

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from purifier_core.lab.defenses import Defended, Given, Inputs, recount_batchnorm
from purifier_core.lab.defenses.finetuning import finetuning
from purifier_core.lab.profiles import FINETUNING, MCR, Constants
from purifier_core.recipes import Recipe


def curve_point(w0: torch.Tensor, theta: torch.Tensor, w1: torch.Tensor, t: float) -> torch.Tensor:
    """phi(t) of one tensor."""
    return (1 - t) ** 2 * w0 + 2 * t * (1 - t) * theta + t**2 * w1


def mcr(
    inputs: Inputs,
    *,
    recipe: Recipe = MCR,
    endpoint_recipe: Recipe = FINETUNING,
    t: float = Constants.mcr_t,
    tuned: Defended | None = None,
) -> Defended:
    """Train the curve on the clean set and return the model at `t`; the sweep holds t = 0, 0.1, ..., 1.

    One t ~ U(0, 1) is drawn for each batch; the weight decay of `recipe` is a penalty on phi(t). BatchNorm
    statistics are not interpolated: at each t they are counted anew over the clean set. tuned: the endpoint, where
    `finetuning` with `endpoint_recipe` was already run.
    """
    endpoint = tuned or finetuning(replace(inputs, watch=None), endpoint_recipe)
    start = {n: p.detach() for n, p in inputs.model.named_parameters()}
    end = {n: p.detach() for n, p in endpoint.model.named_parameters()}
    theta = {n: nn.Parameter((start[n] + end[n]) / 2) for n in start}
    draws = torch.Generator().manual_seed(inputs.seed)
    base = copy.deepcopy(inputs.model).train()

    def loss(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        drawn = float(torch.rand((), generator=draws))
        phi = {n: curve_point(start[n], theta[n], end[n], drawn) for n in theta}
        penalty = torch.stack([p.pow(2).sum() for p in phi.values()]).sum()
        return F.cross_entropy(functional_call(network, phi, (x,)), y) + recipe.weight_decay / 2 * penalty

    def at(point: float) -> nn.Module:
        placed = copy.deepcopy(inputs.model)
        with torch.no_grad():
            for name, parameter in placed.named_parameters():
                parameter.copy_(curve_point(start[name], theta[name], end[name], point))
        recount_batchnorm(placed, inputs.images)
        return placed

    def look(_: nn.Module, epoch: int) -> None:
        if inputs.watch is not None:
            inputs.watch(at(t), epoch)

    effort = copy.deepcopy(endpoint.effort)
    effort += inputs.fit(
        base,
        replace(recipe, weight_decay=0.0),
        seed=inputs.seed + 1,
        loss=loss,
        parameters=theta.values(),
        carried=[draws],
        watch=look if inputs.watch else None,
        title="MCR curve",
    )
    sweep = {f"{k / 10:.1f}": at(k / 10) for k in range(11)}
    return Defended(at(t), effort, {"t": t}, sweep)


def defend(given: Given) -> Defended:
    """MCR in the lab."""
    tune = given.adapted(given.profile.finetuning)
    recipe = given.adapted(given.profile.mcr)
    return mcr(given, recipe=recipe, endpoint_recipe=tune, tuned=given.tuned, **given.constants)
