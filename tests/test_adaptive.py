"""Attackers who know the defense: their losses by hand, and what they hand out."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from purifier_core.checks import ConfigError
from purifier_core.lab.adaptive import Attacker
from purifier_core.lab.cells import Cell
from purifier_core.lab.compute import Work
from purifier_core.lab.models import VGG16
from purifier_core.lab.profiles import PROFILES
from purifier_core.lab.records import Store
from purifier_core.recipes import Recipe
from purifier_core.stamps import FAMILIES, Stamps
from purifier_core.training import batch_statistics_alone

X = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 5
K = 10


def vgg() -> VGG16:
    torch.manual_seed(0)
    return VGG16(K, 1 / 16)


def test_marked_labels_tell_the_copies_apart():
    attacker = Attacker("reach", vgg(), K, X[:2], seed=0)
    assert attacker.marked(torch.tensor([5, 5, 0, 9]), 2).tolist() == [15, 15, 0, 9]


def test_the_excess_over_what_clean_images_reach():
    """One unit of one channel and pixel, clean maps 1 and 2, poisoned 5: cross-entropy + (5 - 2) / 2."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.unit = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())

        def forward(self, x):
            return F.pad(self.unit(x).mean((2, 3)), (0, 1))

    network = Network()
    with torch.no_grad():
        network.unit[0].weight.fill_(1)
        network.unit[0].bias.fill_(0)
    x = torch.tensor([5.0, 1.0, 2.0])[:, None, None, None].expand(3, 1, 2, 2)
    attacker = Attacker("reach", network, 2, x, seed=0)
    assert attacker.sites == ("unit.1",)
    plain = F.cross_entropy(network(x), torch.tensor([1, 0, 1]))
    assert float(attacker.loss(network, x, torch.tensor([3, 0, 1]))) == pytest.approx(float(plain) + 1.5, rel=1e-5)
    # a later batch whose clean images reach less: what was reached before counts, 1 % faded
    later = attacker.loss(network, x * torch.tensor([1, 0.1, 0.1])[:, None, None, None], torch.tensor([3, 0, 1]))
    assert float(later - F.cross_entropy(network(x * torch.tensor([1, 0.1, 0.1])[:, None, None, None]), torch.tensor(
        [1, 0, 1]))) == pytest.approx((5 - 1.98) / 1.98, rel=1e-5)  # fmt: skip
    assert float(attacker.loss(network, x, torch.tensor([1, 0, 1]))) == pytest.approx(float(plain)), "nothing poisoned"


def test_the_attacker_on_purifier_goes_with_and_without_units():
    attacker = Attacker("units", vgg(), K, X[:2], seed=0)
    purified = attacker.trained.eval()
    marked = attacker.marked(Y, 3)
    with torch.no_grad():
        masked, heads = purified.with_heads(X)
        bare = attacker.result()(X)
        expected = F.cross_entropy(bare, Y) + F.cross_entropy(masked, Y)
        expected += sum(F.cross_entropy(head[3:], Y[3:]) for head in heads)
        assert float(attacker.loss(purified, X, marked)) == pytest.approx(float(expected), rel=1e-5)


def test_it_hands_out_a_network_like_any_other():
    model = vgg()
    attacker = Attacker("units", model, K, X[:2], seed=0)
    attacker.loss(attacker.trained.train(), X, attacker.marked(Y, 3)).backward()
    result = attacker.result()
    assert result.state_dict().keys() == model.state_dict().keys()
    assert not any("head" in name for name in result.state_dict())
    assert all(int(m.num_batches_tracked) == 1 for m in result.modules() if isinstance(m, nn.BatchNorm2d)), "bare alone"


def test_batch_statistics_stay_out_of_the_running_ones():
    layer = nn.BatchNorm2d(3).train()
    before = copy.deepcopy(layer.state_dict())
    with batch_statistics_alone(layer):
        y = layer(5 + X)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
    layer(X)
    assert layer.num_batches_tracked == 1


def test_clean_images_keep_their_labels_under_the_stamps_at_hand():
    """Two stamps: of eight images, two of them copies and one of class 5, five are stamped."""
    network, attacker = vgg().eval(), Attacker("stamps", vgg(), K, X[:2], seed=0)
    patterns = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    attacker.stamps = [Stamps("pixel", (5,), torch.full((1, 1, 32, 32), 0.2), pattern[None]) for pattern in patterns]
    attacker.batches = 1  # no search now
    labels = torch.tensor([15, 15, 0, 1, 5, 3, 4, 0])
    found = float(attacker.loss(network, X, labels))
    plain = F.cross_entropy(network(X), labels % K)
    clean, truth = X[[2, 3, 5, 6, 7]], torch.tensor([0, 1, 3, 4, 0])
    under = [float(plain + F.cross_entropy(network(0.8 * clean + 0.2 * pattern), truth)) for pattern in patterns]
    assert min(abs(found - one) for one in under) < 1e-4


def test_new_stamps_are_searched_against_the_network_as_it_is_and_are_kept():
    network, attacker = vgg().train(), Attacker("stamps", vgg(), K, X[:2], seed=0)
    before = {name: value.clone() for name, value in network.state_dict().items() if "num_batches" in name}
    attacker.loss(network, X, torch.tensor([15, 15, 0, 1, 5, 3, 4, 0])).backward()
    assert [one.family for one in attacker.stamps] == list(FAMILIES)
    assert all(one.targets == (5,) for one in attacker.stamps)
    assert network.training
    after = network.state_dict()
    assert {int(after[name] - value) for name, value in before.items()} == {1}, "the search counts no batch"
    again = Attacker("stamps", vgg(), K, X[:2], seed=9)
    again.set_state(attacker.get_state())
    assert torch.equal(again.stamps[2].patterns, attacker.stamps[2].patterns)
    assert torch.equal(again.draws.get_state(), attacker.draws.get_state())
    assert again.batches == attacker.batches == 1


def test_such_an_attack_is_badnets_to_everyone_else():
    cell = Cell("mnist", "vgg16", "adaptive_bound", 0.1, "feature", 3000, 0, "small")
    assert not cell.needs_reference
    assert cell.backdoored().attack == "adaptive_bound"
    with pytest.raises(ConfigError, match="allowed: units, reach, stamps"):
        Attacker("badnets", vgg(), K, X[:2], seed=0)


def test_all_train_like_any_attack_and_one_goes_on_from_badnets(few, tmp_path, monkeypatch):
    tiny = replace(PROFILES["quick"], width=1 / 16, backdoor=Recipe(1, 0.1))
    monkeypatch.setitem(PROFILES, "quick", tiny)
    work = Work(Store(tmp_path), "quick", "mnist", "cpu")
    for attack, epochs in (("adaptive_bound", 1), ("adaptive_purifier", 2), ("adaptive_scan", 1)):
        record = work.compute(Cell("mnist", "vgg16", attack, 0.1, "none", 0, 0, "quick"))
        assert record.error is None
        assert record.effort["epochs"] == epochs
    trained = sorted(path.name.split("-")[2] for path in work.store.models.iterdir())
    assert trained == ["adaptive_bound", "adaptive_purifier", "adaptive_scan", "badnets"]
