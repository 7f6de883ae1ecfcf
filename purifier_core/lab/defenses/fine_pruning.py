"""Fine-pruning (Liu et al., 2018): remove the channels that clean images leave dormant, then finetune.

Pruning is a 0/1 mask on the last convolutional unit's output, so biases and BatchNorm statistics stay and the
optimiser, built afterwards, updates everything that is left. The release prunes by surgery that loses biases
and statistics and leaves the new layers out of the optimiser; that is not repeated here.
"""

import copy

import torch
from torch import nn

from purifier_core.checks import one_of
from purifier_core.evaluation import accuracy, held_out, to_float
from purifier_core.lab.defenses import Defended, Given, Inputs
from purifier_core.lab.profiles import FINE_PRUNING, Constants
from purifier_core.recipes import Recipe

FIXED_SHARE = 417 / 512
"""The release's VGG always stops at 417 of 512 channels."""

RELEASED_ACCURACY = 0.91
"""The release prunes until accuracy on the test set is at most this."""


class ChannelMask(nn.Module):
    """Multiplies the channels of (N, C, H, W) by `mask` (C,), a buffer of zeros and ones."""

    mask: torch.Tensor

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.mask[:, None, None]


def fine_pruning(
    inputs: Inputs,
    *,
    site: str,
    recipe: Recipe = FINE_PRUNING,
    select: str = "held-out",
    test: tuple[torch.Tensor, torch.Tensor] | None = None,
    max_drop: float = Constants.fine_pruning_max_drop,
) -> Defended:
    """Prune the output channels of the submodule `site` in ascending order of mean clean activation, then finetune.

    select: "held-out" takes the largest count whose accuracy on 20 % of the clean set stays within `max_drop` of
    the unpruned model's; "test" starts at FIXED_SHARE and stops at the first count with accuracy at most
    RELEASED_ACCURACY on `test` (images, labels), as released; "fixed" takes FIXED_SHARE.
    """
    one_of("select", select, ("held-out", "test", "fixed"))
    model = copy.deepcopy(inputs.model).eval()
    work, chosen = map(inputs.__getitem__, held_out(len(inputs.images)))
    activation = mean_activation(model, site, work.images)
    order = activation.argsort()
    parent, _, child = site.rpartition(".")
    gate = ChannelMask(torch.ones_like(activation))
    setattr(model.get_submodule(parent), child, nn.Sequential(model.get_submodule(site), gate))

    def accuracy_at(count: int, x: torch.Tensor, y: torch.Tensor) -> float:
        gate.mask.fill_(1.0)
        gate.mask[order[:count]] = 0.0
        return accuracy(model, x, y)

    last = len(order) - 1  # one channel always stays
    count = min(last, round(FIXED_SHARE * len(order)))
    curve: list[list[float]] = []
    if select == "held-out":
        # every count is tried, since accuracy need not fall steadily
        full = accuracy_at(0, chosen.images, chosen.labels)
        curve = [[n, accuracy_at(n, chosen.images, chosen.labels)] for n in range(1, last + 1)]
        count = int(max((n for n, acc in curve if acc >= full - max_drop), default=0))
    elif select == "test":
        if test is None:
            raise ValueError("select='test' needs test=(images, labels)")
        while count < last and accuracy_at(count, *test) > RELEASED_ACCURACY:
            count += 1
    accuracy_at(count, chosen.images, chosen.labels)
    model.train()
    effort = inputs.fit(model, recipe, title="fine-pruning")
    notes = {"pruned": count, "channels": len(order), "held_out_curve": curve}
    return Defended(model, effort, notes)


@torch.no_grad()
def mean_activation(model: nn.Module, site: str, images: torch.Tensor, batch_size: int = 500) -> torch.Tensor:
    """Mean output of every channel of `site` over uint8 images and positions, shape (C,)."""
    sums: list[torch.Tensor] = []
    hook = model.get_submodule(site).register_forward_hook(lambda _m, _i, out: sums.append(out.mean((2, 3)).sum(0)))
    try:
        for piece in images.split(batch_size):
            model(to_float(piece))
    finally:
        hook.remove()
    return torch.stack(sums).sum(0) / len(images)


def defend(given: Given) -> Defended:
    """Fine-pruning in the lab."""
    return fine_pruning(
        given,
        site=given.sites.last_conv,
        recipe=given.adapted(given.profile.fine_pruning),
        select=given.cell.switch("fp_select"),
        test=given.test,
        **given.constants,
    )
