"""The shared network and training loop, against plain PyTorch."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from purifier_core.evaluation import accuracy, evaluate, evaluated_in_bf16, evaluating, predict, to_float
from purifier_core.lab.models import VGG16, ResNet18, build
from purifier_core.lab.profiles import BACKDOOR, MCR, NAD_STUDENT
from purifier_core.recipes import Recipe
from purifier_core.training import NO_AUGMENT, Augment, Augmented, DivergedError, batches, cross_entropy, fit


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))


def test_vgg16_is_the_papers():
    model = VGG16(10)
    assert sum(p.numel() for p in model.parameters()) == 15_255_626
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm1d))]
    assert [sum(m.num_features for m in norms if isinstance(m, kind)) for kind in (nn.BatchNorm2d, nn.BatchNorm1d)] == [
        4224,
        1024,
    ]
    assert VGG16(43, 1 / 8).eval()(torch.rand(1, 3, 32, 32)).shape == (1, 43)


def test_resnet18_is_the_papers():
    model = ResNet18(10)
    assert sum(p.numel() for p in model.parameters()) == 11_173_962
    assert sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d)) == 4800
    seen = []
    model.stage4[1].register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
    assert model.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert seen == [(2, 512, 4, 4)]
    assert ResNet18(43, 1 / 8).eval()(torch.rand(1, 3, 32, 32)).shape == (1, 43)


def test_build_depends_on_the_seed_alone():
    first, _, second = build("vgg16", 10, 1 / 8, 3), torch.rand(5), build("vgg16", 10, 1 / 8, 3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(build("vgg16", 10, 1 / 8, 4).classifier[2].weight, first.classifier[2].weight)


@pytest.mark.parametrize(
    ("recipe", "rates"),
    [
        (BACKDOOR, {0: 0.1, 69: 0.1, 70: 0.01, 79: 0.01}),
        (NAD_STUDENT, {0: 0.1, 1: 0.1, 2: 0.05, 4: 0.025, 8: 0.00625}),
        (MCR, {0: 0.01, 20: 0.01, 28: 0.00505, 36: 0.0001, 39: 0.0001}),
    ],
)
def test_schedules(recipe, rates):
    assert {epoch: recipe.lr_at(epoch) for epoch in rates} == pytest.approx(rates)


def test_one_step_is_sgd_on_cross_entropy(blobs):
    images, labels = blobs
    model = linear()
    expected = copy.deepcopy(model)
    fit(model, images, labels, Recipe(1, 0.1, batch_size=96), seed=0, augment=NO_AUGMENT)
    loss = F.cross_entropy(expected(images.float() / 255), labels)
    slopes = torch.autograd.grad(loss, list(expected.parameters()))
    for trained, start, slope in zip(model.parameters(), expected.parameters(), slopes, strict=True):
        assert torch.allclose(trained, start - 0.1 * (slope + 1e-4 * start), atol=1e-6)


def test_same_seed_gives_bit_identical_weights(digits):
    weights = []
    for seed in (1, 1, 2):
        model = build("vgg16", 10, 1 / 16, 0).to(memory_format=torch.channels_last).train()
        fit(model, digits.train_images[:256], digits.train_labels[:256], Recipe(2, 0.1), seed=seed)
        weights.append(torch.cat([t.flatten().double() for t in model.state_dict().values()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_augmentation_equals_flip_pad_and_crop_one_by_one():
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    batch = Augmented(images, Augment(flip=True, pad=2))
    batch.draw(torch.Generator().manual_seed(5))
    replay = torch.Generator().manual_seed(5)
    shifts = torch.randint(0, 5, (2, 50), generator=replay)
    flips = torch.rand(50, generator=replay) < 0.5
    index = torch.tensor([3, 41, 7, 7])
    for got, k in zip(batch(index), index.tolist(), strict=True):
        padded = F.pad(images[k], (2, 2, 2, 2))
        down, across = shifts[:, k].tolist()
        crop = padded[:, down : down + 8, across : across + 8]
        assert torch.equal(got, (crop.flip(2) if flips[k] else crop).float() / 255)
    assert 10 < int(flips.sum()) < 40
    assert batch(index).is_contiguous(memory_format=torch.channels_last)


def test_without_flip_nothing_is_mirrored():
    images = torch.zeros(64, 3, 8, 8, dtype=torch.uint8)
    images[:, :, :, 1] = 255  # a line near the left edge; mirrored it would lie near the right one
    for flip in (False, True):
        batch = Augmented(images, Augment(flip, pad=1))
        batch.draw(torch.Generator().manual_seed(0))
        assert bool(batch(torch.arange(64))[:, :, :, 4:].any()) is flip


def test_a_last_batch_of_one_joins_the_one_before():
    assert [len(b) for b in batches(torch.arange(129), 64)] == [64, 65]
    assert [len(b) for b in batches(torch.arange(130), 64)] == [64, 64, 2]
    assert [len(b) for b in batches(torch.arange(1), 64)] == [1]


def test_steps_end_the_training_early(blobs):
    effort = fit(linear(), *blobs, Recipe(0, 0.1, batch_size=32), seed=0, steps=7)
    assert effort.images == 7 * 32
    assert effort.epochs == pytest.approx(7 / 3)


def test_steps_are_counted_where_a_last_image_joins_a_batch(blobs):
    images, labels = (part[:65] for part in blobs)
    effort = fit(linear(), images, labels, Recipe(0, 0.1, batch_size=64), seed=0, steps=10)
    assert effort.images == 10 * 65


def test_a_loss_that_is_no_number_is_an_error(blobs):
    with pytest.raises(DivergedError, match="smaller learning rate"):
        fit(linear(), *blobs, Recipe(50, 1e30), seed=0)


def test_evaluate_counts(blobs):
    images, labels = blobs
    model = linear().eval()
    guesses = [int(model(images[k : k + 1].float() / 255).argmax()) for k in range(len(images))]
    expected = {
        "acc": sum(g == y for g, y in zip(guesses, labels.tolist(), strict=True)) / 96,
        "asr": sum(g == 2 for g in guesses[:50]) / 50,
    }
    assert evaluate(model, images, labels, images[:50], target=2) == expected
    assert math.isclose(accuracy(model, images, labels), expected["acc"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("bf16", [False, True])
def test_a_replayed_step_is_the_eager_one(digits, bf16):
    there, labels = digits.train_images[:1000].cuda(), digits.train_labels[:1000].cuda()
    found = []
    for graph in (False, True):
        model = build("vgg16", 10, 1 / 8, 0).cuda().to(memory_format=torch.channels_last).train()
        fit(model, there, labels, Recipe(2, 0.01, bf16=bf16), seed=1, graph=graph)
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    start = torch.cat([p.detach().flatten() for p in build("vgg16", 10, 1 / 8, 0).cuda().parameters()])
    assert (found[0] - found[1]).norm() < 0.1 * (found[0] - start).norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_step_that_changes_from_call_to_call_is_not_replayed(blobs):
    images, labels = (t.cuda() for t in blobs)
    calls: list[int] = []

    def moody(model, x, y):
        calls.append(1)
        return F.cross_entropy(model(x), y) * (len(calls) % 2)

    with pytest.warns(UserWarning, match="cannot be a CUDA graph"):
        fit(linear().cuda(), images, labels, Recipe(4, 0.1, batch_size=32), seed=0, loss=moody, graph=True)
    assert len(calls) > 12


def gradient(digits, seed: int, bf16: bool) -> torch.Tensor:
    model = build("vgg16", 10, 1 / 8, seed).to(memory_format=torch.channels_last).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = cross_entropy(model, to_float(digits.train_images[:256]), digits.train_labels[:256])
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_under_bf16_the_gradient_points_the_way_of_fp32s(digits, seed):
    """13 layers of products rounded to 8 bits: a cosine of 0.81 to 0.86 with and without the processor's instructions,
    and a difference of 0.54 to 0.62 of the gradient's length. A gradient of other images has a cosine near 0."""
    full, rounded = gradient(digits, seed, False), gradient(digits, seed, True)
    assert F.cosine_similarity(full, rounded, 0) > 0.7
    assert 0 < (full - rounded).norm() < 0.75 * full.norm()


