"""Purifier against numbers worked by hand, on the project's network, on torchvision's and on a plain Sequential."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18

from purifier_core.checks import ConfigError
from purifier_core.evaluation import accuracy, evaluate, to_float
from purifier_core.fix.weights import load, save
from purifier_core.lab.models import VGG16, ResNet18
from purifier_core.lab.probes import diagnose
from purifier_core.purifier import Purified, attach, detach, purify
from purifier_core.recipes import Recipe

# One image, two channels of 2x2. Worked by hand below.
F_MAP = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[0.0, 1.0], [0.0, 1.0]]]])
SHORT = (Recipe(1, 0.01, batch_size=16), Recipe(1, 0.01, batch_size=16))


class LastMap(nn.Module):
    """Sums each channel of the (masked) map: a classifier of two logits that shows the mask plainly."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum((2, 3))


def tiny(granularity: str, weight: list[list[float]]) -> Purified:
    purified = attach(nn.Sequential(nn.Identity(), LastMap()), ["0"], granularity, 2, F_MAP)
    with torch.no_grad():
        purified.units()[0].head.weight.copy_(torch.tensor(weight))
        purified.units()[0].head.bias.zero_()
    return purified


@pytest.mark.parametrize(
    ("granularity", "weight", "head_logits", "predicted_mask_logits", "label_1_logits"),
    [
        # v = (2.5, 0.5); a = (2.5, 1.0) -> class 0, mask (1, 0): sums (10, 0). Label 1, mask (0, 2): (0, 4).
        ("channel", [[1.0, 0.0], [0.0, 2.0]], [2.5, 1.0], [10.0, 0.0], [0.0, 4.0]),
        # v = mean over channels (.5, 1.5, 1.5, 2.5); a = (.5, 5.0) -> class 1, mask 2 at the last position: (8, 2).
        ("cube", [[1.0, 0, 0, 0], [0, 0, 0, 2.0]], [0.5, 5.0], [8.0, 2.0], [8.0, 2.0]),
        # v = (1,2,3,4,0,1,0,1); a = (1, -1) -> class 0, mask keeps only the first value: (1, 0). Label 1: (0, -1).
        ("feature", [[1.0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, -1.0, 0, 0]], [1.0, -1.0], [1.0, 0.0], [0.0, -1.0]),
    ],
)
def test_masks_by_hand(granularity, weight, head_logits, predicted_mask_logits, label_1_logits):
    purified = tiny(granularity, weight)
    logits, heads = purified.with_heads(F_MAP)
    assert heads[0].tolist() == [head_logits]
    assert logits.tolist() == [predicted_mask_logits]
    assert purified(F_MAP, torch.tensor([1])).tolist() == [label_1_logits]
    purified.train()
    assert purified(F_MAP, torch.tensor([1])).tolist() == [label_1_logits]


def test_training_without_labels_is_refused():
    purified = tiny("channel", [[1.0, 0.0], [0.0, 2.0]]).train()
    with pytest.raises(ValueError, match="true labels"):
        purified(F_MAP)


