"""Which function with which settings a cell's defense is."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from purifier_core.bound import bound
from purifier_core.config import BOUNDS, GRANULARITIES, Cell
from purifier_core.defenses import Defended
from purifier_core.defenses.anp import anp
from purifier_core.defenses.fine_pruning import fine_pruning
from purifier_core.defenses.finetuning import finetuning
from purifier_core.defenses.mcr import mcr
from purifier_core.defenses.nad import nad
from purifier_core.device import fast_in_bf16
from purifier_core.profiles import PROFILES, Profile, Recipe
from purifier_core.purifier import purify
from purifier_core.training import Augment, Watch


def rounded(cell: Cell, device: torch.device) -> bool:
    """Whether the cell is trained under bf16 autocast: by its switch, or by its profile on a processor made for it."""
    return cell.switch("precision") == "bf16" or (PROFILES[cell.profile].precision == "auto" and fast_in_bf16(device))


def adapt(recipe: Recipe, cell: Cell, device: torch.device) -> Recipe:
    """The recipe under the cell's switches, on `device`."""
    if cell.switch("weight_decay") == "dampening":  # SGD allows no dampening with Nesterov momentum
        recipe = replace(recipe, weight_decay=0.0, dampening=1e-4, nesterov=False)
    return replace(recipe, bf16=rounded(cell, device))


def defend(
    cell: Cell,
    profile: Profile,
    model: nn.Module,
    blank: Callable[[Cell], nn.Module],
    images: torch.Tensor,
    labels: torch.Tensor,
    test: tuple[torch.Tensor, torch.Tensor],
    augment: Augment,
    seed: int,
    tuned: Defended | None = None,
    watch: Watch | None = None,
) -> Defended:
    """The cell's defense of `model` with the clean images (N, 3, 32, 32) and labels (N,); `blank` gives a fresh network
    of its kind, `test` the test set, for the one switch that chooses by it, and `tuned` the result of Finetuning, which
    NAD and MCR begin with. ABL has no clean set and is not here.
    """
    name = cell.defense
    common: dict[str, Any] = {"augment": augment, "seed": seed, "watch": watch}
    constants = profile.constants.of(name)
    finetune, stages = adapt(profile.finetuning, cell, images.device), cell.purifier_stages()
    if name == "scratch":
        recipe = replace(adapt(stages[1], cell, images.device), epochs=sum(stage.epochs for stage in stages))
        return finetuning(blank(cell), images, labels, recipe=recipe, **common)
    if name in BOUNDS:
        bounded = bound(model, images, name.removeprefix("bound_"), seed=seed, batch_size=500)
        chosen = {"quantile": bounded.quantile, "changed": bounded.changed, "sites": list(bounded.sites)}
        return Defended(bounded, bounded.effort, chosen)
    if name in GRANULARITIES:
        purified = purify(
            model,
            images,
            labels,
            granularity=name,
            init=cell.switch("init"),
            stages=(adapt(stages[0], cell, images.device), adapt(stages[1], cell, images.device)),
            bn_frozen_stats=cell.switch("bn_frozen_stats") == "yes",
            graph=True,
            **common,
        )
        return Defended(purified, purified.effort)
    sites: Any = model  # the network names its own sites
    if name == "finetuning":
        return tuned or finetuning(model, images, labels, recipe=finetune, **common)
    if name == "fine_pruning":
        return fine_pruning(
            model,
            images,
            labels,
            site=sites.last_conv,
            recipe=adapt(profile.fine_pruning, cell, images.device),
            select=cell.switch("fp_select"),
            test=test,
            **constants,
            **common,
        )
    if name == "mcr":
        recipe = adapt(profile.mcr, cell, images.device)
        return mcr(model, images, labels, recipe=recipe, endpoint_recipe=finetune, tuned=tuned, **constants, **common)
    if name == "nad":
        return nad(
            model,
            images,
            labels,
            sites=sites.attention_sites[cell.switch("nad_maps")],
            recipe=adapt(profile.nad, cell, images.device),
            teacher_recipe=finetune,
            result=cell.switch("nad_eval"),
            tuned=tuned,
            **constants,
            **common,
        )
    steps = profile.anp_steps if cell.switch("anp_steps") == "profile" else int(cell.switch("anp_steps"))
    recipe = replace(profile.anp_masks(cell.dataset), bf16=finetune.bf16)
    return anp(model, images, labels, recipe=recipe, steps=steps, **constants, **common)