def test_bf16_rounds_products_and_keeps_the_weights(digits):
    """A step goes the way of the one in fp32, but for the rounding of its products to 8 bits."""
    start, *trained = (build("vgg16", 10, 1 / 8, 0).to(memory_format=torch.channels_last).train() for _ in range(3))
    for model, bf16 in zip(trained, (False, True), strict=True):
        recipe = Recipe(1, 0.01, batch_size=256, bf16=bf16)
        fit(model, digits.train_images[:256], digits.train_labels[:256], recipe, seed=0, augment=NO_AUGMENT)
        assert {p.dtype for p in (*model.parameters(), *model.buffers())} == {torch.float32, torch.int64}
    here, full, rounded = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (start, *trained))
    assert 0 < (full - rounded).norm() < (full - here).norm()  # the other way it would be twice that


def test_training_under_bf16_converges(digits):
    """Over three seeds together: one seed alone may stray, in fp32 as well."""
    first, last = 0.0, 0.0
    for seed in range(3):
        model = build("vgg16", 10, 1 / 16, seed).to(memory_format=torch.channels_last).train()
        recipe = Recipe(5, 0.025, batch_size=32, bf16=True)
        effort = fit(model, digits.train_images[:384], digits.train_labels[:384], recipe, seed=seed, augment=NO_AUGMENT)
        first, last = first + effort.losses[0], last + effort.losses[-1]
    assert last < 0.5 * first


