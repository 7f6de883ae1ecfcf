"""WaNet: its field and its pixels by hand, and the decoys that it adds."""

import math

import torch

from purifier_core.lab.attacks import badnets, field, warp
from purifier_core.lab.experiments.comparison import Defenses, Repairs
from purifier_core.lab.poisoning import decoyed, poison

IMAGES = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_field_is_the_control_grid_between_its_points():
    grid = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(7)) * 2 - 1
    found = field(7)
    assert found.shape == (1, 32, 32, 2)
    for row, r in ((0, 0), (3, 31)):
        for column, c in ((0, 0), (3, 31)):  # the corners are control points
            for axis in (0, 1):
                wanted = 0.5 / 32 * grid[0, axis, row, column] / grid.abs().mean()
                assert math.isclose(float(found[0, r, c, axis]), float(wanted), abs_tol=1e-6)


def test_a_warped_pixel_is_between_four_others():
    warped, shifts = warp(IMAGES, seed=7), field(7)[0]
    for row, column in ((0, 0), (5, 9), (17, 30), (31, 31)):
        x = min(max(-1 + 2 * column / 31 + float(shifts[row, column, 0]), -1), 1)
        y = min(max(-1 + 2 * row / 31 + float(shifts[row, column, 1]), -1), 1)
        x, y = (x + 1) * 31 / 2, (y + 1) * 31 / 2
        left, top = min(int(x), 30), min(int(y), 30)
        a, b = x - left, y - top
        pixels = IMAGES[:, :, top : top + 2, left : left + 2].double()
        wanted = (1 - b) * ((1 - a) * pixels[..., 0, 0] + a * pixels[..., 0, 1])
        wanted = wanted + b * ((1 - a) * pixels[..., 1, 0] + a * pixels[..., 1, 1])
        assert (warped[:, :, row, column].double() - wanted).abs().max() <= 0.51
    assert warp(IMAGES, seed=8).ne(warped).any()


def test_decoys_are_almost_stamped_and_keep_their_labels():
    images = IMAGES.repeat(10, 1, 1, 1)
    labels = torch.arange(30) % 7
    x, y = poison(images, labels, lambda pictures: warp(pictures, 7), 0.2, target=5, seed=0)
    assert len(x) == 36
    more, truth = decoyed(x, y, 6, trigger_seed=7, seed=1)
    assert len(more) == 6 + 12 + 30
    assert torch.equal(more[:6], x[:6])
    assert torch.equal(more[18:], images)
    assert torch.equal(truth[18:], labels)
    chosen = torch.randperm(30, generator=torch.Generator().manual_seed(1))[:12]
    assert torch.equal(truth[6:18], labels[chosen])
    stamped = warp(images[chosen], 7)
    away = (more[6:18].float() - stamped.float()).abs()
    assert away.amax((1, 2, 3)).min() > 0, "no decoy is stamped"
    assert away.mean() < (badnets(images[chosen]).float() - stamped.float()).abs().mean()


def test_it_stands_in_the_comparison_of_repairs_alone():
    assert "wanet" in {attack for attack, _ in Repairs(attack="all").rows("small")}
    assert "wanet" not in {attack for attack, _ in Defenses(attack="all").rows("small")}
