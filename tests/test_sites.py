"""Where a defense can sit: the units that are found in networks of other people, and what is refused."""

import pytest
import torch
from torch import nn
from torchvision import models

from purifier_core.checks import ConfigError
from purifier_core.lab.models import VGG16, ResNet18
from purifier_core.purifier import purify
from purifier_core.recipes import Recipe
from purifier_core.sites import find, last_stage

X = torch.rand(2, 3, 64, 64)


@pytest.mark.parametrize(
    ("name", "units", "last"),
    [
        ("resnet18", 9, ("layer4.0", "layer4.1")),
        ("vgg16_bn", 13, ("features.36", "features.39", "features.42")),
        ("mobilenet_v3_small", 13, ("features.9", "features.10", "features.11", "features.12.2")),
        ("efficientnet_b0", 18, ("features.6.0", "features.6.1", "features.6.2", "features.6.3", "features.7.0",
                                 "features.8.2")),
    ],
)  # fmt: skip
def test_units_of_torchvisions_networks(name, units, last):
    model = getattr(models, name)(num_classes=7).eval()
    found = find(model, X)
    assert len(found) == units
    assert last_stage(model, X) == last
    assert all(len(shape) == 4 and shape[0] == 2 for shape in found.values())
    known = dict(model.named_modules())
    assert [name for name in known if name in found] == list(found), "in running order, which is theirs here"


def test_units_of_ours_follow_each_convolution_or_block():
    x = torch.rand(2, 3, 32, 32)
    assert len(find(VGG16(10, 1 / 16).eval(), x)) == 13
    assert len(find(ResNet18(10, 1 / 16).eval(), x)) == 1 + 8


def test_bare_convolutions_serve_where_there_is_nothing_else():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.out = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Linear(5, 2)

        def forward(self, x):
            return self.out(self.second(self.first(x).relu()).relu().mean((2, 3)))

    assert list(find(Functional(), X)) == ["first", "second"]


def test_an_activation_that_runs_twice_is_no_unit():
    relu = nn.ReLU()
    twice = nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.Conv2d(4, 4, 3), relu, nn.Conv2d(4, 4, 3), nn.ReLU())
    assert list(find(twice, X)) == ["5"]


def test_a_network_without_feature_maps_is_refused():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.ReLU())
    with pytest.raises(ValueError, match=r"Sequential shows no block .* name sites="):
        find(flat, torch.rand(1, 3, 2, 2))


def test_purify_finds_its_sites_and_says_which(capsys):
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 5, 3, 2), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 5, 1), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    )
    images, labels = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8), torch.arange(12) % 3
    short = (Recipe(1, 0.01, batch_size=6),) * 2
    purified = purify(model, images, labels, stages=short)
    assert purified.sites == ("1.2", "1.4")
    assert "1.2, 1.4" in capsys.readouterr().out
    as_floats = purify(model, images / 255, labels, stages=short)
    x = images[:4] / 255
    torch.testing.assert_close(as_floats(x), purified(x))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.long), "at least two images"),
        (
            torch.zeros(4, 3, 8, 8),
            torch.zeros(3, dtype=torch.long),
            r"labels of shape \(3,\) for 4 images; needed: one",
        ),
        (torch.zeros(4, 8, 8), torch.zeros(4, dtype=torch.long), "at least two images"),
        (torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]), "from 0 to 3 are out of range; allowed: 0 to 2"),
    ],
)
def test_purify_refuses_images_and_labels_that_do_not_fit(images, labels, message):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(ConfigError, match=message):
        purify(model, images, labels)
