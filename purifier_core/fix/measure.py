"""A network before and after: rates with their intervals, what its units suppress, and where in an image."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from purifier_core.evaluation import predict, to_float
from purifier_core.purifier import Purified
from purifier_core.sites import Wrapped, channel_sizes, first, to_maps

_Z = 1.959964  # the normal distribution's 97.5 % quantile


@dataclass(frozen=True)
class Rate:
    """A share of images, with its 95 % interval."""

    hits: int
    count: int

    @property
    def share(self) -> float:
        """The share, from 0 to 1."""
        return self.hits / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % score interval, from 0 to 1."""
        n, p = self.count, self.share
        middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z / (1 + _Z**2 / n) * (p * (1 - p) / n + _Z**2 / (4 * n**2)) ** 0.5
        return max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


@dataclass(frozen=True)
class Suppressed:
    """What the units suppress: a share for each unit (U,) and for each image (N,), as `suppression` defines it."""

    by_unit: torch.Tensor
    by_image: torch.Tensor


@dataclass(frozen=True)
class Comparison:
    """Predicted classes (N,) of clean images before and after, and (M,) of triggered ones where there are such.

    labels (N,), triggered_labels (M,): the classes that the images are of. target: the class that the ASR counts;
    `guessed` if it is only the one most predicted before.
    """

    sites: tuple[str, ...]
    before: torch.Tensor
    after: torch.Tensor
    suppressed: Suppressed
    labels: torch.Tensor | None = None
    triggered_before: torch.Tensor | None = None
    triggered_after: torch.Tensor | None = None
    triggered_suppressed: Suppressed | None = None
    triggered_labels: torch.Tensor | None = None
    target: int | None = None
    guessed: bool = False

    @property
    def drop(self) -> float | None:
        """The accuracy that was lost, as a share; None without labels."""
        if self.labels is None:
            return None
        before, after = self.rates()["ACC"]
        return before.share - after.share

    @property
    def changed(self) -> Rate:
        """The clean images that are predicted as another class than before."""
        return rate(self.before.ne(self.after))

    def rates(self) -> dict[str, tuple[Rate, Rate]]:
        """ACC where there are labels, ASR where there are triggered images, and RA where both are, before and after.

        Where the classes of the triggered images are known, images of the target class are left out: predicting that
        class for them is right. RA, the robust accuracy, is the share predicted as their own class.
        """
        rates = {}
        if self.labels is not None:
            rates["ACC"] = (rate(self.before.eq(self.labels)), rate(self.after.eq(self.labels)))
        if self.target is not None and self.triggered_before is not None and self.triggered_after is not None:
            labels, pair = self.triggered_labels, (self.triggered_before, self.triggered_after)
            others = torch.ones_like(pair[0], dtype=torch.bool) if labels is None else labels.ne(self.target)
            if others.any():
                before, after = (rate(predicted.eq(self.target)[others]) for predicted in pair)
                rates["ASR"] = (before, after)
                if labels is not None:
                    before, after = (rate(predicted.eq(labels)[others]) for predicted in pair)
                    rates["RA"] = (before, after)
        return rates

    def most(self) -> list[tuple[str, float, float | None]]:
        """The sites with their units' shares over clean and over triggered images, the most suppressing first."""
        stamped = self.triggered_suppressed
        triggered = [None] * len(self.sites) if stamped is None else stamped.by_unit.tolist()
        rows = zip(self.sites, self.suppressed.by_unit.tolist(), triggered, strict=True)
        return sorted(rows, key=lambda row: -max(row[1], row[2] or 0.0))


def compare(
    model: nn.Module,
    network: Wrapped,
    images: torch.Tensor,
    labels: torch.Tensor | None = None,
    triggered: torch.Tensor | None = None,
    target: int | None = None,
    batch_size: int = 64,
) -> Comparison:
    """A model and its purified network on clean images (N, 3, H, W) and, where given, labels and triggered images.

    Without `target` the ASR counts the class that the model predicts most often for the triggered images.
    Raises DivergedError where an output is no finite number.
    """
    entries: dict[str, Any] = {}
    if triggered is not None:
        entries["triggered_before"] = predict(model, triggered, batch_size)
        entries["triggered_after"] = predict(network, triggered, batch_size)
        entries["triggered_suppressed"] = suppression(network, triggered, batch_size)
        entries["guessed"] = target is None
        entries["target"] = int(entries["triggered_before"].mode().values) if target is None else target
    return Comparison(
        network.sites,
        predict(model, images, batch_size),
        predict(network, images, batch_size),
        suppression(network, images, batch_size),
        labels,
        **entries,
    )