@pytest.mark.parametrize("granularity", ["channel", "cube", "feature"])
def test_gradient_reaches_the_head_through_the_mask_too(granularity):
    """The joint loss's gradient in one head weight equals a central difference, mask and head CE together."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(8, 3)).double()
    x, y = torch.rand(4, 3, 4, 4, dtype=torch.double), torch.tensor([0, 1, 2, 1])
    purified = attach(model, ["0"], granularity, 3, x).double().train()
    weight = purified.units()[0].head.weight

    def loss() -> torch.Tensor:
        logits, heads = purified.with_heads(x, y)
        return F.cross_entropy(logits, y) + F.cross_entropy(heads[0], y)

    loss().backward()
    with torch.no_grad():
        weight[1, 0] += 1e-5
        above = loss()
        weight[1, 0] -= 2e-5
        below = loss()
    assert weight.grad[1, 0].item() == pytest.approx(((above - below) / 2e-5).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("network", "sites", "sizes"),
    [
        (lambda: VGG16(10, 1 / 8), VGG16.purifier_sites, {"channel": 64, "cube": 1024, "feature": 256}),
        (
            lambda: ResNet18(10, 1 / 8),
            ResNet18.purifier_sites,
            {"channel": 64, "cube": 16, "feature": 1024},
        ),
        (
            lambda: resnet18(num_classes=10),
            dict.fromkeys(("channel", "cube", "feature"), ("layer3.0", "layer3.1")),
            {"channel": 256, "cube": 4, "feature": 1024},
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 10)),
            dict.fromkeys(("channel", "cube", "feature"), ("1",)),
            {"channel": 4, "cube": 900, "feature": 3600},
        ),
    ],
    ids=["vgg16", "resnet18", "torchvision resnet18", "sequential"],
)
@pytest.mark.parametrize("granularity", ["channel", "cube", "feature"])
def test_plugs_in_saves_loads_and_comes_off(network, sites, sizes, granularity, tmp_path):
    model = network().eval()
    x = torch.rand(3, 3, 32, 32)
    purified = attach(model, sites[granularity], granularity, 10, x, seed=1)
    assert [u.head.in_features for u in purified.units()] == [sizes[granularity]] * len(sites[granularity])
    assert purified(x).shape == (3, 10)

    torch.save(purified.state_dict(), tmp_path / "purified.pt")
    again = attach(network(), sites[granularity], granularity, 10, x, seed=2)
    again.load_state_dict(torch.load(tmp_path / "purified.pt", weights_only=True))
    assert torch.equal(again(x), purified(x))

    bare = detach(purified)
    assert list(bare.state_dict()) == list(model.state_dict())
    assert torch.equal(bare(x), model(x))


def test_channels_last_changes_nothing():
    model, x = VGG16(10, 1 / 8).eval(), torch.rand(2, 3, 32, 32)
    purified = attach(model, VGG16.purifier_sites["feature"], "feature", 10, x)
    plain = purified(x)
    fast = copy.deepcopy(purified).to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert torch.allclose(plain, fast, atol=1e-6)


@pytest.mark.parametrize(
    ("init", "kept"), [("full", {"backbone", "unit"}), ("partial", {"backbone"}), ("random", set())]
)
def test_init_decides_what_survives(init, kept, blobs):
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()), nn.Flatten(), nn.Linear(64, 3)
    )
    still = (Recipe(0, 0.01), Recipe(0, 0.01))
    purified = purify(model, *blobs, granularity="channel", sites=["1"], init=init, stages=still)
    bare = detach(purified)
    survived = {
        name
        for name, a, b in (("backbone", model[0], bare[0]), ("unit", model[1][0], bare[1][0]))
        if torch.equal(a.weight, b.weight)
    }
    assert survived == kept


def test_stage_1_trains_the_heads_alone(blobs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    for frozen in (False, True):
        purified = purify(
            model,
            *blobs,
            granularity="feature",
            sites=["2"],
            stages=(Recipe(2, 0.1, batch_size=16), Recipe(0, 0.1)),
            bn_frozen_stats=frozen,
        )
        bare = detach(purified)
        assert torch.equal(bare[0].weight, model[0].weight)
        assert torch.equal(bare[1].running_mean, model[1].running_mean) is frozen
        assert not torch.equal(
            purified.units()[0].head.weight,
            attach(model, ["2"], "feature", 3, to_float(blobs[0])).units()[0].head.weight,
        )
        assert purified.effort.epochs == 2
        assert purified.effort.images == 192


def test_purify_learns_leaves_the_model_alone_and_is_deterministic(blobs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    before = copy.deepcopy(model.state_dict())
    stages = (Recipe(5, 0.05, batch_size=16), Recipe(20, 0.05, batch_size=16))
    runs = [purify(model, *blobs, granularity="channel", sites=["1"], stages=stages, seed=7) for _ in range(2)]
    assert all(torch.equal(model.state_dict()[n], t) for n, t in before.items())
    assert all(torch.equal(a, b) for a, b in zip(*(r.state_dict().values() for r in runs), strict=True))
    seen = diagnose(runs[0], *blobs)
    assert seen["oracle"] > 0.9


def test_wrong_sites_are_named():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3)), torch.rand(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"'9' is not a submodule; candidates: 0"):
        attach(model, ["9"], "channel", 3, x)
    with pytest.raises(ValueError, match=r"'1' gives shape \(2, 144\)"):
        attach(model, ["1"], "channel", 3, x)
    with pytest.raises(ConfigError, match="allowed: channel, cube, feature"):
        attach(model, ["0"], "kube", 3, x)


def test_dropout_draws_from_the_seed_and_moves_no_stream_of_the_callers(blobs, tmp_path):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip
    state = torch.get_rng_state()
    one, other = (purify(model, *blobs, stages=(Recipe(2, 0.1), Recipe(2, 0.1)), seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    save(one, tmp_path / "p.safetensors")
    load(model, tmp_path / "p.safetensors")
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluating_leaves_a_model_as_it_was(blobs):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    before = copy.deepcopy(model.state_dict())
    rates = evaluate(model.train(), *blobs, blobs[0], 1)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert rates["acc"] == accuracy(model.eval(), *blobs)
