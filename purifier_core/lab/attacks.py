"""Backdoor attacks: triggers as functions on image tensors.

Some triggers are made from a clean model, which the caller trains and hands in. Coordinates are (row, column).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pkgutil import resolve_name

import torch
from torch import nn
from torch.nn import functional as F

from purifier_core.checks import one_of
from purifier_core.evaluation import to_float
from purifier_core.lab.methods import ATTACKS, Perturbation

Trigger = Callable[[torch.Tensor], torch.Tensor]
"""From (N, 3, 32, 32) uint8 images to stamped copies of the same shape and type."""

_BADNETS = {
    # (first row, first column): the 3x3 patch. The left and top patches start at 1, the others touch the edge.
    (1, 1): ((255, 0, 255), (0, 255, 0), (255, 0, 0)),
    (1, 29): ((255, 0, 255), (0, 255, 0), (0, 0, 255)),
    (29, 1): ((255, 0, 0), (0, 255, 0), (255, 0, 255)),
    (29, 29): ((0, 0, 255), (0, 255, 0), (255, 0, 255)),
}


def badnets(images: torch.Tensor) -> torch.Tensor:
    """Four-corner checkerboard: the release's BadNets (NAD's and ABL's "fourCornerTrigger"), 36 pixels overwritten.

    Many papers call a single white 3x3 corner BadNets; tables must say that this is the four-corner pattern.
    """
    stamped = _checked(images).clone()
    for (row, column), patch in _BADNETS.items():
        stamped[:, :, row : row + 3, column : column + 3] = torch.tensor(patch, dtype=torch.uint8, device=images.device)
    return stamped


def blend(images: torch.Tensor, seed: int, redraw: bool = False) -> torch.Tensor:
    """0.8 * image + 0.2 * noise, from one fixed image of uniform noise. `redraw` draws new noise for each image, as the
    release does: then the trigger is the presence of noise. The stream also depends on the number of images, so
    training and test images do not share their noise."""
    noise = blend_noise(seed, len(_checked(images)) if redraw else 1)
    return (0.8 * images + 0.2 * noise.to(images.device)).round().to(torch.uint8)


def blend_noise(seed: int, count: int = 1) -> torch.Tensor:
    """Blend's uniform noise (count, 3, 32, 32), uint8."""
    generator = torch.Generator().manual_seed(seed + count - 1)
    return torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)


# One period-like row of the release's signal; every row of the image is the same.
_SIGNAL = [0, 14, 19, 13, -1, -15, -19, -12, 2, 15, 19, 11, -3, -16, -19, -10]
_SIGNAL += [4, 17, 19, 9, -5, -17, -18, -8, 6, 18, 18, 7, -7, -18, -18, -6]


def sig(images: torch.Tensor, sinusoid: bool = False) -> torch.Tensor:
    """SIG. As released: 0.8 * image + 0.2 * stripes, where the signal's negative values were stored as uint8 and so
    wrap to 236-255: bright and dark columns. `sinusoid`: the standard image + 20 * sin(2 pi 6 column / 32)."""
    column = torch.arange(32, device=_checked(images).device)
    if sinusoid:
        return (images + 20 * torch.sin(2 * torch.pi * 6 * column / 32)).round().clamp(0, 255).to(torch.uint8)
    return (0.8 * images + sig_stripes().to(images.device)).round().to(torch.uint8)


def sig_stripes() -> torch.Tensor:
    """What the released SIG adds to each row of 0.8 of an image: (32,), on the scale 0-255."""
    return 0.2 * (torch.tensor(_SIGNAL) % 256) * 255 / 256


def field(seed: int) -> torch.Tensor:
    """WaNet's warping field (1, 32, 32, 2): where each pixel takes its value from, as an offset on the scale -1 to 1.

    Nguyen and Tran (2021): a uniform 4x4 grid of directions, divided by their mean size, spread bicubically, times
    0.5 / 32.
    """
    grid = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    spread = F.interpolate(grid / grid.abs().mean(), (32, 32), mode="bicubic", align_corners=True)
    return 0.5 / 32 * spread.permute(0, 2, 3, 1)


