"""The residual sum and the RMS norm after it, in one sweep.

With s = x + y, the mean over the C features of a row, and r = (mean(s^2) + eps) ^ -1/2

    n = s r w                                                   (Zhang & Sennrich 2019)
    backward, g the gradient by n, h that by s from elsewhere:
    by x and by y:  h + r (g w - s r^2 mean(g w s))
    by w:           sum over the rows of g s r

Every pass of these reads and writes rows of C and computes next to nothing, so what counts is how
often memory is passed: PyTorch alone writes s, reads it for the mean and reads it for the product.
The sum over the rows is of few partial sums, each of one program's rows in order, and these are
added last: the same bits every time, which atomic additions would not give.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import unavailable
from .attention import narrow

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDEST = 16384  # features: a row is held whole by one program
PARTIAL = 512  # sums that the gradient of the weight is made of, at most


@triton.jit
def norm_forward(
    x, y, weight, total, normed, rates, N, C, eps,
    ADDED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):
    """ROWS rows a program: total = x + y, normed (N, C), rates (N,) float32, r above.

    Where nothing is ADDED, y is not read and total not written.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)[None, :]
    here = rows.to(tl.int64)[:, None] * C + columns
    inside = (rows[:, None] < N) & (columns < C)
    s = tl.load(x + here, inside, other=0.0).to(tl.float32)
    if ADDED:
        s += tl.load(y + here, inside, other=0.0).to(tl.float32)
        s = narrow(s, total.dtype.element_ty)
        tl.store(total + here, s, inside)
        s = s.to(tl.float32)  # as rounded, so that the norm is that of what was written
    rate = 1 / tl.sqrt(tl.sum(s * s, 1) / C + eps)
    w = tl.load(weight + columns, columns < C, other=0.0).to(tl.float32)
    n = s * rate[:, None] * w
    tl.store(normed + here, narrow(n, normed.dtype.element_ty), inside)
    tl.store(rates + rows, rate, rows < N)


@triton.jit
def norm_backward(
    total, weight, rates, by_total, by_normed, gradient, partial, N, C, steps,
    ADDED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):
    """`steps` times ROWS rows a program, which adds up its part of the weight's gradient.

    gradient (N, C): by x and y; partial (programs, C) float32. by_total: read where ADDED.
    """
    columns = tl.arange(0, BLOCK)[None, :]
    w = tl.load(weight + columns, columns < C, other=0.0).to(tl.float32)
    by_weight = tl.zeros((ROWS, BLOCK), tl.float32)
    for step in range(steps):
        rows = (tl.program_id(0) * steps + step) * ROWS + tl.arange(0, ROWS)
        here = rows.to(tl.int64)[:, None] * C + columns
        inside = (rows[:, None] < N) & (columns < C)
        s = tl.load(total + here, inside, other=0.0).to(tl.float32)
        g = tl.load(by_normed + here, inside, other=0.0).to(tl.float32)
        rate = tl.load(rates + rows, rows < N, other=0.0)[:, None]
        s *= rate
        by_weight += g * s
        g *= w
        d = rate * (g - s * (tl.sum(g * s, 1) / C)[:, None])
        if ADDED:
            d += tl.load(by_total + here, inside, other=0.0).to(tl.float32)
        tl.store(gradient + here, narrow(d, gradient.dtype.element_ty), inside)
    tl.store(partial + tl.program_id(0) * C + columns, tl.sum(by_weight, 0)[None, :], columns < C)


