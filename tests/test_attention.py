"""Fused attention: against the definition in float64, in Triton's interpreter or on a GPU."""

import contextlib
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import kernels
from kernels import naive, online

pytest.importorskip("triton", reason="Triton is not to be had here")

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from kernels import launch  # noqa: E402
from kernels.attention import backward, forward, places, tame  # noqa: E402
from kernels.attention import head as head_of  # noqa: E402
from kernels.decode import decode  # noqa: E402
from kernels.launch import NAMES, READS, configurations, describable  # noqa: E402
from kernels.operator import fused, fused_backward, split  # noqa: E402

pytestmark = pytest.mark.usefixtures("interpreter")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SMALL = (16, 16)  # blocks that small tensors cross often


def numbers(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def inputs(B=1, H=2, KV=2, T=33, S=33, D=16, dtype=torch.float32):
    """q, k, v and the gradient of the output."""
    shapes = (B, H, T, D), (B, KV, S, D), (B, KV, S, D), (B, H, T, D)
    return [numbers(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]


def documents(B, T, S, seed=0):
    """Segments of queries and keys: not in order, and some queries find no key of theirs."""
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randint(0, 3, (B, n), generator=generator) for n in (T, S)]
    draw[1][0][draw[1][0] == 2] = 1
    return tuple(x.to(DEVICE) for x in draw)


@pytest.fixture
def poison(monkeypatch):
    """Buffers are full of NaN before a kernel writes to them."""
    real = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *shape, **options: real(*shape, **options).fill_(torch.nan)
    )


def run(q, k, v, do, blocks=SMALL, causal=False, scale=None, window=None, segments=None,
        softcap=None, dropout=0.0, seed=None):  # fmt: skip
    """out, dq, dk, dv of the kernels, in blocks of that size."""
    scale = q.shape[3] ** -0.5 if scale is None else scale
    seed = None if seed is None else torch.tensor(seed, device=DEVICE)
    rest = *(segments or (None, None)), seed, causal, scale, window, softcap, dropout
    out, lse = forward(q, k, v, *rest, blocks=blocks)
    return out, *backward(do, q, k, v, out, lse, *rest, blocks=blocks)


def derive(function, q, k, v, do, dtype, **options):
    """out, dq, dk, dv of a function made of PyTorch's operations, in a precision."""
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in (q, k, v))
    out = function(q, k, v, **options)
    return out.detach(), *torch.autograd.grad(out, (q, k, v), do.to(dtype))


def torchs_own(q, k, v, causal=False, scale=None, window=None, segments=None):
    mask = naive.visible(q.shape[2], k.shape[2], causal, window, segments, q.device)
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)


def worst(found, exact):
    return [(x.double() - y).abs().max().item() if y.numel() else 0 for x, y in zip(found, exact)]


def agree(q, k, v, do, blocks=SMALL, **options):
    """The kernels' errors are at most twice those of PyTorch in the same precision.

    That is the larger error of its own attention, which on a CPU sums half precision in float32
    throughout, and of the definition; the former cannot cap scores.
    """
    exact = derive(naive.attention, q, k, v, do, torch.float64, **options)
    peers = [worst(derive(naive.attention, q, k, v, do, q.dtype, **options), exact)]
    if not options.get("softcap"):
        peers.append(worst(derive(torchs_own, q, k, v, do, q.dtype, **options), exact))
    found = run(q, k, v, do, blocks, **options)
    for name, mine, theirs, y in zip(
        ("out", "dq", "dk", "dv"), worst(found, exact), map(np.nanmax, zip(*peers)), exact
    ):
        size = y.abs().max().item() if y.numel() else 0
        tiny = 16 * torch.finfo(torch.float32).eps * max(1, size)
        assert mine <= 2 * theirs + tiny, (name, mine, theirs)
    for x, like in zip(found, (q, q, k, v)):
        assert x.shape == like.shape and x.dtype == like.dtype


FEATURES = {
    "full": {},
    "causal": dict(causal=True),
    "window": dict(causal=True, window=20),
    "window of one": dict(causal=True, window=1),
    "softcap": dict(causal=True, softcap=1.5),
    "softcap, full": dict(softcap=0.4, scale=1.0),
    "softcap and window": dict(causal=True, window=9, softcap=2.0),
    "negative scale": dict(causal=True, scale=-0.5),
    "scale of zero": dict(scale=0.0),
}


