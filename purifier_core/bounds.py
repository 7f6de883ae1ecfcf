"""Bounded activations: what no clean image reaches is cut off. Ours to compare with, not the paper's, and not new.

Each unit's output F (N, C, H, W) becomes min(F, u), with u a high quantile of F over clean images:

    granularity  u             over
    channel      (C, 1, 1)     images and positions
    cube         (1, H, W)     images and channels
    feature      (C, H, W)     images

Nothing is trained and no label is needed. Prior work: "Improved Activation Clipping for Universal Backdoor Mitigation
and Test-Time Detection" (and MM-BD before it), and "UNIT: Backdoor Mitigation via Automated Neural Distribution
Tightening", which find bounds for channels in other ways.
"""

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from purifier_core.checks import ConfigError, one_of
from purifier_core.evaluation import held_out, predict, share, to_float
from purifier_core.inputs import images_of
from purifier_core.progress import progress
from purifier_core.recipes import GRANULARITIES
from purifier_core.sites import Around, Wrapped, channel_sizes, find, first, replace, shapes, to_maps, unwrapped
from purifier_core.training import Effort

QUANTILES = (0.95, 0.98, 0.99, 0.995, 0.999, 0.9999, 1.0)
"""What `bound` chooses from; 1 is the largest value that was seen."""

_MEMORY = 4 * 2**30  # bytes that the kept values may take


class Bound(Around):
    """One wrapped site, and the buffer `upper` that its output is cut off at."""

    def __init__(self, site: nn.Module, upper: torch.Tensor) -> None:
        super().__init__(site)
        self.register_buffer("upper", upper)
        self.upper: torch.Tensor

    def changed(self, maps: torch.Tensor) -> torch.Tensor:
        if any(bounds not in (1, size) for bounds, size in zip(self.upper.shape, maps.shape[1:], strict=True)):
            raise ValueError(
                f"bounds of shape {tuple(self.upper.shape)} do not fit a feature map of shape {tuple(maps.shape[1:])}; "
                "give images of the size that the bounds were made with, or take granularity='channel'"
            )
        return torch.minimum(maps, self.upper)


class Bounded(Wrapped):
    """A model with bounds in it. `quantile` is the one in force, `changed` the share of held-out images whose
    predictions it changes (None where the quantile was given), `effort` what it took."""

    quantile: float
    changed: float | None
    effort: Effort


class Largest:
    """The largest of many values for each of D features, seen in pieces; quantiles near 1 from them are exact."""

    def __init__(self, count: int, lowest: float) -> None:
        self.count = count  # values of each feature that there will be
        self.keep = min(count, int((count - 1) * (1 - lowest)) + 2)
        self.kept = torch.empty(0)

    def add(self, values: torch.Tensor) -> None:
        """Take in values (M, D)."""
        every = torch.cat([self.kept.to(values), values]) if len(self.kept) else values
        self.kept = every.topk(min(self.keep, len(every)), dim=0).values

    def quantile(self, q: float) -> torch.Tensor:
        """The quantile (D) of all values seen, interpolated linearly as torch.quantile does."""
        place = (self.count - 1) * (1 - q)
        low = min(int(place), len(self.kept) - 1)
        high = min(low + 1, len(self.kept) - 1)
        return torch.lerp(self.kept[low], self.kept[high], min(1.0, place - low))


def _features(f: torch.Tensor, granularity: str) -> torch.Tensor:
    """Feature maps (N, C, H, W) as values (M, D), one column for each bound."""
    if granularity == "channel":
        return f.transpose(0, 1).flatten(1).T
    return f.flatten(2).flatten(0, 1) if granularity == "cube" else f.flatten(1)


def _bound_shape(granularity: str, c: int, h: int, w: int) -> tuple[int, int, int]:
    return {"channel": (c, 1, 1), "cube": (1, h, w), "feature": (c, h, w)}[granularity]


