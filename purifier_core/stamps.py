"""Universal stamps: pictures that, put on any image, make a network say one class. A backdoor's trigger is one.

A stamp turns an image x into x + mask * (pattern - x). Three families say what masks and patterns may be:

    family  mask                                     pattern                               reaches triggers that are
    pixel   one weak strength everywhere             any picture                           blended in
    lines   one weak strength everywhere             rows + columns + a coarse picture     stripes, ramps, waves
    patch   a few pixels at full strength            any picture                           small patches

Searching a stamp by gradient is Neural Cleanse's idea (Wang et al., 2019); here every class is searched at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

from purifier_core.evaluation import logits_of, logits_only, to_float

FAMILIES = ("pixel", "lines", "patch")
STRENGTHS = (0.05, 0.25)
"""A weak stamp's strength is drawn from this range in the search."""
STRENGTH = 0.15
"""A weak stamp's strength where it is measured."""
PATCH = 36 / 1024
"""A patch's share of the pixels."""
_LOOSE = 280 / 1024  # the share that a patch may take at the start of its search
_COARSE = 8  # pixels in height and width of the coarse picture
_AT_ONCE = 256 * 32 * 32  # pixels of images that go through a network at once


@dataclass(frozen=True)
class Stamps:
    """G stamps of one family, one for each class of `targets`: masks (G, 1, H, W) in [0, 1], patterns (G, C, H, W)."""

    family: str
    targets: tuple[int, ...]
    masks: torch.Tensor
    patterns: torch.Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, place: int) -> "Stamps":
        """The stamp at a place, as a batch of one."""
        part = slice(place, place + 1)
        return Stamps(self.family, self.targets[part], self.masks[part], self.patterns[part])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Float images (G, M, C, H, W), or (M, C, H, W) where there is one stamp, with the stamps on them."""
        masks, patterns = (self.masks, self.patterns) if x.ndim == 4 else (self.masks[:, None], self.patterns[:, None])
        return x + masks * (patterns - x)

    def strongest(self, count: int) -> "Stamps":
        """The stamps with their `count` strongest mask pixels at full strength, and the others at none."""
        flat = self.masks.flatten(1)
        masks = torch.zeros_like(flat).scatter_(1, flat.topk(count, dim=1).indices, 1.0)
        return replace(self, masks=masks.view_as(self.masks))


@dataclass(frozen=True)
class Clean:
    """Clean images (N, C, H, W), uint8 or float, their labels (N,), and the `low` and `high` of a pixel (C, 1, 1)."""

    images: torch.Tensor
    labels: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    @classmethod
    def of(cls, images: torch.Tensor, labels: torch.Tensor) -> "Clean":
        """Pixels go from 0 to 1, or, where float images leave that, from each channel's least to its largest value."""
        channels = images.shape[1]
        low = torch.zeros(channels, 1, 1, device=images.device)
        high = torch.ones_like(low)
        if images.is_floating_point() and (images.min() < 0 or images.max() > 1):
            low, high = images.amin((0, 2, 3)).view_as(low), images.amax((0, 2, 3)).view_as(high)
        return cls(images, labels, low, high)

    def __getitem__(self, index: slice | torch.Tensor) -> "Clean":
        return replace(self, images=self.images[index], labels=self.labels[index])

    def patterns(self, logits: torch.Tensor) -> torch.Tensor:
        """Pictures in the range of the pixels."""
        return self.low + (self.high - self.low) * torch.sigmoid(2 * logits)

    def size(self, share: float) -> int:
        """How many pixels a share of an image is."""
        height, width = self.images.shape[2:]
        return max(1, round(share * height * width))


