"""Fused attention in Triton: the online softmax (online.py), a block of queries to a program.

Dao et al. (2022), Dao (2023). The scores of a block of queries with a block of keys live in
registers and are never written: the traffic to memory is that of q, k, v and out, not T x S. Forward
keeps one number a query, the log-sum-exp, from which the backward pass makes the weights again.

    forward       for each block of queries: pass over the keys           -> out, lse
    backward_q    for each block of queries: pass over the keys           -> dq, delta
    backward_kv   for each block of keys: pass over the queries           -> dk, dv

Every sum is made by one program in one order, without atomics: the same inputs give the same bits.

Conventions. Scores are kept in base 2 (times log2 e), as the hardware has exp2, not exp; lse too.
Matrix products take the precision of the inputs and add up in float32; "ieee" means that float32
is never cut to tf32. An argument that is None is known when the kernel is compiled, and what
belongs to it is left out. T queries, S keys, H heads in groups of `group` that share keys, D the
head width, BLOCK_D the power of two above it. *_strides are those of (B, H, T, D), any that are.
"""

import functools
import os

import torch
import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def load(base, strides, start, rows, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
         TAIL: tl.constexpr):  # fmt: skip
    """Rows start.. of a head (rows, D) as a tile (BLOCK, BLOCK_D), zeros beyond its borders.

    TAIL: the tile may pass the last row. Offsets are 64 bits wide: in the layout (B, T, H, D) one
    head may reach over more than 2^31 elements.
    """
    row, column = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    tile = row.to(tl.int64)[:, None] * strides[2] + column.to(tl.int64)[None, :] * strides[3]
    pointers = base + tl.cast(start, tl.int64) * strides[2] + tile
    if TAIL or D != BLOCK_D:
        inside = (start + row < rows)[:, None] & (column < D)[None, :]
        return tl.load(pointers, mask=inside, other=0.0)
    return tl.load(pointers)