def bound(
    model: nn.Module,
    images: torch.Tensor,
    granularity: str = "feature",
    quantile: float | None = None,
    *,
    budget: float = 0.01,
    sites: Sequence[str] | None = None,
    batch_size: int = 100,
    seed: int = 0,
) -> Bounded:
    """A copy of `model`, in eval mode, whose units are bounded at what clean `images` reach: one pass, no labels.

    images: (N, C, H, W), uint8, or float as the model takes them, on the model's device, or a NumPy array. sites: by
    default every unit of the network (`sites.find`). quantile: of each activation over the clean images, in (0, 1]. By
    default a fifth of the images is held out of the bounds, and the smallest of QUANTILES is taken that changes at most
    `budget` of the predictions on them; if all change more, 1, with a warning. The quantiles are exact; the values that
    they need are kept.

    Raises ConfigError for an unknown granularity, a quantile or budget out of range, fewer than 10 images, or where
    the values would take more than 4 GiB, and ValueError for an unusable site.
    """
    one_of("granularity", granularity, GRANULARITIES)
    for name, value in (("quantile", 1.0 if quantile is None else quantile), ("budget", budget)):
        if not 0 < value <= 1:
            raise ConfigError(f"{name}={value!r} is out of range; allowed: above 0, up to 1.")
    images = images_of(images, 10)
    started = time.perf_counter()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).to(images.device)
    working, choosing = (slice(None), slice(0)) if quantile is not None else held_out(len(images))
    model = copy.deepcopy(unwrapped(model)).eval()
    example = to_float(images[:2])
    maps = shapes(model, sites, example) if sites is not None else find(model, example)
    largest = _largest(model, images, order[working], maps, granularity, quantile or QUANTILES[0], batch_size)
    before = predict(model, images[order[choosing]], batch_size) if quantile is None else None
    uppers = {s: torch.empty(_bound_shape(granularity, *shape[1:]), device=images.device) for s, shape in maps.items()}
    bounded = wrap(model, uppers, granularity)
    for q in QUANTILES if quantile is None else (quantile,):
        for site, unit in zip(bounded.sites, bounded.wrappers(), strict=True):
            assert isinstance(unit, Bound)
            unit.upper.copy_(largest[site].quantile(q).reshape(unit.upper.shape))
        bounded.quantile, bounded.changed = q, None
        if before is not None:
            bounded.changed = share(predict(bounded, images[order[choosing]], batch_size) != before)
            if bounded.changed <= budget:
                break
    if bounded.changed is not None and bounded.changed > budget:
        warnings.warn(
            f"no bounds keep the budget: {bounded.changed:.1%} of the held-out predictions change, {budget:.1%} may; "
            "give more images",
            stacklevel=2,
        )
    bounded.effort = Effort(1.0, len(images), time.perf_counter() - started)
    return bounded


def wrap(model: nn.Module, uppers: dict[str, torch.Tensor], granularity: str) -> Bounded:
    """`model` itself with a bound around each site that these bounds name, in eval mode."""
    for site, upper in uppers.items():
        replace(model, site, Bound(model.get_submodule(site), upper))
    return Bounded(model, tuple(uppers), granularity).eval()


@torch.inference_mode()
def _largest(
    model: nn.Module,
    images: torch.Tensor,
    order: torch.Tensor,
    maps: dict[str, torch.Size],
    granularity: str,
    lowest: float,
    batch_size: int,
) -> dict[str, Largest]:
    """For each site the largest activations over the images `order`, as many as quantiles down to `lowest` need."""
    largest: dict[str, Largest] = {}
    memory = 0
    for site, (_, c, h, w) in maps.items():
        bounds = torch.Size(_bound_shape(granularity, c, h, w)).numel()
        largest[site] = Largest(len(order) * c * h * w // bounds, lowest)
        memory += 4 * largest[site].keep * bounds
    if memory > _MEMORY:
        raise ConfigError(
            f"exact {granularity} quantiles of {len(order)} images would keep {memory / 2**30:.1f} GiB; take fewer "
            f"images, a quantile nearer to 1 than {lowest}, fewer sites, or granularity='channel'."
        )

    def note(site: str, module: nn.Module, _inputs: object, output: Any) -> None:
        largest[site].add(_features(to_maps(first(output), channel_sizes(module)), granularity))

    hooks: list[Callable] = []
    for site in maps:
        hooks.append(model.get_submodule(site).register_forward_hook(partial(note, site)).remove)
    try:
        with progress("bounds", total=len(order)) as bar:
            for index in order.split(batch_size):
                model(to_float(images[index]))
                bar.update(len(index))
    finally:
        for remove in hooks:
            remove()
    return largest
