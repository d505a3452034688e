"""Which attention computes it: the formula, PyTorch's own fused kernels, or ours (kernels/).

All give the same to rounding. What a position sees is told to each in the form that it takes: to
ours the document of every token and how far a position looks back, to the others a mask.
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
    if how == "triton":
        options = {} if plain else dict(window=reach, segments=documents(positions, past))
        return partial(fused(), causal=True, softcap=cap or None, **options)
    return masked(how, None if plain else ~mask_of(positions, past, reach), cap)


def attention_of_one(how: str, mask: Tensor | None, cap: float = 0.0) -> Attend:
    """Attention of one query to the keys that a mask (B, 1, 1, S) shows, or to all."""
    if how != "triton":
        return masked(how, mask, cap)
    segments = None
    if mask is not None:
        keys = mask[:, 0, 0].long()
        segments = torch.ones_like(keys[:, :1]), keys
    return partial(fused(), segments=segments, softcap=cap or None)


def fused() -> Callable:
    import kernels

    return kernels.attention


def documents(positions: Tensor, past: int) -> tuple[Tensor, Tensor]:
    """Of queries (B, T) and of keys (B, past + T): where the document of each begins."""
    here = torch.arange(past, past + positions.shape[1], device=positions.device) - positions
    first = here[:, :1]
    before = torch.arange(past, device=positions.device).expand(len(positions), -1)
    before = torch.where(before >= first, first, NOWHERE)  # only the document that goes on is seen
    return here, torch.cat([before, here], 1)


def masked(how: str, mask: Tensor | None, cap: float) -> Attend:
    """By PyTorch's own or by the formula, of what a mask (B, 1, T, S) shows: true is seen.

    None: causal, and of one query all.
    """
    if how == "sdpa" and not cap:  # which it does not know
        return partial(sdpa, mask=mask)
    return partial(formula, mask=mask, cap=cap)


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """By scaled_dot_product_attention."""
    k, v = shared(q, k), shared(q, v)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None and q.shape[2] > 1)


def formula(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, cap: float) -> Tensor:
    """As it is defined, with all scores in memory; without Triton, which kernels/ would import."""
    k, v, (T, S) = shared(q, k), shared(q, v), (q.shape[2], k.shape[2])
    if mask is None and T > 1:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril()
    scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
    if cap:
        scores = cap * torch.tanh(scores / cap)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(3) @ v


def shared(q: Tensor, k: Tensor) -> Tensor:
    """Keys or values (B, KV, S, D), each head repeated for the heads of q that share it."""
    groups = q.shape[1] // k.shape[1]
    return k.repeat_interleave(groups, 1) if groups > 1 else k