@triton.jit
def store(base, strides, start, rows, tile, D: tl.constexpr, BLOCK_D: tl.constexpr,
          BLOCK: tl.constexpr):  # fmt: skip
    """A tile (BLOCK, BLOCK_D) into rows start.. of a head (rows, D)."""
    row, column = start + tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    offsets = row.to(tl.int64)[:, None] * strides[2] + column.to(tl.int64)[None, :] * strides[3]
    inside = (row < rows)[:, None] & (column < D)[None, :]
    tl.store(base + offsets, tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def head(base, strides, b, h):
    """Where head h of row b begins."""
    return base + tl.cast(b, tl.int64) * strides[0] + tl.cast(h, tl.int64) * strides[1]


@triton.jit
def tanh(x):
    """tanh to float32's precision: a polynomial near 0, where 1 - 2 / (exp(2 x) + 1) would cancel.

    exp may overflow to infinity: then the quotient is 0 and the result 1.
    """
    z = x * x
    near = x + x * z * (-0.33333332 + z * (0.1333312 + z * (-0.053895368 + z * (
        0.021247933 + z * -0.0066212217))))  # fmt: skip
    return tl.where(z < 0.25, near, 1 - 2 / (tl.exp2(x * (2 * LOG2E)) + 1))


@triton.jit
def scores_of(a, b, scale, softcap):
    """The scores a b' of two tiles (m, D) and (n, D), in base 2: (m, n)."""
    s = tl.dot(a, tl.trans(b), input_precision="ieee")
    if softcap is None:
        return s * (scale * LOG2E)
    else:
        return tanh(s * (scale / softcap)) * (softcap * LOG2E)


@triton.jit
def visible(t, s, T, S, b, window, q_segments, k_segments, CAUSAL: tl.constexpr):
    """Which keys s the queries t see; one of them a column, the other a row, and so the result."""
    seen = s < S
    position = t + (S - T)  # the last query stands beside the last key
    if CAUSAL:
        seen = seen & (s <= position)
    if window is not None:
        seen = seen & (s > position - window)
    if q_segments is not None:
        mine = tl.load(q_segments + tl.cast(b, tl.int64) * T + t, mask=t < T, other=-1)
        theirs = tl.load(k_segments + tl.cast(b, tl.int64) * S + s, mask=s < S, other=-1)
        seen = seen & (mine == theirs)
    return seen


@triton.jit
def kept(seed, bh, t, s, dropout):
    """Which weights dropout leaves. A function of (seed, b, h, t, s), whatever the blocks.

    Philox (Salmon et al. 2011) hashes a counter: nothing to store, and the backward pass makes the
    same mask again. Seven rounds are as many as pass their tests.
    """
    bits, _, _, _ = tl.philox(tl.load(seed), s, t, bh, 0, n_rounds=7)
    return tl.uint_to_uniform_float(bits) >= dropout


@triton.jit
def keys_of(start, T, S, window, SEGMENTS: tl.constexpr, CAUSAL: tl.constexpr,
            BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr):  # fmt: skip
    """The keys that a block of queries sees: lo, full_lo, full_hi, hi.

    From full_lo to full_hi every query sees every key: no mask is made there. Before lie the blocks
    that the window cuts, after them those of the diagonal and the tail; beyond, nothing is read.
    """
    first, last = start + S - T, start + BLOCK_T - 1 + S - T  # positions of the queries
    lo, full_lo, full_hi, hi = 0, 0, S // BLOCK_S * BLOCK_S, S
    if CAUSAL:
        hi = tl.minimum(S, last + 1)
        full_hi = tl.minimum(full_hi, tl.maximum(first + 1, 0) // BLOCK_S * BLOCK_S)
    if window is not None:
        lo = tl.maximum(first - window + 1, 0) // BLOCK_S * BLOCK_S
        full_lo = tl.cdiv(tl.maximum(last - window + 1, 0), BLOCK_S) * BLOCK_S
        full_lo = tl.minimum(full_lo, tl.cdiv(tl.maximum(hi, 0), BLOCK_S) * BLOCK_S)
    if SEGMENTS:
        full_hi = full_lo
    return lo, full_lo, tl.maximum(full_lo, full_hi), hi


@triton.jit
def queries_of(start, T, S, window, SEGMENTS: tl.constexpr, CAUSAL: tl.constexpr,
               BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr):  # fmt: skip
    """The queries that see a block of keys: lo, full_lo, full_hi, hi, as in keys_of.

    Queries beyond T need no mask, as their lse is read as infinity, and keys beyond S are not
    stored. So without a window the last block of queries counts as full.
    """
    first, last = start - (S - T), start + BLOCK_S - 1 - (S - T)  # the queries beside these keys
    lo, full_lo, full_hi, hi = 0, 0, T, T
    if CAUSAL:
        lo = tl.maximum(first, 0) // BLOCK_T * BLOCK_T
        full_lo = tl.cdiv(tl.maximum(last, 0), BLOCK_T) * BLOCK_T
    if window is not None:
        hi = tl.minimum(T, last + window)
        full_hi = tl.minimum(T, tl.maximum(first + window, 0)) // BLOCK_T * BLOCK_T
    limit = tl.cdiv(tl.maximum(hi, 0), BLOCK_T) * BLOCK_T
    if SEGMENTS:
        full_lo = limit
    full_lo = tl.minimum(full_lo, limit)
    return lo, full_lo, tl.maximum(full_lo, full_hi), hi


@triton.jit
def attend_block(acc, m, total, q, k, v, k_strides, v_strides, q_segments, k_segments, seed, b, bh,
                 t, start, T, S, window, scale, softcap, dropout, D: tl.constexpr,
                 BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, CAUSAL: tl.constexpr,
                 MASKED: tl.constexpr):  # fmt: skip
    """One step of the online softmax: the queries q (BLOCK_T, D) take a block of keys."""
    s = scores_of(q, load(k, k_strides, start, S, D, BLOCK_D, BLOCK_S, MASKED), scale, softcap)
    keys = start + tl.arange(0, BLOCK_S)[None, :]
    if MASKED:
        seen = visible(t[:, None], keys, T, S, b, window, q_segments, k_segments, CAUSAL)
        s = tl.where(seen, s, -float("inf"))
    m_new = tl.maximum(m, tl.max(s, 1))
    base = m_new
    if MASKED:  # a query that has seen nothing yet: -inf - -inf is no number, -inf - 0 gives weight 0
        base = tl.where(m_new == -float("inf"), 0.0, m_new)
    p = tl.exp2(s - base[:, None])
    shrink = tl.exp2(m - base)
    total = total * shrink + tl.sum(p, 1)  # before dropout, which thins weights that sum to 1
    if seed is not None:
        p = tl.where(kept(seed, bh, t[:, None], keys, dropout), p, 0.0)
    values = load(v, v_strides, start, S, D, BLOCK_D, BLOCK_S, MASKED)
    acc = tl.dot(p.to(values.dtype), values, acc * shrink[:, None], input_precision="ieee")
    return acc, m_new, total


@triton.jit(do_not_specialize=["T", "S", "window"])
def forward_kernel(q, k, v, out, lse, q_segments, k_segments, seed, q_strides, k_strides, v_strides,
                   out_strides, H, group, T, S, window, scale, softcap, dropout, D: tl.constexpr,
                   BLOCK_D: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_T: tl.constexpr,
                   BLOCK_S: tl.constexpr):  # fmt: skip
    """A program takes BLOCK_T queries of a head: out, and lse (B, H, T), infinity without keys."""
    # One axis, as the others end at 65,535 programs. Heads outside, so that programs that run
    # together share keys in the cache; the last queries first, which have the most to do.
    blocks = tl.cdiv(T, BLOCK_T)
    bh = tl.program_id(0) // blocks
    start = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_T
    b, h = bh // H, bh % H
    k, v = head(k, k_strides, b, h // group), head(v, v_strides, b, h // group)
    t = start + tl.arange(0, BLOCK_T)
    queries = load(head(q, q_strides, b, h), q_strides, start, T, D, BLOCK_D, BLOCK_T, True)
    acc = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    m = tl.full((BLOCK_T,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_T,), tl.float32)
    SEGMENTS: tl.constexpr = q_segments is not None
    lo, full_lo, full_hi, hi = keys_of(start, T, S, window, SEGMENTS, CAUSAL, BLOCK_T, BLOCK_S)
    if window is not None:
        for i in range(lo, tl.minimum(full_lo, hi), BLOCK_S):
            acc, m, total = attend_block(
                acc, m, total, queries, k, v, k_strides, v_strides, q_segments, k_segments, seed, b,
                bh, t, i, T, S, window, scale, softcap, dropout, D, BLOCK_D, BLOCK_S, CAUSAL, True)
    for i in range(full_lo, full_hi, BLOCK_S):
        acc, m, total = attend_block(
            acc, m, total, queries, k, v, k_strides, v_strides, q_segments, k_segments, seed, b,
            bh, t, i, T, S, window, scale, softcap, dropout, D, BLOCK_D, BLOCK_S, CAUSAL, False)
    for i in range(full_hi, hi, BLOCK_S):
        acc, m, total = attend_block(
            acc, m, total, queries, k, v, k_strides, v_strides, q_segments, k_segments, seed, b,
            bh, t, i, T, S, window, scale, softcap, dropout, D, BLOCK_D, BLOCK_S, CAUSAL, True)
    seen = total > 0
    total = tl.where(seen, total, 1.0)
    acc = acc / total[:, None]
    if seed is not None:
        acc = acc / (1 - dropout)
    store(head(out, out_strides, b, h), out_strides, start, T, acc, D, BLOCK_D, BLOCK_T)
    # infinity for a query that sees nothing: all its weights become exp2(s - inf) = 0 in the backward
    m = tl.where(seen, m + tl.log2(total), float("inf"))
    tl.store(lse + tl.cast(bh, tl.int64) * T + t, m, mask=t < T)


@triton.jit
def weights_of(s, lse, t, keys, T, S, b, window, q_segments, k_segments, CAUSAL: tl.constexpr,
               MASKED: tl.constexpr):  # fmt: skip
    """The softmax's weights, made again from scores and lse."""
    p = tl.exp2(s - lse)
    if MASKED:  # after exp2, which may overflow where nothing is seen
        p = tl.where(visible(t, keys, T, S, b, window, q_segments, k_segments, CAUSAL), p, 0.0)
    return p


@triton.jit
def score_gradient(p, dp, delta, s, softcap):
    """The gradient of the scores q k' from that of the weights, but for the factor scale."""
    ds = p * (dp - delta)
    if softcap is not None:
        slope = s / (softcap * LOG2E)  # tanh, whose derivative is 1 - tanh^2
        ds = ds * (1 - slope * slope)
    return ds


@triton.jit
def query_gradient(dq, q, do, lse, delta, k, v, k_strides, v_strides, q_segments, k_segments, seed,
                   b, bh, t, start, T, S, window, scale, softcap, dropout, D: tl.constexpr,
                   BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, CAUSAL: tl.constexpr,
                   MASKED: tl.constexpr):  # fmt: skip
    """What a block of keys adds to dq (BLOCK_T, D)."""
    keys = start + tl.arange(0, BLOCK_S)[None, :]
    tile = load(k, k_strides, start, S, D, BLOCK_D, BLOCK_S, MASKED)
    s = scores_of(q, tile, scale, softcap)
    p = weights_of(s, lse[:, None], t[:, None], keys, T, S, b, window, q_segments, k_segments,
                   CAUSAL, MASKED)  # fmt: skip
    values = load(v, v_strides, start, S, D, BLOCK_D, BLOCK_S, MASKED)
    dp = tl.dot(do, tl.trans(values), input_precision="ieee")
    if seed is not None:
        dp = tl.where(kept(seed, bh, t[:, None], keys, dropout), dp / (1 - dropout), 0.0)
    ds = score_gradient(p, dp, delta[:, None], s, softcap)
    return tl.dot(ds.to(tile.dtype), tile, dq, input_precision="ieee")


@triton.jit(do_not_specialize=["T", "S", "window"])
def backward_q_kernel(q, k, v, out, lse, do, dq, delta, q_segments, k_segments, seed, q_strides,
                      k_strides, v_strides, out_strides, do_strides, dq_strides, H, group, T, S,
                      window, scale, softcap, dropout, D: tl.constexpr, BLOCK_D: tl.constexpr,
                      CAUSAL: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr):  # fmt: skip
    """A program takes BLOCK_T queries of a head: dq, and delta = do . out (B, H, T)."""
    blocks = tl.cdiv(T, BLOCK_T)
    bh = tl.program_id(0) // blocks
    start = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_T
    b, h = bh // H, bh % H
    k, v = head(k, k_strides, b, h // group), head(v, v_strides, b, h // group)
    t = start + tl.arange(0, BLOCK_T)
    queries = load(head(q, q_strides, b, h), q_strides, start, T, D, BLOCK_D, BLOCK_T, True)
    do = load(head(do, do_strides, b, h), do_strides, start, T, D, BLOCK_D, BLOCK_T, True)
    out = load(head(out, out_strides, b, h), out_strides, start, T, D, BLOCK_D, BLOCK_T, True)
    rows = tl.cast(bh, tl.int64) * T + t
    d = tl.sum(do.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(delta + rows, d, mask=t < T)
    lse = tl.load(lse + rows, mask=t < T, other=float("inf"))
    acc = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    SEGMENTS: tl.constexpr = q_segments is not None
    lo, full_lo, full_hi, hi = keys_of(start, T, S, window, SEGMENTS, CAUSAL, BLOCK_T, BLOCK_S)
    if window is not None:
        for i in range(lo, tl.minimum(full_lo, hi), BLOCK_S):
            acc = query_gradient(
                acc, queries, do, lse, d, k, v, k_strides, v_strides, q_segments, k_segments, seed,
                b, bh, t, i, T, S, window, scale, softcap, dropout, D, BLOCK_D, BLOCK_S, CAUSAL,
                True)
    for i in range(full_lo, full_hi, BLOCK_S):
        acc = query_gradient(
            acc, queries, do, lse, d, k, v, k_strides, v_strides, q_segments, k_segments, seed,
            b, bh, t, i, T, S, window, scale, softcap, dropout, D, BLOCK_D, BLOCK_S, CAUSAL, False)
    for i in range(full_hi, hi, BLOCK_S):
        acc = query_gradient(
            acc, queries, do, lse, d, k, v, k_strides, v_strides, q_segments, k_segments, seed,
            b, bh, t, i, T, S, window, scale, softcap, dropout, D, BLOCK_D, BLOCK_S, CAUSAL, True)
    store(head(dq, dq_strides, b, h), dq_strides, start, T, acc * scale, D, BLOCK_D, BLOCK_T)


@triton.jit
def key_gradient(dk, dv, k, v, q, do, lse, delta, q_strides, do_strides, q_segments, k_segments,
                 seed, b, bh, keys, start, T, S, window, scale, softcap, dropout, D: tl.constexpr,
                 BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr, CAUSAL: tl.constexpr,
                 MASKED: tl.constexpr):  # fmt: skip
    """What a block of queries adds to dk and dv (BLOCK_S, D).

    All tiles are transposed, keys by queries: so p' and ds' are made as the products need them.
    """
    t = start + tl.arange(0, BLOCK_T)
    queries = load(q, q_strides, start, T, D, BLOCK_D, BLOCK_T, True)
    lse = tl.load(lse + tl.cast(bh, tl.int64) * T + t, mask=t < T, other=float("inf"))
    s = scores_of(k, queries, scale, softcap)
    p = weights_of(s, lse[None, :], t[None, :], keys[:, None], T, S, b, window, q_segments,
                   k_segments, CAUSAL, MASKED)  # fmt: skip
    do = load(do, do_strides, start, T, D, BLOCK_D, BLOCK_T, True)
    dp = tl.dot(v, tl.trans(do), input_precision="ieee")
    dropped = p
    if seed is not None:
        keep = kept(seed, bh, t[None, :], keys[:, None], dropout)
        dropped = tl.where(keep, p / (1 - dropout), 0.0)
        dp = tl.where(keep, dp / (1 - dropout), 0.0)
    dv = tl.dot(dropped.to(do.dtype), do, dv, input_precision="ieee")
    delta = tl.load(delta + tl.cast(bh, tl.int64) * T + t, mask=t < T, other=0.0)
    ds = score_gradient(p, dp, delta[None, :], s, softcap)
    return tl.dot(ds.to(queries.dtype), queries, dk, input_precision="ieee"), dv


@triton.jit(do_not_specialize=["T", "S", "window"])
def backward_kv_kernel(q, k, v, lse, do, delta, dk, dv, q_segments, k_segments, seed, q_strides,
                       k_strides, v_strides, do_strides, dk_strides, dv_strides, H, group, T, S,
                       window, scale, softcap, dropout, D: tl.constexpr, BLOCK_D: tl.constexpr,
                       CAUSAL: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr):  # fmt: skip
    """A program takes BLOCK_S keys of a key/value head, and every query of its group of heads."""
    blocks = tl.cdiv(S, BLOCK_S)
    pair = tl.program_id(0) // blocks
    start = tl.program_id(0) % blocks * BLOCK_S  # the first keys, which most queries see, first
    b, kv = pair // (H // group), pair % (H // group)
    keys = start + tl.arange(0, BLOCK_S)
    k = load(head(k, k_strides, b, kv), k_strides, start, S, D, BLOCK_D, BLOCK_S, True)
    v = load(head(v, v_strides, b, kv), v_strides, start, S, D, BLOCK_D, BLOCK_S, True)
    dk_acc = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
    dv_acc = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
    SEGMENTS: tl.constexpr = q_segments is not None
    lo, full_lo, full_hi, hi = queries_of(start, T, S, window, SEGMENTS, CAUSAL, BLOCK_T, BLOCK_S)
    # The heads of a group one after another, in here: a sum over programs would have no fixed order.
    for h in range(kv * group, (kv + 1) * group):
        bh = b * H + h
        q_head, do_head = head(q, q_strides, b, h), head(do, do_strides, b, h)
        if CAUSAL or SEGMENTS:
            for i in range(lo, tl.minimum(full_lo, hi), BLOCK_T):
                dk_acc, dv_acc = key_gradient(
                    dk_acc, dv_acc, k, v, q_head, do_head, lse, delta, q_strides, do_strides,
                    q_segments, k_segments, seed, b, bh, keys, i, T, S, window, scale, softcap,
                    dropout, D, BLOCK_D, BLOCK_T, CAUSAL, True)
        for i in range(full_lo, full_hi, BLOCK_T):
            dk_acc, dv_acc = key_gradient(
                dk_acc, dv_acc, k, v, q_head, do_head, lse, delta, q_strides, do_strides,
                q_segments, k_segments, seed, b, bh, keys, i, T, S, window, scale, softcap,
                dropout, D, BLOCK_D, BLOCK_T, CAUSAL, False)
        if window is not None:
            for i in range(full_hi, hi, BLOCK_T):
                dk_acc, dv_acc = key_gradient(
                    dk_acc, dv_acc, k, v, q_head, do_head, lse, delta, q_strides, do_strides,
                    q_segments, k_segments, seed, b, bh, keys, i, T, S, window, scale, softcap,
                    dropout, D, BLOCK_D, BLOCK_T, CAUSAL, True)
    store(head(dk, dk_strides, b, kv), dk_strides, start, S, dk_acc * scale, D, BLOCK_D, BLOCK_S)
    store(head(dv, dv_strides, b, kv), dv_strides, start, S, dv_acc, D, BLOCK_D, BLOCK_S)


# Tiles and how many warps and pipeline stages work on them: (BLOCK_T, BLOCK_S, warps, stages), by
# the width of a tile and the bytes of a number. The first of each list is taken, the others are what
# tuning tries. They fit the 99 KiB of shared memory of the smallest chips, unless "large" stands
# before: data centres' chips (capability 8.0, 9.x, 10.x; CDNA).
CONFIGURATIONS = {
    "forward": {
        (64, 2): [(128, 64, 4, 3), (128, 128, 8, 2), (64, 64, 4, 3), (128, 32, 4, 4)],
        (128, 2): [(128, 64, 8, 2), (128, 32, 4, 3), (64, 64, 4, 2), (64, 32, 4, 3)],
        (256, 2): [(64, 32, 8, 2), (64, 32, 4, 2), (64, 16, 4, 2)],
        (64, 4): [(64, 32, 4, 2), (32, 32, 4, 2)],
        (128, 4): [(32, 32, 4, 2), (32, 16, 4, 2)],
        (256, 4): [(16, 16, 4, 1), (16, 16, 8, 1)],
    },
    "backward_q": {
        (64, 2): [(64, 64, 4, 2), (128, 64, 8, 2), (64, 32, 4, 3)],
        (128, 2): [(64, 32, 4, 2), (64, 64, 8, 1), (128, 32, 8, 2)],
        (256, 2): [(32, 32, 8, 1), (64, 16, 8, 1)],
        (64, 4): [(32, 32, 4, 1), (16, 32, 4, 1)],
        (128, 4): [(16, 16, 4, 1), (16, 32, 4, 1)],
        (256, 4): [(16, 16, 8, 1)],
    },
    "backward_kv": {
        (64, 2): [(64, 64, 4, 2), (64, 128, 8, 2), (32, 64, 4, 3)],
        (128, 2): [(32, 64, 4, 2), (64, 64, 8, 1), (32, 128, 8, 2)],
        (256, 2): [(16, 32, 8, 1), (32, 32, 8, 1)],
        (64, 4): [(32, 32, 4, 1), (32, 16, 4, 1)],
        (128, 4): [(16, 16, 4, 1), (32, 16, 4, 1)],
        (256, 4): [(16, 16, 8, 1)],
    },
}
NAMES = ("BLOCK_T", "BLOCK_S", "num_warps", "num_stages")


def configurations(D: int, dtype: torch.dtype, capability: tuple[int, int] | None) -> dict:
    """The launch configurations of every kernel, the default first: {"forward": [dict, ...], ...}.

    capability: (9, 0) and so on; None for the interpreter and for AMD's chips.
    """
    key = max(64, triton.next_power_of_2(D)), dtype.itemsize
    return {
        name: [dict(zip(NAMES, config)) for config in table[key]]
        for name, table in CONFIGURATIONS.items()
    }


KERNELS = {
    "forward": forward_kernel,
    "backward_q": backward_q_kernel,
    "backward_kv": backward_kv_kernel,
}


@functools.cache
def tuned(name: str, D: int, dtype: torch.dtype, capability):
    """The kernel that times its configurations at the first call, and keeps the choice on disk."""
    configs = [
        triton.Config({k: c[k] for k in NAMES[:2]}, c["num_warps"], c["num_stages"])
        for c in configurations(D, dtype, capability)[name]
    ]
    return triton.autotune(configs, key=["D", "CAUSAL"], cache_results=True)(KERNELS[name])


def launch(name: str, programs, q, *arguments, D, CAUSAL, blocks=None) -> None:
    """Run a kernel on programs(BLOCK_T, BLOCK_S) programs.

    blocks (BLOCK_T, BLOCK_S): instead of the default. With RUNGS_AUTOTUNE=1 the best is searched.
    """
    capability = torch.cuda.get_device_capability(q.device) if q.is_cuda else None
    shape = dict(D=D, BLOCK_D=max(16, triton.next_power_of_2(D)), CAUSAL=CAUSAL)

    def grid(meta):
        return (programs(meta["BLOCK_T"], meta["BLOCK_S"]),)

    if blocks is None and q.is_cuda and os.environ.get("RUNGS_AUTOTUNE") == "1":
        return tuned(name, D, q.dtype, capability)[grid](q, *arguments, **shape)
    config = configurations(D, q.dtype, capability)[name][0]
    if blocks is not None:
        config = config | dict(zip(NAMES, blocks))
    KERNELS[name][grid](q, *arguments, **shape, **config)


def empty(like, length: int) -> torch.Tensor:
    """(B, H, length, D), in memory (B, length, H, D): as the projection before and after has it."""
    B, H, _, D = like.shape
    return torch.empty((B, length, H, D), dtype=like.dtype, device=like.device).transpose(1, 2)


def forward(q, k, v, q_segments, k_segments, seed, causal, scale, window, softcap, dropout,
            blocks=None):  # fmt: skip
    """-> out (B, H, T, D), and lse (B, H, T) float32 in base 2. Checked arguments (operator.py).

    q_segments (B, T) and k_segments (B, S) contiguous integers, or None. seed (): int64 on the
    device, None without dropout. window and softcap may be None.
    """
    (B, H, T, D), (_, KV, S, _) = q.shape, k.shape
    out = empty(q, T)
    lse = torch.empty((B, H, T), dtype=torch.float32, device=q.device)
    if out.numel():
        launch(
            "forward", lambda t, s: triton.cdiv(T, t) * B * H, q, k, v, out, lse, q_segments,
            k_segments, seed, q.stride(), k.stride(), v.stride(), out.stride(), H, H // KV, T, S,
            window, scale, softcap, dropout, D=D, CAUSAL=causal, blocks=blocks,
        )  # fmt: skip
    return out, lse


def backward(do, q, k, v, out, lse, q_segments, k_segments, seed, causal, scale, window, softcap,
             dropout, blocks=None):  # fmt: skip
    """The gradient do (B, H, T, D) of out -> dq, dk, dv. Other arguments as they were in forward."""
    (B, H, T, D), (_, KV, S, _) = q.shape, k.shape
    dq, dk, dv = empty(q, T), empty(k, S), empty(v, S)
    delta = torch.empty_like(lse)
    rest = H, H // KV, T, S, window, scale, softcap, dropout
    if dq.numel():
        launch(
            "backward_q", lambda t, s: triton.cdiv(T, t) * B * H, q, k, v, out, lse, do, dq, delta,
            q_segments, k_segments, seed, q.stride(), k.stride(), v.stride(), out.stride(),
            do.stride(), dq.stride(), *rest, D=D, CAUSAL=causal, blocks=blocks,
        )  # fmt: skip
    if dk.numel():  # after backward_q, which makes delta
        launch(
            "backward_kv", lambda t, s: triton.cdiv(S, s) * B * KV, q, k, v, lse, do, delta, dk, dv,
            q_segments, k_segments, seed, q.stride(), k.stride(), v.stride(), do.stride(),
            dk.stride(), dv.stride(), *rest, D=D, CAUSAL=causal, blocks=blocks,
        )  # fmt: skip
    return dq, dk, dv
