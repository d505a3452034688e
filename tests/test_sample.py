"""sample.py: one step a token, every sample for itself, and a command that says what it shows."""

import io
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import makemore
import nanogpt
import sample
from data import runs
from nanogpt import generate as loop
from nanogpt.gpt import ARCHS
from nanogpt.machine import cannot_compile

ROOT = Path(__file__).parents[1]
V, BLOCK = 13, 8
SIZES = dict(layers=2, heads=2, width=12, context=5, embed=6)
TOKENIZER = data.CharTokenizer("\nabcdef🙂👍")  # as many as V, with the special ones

each_stage = pytest.mark.parametrize("stage", makemore.STAGES)


def make(stage, vocab_size=V):
    """A small model with noise on every weight, so that what it saw before decides what follows."""
    torch.manual_seed(0)
    sizes = {name: SIZES[name] for name in makemore.sizes(stage) if name in SIZES}
    model = makemore.build(stage, vocab_size, BLOCK, **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return model.eval()


def one_by_one(drawn, num):
    """What was drawn for each sample."""
    tokens = [[] for _ in range(num)]
    for i, token in drawn:
        tokens[i].append(token)
    return tokens


def generate(model, prompts, length, **how):
    return one_by_one(sample.generate(model, prompts, length, **how), len(prompts))


def spy(model):
    """A list that gets the shape of the tokens at every call of the model."""
    shapes, forward = [], model.forward

    def noting(tokens, *args, **more):
        shapes.append(tuple(tokens.shape))
        return forward(tokens, *args, **more)

    model.forward = noting
    return shapes


def frequencies(logits, chances=20_000, **how):
    """How often each token is drawn, over chances that fill [0, 1) evenly."""
    chance = (torch.arange(chances, dtype=torch.float64) + 0.5) / chances
    how = dict(temperature=1.0, top_k=0, top_p=1.0) | how
    drawn = sample.draw(torch.tensor([logits] * chances), chance, **how)
    return (torch.bincount(drawn, minlength=len(logits)) / chances).tolist()


def logs(*shares):
    return [math.log(share) if share else -math.inf for share in shares]


# Drawing a token


SHARES = 0.5, 0.0, 0.3, 0.15, 0.05


@pytest.mark.parametrize(
    "how, expected",
    [
        (dict(), SHARES),
        (dict(temperature=0), (1, 0, 0, 0, 0)),
        (dict(temperature=0.5), tuple(x * x / 0.365 for x in SHARES)),
        (dict(temperature=1e-9), (1, 0, 0, 0, 0)),
        (dict(temperature=1e-310), (1, 0, 0, 0, 0)),  # as small as a number can be
        (dict(temperature=1e9), (0.25, 0, 0.25, 0.25, 0.25)),
        (dict(top_k=1), (1, 0, 0, 0, 0)),
        (dict(top_k=2), (0.625, 0, 0.375, 0, 0)),
        (dict(top_k=4), SHARES),
        (dict(top_k=5), SHARES),
        (dict(top_k=999), SHARES),  # more than there are
        (dict(top_p=1e-9), (1, 0, 0, 0, 0)),
        (dict(top_p=0.49), (1, 0, 0, 0, 0)),
        (dict(top_p=0.51), (0.625, 0, 0.375, 0, 0)),
        (dict(top_p=0.94), (0.5 / 0.95, 0, 0.3 / 0.95, 0.15 / 0.95, 0)),
        (dict(top_p=0.9999), SHARES),
        (dict(top_k=999, top_p=0.51), (0.625, 0, 0.375, 0, 0)),
        (dict(top_k=2, top_p=0.94), (0.625, 0, 0.375, 0, 0)),
        (dict(top_k=3, top_p=0.51), (0.625, 0, 0.375, 0, 0)),
    ],
)
def test_tokens_are_drawn_as_often_as_their_share(how, expected):
    found = frequencies(logs(*SHARES), **how)
    assert found == pytest.approx(expected, abs=1e-3)
    assert found[1] == 0


def test_what_settings_exclude_is_of_equal_tokens_the_later_one():
    # top_k must keep k tokens, however many are as likely as the kth
    assert frequencies(logs(0.25, 0.25, 0.25, 0.25), top_k=2) == pytest.approx([0.5, 0.5, 0, 0])


@pytest.mark.parametrize("chance", [0.0, 0.5, 1 - 2**-53])
@pytest.mark.parametrize("how", [dict(), dict(top_k=2), dict(top_p=0.99), dict(temperature=0.1)])
def test_a_token_without_a_chance_is_never_drawn(chance, how):
    how = dict(temperature=1.0, top_k=0, top_p=1.0) | how
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(2000, 7, generator=generator)
    logits[:, [0, 3, 6]] = -math.inf  # also where the sum begins and ends
    drawn = sample.draw(logits, torch.full((2000,), chance, dtype=torch.float64), **how)
    assert set(drawn.tolist()) <= {1, 2, 4, 5}


def test_a_sum_in_another_order_gives_no_token_without_a_chance():
    shares = torch.tensor([[0, 0.25, 0, 0.5, 0, 0.25, 0]], dtype=torch.float64)
    ulp = 2**-52
    sums = torch.tensor([[0, 0.25, 0.25 + ulp, 0.75, 0.75 - ulp, 1, 1 + ulp]], dtype=torch.float64)
    assert loop.growing(sums, shares).tolist() == [[-1, 0.25, 0.25, 0.75, 0.75, 1, 1]]


@pytest.mark.parametrize("how", [
    dict(top_k=1), dict(top_k=5), dict(top_k=90), dict(top_k=5000), dict(top_p=0.001),
    dict(top_p=0.5), dict(top_p=0.9999), dict(top_k=20, top_p=0.5), dict(top_k=3, top_p=0.9),
])
def test_a_large_vocabulary_is_drawn_from_as_a_small_one(how, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    for size in (0.01, 1, 5):
        logits = size * torch.randn(40, 300, generator=generator)
        logits[20:] = (2 * logits[20:]).round() / 2  # many are as likely as the last that is kept
        logits[:, ::7] = -math.inf
        chance = torch.rand(40, generator=generator, dtype=torch.float64)
        how = dict(temperature=0.9, top_k=0, top_p=1.0) | how
        expected = sample.draw(logits, chance, **how)
        monkeypatch.setattr(loop, "SHORT", 30)
        monkeypatch.setattr(loop, "LARGE", 10)  # so that only those are sorted that may be kept
        assert torch.equal(sample.draw(logits, chance, **how), expected)
        alone = [sample.draw(logits[[i]], chance[[i]], **how) for i in range(40)]
        assert torch.equal(torch.cat(alone), expected)
        monkeypatch.undo()


def test_every_row_is_drawn_by_itself():
    logits = torch.tensor([logs(0.5, 0.5), logs(0.1, 0.9), logs(1.0, 0.0)])
    chance = torch.tensor([0.6, 0.05, 0.99], dtype=torch.float64)
    assert sample.draw(logits, chance, 1.0, 0, 1.0).tolist() == [1, 0, 0]
    assert sample.draw(logits, chance, 0, 0, 1.0).tolist() == [0, 1, 0]


# Generating


@each_stage
def test_a_token_is_a_step_of_one_token(stage):
    model = make(stage)
    shapes = spy(model)
    generate(model, [[0, 5, 6], [0]], 30, stop=None)  # far past the block size
    assert shapes == [(2, 3)] + [(2, 1)] * 29


@each_stage
def test_samples_that_have_ended_cost_no_steps(stage):
    model = make(stage)
    shapes = spy(model)
    drawn = generate(model, [[0]] * 20, 60, stop=7, temperature=3.0)
    lengths = [len(tokens) for tokens in drawn]
    assert len(set(lengths)) > 3 and max(lengths) > 3
    assert all(7 not in tokens[:-1] for tokens in drawn)
    assert all(tokens[-1] == 7 or len(tokens) == 60 for tokens in drawn)
    going = [sum(length > step for length in lengths) for step in range(max(lengths))]
    assert shapes == [(20, 1)] + [(rows, 1) for rows in going[1:]]


@each_stage
def test_greedy_is_the_likeliest_after_the_whole_prefix(stage):
    model = make(stage)
    found = []
    for prompt in ([0], [0, 5, 6, 7], [11, 4], [9]):
        length = BLOCK - len(prompt) + 1
        tokens = list(prompt)
        with torch.no_grad():
            for _ in range(length):
                tokens.append(model(torch.tensor([tokens]))[0][0, -1].argmax().item())
        found.append(tokens[len(prompt):])
        for how in (dict(temperature=0), dict(top_k=1), dict(top_p=1e-9), dict(temperature=1e-6)):
            for seed in (0, 1):
                assert generate(model, [prompt], length, stop=None, seed=seed, **how) == found[-1:]
    assert len(set(sum(found, []))) > 1


@each_stage
def test_a_sample_does_not_depend_on_the_others(stage):
    model = make(stage)
    prompts = [[0], [0, 5, 6, 7], [0, 8], list(range(4, 13)), [0, 9, 9]]
    together = generate(model, prompts, 30, stop=6)
    assert len({len(tokens) for tokens in together}) > 1  # so that rows leave the batch
    for i, prompt in enumerate(prompts):
        others = [[0, 10]] * i + [prompt]
        assert generate(model, others, 30, stop=6)[i] == together[i]


@each_stage
def test_samples_differ_from_one_another(stage):
    drawn = generate(make(stage), [[0]] * 40, 6, stop=None)
    # also in the first token, which peers' samples shared
    assert len({tokens[0] for tokens in drawn}) > 2
    assert len(set(map(tuple, drawn))) > 30


def test_the_seed_decides_what_is_drawn():
    model = make("gru")
    drawn = [generate(model, [[0]] * 3, 12, stop=None, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1]
    assert all(a != b for a, b in zip(drawn[0], drawn[2]))
    # a sample of one seed is none of another's
    assert not set(map(tuple, drawn[0])) & set(map(tuple, drawn[2]))
    # and the state of PyTorch's own generator is neither used nor changed
    state = torch.get_rng_state()
    assert generate(model, [[0]] * 3, 12, stop=None, seed=0) == drawn[0]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_shorter_sample_is_the_beginning_of_a_longer_one():
    model = make("lstm")
    long, short = (generate(model, [[0]] * 3, n, stop=None) for n in (20, 7))
    assert short == [tokens[:7] for tokens in long]


@pytest.mark.parametrize("how", [dict(), dict(temperature=0), dict(top_k=2), dict(top_p=0.5)])
def test_tokens_that_never_come_never_come(how):
    model = make("rnn")
    with torch.no_grad():
        model.head.bias[:4] += 20  # they would come all the time
    drawn = generate(model, [[0]] * 30, 30, stop=None, never=(0, 1, 2, 3), **how)
    assert min(min(tokens) for tokens in drawn) > 3
    free = generate(model, [[0]] * 3, 30, stop=None, **how)
    assert max(max(tokens) for tokens in free) < 4


@each_stage
def test_a_prompt_longer_than_the_block_is_gone_on_from(stage):
    model = make(stage)
    prompt = [0] + [4 + i % 9 for i in range(3 * BLOCK)]
    drawn = generate(model, [prompt, [0]], 2 * BLOCK, stop=None)
    assert [len(tokens) for tokens in drawn] == [2 * BLOCK] * 2
    # as one that comes token by token
    with torch.no_grad():
        state = None
        for token in prompt:
            logits, state = model(torch.tensor([[token]]), state)
    likeliest = logits[0, -1].argmax().item()
    assert generate(model, [prompt], 1, stop=None, temperature=0) == [[likeliest]]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_the_mode_it_was_in(training):
    model = make("transformer").train(training)

    def modes():
        return {module.training for module in model.modules()}

    generate(model, [[0]] * 2, 5, stop=None)
    assert modes() == {training}
    drawn = sample.generate(model, [[0]] * 2, 5, stop=None)
    next(drawn)
    drawn.close()  # as where Ctrl-C ends the reading
    assert modes() == {training}
    with pytest.raises(IndexError):
        generate(model, [[V + 1]], 5)
    assert modes() == {training}
    forward, count = model.forward, iter(range(9))

    def failing(*args, **more):
        assert next(count) < 3, "in the middle"
        return forward(*args, **more)

    model.forward = failing
    with pytest.raises(AssertionError, match="in the middle"):
        generate(model, [[0]], 9, stop=None)
    assert modes() == {training}


def test_dropout_is_off_while_sampling():
    model = make("gru")
    model.dropout.p = 0.9
    drawn = generate(model, [[0]] * 3, 20, stop=None)
    assert generate(model.train(), [[0]] * 3, 20, stop=None) == drawn


def test_sampling_keeps_no_gradients_and_leaves_others_alone():
    model = make("gru")
    forward, tracked = model.forward, []

    def noting(*args, **more):
        tracked.append(torch.is_grad_enabled())
        return forward(*args, **more)

    model.forward = noting
    drawn = sample.generate(model, [[0]], 3, stop=None)
    next(drawn)
    model.loss(torch.tensor([[0, 5]]), torch.tensor([[5, 6]])).backward()  # in the middle of it
    assert model.embedding.weight.grad.abs().sum() > 0
    assert len(list(drawn)) == 2
    assert tracked == [False, True, False, False]


# GPT and its cache


PIECES = {
    "modern": dict(ARCHS["modern"], logit_cap=0.0),  # which is in float32
    "gpt2": ARCHS["gpt2"],
    "sinusoidal": dict(ARCHS["gpt2"], position="sinusoidal"),
    "kv_heads": dict(kv_heads=2, logit_cap=0.0),
    "window": dict(window=3, logit_cap=0.0),
    "score_cap": dict(score_cap=2.0, logit_cap=0.0),
    "conv": dict(conv=4, logit_cap=0.0),
    "conv and window": dict(conv=3, window=3, logit_cap=0.0),
    "several": dict(ARCHS["gpt2"], window=5, kv_heads=1, score_cap=2.0),
}
PROMPTS = [[0], [0, 5, 6, 7], [9, 8], [4 + i % 9 for i in range(BLOCK)],
           [4 + i * i % 9 for i in range(3 * BLOCK)]]  # one fills the block, one is longer

each_piece = pytest.mark.parametrize("piece", PIECES)


def make_gpt(piece="modern", block=BLOCK, **sizes):
    """A small GPT in float64 with noise on every weight."""
    torch.manual_seed(0)
    sizes = dict(layers=2, heads=4, width=16) | PIECES[piece] | sizes
    model = nanogpt.build("gpt", V, block, **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model.double().eval()


def begin(model, prompt):
    """What is read of a prompt: all, or where positions end, the last half block of a long one."""
    half = max(1, (model.limit or 0) // 2)
    return prompt[-half:] if model.limit and len(prompt) > model.limit else list(prompt)


def go_on(model, document, token):
    """A document with one token more; where positions end, what is left of it then."""
    document = document + [token]
    half = max(1, (model.limit or 0) // 2)
    return document[-half:] if model.limit and len(document) > model.limit else document


@torch.no_grad()
def by_definition(model, prompt, number, length, stop):
    """What generate must draw for one sample, every time from the whole document."""
    document, chances, drawn = begin(model, prompt), sample.uniforms_of(0, number, length), []
    while len(drawn) < length and stop not in drawn:
        logits = model(torch.tensor([document]))[0][:, -1].float()
        chance = torch.from_numpy(chances[[len(drawn)]])
        drawn += sample.draw(logits, chance, 1.0, 0, 1.0).tolist()
        document = go_on(model, document, drawn[-1])
    return drawn


@each_piece
@pytest.mark.parametrize("stop", [None, 7])
def test_what_is_drawn_is_drawn_by_definition(piece, stop):
    model = make_gpt(piece)
    expected = [by_definition(model, p, i, 4 * BLOCK, stop) for i, p in enumerate(PROMPTS)]
    drawn = generate(model, PROMPTS, 4 * BLOCK, stop=stop)
    assert drawn == expected
    assert len(set(sum(drawn, []))) > 3
    if stop:  # so that rows leave while others begin again
        assert len({len(tokens) for tokens in drawn}) > 2
    for i, prompt in enumerate(PROMPTS):  # and whatever the others are
        assert generate(model, [[0]] * i + [prompt], 4 * BLOCK, stop=stop)[i] == expected[i]


@pytest.mark.parametrize("block", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("piece", ["gpt2", "several", "modern"])
def test_any_block_will_do(piece, block):
    model = make_gpt(piece, block)
    assert model.limit == (None if piece == "modern" else block)
    for prompts in (PROMPTS, [[0], [5], [6]]):
        expected = [by_definition(model, p, i, 40, None) for i, p in enumerate(prompts)]
        assert generate(model, prompts, 40, stop=None) == expected


@each_piece
@pytest.mark.parametrize("chunk", [512, 3])
@torch.no_grad()
def test_the_logits_are_those_of_the_whole_document(piece, chunk, monkeypatch):
    monkeypatch.setattr(loop, "READ", chunk)  # of a prompt at a time
    model, length = make_gpt(piece), 5 * BLOCK
    reader = loop.Reader(model, PROMPTS, length)
    documents = [begin(model, prompt) for prompt in PROMPTS]
    for step, tokens in enumerate(torch.randint(4, V, (length, len(PROMPTS)))):
        for logits, document in zip(reader.logits, documents, strict=True):
            expected = model(torch.tensor([document]))[0][0, -1]
            assert (logits - expected).abs().max() < 1e-10
        if step in (2, 13, 14):  # a row leaves, and the others change places
            rows = list(range(len(documents)))[:0:-1]
            documents = [documents[row] for row in rows]
            reader.keep(rows)
        tokens = tokens[:len(documents)]
        documents = [go_on(model, d, t) for d, t in zip(documents, tokens.tolist())]
        reader.push(tokens)


@pytest.mark.parametrize("piece", ["modern", "sinusoidal", "window", "kv_heads"])
def test_the_cache_changes_nothing_that_is_drawn(piece, monkeypatch):
    model = make_gpt(piece)
    cached = generate(model, PROMPTS, 40, stop=5)
    monkeypatch.delattr(type(model), "preallocate")  # as the other stages
    assert generate(model, PROMPTS, 40, stop=5) == cached


@each_piece
def test_a_token_of_gpt_is_a_step_of_one_token_in_bounded_memory(piece):
    model = make_gpt(piece)
    shapes, rooms, step = spy(model), [], model.next_view

    def noting(positions, cache):
        rooms.append(cache.room)
        return step(positions, cache)

    model.next_view = noting
    length = 10 * BLOCK
    generate(model, [[0, 5, 6], [0]], length, stop=None)
    assert set(rooms) == {model.reach} and len(rooms) == length - 1
    assert shapes[:2] == [(2, 3), (2, 1)] and shapes.count((2, 1)) == length - 1
    again = [shape for shape in shapes[1:] if shape != (2, 1)]
    # learned positions: each row reads three tokens, and the one that comes, every four
    assert set(again) == ({(1, 3)} if model.limit else set())
    rooms.clear()
    generate(model, [[0, 5]], 3, stop=None)
    assert set(rooms) <= {1 + 3, model.reach}  # no more than will be needed


def test_gpt_of_one_length_needs_no_masks():
    model = make_gpt("gpt2")
    plain, step = [], model.next_view

    def noting(positions, cache):
        view = step(positions, cache)
        plain.append(view.attend.keywords["mask"] is None)
        return view

    model.next_view = noting
    generate(model, [[0, 5], [0, 6]], 5 * BLOCK, stop=None)  # they begin again together
    assert all(plain)


@pytest.fixture
def compilations(monkeypatch):
    """Lets torch.compile trace, and run what it traced as it is; a list with an entry for each."""
    made, compile = [], torch.compile

    def backend(graph, inputs):
        made.append(graph)
        return graph

    def tracing(function, *, options, **more):
        return compile(function, backend=backend, **more)

    monkeypatch.setattr(torch, "compile", tracing)
    yield made
    torch._dynamo.reset()


@pytest.mark.parametrize("piece", ["modern", "gpt2", "several"])
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[1:2]], ids=["batch", "one"])
def test_a_compiled_step_draws_the_same_and_is_compiled_once(piece, prompts, compilations):
    model = make_gpt(piece)
    expected = generate(model, prompts, 4 * BLOCK, stop=7)
    step = loop.compile_step(model)
    assert generate(model, prompts, 4 * BLOCK, stop=7, step=step) == expected
    assert generate(model, prompts, 4 * BLOCK, stop=7, step=step, seed=1) != expected
    assert len(compilations) == 1


def test_a_compiled_step_goes_on_in_its_rings_when_samples_end(monkeypatch):
    model = make_gpt("modern")
    expected, rings, rooms = generate(model, PROMPTS, 40, stop=5), [], []

    def step(tokens, cache):
        rings.append([ring.data_ptr() for memory in cache.memories for ring in memory])
        rooms.append(len(cache.position))
        return model(tokens, cache)

    assert generate(model, PROMPTS, 40, stop=5, step=step) == expected
    assert len({len(tokens) for tokens in expected}) > 1  # some end before others
    assert all(places == rings[0] for places in rings) and set(rooms) == {len(PROMPTS)}


@torch.inference_mode()
def test_the_sums_of_one_token_are_its_products():
    generator = torch.Generator().manual_seed(0)

    def random(*shape, dtype=torch.float64):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    linear, attention = loop.F.linear, loop.F.scaled_dot_product_attention
    for dtype, close in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        x, weight, bias = (random(*shape, dtype=dtype) for shape in ((1, 1, 9), (5, 9), (5,)))
        q, k, v = (random(3, 4, n, 6, dtype=dtype) for n in (1, 7, 7))
        mask = torch.arange(7) < torch.tensor([1, 7, 4])[:, None, None, None]
        for function, *given in (
            (linear, x, weight), (linear, x, weight, bias), (attention, q, k, v, mask),
            (linear, random(2, 1, 9, dtype=dtype), weight),  # as it is
        ):
            expected = function(*given)
            with loop.OneToken():
                found = function(*given)
            assert found.dtype == dtype and found.shape == expected.shape
            assert (found - expected).abs().max() < close


def test_a_step_compiled_to_the_end_draws_the_same():
    if why := cannot_compile("cpu"):
        pytest.skip(why)
    model = make_gpt("gpt2", layers=1).float()
    expected = generate(model, [[0, 5]], 3 * BLOCK, stop=None)
    step = loop.compile_step(model)
    assert generate(model, [[0, 5]], 3 * BLOCK, stop=None, step=step) == expected


# Texts


HOW = dict(temperature=1.0, top_k=0, top_p=1.0, seed=0)


def test_a_text_begins_with_its_prompt():
    texts = sample.texts(make("lstm"), TOKENIZER, "ab🙂", 5, 12, True, **HOW)
    assert len(texts) == 5 and all(text.startswith("ab🙂") for text in texts)
    assert len(set(texts)) > 1
    assert all(len(text) <= 3 + 12 for text in texts)


def test_no_special_token_is_shown():
    model = make("lstm")
    with torch.no_grad():
        model.head.bias[1:4] += 20
    texts = sample.texts(model, TOKENIZER, "", 5, 12, True, **HOW)
    assert set("".join(texts)) <= set(TOKENIZER.characters)
    assert max(map(len, texts)) > 2


def test_ids_of_a_padded_vocabulary_are_no_obstacle():
    model = make("lstm", vocab_size=V + 5)
    with torch.no_grad():
        model.head.bias[V:] += 5
    texts = sample.texts(model, TOKENIZER, "", 5, 40, True, **HOW)
    assert len(texts) == 5 and set("".join(texts)) <= set(TOKENIZER.characters)


def test_pieces_come_in_order_and_whole():
    model = make("gru")
    pieces = list(sample.stream(model, TOKENIZER, "a", 6, 30, True, **HOW))
    numbers = [number for number, _ in pieces]
    assert numbers == sorted(numbers) and set(numbers) == set(range(6))
    for number in range(6):
        own = [piece for i, piece in pieces if i == number]
        assert own[-1] is None and None not in own[:-1]
    joined = ["".join(piece for i, piece in pieces if i == n and piece) for n in range(6)]
    assert joined == sample.texts(model, TOKENIZER, "a", 6, 30, True, **HOW)


def test_pieces_come_as_they_are_drawn():
    model = make("gru")
    shapes = spy(model)
    pieces = sample.stream(model, TOKENIZER, "a", 2, 30, False, **HOW)
    next(pieces)
    assert len(shapes) == 1  # the prompt has been read, and no more


def test_emoji_come_whole():
    model = make("gru")
    with torch.no_grad():
        model.head.bias[-2:] += 3
    pieces = [p for _, p in sample.stream(model, TOKENIZER, "", 2, 30, False, **HOW) if p]
    assert "🙂" in "".join(pieces) and "👍" in "".join(pieces)
    for piece in pieces:
        piece.encode("utf-8")  # half of one would not go


def test_a_document_begins_with_its_token_and_a_text_on_a_new_line():
    ids = TOKENIZER.encode
    assert sample.starts("", TOKENIZER, True) == [data.END]
    assert sample.starts("ab", TOKENIZER, True) == [data.END] + ids("ab")
    assert sample.starts("", TOKENIZER, False) == ids("\n")
    assert sample.starts("ab", TOKENIZER, False) == ids("ab")
    assert sample.starts("", data.CharTokenizer("xyz"), False) == [4]


def test_a_text_without_documents_has_no_end_to_draw():
    # the model has never seen the token END, so what it thinks of it means nothing
    model = make("gru")
    with torch.no_grad():
        model.head.bias[data.END] += 5
    (text,) = sample.texts(model, TOKENIZER, "", 1, 100, False, **HOW)
    assert len(text) == 100


def test_tokens_that_no_text_holds_are_not_drawn(monkeypatch):
    # as GPT-2's own <|endoftext|>, which END stands for here
    model, often = make("gru"), TOKENIZER.encode("a")[0]
    with torch.no_grad():
        model.head.bias[often] += 9
    (text,) = sample.texts(model, TOKENIZER, "", 1, 30, True, **HOW)
    assert text.count("a") > 20
    monkeypatch.setattr(data.CharTokenizer, "silent", (*TOKENIZER.silent, often))
    (text,) = sample.texts(model, TOKENIZER, "", 1, 30, True, **HOW)
    assert "a" not in text


def test_an_unseen_character_of_a_prompt_is_named():
    with pytest.raises(ValueError, match="'q'.*'ž'"):
        sample.texts(make("gru"), TOKENIZER, "aqbž", 1, 5, True, **HOW)


def pieces_of(text, *stops):
    """What a Writer passes on of each character of a text, and at the end."""
    writer = sample.Writer(TOKENIZER, stops)
    return [writer.push(token) for token in TOKENIZER.encode(text)] + [writer.flush()]


@pytest.mark.parametrize(
    "text, stops, pieces",
    [
        ("abc", [], ["a", "b", "c", ""]),
        ("abc", ["b"], ["a", "", "", ""]),
        ("abcab", ["cab"], ["a", "b", "", "", "", ""]),
        ("aabc", ["ab"], ["", "a", "", "", ""]),
        ("abab", ["abc"], ["", "", "ab", "", "ab"]),  # it never came
        ("aaaab", ["aab"], ["", "", "a", "a", "", ""]),
        ("abcdef", ["cde", "bcdef"], ["a", "", "", "", "b", "", ""]),
        ("abcdef", ["cdf", "d"], ["a", "b", "", "c", "", "", ""]),
        ("a🙂👍b", ["🙂👍"], ["a", "", "", "", ""]),
        ("a🙂b", ["🙂👍"], ["a", "", "🙂b", ""]),
    ],
)
def test_a_text_ends_where_a_stop_string_would_stand(text, stops, pieces):
    assert pieces_of(text, *stops) == pieces


@pytest.mark.parametrize("stop", ["the mat", "t", " mat. 🙂", "🙂", "never", ".\nThe"])
def test_stop_strings_end_texts_of_byte_pairs(stop):
    text = "the cat sat on the mat. 🙂 And so 👍🏽.\nThe end"
    for size in (260, 300):
        tokenizer = data.BytePairTokenizer.train([50 * "the cat sat on the mat. "], size)
        writer, pieces = sample.Writer(tokenizer, [stop]), []
        for token in tokenizer.encode(text):
            pieces.append(writer.push(token))
            shown = "".join(pieces)
            assert text.startswith(shown) and stop not in shown  # no half of an emoji
        assert writer.stopped == (stop in text)
        assert "".join(pieces) + writer.flush() == text.partition(stop)[0]


def test_a_character_that_never_becomes_whole_is_no_obstacle():
    tokenizer = data.BytePairTokenizer([])
    writer = sample.Writer(tokenizer, ["b"])
    tokens = tokenizer.encode("a🙂")
    assert [writer.push(token) for token in tokens[:-1]] == ["a", "", "", ""]
    assert writer.flush() == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("stops", [["a"], ["bc", "ff"], ["dc🙂"], ["e", "never"]])
def test_samples_that_have_met_a_stop_string_cost_no_steps(stops):
    model, counts = make("gru"), []
    whole = sample.texts(model, TOKENIZER, "a", 8, 60, False, **HOW)
    shapes = spy(model)
    texts = sample.texts(model, TOKENIZER, "a", 8, 60, False, stops, counts, **HOW)
    firsts = [min([60, *(t.find(s, 1) - 1 + len(s) for s in stops if s in t[1:])]) for t in whole]
    assert counts == firsts  # tokens, which are characters here
    for text, long in zip(texts, whole):
        ends = [long.find(stop, 1) for stop in stops if stop in long[1:]]
        assert text == long[:min(ends, default=len(long))]
    going = [sum(count > step for count in counts) for step in range(max(counts))]
    assert shapes == [(8, 1)] + [(rows, 1) for rows in going[1:]]


def test_the_report_marks_what_is_known():
    report = sample.report(["anna", "otto", "anna", ""], {"anna", "emil"}).splitlines()
    assert [line.startswith(name) for line, name in zip(report, ["anna", "otto", "anna"])]
    assert ["training set" in line for line in report[:4]] == [True, False, True, False]
    assert report[4] == sample.summary(["anna", "otto", "anna", ""], {"anna"})
    assert re.findall(r"(\d+) .*?\((\d+)%\)", report[4]) == [("2", "50"), ("2", "50")]
    assert sample.report(["a text\n", "another"], None) == "a text\n\nanother\n"


# Runs


@pytest.mark.parametrize("kind", ["folder", "best.pt", "last.pt"])
def test_a_run_is_loaded_ready_to_use(kind, lines_run):
    path = lines_run if kind == "folder" else lines_run / kind
    for given in (path, str(path)):
        model, tokenizer = sample.load_run(given)
        assert not model.training
        checkpoint = runs.load_checkpoint(path)
        weights = model.state_dict()
        assert all(torch.equal(weights[k], v) for k, v in checkpoint["model"].items())
        assert tokenizer.decode(tokenizer.encode("kanas")) == "kanas"


def test_the_samples_of_a_run_are_those_of_its_best(lines_run):
    model, tokenizer = sample.load_run(lines_run)
    texts = sample.texts(model, tokenizer, "", 20, 14, True)
    lines = (lines_run / "samples.txt").read_text("utf-8").splitlines()
    assert [line.removesuffix(sample.KNOWN) for line in lines[:-1]] == texts


@pytest.fixture
def home(lines_run, text_run, monkeypatch, tmp_path):
    """A working folder with a copy of both runs in runs/."""
    for run in (lines_run, text_run):
        shutil.copytree(run, tmp_path / "runs" / run.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_takes_the_newest_run_of_a_stage(home, command):
    shutil.copytree("runs/lstm-words", "runs/a-newer-one")
    for path in Path("runs/lstm-words").glob("*.pt"):
        os.utime(path, (1000, 1000))
    code, out, said = command(sample.main, "--model=lstm", "--num=3")
    assert code == 0 and "runs/a-newer-one" in said and "Traceback" not in said
    assert len(out.splitlines()) == 4
    _, _, said = command(sample.main)  # a transformer, if none is named
    assert "runs/transformer-passage" in said


def test_the_command_takes_a_folder_or_a_checkpoint(home, command):
    told = [
        command(sample.main, f"--run=runs/lstm-words{path}", "--num=4", "--seed=3")
        for path in ("", "/best.pt")
    ]
    assert told[0][0] == told[1][0] == 0
    assert told[0][1] == told[1][1]  # the best is what a folder means
    assert command(sample.main, "--run=runs/lstm-words/last.pt")[0] == 0


def test_the_loss_that_is_shown_is_that_of_the_checkpoint(home, command):
    run = Path("runs/lstm-words")
    last = runs.load_checkpoint(run / "last.pt")
    last["progress"] |= {"best_loss": 1.2345, "best_step": last["progress"]["step"] - 5}
    runs.save_checkpoint(run / "last.pt", last)
    _, _, said = command(sample.main, f"--run={run}/last.pt", "--num=1")
    # that of the best would flatter it
    assert "val loss 1.2345" not in said


def test_the_command_shows_what_the_functions_give(home, command):
    model, tokenizer = sample.load_run("runs/lstm-words")
    how = dict(temperature=0.8, top_k=5, top_p=0.9, seed=7)
    texts = sample.texts(model, tokenizer, "ka", 6, 10, True, **how)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in how.items()]
    _, out, _ = command(
        sample.main, "--model=lstm", "--prompt=ka", "--num=6", "--length=10", *flags
    )
    assert [line.removesuffix(sample.KNOWN) for line in out.splitlines()[:-1]] == texts
    _, again, _ = command(
        sample.main, "--model=lstm", "--prompt=ka", "--num=6", "--length=10", *flags, "--seed=8"
    )
    assert again != out


def test_the_command_marks_lines_of_the_training_set(start, small, monkeypatch, command, tmp_path):
    monkeypatch.chdir(tmp_path)
    letters = "abcdefghijklmnopqrstuvwxyz"
    Path("letters.txt").write_text("\n".join(letters), "utf-8")
    flags = ["--data=letters.txt", "--lines", "--steps=30", "--batch-size=20", "--lr=0.1"]
    start(*small("bigram"), *flags)
    known = set(data.load("letters.txt", lines=True).splits["train"])
    assert known < set(letters)  # a letter that is only validated on is new
    _, out, _ = command(sample.main, "--model=bigram", "--num=200")
    *lines, last = out.splitlines()
    marked = [line.endswith(sample.KNOWN) for line in lines]
    texts = [line.removesuffix(sample.KNOWN) for line in lines]
    assert marked == [text in known for text in texts]
    assert any(marked) and not all(marked)
    counts = re.findall(r"(\d+) of 200 .* (\d+) \(", last)
    assert counts == [(str(200 - sum(marked)), str(sum(marked)))]
    # the same, where the data has gone: no marks, but samples
    Path("letters.txt").unlink()
    code, out, _ = command(sample.main, "--model=bigram", "--num=2")
    assert code == 0 and "training set" not in out


def test_marks_are_not_made_by_data_that_has_changed(
    start, small, monkeypatch, command, tmp_path
):
    monkeypatch.chdir(tmp_path)
    Path("mine.txt").write_text("\n".join("abcdefgh"), "utf-8")
    start(*small("bigram"), "--data=mine.txt", "--lines", "--steps=30", "--lr=0.1")
    Path("mine.txt").write_text("\n".join("stuvwxyz"), "utf-8")
    _, out, _ = command(sample.main, "--model=bigram", "--num=50")
    assert " 0 (0%) stand" not in out  # it is not known any more


def test_a_text_is_shown_with_its_prompt(home, command):
    model, tokenizer = sample.load_run("runs/transformer-passage")
    texts = sample.texts(model, tokenizer, "the 🙂", 2, 40, False)
    _, out, _ = command(sample.main, "--prompt=the 🙂", "--num=2", "--length=40")
    shown = re.split(r"\n-+\n", out)
    assert [text.rstrip("\n") for text in shown] == [text.rstrip("\n") for text in texts]
    assert all(text.startswith("the 🙂") for text in shown)


def test_without_a_run_the_command_says_how_to_train_one(refusal, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "python train.py --model=gru" in refusal(sample.main, "--model=gru")
    assert "python train.py --model=transformer" in refusal(sample.main)
    assert "nowhere" in refusal(sample.main, "--run=nowhere")


def test_a_stage_that_there_is_not_is_refused_with_the_nearest(home, refusal):
    assert "Did you mean lstm?" in refusal(sample.main, "--model=lstn")


def test_a_damaged_best_offers_the_last(home, refusal, command):
    best = Path("runs/lstm-words/best.pt")
    best.write_bytes(best.read_bytes()[:500])
    said = refusal(sample.main, "--model=lstm")
    (offered,) = re.findall(r"\S*last\.pt", said)
    assert command(sample.main, f"--run={offered}", "--num=2")[0] == 0


@pytest.mark.parametrize(
    "flag", ["--num=0", "--num=-1", "--num=many", "--length=0", "--length=-5", "--temperature=-1",
             "--temperature=nan", "--temperature=inf", "--top-p=0", "--top-p=1.5", "--top-p=nan",
             "--top-k=-1", "--seed=-1"]
)
def test_what_cannot_work_is_refused(flag, home, refusal):
    assert flag.partition("=")[0] in refusal(sample.main, "--model=lstm", flag)


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--temprature=1"], "Did you mean --temperature?"),
        (["--run=runs/lstm-words", "--model=lstm"], "--model"),
        (["--device=gpu"], "cpu"),
        (["--stop="], "--stop"),
        (["--dtype=bfloat16"], "--dtype"),
        (["--dtype=float8"], "float16"),
    ],
)
def test_what_cannot_be_meant_is_refused(flags, said, home, refusal):
    assert said in refusal(sample.main, *flags)


def test_an_unseen_character_ends_the_command_in_a_sentence(home, command):
    code, _, said = command(sample.main, "--model=lstm", "--prompt=kaž")
    assert code == 2 and "Traceback" not in said
    assert said.splitlines()[-1].startswith("error: ") and "'ž'" in said


def test_a_terminal_without_the_characters_is_no_obstacle(home, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["sample.py", "--prompt=the 🙂", "--device=cpu"])
    with pytest.raises(SystemExit) as left:
        sample.cli.run(sample.main)
    assert left.value.code == 0
    assert raw.getvalue().startswith(b"the ")


def test_the_command_as_it_is_run(home):
    flags = ["--model=transformer", "--prompt=🙂", "--length=30", "--seed=4", "--device=cpu"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, ROOT / "sample.py", *flags], env=env, capture_output=True
    )
    assert done.returncode == 0
    model, tokenizer = sample.load_run("runs/transformer-passage")
    (text,) = sample.texts(model, tokenizer, "🙂", 1, 30, False, seed=4)
    assert done.stdout.decode("utf-8").rstrip() == text.rstrip()
    said = done.stderr.decode("utf-8")
    assert "runs/transformer-passage" in said and said.count("\n") == 2
    assert re.search(r"\n30 tokens in \d+\.\d\d seconds: [\d,]+ tokens/s\n$", said)


def test_the_command_ends_texts_where_it_is_told(home, command):
    flags = ["--prompt=the", "--length=60", "--num=3"]
    _, whole, _ = command(sample.main, *flags)
    code, out, said = command(sample.main, *flags, "--stop=e", "--stop=a")
    assert code == 0
    texts, ends = (re.split(r"\n-+\n", told) for told in (whole, out))
    for text, end in zip(texts, ends, strict=True):
        assert end.rstrip("\n") == re.split("e|a", text[3:].rstrip("\n"))[0].join(["the", ""])
    drawn = re.search(r"([\d,]+) tokens in", said)[1]
    assert int(drawn) == sum(min(60, len(end.rstrip("\n")) - 3 + 1) for end in ends)


def test_what_compiling_cannot_help_is_not_compiled(home, command):
    _, expected, _ = command(sample.main, "--model=lstm", "--num=2")
    code, out, said = command(sample.main, "--model=lstm", "--num=2", "--compile")
    assert code == 0 and out == expected
    assert "note: --compile" in said and "lstm" in said


@pytest.fixture(scope="session")
def gpt_run(start, passage, tmp_path_factory):
    """The folder of a finished run of gpt on byte pairs. Not to be written to."""
    run = tmp_path_factory.mktemp("runs") / "gpt-passage"
    flags = ["--model=gpt", "--arch=gpt2", "--layers=1", "--heads=2", "--width=8", "--steps=4",
             "--batch-size=4", "--eval-every=4", "--block-size=16", "--tokenizer=bpe",
             "--vocab-size=300"]
    start(*flags, f"--data={passage}", f"--out={run}")
    return run


def test_a_run_of_gpt_is_sampled_past_its_block(gpt_run, command):
    flags = [f"--run={gpt_run}", "--length=70", "--prompt=" + 9 * "the mat 🙂 "]
    code, out, said = command(sample.main, *flags)
    assert code == 0 and "\n70 tokens in" in said
    assert out.startswith(9 * "the mat 🙂 ") and len(out) > 100
    assert command(sample.main, *flags)[1] == out
    assert command(sample.main, *flags, "--seed=1")[1] != out


def test_the_time_to_compile_is_told_apart(gpt_run, command, compilations, monkeypatch):
    monkeypatch.setattr("nanogpt.machine.cannot_compile", lambda device: "")
    flags = [f"--run={gpt_run}", "--length=40"]
    _, expected, _ = command(sample.main, *flags)
    code, out, said = command(sample.main, *flags, "--compile")
    assert code == 0 and out == expected and len(compilations) == 1
    assert re.search(r"\ncompiled in [\d.]+ seconds\n40 tokens in [\d.]+ seconds: ", said)


def test_where_compiling_fails_the_command_goes_on(gpt_run, command, monkeypatch):
    flags = [f"--run={gpt_run}", "--length=9"]
    _, expected, _ = command(sample.main, *flags)

    def failing(*args, **options):
        raise RuntimeError("no compiler is like another\nat all")

    monkeypatch.setattr(torch, "compile", failing)
    code, out, said = command(sample.main, *flags, "--compile")
    assert code == 0 and out == expected  # which the trial found out
    assert "Not compiled: " in said and "no compiler is like another" in said
    monkeypatch.setattr("nanogpt.machine.cannot_compile", lambda device: "")
    code, out, said = command(sample.main, *flags, "--compile")
    assert code == 0 and out == expected  # or the warm-up
    assert "Not compiled: no compiler is like another; going on without." in said


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_may_be_of_half_the_size(dtype, gpt_run, command, monkeypatch):
    code, out, _ = command(sample.main, f"--run={gpt_run}", "--length=40", f"--dtype={dtype}")
    assert code == 0 and len(out) > 40
    model = make_gpt("modern").float()
    args = sample.make_parser().parse_args([f"--dtype={dtype}", "--device=cpu"])
    sample.place(model, {"model": "gpt"}, args)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    assert model.speeds.dtype == torch.float32  # far positions would be blurred
    assert len(generate(model, PROMPTS, 30, stop=None)[-1]) == 30


def test_chances_are_those_of_their_seed_and_sample():
    chances = [sample.uniforms_of(seed, i, 50) for seed in range(3) for i in range(3)]
    assert len(np.unique(chances)) == 9 * 50
    assert 0 <= np.min(chances) and np.max(chances) < 1
    assert np.array_equal(sample.uniforms_of(1, 2, 9), sample.uniforms_of(1, 2, 50)[:9])
