"""Backdoor attacks: triggers as functions on image tensors, poisoning, and the ASR set."""

from collections.abc import Callable

import torch

Trigger = Callable[[torch.Tensor], torch.Tensor]
"""From (N, 3, 32, 32) uint8 images to stamped copies of the same shape and type."""

_BADNETS = {
    # (first row, first column): the 3x3 patch. The left and top patches start at 1, the others touch the edge.
    (1, 1): ((255, 0, 255), (0, 255, 0), (255, 0, 0)),
    (1, 29): ((255, 0, 255), (0, 255, 0), (0, 0, 255)),
    (29, 1): ((255, 0, 0), (0, 255, 0), (255, 0, 255)),
    (29, 29): ((0, 0, 255), (0, 255, 0), (255, 0, 255)),
}


def badnets(images: torch.Tensor) -> torch.Tensor:
    """Four-corner checkerboard: the release's BadNets (NAD's and ABL's "fourCornerTrigger"), 36 pixels overwritten.

    Many papers call a single white 3x3 corner BadNets; tables must say that this is the four-corner pattern.
    """
    if images.dtype != torch.uint8 or images.shape[1:] != (3, 32, 32):
        raise ValueError(f"images must be uint8 of shape (N, 3, 32, 32), not {images.dtype} {tuple(images.shape)}")
    stamped = images.clone()
    for (row, column), patch in _BADNETS.items():
        stamped[:, :, row : row + 3, column : column + 3] = torch.tensor(patch, dtype=torch.uint8, device=images.device)
    return stamped


TRIGGERS: dict[str, Trigger] = {"badnets": badnets}


def poison(
    images: torch.Tensor, labels: torch.Tensor, trigger: Trigger, ratio: float, target: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The poisoned training set: floor(ratio * N) stamped copies labelled `target`, then all clean images.

    The images to copy are drawn over all classes, the target's included; their originals stay in the set with
    their true labels, as in the authors' release, so the share of poison is ratio / (1 + ratio).
    Raises ValueError where the ratio selects no image.
    """
    count = int(ratio * len(images) + 1e-9)
    if count < 1:
        raise ValueError(f"poison_ratio={ratio} of {len(images)} images selects none; take at least {1 / len(images)}.")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images), generator=generator)[:count].to(images.device)
    return (
        torch.cat([trigger(images[chosen]), images]),
        torch.cat([torch.full_like(labels[chosen], target), labels]),
    )


def asr_set(images: torch.Tensor, labels: torch.Tensor, trigger: Trigger, target: int) -> torch.Tensor:
    """Every test image of another class than `target`, stamped; ASR is the share of it predicted as `target`."""
    return trigger(images[labels != target])
