"""The methods, one file each, with one shape: a model and data in, a `Defended` out; `defend` runs it for a cell.

Every function takes `Inputs`, leaves the given model alone, and takes its randomness from the seed alone.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from purifier_core.evaluation import to_float
from purifier_core.lab.cells import Cell
from purifier_core.lab.draws import adapt
from purifier_core.lab.profiles import Profile
from purifier_core.recipes import Recipe
from purifier_core.training import Augment, Effort, Watch, fit


@dataclass
class Defended:
    """A defended model in eval mode, what it cost, and what the method wants recorded.

    sweep: further operating points of the method as {label: model}, to be measured but never chosen by. aside: seconds
    that went into the diagnostics alone.
    """

    model: nn.Module
    effort: Effort
    diagnostics: dict[str, Any] = field(default_factory=dict)
    sweep: dict[str, nn.Module] = field(default_factory=dict)
    aside: float = 0.0


@dataclass(frozen=True)
class Inputs:
    """What every method takes.

    model: the network that the method begins with. images (N, 3, H, W), uint8, and labels (N,), on its device. augment:
    how the method augments them, if it does. watch: sees the network between the epochs.
    """

    model: nn.Module
    images: torch.Tensor
    labels: torch.Tensor
    augment: Augment = Augment()
    seed: int = 0
    watch: Watch | None = None

    def __getitem__(self, index: slice | torch.Tensor) -> "Inputs":
        return replace(self, images=self.images[index], labels=self.labels[index])

    @property
    def data(self) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
        """The model, the images and the labels."""
        return self.model, self.images, self.labels

    @property
    def options(self) -> dict[str, Any]:
        """What a training takes beside them."""
        return {"augment": self.augment, "seed": self.seed, "watch": self.watch}

    def fit(self, network: nn.Module, recipe: Recipe, **changes: Any) -> Effort:
        """Train `network` in place on the images. changes: options of `training.fit`, further ones or in place of
        these."""
        return fit(network, self.images, self.labels, recipe, **self.options | changes)


@dataclass(frozen=True, kw_only=True)
class Given(Inputs):
    """What a cell's method is given.

    The images and labels are what METHODS says: clean ones, or the poisoned training set, whose first `poisoned` are
    the stamped copies. `tuned` is the result of Finetuning for a method that begins with it. `test` is the test set,
    for the one switch that chooses by it.
    """

    cell: Cell
    profile: Profile
    poisoned: int
    test: tuple[torch.Tensor, torch.Tensor]
    tuned: Defended | None = None

    @property
    def constants(self) -> dict[str, Any]:
        """The profile's constants of the method."""
        return self.profile.constants.of(self.cell.defense)

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
    count = 0
    for piece in images.split(batch_size):
        count += len(piece)
        for layer in layers:
            layer.momentum = len(piece) / count
        model(to_float(piece))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.eval()