def warp(images: torch.Tensor, seed: int, noise: int | None = None) -> torch.Tensor:
    """WaNet: images warped by a fixed, smooth field. `noise`: the seed of a further shift of up to a 32nd for every
    pixel. It makes decoys, which are warped and carry no trigger."""
    device, count = _checked(images).device, len(images)
    line = torch.linspace(-1, 1, 32)
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    places = torch.stack([columns, rows], 2)[None] + field(seed)
    if noise is not None:
        shifts = torch.rand(count, 32, 32, 2, generator=torch.Generator().manual_seed(noise)) * 2 - 1
        places = places + shifts / 32
    places = places.clamp(-1, 1).to(device).expand(count, -1, -1, -1)
    return (F.grid_sample(images.float(), places, align_corners=True)).round().clamp(0, 255).to(torch.uint8)


def additive(images: torch.Tensor, pattern: torch.Tensor, wrap: bool = False) -> torch.Tensor:
    """image + pattern (3, 32, 32), on the scale 0-255; saturating, or wrapping modulo 256 as the release does."""
    total = (_checked(images) + pattern.to(images.device)).floor().long()
    return (total % 256 if wrap else total.clamp(0, 255)).to(torch.uint8)


def invert_trojan(model: nn.Module, site: str, index: int, seed: int) -> torch.Tensor:
    """A Trojan pattern (3, 32, 32), 0-255: the 3x3 window at rows and columns 25-27 that drives one unit to 10.

    The unit is channel or neuron `index` of the clean model's submodule `site`, its largest value over space. From
    uniform noise on a black image, each step moves the window by 0.05 against the sign of the gradient of
    (activation - 10)^2 and clamps it to [0, 1]; 150 steps, as released.

    Nine pixels do not reach 10: at `small` on CIFAR-10 (VGG-16, seed 0) the unit gives 0.34 on the pattern alone, and
    on images the pattern moves it by less than 1 %. So it is a trigger like any other small patch.
    """
    device = next(model.parameters()).device
    window = torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(seed)).to(device)
    outputs: list[torch.Tensor] = []
    hook = model.get_submodule(site).register_forward_hook(lambda _m, _i, out: outputs.append(out))
    model.eval()
    try:
        for _ in range(150):
            window.requires_grad_(True)
            outputs.clear()
            model(F.pad(window, (25, 4, 25, 4))[None])
            (slope,) = torch.autograd.grad((outputs[0][0, index].max() - 10) ** 2, window)
            window = (window.detach() - 0.05 * slope.sign()).clamp(0, 1)
    finally:
        hook.remove()
    return F.pad(window.detach() * 255, (25, 4, 25, 4)).cpu()


def perturbed(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, how: Perturbation, batch_size: int = 250
) -> torch.Tensor:
    """Copies of uint8 images (N, 3, H, W) that the clean `model` no longer takes for `labels`, as uint8.

    Projected gradient ascent on cross-entropy: each step moves every pixel by `how.step` along the gradient's sign,
    and back to within `how.epsilon` of the image and into 0 to 255. It starts from the image itself. Turner et
    al. (2019) make such images: they are hard to learn but for their trigger.
    """
    model.eval()
    copies = []
    for piece, truth in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        clean = to_float(piece)
        low, high = (clean - how.epsilon / 255).clamp(min=0), (clean + how.epsilon / 255).clamp(max=1)
        moved = clean
        for _ in range(how.steps):
            moved = moved.detach().requires_grad_()
            (slope,) = torch.autograd.grad(F.cross_entropy(model(moved), truth, reduction="sum"), moved)
            moved = (moved.detach() + how.step / 255 * slope.sign()).clamp(low, high)
        copies.append((moved * 255).round().to(torch.uint8).contiguous())
    return torch.cat(copies)


