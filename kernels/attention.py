"""Fused attention in Triton: the online softmax (online.py), a block of queries to a program.

Dao et al. (2022), Dao (2023). The scores of a block of queries with a block of keys live in
registers and are never written: the traffic to memory is that of q, k, v and out, not T x S. The
forward pass keeps one number a query, the log-sum-exp, and from it the backward pass makes the
weights again.

    forward       for each block of queries: pass over the keys           -> out, lse
    backward_q    for each block of queries: pass over the keys           -> dq, delta
    backward_kv   for each block of keys: pass over the queries           -> dk, dv

Every sum is made by one program in one order, without atomics: the same inputs give the same bits.

Conventions. Tensors are (B, H, T, D) with any strides. Scores are kept in base 2 (times log2 e), as
the hardware has exp2, not exp; lse too. Matrix products take the precision of the inputs and add up
in float32. An argument that is None is known when the kernel is compiled, and what belongs to it is
left out. A tile is as wide as BLOCK_D, the power of two at or above the head width D.
"""

import torch
import triton
import triton.language as tl

from .launch import Job, launch

LOG2E = tl.constexpr(1.4426950408889634)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def dot(a, b, acc=None):
    """acc + a b in float32. "ieee": products of float32 are never cut to tf32."""
    if INTERPRETED:  # which would multiply the bits of bfloat16
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """float32 to dtype, rounded to the nearest."""
    if INTERPRETED and dtype == tl.bfloat16:  # which would cut
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)


@triton.jit
def head(base, strides, b, h):
    """Head h of row b of a tensor (B, H, T, D): where it begins, and its strides of T and D.

    Of a tensor that TMA reads, Hopper's unit that copies tiles: its descriptor, b and h.
    """
    if isinstance(base, tl.tensor_descriptor):
        return base, b, h
    else:
        base += tl.cast(b, tl.int64) * strides[0] + tl.cast(h, tl.int64) * strides[1]
        return base, strides[2], strides[3]


@triton.jit
def places(head, start, rows, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr):
    """Pointers to rows start.. of a head (rows, D), as a tile (BLOCK, BLOCK_D), and which it has.

    A head may reach over 2^31 elements, so where its tile begins takes 64 bits. Within a tile 32 do
    (tame sees to it), and they cost half the registers.
    """
    base, row_stride, column_stride = head
    row, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK_D)[None, :]
    tile = row * row_stride + column * column_stride
    return base + tl.cast(start, tl.int64) * row_stride + tile, (start + row < rows) & (column < D)


@triton.jit
def load(head, start, rows, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
         TAIL: tl.constexpr):  # fmt: skip
    """Rows start.. of a head as a tile, zeros beyond its borders. TAIL: it may pass the end."""
    if isinstance(head[0], tl.tensor_descriptor):
        return head[0].load([head[1], head[2], start, 0]).reshape(BLOCK, BLOCK_D)
    else:
        pointers, inside = places(head, start, rows, D, BLOCK_D, BLOCK)
        if TAIL or D != BLOCK_D:
            return tl.load(pointers, mask=inside, other=0.0)
        else:
            return tl.load(pointers)


@triton.jit
def store(head, start, rows, tile, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr):
    """A tile into rows start.. of a head."""
    pointers, inside = places(head, start, rows, D, BLOCK_D, BLOCK)
    tl.store(pointers, narrow(tile, pointers.dtype.element_ty), mask=inside)


@triton.jit
def tanh(x):
    """tanh to float32's precision: a polynomial near 0, where 1 - 2 / (exp(2 x) + 1) would cancel.

    exp may overflow to infinity: then the quotient is 0 and the result 1.
    """
    z = x * x
    near = -0.0539337881 + z * (0.0214727167 + z * -0.00694699679)
    near = x + x * z * (-0.333333313 + z * (0.133332267 + z * near))
    return tl.where(z < 0.25, near, 1 - 2 / (tl.exp2(x * (2 * LOG2E)) + 1))


@triton.jit
def scores_of(a, b, job):
    """The scores a b' of two tiles (m, D) and (n, D), in base 2: (m, n)."""
    s = dot(a, tl.trans(b))
    if job.softcap is None:
        return s * (job.scale * LOG2E)
    else:
        return tanh(s * (job.scale / job.softcap)) * (job.softcap * LOG2E)


