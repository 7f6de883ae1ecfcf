"""Trojan, Blend, SIG and CL against their arithmetic, worked by hand on single pixels and tiny models."""

import pytest
import torch
from torch import nn

from purifier_core.evaluation import to_float
from purifier_core.lab.attacks import (
    Making,
    additive,
    badnets,
    blend,
    cl_patch,
    invert_trojan,
    make_trigger,
    perturbed,
    sig,
)
from purifier_core.lab.cells import Cell
from purifier_core.lab.methods import PAPER, Perturbation, attacks
from purifier_core.lab.models import VGG16, ResNet18
from purifier_core.lab.poisoning import poison

GREY = torch.full((3, 3, 32, 32), 200, dtype=torch.uint8)


def test_additive_saturates_or_wraps():
    pattern = torch.zeros(3, 32, 32)
    pattern[0, 25, 26] = 100.5
    pattern[1, 0, 0] = -16.4
    assert additive(GREY, pattern)[:, 0, 25, 26].tolist() == [255] * 3
    assert additive(GREY, pattern, wrap=True)[:, 0, 25, 26].tolist() == [44] * 3  # 300.5 modulo 256, cut
    assert additive(GREY, pattern)[:, 1, 0, 0].tolist() == [183] * 3
    assert (additive(GREY, pattern) != GREY).sum() == 6


def test_blend_is_four_fifths_image_and_one_fifth_noise():
    black, white = torch.zeros_like(GREY), torch.full_like(GREY, 255)
    noise = blend(black, seed=1).float()
    assert (blend(white, seed=1).float() - noise - 204).abs().max() <= 1  # each rounds by itself
    assert noise.max() <= 51
    assert torch.equal(noise[0], noise[2])
    assert noise.float().mean() == pytest.approx(25.5, abs=1)


def test_blend_redrawn_differs_between_images_and_between_train_and_test():
    drawn = blend(GREY, seed=1, redraw=True)
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(blend(GREY[:2], seed=1, redraw=True)[0], drawn[0])
    assert torch.equal(blend(GREY, seed=1, redraw=True), drawn)


def test_sig_columns_by_hand():
    stamped = sig(GREY)
    assert (stamped == stamped[0, 0, 0]).all()  # every row, channel and image alike
    # 0.8 * 200 + 0.2 * s * 255 / 256 with s = 0, 14 and -1 stored as 255
    assert stamped[0, 0, 0, [0, 1, 4]].tolist() == [160, 163, 211]
    wave = sig(GREY, sinusoid=True)[0, 0, 0]
    # 200 + 20 sin(2 pi 6 j / 32): 0, sin(67.5 deg), sin(135 deg)
    assert wave[:3].tolist() == [200, 218, 214]


def test_clean_label_poison_takes_the_target_class_alone():
    labels = torch.arange(40) % 10
    images = torch.zeros(40, 3, 32, 32, dtype=torch.uint8)
    _, y = poison(images, labels, sig, 0.5, target=5, seed=0, clean_label=True)
    assert len(y) == 44  # there are only four
    assert (y[:4] == 5).all()


