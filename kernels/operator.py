"""Attention as an operator of PyTorch: checked, differentiable, unbroken under torch.compile."""

import math

import torch
from torch import Tensor

from . import decode as decoding
from .attention import INTERPRETED, backward, empty, forward

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@torch.library.custom_op("rungs::attention", mutates_args=())
def fused(
    q: Tensor, k: Tensor, v: Tensor, q_segments: Tensor | None, k_segments: Tensor | None,
    seed: Tensor | None, causal: bool, scale: float, window: int | None, softcap: float | None,
    dropout: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out (B, H, T, D) and lse (B, H, T)."""
    return forward(
        q, k, v, q_segments, k_segments, seed, causal, scale, window, softcap, dropout
    )


@fused.register_fake
def _(q, k, v, q_segments, k_segments, seed, causal, scale, window, softcap, dropout):
    return empty(q, q.shape[2]), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("rungs::attention_backward", mutates_args=())
def fused_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    q_segments: Tensor | None, k_segments: Tensor | None, seed: Tensor | None, causal: bool,
    scale: float, window: int | None, softcap: float | None, dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq (B, H, T, D), dk and dv (B, KV, S, D)."""
    return backward(
        do, q, k, v, out, lse, q_segments, k_segments, seed, causal, scale, window, softcap, dropout
    )


@fused_backward.register_fake
def _(do, q, k, v, out, lse, *rest):
    return empty(q, q.shape[2]), empty(k, k.shape[2]), empty(v, v.shape[2])


def setup_context(ctx, inputs, output):
    q, k, v, q_segments, k_segments, seed, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, *output, q_segments, k_segments, seed)
    ctx.set_materialize_grads(False)


def differentiate(ctx, do, _):
    gradients = (None, None, None)
    if do is not None:
        gradients = fused_backward(do, *ctx.saved_tensors, *ctx.options)
    return *gradients, *(None,) * 8


fused.register_autograd(differentiate, setup_context=setup_context)


@torch.library.custom_op("rungs::decode", mutates_args=())
def split(
    q: Tensor, k: Tensor, v: Tensor, q_segments: Tensor | None, k_segments: Tensor | None,
    causal: bool, scale: float, window: int | None, softcap: float | None,
) -> Tensor:  # fmt: skip
    """out (B, H, T, D), without a gradient."""
    return decoding.decode(q, k, v, q_segments, k_segments, causal, scale, window, softcap)


@split.register_fake
def _(q, k, v, q_segments, k_segments, causal, scale, window, softcap):
    return empty(q, q.shape[2])


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, scale: float | None = None,
    window: int | None = None, segments: Tensor | tuple[Tensor, Tensor] | None = None,
    softcap: float | None = None, dropout: float = 0.0, seed: int | Tensor | None = None,
) -> Tensor:  # fmt: skip
    """softmax(scale q k') v, fused: q (B, H, T, D), k and v (B, KV, S, D) -> (B, H, T, D).

    float16, bfloat16 or float32, D up to 256, any lengths and strides; differentiable once. KV
    divides H: each key/value head serves H / KV neighbouring query heads. Under autocast, inputs
    are cast to its dtype. A query that sees no key gets zeros, and gives no gradient.

    causal: a query sees no later key; the last query stands beside the last key.
    scale: of the scores; None is D ** -0.5.
    window: a query sees this many keys, its own position the last of them; needs causal.
    segments: a query sees the keys of its own document. Integers (B, T) where T == S, or a pair for
        the queries (B, T) and the keys (B, S).
    softcap: scores s become softcap tanh(s / softcap).
    dropout: the share of weights set to 0, the others grow by 1 / (1 - dropout); always on, so give
        0 in evaluation. The mask is a function of (seed, b, h, t, s).
    seed: a whole number, or an int64 tensor of shape () on the device; None is drawn from PyTorch's
        generator of the device.

    ValueError: arguments that do not fit each other, or a device without these kernels.
    """
    if reason := unavailable(q.device):
        raise ValueError(f"q is on {q.device}: {reason}")
    if torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = (x.to(dtype) if x.dtype in DTYPES else x for x in (q, k, v))
    check(q, k, v)
    if scale is None:
        scale = q.shape[3] ** -0.5
    check_options(causal, scale, window, softcap, dropout)
    q_segments, k_segments = check_segments(segments, q, k)
    if dropout:
        seed = seed_of(seed, q.device)
    else:
        seed = None
        needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        if not needs_grad and decoding.suits(q, k):
            return split(q, k, v, q_segments, k_segments, causal, scale, window, softcap)
    return fused(q, k, v, q_segments, k_segments, seed, causal, scale, window, softcap, dropout)[0]