@pytest.mark.parametrize("options", FEATURES.values(), ids=FEATURES)
@pytest.mark.parametrize("T, S", [(33, 33), (17, 40), (40, 17), (1, 33), (33, 1)])
def test_agrees_with_the_definition(poison, options, T, S):
    agree(*inputs(T=T, S=S, H=1, KV=1), **options)


@pytest.mark.parametrize("options", [
    {}, dict(causal=True), dict(causal=True, window=12), dict(softcap=1.0),
    dict(causal=True, window=12, softcap=1.0),
])  # fmt: skip
@pytest.mark.parametrize("T, S", [(35, 35), (20, 40)])
def test_documents_do_not_see_each_other(poison, options, T, S):
    agree(*inputs(B=2, H=1, KV=1, T=T, S=S), segments=documents(2, T, S), **options)


@pytest.mark.filterwarnings("ignore:All-NaN")
@pytest.mark.parametrize("options", [{}, dict(causal=True), dict(causal=True, window=20)])
def test_blocks_of_other_documents_are_not_read(options):
    """NaN there would reach the sums: 0 NaN is NaN. The documents are 16, 32 and 6 tokens."""
    segments = torch.tensor([5] * 16 + [7] * 32 + [9] * 6, device=DEVICE)[None]
    tensors = inputs(H=1, KV=1, T=54, S=54)
    expected = run(*tensors, segments=(segments, segments), **options)
    for document in (5, 7, 9):
        mine = (segments == document)[0]
        found = [torch.where(mine[:, None], x, torch.nan) for x in tensors]
        found = run(*found, segments=(segments, segments), **options)
        for x, y in zip(found, expected):
            assert torch.equal(x[:, :, mine], y[:, :, mine])


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("name", ["full", "window", "softcap"])
def test_half_precision(poison, dtype, name):
    agree(*inputs(T=33, S=40, H=1, KV=1, dtype=dtype), **FEATURES[name])


@pytest.mark.parametrize("H, KV", [(4, 2), (3, 1), (3, 3)])
def test_heads_in_groups(poison, H, KV):
    agree(*inputs(H=H, KV=KV, T=18, S=20), causal=True)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 33])
def test_lengths_around_the_borders_of_blocks(poison, length):
    for options in (dict(causal=True), dict(causal=True, window=16), {}):
        agree(*inputs(H=1, KV=1, T=length, S=length), **options)
    agree(*inputs(H=1, KV=1, T=17, S=length), causal=True)
    agree(*inputs(H=1, KV=1, T=length, S=33), causal=True, window=17)


@pytest.mark.parametrize("window", [2, 15, 16, 17, 32, 33, 100])
def test_windows_around_the_borders_of_blocks(poison, window):
    agree(*inputs(H=1, KV=1, T=40, S=49), causal=True, window=window)


@pytest.mark.parametrize("D", [1, 8, 16, 17, 24, 64, 80, 96, 128, 200, 256])
def test_any_head_width(poison, D):
    agree(*inputs(H=1, KV=1, T=17, S=20, D=D), causal=True)


@pytest.mark.parametrize("blocks", [(16, 32), (64, 16), (32, 64)])
@pytest.mark.parametrize("name", ["full", "causal", "window"])
def test_blocks_of_other_shapes(poison, blocks, name):
    agree(*inputs(H=1, KV=1, T=70, S=75), blocks=blocks, **FEATURES[name])


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_as_they_are_chosen(poison, dtype):
    agree(*inputs(H=1, KV=1, T=130, S=140, D=64, dtype=dtype), blocks=None, causal=True)


def test_random_shapes_and_features(poison):
    draw = random.Random(3)
    for i in range(10):
        KV, T, S, B = draw.choice([1, 2]), draw.randint(1, 40), draw.randint(1, 40), 1
        options = dict(causal=draw.random() < 0.7)
        if options["causal"] and draw.random() < 0.5:
            options["window"] = draw.randint(1, 40)
        if draw.random() < 0.3:
            options["softcap"] = draw.uniform(0.5, 5)
        if draw.random() < 0.3:
            options["segments"] = documents(B, T, S, i)
        H, D = KV * draw.choice([1, 1, 2]), draw.randint(1, 40)
        agree(*inputs(B, H, KV, T, S, D, draw.choice(DTYPES)), **options)


