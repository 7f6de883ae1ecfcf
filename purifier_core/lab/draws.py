"""What a cell draws from its seed and its data: its random streams, its clean images, its augmentation."""

import hashlib

import torch

from purifier_core.checks import integer
from purifier_core.lab.cells import PAPER_TRAIN_SIZE, Cell
from purifier_core.lab.data import Split, clean_indices
from purifier_core.training import NO_AUGMENT, Augment


def derive(seed: int, purpose: str) -> int:
    """An independent seed for each purpose, so that no two draws of a cell share a stream."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:4], "big")


def clean_images(split: Split, cell: Cell) -> tuple[torch.Tensor, torch.Tensor]:
    """The clean images (N, 3, H, W) and labels (N,) that the cell's defense gets."""
    images, labels = split.train_images, split.train_labels
    full = PAPER_TRAIN_SIZE[cell.dataset]
    index = clean_indices(len(labels), cell.clean_size, full, derive(cell.seed, "clean")).to(labels.device)
    integer("clean images", len(index), 20, len(labels), f", but clean_size={cell.clean_size} leaves {len(index)}")
    return images[index], labels[index]


def augmentation(cell: Cell) -> Augment:
    """How the cell's training images are augmented. Mirrored digits and signs mean something else, but the release
    mirrors them all the same: a switch."""
    if cell.switch("defence_aug") == "off":
        return NO_AUGMENT
    return Augment(flip=cell.switch("flip") == "always" or cell.dataset == "cifar10")