def launch(C: int) -> dict:
    """How both are launched: whole rows, several where they are short."""
    block = triton.next_power_of_2(C)
    rows = max(1, min(16, 1024 // block))
    warps = max(1, min(16, rows * block // 512))
    return {"ROWS": rows, "BLOCK": block, "num_warps": warps, "enable_fp_fusion": True}


def add_rms_norm(
    x: Tensor, y: Tensor | None, weight: Tensor, eps: float | None = None
) -> tuple[Tensor, Tensor]:
    """x + y and its RMS norm times weight, both (..., C); y None: x itself and its norm.

    x, y (..., C) of one shape, weight (C,): float32, bfloat16 or float16, each its own; C up to
    16384. The results have the dtype that PyTorch gives x + y. eps None: as torch.nn.RMSNorm,
    float32's smallest step from 1. Inside all is float32. Gradients by x, y and weight; no second
    derivatives.

    ValueError: an argument that does not fit.
    """
    if eps is None:
        eps = torch.finfo(torch.float32).eps
    check(x, y, weight, eps)
    total, normed, _ = add_rms_norm_forward(
        x.contiguous(), None if y is None else y.contiguous(), weight.contiguous(), eps
    )
    return x if y is None else total, normed


def reference(
    x: Tensor, y: Tensor | None, weight: Tensor, eps: float | None = None
) -> tuple[Tensor, Tensor]:
    """The same in plain PyTorch, in any dtype."""
    if eps is None:
        eps = torch.finfo(torch.float32).eps
    total = x if y is None else x + y
    s = total.to(torch.promote_types(total.dtype, torch.float32))
    normed = s * (s.square().mean(-1, keepdim=True) + eps).rsqrt() * weight
    return total, normed.to(total.dtype)


def check(x, y, weight, eps) -> None:
    """ValueError for arguments of add_rms_norm that do not fit."""
    for name, value in (("x", x), ("y", y), ("weight", weight)):
        if value is None and name == "y":
            continue
        if value.dtype not in DTYPES:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise ValueError(f"{name} must be one of {allowed}, not {value.dtype}.")
        if value.device != x.device:
            raise ValueError(f"{name} is on {value.device} but must be on {x.device}, as x is.")
    if x.ndim == 0 or not 0 < x.shape[-1] <= WIDEST:
        raise ValueError(f"x must be (..., C) with C from 1 to {WIDEST}, not {tuple(x.shape)}.")
    if y is not None and y.shape != x.shape:
        raise ValueError(f"y must be {tuple(x.shape)} as x is, not {tuple(y.shape)}.")
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight must be ({x.shape[-1]},) as x is {tuple(x.shape)}, not "
                         f"{tuple(weight.shape)}.")
    if reason := unavailable(x.device):
        raise ValueError(f"x is on {x.device}: {reason}")
    if not 0 <= eps < float("inf"):
        raise ValueError(f"eps must be 0 or positive and finite, not {eps}.")


@torch.library.custom_op("rungs::add_rms_norm", mutates_args=())
def add_rms_norm_forward(
    x: Tensor, y: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum (empty where y is None), the norm, and the rates (..., 1) float32; contiguous x."""
    C, dtype = x.shape[-1], x.dtype if y is None else torch.promote_types(x.dtype, y.dtype)
    N = x.numel() // C
    total = x.new_empty(0 if y is None else x.shape, dtype=dtype)
    normed = torch.empty_like(x, dtype=dtype)
    rates = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    options = launch(C)
    if N:
        with torch.cuda.device_of(x):
            norm_forward[(triton.cdiv(N, options["ROWS"]),)](
                x, y, weight, total, normed, rates, N, C, eps, ADDED=y is not None, **options
            )
    return total, normed, rates


@add_rms_norm_forward.register_fake
def _(x, y, weight, eps):
    dtype = x.dtype if y is None else torch.promote_types(x.dtype, y.dtype)
    total = x.new_empty(0 if y is None else x.shape, dtype=dtype)
    rates = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    return total, torch.empty_like(x, dtype=dtype), rates


@torch.library.custom_op("rungs::add_rms_norm_backward", mutates_args=())
def add_rms_norm_backward(
    total: Tensor, weight: Tensor, rates: Tensor, by_total: Tensor | None, by_normed: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients by x and y, in the sum's dtype, and by the weight, in float32."""
    C = total.shape[-1]
    N = total.numel() // C
    options = launch(C)
    steps = max(1, triton.cdiv(N, PARTIAL * options["ROWS"]))
    programs = triton.cdiv(N, steps * options["ROWS"])
    gradient = torch.empty_like(total)
    partial = total.new_empty((programs, C), dtype=torch.float32)
    if N:
        with torch.cuda.device_of(total):
            norm_backward[(programs,)](
                total, weight, rates, by_total, by_normed, gradient, partial, N, C, steps,
                ADDED=by_total is not None, **options,
            )
    return gradient, partial.sum(0)


@add_rms_norm_backward.register_fake
def _(total, weight, rates, by_total, by_normed):
    return torch.empty_like(total), torch.empty_like(weight, dtype=torch.float32)


def keep(ctx, inputs, output) -> None:
    x, y, weight, _ = inputs
    total, _, rates = output
    ctx.save_for_backward(x if y is None else total, weight, rates)
    ctx.dtypes = x.dtype, None if y is None else y.dtype
    ctx.set_materialize_grads(False)


def gradients(ctx, by_total, by_normed, _):
    """Those by x, y and the weight."""
    total, weight, rates = ctx.saved_tensors
    x_dtype, y_dtype = ctx.dtypes
    if y_dtype is None:
        by_total = None
    if by_normed is None:  # the sum alone was used
        gradient, by_weight = by_total, None
    else:
        by_total = None if by_total is None else by_total.contiguous()
        gradient, by_weight = add_rms_norm_backward(
            total, weight, rates, by_total, by_normed.contiguous()
        )
        by_weight = by_weight.to(weight.dtype)
    by_x = None if gradient is None else gradient.to(x_dtype)
    by_y = None if gradient is None or y_dtype is None else gradient.to(y_dtype)
    return by_x, by_y, by_weight, None


add_rms_norm_forward.register_autograd(gradients, setup_context=keep)
