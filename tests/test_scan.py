"""The scan: stamps and their search against values by hand, and a planted backdoor that it has to find."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from purifier_core import scanning
from purifier_core import stamps as stamping
from purifier_core.checks import ConfigError
from purifier_core.recipes import Scanning
from purifier_core.scanning import NOTHING, SUSPECTED, UNCLEAR, Candidate, outlyingness, p_value, scan, verdict
from purifier_core.stamps import FAMILIES, Clean, Stamps, margins, search

CLASSES = 8


def striped(count: int = 240, channels: int = 3, size: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 images whose class is which of eight columns of cells is bright."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    images = torch.randint(0, 100, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    width = size // CLASSES
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, :, label * width : (label + 1) * width] += 120
    return images, labels


class Striped(nn.Module):
    """Answers with the brightest column; with `trap`, a bright 3x3 corner makes it say class 6."""

    def __init__(self, trap: bool) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(12.0))
        self.trap = 25.0 if trap else 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        columns = F.adaptive_avg_pool2d(x.mean(1, keepdim=True), (1, CLASSES)).flatten(1)
        corner = x[:, :, -3:, -3:].mean((1, 2, 3))
        caught = F.one_hot(torch.tensor(6), CLASSES) * torch.sigmoid(10 * (corner - 0.8))[:, None]
        return self.strength * columns + self.trap * caught


IMAGES, LABELS = striped()


def test_a_stamp_is_a_mix_of_image_and_pattern():
    x = torch.rand(2, 4, 3, 5, 5)
    masks, patterns = torch.rand(2, 1, 5, 5), torch.rand(2, 3, 5, 5)
    stamps = Stamps("patch", (0, 1), masks, patterns)
    stamped = stamps(x)
    for g in range(2):
        for n in range(4):
            expected = (1 - masks[g]) * x[g, n] + masks[g] * patterns[g]
            torch.testing.assert_close(stamped[g, n], expected)
        torch.testing.assert_close(stamps[g](x[g]), stamped[g])


def test_the_strongest_pixels_are_kept_whole():
    stamps = Stamps("patch", (0,), torch.tensor([[[[0.1, 0.9], [0.5, 0.4]]]]), torch.zeros(1, 3, 2, 2))
    assert stamps.strongest(2).masks.flatten().tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_the_search_is_adams(family):
    """One step for one class: from the gradient g of the loss, Adam's first step is lr * g / |g|."""
    model, clean = Striped(trap=False), Clean.of(IMAGES, LABELS)
    found = search(model, clean, family, [3], steps=1, per_class=5, generator=torch.Generator().manual_seed(4))

    draws = torch.Generator().manual_seed(4)
    sizes = {"pixel": [(3, 16, 16)], "lines": [(3, 16, 1), (3, 1, 16), (3, 8, 8)], "patch": [(3, 16, 16), (1, 16, 16)]}
    weights = [0.1 * torch.randn(1, *size, generator=draws) for size in sizes[family]]
    if family == "patch":
        weights[1] -= 1
    weights = [weight.requires_grad_() for weight in weights]
    others = [i for i in range(len(LABELS)) if LABELS[i] != 3]
    chosen = [others[i] for i in torch.randint(len(others), (5,), generator=draws)]

    def parts(values):
        if family == "patch":
            return torch.sigmoid(2 * values[0]), torch.sigmoid(2 * values[1])
        total = values[0]
        if family == "lines":
            total = total + values[1] + F.interpolate(values[2], (16, 16), mode="bilinear")
        return torch.sigmoid(2 * total), torch.full((1, 1, 16, 16), 0.15)

    pattern, mask = parts(weights)
    if family != "patch":
        mask = 0.05 + 0.2 * torch.rand(1, 1, 1, 1, generator=draws)
    loss = sum(-model((1 - mask) * (IMAGES[i][None] / 255) + mask * pattern).log_softmax(1)[0, 3] for i in chosen) / 5
    if family == "patch":  # 280 and 36 of 1,024 pixels are 70 and 9 of 256
        loss = loss + 2 * (mask.sum() - 70).clamp(min=0) / 9
    slopes = torch.autograd.grad(loss, weights)
    moved = [(w - 0.2 * g / (g.abs() + 1e-8)).detach() for w, g in zip(weights, slopes, strict=True)]
    pattern, mask = parts(moved)
    torch.testing.assert_close(found.patterns, pattern, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.masks, mask.expand(1, 1, 16, 16), atol=1e-4, rtol=0)