@triton.jit
def visible(t, s, b, job, CAUSAL: tl.constexpr):
    """Which keys s the queries t see; one of them a column, the other a row, and so the result."""
    seen = s < job.S
    position = t + (job.S - job.T)  # the last query stands beside the last key
    if CAUSAL:
        seen = seen & (s <= position)
    if job.window is not None:
        seen = seen & (s > position - job.window)
    if job.q_segments is not None:
        row = tl.cast(b, tl.int64)
        mine = tl.load(job.q_segments + row * job.T + t, mask=t < job.T, other=0)
        theirs = tl.load(job.k_segments + row * job.S + s, mask=s < job.S, other=0)
        seen = seen & (mine == theirs)
    return seen


@triton.jit
def kept(t, s, bh, job):
    """Which weights dropout leaves. A function of (seed, b, h, t, s), whatever the blocks.

    Philox (Salmon et al. 2011) hashes a counter: nothing to store, and the backward pass makes the
    same mask again. Seven rounds are the fewest that pass its authors' tests.
    """
    bits, _, _, _ = tl.philox(tl.load(job.seed), s, t, bh, 0, n_rounds=7)
    return tl.uint_to_uniform_float(bits) >= job.dropout


@triton.jit
def related(mine, start, length, BLOCK: tl.constexpr, theirs, lo, hi, STEP: tl.constexpr):
    """The part of lo..hi, from a multiple of STEP, outside which no token shares a document.

    With rows start..start + BLOCK of mine (length,), whose least and largest numbers bound those
    looked for: exact where documents follow one another, and never too little in any order.
    """
    ids = tl.load(mine + tl.minimum(start + tl.arange(0, BLOCK), length - 1))
    least, most = tl.min(ids, 0), tl.max(ids, 0)
    first, last = tl.maximum(lo, hi), lo
    for i in range(lo, hi, 1024):  # many at once, as each turn waits for memory
        j = tl.minimum(i + tl.arange(0, 1024), hi - 1)
        other = tl.load(theirs + j)
        some = (other >= least) & (other <= most)
        first = tl.minimum(first, tl.min(tl.where(some, j, first), 0))
        last = tl.maximum(last, tl.max(tl.where(some, j + 1, last), 0))
    return first // STEP * STEP, last


