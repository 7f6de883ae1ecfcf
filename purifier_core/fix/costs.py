"""What Purifier's units will cost on a network, said before they are trained."""

import copy
import time
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from purifier_core.evaluation import logits_of, to_float
from purifier_core.layout import safely
from purifier_core.recipes import GRANULARITIES, Recipe
from purifier_core.sites import shapes

MUCH = 256 * 2**20  # bytes of heads
LONG = 3600  # seconds of training


def heads(model: nn.Module, images: torch.Tensor, sites: Sequence[str], outputs: int) -> dict[str, int]:
    """Bytes that the heads of each granularity add to the network."""
    maps = shapes(model, sites, to_float(images[:2])).values()
    values = {"channel": [c for _, c, _, _ in maps], "cube": [h * w for _, _, h, w in maps]}
    values["feature"] = [c * h * w for _, c, h, w in maps]
    return {granularity: 4 * outputs * sum(count + 1 for count in values[granularity]) for granularity in GRANULARITIES}


def estimate(
    model: nn.Module, images: torch.Tensor, sites: Sequence[str], outputs: int, recipe: Recipe, granularity: str
) -> list[str]:
    """Sentences on the memory and the time that `purify` will take, and the cheaper choice where it is much."""
    sizes = heads(model, images, sites, outputs)
    seconds = 2 * recipe.epochs * len(images) * _step(model, images[: recipe.batch_size], sizes[granularity])
    lines = [f"{granularity} units add {sizes[granularity] / 2**20:,.0f} MiB; training takes about {_time(seconds)}"]
    if sizes[granularity] > MUCH or seconds > LONG:
        lines.append(
            f"cheaper: --method channel adds {sizes['channel'] / 2**20:,.0f} MiB; fewer --epochs and images take less "
            "time; --method bound-feature trains nothing"
        )
    return lines


def _step(model: nn.Module, images: torch.Tensor, bytes_of_heads: int) -> float:
    """Seconds that a training step takes for one image: one step of the network, measured, and the heads' share."""
    x, model = to_float(images), copy.deepcopy(model).requires_grad_(True)
    started = time.perf_counter()
    with safely(model):
        logits = logits_of(model(x))
        F.cross_entropy(logits, logits.argmax(1)).backward()
    if x.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / len(images)
    own = sum(p.numel() * p.element_size() for p in model.parameters())
    return seconds * (1 + bytes_of_heads / max(own, 1) / len(images))


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{max(1, round(seconds))} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