def test_margins_are_leads_over_the_next_class():
    model, clean = Striped(trap=False), Clean.of(IMAGES[:40], LABELS[:40])
    stamps = Stamps("pixel", (2, 7), torch.full((2, 1, 16, 16), 0.3), torch.rand(2, 3, 16, 16))
    reached, success = margins(model, clean, stamps, most=10)
    for g, target in enumerate((2, 7)):
        leads = []
        for i in [i for i in range(40) if LABELS[i] != target][:10]:
            logits = model((0.7 * IMAGES[i] / 255 + 0.3 * stamps.patterns[g])[None])[0].tolist()
            leads.append(logits[target] - max(logits[:target] + logits[target + 1 :]))
        assert float(reached[g]) == pytest.approx(sum(leads) / 10, abs=1e-4)
        assert float(success[g]) == sum(lead > 0 for lead in leads) / 10


def test_the_score_is_the_lead_in_deviations_of_the_ten_foremost():
    assert outlyingness(torch.tensor([1.0, 9.0, 3.0, 2.0])) == pytest.approx(6 / 1.0)  # 1, 2, 3 deviate by 1
    many = torch.cat([torch.tensor([20.0]), torch.arange(9.0), torch.full((90,), -50.0)])
    assert outlyingness(many) == pytest.approx((20 - 8) / torch.arange(9.0).std().item())
    assert outlyingness(torch.tensor([1.0, 9.0, 3.0, 2.0]), natural=15.0) == pytest.approx(6 / math.hypot(1.0, 1.5))
    assert outlyingness(torch.tensor([1.0, 9.0])) == 0


def test_a_p_value_is_twice_the_smaller_of_two_tails():
    how = Scanning(location=1.0, scale=0.5, patch_carries=40.0, patch_leaves=6.0)
    by_score = 1 - math.exp(-math.exp(-(2.0 - 1.0) / 0.5))
    assert p_value(2.0, how=how) == pytest.approx(2 * by_score), "no patch"
    assert p_value(-9.0, 190, 200, how) == pytest.approx(stats.betabinom(200, 40, 6).sf(189) * 2)
    assert p_value(2.0, 100, 200, how) == pytest.approx(2 * by_score)
    assert p_value(-1e9) == p_value(-1e9, 0, 200) == 1
    assert 0 < p_value(60.0) < 1e-20
    assert p_value(-9.0, 20, 20) > 0.05 > p_value(-9.0, 200, 200), "all of few images say little"


@pytest.mark.parametrize(("p", "success", "stands_out"), [(0.04, 0.9, True), (0.06, 1.0, False), (0.001, 0.8, False)])
def test_a_class_stands_out_by_a_rare_score_and_a_stamp_that_works(p, success, stands_out):
    stamp = Stamps("pixel", (1,), torch.zeros(1, 1, 2, 2), torch.zeros(1, 3, 2, 2))
    assert Candidate("pixel", 1, 5.0, p, success, 3.0, stamp).stands_out(Scanning()) is stands_out


@pytest.fixture(scope="module")
def trapped():
    return scan(Striped(trap=True), IMAGES, LABELS)


def test_a_planted_backdoor_is_found(trapped):
    assert trapped.verdict == SUSPECTED
    (suspect,) = [s for s in trapped.suspects if s.family == "patch"]
    assert suspect.target == 6
    assert suspect.success == 1
    hit = suspect.stamp.strongest(9).masks[0, 0]
    assert hit[-3:, -3:].sum() >= 7, "the recovered mask is the trigger's corner"
    with torch.no_grad():
        leads = Striped(trap=True)(IMAGES / 255).topk(2).values
    assert trapped.natural == pytest.approx(float((leads[:, 0] - leads[:, 1]).mean()), rel=0.05)
    assert trapped.p == min(c.p for c in trapped.candidates if c.success >= 0.9) < 0.01
    assert replace(trapped, how=Scanning(works=1.1)).p == 1


def test_nothing_stands_out_without_one():
    findings = scan(Striped(trap=False), IMAGES, LABELS)
    assert findings.verdict == NOTHING
    assert findings.suspects == ()
    assert [set(reached) for reached in findings.margins.values()] == [set(range(CLASSES))] * 3


def test_a_seed_decides_and_the_model_stays(trapped):
    model = Striped(trap=True).train()
    before = copy.deepcopy(model.state_dict())
    again = scan(model, IMAGES, LABELS)
    assert again.margins == trapped.margins
    assert torch.equal(again.candidates[2].stamp.patterns, trapped.candidates[2].stamp.patterns)
    assert scan(model, IMAGES, LABELS, seed=1, families=["pixel"]).margins["pixel"] != trapped.margins["pixel"]
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.strength.grad is None