def test_watching_sees_every_epoch_in_eval_mode_and_changes_nothing(blobs):
    seen: list[tuple[int, bool, int]] = []
    weights = []
    for watch in (None, lambda model, epoch: seen.append((epoch, model.training, len(predict(model, blobs[0]))))):
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3), nn.BatchNorm1d(3), nn.Dropout(0.0)).train()
        with torch.no_grad():
            model[1].weight.fill_(0.01)
            model[1].bias.zero_()
        model[3].eval()  # a module in a mode of its own keeps it
        fit(model, *blobs, Recipe(3, 0.1, batch_size=32), seed=0, watch=watch)
        weights.append(torch.cat([t.flatten().double() for t in model.state_dict().values()]))
    assert seen == [(1, False, 96), (2, False, 96), (3, False, 96)]
    assert torch.equal(*weights)


def test_evaluating_gives_every_module_its_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout())).train()
    model[1].eval()
    with evaluating(model):
        assert not any(m.training for m in model.modules())
    assert [m.training for m in model.modules()] == [True, True, False, False]


def test_one_cycle_rises_to_its_peak_and_falls_to_nothing():
    cycle = Recipe(10, 0.2, cycle=True)
    rates = [cycle.lr_at(epoch / 10) for epoch in range(101)]
    assert rates[0] == pytest.approx(rates[-1]) == pytest.approx(0.0)
    assert max(rates) == rates[30] == pytest.approx(0.2)
    assert rates[:31] == sorted(rates[:31])
    assert rates[30:] == sorted(rates[30:], reverse=True)


def test_one_cycle_changes_the_rate_with_every_batch(blobs, monkeypatch):
    """Three batches an epoch: the rates are those of the middles of the batches."""
    used: list[float] = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda o: (used.append(o.param_groups[0]["lr"]), step(o))[1])
    recipe = Recipe(2, 0.1, batch_size=32, cycle=True)
    fit(linear(), *blobs, recipe, seed=0)
    assert used == pytest.approx([recipe.lr_at((k + 0.5) / 3) for k in range(6)])


def test_a_network_may_be_asked_under_bf16(blobs):
    seen: list[torch.dtype] = []
    model = linear().eval()
    model.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    predict(model, blobs[0])
    with evaluated_in_bf16():
        predict(model, blobs[0])
    predict(model, blobs[0])
    assert seen == [torch.float32, torch.bfloat16, torch.float32]
