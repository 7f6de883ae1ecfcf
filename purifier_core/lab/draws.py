"""What a cell trains with: its random streams, its clean images, their augmentation, and its recipes."""

import hashlib
from dataclasses import replace

import torch

from purifier_core.checks import integer
from purifier_core.device import fast_in_bf16
from purifier_core.lab.cells import Cell
from purifier_core.lab.data import Split, clean_indices
from purifier_core.lab.methods import DATASETS
from purifier_core.lab.profiles import PROFILES
from purifier_core.recipes import Recipe
from purifier_core.training import NO_AUGMENT, Augment


def derive(seed: int, purpose: str) -> int:
    """An independent seed for each purpose, so that no two draws of a cell share a stream."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:4], "big")


def clean_images(split: Split, cell: Cell) -> tuple[torch.Tensor, torch.Tensor]:
    """The clean images (N, 3, H, W) and labels (N,) that the cell's defense gets."""
    images, labels = split.train_images, split.train_labels
    full = DATASETS[cell.dataset].train
    index = clean_indices(len(labels), cell.clean_size, full, derive(cell.seed, "clean")).to(labels.device)
    integer("clean images", len(index), 20, len(labels), f", but clean_size={cell.clean_size} leaves {len(index)}")
    return images[index], labels[index]


def augmentation(cell: Cell) -> Augment:
    """How the cell's training images are augmented. Mirrored digits and signs mean something else; a switch mirrors
    them all the same, as the release does."""
    if cell.switch("defence_aug") == "off":
        return NO_AUGMENT
    return Augment(flip=cell.switch("flip") == "always" or DATASETS[cell.dataset].mirrored)


def rounded(cell: Cell, device: torch.device) -> bool:
    """Whether the cell is trained under bf16 autocast: by its switch, or by its profile on a processor made for it."""
    return cell.switch("precision") == "bf16" or (PROFILES[cell.profile].precision == "auto" and fast_in_bf16(device))


def adapt(recipe: Recipe, cell: Cell, device: torch.device) -> Recipe:
    """The recipe under the cell's switches, on `device`."""
    if cell.switch("weight_decay") == "dampening":  # SGD allows no dampening with Nesterov momentum
        recipe = replace(recipe, weight_decay=0.0, dampening=1e-4, nesterov=False)
    return replace(recipe, bf16=rounded(cell, device))
