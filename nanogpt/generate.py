"""Tokens from a model, one step a token: the drawing and the loop, without a word of text.

The prompts are read first. A model that can `preallocate` then goes on in a Cache, which it writes
in place (gpt.py), so a token costs as much after ten thousand as after ten; the others go on with
the State that they hand out.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import data
from makemore.model import LanguageModel

from .gpt import Cache

READ = 512  # tokens of a prompt that are read at a time: all at once would need its square
LARGE = 4096  # a vocabulary of which first the SHORT likeliest tokens are looked at
SHORT = 1024


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """A token for each row of logits (B, V), (B,). uniform (B,) in [0, 1) decides which.

    temperature 0 takes the likeliest. top_k > 0 keeps the k likeliest; top_p < 1 the smallest set
    of likeliest tokens whose probabilities reach it (Holtzman et al. 2020); both: what both keep.
    """
    if temperature == 0:
        return logits.argmax(1)
    if temperature != 1:  # the likeliest is 0 first, so that nothing overflows however cold
        logits = (logits - logits.max(1, keepdim=True).values).double() / temperature
    probabilities = logits.double().softmax(1)
    if 0 < top_k < logits.shape[1] or top_p < 1:
        tokens = shortlist(probabilities, top_k, top_p)
        ordered, order = probabilities[:, tokens].sort(dim=1, descending=True, stable=True)
        if top_p < 1:  # a token stays if those before it fall short of top_p
            ordered = ordered.masked_fill(ordered.cumsum(1) - ordered >= top_p, 0)
        if top_k > 0:
            ordered[:, top_k:] = 0
        probabilities = torch.zeros_like(probabilities).scatter(1, tokens[order], ordered)
    reached = probabilities.cumsum(1)
    # the first token at which the sum passes the drawn share: never one of probability 0
    drawn = torch.searchsorted(reached, uniform[:, None] * reached[:, -1:], right=True)
    return drawn.clamp(max=logits.shape[1] - 1)[:, 0]


def shortlist(probabilities: Tensor, top_k: int, top_p: float) -> Tensor:
    """Tokens (N,) of all V, in order, with all of probabilities (B, V) that `draw` keeps among them.

    All, or of a large vocabulary, which would take long to sort, few.
    """
    V = probabilities.shape[1]
    if V > LARGE and top_k < V:
        likeliest = probabilities.topk(top_k or SHORT).values
        if top_k or (likeliest.sum(1) > top_p).all():
            return (probabilities >= likeliest[:, -1:]).any(0).nonzero()[:, 0]
    return torch.arange(V, device=probabilities.device)


class OneToken(TorchFunctionMode):
    """Writes the products of one token as sums, which a compiler fuses with all around them.

    A matrix is then read once, at the speed of memory, and hundreds of calls become a few. Left as
    they are, they are calls of a library that is made for large matrices, twice as slow at this.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.linear and args[0].shape[:-1].numel() == 1:
            return linear(*args)
        if function is F.scaled_dot_product_attention:
            return attention(*args[:4])
        return function(*args, **(kwargs or {}))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (1, 1, C) through a linear map (F, C): (1, 1, F)."""
    y = (x.flatten() * weight).sum(1, dtype=torch.float32)
    return (y if bias is None else y + bias).to(x.dtype)[None, None]


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """What one query q (B, H, 1, D) finds among k and v (B, H, S, D) behind the mask."""
    scores = (q * k).sum(3, dtype=torch.float32) * q.shape[3] ** -0.5
    weights = scores.masked_fill(~mask[:, :, 0], -torch.inf).softmax(2)
    return (weights[..., None] * v).sum(2, keepdim=True).to(q.dtype)


def compile_step(model: LanguageModel) -> Callable:
    """The model for one token of each row and a Cache, compiled: (tokens (B, 1), cache) as it is.

    It is compiled at the first call, and again for another number of rows or another room.
    """

    def step(tokens, position, used, memories):
        with OneToken():
            return model(tokens, Cache(position, position, memories, used))[0]

    compiled = torch.compile(step, dynamic=False, fullgraph=True)

    def of_cache(tokens: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        used = torch.tensor(cache.used, device=tokens.device)
        logits = compiled(tokens, cache.position, used, cache.memories)
        return logits, replace(cache, position=cache.position + 1, used=cache.used + 1)

    return of_cache
