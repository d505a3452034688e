"""The pictures of the book: what they compute of a model, and that the files are whole."""

import xml.etree.ElementTree as ElementTree

import pytest
import torch
from torch.nn import functional as F

import data
import nanogpt
from book import figures
from book.figures import NAME, PICTURES, SENTENCE
from data import END, CharTokenizer

SIZES = dict(layers=2, heads=2, width=8, context=3, embed=4, dropout=0.2)
TOKENIZER = CharTokenizer.train(["abcdefghijklmnopqrstuvwxyz", SENTENCE])
RECURRENT = ("rnn", "lstm", "gru")


def tiny(stage, **given):
    """A small model with weights at random, in training mode, none of them zero."""
    torch.manual_seed(1)
    sizes = {name: SIZES[name] for name in nanogpt.sizes(stage) if name in SIZES} | given
    model = nanogpt.build(stage, TOKENIZER.vocab_size, 16 if stage != "gpt" else 64, **sizes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def is_svg(path):
    """Whether it is one that shows something, and small."""
    root = ElementTree.fromstring(path.read_bytes())
    shapes = list(root.iter("{http://www.w3.org/2000/svg}path"))
    return root.tag.endswith("svg") and len(shapes) > 10 and path.stat().st_size < 200_000


@pytest.mark.parametrize("stage", PICTURES)
def test_every_stage_has_a_picture_that_repeats(stage, tmp_path):
    few = dict(layers=1) if stage in ("transformer", "gpt") else {}  # many maps take long
    model = tiny(stage, **few)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    figures.draw(stage, model, TOKENIZER, tmp_path / "a.svg")
    figures.draw(stage, tiny(stage, **few), TOKENIZER, tmp_path / "b.svg")
    assert is_svg(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    # the model is as it was: in training mode, without hooks, its weights untouched
    assert model.training
    assert all(not module._forward_hooks for module in model.modules())
    assert all(torch.equal(weights[name], new) for name, new in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_other_weights_give_another_picture(tmp_path):
    model = tiny("mlp")
    figures.draw("mlp", model, TOKENIZER, tmp_path / "a.svg")
    torch.nn.init.normal_(model.embedding.weight)
    figures.draw("mlp", model, TOKENIZER, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() != (tmp_path / "b.svg").read_bytes()


def test_every_stage_is_drawn():
    assert list(PICTURES) == nanogpt.STAGES
    with pytest.raises(ValueError, match="no picture of ngram, only of bigram, mlp"):
        figures.draw("ngram", tiny("bigram"), TOKENIZER, None)


def test_no_run_has_learned_from_what_is_shown():
    assert NAME in data.load("names").splits["val"]
    assert any(tale.startswith(SENTENCE) for tale in data.load("tales").splits["val"])


def test_the_three_gradients_in_one_picture(tmp_path):
    models = {stage: tiny(stage) for stage in RECURRENT}
    figures.gradients(models, TOKENIZER, tmp_path / "a.svg")
    assert is_svg(tmp_path / "a.svg")
    figures.gradients({"rnn": models["rnn"]}, TOKENIZER, tmp_path / "b.svg")
    assert is_svg(tmp_path / "b.svg")


def test_untrained_is_a_copy_with_other_weights():
    model = tiny("rnn")
    state = torch.random.get_rng_state()
    copies = [figures.untrained(model) for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    for old, new, again in zip(model.parameters(), *(copy.parameters() for copy in copies)):
        assert not torch.equal(old, new) and torch.equal(new, again)


@pytest.mark.parametrize("stage", ("mlp", "cnn", *RECURRENT, "transformer"))
def test_gradients_are_those_of_the_embeddings(stage):
    model = tiny(stage).double().eval()
    tokens, targets = figures.beginnings(TOKENIZER, 11)
    tokens, targets = tokens[:7], targets[:7]
    norms = torch.zeros(7, 11, dtype=torch.float64)
    for row in range(7):  # a name at a time, through the parts of the model
        x = model.embedding.weight[tokens[row]].detach().requires_grad_()
        positions = torch.arange(11)[None]
        y, _ = model.mix(x[None], positions, [None] * len(model.layers))
        loss = F.cross_entropy(model.head(y[0, -1]), targets[row])
        norms[row] = torch.autograd.grad(loss, x)[0].square().sum(1).sqrt()
    expected = norms.mean(0).flip(0)
    heard = figures.hearing(model, tokens, targets)
    assert torch.allclose(heard, expected, rtol=1e-12, atol=1e-15)
    seen = {"mlp": 3, "cnn": 4}.get(stage, 11)
    assert (heard[:seen] > 0).all() and (heard[seen:] == 0).all()


def test_gradients_of_an_rnn_are_products_of_its_jacobians():
    model = tiny("rnn", layers=1).double().eval()
    W, U = model.layers[0].from_input.weight, model.layers[0].from_state.weight
    b = model.layers[0].from_input.bias
    tokens, targets = torch.tensor([[END, 7, 9, 30, 12]]), torch.tensor([8])
    with torch.no_grad():
        h, states = torch.zeros(8, dtype=torch.float64), []
        for token in tokens[0]:
            h = torch.tanh(W @ model.embedding.weight[token] + b + U @ h)
            states.append(h)
        wrong = model.head(h).softmax(0)
        wrong[targets[0]] -= 1  # the gradient of the loss by the logits
        g, norms = model.head.weight.T @ wrong, []
        for h in reversed(states):
            g = g * (1 - h**2)
            norms.append((W.T @ g).norm())
            g = U.T @ g
    heard = figures.hearing(model, tokens, targets)
    assert torch.allclose(heard, torch.stack(norms), rtol=1e-12)


def test_nothing_is_heard_from_outside_of_the_receptive_field():
    model = tiny("cnn", layers=3).double().eval()
    heard = figures.hearing(model, *figures.beginnings(TOKENIZER, 12))
    assert figures.receptive_fields([1, 2, 4])[0] == list(range(8))
    assert (heard[:8] > 0).all() and (heard[8:] == 0).all()


def test_receptive_fields():
    assert figures.receptive_fields([1, 2, 4]) == [list(range(8)), [0, 2, 4, 6], [0, 4], [0]]
    assert figures.receptive_fields([]) == [[0]]
    # a dilation that does not double leaves gaps, or hears one token on two ways
    assert figures.receptive_fields([1, 3]) == [[0, 1, 3, 4], [0, 3], [0]]
    assert figures.receptive_fields([1, 1]) == [[0, 1, 2], [0, 1], [0]]


def test_beginnings_end_before_what_is_to_be_predicted():
    tokens, targets = figures.beginnings(TOKENIZER, 10)
    names = [name for name in data.load("names").splits["val"] if len(name) >= 9]
    assert tokens.shape == (len(names), 10) and (tokens[:, 0] == END).all()
    row = names.index("christian"), names.index("anastasios")
    assert TOKENIZER.decode(tokens[row[0]].tolist()) == "christian"
    assert targets[row[0]] == END and TOKENIZER.decode([int(targets[row[1]])]) == "s"


def test_gates_are_those_that_make_the_state():
    tokens = figures.tokens_of(TOKENIZER, "margaret")
    model = tiny("lstm").double().eval()
    (c, h), outs = torch.zeros(2, 8, dtype=torch.float64), []
    for row in figures.activations(model, tokens):
        n, i, f, o = row.chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * n.tanh()
        h = o.sigmoid() * c.tanh()
        outs.append(h)
    (expected,) = figures.outputs(model, tokens, [model.layers[-1]])
    assert torch.allclose(torch.stack(outs), expected, atol=1e-12)

    model = tiny("gru", layers=1).double().eval()
    _, r, z = figures.activations(model, tokens).sigmoid().chunk(3, 1)
    (h,) = figures.outputs(model, tokens, [model.layers[0]])
    cell = model.layers[0]
    with torch.no_grad():
        x, before = model.embedding(tokens)[0], F.pad(h, (0, 0, 1, 0))[:-1]
        new = cell.from_input(x)[:, :8] + r * cell.from_state(before)[:, :8]
        assert torch.allclose(z * before + (1 - z) * new.tanh(), h, atol=1e-12)


@pytest.mark.parametrize("stage", ("transformer", "gpt"))
@pytest.mark.parametrize("how", ("naive", "sdpa"))
def test_attention_maps_are_the_weights(stage, how):
    model = tiny(stage).double().eval()
    nanogpt.attention.use(model, how)
    tokens = figures.tokens_of(TOKENIZER, "margaret")
    before = model(tokens)[0]
    maps = figures.attention_maps(model, tokens)
    assert torch.equal(model(tokens)[0], before)  # as it was
    assert len(maps) == 2 and all(weights.shape == (2, 9, 9) for weights in maps)
    for weights in maps:
        assert torch.allclose(weights.sum(2), torch.ones(2, 9, dtype=torch.float64))
        assert (weights.triu(1) == 0).all() and (weights.tril() >= 0).all()
    # those of the first layer by the formula, from the products of that layer
    attention = model.layers[0].attention
    (qkv,) = figures.outputs(model, tokens, [attention.qkv])
    q, k, _ = qkv.view(1, 9, 3, 2, 4).permute(2, 0, 3, 1, 4)
    if stage == "gpt":
        q, k = F.rms_norm(q, (4,)), F.rms_norm(k, (4,))
        q = q * attention.gain[:, None, None]
    angles = torch.arange(9)[:, None] * model.speeds
    q, k = (nanogpt.gpt.rotate(x, angles.cos(), angles.sin()) for x in (q, k))
    scores = q @ k.mT / 2 + torch.full((9, 9), -torch.inf).triu(1)
    assert torch.allclose(maps[0], scores.softmax(3)[0], atol=1e-6)  # angles are float32


def test_attention_maps_of_a_gpt_with_shared_keys_and_capped_scores():
    model = tiny("gpt", kv_heads=1, score_cap=5.0, position="learned").eval()
    maps = figures.attention_maps(model, figures.tokens_of(TOKENIZER, "margaret"))
    assert [weights.shape for weights in maps] == [(2, 9, 9)] * 2
    assert all(torch.allclose(weights.sum(2), torch.ones(2, 9)) for weights in maps)
    assert not torch.allclose(maps[0][0], maps[0][1])


def test_distances_of_heads():
    weights = torch.stack([torch.eye(4), torch.eye(4)[[0, 0, 0, 0]]])
    assert figures.distances(weights).tolist() == [0.0, 1.5]


def test_principal_directions():
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    flat = torch.zeros(40, 5, dtype=torch.float64)
    flat[:, 0], flat[:, 1] = 3 * torch.randn(40), torch.randn(40)
    places, shares = figures.principal(flat @ turn + 7)
    assert torch.allclose(shares.sum(), torch.tensor(1.0, dtype=torch.float64))
    # distances in the plane are those between the points
    assert torch.allclose(F.pdist(places), F.pdist(flat))
    assert places[:, 0].var() > places[:, 1].var()
    same, _ = figures.principal(-(flat @ turn))
    assert (same.gather(0, same.abs().argmax(0)[None]) > 0).all()


def test_special_tokens_and_blanks_have_labels():
    labels = [figures.label(TOKENIZER, i) for i in figures.texts_of(TOKENIZER)]
    assert labels[0] == "\u2022" and "\u2423" in labels and " " not in labels
    assert len(labels) == len(set(labels)) == TOKENIZER.vocab_size - 3
