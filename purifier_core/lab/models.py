"""VGG-16 and ResNet-18 for 32x32 images, as the authors' release builds them, with a width factor."""

from pkgutil import resolve_name
from typing import ClassVar, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from purifier_core.lab.methods import NETWORKS
from purifier_core.layout import BatchNorm2d, Strided, fed

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of VGG-16's 13 convolutions, block by block."""


class Sited(Protocol):
    """What a network of the lab says of itself beside being an nn.Module: the names of submodules that methods need."""

    purifier_sites: dict[str, tuple[str, ...]]
    """Where Purifier's units sit, by granularity."""
    attention_sites: dict[str, tuple[str, ...]]
    """Where NAD takes its maps, by the values of its switch."""
    last_conv: str
    """The last convolutional unit, for Fine-pruning and for what records tell of activations."""

    def trojan_unit(self) -> tuple[str, int]:
        """The submodule and the index of the unit that Trojan drives."""


class VGG16(nn.Module):
    """VGG-16 with BatchNorm: (N, 3, 32, 32) images in [0, 1] to (N, num_classes) logits.

    Each unit is a 3x3 convolution with bias, BatchNorm and ReLU; every block ends in 2x2 max-pooling, and
    two Linear-BatchNorm-ReLU layers lead to the classifier. PyTorch's default initialisation. `width`
    scales all channels; at 1 there are 15,255,626 parameters for 10 classes.

    The sites name submodules for the methods that need some: `purifier_sites` per granularity as in the
    release (Cube sits at the input end, the others at the output end), `attention_sites` for NAD, before
    and after pooling, `last_conv` for Fine-pruning and for the activations of Figures 10 to 12.
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

    def trojan_unit(self) -> tuple[str, int]:
        """The neuron that the release's Trojan drives: the largest BatchNorm scale of the first hidden layer."""
        return "classifier.0", int(self.get_parameter("classifier.0.1.weight").argmax())

    def __init__(self, num_classes: int, width: float = 1.0) -> None:
        super().__init__()
        channels = 3
        for number, plan in enumerate(BLOCKS, start=1):
            layers: list[nn.Module] = []
            for full in plan:
                out = max(1, round(width * full))
                unit = (nn.Conv2d(channels, out, 3, padding=1), BatchNorm2d(out), nn.ReLU(inplace=True))
                layers.append(nn.Sequential(*unit))
                channels = out
            self.add_module(f"block{number}", nn.Sequential(*layers, nn.MaxPool2d(2)))
        self.classifier = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(channels, channels), nn.BatchNorm1d(channels), nn.ReLU(inplace=True))
                for _ in range(2)
            ),
            nn.Linear(channels, num_classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number in range(1, len(BLOCKS) + 1):
            x = fed(self.get_submodule(f"block{number}"), x)
        return self.classifier(x.flatten(1))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, and a shortcut that is a 1x1 convolution where the shape changes."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(Strided(channels, out, 1, stride, bias=False), BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x), inplace=True)


class ResNet18(nn.Module):
    """CIFAR-style ResNet-18: (N, 3, 32, 32) images in [0, 1] to (N, num_classes) logits.

    A 3x3 stem of stride 1 without pooling, four stages of two blocks (strides 1, 2, 2, 2), global average, one
    linear layer. Convolutions start from Kaiming's normal distribution, fan-out mode. At width 1 there are
    11,173,962 parameters for 10 classes. The sites are named as in `VGG16`. Purifier's units all wrap the blocks of
    stage 4, as in the release; it works on 4x4 maps.
    """

    purifier_sites: ClassVar = dict.fromkeys(("channel", "cube", "feature"), ("stage4.0", "stage4.1"))
    attention_sites: ClassVar = dict.fromkeys(("pre-pool", "post-pool"), ("stage2", "stage3", "stage4"))
    last_conv = "stage4.1"

    def trojan_unit(self) -> tuple[str, int]:
        """The channel that the release's Trojan drives: the last block's filter of largest weight sum."""
        return "stage4.1", int(self.get_parameter("stage4.1.conv2.weight").sum((1, 2, 3)).argmax())

    def __init__(self, num_classes: int, width: float = 1.0) -> None:
        super().__init__()
        sizes = [max(1, round(width * c)) for c in (64, 128, 256, 512)]
        channels = sizes[0]
        first = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.stem = nn.Sequential(first, BatchNorm2d(channels), nn.ReLU(inplace=True))
        for number, (out, stride) in enumerate(zip(sizes, (1, 2, 2, 2), strict=True), start=1):
            self.add_module(f"stage{number}", nn.Sequential(BasicBlock(channels, out, stride), BasicBlock(out, out, 1)))
            channels = out
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for number in range(1, 5):
            x = fed(self.get_submodule(f"stage{number}"), x)
        return self.classifier(x.mean((2, 3)))


def build(network: str, num_classes: int, width: float, seed: int) -> nn.Module:
    """A freshly initialised network by name, the same one for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return resolve_name(NETWORKS[network].build)(num_classes, width)
