"""The baselines, each against its definition worked independently on a tiny network."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from purifier_core.evaluation import accuracy
from purifier_core.lab.defenses import Inputs, recount_batchnorm
from purifier_core.lab.defenses.abl import abl, local_gradient_ascent, sample_losses
from purifier_core.lab.defenses.anp import anp, prune
from purifier_core.lab.defenses.fine_pruning import FIXED_SHARE, fine_pruning, mean_activation
from purifier_core.lab.defenses.finetuning import finetuning
from purifier_core.lab.defenses.mcr import curve_point, mcr
from purifier_core.lab.defenses.nad import attention, nad
from purifier_core.recipes import Recipe
from purifier_core.training import NO_AUGMENT, fit

SHORT = Recipe(2, 0.01, batch_size=32)


def untrained() -> nn.Module:
    """A small network with one convolutional unit named "0"."""
    torch.manual_seed(0)
    unit = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(unit, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3)).eval()


@pytest.fixture
def fresh() -> nn.Module:
    return untrained()


@pytest.fixture(scope="module")
def trained(blobs) -> nn.Module:
    model = untrained().train()
    fit(model, *blobs, Recipe(30, 0.1, batch_size=32), seed=0)
    assert accuracy(model, *blobs) > 0.9
    return model


@pytest.fixture
def victim(trained) -> nn.Module:
    """The same network, trained; a copy for each test."""
    return copy.deepcopy(trained)


DEFENSES = {
    "finetuning": lambda given: finetuning(given, SHORT),
    "fine_pruning": lambda given: fine_pruning(given, site="0", recipe=SHORT),
    "mcr": lambda given: mcr(given, recipe=SHORT, endpoint_recipe=SHORT),
    "nad": lambda given: nad(given, sites=["0"], recipe=SHORT, teacher_recipe=SHORT),
    "abl": lambda given: abl(given, stages=(SHORT, SHORT, SHORT)),
    "anp": lambda given: anp(given, steps=6),
}


@pytest.mark.parametrize("name", DEFENSES)
def test_every_defense_is_seeded_and_leaves_the_model_alone(name, victim, blobs):
    before = copy.deepcopy(victim.state_dict())
    first, again, other = (DEFENSES[name](Inputs(victim, *blobs, seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(victim.state_dict()[n], t) for n, t in before.items())
    assert not first.model.training
    assert first.effort.images > 0
    states = [torch.cat([t.flatten().double() for t in d.model.state_dict().values()]) for d in (first, again)]
    assert torch.equal(*states)
    assert first.effort.losses == again.effort.losses != other.effort.losses


def test_mean_activation_by_hand(victim, blobs):
    images, _ = blobs
    with torch.no_grad():
        expected = victim[0](images.float() / 255).mean((0, 2, 3))
    assert torch.allclose(mean_activation(victim, "0", images, batch_size=7), expected, atol=1e-6)


def test_fine_pruning_silences_the_dormant_channels_first(victim, blobs):
    images, labels = blobs
    order = mean_activation(victim, "0", images[:77]).argsort()
    fixed = fine_pruning(Inputs(victim, *blobs), site="0", recipe=SHORT, select="fixed")
    gone = round(FIXED_SHARE * 8)
    assert fixed.diagnostics["pruned"] == gone == 7
    assert (mean_activation(fixed.model, "0", images)[order[:gone]] == 0).all()
    chosen = fine_pruning(Inputs(victim, *blobs), site="0", recipe=Recipe(0, 0.1))
    x, y = images[77:], labels[77:]
    full = accuracy(victim, x, y)
    curve = dict(chosen.diagnostics["held_out_curve"])
    by_hand = copy.deepcopy(victim)
    for count in range(1, 8):  # a channel is silent when its BatchNorm's scale and shift are 0
        with torch.no_grad():
            by_hand[0][1].weight[order[:count]] = 0
            by_hand[0][1].bias[order[:count]] = 0
        assert curve[count] == accuracy(by_hand, x, y)
    assert chosen.diagnostics["pruned"] == max((n for n, a in curve.items() if a >= full - 0.04), default=0)


def test_curve_is_the_bezier():
    a, b, c = (torch.tensor(v) for v in (1.0, 2.0, 4.0))
    assert [curve_point(a, b, c, t).item() for t in (0.0, 0.5, 1.0)] == [1.0, 2.25, 4.0]


def test_mcr_ends_and_gradient_free_theta(victim, blobs):
    """With no curve epoch theta is the midpoint; t = 0 is the victim with statistics counted over the clean set."""
    found = mcr(Inputs(victim, *blobs, seed=3), recipe=Recipe(0, 0.1), endpoint_recipe=SHORT)
    tuned = finetuning(Inputs(victim, *blobs, seed=3), SHORT).model
    w0, w1 = victim[3].weight, tuned[3].weight
    assert torch.equal(found.sweep["0.0"][3].weight, w0)
    assert torch.equal(found.sweep["1.0"][3].weight, w1)
    assert torch.allclose(found.model[3].weight, 0.81 * w0 + 0.18 * (w0 + w1) / 2 + 0.01 * w1)
    assert list(found.sweep) == [f"{k / 10:.1f}" for k in range(11)]


def test_batchnorm_is_counted_by_hand(victim, blobs):
    """Equal batches: the running mean is the plain mean over all images, the variance the mean of batch variances."""
    images, _ = blobs
    model = copy.deepcopy(victim)
    recount_batchnorm(model, images, batch_size=32)
    with torch.no_grad():
        before = victim[0][0](images.float() / 255)
    assert torch.allclose(model[0][1].running_mean, before.mean((0, 2, 3)), atol=1e-5)
    variances = torch.stack([b.var((0, 2, 3)) for b in before.split(32)])
    assert torch.allclose(model[0][1].running_var, variances.mean(0), atol=1e-5)
    assert model[0][1].momentum == 0.1


def test_attention_by_hand():
    f = torch.tensor([[[[1.0, 2.0]], [[2.0, 0.0]]]])  # squares summed over channels: (5, 4), norm sqrt(41)
    assert torch.allclose(attention(f), torch.tensor([[[5.0, 4.0]]]) / 41**0.5, atol=1e-5)
    assert torch.allclose(attention(torch.rand(2, 7, 1, 1) + 0.1), torch.ones(2, 1, 1), atol=1e-4)  # a 1x1 map is void


def test_nad_returns_the_student_and_the_teacher_on_request(victim, blobs):
    given = Inputs(victim, *blobs, seed=5)
    options = {"sites": ["0"], "recipe": SHORT, "teacher_recipe": SHORT}
    teacher = nad(given, result="teacher", **options)
    tuned = finetuning(given, SHORT).model
    student = nad(given, **options)
    assert torch.equal(teacher.model[3].weight, tuned[3].weight)
    assert not torch.equal(student.model[3].weight, tuned[3].weight)
    assert student.effort.epochs == 4
    assert not any(m._forward_hooks for m in student.model.modules())


def test_nad_first_step_is_the_stated_loss(victim, blobs):
    """One step of one batch, no augmentation: theta - lr * gradient of CE + 500 * MSE(attention)."""
    images, labels = blobs
    one = Recipe(1, 0.001, batch_size=96, momentum=0.0, weight_decay=0.0)
    given = Inputs(victim, images, labels, NO_AUGMENT, seed=5)
    found = nad(given, sites=["0"], recipe=one, teacher_recipe=SHORT).model
    teacher = finetuning(given, SHORT).model
    student, x = copy.deepcopy(victim).train(), images.float() / 255
    maps = student[0](x)
    loss = F.cross_entropy(student[1:](maps), labels)
    loss = loss + 500 * F.mse_loss(attention(maps), attention(teacher[0](x).detach()))
    weight = student[0][0].weight
    expected = weight - 0.001 * torch.autograd.grad(loss, weight)[0]
    assert torch.allclose(found[0][0].weight, expected, atol=1e-5)


def test_anp_prunes_scales_at_or_below_the_threshold(victim):
    mask = torch.tensor([0.0, 0.2, 0.21, 1.0, 1.0, 0.1, 0.5, 0.9])
    pruned = prune(victim, {"0.1": nn.Parameter(mask)}, 0.2)
    scale = victim[0][1].weight.detach().clone()
    scale[[0, 1, 5]] = 0
    assert torch.equal(pruned[0][1].weight, scale)
    assert torch.equal(pruned[0][1].bias, victim[0][1].bias)
    assert torch.equal(pruned[0][1].running_mean, victim[0][1].running_mean)


def test_anp_takes_the_largest_threshold_that_held_out_accuracy_allows(victim, blobs):
    images, labels = blobs
    found = anp(Inputs(victim, images, labels), steps=40)
    x, y = images[77:], labels[77:]
    floor = accuracy(victim, x, y) - 0.05
    kept = {tau: accuracy(model, x, y) for tau, model in found.sweep.items()}
    assert kept == found.diagnostics["held_out"]
    allowed = [float(tau) for tau, value in kept.items() if value >= floor]
    assert found.diagnostics["tau"] == (max(allowed) if allowed else None)
    assert found.diagnostics["admissible"] == bool(allowed)
    assert len(found.sweep) == 20


def test_anp_without_an_admissible_threshold_returns_the_given_model_and_says_so(victim, blobs):
    found = anp(Inputs(victim, *blobs), max_drop=-1.1, steps=2)
    assert found.diagnostics["admissible"] is False
    assert found.diagnostics["tau"] is None
    assert found.diagnostics["pruned"] == 0
    assert all(torch.equal(t, found.model.state_dict()[n]) for n, t in victim.state_dict().items())


def test_anp_without_batchnorm_says_so(blobs):
    with pytest.raises(ValueError, match="BatchNorm"):
        anp(Inputs(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), *blobs))


def test_local_gradient_ascent_turns_at_gamma():
    """Above 0.5 the loss itself, below it its negative: gradients of opposite sign."""
    x, y = torch.eye(2), torch.tensor([0, 1])
    for scale in (0.1, 5.0):  # cross-entropy about 0.64 and 0.007
        weight = torch.full((), scale, requires_grad=True)
        plain = F.cross_entropy(x * weight, y)
        slope = torch.autograd.grad(plain, weight, retain_graph=True)[0]
        value = local_gradient_ascent(lambda z, w=weight: z * w, x, y)
        sign = 1 if plain > 0.5 else -1
        assert value.item() == pytest.approx(sign * plain.item())
        assert torch.autograd.grad(value, weight)[0] == sign * slope


def test_abl_isolates_what_has_the_lowest_loss(fresh, blobs):
    images, labels = blobs
    none = Recipe(0, 0.1)
    found = abl(Inputs(fresh, images, labels), stages=(none, none, none))
    with torch.no_grad():
        losses = F.cross_entropy(fresh(images.float() / 255), labels, reduction="none")
    assert set(found.diagnostics["isolated"]) == set(losses.argsort()[:2].tolist())
    assert torch.allclose(sample_losses(fresh, images, labels, NO_AUGMENT, 0, batch_size=7), losses, atol=1e-5)


@pytest.mark.parametrize(("remove", "seen"), [(True, 94), (False, 96)])
def test_abl_finetunes_on_the_rest_and_unlearns_the_isolated(fresh, blobs, remove, seen):
    none, one = Recipe(0, 0.1), Recipe(1, 0.01, batch_size=32, nesterov=True)
    images, labels = blobs
    tuned = abl(Inputs(fresh, images, labels), stages=(none, one, none), remove_isolated=remove)
    assert tuned.effort.images == seen
    unlearned = abl(Inputs(fresh, images, labels), stages=(none, none, Recipe(10, 0.01, nesterov=True)))
    assert unlearned.effort.images == 20
    picked = unlearned.diagnostics["isolated"]
    before, after = (sample_losses(m, images[picked], labels[picked], NO_AUGMENT, 0) for m in (fresh, unlearned.model))
    assert after.mean() > before.mean() + 0.1


def test_abl_unlearns_with_batchnorm_followed_kept_or_counted_anew(fresh, blobs):
    """At learning rate 0 unlearning changes BatchNorm's statistics or nothing."""
    images, labels = blobs
    stages = (Recipe(0, 0.1), SHORT, Recipe(3, 0.0, batch_size=2, weight_decay=0.0))
    tuned = abl(Inputs(fresh, images, labels), stages=(*stages[:2], Recipe(0, 0.1)))
    kinds = ("reference", "frozen", "recounted")
    unlearned = {kind: abl(Inputs(fresh, images, labels), stages=stages, batchnorm=kind).model for kind in kinds}
    by_hand = copy.deepcopy(unlearned["reference"])
    recount_batchnorm(by_hand, images[[i for i in range(len(images)) if i not in tuned.diagnostics["isolated"]]])
    means = {kind: model[0][1].running_mean for kind, model in unlearned.items()}
    assert torch.equal(means["frozen"], tuned.model[0][1].running_mean)
    assert not torch.equal(means["reference"], means["frozen"])
    assert torch.equal(means["recounted"], by_hand[0][1].running_mean)
    assert not any(model.training for model in unlearned.values())
    assert all(torch.equal(model[3].weight, tuned.model[3].weight) for model in unlearned.values())


def test_abl_moves_the_weights_with_frozen_statistics_too(fresh, blobs):
    stages = (Recipe(0, 0.1), SHORT, Recipe(3, 0.01, batch_size=2))
    frozen = abl(Inputs(fresh, *blobs), stages=stages, batchnorm="frozen").model
    tuned = abl(Inputs(fresh, *blobs), stages=(*stages[:2], Recipe(0, 0.1))).model
    assert not torch.equal(frozen[3].weight, tuned[3].weight)
