"""The repair: stamps as they are put on images, its loss by hand, and a planted backdoor that it takes out."""

import copy
from dataclasses import replace

import pytest
import torch
from test_scan import IMAGES, LABELS, striped
from torch import nn
from torch.nn import functional as F

from purifier_core.checks import ConfigError
from purifier_core.lab.cells import Cell
from purifier_core.lab.compute import Work
from purifier_core.lab.profiles import PROFILES
from purifier_core.lab.records import Store
from purifier_core.recipes import Recipe, Scanning, Unlearning
from purifier_core.repairing import Bank, Repaired, repair, unlearn
from purifier_core.scanning import NOTHING, SUSPECTED, UNCLEAR, Candidate, scan
from purifier_core.stamps import FAMILIES, Clean, Stamps
from purifier_core.training import NO_AUGMENT

SHORT = Unlearning(seen=3000, lr=0.01, searches=2, steps=10, renewed=5)


def weak(value: float, target: int = 0) -> Stamps:
    return Stamps("pixel", (target,), torch.full((1, 1, 16, 16), 0.15), torch.full((1, 3, 16, 16), value))


def test_weak_stamps_have_many_strengths():
    bank = Bank(Clean.of(IMAGES, LABELS), mixed=0.0, dropout=0.4)
    bank.first = [weak(1.0)]
    x = torch.zeros(500, 3, 16, 16)
    stamped = bank(x, torch.Generator().manual_seed(0))
    strengths = stamped[:, 0, 0, 0]
    assert (stamped == strengths[:, None, None, None]).all()
    assert 0.05 <= strengths.min() < 0.06
    assert 0.24 < strengths.max() <= 0.25


def test_patches_keep_their_strongest_pixels_and_half_lack_blocks():
    masks = torch.linspace(0, 1, 256).view(1, 1, 16, 16)
    bank = Bank(Clean.of(IMAGES, LABELS), mixed=0.0, dropout=0.4)
    bank.first = [Stamps("patch", (0,), masks, torch.ones(1, 3, 16, 16))]
    stamped = bank(torch.zeros(1000, 3, 16, 16), torch.Generator().manual_seed(0))
    sizes = stamped[:, 0].flatten(1).sum(1)
    whole = [n for n, image in zip(sizes.tolist(), stamped, strict=True) if (image[0].flatten()[-int(n) :] == 1).all()]
    assert set(whole) >= {3, 6, 9, 12}, "12, 24, 36 and 48 of 1,024 pixels are these of 256"
    assert set(sizes.tolist()) <= set(range(13))
    assert 0.4 < len([n for n in sizes.tolist() if n in (3, 6, 9, 12)]) / 1000 < 0.8


def test_noise_replaces_a_part_of_most_stamps():
    bank = Bank(Clean.of(IMAGES, LABELS), mixed=0.7, dropout=0.0)
    bank.first = [weak(2.0)]  # brighter than any noise
    stamped = bank(torch.zeros(400, 3, 16, 16), torch.Generator().manual_seed(0))
    strengths = stamped.flatten(1).amax(1) / 2
    replaced = (stamped[:, 0].flatten(1) < 1.9 * strengths[:, None]).float().mean(1)
    assert 0.25 < float((replaced == 0).float().mean()) < 0.35
    assert 0.6 < float(replaced.max()) < 0.8
    assert float(replaced[replaced > 0].mean()) == pytest.approx(0.35, abs=0.05)


def test_half_of_the_stamps_are_the_newest():
    bank = Bank(Clean.of(IMAGES, LABELS), mixed=0.0, dropout=0.4)
    bank.first, bank.newest = [weak(1.0)], [weak(-1.0)]
    stamped = bank(torch.zeros(1000, 3, 16, 16), torch.Generator().manual_seed(0))
    assert 0.45 < float((stamped[:, 0, 0, 0] > 0).float().mean()) < 0.55


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(768), nn.Linear(768, 8)).eval()


