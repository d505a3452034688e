"""Rotary positions (Su et al. 2021) without tables of sines and cosines.

Feature i of a head and feature i + D/2 are a pair, (a, b). At position p it is turned by the angle
p base^(-2i/D), counterclockwise:

    a cos - b sin,   a sin + b cos

The rotation's backward is the rotation by the negative angle. Angles are float32, as elsewhere in
the project, from speeds rounded once; made where they are used, they cost no memory. One program
turns all heads of a few positions, so that a sine is computed once.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import unavailable
from .attention import narrow

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDEST = 1024  # features of a head


@triton.jit
def cos_sin(angle):
    """Both to about 1e-7, for angles up to millions, without the branch that tl.sin takes there.

    Quarter turns are taken off, pi / 2 being the sum of two float32, with one rounding for each.
    What is left is at most pi / 4, where the series of sine and cosine end soon.
    """
    quarters = tl.floor(angle * 0.63661977 + 0.5)
    rest = tl.fma(quarters, 4.371139e-08, tl.fma(quarters, -1.5707964, angle))
    z = rest * rest
    cos = 1 - z / 2 * (1 - z / 12 * (1 - z / 30 * (1 - z / 56 * (1 - z / 90))))
    sin = rest - rest * z / 6 * (1 - z / 20 * (1 - z / 42 * (1 - z / 72)))
    quarter = quarters.to(tl.int32) & 3
    odd, second = (quarter & 1) == 1, quarter >= 2
    cos, sin = tl.where(odd, -sin, cos), tl.where(odd, cos, sin)
    return tl.where(second, -cos, cos), tl.where(second, -sin, sin)


@triton.jit
def turn(
    x, positions, y, heads, T, half, x_b, x_h, x_t, x_d, y_b, y_h, y_t, y_d, p_b, p_t,
    EXPONENT: tl.constexpr, BACK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):
    """ROWS positions of one batch row a program: y = x (B, H, T, D) turned, or turned BACK.

    half = D/2; x_b, x_h, ...: strides; EXPONENT: log2(base) / half.
    """
    blocks = tl.cdiv(T, ROWS)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    t = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK)
    inside = (t < T)[:, None] & (d < half)[None, :]
    # a float32 exponent would have lost digits, and positions in the thousands show it
    speed = tl.exp2(-d.to(tl.float64) * EXPONENT).to(tl.float32)
    t = t.to(tl.int64)
    position = tl.load(positions + b * p_b + t * p_t, t < T, other=0).to(tl.float32)
    angle = position[:, None] * speed[None, :]
    cos, sin = cos_sin(angle)
    if BACK:
        sin = -sin
    x += b * x_b + t[:, None] * x_t + d[None, :] * x_d
    y += b * y_b + t[:, None] * y_t + d[None, :] * y_d
    for _ in range(heads):
        first = tl.load(x, inside).to(tl.float32)
        second = tl.load(x + half * x_d, inside).to(tl.float32)
        tl.store(y, narrow(first * cos - second * sin, y.dtype.element_ty), inside)
        tl.store(y + half * y_d, narrow(first * sin + second * cos, y.dtype.element_ty), inside)
        x += x_h
        y += y_h


def launch(D: int) -> dict:
    """How `turn` is launched: 512 pairs a program, four a thread, of whole positions."""
    block = triton.next_power_of_2(D // 2)
    rows = max(1, 512 // block)
    return {"ROWS": rows, "BLOCK": block, "num_warps": 4, "enable_fp_fusion": True}


def exponent(D: int, base: float) -> float:
    """By what power of 2 each pair of features turns slower than the one before."""
    return math.log2(base) / (D // 2)


def rotary(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """x (B, H, T, D) turned by its positions (B, T): the same shape, dtype and order in memory.

    x: float32, bfloat16 or float16, any strides, D even and at most 1024; positions: int32 or
    int64, any integers. The result is that of `rotate` in makemore/transformer.py with the cosines
    and sines of positions times `rotary_frequencies(D)`. Derivatives of every order.

    ValueError: an argument that does not fit.
    """
    check(x, positions, base)
    return turned(x, positions, base, False)


def reference(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """The same in plain PyTorch; angles are float32, or float64 where x is."""
    half = x.shape[3] // 2
    dtype = torch.promote_types(x.dtype, torch.float32)
    speeds = base ** -(torch.arange(half, dtype=dtype, device=x.device) / half)
    angles = positions[:, None, :, None] * speeds  # (B, 1, T, D/2)
    a, b = x.to(dtype).split(half, 3)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, a * sin + b * cos], 3).to(x.dtype)


def check(x, positions, base) -> None:
    """ValueError for arguments of rotary that do not fit."""
    if x.ndim != 4 or x.shape[3] % 2 or not 0 < x.shape[3] <= WIDEST:
        raise ValueError(f"x must be (B, H, T, D) with an even D from 2 to {WIDEST}, not "
                         f"{tuple(x.shape)}.")
    if x.dtype not in DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise ValueError(f"x must be one of {allowed}, not {x.dtype}.")
    if positions.shape != (x.shape[0], x.shape[2]):
        raise ValueError(f"positions must be {(x.shape[0], x.shape[2])} as x is {tuple(x.shape)}, "
                         f"not {tuple(positions.shape)}.")
    if positions.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"positions must be int32 or int64, not {positions.dtype}.")
    if positions.device != x.device:
        raise ValueError(f"positions is on {positions.device} but must be on {x.device}, as x is.")
    if reason := unavailable(x.device):
        raise ValueError(f"x is on {x.device}: {reason}")
    if not 0 < base < float("inf"):
        raise ValueError(f"base must be positive and finite, not {base}.")


@torch.library.custom_op("rungs::rotary", mutates_args=())
def turned(x: Tensor, positions: Tensor, base: float, back: bool) -> Tensor:
    """x turned by its positions, or back."""
    y = torch.empty_like(x)
    B, H, T, D = x.shape
    options = launch(D)
    if x.numel():
        with torch.cuda.device_of(x):
            turn[(B * triton.cdiv(T, options["ROWS"]),)](
                x, positions, y, H, T, D // 2, *x.stride(), *y.stride(), *positions.stride(),
                EXPONENT=exponent(D, base), BACK=back, **options,
            )
    return y


@turned.register_fake
def _(x, positions, base, back):
    return torch.empty_like(x)


def keep(ctx, inputs, output) -> None:
    _, positions, ctx.base, ctx.back = inputs
    ctx.save_for_backward(positions)


def turn_back(ctx, gradient):
    return turned(gradient, ctx.saved_tensors[0], ctx.base, not ctx.back), None, None, None


turned.register_autograd(turn_back, setup_context=keep)
