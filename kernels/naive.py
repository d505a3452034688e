"""Attention as it is defined, in the plainest PyTorch: the reference that the kernels answer to.

For each head, with queries q (T, D), keys k and values v (S, D):

    scores = scale q k'              (T, S)
    weights = softmax over the keys  (T, S)    the whole matrix lies in memory: T x S numbers
    out = weights v                  (T, D)

Vaswani et al. (2017). Works in any precision, float64 above all; autograd gives its gradients.
"""

import torch
from torch import Tensor


def visible(T, S, causal=False, window=None, segments=None, device=None) -> Tensor:
    """Which keys a query sees: (1 or B, 1, T, S), true where it does.

    The last query stands beside the last key, so query t is at position t + S - T.
    """
    t = torch.arange(T, device=device)[:, None] + S - T
    s = torch.arange(S, device=device)
    seen = (s <= t) if causal else torch.ones(T, S, dtype=torch.bool, device=device)
    if window is not None:
        seen = seen & (s > t - window)
    seen = seen[None, None]
    if segments is not None:
        mine, theirs = segments if isinstance(segments, tuple) else (segments, segments)
        seen = seen & (mine[:, None, :, None] == theirs[:, None, None, :])
    return seen


def attention(
    q, k, v, *, causal=False, scale=None, window=None, segments=None, softcap=None, dropout=0.0,
    keep=None,
) -> Tensor:
    """q (B, H, T, D), k and v (B, KV, S, D) -> (B, H, T, D). Arguments as kernels.attention.

    keep (B, H, T, S): which weights dropout leaves, instead of drawing them here.
    """
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    T, S = q.shape[2], k.shape[2]
    scores = q @ k.transpose(2, 3) * (q.shape[3] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    seen = visible(T, S, causal, window, segments, q.device)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(3)
    weights = weights.masked_fill(~seen, 0.0)  # a query that sees nothing gets zeros, not 0 / 0
    if dropout and keep is None:
        keep = torch.rand(weights.shape, device=q.device) >= dropout
    if keep is not None:
        weights = weights * keep / (1 - dropout)
    return weights @ v