@pytest.mark.parametrize("training_mode", [0.0, 0.25])
def test_a_step_of_unlearning_by_hand(training_mode, monkeypatch):
    """CE(f(x), z) + CE(f(S(x)), z) + 4 KL(g(x) || f(x)), z = (g(x) + onehot y) / 2; one batch, one step of SGD. In
    training mode once more, without the first term, and with 8 of the 32 stamped images."""
    given, seen = linear(), []
    clean = Clean.of(IMAGES[:32], LABELS[:32])
    candidate = Candidate("pixel", 0, 9.0, 0.0, 1.0, 9.0, weak(0.5))
    how = Unlearning(lr=0.1, weight_decay=0.0, searches=0, training_mode=training_mode)
    monkeypatch.setattr(Unlearning, "recipe", lambda self, count: Recipe(1, self.lr, weight_decay=0.0))

    def stamp(self, x, generator):
        seen.append(x)
        return 0.9 * x + 0.1

    monkeypatch.setattr(Bank, "__call__", stamp)
    network, _ = unlearn(given, clean, [candidate], how, NO_AUGMENT, seed=0)

    by_hand = linear()
    (x,) = seen
    order = [int((IMAGES[:32] / 255 - image).abs().sum((1, 2, 3)).argmin()) for image in x]
    f, stamped, g = (net(picture).softmax(1) for net, picture in ((by_hand, x), (by_hand, 0.9 * x + 0.1), (given, x)))
    z = (g.detach() + F.one_hot(LABELS[order], 8)) / 2
    loss = -(z * f.log()).sum() - (z * stamped.log()).sum() + 4 * (g.detach() * (g.detach() / f).log()).sum()
    loss = loss / 32
    if training_mode:
        few = torch.cat([x, 0.9 * x[:8] + 0.1]).flatten(1)
        normed = (few - few.mean(0)) / (few.var(0, correction=0) + 1e-5).sqrt()
        likely = by_hand[2](normed * by_hand[1].weight + by_hand[1].bias).softmax(1)
        loss = loss - (z[:8] * likely[32:].log()).sum() / 8
        loss = loss + 4 * (g.detach() * (g.detach() / likely[:32]).log()).sum() / 32
    slopes = torch.autograd.grad(loss, list(by_hand.parameters()))
    for trained, start, slope in zip(network.parameters(), by_hand.parameters(), slopes, strict=True):
        torch.testing.assert_close(trained, start - 0.1 * slope, atol=1e-5, rtol=1e-4)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(network[1], name), getattr(given[1], name)), "BatchNorm's statistics stay"
    assert not any(module.training for module in network.modules())


