"""Is there a backdoor in a network, without any image? MM-BD's question (Wang et al., 2024), in short.

For each class it searches, anywhere in the range of pixels, the input of largest margin: the class's logit less the
largest other one. Poisoning makes the margin of the attacker's class far larger than the others'. A Gamma distribution
is fitted to the others, and p is the probability that the largest of K draws from it exceeds the largest margin.

As MM-BD does: many starts of uniform noise for each class, gradient ascent, projection. Unlike it: Adam for a fixed
number of steps, and the Gamma fitted by moments.
"""

import copy
import time
from dataclasses import dataclass

import torch
from torch import nn

from purifier_core.checks import ConfigError, integer
from purifier_core.evaluation import logits_of, to_float
from purifier_core.progress import progress
from purifier_core.sites import unwrapped


@dataclass(frozen=True)
class Maximal:
    """The largest margin of each class, the class whose is the largest of all, and its p-value."""

    margins: tuple[float, ...]
    target: int
    p: float
    seconds: float


def maximal_margins(
    model: nn.Module,
    size: tuple[int, int, int],
    *,
    low: float = 0.0,
    high: float = 1.0,
    starts: int = 10,
    steps: int = 100,
    lr: float = 0.05,
    batch_size: int = 256,
    seed: int = 0,
) -> Maximal:
    """The largest margin that each class of `model` reaches on inputs of `size` (C, H, W) from `low` to `high`.

    `model` stays as it is. Time: steps * starts * K inputs through the network and back; memory grows with batch_size.
    Raises ConfigError for fewer than four classes, and for an empty range.
    """
    started = time.perf_counter()
    integer("starts", starts, 1, 10_000)
    if not low < high:
        raise ConfigError(f"low={low!r} is not below high={high!r}.")
    model = copy.deepcopy(unwrapped(model)).eval()
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        classes = logits_of(model(torch.full((2, *size), (low + high) / 2, device=device))).shape[1]
    if classes < 4:
        raise ConfigError(f"{classes} classes are too few to compare.")
    aims = torch.arange(classes, device=device).repeat_interleave(starts)
    margins = []
    with progress("largest margins", total=len(aims)) as bar:
        for targets in aims.split(batch_size):
            x = (low + (high - low) * torch.rand(len(targets), *size, generator=generator)).to(device)
            margins.append(_climbed(model, x, targets, low, high, steps, lr * (high - low)))
            bar.update(len(targets))
    best = torch.cat(margins).view(classes, starts).amax(1)
    return Maximal(tuple(best.tolist()), int(best.argmax()), gamma_p(best), time.perf_counter() - started)


def _climbed(
    model: nn.Module, x: torch.Tensor, targets: torch.Tensor, low: float, high: float, steps: int, lr: float
) -> torch.Tensor:
    """The largest margin (B) that each input reached on its way up."""
    x = x.requires_grad_()
    optimizer = torch.optim.Adam([x], lr=lr)
    best = torch.full((len(x),), -torch.inf, device=x.device)
    for step in range(steps + 1):
        logits = logits_of(model(to_float(x)))
        others = logits.scatter(1, targets[:, None], -torch.inf).amax(1)
        margin = logits.gather(1, targets[:, None])[:, 0] - others
        best = torch.maximum(best, margin.detach())
        if step == steps:
            break
        (x.grad,) = torch.autograd.grad(-margin.sum(), x)
        optimizer.step()
        with torch.no_grad():
            x.clamp_(low, high)
    return best


def gamma_p(margins: torch.Tensor) -> float:
    """The probability that the largest of K draws exceeds the largest of K margins, from a Gamma distribution that has
    the mean and variance of the others."""
    first, *rest = margins.double().sort(descending=True).values
    others = torch.stack(rest).clamp(min=1e-6)
    mean, variance = others.mean(), others.var().clamp(min=1e-12)
    below = torch.special.gammainc(mean**2 / variance, first.clamp(min=1e-6) * mean / variance)
    return float(-torch.expm1(len(margins) * below.log()))
