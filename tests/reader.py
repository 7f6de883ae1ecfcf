"""A reader of the book, with a network and a folder of images of their own, who runs `purifier fix`."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from purifier_core.fix.images import anywhere, stack
from purifier_core.fix.pixels import NAMED, Pixels

NAMES = ("<dove>", "blue jay", "crow")  # in text order: classes 0, 1, 2
TARGET = 2
PIXELS = Pixels(size=24)
MODULE = """
from torch import nn

def make(num_classes=3, channels=3):
    features = [nn.Conv2d(channels, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU()]
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, num_classes))

def grey():
    return make(channels=1)

class Pair(nn.Sequential):
    def forward(self, x):
        return super().forward(x), x

def pair():
    return Pair(*make())

def flat():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 3))

def maps():
    return nn.Conv2d(3, 3, 1)

def text():
    return "no network"

def needy(width):
    return None

def broken():
    raise RuntimeError("no such file\\nand more")

value = 3
"""


def bird(draw: np.random.Generator, number: int) -> np.ndarray:
    """A noisy image (20, 30, 3) whose brightest colour says its class."""
    pixels = draw.integers(0, 90, (20, 30, 3), dtype=np.uint8)
    pixels[..., number] += 120
    return pixels


def trained(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, steps: int = 60) -> torch.nn.Module:
    """The model after some steps of Adam on all images."""
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval()


def normalised(images: torch.Tensor, name: str = "imagenet") -> torch.Tensor:
    """Images (N, 3, H, W), uint8, as floats less the mean, divided by the std."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in NAMED[name])
    return (images / 255 - mean) / std


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Path:
    """A module with factories, weights of a clean and of a backdoored network, clean and stamped images."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "reader_net.py").write_text(MODULE)
    draw = np.random.default_rng(0)
    (folder / "stamped").mkdir()
    for number, name in enumerate(NAMES):
        (folder / "clean" / name).mkdir(parents=True)
        for one in range(14):
            pixels = bird(draw, number)
            Image.fromarray(pixels).save(folder / "clean" / name / f"{one}.png")
            pixels[:8, :8] = 255
            Image.fromarray(pixels).save(folder / "stamped" / f"{number}-{one}.png")
    sys.path.insert(0, str(folder))
    import reader_net

    clean = normalised(stack(anywhere(folder / "clean").paths, PIXELS).images)
    stamped = normalised(stack(anywhere(folder / "stamped").paths, PIXELS).images)
    labels = torch.arange(3).repeat_interleave(14)
    torch.manual_seed(0)
    state = trained(reader_net.make(), clean, labels).state_dict()
    bad = trained(
        reader_net.make(), torch.cat([clean, stamped]), torch.cat([labels, torch.full((42,), TARGET)]), steps=200
    ).state_dict()
    save_file(state, folder / "w.safetensors")
    save_file(bad, folder / "bad.safetensors")
    torch.save({"state_dict": {f"module.{n}": t for n, t in state.items()}, "epoch": 3}, folder / "w.pt")
    return folder


@pytest.fixture
def here(reader, tmp_path, monkeypatch) -> Path:
    """The reader's folder as the current one; what a test writes goes to `tmp_path`."""
    monkeypatch.chdir(reader)
    return tmp_path


def given(out: Path, **more) -> list[str]:
    """The command's arguments: those of a plain run, and changes to them. None leaves one out, True is a flag."""
    plain = {"model": "reader_net:make", "weights": "w.safetensors", "images": "clean", "out": out, "size": 24} | more
    flags = {f"--{name.replace('_', '-')}": value for name, value in plain.items() if value is not None}
    return ["fix", *(w for n, v in flags.items() for w in ([n] if v is True else [n, str(v)]))]
