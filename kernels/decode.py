"""Attention of few queries to many keys: a step of generation with a long cache.

A program a block of queries would leave most of the GPU idle: there is but one block. So the keys
are split, each program takes a part, and the parts are put together ("flash decoding", Dao et al.
2023): each part's result is right but for its own denominator, and lse is the logarithm of that, so

    out = sum over parts of exp(lse[i] - lse) out[i]        lse = log of the sum of exp(lse[i])

Queries of all heads that share keys lie in one tile, (group x T, D), so that keys are read once.
"""

import torch
import triton
import triton.language as tl

from .attention import attend, empty, head, places, store, tame
from .launch import OPTIONS, Job

ROWS = 64  # queries that a tile may hold, group x T


@triton.jit
def split_kernel(q, k, v, parts, part_lse, q_strides, k_strides, v_strides, job, begin, length,
                 splits, D: tl.constexpr, BLOCK_D: tl.constexpr, CAUSAL: tl.constexpr,
                 ROWS: tl.constexpr, BLOCK_S: tl.constexpr):  # fmt: skip
    """A program takes `length` keys of a key/value head, the first from `begin`, and its queries.

    parts (B, H, T, splits, D) and part_lse (B, H, T, splits), float32; -inf where nothing is seen.
    """
    pair, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    heads = job.H // job.group
    b, kv = pair // heads, pair % heads
    row, column = tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    t, h = row % job.T, kv * job.group + row // job.T
    mine = row < job.group * job.T
    offsets = h.to(tl.int64) * q_strides[1] + t.to(tl.int64) * q_strides[2]
    columns = column.to(tl.int64) * q_strides[3]
    q += tl.cast(b, tl.int64) * q_strides[0]
    inside = mine[:, None] & (column < D)[None, :]
    q = tl.load(q + offsets[:, None] + columns[None, :], mask=inside, other=0.0)
    k, v = head(k, k_strides, b, kv), head(v, v_strides, b, kv)
    acc = tl.zeros((ROWS, BLOCK_D), tl.float32)
    m = tl.full((ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    start = begin + split * length
    for i in range(start, tl.minimum(start + length, job.S), BLOCK_S):
        acc, m, total = attend(acc, m, total, q, k, v, t, i, b, 0, job, D, BLOCK_D, CAUSAL, BLOCK_S,
                               True)  # fmt: skip
    part = ((b * job.H + h).to(tl.int64) * job.T + t) * splits + split
    tl.store(part_lse + part, m + tl.log2(total), mask=mine)  # -inf + -inf where nothing was seen
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(parts + part[:, None] * D + column[None, :], acc, mask=inside)


@triton.jit
def combine_kernel(parts, part_lse, out, out_strides, H, T, splits, D: tl.constexpr,
                   BLOCK_D: tl.constexpr, SPLITS: tl.constexpr):  # fmt: skip
    """A program takes one query of one head: the parts' weighted mean. SPLITS >= splits."""
    row = tl.program_id(0)
    bh, t = row // T, row % T
    index = tl.arange(0, SPLITS)
    first = tl.cast(row, tl.int64) * splits
    lse = tl.load(part_lse + first + index, mask=index < splits, other=-float("inf"))
    most = tl.max(lse, 0)
    weights = tl.exp2(lse - tl.where(most == -float("inf"), 0.0, most))
    pointers, inside = places((parts + first * D, D, 1), 0, splits, D, BLOCK_D, SPLITS)
    values = tl.load(pointers, mask=inside, other=0.0)
    total = tl.sum(weights, 0)
    mean = tl.sum(weights[:, None] * values, 0) / tl.where(total > 0, total, 1.0)
    out = head(out, out_strides, bh // H, bh % H)
    store(out, t, t + 1, mean[None, :], D, BLOCK_D, 1)


def block_of(D: int, size: int) -> int:
    """Keys a step, for a head width and the bytes of a number: 16 KiB, or 8 of float32."""
    return max(16, min(64, 2**15 // (triton.next_power_of_2(D) * size**2)))


def suits(q, k) -> bool:
    """Whether splitting the keys pays: few queries, many keys."""
    rows = q.shape[1] // max(k.shape[1], 1) * q.shape[2]
    return q.shape[2] <= 16 and 0 < rows <= ROWS and k.shape[2] >= 512


def decode(q, k, v, q_segments, k_segments, causal, scale, window, softcap, splits=None):
    """-> out (B, H, T, D), as forward of attention.py makes it. group x T may be at most ROWS.

    splits: into how many parts the keys are split; by default as many as fill the GPU.
    """
    k, v = tame(k), tame(v)
    (B, H, T, D), (_, KV, S, _) = q.shape, k.shape
    out = empty(q, T)
    if not out.numel():
        return out
    block = block_of(D, q.element_size())
    begin = 0 if window is None else max(S - T - window + 1, 0) // block * block
    steps = triton.cdiv(S - begin, block)
    if splits is None:  # two programs for each multiprocessor, each with some steps to pipeline
        processors = (
            torch.cuda.get_device_properties(q.device).multi_processor_count if q.is_cuda else 1
        )
        splits = max(1, min(2 * processors // (B * KV), steps // 4, 128))
    length = triton.cdiv(max(steps, 1), splits) * block
    splits = triton.cdiv(max(steps, 1) * block, length)
    parts = torch.empty((B, H, T, splits, D), dtype=torch.float32, device=q.device)
    part_lse = torch.empty((B, H, T, splits), dtype=torch.float32, device=q.device)
    job = Job(H, H // KV, T, S, scale, softcap, window, q_segments, k_segments, 0.0, None)
    BLOCK_D = max(16, triton.next_power_of_2(D))
    rows = max(16, triton.next_power_of_2(H // KV * T))
    with torch.cuda.device_of(q):
        split_kernel[(B * KV * splits,)](
            q, k, v, parts, part_lse, q.stride(), k.stride(), v.stride(), job, begin, length,
            splits, D=D, BLOCK_D=BLOCK_D, CAUSAL=causal, ROWS=rows, BLOCK_S=block, num_warps=4,
            num_stages=2, **OPTIONS,
        )  # fmt: skip
        combine_kernel[(B * H * T,)](
            parts, part_lse, out, out.stride(), H, T, splits, D=D, BLOCK_D=BLOCK_D,
            SPLITS=triton.next_power_of_2(splits), num_warps=4, **OPTIONS,
        )  # fmt: skip
    return out
