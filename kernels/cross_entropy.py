"""The head and the cross-entropy in one: the logits of all tokens are never held at once.

For features x (N, C), the head's weight W (V, C), targets t (N,) and c = cap

    logits z = c tanh(x W' / c)          or x W' where there is no cap
    loss of row n = log sum over v of exp(z[n, v])  -  z[n, t[n]]
    its gradient by x W': (softmax(z) - onehot(t)) (1 - (z / c)^2)

A vocabulary is wide: at V = 50,304 the logits of 16k tokens take 1.6 GB in bfloat16, and their
gradient as much again. But a row's gradient follows from its logits alone, so the forward pass goes
over the tokens in chunks and for each: makes the logits (a matrix product), replaces them by their
gradient where they lie (`replace_logits`, two sweeps over the row, the sum of exponentials rescaled
whenever the largest logit so far grows: Milakov & Gimelshein 2018), and multiplies that with W and
with x while it is there. So the backward pass only scales, and no logit is made twice; Liger Kernel
(Hsu et al. 2024) computes it in this order too.

Memory: the gradients of x and W in float32, 4 (N + V) C bytes, so that they are rounded once, when
they have been scaled; and a chunk of logits. The chunk is chosen to take as many bytes as W's
gradient: 2 C tokens in bfloat16, C in float32. So all that grows with N has C columns, not V.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import unavailable
from .attention import narrow, tanh

IGNORED = -1  # a target that does not count, as in padding
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@triton.jit
def replace_logits(
    logits, targets, losses, V, stride, cap,
    CAPPED: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):
    """One program a row: logits (N, V), before the cap, become their gradient, in place.

    losses (N,) float32: the row's nats, 0 where it is ignored, NaN where its target is none.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    columns = tl.arange(0, BLOCK)
    if target == -1:
        tl.store(losses + row, 0.0)
        if GRADIENT:
            for start in range(0, V, BLOCK):
                zeros = tl.zeros((BLOCK,), logits.dtype.element_ty)
                tl.store(logits + start + columns, zeros, start + columns < V)
    else:
        greatest = float("-inf")
        total = 0.0  # of exp(z - greatest), over what has been seen
        hit = float("nan")  # the target's logit
        for start in range(0, V, BLOCK):
            here = start + columns
            z = tl.load(logits + here, here < V, other=0.0).to(tl.float32)
            if CAPPED:
                z = cap * tanh(z / cap)
            z = tl.where(here < V, z, float("-inf"))
            before = greatest
            greatest = tl.maximum(greatest, tl.max(z, 0))
            total = total * tl.exp(before - greatest) + tl.sum(tl.exp(z - greatest), 0)
            if (target >= start) & (target < start + BLOCK) & (target < V):
                hit = tl.sum(tl.where(here == target, z, 0.0), 0)
        norm = greatest + tl.log(total)
        tl.store(losses + row, norm - hit)
        if GRADIENT:
            for start in range(0, V, BLOCK):
                here = start + columns
                z = tl.load(logits + here, here < V, other=0.0).to(tl.float32)
                slope = 1.0
                if CAPPED:
                    z = cap * tanh(z / cap)
                    slope = 1 - (z / cap) * (z / cap)
                gradient = (tl.exp(z - norm) - tl.where(here == target, 1.0, 0.0)) * slope
                tl.store(logits + here, narrow(gradient, logits.dtype.element_ty), here < V)


