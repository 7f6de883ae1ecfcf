"""How a network and its feature maps lie in memory. It decides the speed of a step, and no result beyond rounding.

On a GPU everything is channels_last. So it is on a CPU, with two exceptions that were measured (benchmarks/speed.py):
a convolution with many channels is faster the other way round there, and with few channels torch's BatchNorm loses its
time when several threads share it.
"""

from typing import Any

import torch
from torch import nn

_MANY = 512  # output channels from which on a CPU rearranges weights for longer than channels_last saves
_FEW = 16  # channels that fill a cache line; with fewer the threads write into each other's


def arrange(model: nn.Module) -> nn.Module:
    """Lay `model`, on the device where it will run, out for speed; in place, and returned."""
    model.to(memory_format=torch.channels_last)
    for block in model.children():
        convolutions = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
        if any(c.weight.device.type == "cpu" and c.out_channels >= _MANY for c in convolutions):
            block.to(memory_format=torch.contiguous_format)
    return model


def fed(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The output of `block` on feature maps (N, C, H, W) that are first laid out as its convolutions are."""
    weight = next(p for p in block.parameters() if p.ndim == 4)
    kept = torch.contiguous_format if weight.is_contiguous() else torch.channels_last
    return block(x.contiguous(memory_format=kept))


class BatchNorm2d(nn.BatchNorm2d):
    """torch's, with another backward pass where torch's is slow: few channels, channels_last, several CPU threads."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        few = self.num_features < _FEW and x.device.type == "cpu" and not x.is_contiguous()
        if not (few and self.training and torch.is_grad_enabled() and torch.get_num_threads() > 1):
            return super().forward(x)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        return _Narrow.apply(x, self.weight, self.bias, self.running_mean, self.running_var, self.momentum, self.eps)


class _Narrow(torch.autograd.Function):
    """BatchNorm over a batch; its backward pass takes several pixels for one row, which fills the processor's lanes."""

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
        together = next(k for k in (32, 16, 8, 4, 2, 1) if count % k == 0)

        x, slope = (t.permute(0, 2, 3, 1).reshape(n, h * w, c) for t in (x, slopes[0]))
        # every channel's slope times every channel's x: its diagonal costs one pass over both and no memory
        product = torch.bmm(slope.mT, x)
        x, slope = (t.reshape(count // together, together * c) for t in (x, slope))
        to_bias = slope.sum(0).view(together, c).sum(0)
        to_weight = (product.sum(0).diagonal() - mean * to_bias) * scale
        # d/dx = weight * scale * (slope - mean of slope - normalised x * mean of slope * normalised x)
        by_slope = weight * scale
        by_x = -by_slope * scale * to_weight / count
        found = torch.addcmul((-by_slope * to_bias / count - by_x * mean).repeat(together), x, by_x.repeat(together))
        found.addcmul_(slope, by_slope.repeat(together))
        return found.view(n, h, w, c).permute(0, 3, 1, 2), to_weight, to_bias, None, None, None, None
