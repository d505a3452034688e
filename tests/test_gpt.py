"""nanogpt/gpt.py: the ladder's contract with every piece turned, the pieces against plain code, and
the runs of train.py that only this rung has."""

import io
import json
import math
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from test_makemore import draw, in_pieces, noise, same, same_state, shaken
from torch import nn

import data
import kernels
import nanogpt
import sample
import train
from data import runs
from data.cli import flag
from makemore.model import IGNORED
from makemore.transformer import rotary_frequencies
from nanogpt import attention, gpt
from nanogpt.attention import attention_of
from nanogpt.cache import Cache
from nanogpt.dropout import Dropout
from nanogpt.evaluate import mean_loss
from nanogpt.gpt import ARCHS, CHOICES, SIZES, ShortConv
from nanogpt.machine import Machine, choose
from nanogpt.optim import MOMENTUM, make_optimizers
from nanogpt.recipes import RECIPES
from nanogpt.settings import make_parser, settle

V, BLOCK, LAYERS = 11, 8, 2
SMALL = dict(layers=LAYERS, heads=4, width=16)
PIECES = {
    "modern": {},
    "gpt2": ARCHS["gpt2"],
    "learned": dict(position="learned"),
    "sinusoidal": dict(position="sinusoidal"),
    "layer norm": dict(norm="layer"),
    "gelu": dict(mlp="gelu"),
    "swiglu": dict(mlp="swiglu"),
    "no qk_norm": dict(qk_norm=False),
    "kv_heads 1": dict(kv_heads=1),
    "kv_heads 2": dict(kv_heads=2),
    "window": dict(window=3),
    "tied": dict(tied=True),
    "bias": dict(bias=True),
    "score_cap": dict(score_cap=2.0),
    "no logit_cap": dict(logit_cap=0.0),
    "no zero_init": dict(zero_init=False),
    "conv": dict(conv=4),
    "conv and window": dict(conv=3, window=3, position="learned"),
    "several": dict(kv_heads=2, window=3, score_cap=2.0, bias=True, tied=True, mlp="swiglu"),
}
CLOCKS = {"seconds", "training_seconds", "tokens_per_second", "mfu", "memory", "memory_expected"}

each_piece = pytest.mark.parametrize("piece", PIECES)


def build(piece, **given):
    """A small model with its first weights."""
    torch.manual_seed(0)
    return nanogpt.build("gpt", V, BLOCK, **SMALL | PIECES[piece] | given)


def make(piece, **given):
    """A small shaken model in float64, so that only a mistake is larger than 1e-10."""
    return shaken(build(piece, **given)).double().eval()


def longest(model):
    """Tokens that a model may take: learned positions end with the block."""
    return 3 * BLOCK if model.limit is None else BLOCK


# Two rows whose documents begin and end at different places, their labels in no order
DOCUMENTS = [[3, 5, 4], [1, 8, 3]]
LABELS = [[4, 0, 7], [2, 9, 1]]


def packed():
    rows = [torch.tensor(labels).repeat_interleave(torch.tensor(lengths))
            for labels, lengths in zip(LABELS, DOCUMENTS, strict=True)]
    return draw(2, 12), torch.stack(rows)


LENGTHS = [1, 4, 3]


def prompts():
    """Tokens and segments (3, 4) of documents that end together, and what fills them up before."""
    return draw(3, 4), (torch.arange(4) >= 4 - torch.tensor(LENGTHS)[:, None]).long()


# The contract


@each_piece
@pytest.mark.parametrize("layers", [1, 2])
@torch.no_grad()
def test_a_position_knows_what_came_before_and_nothing_later(piece, layers):
    model = make(piece, layers=layers)
    tokens = draw(1, longest(model))
    logits, known = model(tokens)[0], set()
    for age in range(tokens.shape[1]):
        changed = tokens.clone()
        changed[0, -1 - age] = (changed[0, -1 - age] + 1) % V
        others = model(changed)[0]
        same(others[:, :-1 - age], logits[:, :-1 - age], 1e-12)
        if (others - logits)[0, -1].abs().max() > 1e-9:
            known.add(age)
    reach = 1 + layers * (PIECES[piece].get("window", BLOCK) - 1)
    reach += max(0, PIECES[piece].get("conv", 0) - 1)  # which the furthest of them knows
    assert known == set(range(min(reach, tokens.shape[1])))


@each_piece
@torch.no_grad()
def test_a_sequence_may_be_split_anywhere(piece):
    model = make(piece)
    for length in {BLOCK, longest(model)}:
        tokens = draw(2, length)
        logits, state = model(tokens)
        for cuts in [*([cut] for cut in range(1, length)), list(range(1, length)), [3, 4]]:
            pieces, last = in_pieces(model, tokens, cuts)
            same(pieces, logits)
            same_state(last, state)
    reach = PIECES[piece].get("window", BLOCK)
    assert state.memories[0][0].shape[2] == reach - 1  # what no later position sees is forgotten


@each_piece
@torch.no_grad()
def test_packed_documents_give_the_logits_of_each_alone(piece):
    model, (tokens, segments) = make(piece), packed()
    logits, state = model(tokens, segments=segments)
    assert state.position.tolist() == [lengths[-1] for lengths in DOCUMENTS]
    for row, lengths in enumerate(DOCUMENTS):
        alone = [model(document[None])[0][0] for document in tokens[row].split(lengths)]
        same(logits[row], torch.cat(alone))
    for cuts in [*([cut] for cut in range(1, 12)), list(range(1, 12))]:
        pieces, last = in_pieces(model, tokens, cuts, segments)
        same(pieces, logits)
        same_state(last, state)


@each_piece
@torch.no_grad()
def test_a_state_stays_as_it_was_and_its_rows_can_be_chosen(piece):
    model, more = make(piece), draw(4, 4)
    tokens, segments = prompts()
    _, state = model(tokens, segments=segments)
    assert state.position.tolist() == LENGTHS
    before, rows = deepcopy(state), torch.tensor([2, 0, 0, 1])
    logits, _ = model(more, state.rows(rows))
    for i, row in enumerate(rows):
        alone, _ = model(torch.cat([tokens[row, -LENGTHS[row]:], more[i]])[None])
        same(logits[i], alone[0, LENGTHS[row]:])
    first, _ = model(more[:3], state)
    other, _ = model(more[:3], state, torch.full((3, 4), 5))
    assert (first - other).abs().max() > 1e-3  # another document
    same_state(state, before)