class Corner(nn.Module):
    """A small convolutional network, trained here: a bright 3x3 corner makes it say class 6."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
        self.classifier = nn.Linear(256, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).flatten(1))


def stamped(images: torch.Tensor) -> torch.Tensor:
    images = images.clone()
    images[:, :, -3:, -3:] = torch.tensor([255, 0, 255], dtype=torch.uint8)[:, None, None]
    return images


@pytest.fixture(scope="module")
def backdoored() -> nn.Module:
    images, labels = striped(800, seed=1)
    poison = torch.cat([images, stamped(images)])
    classes = torch.cat([labels, torch.full_like(labels, 6)])
    model = Corner()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    draws = torch.Generator().manual_seed(0)
    for _ in range(10):
        for index in torch.randperm(len(poison), generator=draws).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(poison[index] / 255), classes[index]).backward()
            optimizer.step()
    return model.eval()


def rates(model: nn.Module) -> tuple[float, float, float]:
    """Of images that nothing here has seen: ACC, ASR, and the share of triggered images classified rightly."""
    images, labels = striped(400, seed=2)
    others = labels != 6
    with torch.no_grad():
        plain, triggered = model(images / 255).argmax(1), model(stamped(images[others]) / 255).argmax(1)
    hits = (plain == labels, triggered == 6, triggered == labels[others])
    return tuple(float(hit.float().mean()) for hit in hits)


@pytest.fixture(scope="module")
def repaired(backdoored):
    return repair(backdoored, IMAGES, LABELS, how=SHORT)


def test_a_backdoor_is_found_and_taken_out(backdoored, repaired):
    acc, asr, _ = rates(backdoored)
    assert acc > 0.95
    assert asr > 0.95
    assert isinstance(repaired, Repaired)
    assert repaired.findings.verdict == SUSPECTED
    assert {s.target for s in repaired.findings.suspects} == {6}
    assert repaired.effort.seconds > repaired.findings.seconds
    after, asr, right = rates(repaired)
    assert after > acc - 0.05
    assert asr < 0.1
    assert right > 0.8


def test_the_given_model_stays_and_a_seed_decides(backdoored, repaired):
    before = copy.deepcopy(backdoored.state_dict())
    again = repair(backdoored, IMAGES, LABELS, repaired.findings, how=SHORT)
    assert all(torch.equal(before[name], value) for name, value in backdoored.state_dict().items())
    assert all(torch.equal(repaired.state_dict()[name], value) for name, value in again.state_dict().items())


def test_where_nothing_stands_out_nothing_changes_unless_asked(backdoored):
    found = scan(backdoored, IMAGES, LABELS, families=["patch"], how=Scanning(steps=1, restarts=1))
    nothing = replace(found, verdict=NOTHING)
    same = repair(backdoored, IMAGES, LABELS, nothing)
    assert same is not backdoored
    assert not same.training
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in backdoored.state_dict().items())
    changed = repair(backdoored, IMAGES, LABELS, nothing, anyway=True, how=SHORT)
    assert isinstance(changed, Repaired)
    assert not torch.equal(changed.model.classifier.weight, backdoored.classifier.weight)


def test_the_training_is_bounded():
    epochs = [Unlearning().recipe(count).epochs for count in (100, 500, 2500, 5000)]
    assert epochs == [20, 20, 8, 4]


def test_what_a_killed_unlearning_needs_is_kept():
    bank = Bank(Clean.of(IMAGES, LABELS), mixed=0.0, dropout=0.4)
    bank.newest = [weak(0.25, target=3)]
    again = Bank(bank.clean, mixed=0.0, dropout=0.4)
    again.set_state(bank.get_state())
    assert again.newest[0].targets == (3,)
    assert torch.equal(again.newest[0].patterns, bank.newest[0].patterns)


def test_the_lab_records_what_was_found_and_what_is_right(few, hasty, tmp_path):
    cell = Cell("mnist", "vgg16", "badnets", 0.1, "scan_repair", 3000, 0, "quick")
    assert cell.settings()["unlearning"]["seen"] == 20
    record = Work(Store(tmp_path), "quick", "mnist", "cpu", curves=False).compute(cell)
    assert record.error is None
    assert record.diagnostics["verdict"] in (SUSPECTED, NOTHING, UNCLEAR)
    assert [c["family"] for c in record.diagnostics["candidates"]] == list(FAMILIES)
    assert 0 <= record.diagnostics["ra"] <= 1 - record.asr
    assert record.effort["seconds"] >= record.diagnostics["scan_seconds"]
    assert Store(tmp_path).save(record).exists()


def test_the_lab_repairs_anyway_what_the_scan_does_not_suspect(few, hasty, monkeypatch, tmp_path):
    trusting = replace(PROFILES["quick"], scanning=replace(PROFILES["quick"].scanning, level=0.0))
    monkeypatch.setitem(PROFILES, "quick", trusting)
    work = Work(Store(tmp_path), "quick", "mnist", "cpu", curves=False)
    cells = [
        Cell("mnist", "vgg16", "badnets", 0.1, name, 3000, 0, "quick") for name in ("scan_repair", "scan_repair_anyway")
    ]
    asked, anyway = map(work.compute, cells)
    assert asked.diagnostics["candidates"] == anyway.diagnostics["candidates"]
    assert not anyway.diagnostics["suspects"]
    assert "sites" not in asked.diagnostics, "the network as it was given"
    assert anyway.diagnostics["sites"]


def test_labels_are_checked_although_the_scan_was_made_before(backdoored, repaired):
    for labels, message in ((LABELS + 9, "labels from 9"), (torch.full_like(LABELS, 6), "of one class")):
        with pytest.raises(ConfigError, match=message):
            repair(backdoored, IMAGES, labels, repaired.findings)
