"""Which attention computes it: the formula, PyTorch's own fused kernels, or ours (kernels/).

All give the same to rounding. What a position sees is told to each in the form that it takes: to
PyTorch a mask, to the others the document of every token and how far a position looks back.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from makemore.transformer import mask_of

from .machine import Machine

CHOICES = ("naive", "sdpa", "triton", "auto")
STAGES = ("transformer", "gpt")  # those with attention
NOWHERE = torch.iinfo(torch.int64).min  # the document of a key that nothing sees
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q (B, H, T, D), k, v (B, KV, S, D) -> as q


def choose(how: str, machine: Machine) -> str:
    """What "auto" is on that machine; another choice as it is. ValueError: it cannot work there."""
    if how in ("naive", "sdpa"):
        return how
    if how == "auto" and (machine.kind != "cuda" or machine.dtype == "float32"):
        return "sdpa"  # ours is for a GPU, and slow at products of float32
    import kernels  # brings Triton, which is slow to import

    why_not = kernels.unavailable(torch.device(machine.device))
    if how == "triton" and why_not:
        raise ValueError(f"--attention=triton: {why_not}")
    return "sdpa" if why_not else "triton"


def use(model: nn.Module, how: str) -> None:
    """Have a transformer or a gpt compute its attention so; "triton": a gpt its loss of many logits
    by our kernel too."""
    if hasattr(model, "attention"):
        model.attention, model.fused_loss = how, how == "triton"
        return
    for place in [model, *(layer.attention for layer in model.layers)]:
        for name in ("mask_of", "attend"):
            place.__dict__.pop(name, None)  # the ladder's file has the formula
    if how != "naive":
        model.mask_of = partial(attention_of, how)
        for layer in model.layers:
            layer.attention.attend = attend


def attend(q: Tensor, k: Tensor, v: Tensor, how: Attend) -> Tensor:
    """In the place of the ladder's, which takes a mask."""
    return how(q, k, v)


def attention_of(
    how: str, positions: Tensor, past: int, reach: int, plain: bool = False, cap: float = 0.0
) -> Attend:
    """Attention of queries at positions (B, T) to `past` keys before them and to their own.

    Each sees the last `reach` keys of its document. plain: those are all that are not later. cap c:
    scores s become c tanh(s / c); 0 is none.
    """
    if how == "sdpa" and not cap:  # which it does not know
        return partial(sdpa, mask=None if plain else ~mask_of(positions, past, reach))
    options = {} if plain else dict(window=reach, segments=documents(positions, past))
    return partial(function_of(how), causal=True, softcap=cap or None, **options)


def attention_of_one(how: str, mask: Tensor | None, cap: float = 0.0) -> Attend:
    """Attention of one query to the keys that a mask (B, 1, 1, S) shows, or to all."""
    if how == "sdpa" and not cap:
        return partial(sdpa, mask=mask)
    segments = None
    if mask is not None:
        keys = mask[:, 0, 0].long()
        segments = torch.ones_like(keys[:, :1]), keys
    return partial(function_of(how), segments=segments, softcap=cap or None)


def function_of(how: str) -> Callable:
    import kernels
    from kernels import naive

    return kernels.attention if how == "triton" else naive.attention


def documents(positions: Tensor, past: int) -> tuple[Tensor, Tensor]:
    """Of queries (B, T) and of keys (B, past + T): where the document of each begins."""
    here = torch.arange(past, past + positions.shape[1], device=positions.device) - positions
    first = here[:, :1]
    before = torch.arange(past, device=positions.device).expand(len(positions), -1)
    before = torch.where(before >= first, first, NOWHERE)  # only the document that goes on is seen
    return here, torch.cat([before, here], 1)


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """By scaled_dot_product_attention. mask: true is seen; None: causal, or of one query all."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None and q.shape[2] > 1)
