"""I-BAU, NPD and FT-SAM: each step against a computation of its own on tiny inputs."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from purifier_core.lab.defenses import Inputs
from purifier_core.lab.defenses.ft_sam import ft_sam, smooth
from purifier_core.lab.defenses.i_bau import hypergradient, i_bau
from purifier_core.lab.defenses.npd import attack, npd, second
from purifier_core.lab.models import ResNet18
from purifier_core.recipes import Recipe
from purifier_core.training import NO_AUGMENT

STEP = Recipe(1, 0.1, batch_size=96, momentum=0.0, weight_decay=0.0)


def small() -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Tanh())
    return nn.Sequential(body, nn.Flatten(), nn.Linear(64, 3))


def test_ft_sam_steps_by_the_gradient_uphill(blobs):
    images, labels = blobs
    given = small()
    tuned = ft_sam(Inputs(given, images, labels, NO_AUGMENT), STEP).model

    def slopes_at(network: nn.Module) -> list[torch.Tensor]:
        return list(torch.autograd.grad(smooth(network(images / 255), labels, 0.1), list(network.parameters())))

    by_hand = small().train()
    start = [weight.detach().clone() for weight in by_hand.parameters()]
    slopes = slopes_at(by_hand)
    length = sum(float((w * g).pow(2).sum()) for w, g in zip(start, slopes, strict=True)) ** 0.5
    with torch.no_grad():
        for weight, slope in zip(by_hand.parameters(), slopes, strict=True):
            weight += 2.0 * weight**2 * slope / length
    uphill = slopes_at(by_hand)
    for trained, weight, slope in zip(tuned.parameters(), start, uphill, strict=True):
        torch.testing.assert_close(trained, weight - 0.1 * slope, atol=1e-5, rtol=1e-4)
    once = small().train()
    once(images / 255)
    torch.testing.assert_close(tuned[0][1].running_mean, once[0][1].running_mean)
    assert tuned[0][1].num_batches_tracked == 1, "the second pass leaves BatchNorm's statistics alone"


def test_smoothed_labels_by_hand():
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    logs = logits.log_softmax(1)[0]
    assert float(smooth(logits, torch.tensor([0]), 0.1)) == pytest.approx(
        -float(0.9 * logs[0] + 0.05 * logs[1] + 0.05 * logs[2]), rel=1e-5
    )


def test_a_hypergradient_is_the_one_of_dense_jacobians():
    """Inner 0.5 d'Ad + d'Bw and outer g'd + c'w: the slope by w is c - step * B'v, v the sum of (1 - step * A)^k g."""
    torch.manual_seed(0)
    a = torch.randn(4, 4)
    a = a @ a.T / 4
    b, g, c = torch.randn(4, 5), torch.randn(4), torch.randn(5)
    d, w = torch.randn(4, requires_grad=True), torch.randn(5, requires_grad=True)
    (found,) = hypergradient(g @ d + c @ w, lambda d: 0.5 * d @ a @ d + d @ b @ w, d, [w], 0.1, iterations=3)
    carry = torch.eye(4) - 0.1 * a
    v = g + carry @ g + carry @ carry @ g
    torch.testing.assert_close(found, c - 0.1 * b.T @ v)