def random_batch():
    """Tokens and targets (8, 8): a few of the last tokens tell the next, where that counts."""
    tokens, targets = draw(2, 8, BLOCK)
    tokens[:, 0], targets[::2, 5:] = torch.arange(8), IGNORED
    return tokens, targets


@each_piece
def test_the_first_loss_is_that_of_a_guess(piece):  # in the size that it has by itself
    torch.manual_seed(0)
    model = nanogpt.build("gpt", 60, 16, **PIECES[piece])
    loss = model.loss(draw(16, 16, vocab_size=60), draw(16, 16, vocab_size=60, seed=1))
    assert loss.item() == pytest.approx(math.log(60), abs=0.1)


@each_piece
def test_one_batch_is_fitted(piece):
    model, (tokens, targets) = build(piece, width=32), random_batch()
    optimizers = make_optimizers(model, "muon", 0.03)
    for step in range(60):
        for optimizer in optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = 0.03 * (1 - step / 60)
        loss = model.loss(tokens, targets)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    assert loss.item() < 0.05


@each_piece
def test_every_parameter_has_had_a_gradient_after_two_steps(piece):
    model, (tokens, targets) = build(piece).train(), random_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    reached = set()
    for _ in range(2):  # what lies before a projection of zeros is reached by the second
        optimizer.zero_grad()
        model.loss(tokens, targets).backward()
        reached |= {name for name, p in model.named_parameters() if p.grad.abs().max() > 0}
        optimizer.step()
    assert reached == {name for name, _ in model.named_parameters()}


@each_piece
def test_saved_and_loaded_gives_the_same_logits(piece):
    model, loaded, tokens = shaken(build(piece)).eval(), build(piece).eval(), draw(2, BLOCK)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    before, _ = loaded(tokens)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(loaded(tokens)[0], model(tokens)[0])
    assert not torch.equal(loaded(tokens)[0], before)


@pytest.mark.parametrize("piece", ["modern", "gpt2"])
def test_dropout_is_on_in_training_alone(piece):
    model, plain, tokens = make(piece, dropout=0.5), make(piece), draw(2, BLOCK)
    same(model(tokens)[0], plain(tokens)[0], 0)
    used = []
    for module in model.modules():
        if isinstance(module, nn.Dropout) and module.p == 0.5:
            module.register_forward_hook(lambda *_: used.append(1))
    first, _ = model.train()(tokens)
    assert len(used) == 1 + 2 * LAYERS  # the embedding, and what each half of a block adds
    assert (first - model(tokens)[0]).abs().max() > 1e-3
    same(model.eval()(tokens)[0], plain.train()(tokens)[0], 0)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_leaves_a_share_out_and_keeps_the_mean(share, dtype):
    x = torch.ones(257, 399, dtype=dtype, requires_grad=True)  # not a multiple of four
    layer = Dropout(share)
    torch.manual_seed(0)
    y = layer(x)
    left_out = y == 0
    deviation = math.sqrt(share * (1 - share) / x.numel())
    assert abs(left_out.double().mean() - share) < 5 * deviation
    for axis in (0, 1):  # and anywhere alike
        shares, number = left_out.double().mean(axis), x.shape[axis]
        assert (shares - share).abs().max() < 6 * math.sqrt(share * (1 - share) / number)
    assert y.dtype == dtype and torch.allclose(y[~left_out].double(), torch.tensor(
        1 / (1 - share), dtype=torch.float64), rtol=0.01)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # what is left out learns nothing
    torch.manual_seed(0)
    assert torch.equal(layer(x), y) and not torch.equal(layer(x), y)


def test_dropout_of_nothing_and_of_all():
    x = noise(3, 5)
    assert torch.equal(Dropout(0.0)(x), x) and torch.equal(Dropout(0.7).eval()(x), x)
    assert not Dropout(1.0)(x).any()


@pytest.mark.parametrize("piece", ["modern", "gpt2", "several"])
@pytest.mark.parametrize("chunk", [2**25, 100])
def test_bfloat16_products(piece, chunk, monkeypatch):
    model, (tokens, targets) = shaken(build(piece)), random_batch()
    exact = model.loss(tokens, targets).item()
    monkeypatch.setattr(gpt, "CHUNK", chunk)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss(tokens, targets)
        carried, _ = in_pieces(model, tokens, [1, 3])
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact, rel=0.02)
    assert carried.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("piece", ["modern", "gpt2"])  # with a cap and without, the head tied
def test_the_loss_of_our_kernel_is_the_same(piece, interpreter, monkeypatch):
    from kernels import cross_entropy  # here, where the interpreter is chosen

    monkeypatch.setattr(gpt, "CHUNK", 100)
    tokens, targets = random_batch()
    targets[:, ::3] = -1
    found = []
    for fused in (False, True):
        model = shaken(build(piece))
        model.fused_loss = fused
        loss = model.loss(tokens, targets)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    for a, b in zip(*found, strict=True):
        same(a, b, 1e-5)
    attention.use(model, "triton")
    compiled = torch.compile(model.loss, backend="eager", fullgraph=True, dynamic=False)
    same(compiled(tokens, targets).detach(), found[0][0], 1e-5)
    torch._dynamo.reset()
    called = []
    monkeypatch.setattr(cross_entropy, "linear_cross_entropy", lambda *a, **k: called.append(k))
    model.loss(tokens, targets)
    attention.use(model, "sdpa")
    model.loss(tokens, targets)
    assert called == [{"cap": model.logit_cap}]


# The first weights


def test_a_block_begins_as_the_identity_or_adds_little():
    tokens = draw(2, BLOCK)
    for name, zero_init in (("modern", True), ("no zero_init", False)):
        model = build(name).double()
        added = model.features(tokens)[0] - model.norm(model.embedding(tokens))
        assert (added.abs().max() > 1e-6) != zero_init
    model = build("gpt2", width=128)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            small = name.endswith(("out.weight", "down.weight"))
            std = 0.01 if name == "positions.weight" else 0.02 / (2 * LAYERS) ** (small / 2)
            assert parameter.std().item() == pytest.approx(std, rel=0.1), name
        else:
            assert torch.equal(parameter, torch.full_like(parameter, ".bias" not in name))


