"""The memory layout of a network: it changes no result beyond rounding."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from purifier_core.device import threads
from purifier_core.fix import costs
from purifier_core.lab.models import build
from purifier_core.layout import BatchNorm2d, Strided, arrange, fed, safely
from purifier_core.recipes import Recipe
from purifier_core.training import NO_AUGMENT, fit


@pytest.mark.parametrize("shape", [(4, 8, 6, 5), (3, 5, 7, 3), (64, 8, 32, 32)])
def test_batchnorm_of_few_channels_gives_torchs_gradients_and_statistics(shape):
    torch.manual_seed(0)
    x = (3 + torch.randn(shape, dtype=torch.double)).to(memory_format=torch.channels_last)
    theirs = nn.BatchNorm2d(shape[1]).double()
    nn.init.normal_(theirs.weight)
    ours = BatchNorm2d(shape[1]).double()
    ours.load_state_dict(theirs.state_dict())
    slope = torch.randn_like(x)
    found = []
    with threads(2):
        for layer in (theirs, ours):
            start = x.clone().requires_grad_()
            y = layer(start)
            assert ("_Narrow" in type(y.grad_fn).__name__) == (layer is ours)
            found.append([y, *torch.autograd.grad(y, [start, layer.weight, layer.bias], slope), *layer.buffers()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_without_running_statistics_it_is_torchs_own():
    x = torch.randn(4, 8, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
    layer = BatchNorm2d(8)
    layer.track_running_stats = False
    with threads(2):
        assert "_Narrow" not in type(layer(x).grad_fn).__name__
    assert torch.equal(layer.running_mean, torch.zeros(8))
    assert int(layer.num_batches_tracked) == 0


def test_its_gradient_is_the_numerical_one():
    torch.manual_seed(0)
    layer = BatchNorm2d(3).double()
    x = torch.randn(4, 3, 2, 3, dtype=torch.double).to(memory_format=torch.channels_last).requires_grad_()
    with threads(2):
        assert torch.autograd.gradcheck(lambda x, w, b: torch.func.functional_call(layer, {"weight": w, "bias": b}, x),
                                        (x, *layer.parameters()))  # fmt: skip


def test_on_one_thread_in_eval_mode_and_with_many_channels_it_is_torchs_own():
    x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    wide = torch.randn(2, 16, 4, 4).to(memory_format=torch.channels_last)
    with threads(1):
        assert "NativeBatchNorm" in type(BatchNorm2d(8)(x).grad_fn).__name__
    with threads(2):
        assert "NativeBatchNorm" in type(BatchNorm2d(8).eval()(x).grad_fn).__name__
        assert "NativeBatchNorm" in type(BatchNorm2d(16)(wide).grad_fn).__name__
        assert "NativeBatchNorm" in type(BatchNorm2d(8)(x.bfloat16()).grad_fn).__name__


@pytest.mark.parametrize(("network", "rest"), [("vgg16", ("block4", "block5")), ("resnet18", ("stage4",))])
def test_on_a_cpu_the_widest_blocks_keep_torchs_own_layout(network, rest):
    """And each feature map has the layout of the block that it goes into, so the outputs stay the same."""
    model = build(network, 10, 1.0, seed=0).eval()
    arranged = arrange(copy.deepcopy(model))
    for name, block in arranged.named_children():
        kinds = {p.is_contiguous() for p in block.parameters() if p.ndim == 4 and p.shape[-1] == 3}
        assert kinds <= {name in rest}
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(arranged(x.to(memory_format=torch.channels_last)), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [1 / 16, 1 / 8])
def test_a_narrow_resnets_shortcuts_have_the_right_gradients(width):
    """With four channels torch's own crashes here on a processor with AVX2, or gives any gradient."""
    model = arrange(build("resnet18", 10, width, seed=0))
    shortcuts = [module for module in model.modules() if isinstance(module, Strided)]
    given, slopes = {}, {}
    for module in shortcuts:
        module.register_forward_hook(lambda m, inputs, _: given.update({m: inputs[0].detach()}))
        module.register_full_backward_hook(lambda m, _, outputs: slopes.update({m: outputs[0]}))
    model(torch.rand(32, 3, 32, 32).to(memory_format=torch.channels_last)).square().sum().backward()
    assert [module.in_channels for module in shortcuts] == [round(width * c) for c in (64, 128, 256)]
    for module in shortcuts:
        by_hand = torch.einsum("nohw,nihw->oi", slopes[module], given[module][:, :, ::2, ::2])
        torch.testing.assert_close(
            module.weight.grad[:, :, 0, 0], by_hand, rtol=1e-3, atol=1e-4 * float(by_hand.abs().max())
        )


def test_a_strided_1x1_convolution_gives_torchs_numbers():
    torch.manual_seed(0)
    theirs = nn.Conv2d(16, 24, 1, (2, 3))
    ours = Strided(16, 24, 1, (2, 3))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 16, 12, 12)
    outcomes = []
    for layer in (theirs, ours):
        start = x.clone().requires_grad_()
        layer(start).square().sum().backward()
        outcomes.append([layer(x), start.grad, layer.weight.grad, layer.bias.grad])
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(one, other)


class Narrow(nn.Sequential):
    """What a user may have: torch's own 1x1 convolution with a stride and four channels."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        parts = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 1, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        super().__init__(*parts, nn.Linear(8, 10))


def test_training_a_users_narrow_network_is_safe_and_right():
    model, by_hand = Narrow(), Narrow()
    for network, whether in ((model, False), (build("resnet18", 10, 1 / 16, seed=0), True)):
        with safely(network):
            assert torch.backends.mkldnn.enabled is whether
        assert torch.backends.mkldnn.enabled
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(64) % 10
    assert costs.estimate(model, images, ["1"], 10, Recipe(1, 0.1), "channel"), "a step is measured before the training"
    fit(
        model, images, labels, Recipe(1, 0.1, batch_size=64, momentum=0.0, weight_decay=0.0), seed=0, augment=NO_AUGMENT
    )
    F.cross_entropy(by_hand(images / 255), labels).backward()
    for trained, start in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(trained, start - 0.1 * start.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.contiguous_format, torch.channels_last])
def test_feature_maps_are_laid_out_as_the_convolutions_are(kind):
    seen = []
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity()).to(memory_format=kind)
    block.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].is_contiguous(memory_format=kind)))
    for given in (torch.contiguous_format, torch.channels_last):
        fed(block, torch.rand(2, 3, 8, 8).to(memory_format=given))
    assert seen == [True, True]
