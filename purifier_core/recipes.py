"""How long and how fast a training goes, and Purifier's choices. Without torch."""

import math
from dataclasses import dataclass

GRANULARITIES = ("channel", "cube", "feature")
INITS = ("full", "partial", "random")


@dataclass(frozen=True)
class Recipe:
    """How long and how fast SGD goes. One step is one batch; `milestones` are epochs."""

    epochs: int
    lr: float
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    batch_size: int = 64
    momentum: float = 0.9
    weight_decay: float = 1e-4
    dampening: float = 0.0
    nesterov: bool = False
    bf16: bool = False  # autocast: products in bfloat16, weights and their updates in fp32
    cycle: bool = False  # one cycle: a line from 0 up to `lr` over the first 30 %, a line down to 0 over the rest
    cosine: bool = False  # half a cosine, epoch by epoch, from `lr` towards 0
    tail: bool = False  # MCR's schedule: constant to half, linear down to 1 % at 90 %, then constant

    def lr_at(self, epoch: float) -> float:
        """The learning rate of an epoch (counted from 0); with `cycle` also inside of one."""
        if self.cycle:
            progress = epoch / self.epochs
            return self.lr * min(progress / 0.3, (1.0 - progress) / 0.7)
        if self.cosine:
            return self.lr * (1.0 + math.cos(math.pi * epoch / self.epochs)) / 2
        if self.tail:
            progress = epoch / self.epochs
            return self.lr * min(1.0, max(0.01, 1.0 - 0.99 * (progress - 0.5) / 0.4))
        return self.lr * self.gamma ** sum(epoch >= m for m in self.milestones)


PURIFIER_STAGES = (Recipe(20, 0.01), Recipe(20, 0.01))  # the heads alone, then everything


SUSPECTED, NOTHING, UNCLEAR = "backdoor suspected", "nothing stands out", "cannot tell"
"""The verdicts of a scan."""


@dataclass(frozen=True)
class Scanning:
    """How long `scan` searches, and what counts as standing out."""

    steps: int = 40  # of each search
    restarts: int = 2  # searches for each class and family, of which the best counts
    level: float = 0.05  # a class stands out below this p-value: few clean networks show as much
    works: float = 0.9  # and if its stamp carries at least this share of held-out images to the class
    doubted: float = 0.5  # where it carries at least this share, but not `works`, the scan cannot tell
    location: float = 0.792  # of Gumbel's distribution of clean networks' largest scores: data/scan/null.json
    scale: float = 0.601  # and its scale
    patch_carries: float = 42.96  # with `patch_leaves`, Beta's two numbers of the share of images that a clean CIFAR-10
    patch_leaves: float = 6.81  # network's best patch carries


@dataclass(frozen=True)
class Unlearning:
    """How long `repair` unlearns, how fast, and with which stamps.

    The first values came from a trial that had looked at ASR. benchmarks/scan_choice.py, which looks at none, then
    chose lr, mixed and distilled. data/scan/choice.json says among what and on which networks; a test
    holds these to it.
    """

    lr: float = 0.002  # the largest: a line up to it over the first 30 % of the epochs, and one down to 0
    weight_decay: float = 5e-4
    seen: int = 20_000  # clean images to train on, repeats included; from 4 to 20 epochs
    most: int = 5_000  # different images that it trains on at most
    searches: int = 5  # stamps for each suspected class and family, beside the scan's
    steps: int = 40  # of each search
    renewed: int = 30  # of each search against the network as it is
    per_step: int = 24  # images in a step of a search
    dropout: float = 0.4  # the share of an 8x8 grid's blocks that a patch may lack
    mixed: float = 0.4  # how often noise replaces some of a stamp's pixels, and how many at most
    distilled: float = 4.0  # weight of the given network's answers to plain images
    training_mode: float = 0.25  # share of a batch that is unlearned with BatchNorm in training mode too

    def recipe(self, count: int) -> Recipe:
        """The training on `count` images."""
        epochs = min(20, max(4, round(self.seen / count)))
        return Recipe(epochs, self.lr, weight_decay=self.weight_decay, cycle=True)


SCANNING, UNLEARNING = Scanning(), Unlearning()
