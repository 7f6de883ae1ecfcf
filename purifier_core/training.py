"""The one `fit` that every attack, defense and network shares.

The whole dataset lies on the device as uint8; a batch is gathered, augmented and converted there. All random
draws come from a CPU generator, an epoch at a time, so that they are the same on every device.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from purifier_core.checkpoints import Carried, begin
from purifier_core.evaluation import DivergedError, evaluating, to_float
from purifier_core.graphs import Replayed
from purifier_core.layout import safely
from purifier_core.progress import progress
from purifier_core.recipes import Recipe

Loss = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
"""From (model, images (B, 3, H, W) float in [0, 1], labels (B,)) to a scalar."""


Watch = Callable[[nn.Module, int], Any]
"""Called with a network and the epochs that its training has done. It must not change the network."""


@dataclass(frozen=True)
class Augment:
    """Per-image augmentation: a horizontal flip with p = 0.5, and a random crop after zero-padding by `pad`."""

    flip: bool = False
    pad: int = 4


NO_AUGMENT = Augment(flip=False, pad=0)


@dataclass
class Effort:
    """What a computation cost: it adds up over the stages of a defense."""

    epochs: float = 0.0
    images: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)  # mean training loss of every epoch

    def __iadd__(self, other: "Effort") -> "Effort":
        self.epochs += other.epochs
        self.images += other.images
        self.seconds += other.seconds
        self.losses += other.losses
        return self


def cross_entropy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The plain training loss."""
    return F.cross_entropy(model(x), y)


class Augmented:
    """From indices to augmented float images. `draw` chooses the shifts and flips of a whole epoch; they are written
    into the same tensors every time, as a CUDA graph wants it."""

    def __init__(self, images: torch.Tensor, augment: Augment) -> None:
        self.images = images
        self.augment = augment
        self.shifts = torch.zeros(2, len(images), dtype=torch.int64, device=images.device)
        self.flips = torch.zeros(len(images), dtype=torch.bool, device=images.device)

    def draw(self, generator: torch.Generator) -> None:
        """Choose anew, with a generator of the CPU."""
        if self.augment != NO_AUGMENT:
            count = len(self.images)
            self.shifts.copy_(torch.randint(0, 2 * self.augment.pad + 1, (2, count), generator=generator))
            self.flips.copy_((torch.rand(count, generator=generator) < 0.5) & self.augment.flip)

    def __call__(self, index: torch.Tensor) -> torch.Tensor:
        if self.augment == NO_AUGMENT:
            return to_float(self.images[index])
        height, width = self.images.shape[2:]
        padded = F.pad(self.images[index].permute(0, 2, 3, 1), (0, 0) + (self.augment.pad,) * 4)  # (B, H+2p, W+2p, 3)
        crops = padded.unfold(1, height, 1).unfold(2, width, 1)  # (B, 2p+1, 2p+1, 3, H, W): every shift, as a view
        chosen = crops[torch.arange(len(index), device=index.device), self.shifts[0, index], self.shifts[1, index]]
        if self.augment.flip:
            chosen = torch.where(self.flips[index, None, None, None], chosen.flip(3), chosen)
        return to_float(chosen)


