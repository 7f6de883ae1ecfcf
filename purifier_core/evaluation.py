"""The one `predict` and the one `evaluate` of every network."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from purifier_core.checks import ConfigError


class DivergedError(RuntimeError):
    """Training gave a loss or a network that is not a number; there is no result."""


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 images to float in [0, 1], channels_last; no mean or std is subtracted anywhere. Float images stay."""
    if images.is_floating_point():
        return images.to(memory_format=torch.channels_last)
    return images.to(memory_format=torch.channels_last).float().div_(255)


def held_out(count: int) -> tuple[slice, slice]:
    """The clean set in two parts: one to work on, and then a fifth of it to choose an operating point on."""
    cut = count - max(1, round(0.2 * count))
    return slice(0, cut), slice(cut, count)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, `model` is in eval mode; afterwards every module of it is in the mode that it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


_EVALUATED_IN_BF16: ContextVar[bool] = ContextVar("evaluated in bf16", default=False)


@contextmanager
def evaluated_in_bf16(rounded: bool = True) -> Iterator[None]:
    """Inside, `predict` and `answering` run networks under bf16 autocast, as they were trained."""
    token = _EVALUATED_IN_BF16.set(rounded)
    try:
        yield
    finally:
        _EVALUATED_IN_BF16.reset(token)


def answering(device: torch.device) -> torch.autocast:
    """bf16 autocast inside `evaluated_in_bf16`; else the network's own precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=_EVALUATED_IN_BF16.get())


def logits_of(output: Any) -> torch.Tensor:
    """The logits (N, K) in a network's output: itself, its `logits`, or the first tensor of a tuple.

    Raises TypeError for an output that holds none.
    """
    if isinstance(output, torch.Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if logits is None and isinstance(output, (tuple, list)) and output:
        logits = output[0]
    if isinstance(logits, torch.Tensor):
        return logits
    raise TypeError(f"the network gives a {type(output).__name__} without logits; wrap it so that it gives a tensor")


@torch.inference_mode()
def predict(model: Callable[[torch.Tensor], Any], images: torch.Tensor, batch_size: int = 1000) -> torch.Tensor:
    """Predicted classes (N,) of uint8 images, on the images' device. The caller sets eval mode.

    Raises DivergedError where an output is not a finite number: the largest of those would pass for a class.
    """
    with answering(images.device):
        return classes(torch.cat([logits_of(model(to_float(piece))) for piece in images.split(batch_size)]))


def classes(outputs: torch.Tensor) -> torch.Tensor:
    """The predicted classes (N,) behind outputs (N, K); raises DivergedError as `predict` does."""
    if not outputs.isfinite().all():
        raise DivergedError(
            "the network's outputs are not finite numbers; if it was trained here, try a smaller learning rate."
        )
    return outputs.argmax(1)


def logits_only(outputs: torch.Tensor) -> torch.Tensor:
    """Outputs (N, K) that are logits, which margins and losses need.

    Raises ConfigError for probabilities, which sum to 1, and for what is no finite number.
    """
    if not outputs.isfinite().all():
        raise ConfigError("the network's answers to some of the images are no finite numbers.")
    if outputs.shape[1] > 1 and outputs.min() >= 0 and (outputs.sum(1) - 1).abs().max() < 1e-3:
        raise ConfigError("the network gives probabilities; take its softmax off, or let it give their logarithm.")
    return outputs


def share(hits: torch.Tensor) -> float:
    """The exact share of True in a boolean tensor."""
    return int(hits.sum()) / len(hits)


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of images predicted as their label."""
    return share(predict(model, images) == labels)


def evaluate(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, triggered: torch.Tensor, target: int | torch.Tensor
) -> dict[str, float]:
    """ACC over all clean test images, and ASR, the share of the ASR set predicted as `target`; both as fractions.
    target: one class, or one for each image of the ASR set (N,). The model is asked in eval mode, and is in its own
    mode afterwards."""
    with evaluating(model):
        return {"acc": accuracy(model, images, labels), "asr": share(predict(model, triggered) == target)}
