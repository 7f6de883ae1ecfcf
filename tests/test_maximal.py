"""Margins without images: a planted backdoor, the largest margin of a linear network, and the p-value by hand."""

import copy

import pytest
import torch
from scipy import stats
from test_scan import Striped
from torch import nn

from purifier_core.checks import ConfigError
from purifier_core.maximal import gamma_p, maximal_margins


def test_the_largest_margin_of_a_linear_network():
    """Of logits w x on the unit cube, the margin of a class over one other is the sum of the positive differences."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4, bias=False))
    weights = torch.rand(4, 12, generator=torch.Generator().manual_seed(0))
    weights[1:3] = weights[0]  # all of these are one class
    weights[3] = weights[0] - 2.0 * torch.eye(12)[5]
    with torch.no_grad():
        model[1].weight.copy_(weights)
    found = maximal_margins(model, (3, 2, 2), starts=2)
    assert found.margins[3] == pytest.approx(0.0, abs=1e-6), "its best is a black pixel 5"
    assert found.margins[:3] == pytest.approx((0.0, 0.0, 0.0), abs=1e-6)
    with torch.no_grad():
        model[1].weight[3] = weights[0] + torch.linspace(-1, 1, 12)
    assert maximal_margins(model, (3, 2, 2), starts=2).margins[3] == pytest.approx(
        float(torch.linspace(-1, 1, 12).clamp(min=0).sum()), rel=1e-4
    )


def test_a_planted_backdoor_has_the_largest_margin():
    model = Striped(trap=True)
    before = copy.deepcopy(model.state_dict())
    found = maximal_margins(model, (3, 16, 16), starts=4)
    assert found.target == 6
    assert found.p < 0.01
    assert maximal_margins(Striped(trap=False), (3, 16, 16), starts=4).p > 0.05
    assert maximal_margins(model, (3, 16, 16), starts=4) != maximal_margins(model, (3, 16, 16), starts=4, seed=1)
    assert maximal_margins(model, (3, 16, 16), starts=4, batch_size=5).target == 6
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_p_value_is_of_a_gamma_with_the_others_moments():
    margins = torch.tensor([3.0, 9.0, 4.0, 5.0, 4.5])
    others = torch.tensor([3.0, 4.0, 5.0, 4.5]).double()
    shape, scale = float(others.mean() ** 2 / others.var()), float(others.var() / others.mean())
    assert gamma_p(margins) == pytest.approx(1 - stats.gamma.cdf(9.0, shape, scale=scale) ** 5, rel=1e-4)


def test_what_cannot_be_used_is_said():
    with pytest.raises(ConfigError, match="3 classes are too few"):
        maximal_margins(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), (3, 2, 2))
    with pytest.raises(ConfigError, match="low=1 is not below high=0"):
        maximal_margins(Striped(False), (3, 16, 16), low=1, high=0)
