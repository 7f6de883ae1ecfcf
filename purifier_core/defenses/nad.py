"""Neural Attention Distillation (Li et al., 2021): a student distils the attention of a finetuned teacher."""

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from purifier_core.config import one_of
from purifier_core.defenses import Defended
from purifier_core.defenses.finetuning import finetuning
from purifier_core.profiles import FINETUNING, NAD_STUDENT, Recipe
from purifier_core.training import Augment, fit

BETA_FIRST, BETA = 500.0, 1000.0
"""Weight of the attention term at the shallowest site, and at every deeper one."""


def attention(f: torch.Tensor) -> torch.Tensor:
    """Attention of a feature map (N, C, H, W): sum over channels of squares, over its L2 norm; (N, H, W)."""
    a = f.pow(2).sum(1)
    return a / (a.flatten(1).norm(dim=1)[:, None, None] + 1e-6)


def nad(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    sites: Sequence[str],
    recipe: Recipe = NAD_STUDENT,
    teacher_recipe: Recipe = FINETUNING,
    result: str = "student",
    augment: Augment = Augment(),
    seed: int = 0,
) -> Defended:
    """Distil at the submodules `sites`; the student, which starts from `model`, is the result.

    Recipes: the release's (teacher 20 epochs at 0.01; student 10 epochs at 0.1, halved every second). The maps
    of a site that is 1x1 normalise to 1 and teach nothing, hence sites before the pooling. result="teacher"
    returns the finetuned teacher, which is what the release measures.
    """
    one_of("result", result, ("student", "teacher"))
    taught = finetuning(model, images, labels, recipe=teacher_recipe, augment=augment, seed=seed)
    if result == "teacher":
        return taught
    teacher, effort = taught.model, taught.effort
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    student = copy.deepcopy(model).train()
    seen: dict[nn.Module, list[torch.Tensor]] = {student: [], teacher: []}
    for network, maps in seen.items():
        for site in sites:
            network.get_submodule(site).register_forward_hook(lambda _m, _i, out, maps=maps: maps.append(out))

    def loss(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for maps in seen.values():
            maps.clear()
        total = F.cross_entropy(network(x), y)
        with torch.no_grad():
            teacher(x)
        for depth, (ours, theirs) in enumerate(zip(seen[student], seen[teacher], strict=True)):
            beta = BETA if depth else BETA_FIRST
            total = total + beta * F.mse_loss(attention(ours), attention(theirs))
        return total

    effort += fit(student, images, labels, recipe, seed=seed + 1, augment=augment, loss=loss, title="NAD student")
    plain = copy.deepcopy(model)  # the student without its hooks
    plain.load_state_dict(student.state_dict())
    return Defended(plain.eval(), effort)