# The pieces against plain code


def plain_attention(attention, x, documents, speeds, window, cap):
    """attention(x), written out. speeds (D / 2,): radians a position, or None."""
    B, T, C = x.shape
    H, K = attention.heads, attention.kv_heads
    D = C // H
    bias = 0 if attention.qkv.bias is None else attention.qkv.bias
    y = (x @ attention.qkv.weight.T + bias).view(B, T, H + 2 * K, D)
    shared = [head // (H // K) for head in range(H)]
    q, k, v = y[:, :, :H], y[:, :, H:H + K][:, :, shared], y[:, :, H + K:][:, :, shared]
    if attention.qk_norm:
        q, k = (z / z.square().mean(-1, keepdim=True).sqrt() for z in (q, k))
        q = q * attention.gain[:, None]
    seen = torch.zeros(B, T, T, dtype=torch.bool)
    position = torch.zeros(B, T, 1, 1, dtype=torch.float64)
    for b in range(B):
        for t in range(T):
            position[b, t] = sum(documents[b, :t] == documents[b, t])
            for s in range(max(0, t - window + 1), t + 1):
                seen[b, t, s] = documents[b, s] == documents[b, t]
    if speeds is not None:  # feature i and feature i + D/2 as the parts of a complex number
        turn = torch.exp(1j * position * speeds)
        q, k = (torch.complex(z[..., :D // 2], z[..., D // 2:]) * turn for z in (q, k))
        q, k = (torch.cat([z.real, z.imag], -1) for z in (q, k))
    scores = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(D)
    if cap:
        scores = cap * torch.tanh(scores / cap)
    shares = scores.masked_fill(~seen[:, None], -math.inf).softmax(3)
    y = torch.einsum("bhts,bshd->bthd", shares, v).reshape(B, T, C)
    return y @ attention.out.weight.T + (0 if attention.out.bias is None else attention.out.bias)


@each_piece
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("how", ["naive", "sdpa"])
def test_attention_is_the_plain_one(piece, apart, how):
    model = make(piece)
    attention = model.layers[0].attention
    documents = packed()[1] if apart else torch.zeros(2, BLOCK, dtype=torch.int64)
    T = documents.shape[1]
    positions = gpt.document_positions(documents, None, documents)
    x = noise(2, T, 16).requires_grad_()
    plain = not apart and model.reach >= T
    attend = attention_of(how, positions, 0, model.reach, plain, model.score_cap)
    ours, _ = attention(x, model.view(positions, attend), None)
    speeds = model.speeds[2:] if model.position == "rotary" else None
    theirs = plain_attention(attention, x, documents, speeds, model.reach, model.score_cap)
    same(ours, theirs)
    weights, by = [x, *attention.parameters()], noise(2, T, 16, seed=1)
    mine, others = (torch.autograd.grad((y * by).sum(), weights) for y in (ours, theirs))
    for a, b in zip(mine, others, strict=True):
        same(a, b)


@torch.no_grad()
def results(model, tokens, segments):
    """Logits of packed documents, of what follows them, of prompts that begin apart, and what is
    then drawn one by one, past the block."""
    packed_ones, state = model(tokens, segments=segments)
    following, _ = model(tokens[:, :3], state)
    begun, _ = model(*prompts_and_state(model))
    drawn = sample.generate(model, [[0, 5, 6, 7], [9, 8], [0]], 12, stop=None, temperature=0)
    return [packed_ones, following, begun], list(drawn)


def prompts_and_state(model):
    """Tokens, and the state after prompts of several lengths."""
    tokens, segments = prompts()
    return draw(3, 2, seed=3), model(tokens, segments=segments)[1]


@pytest.mark.parametrize("how", ["naive", "triton"])
@pytest.mark.parametrize("piece", ["modern", "gpt2", "kv_heads 2", "window", "several"])
def test_every_attention_gives_the_same(piece, how, interpreter):
    model = shaken(build(piece)).eval()  # in float32, which all of them take
    tokens, segments = packed()
    if model.limit:
        tokens, segments = tokens[:, :model.limit - 3], segments[:, :model.limit - 3]
    expected, words = results(model, tokens, segments)
    attention.use(model, how)
    given, drawn = results(model, tokens, segments)
    for a, b in zip(given, expected, strict=True):
        same(a, b, 1e-5)
    assert drawn == words


@pytest.mark.parametrize("how", ["sdpa", "triton"])
def test_the_transformer_of_the_ladder_takes_them_too(how, interpreter):
    torch.manual_seed(0)
    model = shaken(nanogpt.build("transformer", V, BLOCK, **SMALL)).eval()
    expected, words = results(model, *packed())
    attention.use(model, how)
    given, drawn = results(model, *packed())
    for a, b in zip(given, expected, strict=True):
        same(a, b, 1e-5)
    assert drawn == words
    attention.use(model, "naive")
    for a, b in zip(results(model, *packed())[0], expected, strict=True):
        assert torch.equal(a, b)


def test_gradients_do_not_depend_on_the_attention(interpreter):
    tokens, segments = packed()
    found = []
    for how in ("sdpa", "naive", "triton"):
        model = shaken(build("modern"))
        attention.use(model, how)
        model.loss(tokens, tokens.roll(-1, 1), segments).backward()
        found.append([p.grad for p in model.parameters()])
    for others in found[1:]:
        for a, b in zip(others, found[0], strict=True):
            same(a, b, 1e-5)


def test_auto_is_what_is_right_for_the_machine():
    assert attention.choose("auto", Machine("cpu", "bfloat16", False)) == "sdpa"
    assert attention.choose("auto", Machine("cuda", "float32", False)) == "sdpa"
    assert attention.choose("naive", Machine("cpu", "float32", False)) == "naive"


@pytest.mark.parametrize("flags, said", [
    ("--model=gpt --attention=triton", "TRITON_INTERPRET"),
    ("--model=lstm --attention=sdpa", "transformer and gpt"),
])
def test_an_attention_that_cannot_be_is_refused(flags, said, words, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kernels, "unavailable", lambda device: "set TRITON_INTERPRET=1.")
    code, _, error = command(train.main, *flags.split(), f"--data={words}", "--lines", "--steps=1",
                             "--device=cpu", "--out=run")
    assert code == 2 and said in error and error.count("\n") == 1


def test_only_our_kernels_need_triton():
    code = """
import sys, torch, nanogpt
from nanogpt import attention
for how in ("naive", "sdpa"):
    model = nanogpt.build("gpt", 9, 8, layers=1, heads=2, width=8, score_cap=5.0)
    attention.use(model, how)
    _, state = model(torch.zeros(1, 4, dtype=int))
    model(torch.zeros(1, 1, dtype=int), state)
assert not {"triton", "kernels"} & set(sys.modules), "imported"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_rotary_speeds_are_powers_of_10000():
    speeds = torch.tensor([10000 ** (-2 * i / 8) for i in range(4)])
    same(rotary_frequencies(8), torch.cat([-speeds, speeds]), 1e-7)


@torch.no_grad()
def test_sinusoidal_positions_are_those_of_vaswani():
    model, x = make("sinusoidal"), []
    model.embedding.weight.zero_()
    model.layers[0].norm1.register_forward_hook(lambda module, inputs, _: x.append(inputs[0]))
    tokens, segments = packed()
    _, state = model(tokens, segments=segments)
    model(tokens[:, :3], state)
    places = [[p for length in lengths for p in range(length)] for lengths in DOCUMENTS]
    places = [row + [row[-1] + 1, row[-1] + 2, row[-1] + 3] for row in places]
    expected = torch.empty(2, 15, 16, dtype=torch.float64)
    for row in range(2):
        for t, p in enumerate(places[row]):
            for i in range(8):  # the sines in one half, the cosines in the other
                angle = p / 10000 ** (2 * i / 16)
                expected[row, t, i], expected[row, t, 8 + i] = math.sin(angle), math.cos(angle)
    same(torch.cat(x, 1), expected, 1e-6)  # the speeds are float32


def test_norms_are_the_plain_ones():
    x = noise(3, 5, 16)
    norm = make("modern").norm
    same(norm(x), norm.weight * x / x.square().mean(-1, keepdim=True).sqrt())
    norm, centred = make("gpt2").norm, x - x.mean(-1, keepdim=True)
    plain = norm.weight * centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    same(norm(x), plain + norm.bias)


@pytest.mark.parametrize("kind", CHOICES["mlp"])
def test_mlps_are_the_plain_ones(kind):
    mlp, x = make("bias", mlp=kind).layers[0].mlp, noise(2, 3, 16)
    y = x @ mlp.up.weight.T + mlp.up.bias
    if kind == "swiglu":
        y = y[..., :48] * y[..., 48:] / (1 + torch.exp(-y[..., 48:]))
    elif kind == "gelu":
        y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    elif kind == "gelu-exact":
        y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
    else:
        y = torch.where(y > 0, y * y, 0)
    same(mlp(x), y @ mlp.down.weight.T + mlp.down.bias)
    # in about as many weights
    count = sum(p.numel() for p in gpt.MLP(96, kind, False).parameters())
    assert count == pytest.approx(8 * 96 * 96, rel=0.01)


@torch.no_grad()
def test_the_convolution_of_the_embeddings_is_the_plain_one():
    conv, x = ShortConv(3, 16), noise(2, 5, 16)
    torch.nn.init.normal_(conv.weight)
    kernel = torch.cat([conv.weight.flip(0), torch.ones(1, 16)]).double().T[:, None]  # (C, 1, 4)
    padded = torch.nn.functional.pad(x.transpose(1, 2), (3, 0))
    plain = torch.conv1d(padded, kernel, groups=16).transpose(1, 2)
    same(conv.double()(x, None, torch.arange(5).expand(2, 5)), plain)
    assert build("conv").conv.weight.shape == (3, 16) and build("modern").conv is None


def test_the_convolution_has_the_rate_of_the_embedding_and_no_decay():
    model = build("conv")
    adamw, _ = make_optimizers(model, "muon", 0.1, weight_decay=0.2, embedding_lr=3.0)
    of = {id(p): (group["lr_share"], group["weight_decay"])
          for group in adamw.param_groups for p in group["params"]}
    assert of[id(model.embedding.weight)] == (3.0, 0.2) and of[id(model.conv.weight)] == (3.0, 0.0)
    assert of[id(model.head.weight)] == (1.0, 0.2)


def test_logits_are_capped():
    model, x = make("modern", logit_cap=0.5), 5 * noise(2, 3, 16)
    logits = x @ model.head.weight.T
    assert logits.abs().max() > 2
    same(model.logits(x), 0.5 * torch.tanh(logits / 0.5))


GPT2_NAMES = {
    "embedding": "wte", "positions": "wpe", "layers": "h", "norm1": "ln_1", "norm2": "ln_2",
    "norm": "ln_f", "attention": "attn", "qkv": "c_attn", "up": "c_fc", "out": "c_proj",
    "down": "c_proj",
}


@torch.no_grad()
def test_the_arch_gpt2_is_that_of_transformers():
    transformers = pytest.importorskip("transformers")
    ours = make("gpt2")
    config = transformers.GPT2Config(
        vocab_size=V, n_positions=BLOCK, n_embd=16, n_layer=LAYERS, n_head=4,
        bos_token_id=0, eos_token_id=0,
    )
    theirs = transformers.GPT2LMHeadModel(config).double().eval()
    weights = {}
    for name, weight in ours.named_parameters():
        path = ".".join(GPT2_NAMES.get(part, part) for part in name.split("."))
        transposed = weight.ndim > 1 and "layers" in name  # theirs take a matrix from the right
        weights[f"transformer.{path}"] = weight.T.contiguous() if transposed else weight
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected  # it is tied
    tokens = draw(3, BLOCK)
    same(ours(tokens)[0], theirs(tokens).logits)


@pytest.mark.parametrize("size, count", [
    ("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080),
    ("gpt2-xl", 1_557_611_200),
])
def test_gpt2_has_as_many_parameters_as_published(size, count):
    with torch.device("meta"):
        model = nanogpt.build("gpt", 50257, **ARCHS["gpt2"] | SIZES[size])
    assert sum(parameter.numel() for parameter in model.parameters()) == count


# The loss


@pytest.mark.parametrize("piece", ["modern", "gpt2", "several"])
@pytest.mark.parametrize("rows", [1, 5, 7])  # of the 24 at a time
def test_the_loss_is_the_cross_entropy_whole_or_in_chunks(piece, rows, monkeypatch):
    model, (tokens, segments), targets = make(piece), packed(), draw(2, 12, seed=1)
    targets[0, :10], targets[1, 3] = IGNORED, IGNORED  # a chunk, too, in which nothing counts
    shares = model(tokens, segments=segments)[0].softmax(2)
    expected = -shares.gather(2, targets.clamp(min=0)[..., None])[..., 0].log()
    expected = expected[targets != IGNORED].sum() / 13
    gradients, sizes = torch.autograd.grad(expected, list(model.parameters())), []
    model.head.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    for chunk, most, twice in ((24, 24, 1), (rows, rows, 2)):  # made again for the gradient
        monkeypatch.setattr(gpt, "CHUNK", chunk * V)
        sizes.clear()
        loss = model.loss(tokens, targets, segments)
        others = torch.autograd.grad(loss, list(model.parameters()))
        assert max(sizes) <= most and sum(sizes) == 24 * twice
        for a, b in zip((expected, *gradients), (loss, *others), strict=True):
            same(a, b)
    with torch.inference_mode():
        same(model.loss(tokens, targets, segments), expected.detach())


# The cache


@each_piece
@torch.no_grad()
def test_a_cache_gives_the_logits_of_a_state(piece):
    model = make(piece)
    tokens, first = draw(3, longest(model)), 3
    expected, _ = model(tokens)
    for plain in (True, False):
        _, state = model(tokens[:, :first])
        before = deepcopy(state)
        cache = model.preallocate(state, 2, plain)
        for t in range(first, tokens.shape[1]):
            if cache.full:
                cache = model.preallocate(cache, 4, plain)
            logits, cache = model(tokens[:, t:t + 1], cache)
            assert isinstance(cache, Cache) and cache.position.tolist() == [t + 1] * 3
            same(logits[:, 0], expected[:, t])
        same_state(state, before)


@each_piece
@torch.no_grad()
def test_a_cache_of_rows_that_have_seen_unlike_numbers(piece):
    model = make(piece)
    (tokens, segments), more = prompts(), draw(3, longest(model) - 4, seed=1)
    _, state = model(tokens, segments=segments)
    cache, rows = model.preallocate(state, 1), [0, 1, 2]
    for t in range(more.shape[1]):
        if t == 2:
            rows = [2, 0]
            cache = cache.rows(torch.tensor(rows))
        if cache.full:
            cache = model.preallocate(cache, 3)
        logits, cache = model(more[rows, t:t + 1], cache)
        for i, row in enumerate(rows):
            whole = torch.cat([tokens[row, -LENGTHS[row]:], more[row, :t + 1]])
            same(logits[i, 0], model(whole[None])[0][0, -1])


# Checkpointing


@pytest.mark.parametrize("piece", ["modern", "gpt2", "several"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_checkpointing_gives_the_same_gradients(piece, dropout):
    model, (tokens, segments) = shaken(build(piece, dropout=dropout)).train(), packed()
    calls, found = [], []
    model.layers[0].attention.register_forward_hook(lambda *_: calls.append(1))
    for model.checkpointing in (False, True):
        torch.manual_seed(2)
        loss = model.loss(tokens, draw(2, 12, seed=1), segments)
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    assert len(calls) == 1 + 2  # made again
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# Sizes that cannot work


REFUSED = [  # and a word of the sentence
    (dict(width=16, heads=3), "16"), (dict(kv_heads=3), "3 key/value"),
    (dict(kv_heads=8), "8 key/value"), (dict(kv_heads=-1), "kv_heads"),
    (dict(width=12, heads=4), "3 a head"), (dict(width=4, heads=4), "1 a head"),
    (dict(position="sinusoidal", width=9, heads=3), "even width"), (dict(heads=0), "heads"),
    (dict(position="absolute"), "position"), (dict(norm="batch"), "rms, layer"),
    (dict(mlp="relu"), "mlp"), (dict(window=-1), "window"), (dict(score_cap=-1.0), "score_cap"),
    (dict(logit_cap=-1.0), "logit_cap"), (dict(logit_cap=math.nan), "logit_cap"),
    (dict(dropout=1.0), "dropout"), (dict(layers=0), "layers"), (dict(depth=2), "depth"),
    (dict(conv=99), "a convolution of 99"), (dict(conv=-1), "conv"),
]


@pytest.fixture
def refused(words, refusal, tmp_path, monkeypatch):
    """refused(*flags): the sentence with which train.py ends, without a run folder."""
    monkeypatch.chdir(tmp_path)
    given = ["--model=gpt", f"--data={words}", "--lines", "--steps=2", "--device=cpu"]
    yield lambda *flags: refusal(train.main, *given, *flags)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("given, said", REFUSED, ids=str)
def test_sizes_that_cannot_work_are_refused(given, said, refused):
    with pytest.raises(ValueError) as caught:
        nanogpt.build("gpt", V, BLOCK, **SMALL | given)
    sentence = str(caught.value)
    assert said in sentence and "\n" not in sentence and sentence.endswith(".")
    said = refused(*(f"{flag(name)}={value}" for name, value in (SMALL | given).items()))
    assert sentence in said or flag(next(iter(given))) in said  # where argparse comes before


WRONG = {
    "--arch=gpt3": "--arch",
    "--size=huge": "--size",
    "--recipe=shakespear": "shakespeare",
    "--context=3": "--context",
    "--backend=numpy": "numpy",
    "--tokenizer=char --vocab-size=300": "--vocab-size",
    "--vocab-size=100": "too small",
    "--vocab-size=-1": "small",
    "--accumulate=5 --batch-size=16": "--accumulate",
    "--accumulate=0": "--accumulate",
    "--average=1": "--average",
    "--average=nan": "--average",
    "--momentum=1": "--momentum",
    "--momentum=0.9 --optimizer=adamw": "--momentum is of Muon",
    "--model=bigram --momentum=0.9": "--momentum is of Muon",
    "--model=mlp --backend=numpy --embedding-lr=2": "--embedding-lr is not for NumPy",
    "--embedding-lr=0": "--embedding-lr",
    "--model=lstm --arch=gpt2": "--arch",
    "--model=lstm --recipe=names": "--recipe",
    "--model=lstm --checkpointing": "--checkpointing",
    "--model=transformer --no-qk-norm": "--qk-norm",
}


@pytest.mark.parametrize("flags", WRONG)
def test_what_cannot_work_is_refused_in_a_sentence(flags, refused):
    said = refused(*flags.split())
    assert WRONG[flags] in said and "there is no stage gpt" not in said


def test_a_recipe_of_another_model_is_refused_before_its_data_is_fetched(refusal, monkeypatch):
    monkeypatch.setattr(data, "load", pytest.fail)
    assert "--recipe" in refusal(train.main, "--model=lstm", "--recipe=shakespeare-nano")


# The dials


ITEMS = {"train": ["abc", "ba"], "val": ["ab"], "test": []}
SETTINGS = {kind: data.Dataset("stand-in", kind, ITEMS) for kind in ("lines", "text")}


def settled(*flags, kind="text", repeated=None):
    """The settings of a command line, without its data."""
    args = make_parser().parse_args(["--model=gpt", *flags])
    return settle(args, "stand-in", SETTINGS[kind], dict(repeated or {}))


def test_what_is_given_overrides_the_dials_and_these_the_recipe(monkeypatch):
    nano, baby = SIZES["nano"], SIZES["baby"]
    recipe = settled("--recipe=shakespeare-baby")
    assert recipe.sizes.items() >= {"layers": 6, "width": 384, "dropout": 0.2}.items()
    assert recipe.block_size == baby["block_size"] and recipe.dtype == "bfloat16"

    smaller = settled("--recipe=shakespeare-baby", "--size=nano", "--width=64", "--dtype=float32")
    assert smaller.sizes == recipe.sizes | {"layers": nano["layers"], "heads": 4, "width": 64}
    assert (smaller.block_size, smaller.dtype) == (nano["block_size"], "float32")
    assert settled("--size=baby", "--block-size=9").block_size == 9

    monkeypatch.setitem(RECIPES, "wide", RECIPES["tales"] | dict(width=72))  # but not its own
    assert settled("--recipe=wide").sizes == settled("--size=nano", "--width=72").sizes

    for name, pieces in ARCHS.items():
        both = settled("--recipe=gpt2", f"--arch={name}")
        assert both.sizes.items() >= pieces.items() and both.sizes["layers"] == 12
        turned = settled(f"--arch={name}", "--norm=rms", "--no-bias", "--tied", "--logit-cap=3")
        given = dict(norm="rms", bias=False, tied=True, logit_cap=3.0)
        assert turned.sizes.items() >= (pieces | given).items()


def test_what_a_recipe_says_of_muon_is_not_in_the_way_of_another_optimizer():
    recipe = settled("--recipe=shakespeare-nano")
    assert (recipe.momentum, recipe.embedding_lr) == (0.85, 5.0)
    other = settled("--recipe=shakespeare-nano", "--optimizer=adamw")
    assert (other.momentum, other.embedding_lr) == (MOMENTUM, 5.0)
    again = settled("--optimizer=adamw", repeated=vars(recipe))
    assert (again.momentum, again.embedding_lr) == (MOMENTUM, 5.0)


def test_the_pieces_of_a_bare_model_are_modern():
    assert nanogpt.sizes("gpt").items() >= ARCHS["modern"].items()


@pytest.mark.parametrize("name", ["qk_norm", "tied", "bias", "zero_init"])
def test_switches_turn_both_ways(name):
    for arch, pieces in ARCHS.items():
        found = [settled(f"--arch={arch}", *more).sizes[name]
                 for more in ([], [flag(name)], [flag(f"no_{name}")])]
        assert found == [pieces[name], True, False]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_flags_that_it_lists(name):
    kind = "lines" if RECIPES[name]["data"] == "names" else "text"
    recipe = RECIPES[name]
    flags = [flag(key) if value is True else f"{flag(key)}={value}"
             for key, value in recipe.items()]
    config = settled(f"--recipe={name}", f"--model={recipe['model']}", kind=kind)
    assert config == settled(*flags, kind=kind)
    for key, value in recipe.items():
        if key not in ("arch", "size", "data"):
            assert (vars(config) | config.sizes)[key] == value
    with torch.device("meta"):
        nanogpt.build(recipe["model"], 300, config.block_size, **config.sizes)
    args = make_parser().parse_args([f"--recipe={name}"])
    assert settle(args, "stand-in", SETTINGS[kind], {}) == config  # the model goes without saying
    if name in ("names", "tales"):
        assert settled(kind=kind) == config  # and these for a bare command


# Runs


@pytest.fixture
def folder(tmp_path, monkeypatch, no_plot):
    """A folder of its own, in which runs are made."""
    monkeypatch.chdir(tmp_path)
    lines = [{"text": f"the cat {'sat ' * n}on mat {n}."} for n in range(40)]
    Path("docs.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    return tmp_path


@pytest.fixture
def flags_on(small, words, passage, folder):
    """flags_on(kind): those of a small gpt on lines, on a text, or on documents."""
    sources = {"lines": [f"--data={words}", "--lines", "--block-size=7"],
               "text": [f"--data={passage}", "--block-size=16"],
               "documents": ["--data=docs.jsonl", "--block-size=16"]}
    plan = ["--steps=8", "--eval-every=3", "--batch-size=8"]
    return lambda kind, *more, **sizes: [*small("gpt", **sizes), *sources[kind], *plan, *more]


def frozen(value):
    """A value of a checkpoint, to be compared bit for bit; without the clocks."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.tolist()
    if isinstance(value, dict):
        return {name: frozen(item) for name, item in value.items() if name not in CLOCKS}
    if isinstance(value, (list, tuple)):
        return list(map(frozen, value))
    return value


def ended(run):
    """What a run has left behind."""
    result = json.loads(Path(run, "result.json").read_text("utf-8"))
    return frozen([runs.load_checkpoint(Path(run, name)) for name in runs.CHECKPOINTS]
                  + [result, runs.read_metrics(Path(run)), Path(run, "samples.txt").read_text()])


def stop(step, config, real=train.lr_factor):
    """In place of lr_factor: end the run before step 5."""
    if step == 5:
        raise train.Stopped
    return real(step, config)


@pytest.mark.parametrize("kind, more", [
    ("lines", []),
    ("lines", ["--average=0.9", "--accumulate=4", "--arch=gpt2"]),
    ("text", ["--schedule=wsd", "--kv-heads=1", "--window=3", "--checkpointing"]),
    ("text", ["--average=0.9", "--tokenizer=bpe", "--vocab-size=300"]),
    ("documents", ["--average=0.5", "--accumulate=2"]),
    ("documents", ["--arch=gpt2", "--optimizer=adamw"]),
], ids=str)
def test_a_whole_run_and_one_resumed_ends_like_never_stopped(
    kind, more, flags_on, start, monkeypatch
):
    start(*flags_on(kind, *more), "--out=never")
    assert {path.name for path in Path("never").iterdir()} == {
        "config.json", "metrics.jsonl", "last.pt", "best.pt", "samples.txt", "result.json"}
    result = json.loads(Path("never/result.json").read_text("utf-8"))
    assert result["model"] == "gpt" and result["train_loss"] > 0 and result["bits_per_char"] > 0
    with monkeypatch.context() as patch:
        patch.setattr(train, "lr_factor", stop)
        patch.setattr(train, "SAVE_SECONDS", -1)
        with pytest.raises(train.Stopped):
            start(*flags_on(kind, *more), "--out=once")
    assert runs.load_checkpoint(Path("once/last.pt"))["progress"]["step"] == 5
    start("--resume=once")
    assert ended("once") == ended("never")


def test_before_the_first_step_a_part_of_a_text_is_judged(flags_on, start, monkeypatch):
    parts = {}
    for most in (8, 10**9):
        monkeypatch.setattr(train, "BEGIN", most)
        start(*flags_on("text", "--steps=1", "--lr=9", "--clip=0"), f"--out=run-{most}")
        folder = Path(f"run-{most}")
        parts[most] = [line["val_loss"] for line in runs.read_metrics(folder)]
    assert parts[8][0] != parts[10**9][0] < parts[8][1] == parts[10**9][1]
    # where it stays the best, all of the split is judged in the end
    results = [json.loads(Path(f"run-{most}/result.json").read_text("utf-8")) for most in parts]
    assert results[0]["best_step"] == results[1]["best_step"] == 0
    assert results[0]["val_loss"] == results[1]["val_loss"] == parts[10**9][0]


def test_the_settings_of_the_optimizers_reach_them(flags_on, start):
    start(*flags_on("text", "--steps=1", "--momentum=0.8", "--embedding-lr=3"), "--out=run")
    adamw, muon = runs.load_checkpoint(Path("run/last.pt"))["optimizers"]
    assert {group["momentum"] for group in muon["param_groups"]} == {0.8}
    shares = [(group["lr_share"], len(group["params"])) for group in adamw["param_groups"]]
    assert (3.0, 1) in shares and {share for share, _ in shares} == {1.0, 3.0}


def test_warm_up_stable_decay(flags_on, start):
    start(*flags_on("lines", "--schedule=wsd", "--steps=20", "--warmup=4", "--eval-every=1",
                    "--patience=0", "--lr=0.01"), "--out=run")
    rates = [line["lr"] for line in runs.read_metrics(Path("run"))]
    assert rates[4:17] == [0.01] * 13 and rates[3] < 0.01 > rates[17] > rates[18] > rates[19]
    assert rates[19] == pytest.approx(0.0001)


# Accumulation


def drill(run, batches, piece="modern", **given):
    """train.train of a small gpt on batches: the model, its weights at each call of the loss (after
    the step before), and those at each evaluation."""
    model, before, judged = shaken(build(piece, width=8, heads=2, kv_heads=0)), [], []
    plain = dict(
        model="gpt", data="", lines=True, sizes={}, block_size=8, steps=5, batch_size=8, lr=0.01,
        warmup=0, optimizer="muon", weight_decay=0.1, clip=1.0, eval_every=2, patience=0, seed=0,
        device="cpu", dtype="float32", compile=False,
    )

    def weights():
        return {name: p.detach().clone() for name, p in model.named_parameters()}

    def loss(*batch):
        before.append(weights())
        return model.loss(*batch)

    def evaluate():
        judged.append(weights())
        return 2.0 - len(judged)

    run.mkdir()
    train.train(model, batches, loss, train.Config(**plain | given), evaluate=evaluate,
                machine=choose("cpu"), run=run, about={})
    return model, before, judged


def uneven(seed, step):
    """A batch whose rows have 1 to 8 targets, and the third pair of them none; and documents."""
    numbers = np.random.default_rng([seed, step])
    tokens, targets = numbers.integers(V, size=(2, 8, 8))
    targets[np.arange(8) >= numbers.integers(1, 9, size=8)[:, None]] = IGNORED
    targets[4:6] = IGNORED
    return tokens, targets, np.cumsum(tokens == 0, axis=1)


@pytest.mark.parametrize("piece", ["modern", "gpt2", "several"])
def test_accumulated_parts_make_the_step_of_the_batch(piece, tmp_path):
    whole, calls, _ = drill(tmp_path / "whole", uneven, piece)
    cut, more, _ = drill(tmp_path / "cut", uneven, piece, accumulate=4)
    assert (len(calls), len(more)) == (5, 15)  # the part without targets is left out
    for (name, weight), other in zip(whole.named_parameters(), cut.parameters(), strict=True):
        if piece == "gpt2" and name.endswith("qkv.bias"):  # the keys': softmax does not see it,
            weight, other = (b.unflatten(0, (3, -1))[::2] for b in (weight, other))  # so AdamW
        same(other, weight, 1e-6)  # follows what is left of rounding
    for a, b in zip(*(runs.read_metrics(tmp_path / name) for name in ("whole", "cut"))):
        assert a["tokens"] == b["tokens"]
        same(*(torch.tensor(x["train_loss"] or 0.0) for x in (a, b)), 1e-5)


# The average


def test_the_average_is_that_of_a_plain_loop(tmp_path):
    model, before, judged = drill(tmp_path / "run", uneven, average=0.9, steps=30, eval_every=30)
    after = [*before[1:], dict(model.named_parameters())]
    average = {name: weight.double() for name, weight in before[0].items()}
    for step, weights in enumerate(after):
        keep = min(0.9, (1 + step) / (10 + step))  # 1/10, 2/11, ...
        for name, weight in weights.items():
            average[name] = keep * average[name] + (1 - keep) * weight.detach().double()
    last = runs.load_checkpoint(tmp_path / "run" / "last.pt")
    assert last["average"].keys() == average.keys()
    for name, weight in average.items():
        same(last["average"][name].double(), weight, 1e-6)
        same(judged[-1][name], last["average"][name], 0)  # what is evaluated
        same(last["model"][name], after[-1][name].detach(), 0)  # what learns
        assert (last["model"][name] - weight).abs().max() > 1e-4


@pytest.mark.parametrize("flags", [
    "--model=gpt", "--model=gpt --tied", "--model=lstm", "--model=mlp --backend=numpy",
])
def test_the_averaged_weights_are_the_result(flags, words, folder, start):
    start(*flags.split(), "--width=8", f"--data={words}", "--lines", "--steps=8", "--lr=0.05",
          "--batch-size=8", "--eval-every=4", "--average=0.9", "--out=run")
    best = runs.load_checkpoint(Path("run/best.pt"))
    model, tokenizer = sample.load_run("run")
    for name, weight in model.named_parameters():
        same(weight.detach(), best["average"][name], 0)
        assert not torch.equal(best["model"][name], best["average"][name])
    groups = data.evaluation_batches(data.load(str(words), True), tokenizer, "val", 99)
    loss, _ = mean_loss(model, groups, choose("cpu"))
    said = {line["step"]: line["val_loss"] for line in runs.read_metrics(Path("run"))}
    assert best["progress"]["step"] > 0
    assert loss == pytest.approx(said[best["progress"]["step"]], abs=1e-6)


# Byte pairs


@pytest.mark.parametrize("kind", ["lines", "text", "documents"])
def test_byte_pairs_from_end_to_end(kind, flags_on, start, command):
    start(*flags_on(kind, "--vocab-size=300", "--tokenizer=bpe"), "--out=run")
    saved = runs.load_checkpoint(Path("run/best.pt"))
    config, result = (json.loads(Path("run", name).read_text("utf-8"))
                      for name in ("config.json", "result.json"))
    dataset = data.load(config["data"], config["lines"])
    learned = data.BytePairTokenizer.train(dataset.splits["train"], 300)
    assert saved["tokenizer"] == learned.to_dict() and 260 < learned.vocab_size <= 300
    model, tokenizer = sample.load_run("run")
    assert tokenizer.to_dict() == learned.to_dict()
    assert model.vocab_size == learned.vocab_size and config["vocab_size"] == 300

    code, said, _ = command(sample.main, "--run=run", "--prompt=la 🙂🦄", "--num=2", "--length=9")
    assert code == 0 and said.count("la 🙂🦄") == 2

    judged = "val" if result["test_loss"] is None else "test"
    groups = data.evaluation_batches(dataset, tokenizer, judged, config["block_size"])
    tokens = sum(int((batch[1] != IGNORED).sum()) for batch in groups)
    characters, _ = data.extent(dataset, tokenizer, judged, config["block_size"])
    bits = result[f"{judged}_loss"] * tokens / math.log(2) / characters
    assert result["bits_per_char"] == pytest.approx(bits)


def test_what_is_cut_is_counted_in_tokens(flags_on, folder, command):
    lines = ["🙂🙂🙂🙂", "a", "ab", *(f"{n} {n} {n}" for n in range(30))]
    Path("emoji.txt").write_text("\n".join(lines), "utf-8")
    flags = ["--model=gpt", "--layers=1", "--width=8", "--data=emoji.txt", "--lines", "--steps=1"]
    _, said, errors = command(train.main, *flags, "--vocab-size=260", "--block-size=10", "--out=a")
    assert "1 lines are cut" in said, errors  # 16 bytes, which are 16 tokens
    command(train.main, *flags, "--vocab-size=260", "--out=b")  # a whole line fits the default
    assert json.loads(Path("b/config.json").read_text("utf-8"))["block_size"] > 16


# A run repeated from its config.json


@pytest.fixture
def repeated(flags_on, start):
    """A run with many settings of its own."""
    start(*flags_on("text", "--no-qk-norm", "--kv-heads=1", "--vocab-size=280", "--average=0.5",
                    "--accumulate=2", "--schedule=wsd", "--checkpointing"), "--out=run")
    return "--config=run/config.json"


def test_a_config_repeats_the_run(repeated, start, flags_on):
    start(repeated, "--out=again")
    assert ended("again") == ended("run")
    start(repeated, "--qk-norm", "--average=0", "--arch=gpt2", "--no-bias", "--out=other")
    before, config = (json.loads(Path(name, "config.json").read_text("utf-8"))
                      for name in ("run", "other"))
    sizes = before["sizes"] | ARCHS["gpt2"] | {"qk_norm": True, "bias": False}
    assert config == before | {"average": 0.0, "sizes": sizes}
    said = [[line["val_loss"] for line in runs.read_metrics(Path(n))] for n in ("run", "other")]
    assert said[0] != said[1]


@pytest.mark.parametrize("flags", ["--tokenizer=char", "--model=lstm --width=8"])
def test_a_config_may_be_overridden_by_another_tokenizer_or_stage(flags, repeated, start):
    start(repeated, *flags.split(), "--out=other")
    assert json.loads(Path("other/result.json").read_text("utf-8"))["steps"] == 8


def test_a_recipe_and_a_config_are_one_too_many(repeated, refusal):
    assert "--recipe" in refusal(train.main, repeated, "--recipe=tales", "--out=other")
    assert not Path("other").exists()