@pytest.mark.parametrize("options", [
    dict(causal=True), dict(window=20, causal=True, segments=True), dict(softcap=1.0),
])  # fmt: skip
@pytest.mark.parametrize("read", READS[1:])
def test_tiles_read_by_tma(poison, monkeypatch, read, options):
    """The same numbers in the same order: in the interpreter the same bits."""
    how = (*SMALL, 4, 2)
    if DEVICE == "cuda" and read == "warps":
        if not (9, 0) <= torch.cuda.get_device_capability() < (11, 0):
            pytest.skip("Triton gives warps work of their own on capability 9 and 10")
        how = (64, 64, 4, 2)
    options, described = dict(options), []
    real = launch.TensorDescriptor.from_tensor
    monkeypatch.setattr(
        launch.TensorDescriptor, "from_tensor",
        lambda *given: described.append(given) or real(*given),
    )
    if options.get("segments"):
        options["segments"] = documents(1, 17, 20)
    tensors = inputs(H=2, KV=1, T=17, S=20, D=24, dtype=torch.bfloat16)
    found = run(*tensors, blocks=(*how, read), **options)
    assert len(described) == 3 + 4 + 4  # q, k, v; in the backward passes do too
    for x, y in zip(found, run(*tensors, blocks=(*how, "threads"), **options)):
        if DEVICE == "cuda":  # whose compiler may add up in another order
            torch.testing.assert_close(x, y, rtol=2e-2, atol=1e-2)
        else:
            assert torch.equal(x, y)
    agree(*tensors, blocks=(*how, read), **options)


def test_what_tma_cannot_read_is_read_by_the_threads():
    q, k, v, do = inputs(KV=1, T=5, S=7, dtype=torch.bfloat16)
    assert describable(q) and describable(q.transpose(1, 2))
    for change in (
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: F.pad(x, (0, 1))[..., :-1],  # rows are 34 bytes apart
        lambda x: F.pad(x, (1, 7))[..., 1:-7],  # begins 2 bytes after a multiple of 16
        lambda x: x[:, :1].expand(x.shape),
    ):
        changed = change(q)
        assert not describable(changed)
        for x, y in zip(
            run(changed, k, v, do, (*SMALL, 4, 2, "tma")),
            run(changed, k, v, do, (*SMALL, 4, 2, "threads")),
        ):
            assert torch.equal(x, y)


def test_a_configuration_with_tma_is_not_taken_for_what_it_cannot_read(monkeypatch):
    rows = [(64, 64, 4, 2, "tma"), (32, 16, 4, 2, "threads")]
    both = [dict(zip(NAMES, row)) for row in rows]
    monkeypatch.setattr(launch, "configurations", lambda *given: {"forward": both})
    taken = []

    class Kernel:
        arg_names = ["q"]

        def __getitem__(self, grid):
            return lambda q, *given, **how: taken.append((type(q), how["BLOCK_T"]))

    job = launch.Job(1, 1, 5, 5, 1.0, None, None, None, None, 0.0, None)
    q = numbers(1, 1, 5, 16, dtype=torch.bfloat16)
    for x in (q, q.transpose(2, 3).contiguous().transpose(2, 3)):
        launch.launch("forward", Kernel(), lambda *sizes: 1, [x], [], job, 16, True)
    assert taken == [(launch.TensorDescriptor, 64), (torch.Tensor, 32)]