def launch(V: int) -> dict:
    """How `replace_logits` is launched: a block of the row, and its warps."""
    block = min(triton.next_power_of_2(V), 4096)
    return {"BLOCK": block, "num_warps": max(1, min(8, block // 256)), "enable_fp_fusion": True}


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *, cap: float = 0.0, chunk: int = 0
) -> Tensor:
    """Mean nats over the targets that are not -1, () float32; 0 where all are.

    x (N, C), weight (V, C): float32, bfloat16 or float16; targets (N,) int64, -1 or in 0 .. V - 1
    (another makes the loss NaN: to raise an error would be to wait for the GPU). cap c: logits
    become c tanh(z / c), 0 for none. chunk: how many tokens' logits are held at a time, 0 for the
    choice above.

    The products are in x's dtype (under autocast in autocast's), and so are the logits; sums are in
    float32, over the chunks too, for x and weight of any of the dtypes. The gradients are scaled
    only at the end, so float16's need a scaler no more than elsewhere. No second derivatives.

    ValueError: an argument that does not fit.
    """
    check(x, weight, targets, cap, chunk)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    for_x, for_weight = (torch.is_grad_enabled() and each.requires_grad for each in (x, weight))
    total, _, _ = linear_cross_entropy_sum(
        x.contiguous(), weight, targets.contiguous(), cap, chunk, for_x, for_weight
    )
    return total / (targets != IGNORED).sum().clamp(min=1)


def reference(x: Tensor, weight: Tensor, targets: Tensor, *, cap: float = 0.0) -> Tensor:
    """The same in plain PyTorch, all logits at once, in any dtype."""
    logits = x @ weight.to(x.dtype).T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if cap:
        logits = cap * torch.tanh(logits / cap)
    total = torch.nn.functional.cross_entropy(
        logits, targets, ignore_index=IGNORED, reduction="sum"
    )
    return total / (targets != IGNORED).sum().clamp(min=1)


def check(x, weight, targets, cap, chunk) -> None:
    """ValueError for arguments of linear_cross_entropy that do not fit."""
    for name, value in (("x", x), ("weight", weight)):
        if value.ndim != 2:
            raise ValueError(f"{name} must have two dimensions, not shape {tuple(value.shape)}.")
        if value.dtype not in DTYPES:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise ValueError(f"{name} must be one of {allowed}, not {value.dtype}.")
    if weight.shape[1] != x.shape[1]:
        raise ValueError(f"weight must be (V, {x.shape[1]}) as x is {tuple(x.shape)}, not "
                         f"{tuple(weight.shape)}.")
    if weight.shape[0] == 0:
        raise ValueError("weight must have a row for at least one token, not none.")
    if targets.shape != x.shape[:1]:
        raise ValueError(f"targets must be ({len(x)},) as x is {tuple(x.shape)}, not "
                         f"{tuple(targets.shape)}.")
    if targets.dtype != torch.int64:
        raise ValueError(f"targets must be int64, not {targets.dtype}.")
    if reason := unavailable(x.device):
        raise ValueError(f"x is on {x.device}: {reason}")
    if not 0 <= cap < float("inf"):
        raise ValueError(f"cap must be 0 for none or positive and finite, not {cap}.")
    if chunk < 0:
        raise ValueError(f"chunk must be 0 or a number of tokens, not {chunk}.")
    for name, value in (("weight", weight), ("targets", targets)):
        if value.device != x.device:
            raise ValueError(f"{name} is on {value.device} but must be on {x.device}, as x is.")


@torch.library.custom_op("rungs::linear_cross_entropy_sum", mutates_args=())
def linear_cross_entropy_sum(
    x: Tensor, weight: Tensor, targets: Tensor, cap: float, chunk: int, for_x: bool,
    for_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of the losses, and its gradients by x and by weight, all in float32.

    A gradient that is not asked for is empty. x and targets are contiguous.
    """
    (N, C), V = x.shape, weight.shape[0]
    weight = weight.to(x.dtype)
    losses = torch.empty(N, dtype=torch.float32, device=x.device)
    dx, dweight = (
        torch.zeros(each.shape if wanted else 0, dtype=torch.float32, device=x.device)
        for each, wanted in ((x, for_x), (weight, for_weight))
    )
    chunk = chunk or max(128, 4 * C // x.element_size())
    # rows begin where products and loads of 16 bytes like it, whatever the vocabulary
    held = torch.empty(min(chunk, N), triton.cdiv(V, 64) * 64, dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):
        for start in range(0, N, chunk):
            part = slice(start, start + chunk)
            logits = held[: len(x[part]), :V]
            torch.mm(x[part], weight.T, out=logits)
            replace_logits[(len(logits),)](
                logits, targets[part], losses[part], V, logits.stride(0), cap,
                CAPPED=cap > 0, GRADIENT=for_x or for_weight, **launch(V),
            )
            if for_x:
                add_product(dx[part], logits, weight)
            if for_weight:
                add_product(dweight, logits.T, x[part])
    return losses.sum(), dx, dweight


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, where total is float32 and stays so, whatever a and b are."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    elif a.is_cuda and torch.version.hip is None:  # its own sum is float32, and need not be rounded
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.float(), b.float())


@linear_cross_entropy_sum.register_fake
def _(x, weight, targets, cap, chunk, for_x, for_weight):
    dx, dweight = (
        x.new_empty(each.shape if wanted else 0, dtype=torch.float32)
        for each, wanted in ((x, for_x), (weight, for_weight))
    )
    return x.new_empty((), dtype=torch.float32), dx, dweight


def keep(ctx, inputs, output) -> None:
    x, weight, *_ = inputs
    ctx.save_for_backward(output[1], output[2])
    ctx.dtypes = x.dtype, weight.dtype
    ctx.set_materialize_grads(False)


def scale(ctx, by_total, *_):
    """The gradients that the forward pass has made, times that of the sum."""
    gradients = [
        (kept * by_total).to(dtype) if needed else None
        for kept, dtype, needed in zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad)
    ]
    return *gradients, *5 * [None]


linear_cross_entropy_sum.register_autograd(scale, setup_context=keep)
