"""FT-SAM (Zhu et al., 2023, "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization").

Finetuning towards a flat minimum: each step takes the gradient not at the weights w but at w + e, where
e = rho * w^2 * g / |w * g| and g is the gradient at w. It is meant to move the large weights, which carry a backdoor.

Settings as in the authors' code (BackdoorBench, defense/ft-sam.py and config/defense/ft-sam): rho 2, labels smoothed by
0.1, batches of 256, learning rate 0.01, 100 epochs. There the cosine of the learning rate goes by batches, with a
period of 200, so it rises and falls many times; here it falls once, over the epochs.
"""

import copy

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from purifier_core.lab.defenses import Defended, Given, Inputs
from purifier_core.lab.profiles import FT_SAM, Constants
from purifier_core.recipes import Recipe
from purifier_core.training import batch_statistics_alone


def ft_sam(
    inputs: Inputs,
    recipe: Recipe = FT_SAM,
    rho: float = Constants.ft_sam_rho,
    smoothing: float = Constants.ft_sam_smoothing,
) -> Defended:
    """Finetune a copy of the model this way; the last epoch is the result. BatchNorm counts the first pass alone."""
    tuned = copy.deepcopy(inputs.model).train()

    def loss(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        weights = dict(network.named_parameters())
        slopes = torch.autograd.grad(smooth(network(x), y, smoothing), list(weights.values()))
        moved = _climbed(weights, slopes, rho)
        with batch_statistics_alone(network):
            return smooth(functional_call(network, moved, (x,)), y, smoothing)

    effort = inputs.fit(tuned, recipe, loss=loss, title="FT-SAM")
    return Defended(tuned, effort)


@torch.no_grad()
def _steps(weights: list[torch.Tensor], slopes: tuple[torch.Tensor, ...], rho: float) -> list[torch.Tensor]:
    norm = torch.stack([(weight * slope).norm() for weight, slope in zip(weights, slopes, strict=True)]).norm()
    return [rho * weight**2 * slope / (norm + 1e-12) for weight, slope in zip(weights, slopes, strict=True)]


def _climbed(weights: dict[str, nn.Parameter], slopes: tuple[torch.Tensor, ...], rho: float) -> dict[str, torch.Tensor]:
    """The weights w + e, through which the gradient passes to w as if e were constant."""
    steps = _steps(list(weights.values()), slopes, rho)
    return {name: weight + step for (name, weight), step in zip(weights.items(), steps, strict=True)}


def smooth(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Cross-entropy to smoothed labels: all other classes share `smoothing`."""
    targets = torch.full_like(logits, smoothing / (logits.shape[1] - 1))
    return F.cross_entropy(logits, targets.scatter(1, labels[:, None], 1 - smoothing))


def defend(given: Given) -> Defended:
    """FT-SAM in the lab."""
    return ft_sam(given, given.adapted(given.profile.ft_sam), **given.constants)