@torch.inference_mode()
def suppression(network: Wrapped, images: torch.Tensor, batch_size: int = 64) -> Suppressed:
    """How much of a unit's activation F the unit takes away, over images (N, C, H, W).

    Bounds: sum(F - min(F, u)) / sum(|F|), over all images for a unit, over all units for an image. Purifier's masks
    m: the mean of 1 - |F m| / |F| in Euclidean norms, not below 0, over the images for a unit, over the units for an
    image.
    """
    units = network.wrappers()
    shares = isinstance(network, Purified)
    cut = torch.zeros(len(images), len(units), dtype=torch.float64)
    total = torch.ones_like(cut) if shares else torch.zeros_like(cut)
    start = 0

    def note(number: int, _unit: nn.Module, given: torch.Tensor, left: torch.Tensor) -> None:
        f, rest, rows = given.double().flatten(1), left.double().flatten(1), slice(start, start + len(given))
        if shares:
            cut[rows, number] = (1 - rest.norm(dim=1) / f.norm(dim=1).clamp(min=1e-12)).clamp(min=0).cpu()
        else:
            cut[rows, number], total[rows, number] = (f - rest).sum(1).cpu(), f.abs().sum(1).cpu()

    with _watching(network, note):
        for piece in images.split(batch_size):
            network(to_float(piece))
            start += len(piece)
    least = 1e-12  # a unit may be silent
    return Suppressed(cut.sum(0) / total.sum(0).clamp(min=least), cut.sum(1) / total.sum(1).clamp(min=least))


@torch.inference_mode()
def cuts(network: Wrapped, images: torch.Tensor, batch_size: int = 64) -> torch.Tensor:
    """Where bounds cut images (N, C, H, W): heat (N, H, W), the share of activation that is cut, summed over units.

    A unit's cut F - min(F, u) is summed over channels, divided by the unit's mean |F| over these images and positions,
    and enlarged to the images' size. Units of tokens have no place in the image and are left out.
    """
    heat = torch.zeros(len(images), *images.shape[2:])
    size = heat.shape[1:]
    start = 0

    def note(_number: int, unit: nn.Module, f: torch.Tensor, left: torch.Tensor) -> None:
        if f.ndim != 4:
            return
        sizes = channel_sizes(unit.get_submodule("site"))
        mean = to_maps(f, sizes).abs().sum(1).mean().clamp(min=1e-12)
        cut = to_maps(f - left, sizes).sum(1, keepdim=True) / mean
        heat[start : start + len(f)] += functional.interpolate(cut, size, mode="bilinear")[:, 0].cpu()

    with _watching(network, note):
        for piece in images.split(batch_size):
            network(to_float(piece))
            start += len(piece)
    return heat


@contextmanager
def _watching(network: Wrapped, note: Callable[[int, nn.Module, torch.Tensor, torch.Tensor], None]) -> Iterator[None]:
    """Inside, `note` is called with each unit's number, the unit, its site's output and its own; of a tuple the map."""
    given: dict[int, torch.Tensor] = {}

    def keep(number: int, _site: nn.Module, _inputs: object, output: Any) -> None:
        given[number] = first(output)

    def compare(number: int, unit: nn.Module, _inputs: object, output: Any) -> None:
        note(number, unit, given.pop(number), first(output))

    hooks = []
    for number, unit in enumerate(network.wrappers()):
        hooks += [unit.get_submodule("site").register_forward_hook(partial(keep, number))]
        hooks += [unit.register_forward_hook(partial(compare, number))]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def rate(hits: torch.Tensor) -> Rate:
    """The share of True in a boolean tensor."""
    return Rate(int(hits.sum()), len(hits))
