"""The few layers that the method's networks need and torch.nn lacks: TensorFlow's padding and running variance."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InputError


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding of one axis, (before, after); the odd pixel goes after."""
    outputs = (size + stride - 1) // stride  # none negative, none but whole: what exporters understand
    total = max((outputs - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def pad_same(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """Pad [N, C, H, W] as TensorFlow's SAME does for a square kernel."""
    top, bottom = same_padding(x.shape[-2], kernel, stride)
    left, right = same_padding(x.shape[-1], kernel, stride)
    return F.pad(x, (left, right, top, bottom), value=value)


class SameConv2d(nn.Conv2d):
    """A strided convolution with TensorFlow's SAME padding, which on even sizes differs from any symmetric one."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, Cin, H, W] to [N, Cout, ceil(H / stride), ceil(W / stride)]."""
        return super().forward(pad_same(input, self.kernel_size[0], self.stride[0]))


class SameMaxPool2d(nn.Module):
    """3x3/2 max-pooling with TensorFlow's SAME padding (never with zeros)."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C, ceil(H / 2), ceil(W / 2)]."""
        return F.max_pool2d(pad_same(x, 3, 2, value=float("-inf")), 3, 2)


class PoolPadShortcut(nn.Module):
    """The CIFAR family's parameter-free shortcut: average-pool by the stride, zero channels on both sides."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """[N, Cin, H, W] to [N, Cout, ceil(H / stride), ceil(W / stride)]."""
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose running variance is the biased batch variance, as in TensorFlow (PyTorch's is unbiased)."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W] to the same."""
        if not self.training:
            return super().forward(input)
        count = input.numel() // input.shape[1]
        if count < 2:
            raise InputError(
                f"batch norm in training mode got {count} value per channel (input {tuple(input.shape)}); "
                "train with a batch of at least 2 images, or call .eval() on the norms"
            )
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        assert self.num_batches_tracked is not None
        unbiased = self.running_var.clone()
        output = F.batch_norm(input, self.running_mean, unbiased, self.weight, self.bias, True, self.momentum, self.eps)
        with torch.no_grad():
            kept = self.running_var * (1.0 - self.momentum)
            self.running_var.copy_(kept + (unbiased - kept) * ((count - 1) / count))
            self.num_batches_tracked.add_(1)
        return output


def init_weights(module: nn.Module) -> None:
    """He initialisation (truncated normal, fan-in) of every convolution; biases zero.

    Source: the authors' code; 1.3 corrects the variance lost by truncating at two standard deviations.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            std = math.sqrt(1.3 * 2.0 / layer.weight[0].numel())
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