def test_i_bau_by_hand(blobs):
    """One round of one batch, from the definitions alone: the perturbation, dense Jacobians, Adam's first step."""
    images, labels = blobs[0][:12, :, ::4, ::4], blobs[1][:12]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    recipe = Recipe(1, 0.01, batch_size=12)
    done = i_bau(Inputs(model, images, labels, seed=3), recipe)
    x = images / 255
    weight, bias = (p.detach().clone() for p in model.parameters())

    def loss(d, weight, bias, answers, share=1.0):
        return F.cross_entropy((x + share * d).flatten(1) @ weight.T + bias, answers)

    own = ((x.flatten(1) @ weight.T) + bias).argmax(1)
    zero = torch.zeros(1, 3, 2, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(zero, weight, bias, own), zero)
    d = (10 * slope).detach()  # the penalty's slope at 0 is 0
    share = torch.zeros(12, 1, 1, 1)
    share[torch.randperm(12, generator=torch.Generator().manual_seed(3))[0]] = 1

    def stepped(d, weight, bias):
        d = d.clone().requires_grad_() if not d.requires_grad else d
        inner = 0.001 * d.norm() ** 2 - loss(d, weight, bias, labels)
        return d - 0.1 * torch.autograd.grad(inner, d, create_graph=True)[0]

    outer = torch.autograd.functional.jacobian(lambda *v: loss(*v, labels, share), (d, weight, bias))
    j = torch.autograd.functional.jacobian(stepped, (d, weight, bias))
    by_d, g = j[0].reshape(12, 12), outer[0].flatten()
    v = sum(torch.linalg.matrix_power(by_d.T, k) @ g for k in range(5))
    for after, start, direct, jacobian in zip(done.model.parameters(), (weight, bias), outer[1:], j[1:], strict=True):
        total = direct + (jacobian.reshape(12, -1).T @ v).view_as(direct)
        torch.testing.assert_close(after, start - 0.01 * total / (total.abs() + 1e-8), atol=1e-5, rtol=1e-4)
    assert done.diagnostics["perturbation"] == pytest.approx(float(d.norm()), abs=1e-3)


def test_npd_moves_images_towards_the_next_class(blobs):
    images, labels = blobs
    model, x = small().eval(), images[:6] / 255
    target = second(model(x), labels[:6])
    for row, label, chosen in zip(model(x).tolist(), labels[:6].tolist(), target.tolist(), strict=True):
        assert row[chosen] == max(v for k, v in enumerate(row) if k != label)
    moved = attack(model, x, target, radius=3.0, step=0.1, steps=1)
    pixels = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(model(pixels), target), pixels)
    clear = slope.abs() > 1e-6  # rounding decides on the sign of less
    assert clear.float().mean() > 0.95
    by_hand = (x - 0.1 * slope.sign()).clamp(0, 1)  # 0.1 * sqrt(192) lies within the ball
    torch.testing.assert_close(moved[clear], by_hand[clear])
    near = attack(model, x, target, radius=0.5, step=0.1, steps=1)
    by_hand = (x - 0.5 / 192**0.5 * slope.sign()).clamp(0, 1)
    torch.testing.assert_close(near[clear], by_hand[clear])


def test_npds_loss_by_hand(blobs):
    images, labels = blobs
    given = small().eval()
    still = Recipe(0, 0.0)
    done = npd(Inputs(given, images, labels), block="0", stages=(still, STEP))
    assert done.diagnostics == {"place": "0.0"}
    polarizer = done.model[0][0][0]

    conv, norm = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3).eval()
    with torch.no_grad():
        conv.weight.copy_(torch.eye(3)[:, :, None, None])
    by_hand = nn.Sequential(conv, norm, copy.deepcopy(given)).eval()
    x = images / 255
    plain = by_hand(x)
    target = second(plain, labels)
    answers = by_hand(attack(by_hand, x, target, 3.0, 0.1, 2))
    p = answers.softmax(1)
    next_class = second(answers, labels)
    rows = torch.arange(len(x))
    loss = F.cross_entropy(plain, labels) + 0.4 * F.cross_entropy(answers, plain.argmax(1))
    loss = loss - 0.4 * (1.0001 - p[rows, next_class]).log().mean() - 0.4 * (1.0001 - p[rows, target]).log().mean()
    slopes = torch.autograd.grad(loss, [conv.weight, norm.weight, norm.bias])
    for after, start, slope in zip(polarizer.parameters(), [conv.weight, norm.weight, norm.bias], slopes, strict=True):
        torch.testing.assert_close(after, start - 0.1 * slope, atol=1e-5, rtol=1e-4)
    assert torch.equal(done.model[2].weight, given[2].weight), "the polarizer alone is trained"


def test_npd_sits_in_front_of_the_last_blocks_convolution(blobs):
    images, labels = blobs
    model = ResNet18(3, 1 / 16)
    done = npd(Inputs(model, images, labels), block=model.last_conv, stages=(Recipe(1, 0.0), Recipe(0, 0.0)))
    assert done.diagnostics == {"place": "stage4.1.conv1"}
    assert done.model.get_submodule("stage4.1.conv1.0")[0].weight.shape == (32, 32, 1, 1)