def batches(order: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    """Consecutive pieces of `order`; a last piece of one image joins the one before (BatchNorm needs two)."""
    pieces = order.split(size)
    if len(pieces) > 1 and len(pieces[-1]) == 1:
        pieces = (*pieces[:-2], torch.cat(pieces[-2:]))
    return pieces


def fit(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    recipe: Recipe,
    *,
    seed: int,
    augment: Augment = Augment(),
    loss: Loss = cross_entropy,
    parameters: Iterable[nn.Parameter] | None = None,
    after_step: Callable[[], Any] | None = None,
    watch: Watch | None = None,
    carried: Sequence[Carried] = (),
    steps: int | None = None,
    graph: bool | None = None,
    title: str = "training",
) -> Effort:
    """Train `model` in place by SGD on uint8 `images` (N, 3, H, W) and `labels` (N,), and leave it in eval mode.

    The caller sets train or eval mode beforehand. `parameters`: what to update, all by default. `watch` is called
    with `model`, in eval mode, after every epoch. `carried`: what `loss` keeps from batch to batch, such as a random
    stream of its own; inside `checkpoints` it is kept with the rest. `steps` ends the training after that many batches
    instead of `recipe.epochs`. `graph`: whether a GPU may replay the step (see `graphs.Replayed`), by default where
    the loss is the plain one. The same seed on the CPU gives bit-identical weights. Raises DivergedError as soon as an
    epoch's mean loss is not finite.
    """
    chosen = list(model.parameters() if parameters is None else parameters)
    on_gpu = images.device.type == "cuda"
    rate = torch.tensor(recipe.lr, device=images.device)  # for a GPU, where a graph reads it anew
    optimizer = torch.optim.SGD(
        chosen,
        lr=rate if on_gpu else recipe.lr,
        fused=on_gpu or torch.get_num_threads() > 1,  # rounds otherwise; results of one thread stay as they were
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        dampening=recipe.dampening,
        nesterov=recipe.nesterov,
    )
    generator = torch.Generator().manual_seed(seed)
    per_epoch = len(batches(torch.arange(len(images)), recipe.batch_size))
    epochs = recipe.epochs if steps is None else math.ceil(steps / per_epoch)
    remaining = steps if steps is not None else epochs * per_epoch
    batch, total = Augmented(images, augment), torch.zeros((), device=images.device)

    def forget() -> None:
        optimizer.zero_grad(set_to_none=True)

    def set_rate(epoch: float) -> None:
        rate.fill_(recipe.lr_at(epoch))
        if not on_gpu:
            optimizer.param_groups[0]["lr"] = recipe.lr_at(epoch)

    def eager(piece: torch.Tensor) -> None:
        forget()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.bf16):
            value = loss(model, batch(piece), labels[piece])
        value.backward()
        optimizer.step()
        total.add_(value.detach() * len(piece))

    def state() -> list[torch.Tensor]:
        momentum = [value for buffers in optimizer.state.values() for value in buffers.values() if value is not None]
        return [*chosen, *model.buffers(), *momentum, total]

    graph = loss is cross_entropy if graph is None else graph
    step = Replayed(eager, recipe.batch_size, len(chosen), state, forget) if on_gpu and graph else eager
    effort, first = Effort(), 0
    own = set(model.parameters())
    apart = [parameter for parameter in chosen if parameter not in own]
    named = {"title": title, "seed": seed, "recipe": asdict(recipe), "augment": asdict(augment), "steps": steps}
    place = begin(named | {"images": len(images)}, (generator, *carried))
    if place and (saved := place.read()):
        first, remaining, effort = saved["epochs"], saved["remaining"], Effort(**saved["effort"])
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        with torch.no_grad():
            for parameter, value in zip(apart, saved["apart"], strict=True):
                parameter.copy_(value)
    started = time.perf_counter() - effort.seconds
    planned = min(epochs * len(images), effort.images + remaining * recipe.batch_size)
    with torch.enable_grad(), safely(model), progress(title, total=planned) as bar:
        bar.update(effort.images)
        for epoch in range(first, epochs):
            set_rate(epoch)
            order = torch.randperm(len(images), generator=generator).to(images.device)
            batch.draw(generator)
            pieces = batches(order, recipe.batch_size)[:remaining]
            remaining -= len(pieces)
            total.zero_()
            with drawing_from(seed + epoch, images.device):
                for number, piece in enumerate(pieces):
                    if recipe.cycle:
                        set_rate(epoch + (number + 0.5) / len(pieces))
                    step(piece)
                    if after_step is not None:
                        after_step()
                    bar.update(len(piece))
            count = sum(map(len, pieces))
            mean = float(total) / count
            bar.set_postfix_str(f"epoch {epoch + 1}/{epochs} loss {mean:.4f}", refresh=False)
            if not math.isfinite(mean):
                raise DivergedError(f"{title}: the loss is {mean} in epoch {epoch + 1}; try a smaller learning rate.")
            effort += Effort(count / len(images), count, 0.0, [round(mean, 6)])
            if watch is not None:
                paused = time.perf_counter()
                with evaluating(model):
                    watch(model, epoch + 1)
                started += time.perf_counter() - paused  # watching is no part of the effort
            effort.seconds = time.perf_counter() - started
            if place:
                place.write(
                    {
                        "epochs": epoch + 1,
                        "remaining": remaining,
                        "effort": asdict(effort),
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "apart": [parameter.detach() for parameter in apart],
                    }
                )
    effort.seconds = time.perf_counter() - started
    model.eval()
    return effort


@contextmanager
def drawing_from(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, layers that draw for themselves, such as dropout, draw from `seed`; the caller's streams do not move."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed % 2**63)
        yield


@contextmanager
def batch_statistics_alone(model: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm layers in training mode normalise by the batch and leave their running statistics alone."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