LAYOUTS = {
    "positions outside": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "columns outside": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every other column": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "a part of a larger one": lambda x: F.pad(x, (3, 2, 1, 4, 1, 0))[:, 1:, 1:-4, 3:-2],
    "one row for all": lambda x: x[:1].expand(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_strides(poison, layout):
    tensors = [layout(x) for x in inputs(B=2, KV=1, T=17, S=20)]
    assert not tensors[0].is_contiguous()
    agree(*tensors, causal=True)


def test_queries_that_see_nothing_get_zeros(poison):
    q, k, v, do = inputs(T=40, S=7)  # aligned at the end, so the first 33 come before every key
    out, dq, dk, dv = run(q, k, v, do, causal=True)
    assert (out[:, :, :33] == 0).all() and (dq[:, :, :33] == 0).all()
    alone = run(q[:, :, 33:], k, v, do[:, :, 33:], causal=True)
    for x, y in zip((out[:, :, 33:], dq[:, :, 33:], dk, dv), alone):
        torch.testing.assert_close(x, y)
    segments = tuple(torch.full((1, n), n, device=DEVICE) for n in (40, 7))
    for x in run(q, k, v, do, segments=segments):
        assert (x == 0).all()


def test_a_query_sees_what_it_should():
    """Keys outside the window change nothing, though they lie in blocks that are read."""
    q, k, v, do = inputs(T=5, S=40)
    out, dq, _, _ = run(q, k, v, do, causal=True, window=3)
    k[:, :, :33], v[:, :, :33] = 1e4, -1e4
    again = run(q, k, v, do, causal=True, window=3)
    assert torch.equal(out, again[0]) and torch.equal(dq, again[1])


def test_large_scores_do_not_overflow(poison):
    q, k, v, do = inputs(H=1, KV=1, T=17, S=33)
    agree(q * 60, k * 60, v, do, causal=True)
    agree(q * 60, k * 60, v, do, softcap=30.0)


def test_empty_tensors():
    for T, S in ((0, 5), (5, 0), (0, 0)):
        q, k, v, do = inputs(T=T, S=S)
        out, dq, dk, dv = run(q, k, v, do, causal=True)
        assert out.shape == q.shape and (out == 0).all() and (dq == 0).all()
        assert dk.shape == k.shape and (dk == 0).all() and (dv == 0).all()


def test_the_same_bits_every_time():
    q, k, v, do = inputs(H=2, KV=1, T=33, S=33, dtype=torch.bfloat16)
    options = dict(causal=True, window=30, dropout=0.2, seed=5)
    for x, y in zip(run(q, k, v, do, **options), run(q, k, v, do, **options)):
        assert torch.equal(x, y)


# ---- dropout


def mask_of(T, S, seed, blocks=(32, 32), dropout=0.3, B=2, H=2):
    """Which weights dropout leaves, (B, H, T, S): values that are the identity give the weights."""
    q, k, _, _ = inputs(B, H, H, T, S, D=S)
    eye, seed = torch.eye(S, device=DEVICE).expand(B, H, S, S), torch.tensor(seed, device=DEVICE)
    rest = None, None, seed, False, 0.1, None, None, dropout
    return forward(q, k, eye, *rest, blocks=blocks)[0] > 0


def test_dropout_mask_is_a_function_of_seed_and_place():
    keep = mask_of(40, 48, 7)
    assert torch.equal(keep, mask_of(40, 48, 7, blocks=(16, 64)))
    assert torch.equal(keep[:1, :, :20, :33], mask_of(20, 33, 7, B=1))
    assert keep.float().mean().item() == pytest.approx(0.7, abs=0.02)
    others = [mask_of(40, 48, 8), keep.flip(0), keep.flip(1), keep.roll(1, 2), keep.roll(1, 3)]
    others.append(mask_of(40, 48, 7 + 2**32))  # the high half of the seed counts
    for other in others:  # no more alike than chance
        assert (keep == other).float().mean().item() == pytest.approx(0.58, abs=0.03)


@pytest.mark.parametrize("options", [
    {}, dict(causal=True, window=20), dict(causal=True, softcap=1.0),
])  # fmt: skip
def test_dropout_gives_the_definition_with_its_mask(poison, options):
    q, k, v, do = inputs(H=2, KV=1, T=40, S=48)
    keep = mask_of(40, 48, 11, B=1)
    exact = derive(naive.attention, q, k, v, do, torch.float64, dropout=0.3, keep=keep, **options)
    found = run(q, k, v, do, dropout=0.3, seed=11, **options)
    for x, y in zip(found, exact):
        torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=2e-6)


def test_pytorchs_seed_governs_dropout():
    q, k, v, _ = inputs()
    torch.manual_seed(1)
    first, second = (kernels.attention(q, k, v, dropout=0.5) for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(first, kernels.attention(q, k, v, dropout=0.5))
    assert not torch.equal(first, second)
    assert torch.equal(
        kernels.attention(q, k, v, dropout=0.5, seed=3),
        kernels.attention(q, k, v, dropout=0.5, seed=torch.tensor(3, device=DEVICE)),
    )


# ---- a few queries, many keys


@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("splits", [1, 3, 100, None])
@pytest.mark.parametrize("name", ["full", "causal", "window", "softcap"])
def test_decoding(poison, T, splits, name):
    q, k, v, _ = inputs(B=2, H=4, KV=2, T=T, S=230, D=24)
    options = dict(causal=False, scale=0.2, window=None, softcap=None) | FEATURES[name]
    segments = documents(2, T, 230) if splits == 3 else None
    exact = naive.attention(*(x.double() for x in (q, k, v)), segments=segments, **options)
    found = decode(q, k, v, *(segments or (None, None)), **options, splits=splits)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=2e-6)


def test_decoding_is_chosen_where_it_pays(monkeypatch):
    calls = []
    monkeypatch.setattr(
        kernels.operator, "split", lambda *given: calls.append(given) or split(*given)
    )
    q, k, v, _ = inputs(T=1, S=600)
    found = kernels.attention(q, k, v, causal=True)
    assert len(calls) == 1
    torch.testing.assert_close(found, kernels.attention(q.requires_grad_(), k, v, causal=True))
    kernels.attention(q.detach(), k, v, dropout=0.1)
    kernels.attention(q.detach(), k[:, :, :9], v[:, :, :9])
    assert len(calls) == 1


# ---- the operator


def test_gradients_through_the_operator():
    q, k, v, do = inputs(KV=1, T=20, S=30)
    segments = documents(1, 20, 30)
    options = dict(causal=True, window=9, softcap=3.0, segments=segments, scale=0.7)
    exact = derive(naive.attention, q, k, v, do, torch.float64, **options)
    found = derive(kernels.attention, q, k, v, do, torch.float32, **options)
    for x, y in zip(found, exact):
        torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=2e-6)
    q.requires_grad_()
    assert torch.equal(
        kernels.attention(q, q, q, segments=segments[0]),
        kernels.attention(q, q, q, segments=(segments[0], segments[0].clone())),
    )


