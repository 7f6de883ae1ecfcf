"""Neural Attention Distillation (Li et al., 2021): a student distils the attention of a finetuned teacher."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from purifier_core.checks import one_of
from purifier_core.lab.defenses import Defended, Given, Inputs
from purifier_core.lab.defenses.finetuning import finetuning
from purifier_core.lab.profiles import FINETUNING, NAD_STUDENT, Constants
from purifier_core.recipes import Recipe


def attention(f: torch.Tensor) -> torch.Tensor:
    """Attention of a feature map (N, C, H, W): sum over channels of squares, over its L2 norm; (N, H, W)."""
    a = f.pow(2).sum(1)
    return a / (a.flatten(1).norm(dim=1)[:, None, None] + 1e-6)


def nad(
    inputs: Inputs,
    *,
    sites: Sequence[str],
    recipe: Recipe = NAD_STUDENT,
    teacher_recipe: Recipe = FINETUNING,
    result: str = "student",
    beta_first: float = Constants.nad_beta_first,
    beta: float = Constants.nad_beta,
    tuned: Defended | None = None,
) -> Defended:
    """Distil at the submodules `sites`; the student, which starts from the model, is the result.

    Recipes: the release's (teacher 20 epochs at 0.01; student 10 epochs at 0.1, halved every second). The maps
    of a site that is 1x1 normalise to 1 and teach nothing, hence sites before the pooling. result="teacher"
    returns the finetuned teacher, which is what the release measures. tuned: the teacher, where `finetuning` with
    `teacher_recipe` was already run.
    """
    one_of("result", result, ("student", "teacher"))
    tuned = tuned or finetuning(replace(inputs, watch=None), teacher_recipe)
    if result == "teacher":
        return tuned
    teacher, effort = copy.deepcopy(tuned.model), copy.deepcopy(tuned.effort)
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    student = copy.deepcopy(inputs.model).train()
    outputs: dict[nn.Module, list[torch.Tensor]] = {student: [], teacher: []}
    for network, maps in outputs.items():
        for site in sites:
            network.get_submodule(site).register_forward_hook(lambda _m, _i, out, maps=maps: maps.append(out))

    def loss(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for maps in outputs.values():
            maps.clear()
        total = F.cross_entropy(network(x), y)
        with torch.no_grad():
            teacher(x)
        for depth, (student_map, teacher_map) in enumerate(zip(outputs[student], outputs[teacher], strict=True)):
            total = total + (beta if depth else beta_first) * F.mse_loss(attention(student_map), attention(teacher_map))
        return total

    effort += inputs.fit(student, recipe, seed=inputs.seed + 1, loss=loss, title="NAD student")
    plain = copy.deepcopy(inputs.model)  # the student without its hooks
    plain.load_state_dict(student.state_dict())
    return Defended(plain.eval(), effort)


def defend(given: Given) -> Defended:
    """NAD in the lab."""
    return nad(
        given,
        sites=given.sites.attention_sites[given.cell.switch("nad_maps")],
        recipe=given.adapted(given.profile.nad),
        teacher_recipe=given.adapted(given.profile.finetuning),
        result=given.cell.switch("nad_eval"),
        tuned=given.tuned,
        **given.constants,
    )
