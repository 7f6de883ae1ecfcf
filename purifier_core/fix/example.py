"""A backdoored network of this project, as if it were the reader's own."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from purifier_core.checks import one_of
from purifier_core.lab.cells import TARGET_CLASS, Cell
from purifier_core.lab.compute import Work
from purifier_core.lab.draws import clean_images
from purifier_core.lab.records import Store
from purifier_core.recipes import GRANULARITIES

PARAMETERS = ("attack", "granularity", "clean_size", "seed", "profile", "device")


@dataclass(frozen=True)
class Example:
    """A network, what its owner has for its repair, and what only its attacker has.

    images (N, 3, 32, 32) uint8 and labels (N,) are clean; the test images are for the measurement, and `triggered` are
    those of them that are not of class `target`, stamped. `fresh` makes the network anew, without its weights.
    """

    about: str
    model: nn.Module
    fresh: Callable[[], nn.Module]
    images: torch.Tensor
    labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    triggered: torch.Tensor
    target: int


def make(attack: str, granularity: str, clean_size: int, seed: int, profile: str, device: str) -> Example:
    """VGG-16 with an attack's backdoor, on MNIST's digits; trained where it is not cached.

    granularity is that of the repair, and only checked. clean_size is on the scale of MNIST's 60,000 images. Raises
    ConfigError for a value that cannot be used.
    """
    one_of("granularity", granularity, GRANULARITIES)
    cell = Cell(attack=attack, defense=granularity, clean_size=clean_size, seed=seed, profile=profile)
    work = Work(Store(), profile, cell.dataset, device)
    model, _ = work.backdoored(cell.backdoored())
    images, labels = clean_images(work.split, cell)
    return Example(
        f"VGG-16 at profile {profile} on {work.split.copy}; attack {attack}, seed {seed}; {len(labels)} clean images",
        model,
        partial(work.blank, cell),
        images,
        labels,
        work.split.test_images,
        work.split.test_labels,
        work.triggered(cell),
        TARGET_CLASS,
    )