@triton.jit
def keys_of(start, b, job, CAUSAL: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr):
    """The keys that a block of queries sees: lo, full_lo, full_hi, hi.

    From full_lo to full_hi every query sees every key: no mask is made there. Before lie the blocks
    that the window cuts, after them those of the diagonal and the tail; beyond, nothing is read.
    With documents all blocks are masked, and count as the last.
    """
    first = start + job.S - job.T  # the positions of the first and the last query
    last = first + BLOCK_T - 1
    lo, full_lo, full_hi, hi = 0, 0, job.S // BLOCK_S * BLOCK_S, job.S
    if CAUSAL:
        hi = tl.minimum(hi, last + 1)
        full_hi = tl.minimum(full_hi, tl.maximum(first + 1, 0) // BLOCK_S * BLOCK_S)
    if job.window is not None:
        lo = tl.maximum(first - job.window + 1, 0) // BLOCK_S * BLOCK_S
        full_lo = tl.cdiv(tl.maximum(last - job.window + 1, 0), BLOCK_S) * BLOCK_S
        full_lo = tl.minimum(full_lo, tl.cdiv(tl.maximum(hi, 0), BLOCK_S) * BLOCK_S)
    full_hi = tl.maximum(full_lo, full_hi)
    if job.q_segments is not None:
        row = tl.cast(b, tl.int64)
        lo, hi = related(job.q_segments + row * job.T, start, job.T, BLOCK_T,
                         job.k_segments + row * job.S, lo, hi, BLOCK_S)  # fmt: skip
        full_lo, full_hi = lo, lo
    return lo, full_lo, full_hi, hi


@triton.jit
def queries_of(start, b, job, CAUSAL: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr):
    """The queries that see a block of keys: lo, full_lo, full_hi, hi, much as in keys_of.

    The diagonal comes first here, the window's end last. Queries beyond T need no mask, as their
    lse is read as infinity, and keys beyond S are not stored: so a tail counts as full. With
    documents all blocks count as the first.
    """
    first = start - (job.S - job.T)  # the queries beside the first and the last key
    last = first + BLOCK_S - 1
    lo, full_lo, full_hi, hi = 0, 0, job.T, job.T
    if CAUSAL:
        lo = tl.maximum(first, 0) // BLOCK_T * BLOCK_T
        full_lo = tl.cdiv(tl.maximum(last, 0), BLOCK_T) * BLOCK_T
    if job.window is not None:
        hi = tl.minimum(hi, last + job.window)
        full_hi = tl.minimum(hi, tl.maximum(first + job.window, 0)) // BLOCK_T * BLOCK_T
    limit = tl.cdiv(tl.maximum(hi, 0), BLOCK_T) * BLOCK_T
    full_lo = tl.minimum(full_lo, limit)
    full_hi = tl.maximum(full_lo, full_hi)
    if job.q_segments is not None:
        row = tl.cast(b, tl.int64)
        lo, hi = related(job.k_segments + row * job.S, start, job.S, BLOCK_S,
                         job.q_segments + row * job.T, lo, hi, BLOCK_T)  # fmt: skip
        full_lo, full_hi = hi, hi
    return lo, full_lo, full_hi, hi


@triton.jit
def attend(acc, m, total, q, k, v, t, start, b, bh, job, D: tl.constexpr, BLOCK_D: tl.constexpr,
           CAUSAL: tl.constexpr, BLOCK_S: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """A step of the online softmax: queries q (BLOCK_T, D) take the block of keys at `start`."""
    s = scores_of(q, load(k, start, job.S, D, BLOCK_D, BLOCK_S, MASKED), job)
    keys = start + tl.arange(0, BLOCK_S)[None, :]
    if MASKED:
        s = tl.where(visible(t[:, None], keys, b, job, CAUSAL), s, -float("inf"))
    m_new = tl.maximum(m, tl.max(s, 1))
    base = m_new
    if MASKED:  # while a query has seen nothing: -inf - -inf is no number, -inf - 0 gives weight 0
        base = tl.where(m_new == -float("inf"), 0.0, m_new)
    p = tl.exp2(s - base[:, None])
    shrink = tl.exp2(m - base)
    total = total * shrink + tl.sum(p, 1)  # before dropout, which thins weights that sum to 1
    if job.seed is not None:
        p = tl.where(kept(t[:, None], keys, bh, job), p, 0.0)
    values = load(v, start, job.S, D, BLOCK_D, BLOCK_S, MASKED)
    return dot(narrow(p, values.dtype), values, acc * shrink[:, None]), m_new, total


@triton.jit
def forward_kernel(q, k, v, out, lse, q_strides, k_strides, v_strides, out_strides, job,
                   D: tl.constexpr, BLOCK_D: tl.constexpr, CAUSAL: tl.constexpr,
                   BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
                   SPECIALISED: tl.constexpr):  # fmt: skip
    """A program takes BLOCK_T queries of a head: out, and lse (B, H, T), infinity without keys."""
    # One axis of programs, as the others end at 65,535. Heads outside, so that programs that run
    # together share keys in the cache; the last queries first, which have the most to do.
    blocks = tl.cdiv(job.T, BLOCK_T)
    bh = tl.program_id(0) // blocks
    start = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_T
    b, h = bh // job.H, bh % job.H
    k, v = head(k, k_strides, b, h // job.group), head(v, v_strides, b, h // job.group)
    t = start + tl.arange(0, BLOCK_T)
    q = load(head(q, q_strides, b, h), start, job.T, D, BLOCK_D, BLOCK_T, True)
    acc = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    m = tl.full((BLOCK_T,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_T,), tl.float32)
    lo, full_lo, full_hi, hi = keys_of(start, b, job, CAUSAL, BLOCK_T, BLOCK_S)
    if SPECIALISED:  # Triton can part the warps in one loop of a kernel: all blocks are masked
        full_hi = lo
    elif job.q_segments is None:
        if job.window is not None:
            for i in range(lo, tl.minimum(full_lo, hi), BLOCK_S):
                acc, m, total = attend(acc, m, total, q, k, v, t, i, b, bh, job, D, BLOCK_D, CAUSAL,
                                       BLOCK_S, True)  # fmt: skip
        for i in range(full_lo, full_hi, BLOCK_S):
            acc, m, total = attend(acc, m, total, q, k, v, t, i, b, bh, job, D, BLOCK_D, CAUSAL,
                                   BLOCK_S, False)  # fmt: skip
    for i in tl.range(full_hi, hi, BLOCK_S, warp_specialize=SPECIALISED):
        acc, m, total = attend(acc, m, total, q, k, v, t, i, b, bh, job, D, BLOCK_D, CAUSAL,
                               BLOCK_S, True)  # fmt: skip
    seen = total > 0
    total = tl.where(seen, total, 1.0)
    acc = acc / total[:, None]
    if job.seed is not None:
        acc = acc / (1 - job.dropout)
    store(head(out, out_strides, b, h), start, job.T, acc, D, BLOCK_D, BLOCK_T)
    # Infinity where nothing is seen: in the backward pass all weights are then exp2(s - inf) = 0.
    m = tl.where(seen, m + tl.log2(total), float("inf"))
    tl.store(lse + tl.cast(bh, tl.int64) * job.T + t, m, mask=t < job.T)


@triton.jit
def weights_of(s, lse, t, keys, b, job, CAUSAL: tl.constexpr, MASKED: tl.constexpr):
    """The softmax's weights, made again from scores and lse."""
    p = tl.exp2(s - lse)
    if MASKED:  # after exp2, which may overflow where nothing is seen
        p = tl.where(visible(t, keys, b, job, CAUSAL), p, 0.0)
    return p


@triton.jit
def score_gradient(p, dp, delta, s, job):
    """The gradient of q k' from that of the weights, but for the factor scale.

    Of the softmax: p (dp - sum of p dp), and that sum over the keys is delta = do . out.
    """
    ds = p * (dp - delta)
    if job.softcap is not None:
        bent = s / (job.softcap * LOG2E)  # the tanh, whose derivative is 1 - tanh^2
        ds = ds * (1 - bent * bent)
    return ds


@triton.jit
def query_gradient(dq, q, do, lse, delta, k, v, t, start, b, bh, job, D: tl.constexpr,
                   BLOCK_D: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_S: tl.constexpr,
                   MASKED: tl.constexpr):  # fmt: skip
    """dq (BLOCK_T, D) and what the block of keys at `start` adds to it."""
    keys = start + tl.arange(0, BLOCK_S)[None, :]
    k = load(k, start, job.S, D, BLOCK_D, BLOCK_S, MASKED)
    s = scores_of(q, k, job)
    p = weights_of(s, lse[:, None], t[:, None], keys, b, job, CAUSAL, MASKED)
    dp = dot(do, tl.trans(load(v, start, job.S, D, BLOCK_D, BLOCK_S, MASKED)))
    if job.seed is not None:
        dp = tl.where(kept(t[:, None], keys, bh, job), dp / (1 - job.dropout), 0.0)
    ds = score_gradient(p, dp, delta[:, None], s, job)
    return dot(narrow(ds, k.dtype), k, dq)


@triton.jit
def backward_q_kernel(q, k, v, out, lse, do, dq, delta, q_strides, k_strides, v_strides,
                      out_strides, do_strides, dq_strides, job, D: tl.constexpr,
                      BLOCK_D: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_T: tl.constexpr,
                      BLOCK_S: tl.constexpr):  # fmt: skip
    """A program takes BLOCK_T queries of a head: dq, and delta (B, H, T)."""
    blocks = tl.cdiv(job.T, BLOCK_T)
    bh = tl.program_id(0) // blocks
    start = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_T
    b, h = bh // job.H, bh % job.H
    k, v = head(k, k_strides, b, h // job.group), head(v, v_strides, b, h // job.group)
    t = start + tl.arange(0, BLOCK_T)
    q = load(head(q, q_strides, b, h), start, job.T, D, BLOCK_D, BLOCK_T, True)
    do = load(head(do, do_strides, b, h), start, job.T, D, BLOCK_D, BLOCK_T, True)
    out = load(head(out, out_strides, b, h), start, job.T, D, BLOCK_D, BLOCK_T, True)
    rows = tl.cast(bh, tl.int64) * job.T + t
    d = tl.sum(do.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(delta + rows, d, mask=t < job.T)
    lse = tl.load(lse + rows, mask=t < job.T, other=float("inf"))
    acc = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    lo, full_lo, full_hi, hi = keys_of(start, b, job, CAUSAL, BLOCK_T, BLOCK_S)
    if job.q_segments is None:
        if job.window is not None:
            for i in range(lo, tl.minimum(full_lo, hi), BLOCK_S):
                acc = query_gradient(acc, q, do, lse, d, k, v, t, i, b, bh, job, D, BLOCK_D, CAUSAL,
                                     BLOCK_S, True)  # fmt: skip
        for i in range(full_lo, full_hi, BLOCK_S):
            acc = query_gradient(acc, q, do, lse, d, k, v, t, i, b, bh, job, D, BLOCK_D, CAUSAL,
                                 BLOCK_S, False)  # fmt: skip
    for i in range(full_hi, hi, BLOCK_S):
        acc = query_gradient(acc, q, do, lse, d, k, v, t, i, b, bh, job, D, BLOCK_D, CAUSAL,
                             BLOCK_S, True)  # fmt: skip
    store(head(dq, dq_strides, b, h), start, job.T, acc * job.scale, D, BLOCK_D, BLOCK_T)


@triton.jit
def key_gradient(dk, dv, k, v, q, do, lse, delta, keys, start, b, bh, job, D: tl.constexpr,
                 BLOCK_D: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_T: tl.constexpr,
                 MASKED: tl.constexpr):  # fmt: skip
    """dk and dv (BLOCK_S, D) and what the block of queries at `start` adds to them.

    Scores lie transposed here, keys by queries, as the two sums over queries want them.
    """
    t = start + tl.arange(0, BLOCK_T)
    rows = tl.cast(bh, tl.int64) * job.T + t
    q = load(q, start, job.T, D, BLOCK_D, BLOCK_T, True)
    s = scores_of(k, q, job)
    lse = tl.load(lse + rows, mask=t < job.T, other=float("inf"))
    p = weights_of(s, lse[None, :], t[None, :], keys[:, None], b, job, CAUSAL, MASKED)
    do = load(do, start, job.T, D, BLOCK_D, BLOCK_T, True)
    dp = dot(v, tl.trans(do))
    thinned = p
    if job.seed is not None:
        keep = kept(t[None, :], keys[:, None], bh, job)
        thinned = tl.where(keep, p / (1 - job.dropout), 0.0)
        dp = tl.where(keep, dp / (1 - job.dropout), 0.0)
    dv = dot(narrow(thinned, do.dtype), do, dv)
    delta = tl.load(delta + rows, mask=t < job.T, other=0.0)
    ds = score_gradient(p, dp, delta[None, :], s, job)
    return dot(narrow(ds, q.dtype), q, dk), dv


@triton.jit
def backward_kv_kernel(q, k, v, lse, do, delta, dk, dv, q_strides, k_strides, v_strides,
                       do_strides, dk_strides, dv_strides, job, D: tl.constexpr,
                       BLOCK_D: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_T: tl.constexpr,
                       BLOCK_S: tl.constexpr):  # fmt: skip
    """A program takes BLOCK_S keys of a key/value head, and all queries of its group of heads."""
    blocks = tl.cdiv(job.S, BLOCK_S)
    pair = tl.program_id(0) // blocks
    start = tl.program_id(0) % blocks * BLOCK_S  # the first keys first: most queries see them
    b, kv = pair // (job.H // job.group), pair % (job.H // job.group)
    keys = start + tl.arange(0, BLOCK_S)
    k = load(head(k, k_strides, b, kv), start, job.S, D, BLOCK_D, BLOCK_S, True)
    v = load(head(v, v_strides, b, kv), start, job.S, D, BLOCK_D, BLOCK_S, True)
    sum_k = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
    sum_v = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
    lo, full_lo, full_hi, hi = queries_of(start, b, job, CAUSAL, BLOCK_T, BLOCK_S)
    # The heads of a group one after another in here: programs that add up have no fixed order.
    # disable_licm: what the inner loops can make again is not kept in registers across this one.
    for h in tl.range(kv * job.group, (kv + 1) * job.group, disable_licm=True):
        bh = b * job.H + h
        qh, doh = head(q, q_strides, b, h), head(do, do_strides, b, h)
        if CAUSAL or job.q_segments is not None:
            for i in range(lo, tl.minimum(full_lo, hi), BLOCK_T):
                sum_k, sum_v = key_gradient(sum_k, sum_v, k, v, qh, doh, lse, delta, keys, i, b, bh,
                                            job, D, BLOCK_D, CAUSAL, BLOCK_T, True)  # fmt: skip
        if job.q_segments is None:
            for i in range(full_lo, full_hi, BLOCK_T):
                sum_k, sum_v = key_gradient(sum_k, sum_v, k, v, qh, doh, lse, delta, keys, i, b, bh,
                                            job, D, BLOCK_D, CAUSAL, BLOCK_T, False)  # fmt: skip
        if job.window is not None and job.q_segments is None:
            for i in range(full_hi, hi, BLOCK_T):
                sum_k, sum_v = key_gradient(sum_k, sum_v, k, v, qh, doh, lse, delta, keys, i, b, bh,
                                            job, D, BLOCK_D, CAUSAL, BLOCK_T, True)  # fmt: skip
    store(head(dk, dk_strides, b, kv), start, job.S, sum_k * job.scale, D, BLOCK_D, BLOCK_S)
    store(head(dv, dv_strides, b, kv), start, job.S, sum_v, D, BLOCK_D, BLOCK_S)


def empty(like, length: int) -> torch.Tensor:
    """(B, H, length, D), in memory (B, length, H, D): as the projection before and after has it."""
    B, H, _, D = like.shape
    return torch.empty((B, length, H, D), dtype=like.dtype, device=like.device).transpose(1, 2)


def tame(x) -> torch.Tensor:
    """x (B, H, T, D), copied if its strides are such that a tile reaches over 2^31 elements."""
    return x.contiguous() if 256 * max(x.stride()[2:]) >= 2**31 else x


def forward(q, k, v, q_segments, k_segments, seed, causal, scale, window, softcap, dropout,
            blocks=None):  # fmt: skip
    """-> out (B, H, T, D), and lse (B, H, T) float32 in base 2. Checked arguments (operator.py).

    q_segments (B, T) and k_segments (B, S) contiguous integers, or None. seed (): int64 on the
    device, None without dropout. window and softcap may be None.
    """
    q, k, v = map(tame, (q, k, v))
    (B, H, T, D), (_, KV, S, _) = q.shape, k.shape
    out = empty(q, T)
    lse = torch.empty((B, H, T), dtype=torch.float32, device=q.device)
    job = Job(H, H // KV, T, S, scale, softcap, window, q_segments, k_segments, dropout, seed)
    if out.numel():
        launch(
            "forward", forward_kernel, lambda t, s: triton.cdiv(T, t) * B * H, (q, k, v, out, lse),
            (q, k, v, out), job, D, causal, blocks,
        )  # fmt: skip
    return out, lse


def backward(do, q, k, v, out, lse, q_segments, k_segments, seed, causal, scale, window, softcap,
             dropout, blocks=None):  # fmt: skip
    """The gradient do (B, H, T, D) of out -> dq, dk, dv. The rest is as in forward."""
    do, q, k, v = map(tame, (do, q, k, v))
    (B, H, T, D), (_, KV, S, _) = q.shape, k.shape
    dq, dk, dv, delta = empty(q, T), empty(k, S), empty(v, S), torch.empty_like(lse)
    job = Job(H, H // KV, T, S, scale, softcap, window, q_segments, k_segments, dropout, seed)
    if dq.numel():
        launch(
            "backward_q", backward_q_kernel, lambda t, s: triton.cdiv(T, t) * B * H,
            (q, k, v, out, lse, do, dq, delta), (q, k, v, out, do, dq), job, D, causal, blocks,
        )  # fmt: skip
    if dk.numel():  # after backward_q, which makes delta
        launch(
            "backward_kv", backward_kv_kernel, lambda t, s: triton.cdiv(S, s) * B * KV,
            (q, k, v, lse, do, delta, dk, dv), (q, k, v, do, dk, dv), job, D, causal, blocks,
        )  # fmt: skip
    return dq, dk, dv
