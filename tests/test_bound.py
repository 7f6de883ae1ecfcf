"""Bounded activations: quantiles against torch's, bounds by hand, and the choice of a quantile."""

import copy

import pytest
import torch
from brief import BRIEF
from torch import nn

from purifier_core.bounds import QUANTILES, Bound, Largest, bound
from purifier_core.checks import ConfigError
from purifier_core.evaluation import evaluate
from purifier_core.lab import data
from purifier_core.lab.attacks import badnets
from purifier_core.lab.cells import Cell
from purifier_core.lab.compute import Work
from purifier_core.lab.poisoning import asr_set
from purifier_core.lab.profiles import PROFILES
from purifier_core.lab.records import Store
from purifier_core.sites import detach

IMAGES = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    parts = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3))
    return nn.Sequential(*parts).eval()


@pytest.mark.parametrize("q", [0.9, 0.95, 0.999, 1.0])
@pytest.mark.parametrize("count", [7, 1000])
def test_streamed_quantiles_are_torchs(q, count):
    values = torch.randn(count, 6, generator=torch.Generator().manual_seed(1))
    largest = Largest(count, lowest=0.9)
    for piece in values.split(13):
        largest.add(piece)
    torch.testing.assert_close(largest.quantile(q), values.quantile(q, 0))
    assert len(largest.kept) <= max(7, 0.1 * count + 2)


@pytest.mark.parametrize(
    ("granularity", "shapes"),
    [("channel", [(4, 1, 1), (5, 1, 1)]), ("cube", [(1, 6, 6), (1, 4, 4)]), ("feature", [(4, 6, 6), (5, 4, 4)])],
)
def test_bounds_are_quantiles_of_the_clean_activations(granularity, shapes):
    model = net()
    bounded = bound(model, IMAGES, granularity, 0.97, batch_size=17)
    x = IMAGES / 255
    for unit, name, shape in zip(bounded.wrappers(), ("1", "3"), shapes, strict=True):
        assert isinstance(unit, Bound)
        assert unit.upper.shape == shape
        with torch.no_grad():
            f = model[: int(name) + 1](x)
        over = {"channel": (0, 2, 3), "cube": (0, 1), "feature": (0,)}[granularity]
        kept = [d for d in range(4) if d not in over]
        expected = f.permute(*over, *kept).flatten(0, len(over) - 1).quantile(0.97, 0)
        torch.testing.assert_close(unit.upper.flatten(), expected.flatten())


def test_what_clean_images_reach_passes_and_more_is_cut():
    model = net()
    bounded = bound(model, IMAGES, "feature", 1.0)
    x = IMAGES / 255
    torch.testing.assert_close(bounded(x), model(x))
    far = 50 * x
    assert not torch.allclose(bounded(far), model(far))
    unit = bounded.wrappers()[0]
    assert (unit(model[0](far)) <= unit.upper).all()


def test_the_given_model_stays_and_detach_gives_it_back():
    model = net()
    before = copy.deepcopy(model.state_dict())
    bounded = bound(model, IMAGES, "channel", 0.9)
    for state in (model.state_dict(), detach(bounded).state_dict()):
        assert state.keys() == before.keys()
        assert all(torch.equal(state[name], before[name]) for name in before)


@pytest.mark.parametrize("budget", [0.01, 0.3, 1.0])
def test_the_quantile_is_the_lowest_within_the_budget(budget):
    model = net()
    chosen = bound(model, IMAGES, "feature", budget=budget)
    assert chosen.changed is not None
    assert chosen.changed <= budget or chosen.quantile == 1
    if chosen.quantile > QUANTILES[0]:
        order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
        tighter = QUANTILES[QUANTILES.index(chosen.quantile) - 1]
        lower = bound(model, IMAGES[order[:48]], "feature", tighter)
        held = IMAGES[order[48:]] / 255
        assert (lower(held).argmax(1) != model(held).argmax(1)).float().mean() > budget


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "pixel"}, "granularity='pixel' is not known"),
        ({"quantile": 0.0}, "quantile=0.0 is out of range; allowed: above 0, up to 1"),
        ({"quantile": 95}, "quantile=95 is out of range"),
        ({"budget": -1}, "budget=-1 is out of range"),
        ({"images": IMAGES[:9]}, "at least 10"),
    ],
)
def test_what_cannot_be_used_is_said(options, message):
    with pytest.raises(ConfigError, match=message):
        bound(net(), **({"images": IMAGES} | options))


def test_too_many_values_are_refused_before_anything_is_computed():
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ConfigError, match=r"would keep .* GiB; take fewer images"):
        bound(model, torch.zeros(1, 3, 32, 32, dtype=torch.uint8).expand(200_000, -1, -1, -1), "feature", 0.9)


def test_bounds_remove_badnets_from_a_backdoored_network(quick, monkeypatch):
    """400 clean images, as in the trial that this method comes from: ASR from near 1 to near 0, ACC as it was."""
    monkeypatch.setitem(PROFILES, "quick", BRIEF)
    work = Work(Store(), "quick", "mnist", "cpu")  # where it was trained for the tables
    model, _ = work.backdoored(Cell("mnist", "vgg16", "badnets", 0.1, "none", 0, 0, "quick"))
    split = data.load("mnist", embedded=True)
    triggered = asr_set(split.test_images, split.test_labels, badnets, 5)

    def rates(network):
        return evaluate(network, split.test_images, split.test_labels, triggered, 5)

    before = rates(model)
    assert before["asr"] > 0.9
    for quantile in (1.0, None):
        after = rates(bound(model, split.train_images[:400], "feature", quantile))
        assert after["asr"] < 0.05
        assert after["acc"] > before["acc"] - 0.02
