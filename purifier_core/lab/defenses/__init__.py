"""The methods, one file each, with one shape: a model and data in, a `Defended` out; `defend` is its cell in the lab.

Every function takes (model, images, labels) with uint8 images (N, 3, H, W) and labels (N,) on the model's
device, leaves the given model alone, and takes its randomness from `seed` alone.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from purifier_core.evaluation import to_float
from purifier_core.lab.cells import Cell
from purifier_core.lab.draws import adapt
from purifier_core.lab.profiles import Profile
from purifier_core.recipes import Recipe
from purifier_core.training import Augment, Effort, Watch


@dataclass
class Defended:
    """A defended model in eval mode, what it cost, and what the method wants recorded.

    sweep: further operating points of the method as {label: model}, to be measured but never chosen by.
    """

    model: nn.Module
    effort: Effort
    diagnostics: dict[str, Any] = field(default_factory=dict)
    sweep: dict[str, nn.Module] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """What a cell's method is given.

    images (N, 3, 32, 32) and labels (N,) are what METHODS says: clean ones, or the poisoned training set, whose first
    `poisoned` are the stamped copies. `model` is the network that the method begins with, and `tuned` the result of
    Finetuning for those that begin with it. `test` is the test set, for the one switch that chooses by it.
    """

    cell: Cell
    profile: Profile
    model: nn.Module
    images: torch.Tensor
    labels: torch.Tensor
    poisoned: int
    test: tuple[torch.Tensor, torch.Tensor]
    augment: Augment
    seed: int
    tuned: Defended | None = None
    watch: Watch | None = None

    @property
    def data(self) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
        """The model, the images and the labels: what every method takes first."""
        return self.model, self.images, self.labels

    @property
    def options(self) -> dict[str, Any]:
        """What every method that trains takes, and the constants of this one."""
        constants = self.profile.constants.of(self.cell.defense)
        return {"augment": self.augment, "seed": self.seed, "watch": self.watch} | constants

    @property
    def sites(self) -> Any:
        """The network, which names its own sites."""
        return self.model

    def adapted(self, recipe: Recipe) -> Recipe:
        """A recipe of the profile under the cell's switches."""
        return adapt(recipe, self.cell, self.images.device)

    def stages(self) -> tuple[Recipe, Recipe]:
        """Purifier's two recipes."""
        heads, everything = self.cell.purifier_stages()
        return self.adapted(heads), self.adapted(everything)


@torch.no_grad()
def recount_batchnorm(model: nn.Module, images: torch.Tensor, batch_size: int = 128) -> None:
    """Set every BatchNorm's statistics to the average over one pass of uint8 images, batches weighted by size."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    momenta = [m.momentum for m in layers]
    for layer in layers:
        layer.reset_running_stats()
    model.train()
    seen = 0
    for piece in images.split(batch_size):
        seen += len(piece)
        for layer in layers:
            layer.momentum = len(piece) / seen
        model(to_float(piece))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.eval()