def test_opcheck():
    q, k, v, do = inputs(T=4, S=6)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    seed = torch.tensor(1, device=DEVICE)
    rest = *documents(1, 4, 6), seed, True, 0.3, 4, 2.0, 0.1
    torch.library.opcheck(fused, (q, k, v, *rest))
    plain = [x.detach() for x in (q, k, v)]
    out, lse = fused(*plain, *rest)
    torch.library.opcheck(fused_backward, (do, *plain, out, lse, *rest))
    torch.library.opcheck(split, (*plain, *rest[:2], *rest[3:-1]))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_a_break(backend):
    q, k, v, do = inputs(T=9, S=9)

    def model(q, k, v):
        return kernels.attention(q * 2, k, v, causal=True, window=5) + 1

    def thin(q, k, v):
        return kernels.attention(q, k, v, dropout=0.5)

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for x, y in zip(
        derive(compiled, q, k, v, do, torch.float32), derive(model, q, k, v, do, torch.float32)
    ):
        assert torch.equal(x, y)
    compiled = torch.compile(thin, backend=backend, fullgraph=True)
    torch.manual_seed(0)
    first, second = compiled(q, k, v), compiled(q, k, v)
    torch.manual_seed(0)
    assert torch.equal(first, compiled(q, k, v)) and not torch.equal(first, second)


def test_what_is_asked_of_the_device_does_not_break_the_graph(monkeypatch):
    class Device:  # the compiler stops at it, as at a question to CUDA
        @property
        def value(self):
            torch._dynamo.graph_break()
            return True

    monkeypatch.setattr(kernels.operator, "INTERPRETED", Device())
    q, k, v, _ = inputs(T=9, S=9)
    compiled = torch.compile(kernels.attention, backend="eager", fullgraph=True)
    assert torch.equal(compiled(q, k, v), kernels.attention(q, k, v))


def test_compiles_for_lengths_that_change():
    def model(q, k, v):
        return kernels.attention(q, k, v, causal=True)

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for T in (3, 5, 9):
        q, k, v, do = inputs(T=T, S=T)
        for x, y in zip(
            derive(compiled, q, k, v, do, torch.float32), run(q, k, v, do, None, causal=True)
        ):
            assert torch.equal(x, y)


def test_autocast():
    q, k, v, do = inputs()
    half = [x.bfloat16() for x in (q, k, v)]
    with torch.autocast(DEVICE, torch.bfloat16):
        out = kernels.attention(q.requires_grad_(), k, v.bfloat16(), causal=True)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, kernels.attention(*half, causal=True))
    assert torch.autograd.grad(out, q, do.bfloat16())[0].dtype == torch.float32


