"""VGG-16 for 32x32 images, as the authors' release builds it, with a width factor."""

from typing import ClassVar

import torch
from torch import nn

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of VGG-16's 13 convolutions, block by block."""


class VGG16(nn.Module):
    """VGG-16 with BatchNorm: (N, 3, 32, 32) images in [0, 1] to (N, num_classes) logits.

    Each unit is a 3x3 convolution with bias, BatchNorm and ReLU; every block ends in 2x2 max-pooling, and
    two Linear-BatchNorm-ReLU layers lead to the classifier. PyTorch's default initialisation. `width`
    scales all channels; at 1 there are 15,255,626 parameters for 10 classes.

    The sites name submodules for the methods that need some: `purifier_sites` per granularity as in the
    release (Cube sits at the input end, the others at the output end), `attention_sites` for NAD, before
    and after pooling, `last_conv` for Fine-pruning.
    """

    purifier_sites: ClassVar = {
        "channel": ("block5.0", "block5.1", "block5.2"),
        "cube": ("block1.0", "block1.1"),
        "feature": ("block5.0", "block5.1", "block5.2"),
    }
    attention_sites: ClassVar = {
        "pre-pool": ("block2.1", "block3.2", "block4.2", "block5.2"),
        "post-pool": ("block2", "block3", "block4", "block5"),
    }
    last_conv = "block5.2"

    def __init__(self, num_classes: int, width: float = 1.0) -> None:
        super().__init__()
        channels = 3
        for number, plan in enumerate(BLOCKS, start=1):
            layers: list[nn.Module] = []
            for wanted in plan:
                out = max(1, round(width * wanted))
                layers.append(nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()))
                channels = out
            self.add_module(f"block{number}", nn.Sequential(*layers, nn.MaxPool2d(2)))
        self.classifier = nn.Sequential(
            *(nn.Sequential(nn.Linear(channels, channels), nn.BatchNorm1d(channels), nn.ReLU()) for _ in range(2)),
            nn.Linear(channels, num_classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number in range(1, len(BLOCKS) + 1):
            x = self.get_submodule(f"block{number}")(x)
        return self.classifier(x.flatten(1))


def build(network: str, num_classes: int, width: float, seed: int) -> nn.Module:
    """A freshly initialised network by name, the same one for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {"vgg16": VGG16}[network](num_classes, width)
