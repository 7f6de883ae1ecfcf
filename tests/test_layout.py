"""The memory layout of a network: it changes no result beyond rounding."""

import copy

import pytest
import torch
from torch import nn

from purifier_core.device import threads
from purifier_core.lab.models import build
from purifier_core.layout import BatchNorm2d, arrange, fed


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


@pytest.mark.parametrize("kind", [torch.contiguous_format, torch.channels_last])
def test_feature_maps_are_laid_out_as_the_convolutions_are(kind):
    seen = []
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity()).to(memory_format=kind)
    block.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].is_contiguous(memory_format=kind)))
    for given in (torch.contiguous_format, torch.channels_last):
        fed(block, torch.rand(2, 3, 8, 8).to(memory_format=given))
    assert seen == [True, True]