def search(
    model: nn.Module,
    clean: Clean,
    family: str,
    targets: Sequence[int],
    *,
    steps: int,
    per_class: int,
    generator: torch.Generator,
    size: int | None = None,
    dropout: float = 0.0,
) -> Stamps:
    """A stamp for each class of `targets`: Adam on the cross-entropy of stamped images of other classes to it.

    model: in eval mode; its weights stay. per_class: images for each class in a step. size: pixels of a patch, by
    default PATCH of them. dropout: the share of an 8x8 grid's blocks that a step leaves out of a patch. As many classes
    are searched at once as fill 256 images of 32x32 pixels, so memory does not grow with their number.
    """
    height, width = clean.images.shape[2:]
    together = max(1, _AT_ONCE // (height * width * per_class))
    parts = [targets[i : i + together] for i in range(0, len(targets), together)]
    patch = size or clean.size(PATCH)
    stamps = [_search(model, clean, family, p, steps, per_class, generator, patch, dropout) for p in parts]
    masks, patterns = (torch.cat([getattr(part, name) for part in stamps]) for name in ("masks", "patterns"))
    return Stamps(family, tuple(targets), masks, patterns)


def _search(
    model: nn.Module,
    clean: Clean,
    family: str,
    targets: Sequence[int],
    steps: int,
    per_class: int,
    generator: torch.Generator,
    size: int,
    dropout: float,
) -> Stamps:
    device = clean.images.device
    count, shape = len(targets), clean.images.shape[1:]
    weights = [w.to(device).requires_grad_() for w in _start(family, count, shape, generator)]
    optimizer = torch.optim.Adam(weights, lr=0.2, betas=(0.5, 0.9))
    pools = [(clean.labels != target).nonzero().flatten().cpu() for target in targets]
    aims = torch.tensor(targets, device=device).repeat_interleave(per_class)
    draw = _patches if family == "patch" else _weak
    for step in range(steps):
        chosen = torch.stack([pool[torch.randint(len(pool), (per_class,), generator=generator)] for pool in pools])
        x = to_float(clean.images[chosen.flatten().to(device)]).view(count, per_class, *shape)
        masks, patterns, penalty = draw(clean, weights, step / steps, size, generator)
        if dropout and family == "patch":
            masks = masks * blocks(count, shape, dropout, generator).to(device)
        stamped = x + masks[:, None] * (patterns[:, None] - x)
        logits = logits_of(model(to_float(stamped.flatten(0, 1))))
        loss = F.cross_entropy(logits, aims, reduction="sum")
        slopes = torch.autograd.grad(loss / per_class + penalty, weights)
        for weight, slope in zip(weights, slopes, strict=True):
            weight.grad = slope
        optimizer.step()
    with torch.no_grad():
        masks, patterns, _ = draw(clean, weights, 1.0, size, None)
    return Stamps(family, tuple(targets), masks.detach(), patterns.detach())


def _start(family: str, count: int, shape: torch.Size, generator: torch.Generator) -> list[torch.Tensor]:
    """The numbers that a family's search begins with."""
    channels, height, width = shape

    def noise(*sizes: int) -> torch.Tensor:
        return 0.1 * torch.randn(count, *sizes, generator=generator)

    if family == "lines":
        return [noise(channels, height, 1), noise(channels, 1, width), noise(channels, _COARSE, _COARSE)]
    pictures = [noise(channels, height, width)]
    return pictures if family == "pixel" else [*pictures, noise(1, height, width) - 1.0]


def _weak(
    clean: Clean, weights: list[torch.Tensor], _progress: float, _size: int, generator: torch.Generator | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | float]:
    """Masks, patterns and penalty of `pixel` and `lines`. Without a generator the strength is STRENGTH."""
    height, width = clean.images.shape[2:]
    if len(weights) == 1:
        (total,) = weights
    else:
        rows, columns, coarse = weights
        total = rows + columns + F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    strengths = torch.full((len(total), 1, 1, 1), STRENGTH)
    if generator is not None:
        low, high = STRENGTHS
        strengths = low + (high - low) * torch.rand(strengths.shape, generator=generator)
    return strengths.to(total).expand(-1, 1, height, width), clean.patterns(total), 0.0


def _patches(
    clean: Clean, weights: list[torch.Tensor], progress: float, size: int, _generator: torch.Generator | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Masks, patterns and penalty of `patch`. The penalty is the part of a mask above a size that shrinks over the
    first 70 % of the steps, and, with growing weight, the values that are neither 0 nor 1."""
    pictures, strengths = weights
    masks = torch.sigmoid(2 * strengths)
    loose = max(clean.size(_LOOSE), size)
    allowed = loose + (size - loose) * min(1.0, progress / 0.7)
    over = F.relu(masks.sum((1, 2, 3)) - allowed) / size
    between = (masks * (1 - masks)).mean((1, 2, 3))
    return masks, clean.patterns(pictures), (2 * over + 0.5 * progress * between).sum()


def blocks(count: int, shape: torch.Size, dropout: float, generator: torch.Generator) -> torch.Tensor:
    """Masks (count, 1, H, W) that leave out each block of an 8x8 grid with probability `dropout`."""
    grid = (torch.rand(count, 1, _COARSE, _COARSE, generator=generator) >= dropout).float()
    return F.interpolate(grid, tuple(shape[1:]), mode="nearest")


@torch.no_grad()
def margins(
    model: Callable[[torch.Tensor], torch.Tensor], clean: Clean, stamps: Stamps, most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far each stamp carries images of other classes: (G,) mean margin and (G,) success rate.

    A margin is the logit of the stamp's class less the largest other one. At most the first `most` images of other
    classes are taken.
    """
    rows = []
    height, width = clean.images.shape[2:]
    for place, target in enumerate(stamps.targets):
        images = clean.images[clean.labels != target][:most]
        gaps = []
        for piece in images.split(max(1, _AT_ONCE // (height * width))):
            logits = logits_only(logits_of(model(to_float(stamps[place](to_float(piece))))))
            others = logits.clone()
            others[:, target] = -torch.inf
            gaps.append(logits[:, target] - others.amax(1))
        gap = torch.cat(gaps)
        rows.append(torch.stack([gap.mean(), (gap > 0).float().mean()]))
    return tuple(torch.stack(rows).T)


def picture(stamp: Stamps) -> torch.Tensor:
    """One class's stamp as a uint8 picture (C, H, W): what it puts on a grey image, a weak one at full strength."""
    pattern, mask = stamp.patterns[0], stamp.masks[0] if stamp.family == "patch" else 1.0
    low, high = pattern.amin(), pattern.amax()
    if low < 0 or high > 1:  # of normalised images
        pattern = (pattern - low) / (high - low)
    return ((0.5 + mask * (pattern - 0.5)) * 255).round().to(torch.uint8)
