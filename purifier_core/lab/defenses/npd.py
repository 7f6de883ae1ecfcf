"""NPD (Zhu et al., 2023, "Neural Polarizer: A Lightweight and Effective Backdoor Defense").

One layer is put into the network and trained alone: a 1x1 convolution, at first the identity, and BatchNorm. It sits in
front of the last block's first convolution. Settings as in the authors' code (BackdoorBench, defense/npd.py and
config/defense/npd): 5 epochs of warm-up with BatchNorm counting, then 50 with its statistics still, on

    CE(f(x), y) + 0.4 CE(f(x'), f's own answer to x) - 0.4 log(1 - p'_s) - 0.4 log(1 - p'_t)

Here x' is x moved towards t, its likeliest class beside y: by at most 2 steps of 0.1 a pixel along the gradient's sign,
within an L2 ball of 3. p' = softmax f(x'), and s is the likeliest class of x' beside y. The steps end once 60 % of a
batch have reached t. No augmentation.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from purifier_core.lab.defenses import Defended, Given, Inputs
from purifier_core.lab.profiles import NPD, Constants
from purifier_core.layout import BatchNorm2d
from purifier_core.recipes import Recipe
from purifier_core.sites import replace
from purifier_core.training import NO_AUGMENT


def npd(
    inputs: Inputs,
    *,
    block: str,
    stages: tuple[Recipe, Recipe] = NPD,
    weight: float = Constants.npd_weight,
    radius: float = Constants.npd_radius,
    step: float = Constants.npd_step,
    steps: int = Constants.npd_steps,
) -> Defended:
    """A copy of the model with a polarizer in front of the first convolution in the submodule `block`."""
    network = copy.deepcopy(inputs.model).eval().requires_grad_(False)
    inner = network.get_submodule(block)
    name = next(name for name, module in inner.named_modules() if isinstance(module, nn.Conv2d))
    place = f"{block}.{name}" if name else block
    first = network.get_submodule(place)
    assert isinstance(first, nn.Conv2d)
    polarizer = Polarizer(first.in_channels).to(inputs.images.device)
    replace(network, place, nn.Sequential(polarizer, first))

    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        plain = model(x)
        with torch.no_grad():
            own, target = plain.argmax(1), second(plain, y)
        answers = model(attack(model, x, target, radius, step, steps))
        rest = (1.0001 - answers.softmax(1)).log()
        away = F.nll_loss(rest, second(answers, y)) + F.nll_loss(rest, target)
        return F.cross_entropy(plain, y) + weight * (F.cross_entropy(answers, own) + away)

    warm, main = stages
    weights = list(polarizer.parameters())
    polarizer.train()
    effort = inputs.fit(network, warm, augment=NO_AUGMENT, parameters=weights, title="NPD, warm-up")
    effort += inputs.fit(network, main, augment=NO_AUGMENT, parameters=weights, loss=loss, title="NPD")
    return Defended(network.requires_grad_(True), effort, {"place": place})


class Polarizer(nn.Sequential):
    """A 1x1 convolution without bias, at first the identity, and BatchNorm."""

    def __init__(self, channels: int) -> None:
        conv = nn.Conv2d(channels, channels, 1, bias=False)
        with torch.no_grad():
            conv.weight.copy_(torch.eye(channels)[:, :, None, None])
        super().__init__(conv, BatchNorm2d(channels))


def second(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The likeliest class beside the label's."""
    return logits.detach().scatter(1, labels[:, None], -torch.inf).argmax(1)


def attack(
    network: nn.Module, x: torch.Tensor, target: torch.Tensor, radius: float, step: float, steps: int
) -> torch.Tensor:
    """Images in [0, 1], each moved by itself towards its target class. A pixel at 0 or 1 has its slope too: in
    this version of torch a clamp has none there, and black backgrounds would stay."""
    moved = torch.zeros_like(x)
    for _ in range(steps):
        total = x + moved
        pixels = total.clamp(0, 1).requires_grad_()
        loss = F.cross_entropy(network(pixels), target, reduction="none").clamp(-80, 80).mean()
        (slope,) = torch.autograd.grad(loss, pixels)
        moved = moved - step * slope.sign() * (total == pixels)
        norm = moved.flatten(1).norm(dim=1)[:, None, None, None]
        moved = moved * (radius / norm.clamp(min=radius))
        with torch.no_grad():
            reached = network((x + moved).clamp(0, 1)).argmax(1) == target
        if reached.float().mean() > 0.6:
            break
    return (x + moved).clamp(0, 1)


def defend(given: Given) -> Defended:
    """NPD in the lab, in front of the last block of convolutions."""
    warm, main = (given.adapted(recipe) for recipe in given.profile.npd)
    return npd(given, block=given.sites.last_conv, stages=(warm, main), **given.constants)