def check(q, k, v) -> None:
    """ValueError for tensors that do not fit."""
    for name, x in zip("qkv", (q, k, v)):
        if x.ndim != 4:
            raise ValueError(f"{name} must be (B, heads, length, D), not {tuple(x.shape)}.")
        if x.dtype not in DTYPES:
            raise ValueError(f"{name} must be float16, bfloat16 or float32, not {x.dtype}.")
        if x.dtype != q.dtype:
            raise ValueError(f"{name} must have the dtype of q, {q.dtype}, not {x.dtype}.")
        if x.device != q.device:
            raise ValueError(f"{name} must be on the device of q, {q.device}, not on {x.device}.")
        if x.shape[0] != q.shape[0]:
            raise ValueError(f"{name} must have the {q.shape[0]} rows of q, not {x.shape[0]}.")
        if x.shape[3] != q.shape[3]:
            raise ValueError(f"{name} must have the head width of q, {q.shape[3]}, "
                             f"not {x.shape[3]}.")  # fmt: skip
    if v.shape != k.shape:
        raise ValueError(f"v must have the shape of k, {tuple(k.shape)}, not {tuple(v.shape)}.")
    if not 1 <= q.shape[3] <= 256:
        raise ValueError(f"the head width of q must be from 1 to 256, not {q.shape[3]}.")
    if min(q.shape[1], k.shape[1]) < 1 or q.shape[1] % k.shape[1]:
        raise ValueError(f"the {k.shape[1]} heads of k must divide the {q.shape[1]} of q.")


def check_options(causal, scale, window, softcap, dropout) -> None:
    """ValueError for options out of their range."""
    if not -math.inf < scale < math.inf:
        raise ValueError(f"scale must be a finite number, not {scale}.")
    if window is not None and (not isinstance(window, int) or window < 1):
        raise ValueError(f"window must be a whole number of keys, 1 or more, not {window}.")
    if window is not None and not causal:
        raise ValueError(f"window={window} needs causal=True: it reaches back from each query.")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap must be a number above 0, or None, not {softcap}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, not {dropout}.")


def check_segments(segments, q, k) -> tuple[Tensor | None, Tensor | None]:
    """The segments of queries and keys, contiguous. ValueError where they do not fit."""
    if segments is None:
        return None, None
    pair = segments if isinstance(segments, tuple | list) else (segments, segments)
    if len(pair) != 2:
        raise ValueError(f"segments must be one tensor or a pair, not {len(pair)}.")
    for x, (name, like) in zip(pair, (("queries", q), ("keys", k))):
        shape = (like.shape[0], like.shape[2])
        if tuple(x.shape) != shape:
            raise ValueError(f"segments of the {name} must be {shape}, not {tuple(x.shape)}.")
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise ValueError(f"segments must be integers, not {x.dtype}.")
        if x.device != q.device:
            raise ValueError(f"segments must be on the device of q, {q.device}, not {x.device}.")
    mine, theirs = (x.contiguous() for x in pair)
    return mine, theirs


def seed_of(seed, device) -> Tensor:
    """The seed as a tensor, so that a kernel that waits in a queue or a graph reads it there."""
    if seed is None:
        return torch.randint(2**63 - 1, (), dtype=torch.int64, device=device)
    if isinstance(seed, Tensor):
        if seed.shape != () or seed.dtype != torch.int64 or seed.device != device:
            what = f"{seed.dtype} {tuple(seed.shape)} on {seed.device}"
            raise ValueError(f"a tensor as seed must be int64 () on {device}, not {what}.")
        return seed
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be a whole number from 0 to 2^63 - 1, not {seed}.")
    return torch.full((), seed, dtype=torch.int64, device=device)


@torch.compiler.assume_constant_result  # the compiler cannot look into what is asked of the device
def unavailable(device: torch.device) -> str:
    """Why the kernels cannot run on a device: a sentence, empty where they can."""
    if INTERPRETED.value and device.type in ("cpu", "cuda"):
        return ""
    if device.type == "cpu":
        return (
            "these kernels run on a GPU, or step by step in Triton's interpreter: "
            "set TRITON_INTERPRET=1 before Python starts."
        )
    if device.type != "cuda":
        return "these kernels run on NVIDIA's and AMD's GPUs."
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return "these kernels need a GPU of compute capability 8.0 or later."
    return ""
