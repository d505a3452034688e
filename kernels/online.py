"""The online softmax in NumPy: attention in one pass over the keys, without the matrix of weights.

Milakov & Gimelshein (2018); for attention Rabe & Staats (2021) and Dao et al. (2022). softmax(s) v
is a ratio of two sums, over the keys, of exp(s - m) v and of exp(s - m), for any number m. The
largest score keeps the exponentials from overflowing, but it is known only at the end. So take the
largest so far, and when a larger one comes, shrink both sums by exp(old - new):

    m_new = max(m, max s)
    total = total exp(m - m_new) + sum p
    out = out exp(m - m_new) + p v

with p = exp(s - m_new) of this block of keys. Of all the weights only lse = m + log total is kept,
a number a query: the backward pass makes each of them again as exp(s - lse). This is the step from
naive.py to attention.py, which does the same on a GPU. One head: q (T, D), k and v (S, D).
"""

import numpy as np


def scores_of(q, k, start, S, causal, scale):
    """The scores of queries q (T, D) with a block of keys that begins at `start` of S."""
    scores = scale * q @ k.T
    if causal:  # the last query stands beside the last key
        t, s = np.arange(len(q))[:, None] + S - len(q), start + np.arange(len(k))
        scores = np.where(s <= t, scores, -np.inf)
    return scores


def forward(q, k, v, causal=False, scale=None, block=16):
    """-> out (T, D), and the logarithm of the sum of the exponentials (T,), -inf without keys."""
    T, D = q.shape
    scale = D**-0.5 if scale is None else scale
    m, total = np.full(T, -np.inf), np.zeros(T)  # the largest score so far, the sum so far
    out = np.zeros((T, D))
    for start in range(0, len(k), block):
        keys, values = k[start:start + block], v[start:start + block]
        scores = scores_of(q, keys, start, len(k), causal, scale)
        m_new = np.maximum(m, scores.max(1))
        base = np.where(np.isinf(m_new), 0, m_new)  # nothing seen yet: -inf - -inf is no number
        p = np.exp(scores - base[:, None])
        shrink = np.exp(m - base)
        total = total * shrink + p.sum(1)
        out = out * shrink[:, None] + p @ values
        m = m_new
    seen = total > 0
    out = out / np.where(seen, total, 1)[:, None]
    return out, np.where(seen, m + np.log(np.where(seen, total, 1)), -np.inf)


def backward(dout, q, k, v, out, lse, causal=False, scale=None, block=16):
    """-> dq (T, D), dk and dv (S, D), for the gradient dout (T, D) of out.

    The softmax's gradient is ds = p (dp - sum over keys of p dp), and that sum is dout . out: a
    number a query that needs no pass over the keys.
    """
    scale = q.shape[1] ** -0.5 if scale is None else scale
    delta = (dout * out).sum(1)
    lse = np.where(np.isinf(lse), np.inf, lse)  # a query that saw nothing: exp(s - inf) = 0
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for start in range(0, len(k), block):
        part = slice(start, start + block)
        scores = scores_of(q, k[part], start, len(k), causal, scale)
        p = np.exp(scores - lse[:, None])
        dv[part] = p.T @ dout
        ds = scale * p * (dout @ v[part].T - delta[:, None])
        dk[part] = ds.T @ q
        dq += ds @ k[part]
    return dq, dk, dv
