"""Which function with which settings a cell's defense is."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from purifier_core.bound import bound
from purifier_core.checks import one_of
from purifier_core.device import fast_in_bf16
from purifier_core.lab.cells import BOUNDS, Cell
from purifier_core.lab.defenses import Defended
from purifier_core.lab.defenses.anp import anp
from purifier_core.lab.defenses.fine_pruning import fine_pruning
from purifier_core.lab.defenses.finetuning import finetuning
from purifier_core.lab.defenses.mcr import mcr
from purifier_core.lab.defenses.nad import nad
from purifier_core.lab.profiles import PROFILES, Profile
from purifier_core.purifier import purify
from purifier_core.recipes import GRANULARITIES, Recipe
from purifier_core.training import Augment, Watch


def rounded(cell: Cell, device: torch.device) -> bool:
    """Whether the cell is trained under bf16 autocast: by its switch, or by its profile on a processor made for it."""
    return cell.switch("precision") == "bf16" or (PROFILES[cell.profile].precision == "auto" and fast_in_bf16(device))


def adapt(recipe: Recipe, cell: Cell, device: torch.device) -> Recipe:
    """The recipe under the cell's switches, on `device`."""
    if cell.switch("weight_decay") == "dampening":  # SGD allows no dampening with Nesterov momentum
        recipe = replace(recipe, weight_decay=0.0, dampening=1e-4, nesterov=False)
    return replace(recipe, bf16=rounded(cell, device))


@dataclass(frozen=True)
class Given:
    """What a cell's defense is given.

    images (N, 3, 32, 32) and labels (N,) are clean. `blank` gives a fresh network of the model's kind, `test` is the
    test set, for the one switch that chooses by it, and `tuned` the result of Finetuning, which NAD and MCR begin with.
    """

    cell: Cell
    profile: Profile
    model: nn.Module
    blank: Callable[[Cell], nn.Module]
    images: torch.Tensor
    labels: torch.Tensor
    test: tuple[torch.Tensor, torch.Tensor]
    augment: Augment
    seed: int
    tuned: Defended | None = None
    watch: Watch | None = None

    @property
    def clean(self) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
        """The model and its clean data: what every defense takes first."""
        return self.model, self.images, self.labels

    @property
    def options(self) -> dict[str, Any]:
        """What every defense that trains takes, and the constants of this one."""
        constants = self.profile.constants.of(self.cell.defense)
        return {"augment": self.augment, "seed": self.seed, "watch": self.watch} | constants

    def recipe(self, recipe: Recipe) -> Recipe:
        """A recipe of the profile under the cell's switches."""
        return adapt(recipe, self.cell, self.images.device)

    @property
    def stages(self) -> tuple[Recipe, Recipe]:
        """Purifier's two recipes."""
        heads, everything = self.cell.purifier_stages()
        return self.recipe(heads), self.recipe(everything)

    @property
    def sites(self) -> Any:
        """The network, which names its own sites."""
        return self.model


def _scratch(given: Given) -> Defended:
    heads, everything = given.stages
    recipe = replace(everything, epochs=heads.epochs + everything.epochs)
    return finetuning(given.blank(given.cell), given.images, given.labels, recipe=recipe, **given.options)


def _bound(given: Given) -> Defended:
    granularity = given.cell.defense.removeprefix("bound_")
    bounded = bound(given.model, given.images, granularity, seed=given.seed, batch_size=500)
    chosen = {"quantile": bounded.quantile, "changed": bounded.changed, "sites": list(bounded.sites)}
    return Defended(bounded, bounded.effort, chosen)


def _purify(given: Given) -> Defended:
    purified = purify(
        *given.clean,
        granularity=given.cell.defense,
        init=given.cell.switch("init"),
        stages=given.stages,
        bn_frozen_stats=given.cell.switch("bn_frozen_stats") == "yes",
        graph=True,
        **given.options,
    )
    return Defended(purified, purified.effort)


def _finetuning(given: Given) -> Defended:
    return finetuning(*given.clean, recipe=given.recipe(given.profile.finetuning), **given.options)


def _fine_pruning(given: Given) -> Defended:
    return fine_pruning(
        *given.clean,
        site=given.sites.last_conv,
        recipe=given.recipe(given.profile.fine_pruning),
        select=given.cell.switch("fp_select"),
        test=given.test,
        **given.options,
    )


def _mcr(given: Given) -> Defended:
    tune = given.recipe(given.profile.finetuning)
    recipe = given.recipe(given.profile.mcr)
    return mcr(*given.clean, recipe=recipe, endpoint_recipe=tune, tuned=given.tuned, **given.options)


def _nad(given: Given) -> Defended:
    return nad(
        *given.clean,
        sites=given.sites.attention_sites[given.cell.switch("nad_maps")],
        recipe=given.recipe(given.profile.nad),
        teacher_recipe=given.recipe(given.profile.finetuning),
        result=given.cell.switch("nad_eval"),
        tuned=given.tuned,
        **given.options,
    )


def _anp(given: Given) -> Defended:
    asked = given.cell.switch("anp_steps")
    steps = given.profile.anp_steps if asked == "profile" else int(asked)
    masks = given.profile.anp_masks(given.cell.dataset)  # trained without weight decay under any switch
    recipe = replace(masks, bf16=rounded(given.cell, given.images.device))
    return anp(*given.clean, recipe=recipe, steps=steps, **given.options)


DEFENSES: dict[str, Callable[[Given], Defended]] = {
    "finetuning": _finetuning,
    "fine_pruning": _fine_pruning,
    "mcr": _mcr,
    "nad": _nad,
    "anp": _anp,
    "scratch": _scratch,
    **dict.fromkeys(GRANULARITIES, _purify),
    **dict.fromkeys(BOUNDS, _bound),
}
"""The function of every defense that begins with clean data. ABL has none, and is not here."""


def defend(given: Given) -> Defended:
    """The cell's defense. Raises ConfigError for one that has no function here."""
    one_of("defense", given.cell.defense, DEFENSES)
    return DEFENSES[given.cell.defense](given)