def offsets(base, out, strides, b, h, start):
    pointers, _ = places(head_of(base, strides, b, h), start, start + 16, 16, 16, 16)
    tile = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(out + tile, pointers.to(tl.int64) - base.to(tl.int64))


def test_offsets_beyond_32_bits():
    out = torch.zeros(16, 16, dtype=torch.int64, device=DEVICE)
    triton.jit(offsets)[(1,)](out, out, (2**33, 2**32, 2**22, 1), 3, 1, 2000)
    row = torch.arange(2000, 2016, device=DEVICE)[:, None]
    column = torch.arange(16, device=DEVICE)
    assert torch.equal(out, 8 * (3 * 2**33 + 2**32 + row * 2**22 + column))


def test_strides_too_large_for_a_tile_are_copied():
    wide = torch.empty_strided((1, 1, 5, 16), (2**26, 2**25, 2**23, 1), device="meta")
    assert tame(wide).is_contiguous() and not wide.is_contiguous()
    q = inputs()[0].transpose(1, 2)
    assert tame(q) is q


REFUSED = {
    "(B, heads, length, D)": lambda q, k, v: ((q[0], k, v), {}),
    "float16, bfloat16 or float32": lambda q, k, v: ((q.double(), k, v), {}),
    "q is on meta": lambda q, k, v: ((q.to("meta"), k, v), {}),
    "the dtype of q": lambda q, k, v: ((q, k.half(), v), {}),
    "device of q": lambda q, k, v: ((q, k.to("meta"), v), {}),
    "rows of q": lambda q, k, v: ((q, k[:0], v), {}),
    "head width of q, 16": lambda q, k, v: ((q, k[..., :8], v), {}),
    "shape of k": lambda q, k, v: ((q, k, v[:, :, 1:]), {}),
    "from 1 to 256, not 320": lambda q, k, v: ([x.repeat(1, 1, 1, 20) for x in (q, k, v)], {}),
    "not 0": lambda q, k, v: ([x[..., :0] for x in (q, k, v)], {}),
    "3 heads of k must divide the 2": lambda q, k, v: (
        (q, *(x.repeat_interleave(3, 1)[:, :3] for x in (k, v))), {},
    ),
    "scale": lambda q, k, v: ((q, k, v), dict(scale=float("nan"))),
    "window must": lambda q, k, v: ((q, k, v), dict(causal=True, window=0)),
    "window=4 needs causal": lambda q, k, v: ((q, k, v), dict(window=4)),
    "softcap": lambda q, k, v: ((q, k, v), dict(softcap=0.0)),
    "dropout must be at least 0 and below 1, not 1": lambda q, k, v: (
        (q, k, v), dict(dropout=1.0),
    ),
    "not -0.1": lambda q, k, v: ((q, k, v), dict(dropout=-0.1)),
    "segments of the queries must be (1, 33)": lambda q, k, v: (
        (q, k, v), dict(segments=torch.ones(1, 3, dtype=int)),
    ),
    "segments of the keys must be (1, 30), not (1, 33)": lambda q, k, v: (
        (q, k[:, :, 3:], v[:, :, 3:]), dict(segments=torch.ones(1, 33, dtype=int)),
    ),
    "integers": lambda q, k, v: ((q, k, v), dict(segments=torch.ones(1, 33, device=DEVICE))),
    "a pair": lambda q, k, v: ((q, k, v), dict(segments=(torch.ones(1, 33),) * 3)),
    "seed must": lambda q, k, v: ((q, k, v), dict(dropout=0.1, seed=-1)),
    "seed must be int64": lambda q, k, v: (
        (q, k, v), dict(dropout=0.1, seed=torch.tensor(1.0)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("said", REFUSED)
def test_refuses_what_does_not_fit(said):
    q, k, v, _ = inputs(KV=1)
    arguments, options = REFUSED[said](q, k, v)
    with pytest.raises(ValueError) as error:
        kernels.attention(*arguments, **options)
    assert said in str(error.value)


# ---- what the kernels are compiled to


def test_every_configuration_is_whole():
    for D in (16, 100, 256):
        for dtype in DTYPES:
            for capability in (None, (8, 0), (8, 9), (9, 0), (10, 0)):
                plain = configurations(D, dtype, capability)
                packed = configurations(D, dtype, capability, True)
                for configs in (*plain.values(), *packed.values()):
                    assert configs[0]["READ"] == "threads"  # until a GPU says otherwise
                    for config in configs:
                        assert tuple(config) == NAMES and config["READ"] in READS
                        assert config["READ"] == "threads" or capability >= (9, 0)
                        assert config["BLOCK_T"] >= 16 <= config["BLOCK_S"]


def test_the_fastest_configuration_is_found_once_and_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    timed, configs = [], configurations(64, torch.bfloat16, (9, 0))["forward"]
    best = configs[-1]

    def seconds(run):
        timed.append(run())
        return float(timed[-1] != best)

    monkeypatch.setattr(launch, "seconds", seconds)
    assert launch.fastest(configs, "one", lambda config: config) == best
    assert launch.fastest(configs, "one", lambda config: config) == best and timed == configs
    launch.choices.cache_clear()  # as in another process
    assert launch.fastest(configs, "one", lambda config: config) == best and timed == configs
    launch.fastest(configs, "two", lambda config: config)
    assert timed == 2 * configs
    launch.fastest(configs[:-1], "one", lambda config: config)  # it is no longer among them
    assert timed == 2 * configs + configs[:-1]


def test_what_was_found_fastest_is_added_to_what_others_found(monkeypatch, tmp_path):
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    monkeypatch.setattr(launch, "seconds", lambda run: 1.0)
    path, config = tmp_path / "rungs.json", {"BLOCK_T": 16}
    for damaged in ("{", "null"):
        path.write_text(damaged, "utf-8")
        launch.choices.cache_clear()
        assert launch.fastest([config], "one", print) == config
    path.write_text('{"theirs": {"BLOCK_T": 32}}', "utf-8")  # another process, meanwhile
    launch.fastest([config], "two", print)
    assert launch.read(path) == {"theirs": {"BLOCK_T": 32}, "two": config}
    launch.choices.cache_clear()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, triton.errors.TritonError])
def test_what_does_not_fit_is_the_slowest(monkeypatch, error):
    def bench(run, return_mode):
        run()

    def failing():
        raise error("too large")

    monkeypatch.setattr(triton.testing, "do_bench", bench)
    assert launch.seconds(failing) == float("inf")


def test_says_what_to_do_on_a_cpu(monkeypatch):
    monkeypatch.setattr(kernels.operator, "INTERPRETED", tl.constexpr(False))
    assert not kernels.available("cpu")
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        kernels.attention(*(torch.zeros(1, 1, 4, 16) for _ in "qkv"))


def test_can_be_imported_without_triton():
    code = """
import sys
sys.modules["triton"] = None
import torch, kernels
assert not kernels.available("cpu")
try:
    kernels.attention(*(torch.zeros(1, 1, 4, 16) for _ in "qkv"))
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "not installed" in done.stdout, done.stderr


# ---- the online softmax in NumPy


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("T, S", [(40, 40), (5, 37), (37, 5), (1, 1)])
def test_online_softmax(causal, T, S):
    tensors = [x[0, 0].double().cpu() for x in inputs(H=1, KV=1, T=T, S=S)]
    exact = derive(naive.attention, *(x[None, None] for x in tensors), torch.float64, causal=causal)
    q, k, v, do = (x.numpy() for x in tensors)
    for block in (1, 16, 100):
        out, lse = online.forward(q, k, v, causal, block=block)
        found = out, *online.backward(do, q, k, v, out, lse, causal, block=block)
        for x, y in zip(found, exact):
            np.testing.assert_allclose(x, y[0, 0].numpy(), rtol=1e-10, atol=1e-12)
    seen = naive.visible(T, S, causal)[0, 0].numpy()
    with np.errstate(divide="ignore"), contextlib.suppress(RuntimeWarning):
        exact = np.log((np.exp(q @ k.T / 4) * seen).sum(1))
    np.testing.assert_allclose(lse, exact, rtol=1e-12)


def test_online_softmax_does_not_overflow():
    q, k, v = (1000.0 * np.ones((2, 4)) for _ in range(3))
    out, lse = online.forward(q, k, v)
    np.testing.assert_allclose(out, v)
    assert np.isfinite(lse).all()
