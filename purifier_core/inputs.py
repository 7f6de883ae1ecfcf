"""Images and labels as people have them, as the tensors that the methods take."""

from typing import Any

import torch

from purifier_core.checks import ConfigError


def images_of(images: Any, least: int) -> torch.Tensor:
    """Images as one tensor (N, C, H, W) with N of at least `least`; a NumPy array is taken too.

    Raises ConfigError for anything else, with the way out.
    """
    if not isinstance(images, torch.Tensor):
        if not hasattr(images, "__array_interface__"):
            raise ConfigError(
                f"images are a {type(images).__name__}; needed: one tensor (N, C, H, W). From a DataLoader: "
                "torch.cat([images for images, _ in loader])."
            )
        images = torch.from_numpy(images)
    if images.ndim != 4 or len(images) < least:
        few = {2: "at least two images"}.get(least, f"at least {least}")
        raise ConfigError(f"images of shape {tuple(images.shape)}; needed: {few}, as (N, C, H, W).")
    if images.shape[3] in (1, 3) and min(images.shape[1:3]) > 3:
        raise ConfigError(
            f"images of shape {tuple(images.shape)} have their channels last; give images.permute(0, 3, 1, 2)."
        )
    if images.is_floating_point() and not images.isfinite().all():
        raise ConfigError("some of the images hold values that are no finite numbers.")
    if images.dtype == torch.float64:
        return images.float()
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ConfigError(f"images are {images.dtype}; needed: uint8 from 0 to 255, or floats as the model takes them.")
    return images


def labels_of(labels: Any, count: int) -> torch.Tensor:
    """Labels as int64 (N,). One-hot rows and floats with whole values are taken too.

    Raises ConfigError for anything else.
    """
    labels = torch.as_tensor(labels)
    if labels.ndim == 2 and labels.shape[1] > 1:
        if not (((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all()):
            raise ConfigError("labels have two dimensions and are not one-hot; needed: a class number for each image.")
        labels = labels.long().argmax(1)
    labels = labels.reshape(-1) if labels.ndim == 2 else labels
    if labels.ndim != 1 or len(labels) != count:
        raise ConfigError(f"labels of shape {tuple(labels.shape)} for {count} images; needed: one for each.")
    if labels.is_floating_point() and not labels.eq(labels.round()).all():
        raise ConfigError("labels are no whole numbers; needed: a class number for each image.")
    if labels.is_complex():
        raise ConfigError(f"labels are {labels.dtype}; needed: a class number for each image.")
    return labels.long()


def check_range(labels: torch.Tensor, classes: int) -> None:
    """Raise ConfigError for labels (N,) that are none of the network's classes."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ConfigError(f"labels from {low} to {high} are out of range; allowed: 0 to {classes - 1}.")