class Corner(nn.Module):
    """Two units: the sum of the Trojan window, and of the CL corner, on channel 0."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = nn.Identity()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sums = torch.stack([x[:, 0, 25:28, 25:28].sum((1, 2)), x[:, 0, :4, :4].sum((1, 2))], 1)
        return self.unit(sums * self.scale)


def test_trojan_inversion_drives_the_unit_towards_ten():
    pattern = invert_trojan(Corner(), "unit", 0, seed=0)
    assert pattern.shape == (3, 32, 32)
    outside = pattern.clone()
    outside[:, 25:28, 25:28] = 0
    assert not outside.any()
    # nine pixels of at most 1 sum to at most 9 < 10, so every step raises channel 0 until it is white
    assert (pattern[0, 25:28, 25:28] == 255).all()
    assert torch.equal(pattern, invert_trojan(Corner(), "unit", 0, seed=0))
    assert not torch.equal(pattern[1], invert_trojan(Corner(), "unit", 0, seed=1)[1])


def test_cl_patch_lowers_the_loss_within_its_bound():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(60, 200, (80, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.zeros(80, dtype=torch.long)
    pattern = cl_patch(Corner(), images, labels, target=1, seed=0)
    assert not pattern[:, 4:].any()
    assert not pattern[:, :, 4:].any()
    # raising channel 0 of the corner raises the target's logit: all of it goes to the bound, 16/256 of 255
    assert torch.allclose(pattern[0, :4, :4], torch.full((4, 4), 16 / 256 * 255), atol=1e-3)
    assert pattern.abs().max() <= 16 / 256 * 255 + 1e-3


def test_cl_patch_equals_the_release_which_perturbs_whole_batches():
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (500, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(500) % 10
    torch.manual_seed(0)
    model = VGG16(10, 1 / 8).eval()
    pattern = cl_patch(model, images, labels, target=5, seed=7)

    draw = torch.Generator().manual_seed(7)
    others = (labels != 5).nonzero().flatten()
    chosen = others[torch.randperm(450, generator=draw)[:225]]
    delta = torch.rand(3, 4, 4, generator=draw)
    for index in chosen.split(100):
        clean = to_float(images[index])
        start = clean[:, :, :4, :4]
        patches = (start + delta).clamp(0, 1)
        for _ in range(20):
            patches = patches.detach().requires_grad_()
            stamped = clean.clone()
            stamped[:, :, :4, :4] = patches
            loss = nn.functional.cross_entropy(model(stamped), torch.full((len(index),), 5))
            (slope,) = torch.autograd.grad(loss, patches)
            patches = torch.minimum(torch.maximum(patches - 4 / 256 * slope.sign(), start - 1 / 16), start + 1 / 16)
            patches = patches.clamp(0, 1)
        delta = (patches - start)[0].detach()
    assert torch.allclose(pattern[:, :4, :4], delta * 255, atol=1e-3)


def test_the_label_consistent_perturbation_equals_ascent_by_hand():
    """On a linear model the gradient is known: softmax minus the label, times the weights."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 1, 0])
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3)).double()
    model.forward = lambda x, plain=model.forward: plain(x.double())
    moved = perturbed(model, images, labels, Perturbation(7, step=2, steps=9), batch_size=2)

    start = images.double().flatten(1)
    x, weight, bias = start.clone(), model[1].weight.detach(), model[1].bias.detach()
    for _ in range(9):
        scores = (x / 255) @ weight.T + bias
        slope = (scores.softmax(1) - nn.functional.one_hot(labels, 3)) @ weight
        x = (x + 2 * slope.sign()).clamp(start - 7, start + 7).clamp(0, 255)
    assert torch.equal(moved.flatten(1), x.round().to(torch.uint8))
    assert (moved.int() - images.int()).abs().max() == 7
    before, after = (nn.functional.cross_entropy(model(to_float(i)), labels) for i in (images, moved))
    assert after > before


def test_the_label_consistent_trigger_is_the_four_corners_and_the_patch_a_switch():
    images = torch.zeros(30, 3, 32, 32, dtype=torch.uint8)
    labels, model = torch.arange(30) % 10, VGG16(10, 1 / 8)

    def trigger(*switches):
        cell = Cell(attack="cl", switches=switches)
        return make_trigger("cl", Making(cell.switch, 0, images, labels, 5, lambda: model))

    assert torch.equal(trigger()(images), badnets(images))
    stamped = trigger(("cl_kind", "patch"))(images)
    assert not stamped[:, :, 4:].any()
    assert stamped.any()


@pytest.mark.parametrize("network", [VGG16, ResNet18])
def test_the_trojan_unit_is_a_unit_of_the_network(network):
    model = network(10, 1 / 8).eval()
    site, index = model.trojan_unit()
    seen = []
    model.get_submodule(site).register_forward_hook(lambda _m, _i, out: seen.append(out))
    model(to_float(GREY))
    assert 0 <= index < seen[0].shape[1]


@pytest.mark.parametrize("attack", attacks(PAPER))
def test_every_attack_has_a_seeded_trigger_that_changes_the_image(attack):
    model = VGG16(10, 1 / 8)
    images = torch.randint(0, 256, (30, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)

    def trigger(seed):
        cell = Cell(attack=attack)
        return make_trigger(attack, Making(cell.switch, seed, images, torch.arange(30) % 10, 5, lambda: model))

    stamped = trigger(0)(images)
    assert stamped.dtype == torch.uint8
    assert (stamped != images).flatten(1).any(1).all()
    assert torch.equal(stamped, trigger(0)(images))


def test_a_clean_models_trigger_leaves_images_alone():
    making = Making(Cell().switch, 0, GREY, torch.zeros(3), 5, lambda: None)
    stamped = make_trigger("none", making)(GREY)
    assert torch.equal(stamped, GREY)
    assert stamped is not GREY
    with pytest.raises(ValueError, match="attack='badnet' is not known"):
        make_trigger("badnet", making)
    assert Cell(attack="trojan", seed=3).reference() == Cell(attack="none", seed=3)
