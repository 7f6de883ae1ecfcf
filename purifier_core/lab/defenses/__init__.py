"""The baselines, one file each, with one shape: a model and clean data in, a `Defended` out.

Every function takes (model, images, labels) with uint8 images (N, 3, H, W) and labels (N,) on the model's
device, leaves the given model alone, and takes its randomness from `seed` alone.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from purifier_core.evaluation import to_float
from purifier_core.training import Effort


@dataclass
class Defended:
    """A defended model in eval mode, what it cost, and what the method wants recorded.

    sweep: further operating points of the method as {label: model}, to be measured but never chosen by.
    """

    model: nn.Module
    effort: Effort
    diagnostics: dict[str, Any] = field(default_factory=dict)
    sweep: dict[str, nn.Module] = field(default_factory=dict)


@torch.no_grad()
def recount_batchnorm(model: nn.Module, images: torch.Tensor, batch_size: int = 128) -> None:
    """Set every BatchNorm's statistics to the average over one pass of uint8 images, batches weighted by size."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    momenta = [m.momentum for m in layers]
    for layer in layers:
        layer.reset_running_stats()
    model.train()
    seen = 0
    for piece in images.split(batch_size):
        seen += len(piece)
        for layer in layers:
            layer.momentum = len(piece) / seen
        model(to_float(piece))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.eval()
