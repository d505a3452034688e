"""makemore/: the contract of model.py, once for every stage, and the stages against other code."""

import io
import math
from collections import Counter
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import data
from makemore import STAGES, build, sizes, stage_class
from makemore.cnn import CNN
from makemore.mlp import MLP
from makemore.model import IGNORED
from makemore.transformer import Attention, mask_of, rotary_frequencies
from nanogpt.optim import make_optimizers
from sample import pack_prompts

V, BLOCK = 11, 8
SMALL = dict(layers=2, heads=2, width=12, context=5, embed=6)
RECURRENT = ("rnn", "lstm", "gru")
REACH = {"bigram": 1, "mlp": SMALL["context"], "cnn": 2 ** SMALL["layers"]}  # tokens seen

each_stage = pytest.mark.parametrize("stage", STAGES)
each_recurrent = pytest.mark.parametrize("stage", RECURRENT)


def small(stage, **given):
    """The sizes of SMALL that a stage has, and those given."""
    return {name: SMALL[name] for name in sizes(stage) if name in SMALL} | given


def shaken(module):
    """The module with noise on every weight: those that begin as zeros would hide mistakes."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return module


def make(stage, vocab_size=V, block_size=BLOCK, **given):
    """A small shaken model, in float64, so that only a mistake is larger than 1e-10."""
    torch.manual_seed(0)
    return shaken(build(stage, vocab_size, block_size, **small(stage, **given))).double().eval()


def draw(*shape, vocab_size=V, seed=0):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def same(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def same_state(a, b):
    """The states agree in everything that the next tokens depend on."""
    assert torch.equal(a.position, b.position) and torch.equal(a.segment, b.segment)
    assert len(a.memories) == len(b.memories)
    for mine, others in zip(a.memories, b.memories, strict=True):
        for x, y in zip(mine, others, strict=True):
            same(x, y)


def in_pieces(model, tokens, cuts, segments=None, state=None):
    """The logits of tokens cut before each of cuts, with the state carried, and the last state."""
    logits = []
    parts = tokens.tensor_split(cuts, 1)
    labels = [None] * len(parts) if segments is None else segments.tensor_split(cuts, 1)
    for part, label in zip(parts, labels, strict=True):
        part_logits, state = model(part, state, label)
        logits.append(part_logits)
    return torch.cat(logits, 1), state


def one_by_one(tokens):
    """Where to cut tokens (B, T) for pieces of one token."""
    return list(range(1, tokens.shape[1]))


# The contract


def test_the_ladder():
    assert list(STAGES) == ["bigram", "mlp", "cnn", "rnn", "lstm", "gru", "transformer"]


@each_stage
def test_shapes(stage):
    model = make(stage)
    logits, state = model(draw(3, 4))
    features, _ = model.features(draw(3, 4))
    assert logits.shape == (3, 4, V)
    assert state.position.tolist() == [4, 4, 4]
    assert all(len(memory) == 3 for layer in state.memories for memory in layer)
    same(model.head(features), logits, 0)


@each_stage
def test_logits_ignore_later_tokens(stage):
    model, tokens = make(stage), draw(2, BLOCK)
    logits, _ = model(tokens)
    for t in range(BLOCK):
        changed = tokens.clone()
        changed[:, t + 1 :] = (changed[:, t + 1 :] + 1 + draw(2, BLOCK - t - 1) % (V - 1)) % V
        same(model(changed)[0][:, : t + 1], logits[:, : t + 1], 1e-12)


@each_stage
def test_what_a_position_knows(stage):
    # One layer of attention, since what a layer forgets reaches the next through those between.
    model = make(stage, **({"layers": 1} if stage == "transformer" else {}))
    tokens = draw(1, 2 * BLOCK)
    last = model(tokens)[0][0, -1]
    known = set()
    for age in range(2 * BLOCK):
        changed = tokens.clone()
        changed[0, -1 - age] = (changed[0, -1 - age] + 1) % V
        if (model(changed)[0][0, -1] - last).abs().max() > 1e-9:
            known.add(age)
    reach = 2 * BLOCK if stage in RECURRENT else REACH.get(stage, BLOCK)
    assert known == set(range(reach))


@each_stage
def test_a_sequence_may_be_split_anywhere(stage):
    model, tokens = make(stage), draw(2, BLOCK)
    logits, state = model(tokens)
    for cuts in [*([cut] for cut in range(1, BLOCK)), one_by_one(tokens), [3, 4]]:
        pieces, last = in_pieces(model, tokens, cuts)
        same(pieces, logits)
        same_state(last, state)


@each_stage
@pytest.mark.parametrize("steps", [1, BLOCK])
@torch.no_grad()
def test_forward_leaves_its_state_as_it_was(stage, steps):
    model = make(stage)
    for state in (model(draw(2, BLOCK))[1], model(draw(2, 1))[1]):
        before = deepcopy(state)
        first, _ = model(draw(2, steps, seed=1), state)
        again, _ = model(draw(2, steps, seed=1), state, torch.ones(2, steps, dtype=torch.int64))
        same_state(state, before)
        assert (first - again).abs().max() > 1e-3 or stage == "bigram"  # another document
        same(model(draw(2, steps, seed=1), state)[0], first, 0)


PROMPTS = [[1, 2, 3, 4, 5], [6], [7, 8, 9, 1, 2, 3, 4], [5, 5]]


@each_stage
def test_prompts_of_different_lengths_go_on_as_each_alone(stage):
    model = make(stage)
    tokens, segments = pack_prompts(PROMPTS)
    logits, state = model(tokens, segments=segments)
    assert state.position.tolist() == [len(prompt) for prompt in PROMPTS]
    more = draw(len(PROMPTS), 2 * BLOCK)  # past the block size
    further, _ = in_pieces(model, more, one_by_one(more), state=state)
    for row, prompt in enumerate(PROMPTS):
        alone, _ = model(torch.cat([torch.tensor(prompt), more[row]])[None])
        same(logits[row, -len(prompt) :], alone[0, : len(prompt)])
        same(further[row], alone[0, len(prompt) :])


@each_stage
@torch.no_grad()
def test_rows_of_a_state_are_selected_reordered_and_repeated(stage):
    model = make(stage)
    tokens, segments = pack_prompts(PROMPTS)
    _, state = model(tokens, segments=segments)
    before = deepcopy(state)
    rows = [2, 0, 0, 3, 2]
    more = draw(len(rows), 5)
    chosen = state.rows(torch.tensor(rows))
    logits, _ = model(more, chosen)
    for i, row in enumerate(rows):
        alone, _ = model(torch.cat([torch.tensor(PROMPTS[row]), more[i]])[None])
        same(logits[i], alone[0, len(PROMPTS[row]) :])
    same_state(state, before)


# Two rows whose documents begin and end at different places; their labels in no order, and one
# document longer than the block.
DOCUMENTS = [[3, 5, 4], [1, 10, 1]]
LABELS = [[4, 0, 7], [2, 9, 1]]


def packed():
    rows = [torch.tensor(labels).repeat_interleave(torch.tensor(lengths))
            for labels, lengths in zip(LABELS, DOCUMENTS, strict=True)]
    return draw(2, 12), torch.stack(rows)


@each_stage
def test_packed_documents_give_the_logits_of_each_alone(stage):
    model = make(stage)
    tokens, segments = packed()
    logits, state = model(tokens, segments=segments)
    assert state.position.tolist() == [lengths[-1] for lengths in DOCUMENTS]
    for row, lengths in enumerate(DOCUMENTS):
        documents = tokens[row].split(lengths)
        same(logits[row], torch.cat([model(document[None])[0][0] for document in documents]))


@each_stage
def test_a_packed_row_may_be_split_anywhere(stage):
    model = make(stage)
    tokens, segments = packed()
    logits, state = model(tokens, segments=segments)
    for cuts in [*([cut] for cut in range(1, 12)), one_by_one(tokens), [3, 8]]:
        pieces, last = in_pieces(model, tokens, cuts, segments)
        same(pieces, logits)
        same_state(last, state)


@each_stage
def test_beyond_the_block_size(stage):
    model, tokens = make(stage), draw(2, 3 * BLOCK)
    logits, state = model(tokens)
    for cuts in (one_by_one(tokens), [5, 6, 17], [BLOCK, 2 * BLOCK]):
        pieces, last = in_pieces(model, tokens, cuts)
        same(pieces, logits)
        same_state(last, state)


@each_stage
def test_the_state_stops_growing(stage):
    model = make(stage)
    counts = []
    for tokens in (draw(2, 2 * BLOCK), draw(2, 3 * BLOCK)):
        for cuts in ([], one_by_one(tokens)):
            _, state = in_pieces(model, tokens, cuts)
            counts.append([memory.numel() for layer in state.memories for memory in layer])
    assert all(count == counts[0] for count in counts)
    assert max(counts[0], default=0) <= 2 * BLOCK * SMALL["width"]  # two rows of a block each


@each_stage
@pytest.mark.parametrize("vocab_size, block_size", [(5, 1), (5, 2), (1, 1)])
def test_the_smallest_cases_work(stage, vocab_size, block_size):
    model = make(stage, vocab_size, block_size)
    token = torch.zeros(1, 1, dtype=torch.int64)
    logits, state = model(token)
    assert logits.shape == (1, 1, vocab_size)
    for _ in range(3):
        logits, state = model(token, state)
    same(logits[0, 0], model(torch.zeros(1, 4, dtype=torch.int64))[0][0, -1])
    loss = model.loss(token, token)
    loss.backward()
    assert torch.isfinite(loss)


# The loss


@each_stage
@pytest.mark.parametrize("training", [True, False])
def test_the_first_loss_is_that_of_a_guess(stage, training):
    torch.manual_seed(0)
    model = build(stage, 30, 16).train(training)
    loss = model.loss(draw(16, 16, vocab_size=30), draw(16, 16, vocab_size=30, seed=1))
    assert loss.item() == pytest.approx(math.log(30), abs=0.1)


@each_stage
def test_the_loss_is_the_mean_over_the_targets_that_count(stage):
    model, tokens, targets = make(stage), draw(4, 6), draw(4, 6, seed=1)
    targets[0], targets[1, 3:], targets[2, 0] = IGNORED, IGNORED, IGNORED
    logits = model(tokens)[0].tolist()
    terms = []
    for row in range(4):
        for t in range(6):
            if (target := targets[row, t].item()) != IGNORED:
                total = math.fsum(math.exp(value) for value in logits[row][t])
                terms.append(math.log(total) - logits[row][t][target])
    assert len(terms) == 14
    assert model.loss(tokens, targets).item() == pytest.approx(math.fsum(terms) / 14, abs=1e-10)


@each_stage
def test_the_loss_of_packed_documents_is_their_mean(stage):
    model, (tokens, segments) = make(stage), packed()
    targets = draw(2, 12, seed=1)
    targets[0, 2], targets[1, 5:9] = IGNORED, IGNORED
    total = 0.0
    for row, lengths in enumerate(DOCUMENTS):
        for document, wanted in zip(
            tokens[row].split(lengths), targets[row].split(lengths), strict=True
        ):
            count = (wanted != IGNORED).sum().item()
            total += count * model.loss(document[None], wanted[None]).item()
    expected = total / (targets != IGNORED).sum().item()
    loss = model.loss(tokens, targets, segments).item()
    assert loss == pytest.approx(expected, abs=1e-10)
    if stage != "bigram":  # which knows nothing that could pass between documents
        assert abs(model.loss(tokens, targets).item() - expected) > 1e-3


# Learning


def names_batch():
    dataset = data.load("names")
    tokenizer = data.CharTokenizer.train(dataset.splits["train"])
    tokens, targets = map(torch.from_numpy, data.batches(dataset, tokenizer, 16, 8)(0, 0))
    return tokens, targets, tokenizer.vocab_size


def least_loss(tokens, targets, reach):
    """The loss of counting what follows each of the last reach tokens: none can have less."""
    windows, pairs = Counter(), Counter()
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        for t, target in enumerate(wanted):
            if target != IGNORED:
                window = tuple(row[max(0, t + 1 - reach) : t + 1])
                windows[window] += 1
                pairs[window, target] += 1
    nats = sum(n * math.log(windows[window] / n) for (window, _), n in pairs.items())
    return nats / windows.total()


def fit(model, steps, lr, *batch, kind="muon"):
    """The losses of steps of training on one batch, with a learning rate that falls to 0."""
    optimizers = make_optimizers(model, kind, lr)
    losses = []
    for step in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - step / steps)
        loss = model.loss(*batch)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    return losses


@each_stage
def test_one_batch_is_fitted_as_well_as_the_stage_can(stage):
    tokens, targets, vocab_size = names_batch()
    torch.manual_seed(0)
    wide = small(stage, **{name: 32 for name in ("width", "embed") if name in sizes(stage)})
    model = build(stage, vocab_size, 16, **without_dropout(stage, wide))
    steps, lr = (150, 0.3) if stage == "bigram" else (100, 0.03)
    last = fit(model, steps, lr, tokens, targets)[-1]
    least = least_loss(tokens, targets, REACH.get(stage, 16))
    assert least - 1e-4 < last < least + 0.05


def without_dropout(stage, given):
    return given | {name: 0.0 for name in ("dropout",) if name in sizes(stage)}


def test_the_bigram_learns_the_counts():
    texts = ["abba", "abcab", "cab", "bb", "acca", "a"]
    tokenizer = data.CharTokenizer.train([*texts, "xyz"])  # three characters that never come
    size = tokenizer.vocab_size
    batches = data.LineBatches([tokenizer.encode(text) for text in texts], 8, len(texts))
    tokens, targets = map(torch.from_numpy, batches(0, 0))
    counted = targets != IGNORED
    counts = torch.zeros(size, size)
    counts.index_put_((tokens[counted], targets[counted]), torch.ones(()), accumulate=True)
    seen = counts.sum(1) > 0

    torch.manual_seed(0)
    model = build("bigram", size, 8)
    first = model(torch.arange(size)[:, None])[0][:, 0].softmax(1)
    last = fit(model, 400, 0.5, tokens, targets, kind="adamw")[-1]
    learnt = model(torch.arange(size)[:, None])[0][:, 0].softmax(1)

    same(learnt[seen], counts[seen] / counts[seen].sum(1, keepdim=True), 1e-2)
    same(learnt[~seen], first[~seen], 0)  # what never came teaches nothing
    assert last == pytest.approx(least_loss(tokens, targets, 1), abs=1e-3)


@each_stage
def test_every_parameter_has_had_a_gradient_after_two_steps(stage):
    tokens, targets, vocab_size = names_batch()
    torch.manual_seed(0)
    model = build(stage, vocab_size, 16).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    reached = set()
    for _ in range(2):  # what lies before a projection of zeros is reached by the second
        optimizer.zero_grad()
        model.loss(tokens, targets).backward()
        reached |= {name for name, p in model.named_parameters() if p.grad.abs().max() > 0}
        optimizer.step()
    assert reached == {name for name, _ in model.named_parameters()}


@each_stage
def test_saved_and_loaded_gives_the_same_logits(stage):
    torch.manual_seed(0)
    model = shaken(build(stage, 30, 16)).eval()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = build(stage, 30, 16).eval()
    tokens = draw(2, 16, vocab_size=30)
    before, _ = loaded(tokens)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(loaded(tokens)[0], model(tokens)[0])
    assert not torch.equal(loaded(tokens)[0], before)


@pytest.mark.parametrize("stage", [stage for stage in STAGES if "dropout" in sizes(stage)])
def test_dropout_is_on_in_training_alone(stage):
    model, tokens = make(stage, dropout=0.5), draw(2, BLOCK)
    plain = make(stage, dropout=0.0)
    same(model(tokens)[0], plain(tokens)[0], 0)

    used = []
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            assert module.p == 0.5
            module.register_forward_hook(lambda module, *_: used.append(module))
    model.train()
    torch.manual_seed(0)
    first, _ = model(tokens)
    assert set(used) == {m for m in model.modules() if isinstance(m, nn.Dropout)}
    again, _ = model(tokens)
    torch.manual_seed(0)
    repeated, _ = model(tokens)
    assert (first - again).abs().max() > 1e-3
    same(first, repeated, 0)
    same(plain.train()(tokens)[0], plain.eval()(tokens)[0], 0)
    same(model.eval()(tokens)[0], plain(tokens)[0], 0)


@each_stage
def test_bfloat16_products(stage):
    tokens, targets, vocab_size = names_batch()
    torch.manual_seed(0)
    model = shaken(build(stage, vocab_size, 16, **without_dropout(stage, {})))
    exact = model.loss(tokens, targets).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss(tokens, targets)
        carried, _ = in_pieces(model, tokens, one_by_one(tokens))
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact, rel=0.02)
    assert torch.isfinite(carried).all()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


# The stages against other code


def gradients(output, *inputs):
    """What output, weighted at random, gives to each of inputs."""
    return torch.autograd.grad((output * noise(*output.shape, seed=9)).sum(), inputs)


def test_the_bigram_is_a_table():
    model, tokens = make("bigram"), draw(2, 6)
    same(model(tokens)[0], model.embedding.weight[tokens], 0)
    assert [name for name, _ in model.named_parameters()] == ["embedding.weight"]


@pytest.mark.parametrize("context", [1, 3])
def test_the_mlp_is_a_loop_over_windows(context):
    torch.manual_seed(0)
    model = shaken(MLP(V, BLOCK, context=context, embed=4, width=7)).double().eval()
    tokens = draw(2, 9)
    hidden = model.layers[0].hidden
    logits = torch.empty(2, 9, V, dtype=torch.float64)
    for row in range(2):
        for t in range(9):
            window = []
            for place in range(t - context + 1, t + 1):  # the oldest first
                window += (
                    [0.0] * 4 if place < 0 else model.embedding.weight[tokens[row, place]].tolist()
                )
            y = torch.tanh(hidden.weight @ torch.tensor(window, dtype=torch.float64) + hidden.bias)
            logits[row, t] = model.head.weight @ y + model.head.bias
    same(model(tokens)[0], logits)


def test_the_cnn_is_conv1d():
    torch.manual_seed(0)
    model = shaken(CNN(V, BLOCK, layers=3, width=5)).double().eval()
    x = noise(2, 13, 5).requires_grad_()
    ours, _ = model.mix(x, torch.arange(13).expand(2, -1), [None] * 3)
    theirs = x.mT  # (B, C, T)
    for layer, dilation in zip(model.layers, (1, 2, 4), strict=True):
        taps = torch.stack(layer.taps.weight.chunk(2, 1), 2)  # (2C, C, 2): the earlier first
        padded = F.pad(theirs, (dilation, 0))
        new, gate = F.conv1d(padded, taps, layer.taps.bias, dilation=dilation).chunk(2, 1)
        y = torch.tanh(new) * torch.sigmoid(gate)
        theirs = theirs + F.conv1d(y, layer.out.weight[..., None], layer.out.bias)
    same(ours, theirs.mT)
    weights = [x, *model.layers.parameters()]
    for a, b in zip(gradients(ours, *weights), gradients(theirs.mT, *weights), strict=True):
        same(a, b)


# PyTorch's module, and the places that our gates have in its order.
PYTORCH = {"rnn": (nn.RNN, [0]), "lstm": (nn.LSTM, [1, 2, 0, 3]), "gru": (nn.GRU, [1, 2, 0])}


@each_recurrent
@pytest.mark.parametrize("started", [False, True])
def test_recurrent_stages_are_pytorch_s(stage, started):
    C, B, T = 7, 3, 10
    kind, order = PYTORCH[stage]
    torch.manual_seed(0)
    model = shaken(build(stage, V, BLOCK, layers=2, width=C)).double().eval()
    theirs = kind(C, C, 2, batch_first=True).double()

    def reordered(tensor):
        return torch.cat([tensor.chunk(len(order))[gate] for gate in order])

    pairs = []  # our parameter, and theirs
    with torch.no_grad():
        for i, layer in enumerate(model.layers):
            pairs += [
                (layer.from_input.weight, getattr(theirs, f"weight_ih_l{i}")),
                (layer.from_input.bias, getattr(theirs, f"bias_ih_l{i}")),
                (layer.from_state.weight, getattr(theirs, f"weight_hh_l{i}")),
            ]
            getattr(theirs, f"bias_hh_l{i}").zero_()
        for our, their in pairs:
            their.copy_(reordered(our))

    x = noise(B, T, C).requires_grad_()
    start = [noise(2, B, C, seed=seed).requires_grad_() for seed in range(1 + (stage == "lstm"))]
    memories = list(zip(*start, strict=True)) if started else [None, None]
    positions = torch.arange(T).expand(B, T) + (4 if started else 0)
    ours, after = model.mix(x, positions, memories)
    begun = tuple(start) if stage == "lstm" else start[0]
    output, last = theirs(x, begun if started else None)

    same(ours, output)
    for i, memory in enumerate(zip(*after, strict=True)):  # h, and c
        same(torch.stack(memory), last[i] if stage == "lstm" else last)
    inputs = [x, *start] if started else [x]
    mine = gradients(ours, *inputs, *(our for our, _ in pairs))
    others = gradients(output, *inputs, *(their for _, their in pairs))
    for i, (a, b) in enumerate(zip(mine, others, strict=True)):
        same(a if i < len(inputs) else reordered(a), b)


def test_attention_is_pytorch_s():
    C, H, block, T = 12, 2, 6, 10
    torch.manual_seed(0)
    attention = shaken(Attention(C, H, block)).double()
    # A row that is one document, longer than the block, and a row of two.
    positions = torch.tensor([[*range(10)], [*range(4), *range(6)]])
    documents = torch.tensor([[0] * 10, [0] * 4 + [1] * 6])
    known = torch.zeros(2, 1, T, T, dtype=torch.bool)
    for row in range(2):
        for t in range(T):
            for s in range(max(0, t - block + 1), t + 1):
                known[row, 0, t, s] = documents[row, s] == documents[row, t]

    half = C // H // 2
    speeds = torch.tensor([10000.0 ** (-i / half) for i in range(half)], dtype=torch.float64)
    turns = positions[:, None, :, None] * speeds  # (B, 1, T, D/2)

    def turned(y):
        """Feature i and feature i + half as the parts of a complex number."""
        turn = torch.polar(torch.ones_like(turns), turns)
        z = torch.complex(y[..., :half], y[..., half:]) * turn
        return torch.cat([z.real, z.imag], -1)

    x = noise(2, T, C).requires_grad_()
    angles = positions[:, None, :, None] * rotary_frequencies(C // H)
    view = angles.cos(), angles.sin(), mask_of(positions, 0, block)
    ours, _ = attention(x, view, None)
    parts = (x @ attention.qkv.weight.T).chunk(3, 2)
    q, k, v = (part.unflatten(2, (H, C // H)).transpose(1, 2) for part in parts)
    y = F.scaled_dot_product_attention(turned(q), turned(k), v, attn_mask=known)
    theirs = y.transpose(1, 2).flatten(2) @ attention.out.weight.T

    # 1e-5: the angles are taken in float32
    same(ours, theirs, 1e-5)
    weights = [x, attention.qkv.weight, attention.out.weight]
    for a, b in zip(gradients(ours, *weights), gradients(theirs, *weights), strict=True):
        same(a, b, 1e-5)


# Sizes


@each_stage
def test_sizes_are_what_build_takes(stage):
    torch.manual_seed(0)
    model = build(stage, 30, 16)
    torch.manual_seed(0)
    given = build(stage, 30, 16, **sizes(stage))
    assert type(model) is stage_class(stage)
    for a, b in zip(model.parameters(), given.parameters(), strict=True):
        assert torch.equal(a, b)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 300_000


def refusal(*args, **given):
    """The one sentence with which build refuses its arguments."""
    with pytest.raises(ValueError) as caught:
        build(*args, **given)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


def test_unknown_stages_are_refused():
    for ask in (lambda: sizes("transfomer"), lambda: build("transfomer", 30, 16)):
        with pytest.raises(ValueError, match="transfomer.*bigram.*transformer"):
            ask()


@each_stage
def test_unknown_sizes_are_refused(stage):
    sentence = refusal(stage, 30, 16, depth=3)
    assert stage in sentence and "depth" in sentence
    assert all(name in sentence for name in sizes(stage))
    assert "none" in refusal("bigram", 30, 16, layers=1)


@each_stage
def test_sizes_that_cannot_work_are_refused(stage):
    for name in sizes(stage).keys() - {"dropout"}:
        for value in (0, -1):
            sentence = refusal(stage, 30, 16, **{name: value})
            assert name in sentence and str(value) in sentence
    assert "vocab_size" in refusal(stage, 0, 16)
    assert "block_size" in refusal(stage, 30, 0)
    if "dropout" in sizes(stage):
        for value in (-0.1, 1.0, math.nan):
            assert "dropout" in refusal(stage, 30, 16, dropout=value)


@pytest.mark.parametrize("width, heads", [(64, 3), (4, 8), (6, 4)])
def test_heads_must_divide_the_width(width, heads):
    sentence = refusal("transformer", 30, 16, width=width, heads=heads)
    assert "heads" in sentence and str(heads) in sentence and str(width) in sentence


@pytest.mark.parametrize("width, heads", [(12, 4), (7, 1), (4, 4)])
def test_a_head_must_have_pairs_to_turn(width, heads):
    sentence = refusal("transformer", 30, 16, width=width, heads=heads)
    assert "heads" in sentence and str(width) in sentence