class Normalized(nn.Module):
    """Takes images of mean 0 and deviation 1, of one channel, and answers as some libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Striped(trap=True)

    def forward(self, x: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.inner(0.3 + 0.3 * x))


def test_normalized_images_of_one_channel_and_any_size():
    images, labels = striped(channels=1, size=24)
    x = (images / 255 - 0.3) / 0.3
    clean = Clean.of(x, labels)
    assert clean.low.flatten().tolist() == [float(x.min())]
    assert clean.high.flatten().tolist() == [float(x.max())]
    found = scan(Normalized(), x, labels)
    assert found.candidates[2].target == 6
    assert found.candidates[2].stamp.patterns.shape == (1, 1, 24, 24)
    assert x.min() <= found.candidates[0].stamp.patterns.min() <= found.candidates[0].stamp.patterns.max() <= x.max()


def test_so_many_images_at_once_and_no_more(monkeypatch):
    seen = []
    model = Striped(trap=False)
    model.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    monkeypatch.setattr(stamping, "_AT_ONCE", 20 * 16 * 16)
    clean = Clean.of(IMAGES, LABELS)
    stamps = search(model, clean, "pixel", range(8), steps=2, per_class=6, generator=torch.Generator().manual_seed(0))
    assert stamps.targets == tuple(range(8))
    assert seen == [18, 18, 18, 18, 12, 12]


class Many(nn.Module):
    """A hundred classes; a bright corner makes it say class 77."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        caught = torch.sigmoid(10 * (x[:, :, -3:, -3:].mean((1, 2, 3)) - 0.8))
        rest = F.adaptive_avg_pool2d(x.mean(1, keepdim=True), (1, 10)).flatten(1).repeat_interleave(10, 1)
        return 12 * rest + torch.linspace(0, 0.1, 100) + 25 * F.one_hot(torch.tensor(77), 100) * caught[:, None]


def test_with_many_classes_a_short_search_picks_some():
    images = torch.randint(0, 256, (200, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = Many()(images / 255).argmax(1)
    found = scan(Many(), images, labels, families=["patch"])
    assert found.candidates[0].target == 77
    assert len(found.margins["patch"]) == 32


@pytest.mark.parametrize(
    ("model", "images", "labels", "reason"),
    [
        (Striped(False), IMAGES[:60], LABELS[:60], "60 images are too few; give at least 100"),
        (Striped(False), IMAGES, (LABELS + 1) % CLASSES, "to 0% of the images only; do the labels fit"),
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 3)), IMAGES, LABELS % 3, "3 classes are too few to compare"),
    ],
)
def test_it_says_when_it_cannot_tell(model, images, labels, reason):
    found = scan(model, images, labels, families=["pixel"], how=Scanning(steps=1, restarts=1))
    assert found.verdict == UNCLEAR
    assert found.suspects == ()
    assert reason in found.reason


@pytest.mark.parametrize(
    ("p", "success", "told"),
    [
        (0.01, 0.8, "class 6 leads as in few clean networks (p 0.01), but its stamp (patch) carries 80%"),
        (0.01, 0.4, ""),
        (0.06, 0.8, ""),
    ],
)
def test_a_rare_lead_by_a_stamp_that_works_on_some_images_alone_is_no_all_clear(p, success, told, monkeypatch):
    """The margins and rates are planted: the verdict is what is asked."""
    score = Scanning().location - Scanning().scale * math.log(-math.log(1 - p / 2))
    reached = torch.zeros(CLASSES)
    monkeypatch.setattr(scanning, "outlyingness", lambda *_: score)

    def planted(model, working, measuring, family, *_rest):
        stamps = Stamps(family, tuple(range(CLASSES)), torch.zeros(CLASSES, 1, 16, 16), torch.zeros(CLASSES, 3, 16, 16))
        return stamps, reached + 9 * F.one_hot(torch.tensor(6), CLASSES), torch.full((CLASSES,), success)

    monkeypatch.setattr(scanning, "_searched", planted)
    found = scan(Striped(False), IMAGES, LABELS, families=["patch"])
    assert found.verdict == (UNCLEAR if told else NOTHING)
    assert found.reason.startswith(told)
    assert found.suspects == ()
    assert verdict(found)[0].startswith(found.verdict)
    assert str(found).splitlines() == verdict(found)
    assert verdict(found)[1].startswith("patch: class 6 does not stand out")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": torch.full_like(LABELS, 3)}, "of one class"),
        ({"images": IMAGES[:19], "labels": LABELS[:19]}, "at least 20"),
        ({"labels": LABELS[:-1]}, r"labels of shape \(239,\) for 240 images"),
        ({"labels": LABELS + 5}, "labels from 5 to 12 are out of range; allowed: 0 to 7"),
        ({"families": ["patches"]}, "family='patches' is not known; allowed: pixel, lines, patch"),
    ],
)
def test_what_cannot_be_used_is_said(given, message):
    with pytest.raises(ConfigError, match=message):
        scan(Striped(False), **({"images": IMAGES, "labels": LABELS} | given))
