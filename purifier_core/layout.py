"""How a network and its feature maps lie in memory. This decides the speed of a step, and no result beyond rounding.

Everything is channels_last, with two exceptions on a CPU, both measured (benchmarks/speed.py). A convolution with many
channels is faster in torch's default layout. A BatchNorm of few channels is slow when several threads share it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

_MANY = 512  # output channels: with as many or more, a CPU rearranges weights for longer than channels_last saves
_FEW = 16  # channels that fill a cache line; with fewer the threads write into each other's
_BLOCK = 16  # channels that oneDNN takes at a time, at most: 8 with AVX2


def arrange(model: nn.Module) -> nn.Module:
    """Lay `model` out for speed, in place, and return it. It is on the device where it will run."""
    model.to(memory_format=torch.channels_last)
    for block in model.children():
        convolutions = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
        if any(c.weight.device.type == "cpu" and c.out_channels >= _MANY for c in convolutions):
            block.to(memory_format=torch.contiguous_format)
    return model


def fed(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The output of `block` on feature maps (N, C, H, W) that are first laid out as its convolutions are."""
    weight = next(p for p in block.parameters() if p.ndim == 4)
    layout = torch.contiguous_format if weight.is_contiguous() else torch.channels_last
    return block(x.contiguous(memory_format=layout))


class Strided(nn.Conv2d):
    """A 1x1 convolution with a stride, which picks its pixels first: torch's numbers to the bit, and see `safely`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns = self.stride
        layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        picked = x[:, :, ::rows, ::columns].contiguous(memory_format=layout)
        return F.conv2d(picked, self.weight, self.bias, groups=self.groups)


@contextmanager
def safely(model: nn.Module) -> Iterator[None]:
    """Inside, `model` can be trained on a CPU whatever it is made of.

    oneDNN writes past its memory for 1x1 convolutions with a stride and few input channels, on channels_last maps (its
    issue 6035: fewer than 8 channels with AVX2). A model with such a one does without oneDNN.
    """
    enabled = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = enabled and not any(  # type: ignore[assignment]  # torch types it as a property
        type(m) is nn.Conv2d and m.kernel_size == (1, 1) and max(m.stride) > 1 and m.in_channels < _BLOCK
        for m in model.modules()
    )
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = enabled


class BatchNorm2d(nn.BatchNorm2d):
    """torch's, with another backward pass where torch's is slow: few channels, channels_last, several CPU threads."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        few = self.num_features < _FEW and x.device.type == "cpu" and not x.is_contiguous()
        alike = x.dtype == self.weight.dtype  # under autocast it is not
        shared = self.training and torch.is_grad_enabled() and torch.get_num_threads() > 1
        batches = self.num_batches_tracked if self.track_running_stats and self.momentum is not None else None
        if batches is None or not (few and alike and shared):
            return super().forward(x)
        batches.add_(1)
        return _Narrow.apply(x, self.weight, self.bias, self.running_mean, self.running_var, self.momentum, self.eps)


class _Narrow(torch.autograd.Function):
    """BatchNorm over a batch. Its backward pass treats several pixels as one pixel of more channels, which fills the
    processor's lanes."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float) -> Any:
        y, batch_mean, scale = torch.native_batch_norm(x, weight, bias, mean, var, True, momentum, eps)
        ctx.save_for_backward(x, weight, batch_mean, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        x, weight, mean, scale = ctx.saved_tensors
        n, c, h, w = x.shape
        count = n * h * w
        together = next(k for k in range(-(-_FEW // c), 0, -1) if h * w % k == 0)
        x, slope = (t.permute(0, 2, 3, 1) for t in (x, slopes[0]))

        def repeated(t: torch.Tensor, times: int) -> torch.Tensor:
            return t.expand(times, c).reshape(-1)

        wide = (t.reshape(n, -1, 1, together * c).permute(0, 3, 1, 2) for t in (slope, x))
        statistics = (repeated(mean, together), repeated(scale, together))
        _, *sums = torch.ops.aten.native_batch_norm_backward(
            *wide, None, None, None, *statistics, True, 0.0, [False, True, True]
        )
        to_weight, to_bias = (t.view(together, c).sum(0) for t in sums)
        # d/dx = weight * scale * (slope - mean of slope - normalised x * mean of slope * normalised x)
        by_slope = weight * scale
        by_x = by_slope * scale * to_weight * (-1 / count)
        constant = torch.addcmul(by_slope * to_bias * (-1 / count), by_x, mean, value=-1)
        pixels = next(k for k in (32, 16, 8, 4, 2, 1) if count % k == 0)
        x, slope = (t.reshape(-1, pixels * c) for t in (x, slope))
        to_x = torch.addcmul(repeated(constant, pixels), x, repeated(by_x, pixels))
        to_x.addcmul_(slope, repeated(by_slope, pixels))
        return to_x.view(n, h, w, c).permute(0, 3, 1, 2), to_weight, to_bias, None, None, None, None
