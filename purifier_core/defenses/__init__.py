"""The baselines, one file each, with one shape: a model and clean data in, a `Defended` out.

Every function takes (model, images, labels) with uint8 images (N, 3, H, W) and labels (N,) on the model's
device, leaves the given model alone, and takes its randomness from `seed` alone.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

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


def held_out(count: int, share: float = 0.2) -> tuple[slice, slice]:
    """The clean set's two parts: the first to work on, the last `share` of it to choose an operating point on."""
    cut = count - max(1, round(share * count))
    return slice(0, cut), slice(cut, count)
