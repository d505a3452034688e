"""Pieces that remember little for the backward pass, for a CPU in bfloat16.

There PyTorch computes these in steps and keeps what each step needs, in float32 where it computes
in it. What is kept takes memory, and has to be written and read again.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def is_lean(x: Tensor) -> bool:
    """Whether x is on a CPU, under autocast."""
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu")


class NormOfFeatures(torch.autograd.Function):
    """x / rms(x), of which the backward pass needs no more than the result and the rms.

    With y = x r and r = 1 / sqrt(mean(x^2) + eps), over C features:

        dx = r (dy - y mean(dy y))
    """

    @staticmethod
    def forward(ctx, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x (..., C) -> (..., C) in that dtype. Computed in float32."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = (norm.square() / x.shape[-1] + torch.finfo(torch.float32).eps).rsqrt()
        y = (x * scale).to(dtype)
        ctx.save_for_backward(y, scale)
        ctx.dtype = x.dtype
        return y

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        along = (dy * y).mean(-1, keepdim=True, dtype=torch.float32)
        return (scale * (dy - y * along)).to(ctx.dtype), None


class SquaredReLU(torch.autograd.Function):
    """relu(x)^2, of which the backward pass needs the result alone: dx = 2 sqrt(y) dy."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        y = torch.relu(x)
        y *= y
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        dx = torch.sqrt(y)
        dx *= dy
        return dx.mul_(2)


def rms_norm(x: Tensor) -> Tensor:
    """x / rms(x) over the last dimension (Zhang & Sennrich 2019); if lean, in autocast's dtype."""
    if is_lean(x):
        return NormOfFeatures.apply(x, torch.get_autocast_dtype("cpu"))
    return F.rms_norm(x, x.shape[-1:])


def squared_relu(x: Tensor) -> Tensor:
    """relu(x)^2 (So et al. 2021)."""
    return SquaredReLU.apply(x) if is_lean(x) else F.relu(x).square()


class RMSNorm(nn.RMSNorm):
    """rms_norm, with a gain for each feature."""

    def forward(self, x: Tensor) -> Tensor:
        if is_lean(x):
            y = rms_norm(x)
            return y * self.weight.to(y.dtype)
        return super().forward(x)