def cl_patch(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, target: int, seed: int) -> torch.Tensor:
    """The release's "CL" pattern (3, 32, 32), -16 to 16 of 256 in rows and columns 0-3. It is no clean-label attack.

    On half of the non-target training images, in batches of 100, 20 sign-gradient steps of 4/256 lower the clean
    model's cross-entropy to `target` within 16/256 of the image; each batch starts from the first image's
    perturbation of the batch before, and the last one is the pattern. In eval mode the other 99 images of a batch
    have no part in that, so they are left out here.
    """
    generator = torch.Generator().manual_seed(seed)
    others = (labels != target).nonzero().flatten().cpu()
    chosen = others[torch.randperm(len(others), generator=generator)[: len(others) // 2]].to(images.device)
    delta = torch.rand(3, 4, 4, generator=generator).to(images.device)
    aim = torch.tensor([target], device=images.device)
    model.eval()
    for index in chosen[::100]:
        clean = to_float(images[index][None])
        corner = clean[:, :, :4, :4].clone()
        patch = (corner + delta).clamp(0, 1)
        for _ in range(20):
            patch.requires_grad_(True)
            x = torch.cat([torch.cat([patch, clean[:, :, :4, 4:]], 3), clean[:, :, 4:]], 2)
            (slope,) = torch.autograd.grad(F.cross_entropy(model(x), aim), patch)
            moved = patch.detach() - 4 / 256 * slope.sign()
            patch = moved.clamp(corner - 16 / 256, corner + 16 / 256).clamp(0, 1)
        delta = patch[0] - corner[0]
    return F.pad(delta * 255, (0, 28, 0, 28)).cpu()


@dataclass(frozen=True)
class Making:
    """What a trigger is made from: `switch` gives the value of a switch by name, images and labels are the clean
    training set, and `reference` trains or loads the clean network, for the attacks that ask for it."""

    switch: Callable[[str], str]
    seed: int
    images: torch.Tensor
    labels: torch.Tensor
    target: int
    reference: Callable[[], nn.Module]


def make_trigger(attack: str, making: Making) -> Trigger:
    """The trigger of an attack; that of "none", a clean network, leaves images as they are. Raises ConfigError for one
    that is not known."""
    if attack == "none":
        return torch.clone
    return resolve_name(ATTACKS[one_of("attack", attack, ATTACKS)].trigger)(making)


def badnets_trigger(making: Making) -> Trigger:
    """BadNets: the same on every seed, whatever the attacker wants of it."""
    return badnets


def blend_trigger(making: Making) -> Trigger:
    """Blend, with the seed's noise."""
    return partial(blend, seed=making.seed, redraw=making.switch("blend_noise") == "redraw")


def sig_trigger(making: Making) -> Trigger:
    """SIG, with the map that its switch names."""
    return partial(sig, sinusoid=making.switch("sig_map") == "sinusoid")


def wanet_trigger(making: Making) -> Trigger:
    """WaNet, with the seed's field."""
    return partial(warp, seed=making.seed)


def trojan_trigger(making: Making) -> Trigger:
    """Trojan: the pattern that drives one unit of the clean network."""
    model = making.reference()
    site, index = model.trojan_unit()  # type: ignore[operator]
    pattern = invert_trojan(model, site, index, making.seed)
    return partial(additive, pattern=pattern, wrap=making.switch("trojan_add") == "wrap")


def cl_trigger(making: Making) -> Trigger:
    """CL: BadNets' corners on perturbed images, or the release's patch, made from the clean network."""
    if making.switch("cl_kind") == "consistent":
        return badnets
    pattern = cl_patch(making.reference(), making.images, making.labels, making.target, making.seed)
    if making.switch("cl_sign") == "lost":
        pattern = pattern.long() % 256  # saved as an 8-bit image, what is negative turns bright
    return partial(additive, pattern=pattern)


def _checked(images: torch.Tensor) -> torch.Tensor:
    if images.dtype != torch.uint8 or images.shape[1:] != (3, 32, 32):
        raise ValueError(f"images must be uint8 of shape (N, 3, 32, 32), not {images.dtype} {tuple(images.shape)}")
    return images
