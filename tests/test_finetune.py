"""finetune/: labels and instructions learned by small models, and what cannot flatter."""

import csv
import io
import json
import math
import re
import shutil
import sys
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import data
import nanogpt
import sample
import train
from benchmarks import finetune as benchmark
from benchmarks import instruct as chain
from benchmarks import tunings
from data import ASSISTANT, END, TURN, USER, runs
from finetune import (
    adapt,
    baselines,
    chat,
    classify,
    curriculum,
    evaluate,
    instruct,
    labelled,
    learn,
    measures,
    pretrained,
    probe,
    questions,
    report,
    seen,
    sorting,
    strings,
    tasks,
    usual,
)
from finetune import judge as judging
from finetune.adapt import Tuning
from finetune.both import Both, powers
from finetune.chat import Conversation
from makemore.__main__ import newest_results
from makemore.model import IGNORED
from nanogpt.machine import Machine
from nanogpt.optim import make_optimizers

CPU = Machine("cpu", "float32", False)
SMALL = dict(layers=2, heads=2, width=16, context=3, embed=4)
STAGES = nanogpt.STAGES


def build(stage, vocab_size=30, block_size=12, **given):
    """A small model in eval, with noise on every weight, so that each has a part in the logits."""
    sizes = {name: SMALL[name] for name in nanogpt.sizes(stage) if name in SMALL} | given
    torch.manual_seed(0)
    model = nanogpt.build(stage, vocab_size, block_size, **sizes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def tokens(rows=3, length=9, most=30, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, most, (rows, length), generator=generator)


@pytest.fixture
def no_plot(no_plot, monkeypatch):
    """Nor with the plot of the confusion matrix."""
    monkeypatch.setattr(report, "plot_confusion", lambda *_: None)


@pytest.fixture
def few_tales(monkeypatch):
    """Three tales of every split."""
    few = {s: part[:3] for s, part in tasks.tales().items()}
    monkeypatch.setattr(tasks, "tales", lambda: few)
    return few


@pytest.fixture(scope="session")
def reviews(tmp_path_factory):
    """A CSV in which a word of the text tells the stars."""
    path = tmp_path_factory.mktemp("reviews") / "my.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "review", "stars"])
        for n in range(120):
            word, stars = [("mat", "1"), ("cat", "3"), ("dog", "5")][n % 3]
            other = ("cat", "mat")[n % 2]
            writer.writerow([n, f"the {word} sat on the {other} {n % 40 * 't'}", stars])
    return path


@pytest.fixture(scope="session")
def talks(tmp_path_factory):
    """A JSONL of prompts and responses."""
    path = tmp_path_factory.mktemp("talks") / "my.jsonl"
    lines = [{"prompt": f"where is the {'t' * (n % 20 + 1)}", "response": "on the mat."}
             for n in range(40)]
    lines[1] = {"messages": [
        {"role": "user", "content": "who sat?"}, {"role": "assistant", "content": "the cat"},
        {"role": "user", "content": "and the dog?"}, {"role": "assistant", "content": "ran."},
    ]}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


@pytest.fixture(scope="session")
def base(start, passage, tmp_path_factory):
    """A small GPT pretrained on a text. Not to be written to."""
    run = tmp_path_factory.mktemp("base") / "gpt-passage"
    start("--model=gpt", "--layers=2", "--heads=2", "--width=16", "--block-size=32",
          f"--data={passage}", "--steps=20", "--batch-size=4", "--eval-every=10", f"--out={run}")
    return run


@pytest.fixture(scope="session")
def teller(start, tmp_path_factory):
    """A small GPT on the characters of the tales, hardly trained. Not to be written to."""
    folder = tmp_path_factory.mktemp("teller")
    parts = tasks.tales()
    few = {"train": parts["train"][:12], "val": parts["val"][:2], "test": parts["test"][:2]}
    for split, part in few.items():
        text = "".join(json.dumps({"text": tale["text"]}) + "\n" for tale in part)
        (folder / f"{split}.jsonl").write_text(text, "utf-8")
    run = folder / "gpt-tales"
    start("--model=gpt", "--layers=1", "--heads=2", "--width=16", "--block-size=64",
          f"--data={folder}", "--steps=4", "--batch-size=2", f"--out={run}")
    return run


def flags_for(reviews, base, out, *more):
    return (f"--from={base}", f"--train={reviews}", "--text=review", "--label=stars",
            "--batch-size=16", "--lr=0.01", f"--out={out}", *more)


@pytest.fixture(scope="session")
def sorter(base, reviews, tmp_path_factory):
    """A run that sorts reviews. Not to be written to."""
    run = tmp_path_factory.mktemp("sorter") / "stars"
    args = classify.make_parser().parse_args(
        [*flags_for(reviews, base, run), "--device=cpu", "--steps=40", "--eval-every=20"])
    classify.new_run(args)
    return run


@pytest.fixture(scope="session")
def talker(base, talks, tmp_path_factory):
    """A run that answers. Not to be written to."""
    run = tmp_path_factory.mktemp("talker") / "talks"
    args = instruct.make_parser().parse_args(
        [f"--from={base}", f"--train={talks}", "--steps=30", "--lr=0.01", "--block-size=64",
         "--device=cpu", "--replay=0.25", f"--out={run}"])
    instruct.new_run(args)
    return run


# Measures and baselines


def test_accuracy_and_macro_f1_by_their_definitions():
    true, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 0])
    matrix = measures.confusion(true, predicted, 4)
    assert matrix[0, 1] == 1 and matrix[2, 0] == 1 and matrix.sum() == 6
    f1 = []
    for label in range(3):  # label 3 never occurs, so it does not count
        hits = np.sum((true == label) & (predicted == label))
        precision = hits / max(np.sum(predicted == label), 1)
        recall = hits / np.sum(true == label)
        f1.append(2 * precision * recall / max(precision + recall, 1e-9))
    assert measures.macro_f1(true, predicted, 4) == pytest.approx(np.mean(f1))
    judged = measures.judge(predicted, [(label,) for label in true], 4)
    assert judged["accuracy"] == pytest.approx(3 / 6)
    low, high = judged["macro_f1_interval"]
    assert low < judged["macro_f1"] < high


def test_any_of_several_labels_is_right():
    predicted, labels = np.array([2, 1, 0]), [(0, 2), (0, 2), (0,)]
    assert measures.truth(predicted, labels).tolist() == [2, 0, 0]
    assert measures.judge(predicted, labels, 3)["accuracy"] == pytest.approx(2 / 3)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(3.0, 2.0, 900)
    low, high = measures.mean_interval(values)
    half = 1.96 * values.std() / 30
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)
    other = values > 3
    mean, (low, high) = measures.paired(other, other)
    assert mean == low == high == 0


@pytest.mark.parametrize("answer, expected, exact, f1", [
    ("Her old red boot.", "her old red boot", True, 1.0),
    ("the barn", "a barn!", True, 1.0),
    ("red boot", "her old red boot", False, 2 * 2 / 6),
    ("", "fish", False, 0.0),
    ("fish fish", "fish", False, 2 / 3),
])
def test_answers_are_compared_by_their_words(answer, expected, exact, f1):
    assert measures.exact(answer, expected) == exact
    assert measures.word_f1(answer, expected) == pytest.approx(f1)


def test_copied_grams():
    known = set(measures.word_grams("one two three four five six seven eight nine"))
    assert len(known) == 2
    assert measures.copied("One two, three four five six seven eight!", known) == 1
    assert measures.copied("one two three four five six seven eight ten", known) == 0.5
    assert measures.copied("one two three", known) == 0


def test_the_regression_is_at_its_minimum():
    torch.manual_seed(0)
    texts = [f"{a} {b}" for a in ("red", "blue", "green") for b in ("cat", "dog", "cow", "hen")]
    counts = baselines.Counts(texts, "words", least=1)
    bags, targets = counts(texts), torch.arange(12) % 3
    rows = torch.arange(12)
    weights = torch.zeros(len(counts.places) + 1, 3)
    score = partial(baselines.logits, bags)
    found = baselines.minimise(score, rows, targets, weights, 0.01, None).double()
    dense = torch.zeros(12, len(found), dtype=torch.float64)
    ends = [*bags[1].tolist()[1:], len(bags[0])]
    for row, (begin, end) in enumerate(zip(bags[1].tolist(), ends)):
        dense[row, bags[0][begin:end]] = bags[2][begin:end].double()
    dense[:, -1] = 1
    wrong = (dense @ found).softmax(1) - F.one_hot(targets, 3)
    gradient = dense.T @ wrong / 12
    gradient[:-1] += 0.01 * found[:-1]
    assert gradient.abs().max() < 1e-4
    assert dense[:, :-1].norm(dim=1) == pytest.approx(torch.ones(12, dtype=torch.float64))


def test_the_regression_learns_what_a_word_says():
    train_ = [(f"{word} {n % 7}", (label,)) for n in range(60)
              for label, word in enumerate(("good", "bad"))]
    regression, chosen = baselines.fit(train_, [("so good", (0,)), ("so bad", (1,))], 2)
    assert regression.probabilities(["good 9", "bad 9", ""]).argmax(1).tolist()[:2] == [0, 1]
    assert chosen["val_accuracy"] == 1
    assert baselines.majority([(0,), (1,), (1, 2)], 2).tolist() == [1, 1]


def test_the_regression_can_tell_by_two_words_in_a_row():
    assert baselines.pieces("A dog, a dog!", "word pairs") == {
        "a": 2, "dog": 2, "a dog": 2, "dog a": 1}
    said = ("not good but bad", "not bad but good")  # the same words
    texts = [(f"{text} {n % 7}", (label,)) for n in range(30) for label, text in enumerate(said)]
    regression, chosen = baselines.fit(texts, texts[:8], 2, kinds=("words", "word pairs"))
    assert chosen["features"] == "word pairs"
    assert regression.probabilities(list(said)).argmax(1).tolist() == [0, 1]


def test_the_powers_are_those_under_which_the_labels_are_likeliest():
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=4000)
    logits = generator.normal(size=(2, 4000, 3))
    logits += np.array([1.0, 2.0])[:, None, None] * np.eye(3)[labels]
    sure = np.exp(logits * [[[2.0]], [[1.0]]])  # the first is surer than it should be
    first, second = sure / sure.sum(2, keepdims=True)
    a, b = powers(first, second, [(n,) for n in labels.tolist()])
    assert a == pytest.approx(0.5, abs=0.05) and b == pytest.approx(2, abs=0.2)

    def nats(a, b):  # as in the docstring, with what is known beforehand
        pooled = first**a * second**b
        right = (pooled / pooled.sum(1, keepdims=True))[range(4000), labels]
        return -np.log(right).sum() + (np.log(a / 0.5) ** 2 + np.log(b / 0.5) ** 2) / 2

    assert all(nats(a, b) < nats(a * x, b * y) for x, y in pairwise((1, 0.98, 1, 1.02, 1)))
    assert powers(1 - first, second, [(n,) for n in labels.tolist()])[0] < 0.1  # never negative
    assert max(powers(first[:1], second[:1], [(0,)])) < 2  # nor far away for a single text


def test_a_network_and_n_grams_together():
    texts = [(word, (label,)) for label, word in enumerate(("cat", "dog")) for _ in range(9)]
    regression = baselines.fit_one(texts, 2, {"features": "characters", "decay": 1e-4})
    network = np.array([[0.9, 0.1], [0.5, 0.5]])
    found = Both(regression, (0.5, 1.0)).probabilities(network, ["dog", "dog"])
    theirs = regression.probabilities(["dog"])[0]
    expected = network**0.5 * theirs
    assert found == pytest.approx(expected / expected.sum(1, keepdims=True), rel=1e-6)
    again = Both.from_dict(Both(regression, (0.5, 1.0)).to_dict())
    assert np.array_equal(again.probabilities(network, ["dog", "dog"]), found)


# Tasks


def test_test_items_were_never_pretrained_on():
    tales = data.load("tales").splits
    for name in ("topic", "lesson"):
        task = tasks.load(name)
        assert {s: [e.text for e in part] for s, part in task.splits.items()} == tales
    names = tasks.load("origin")
    assert {s: [e.text for e in p] for s, p in names.splits.items()} == data.load("names").splits
    assert len(names.labels) == 22 and "any of them" in names.notes[0]
    assert [len(tasks.load(name).labels) for name in ("topic", "lesson")] == [8, 6]


def test_folds_test_everything_once():
    examples = [tasks.Example(str(n), ("a",)) for n in range(23)]
    splits = tasks.folds(examples, 5)
    assert sorted(e.text for s in splits for e in s["test"]) == sorted(e.text for e in examples)
    for part in splits:
        texts = [e.text for s in ("train", "val", "test") for e in part[s]]
        assert sorted(texts) == sorted(e.text for e in examples)


@pytest.mark.parametrize("name, content", [
    ("a.csv", 'text,label\n"one, two",x\n"three\nfour",y\n'),
    ("a.csv", "text;label\none, two;x\n\"three\nfour\";y\n"),
    ("a.tsv", 'text\tlabel\none, two\tx\n"three\nfour"\ty\n'),
    ("a.jsonl", '{"text": "one, two", "label": "x"}\n\n{"text": "three\\nfour", "label": "y"}\n'),
])
def test_own_files(name, content, tmp_path):
    path = tmp_path / name
    path.write_text(content, "utf-8")
    assert tasks.read_examples(path, "text", "label") == [
        tasks.Example("one, two", ("x",)), tasks.Example("three\nfour", ("y",))]


def test_own_splits_keep_equal_texts_together_and_every_label_in_training(tmp_path):
    path = tmp_path / "a.csv"
    rows = [(f"text {n % 50}", "ab"[n % 2]) for n in range(100)]
    rows += [(f"rare {n}", f"label {n}") for n in range(30)]
    path.write_text("text,label\n" + "".join(f"{t},{label}\n" for t, label in rows), "utf-8")
    task = tasks.from_files(path, None, "text", "label")
    texts = {s: {e.text for e in part} for s, part in task.splits.items()}
    assert not texts["train"] & (texts["val"] | texts["test"]) and all(texts.values())
    assert sum(map(len, task.splits.values())) == 130
    assert {label for e in task.splits["train"] for label in e.labels} == {t for _, t in rows}


def test_a_test_file_apart_stays_as_it_is(tmp_path):
    path, apart = tmp_path / "a.csv", tmp_path / "b.csv"
    rows = "".join(f"text {n},{'ab'[n % 2]}\n" for n in range(60))
    rare = "".join(f"rare {n},label {n}\n" for n in range(30))  # some of which val would have
    path.write_text("text,label\n" + rows + rare, "utf-8")
    apart.write_text("text,label\n" + rare, "utf-8")
    task = tasks.from_files(path, apart, "text", "label")
    assert [e.text for e in task.splits["test"]] == [f"rare {n}" for n in range(30)]
    assert sum(map(len, task.splits.values())) == 90 + 30


# The classifier


@pytest.mark.parametrize("pool", labelled.POOLS)
@pytest.mark.parametrize("stage", STAGES)
@torch.no_grad()
def test_padding_is_never_seen(stage, pool):
    classifier = labelled.Classifier(build(stage), 5, pool=pool).double().eval()
    torch.nn.init.normal_(classifier.head.weight)
    sequences = [[END, 5, 6, 7], [END, 8], [END, *range(4, 15)]]
    together, targets = map(torch.from_numpy, labelled.batch_of(sequences, [0, 1, 2]))
    other = torch.where((together == END) & (torch.arange(12) > 0), 9, together)
    logits = classifier(together, targets != IGNORED)
    assert torch.equal(logits, classifier(other, targets != IGNORED))
    for row, ids in enumerate(sequences):
        alone = classifier.model.features(torch.tensor([ids]))[0][0]
        n = labelled.POOLS[pool]
        edges = [len(ids) * k // n for k in range(n + 1)] if n else []
        parts = [alone[begin:end] for begin, end in pairwise(edges)]
        empty = torch.zeros_like(alone[0])  # a quarter of a text of two tokens
        means = [part.mean(0) if len(part) else empty for part in parts]
        read = torch.cat((alone[-1], *means))
        assert (classifier.head(read) - logits[row]).abs().max() < 1e-10


def test_the_mean_of_a_long_text_is_one_in_few_bits_too(monkeypatch):
    classifier = labelled.Classifier(build("gpt"), 5, pool="mean")
    ones = torch.ones(1, 600, 8, dtype=torch.bfloat16)
    monkeypatch.setattr(classifier.model, "features", lambda tokens: (ones, None))
    classifier.head = torch.nn.Identity()
    read = classifier(torch.zeros(1, 600, dtype=torch.int64), torch.ones(1, 600, dtype=torch.bool))
    assert read.shape == (600, 16) and (read == 1).all() and read.dtype == torch.bfloat16


@torch.no_grad()
def test_order_tells_by_the_quarters_and_not_by_the_mean(monkeypatch):
    x = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0))
    x = torch.cat((x, torch.cat((x[:, :7].flip(1), x[:, 7:]), 1)))  # the last one stays
    at = torch.tensor([[False] * 7 + [True]] * 2)
    for pool, same in (("mean", True), ("quarters", False)):
        classifier = labelled.Classifier(build("gpt"), 5, pool=pool)
        monkeypatch.setattr(classifier.model, "features", lambda tokens: (x, None))
        read = classifier.reads(torch.zeros(2, 8, dtype=torch.int64), at)
        assert torch.allclose(*read, atol=1e-6) == same


def test_the_first_head_is_the_regression_on_what_is_known():
    torch.manual_seed(0)
    classifier = labelled.Classifier(build("gpt"), 3, torch.tensor([0.5, 1.0, 2.0]), "quarters")
    generator = np.random.default_rng(0)
    texts = [[END, *(4 + generator.integers(0, 12, 9) % (4 + 4 * (n % 3)))] for n in range(60)]
    labels = [(n % 3, 1) if n % 7 == 0 else (n % 3,) for n in range(60)]
    train, val = (labelled.Encoded(texts[part], labels[part])
                  for part in (slice(0, 40), slice(40, 60)))
    before = {name: p.clone() for name, p in classifier.model.named_parameters()}
    machine = Machine("cpu", "float32", False)
    batch = list(map(torch.from_numpy, labelled.LabelBatches(val, 1).batch(val.pairs)))
    untaught = classifier.eval().loss(*batch).item()
    loss = probe.fit_head(classifier, train, val, machine)
    assert all(torch.equal(p, before[name]) for name, p in classifier.model.named_parameters())
    assert abs(classifier.eval().loss(*batch).item() - loss) < 1e-4 and loss < untaught - 0.1

    # of the decays, in float64 and by Newton's method, the same least loss
    with torch.no_grad():
        known, unseen = (labelled.at_ends(classifier.reads, part.sequences, machine, "").double()
                         for part in (train, val))
    scale = known.std(0, correction=0) * known.shape[1] ** 0.5
    found = []
    for decay in probe.DECAYS:
        rows, targets = baselines.examples(train.labels)
        features = ((known - known.mean(0)) / scale)[rows]
        weights = newton(features, targets, 3, decay, classifier.class_weights.double())
        logits = (unseen - known.mean(0)) / scale @ weights[:-1] + weights[-1]
        found.append(probe.mean_nats(logits, val.labels, classifier.class_weights.double()))
    assert abs(min(found) - loss) < 2e-3


def newton(features, targets, classes, decay, class_weights):
    """The weights (D + 1, K) of least loss, decayed but for the last row, by Newton's method."""
    ones = torch.ones(len(features), 1, dtype=features.dtype)
    x = torch.cat((features, ones), 1)

    def objective(flat):
        weights = flat.view(-1, classes)
        nats = F.cross_entropy(x @ weights, targets, class_weights,
                                                 reduction="sum")
        return nats / len(targets) + decay * weights[:-1].square().sum() / 2

    flat = torch.zeros(x.shape[1] * classes, dtype=x.dtype)
    for _ in range(30):
        slope = torch.func.grad(objective)(flat)
        curve = torch.func.hessian(objective)(flat)
        flat = flat - torch.linalg.lstsq(curve, slope[:, None], driver="gelsd").solution[:, 0]
    return flat.view(-1, classes)


def test_a_feature_that_never_varies_has_no_say():
    classifier = labelled.Classifier(build("gpt"), 2)
    same = labelled.Encoded([[END, 5]] * 4, [(0,), (0,), (0,), (1,)])
    loss = probe.fit_head(classifier, same, same, Machine("cpu", "float32", False))
    assert not classifier.head.weight.any()
    assert abs(loss - (0.75 * math.log(4 / 3) + 0.25 * math.log(4))) < 1e-3


def test_the_loss_is_that_of_the_labels_and_adds_up_over_parts():
    weights = torch.tensor([0.5, 1.0, 2.0])
    classifier = labelled.Classifier(build("gpt"), 3, weights)
    torch.nn.init.normal_(classifier.head.weight)
    batch = labelled.batch_of([[END, 5], [END, 6, 7], [END, 9], [END, 4, 4, 4]], [0, 2, 1, 2])
    batch = list(map(torch.from_numpy, batch))
    logits = classifier(batch[0], batch[1] != IGNORED).log_softmax(1)
    expected = -sum(weights[k] * logits[row, k] for row, k in enumerate([0, 2, 1, 2])) / 4
    assert classifier.loss(*batch).item() == pytest.approx(expected.item(), rel=1e-5)
    halves = [classifier.loss(*(x[i:i + 2] for x in batch)).item() for i in (0, 2)]
    assert np.mean(halves) == pytest.approx(expected.item(), rel=1e-5)


def test_replay_has_its_share_of_the_loss():
    classifier = labelled.Classifier(build("gpt"), 3)
    batch = list(map(torch.from_numpy, labelled.batch_of([[END, 5], [END, 6, 7]], [0, 2])))
    text = [tokens(2, 8), tokens(2, 8, seed=2), torch.zeros(2, 8, dtype=torch.int64)]
    classifier.replay = 0.25
    expected = 0.75 * classifier.loss(*batch) + 0.25 * classifier.model.loss(*text)
    assert classifier.loss(*batch, *text).item() == pytest.approx(expected.item(), rel=1e-6)


def test_class_weights_are_one_on_average():
    labels = [(0,)] * 90 + [(1,)] * 9 + [(2,)]
    weights = labelled.class_weights(labels, 3, 1.0)
    assert np.mean([weights[k].item() for (k,) in labels]) == pytest.approx(1)
    assert (weights * torch.tensor([90, 9, 1])).tolist() == pytest.approx([100 / 3] * 3)
    assert labelled.class_weights(labels, 3, 0.0).tolist() == [1, 1, 1]
    assert labelled.default_balance(labels) > 0 == labelled.default_balance(labels[85:99])


def test_batches_follow_from_seed_and_step():
    encoded = labelled.Encoded([[END, n] for n in range(4, 14)], [(n % 3, 2) for n in range(10)])
    batches = labelled.LabelBatches(encoded, 5)
    first = [batches(1, step) for step in range(4)]
    again = [labelled.LabelBatches(encoded, 5)(1, step) for step in (3, 2, 1, 0)][::-1]
    for a, b in zip(first, again):
        assert all(map(np.array_equal, a, b))
    seen = Counter(zip(*(np.concatenate([b[i][:, 1] for b in first]).tolist() for i in (0, 1))))
    assert seen == Counter((n + 4, label) for n in range(10) for label in (n % 3, 2))


# What learns


@pytest.mark.parametrize("dtype, near", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("stage, more", [
    ("gpt", {}), ("gpt", dict(tied=True, bias=True, norm="layer")), ("transformer", {}),
    ("lstm", {}), ("mlp", {}), ("cnn", {}), ("gpt", dict(matrices=("up", "embedding"))),
    ("rnn", dict(matrices=("embedding",))),
])
def test_lora_begins_as_nothing_and_merges_to_the_same_logits(stage, more, dtype, near):
    more = dict(more)
    matrices = more.pop("matrices", ())
    model, plain = build(stage, **more).to(dtype), build(stage, **more).to(dtype)
    adapt.adapt(model, Tuning("lora", rank=3, alpha=6.0, matrices=matrices))
    ids = tokens()
    ids[:, :3] = torch.tensor([END, USER, TURN])
    with torch.no_grad():
        assert torch.equal(model(ids)[0], plain(ids)[0])
        learn = [p for p in model.parameters() if p.requires_grad]
        for parameter in learn:
            parameter += 0.1 * torch.randn_like(parameter)
        expected = model(ids)[0]
        assert (expected - plain(ids)[0]).abs().max() > 0.01
        state = model.state_dict()
        assert adapt.is_adapted(state)
        adapt.merge(model)
        plain.load_state_dict(model.state_dict())  # the plain names, and no others
        assert not adapt.is_adapted(plain.state_dict())
        assert (plain(ids)[0] - expected).abs().max() < near


def test_lora_is_put_where_it_is_asked_for():
    model = build("gpt")
    adapt.adapt(model, Tuning("lora", rank=2, matrices=("qkv",)), speaks=False)
    learn = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learn == {f"layers.{i}.attention.qkv.lora_{x}" for i in (0, 1) for x in "ab"}
    width, (trained, every) = 16, adapt.count(model)
    assert trained == 2 * 2 * (width + 3 * width)
    assert every == sum(p.numel() for p in build("gpt").parameters()) + trained
    with pytest.raises(ValueError, match="down, embedding, out, qkv, up, and not query"):
        adapt.adapt(build("gpt"), Tuning("lora", matrices=("query",)))
    with pytest.raises(ValueError, match="has embedding"):
        adapt.adapt(build("bigram"), Tuning("lora"), speaks=False)
    with pytest.raises(ValueError, match="is its head too"):
        adapt.adapt(build("gpt", tied=True), Tuning("lora", matrices=("embedding",)))
    adapt.adapt(build("gpt", tied=True), Tuning("lora", matrices=("embedding",)), speaks=False)


def test_a_matrix_may_have_a_rank_of_its_own_and_counts_as_much_as_the_others():
    model = build("gpt")
    adapt.adapt(model, Tuning("lora", rank=2, alpha=6.0, matrices=("embedding:5", "up", "down:1")))
    block = model.layers[0].mlp
    added = (model.embedding.inner, block.up, block.down)
    assert [(len(x.lora_b.T), x.scale) for x in added] == [(5, 3.0), (2, 3.0), (1, 3.0)]
    assert not hasattr(model.layers[0].attention.qkv, "lora_a")


@pytest.mark.parametrize("tuning, speaks, learns", [
    (Tuning("head"), False, set()),
    (Tuning("head"), True, {"head", "embedding.rows"}),
    (Tuning("last", last=1), False, {"layers.1", "norm"}),
    (Tuning("last", last=1), True, {"layers.1", "norm", "head", "embedding.rows"}),
    (Tuning("last", last=2), False, {"layers.0", "layers.1", "norm"}),
    (Tuning(), False, {"layers.0", "layers.1", "norm", "embedding"}),
    (Tuning(), True, {"layers.0", "layers.1", "norm", "embedding", "head"}),
])
def test_what_learns(tuning, speaks, learns):
    model = build("gpt")
    adapt.adapt(model, tuning, speaks)
    found = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(any(name.startswith(f"{part}.") or name == part for part in learns)
               for name in found)
    assert all(any(name.startswith(part) for name in found) for part in learns)


def test_special_rows_change_no_other_token():
    model, plain = build("gpt", tied=True), build("gpt", tied=True)
    adapt.adapt(model, Tuning("lora"))
    with torch.no_grad():
        model.embedding.rows += 1
        ids = tokens()
        assert torch.equal(model.embedding(ids), plain.embedding(ids))
        special = torch.tensor([[END, USER, ASSISTANT, TURN]])
        assert torch.equal(model.embedding(special), plain.embedding(special) + 1)
        x = torch.randn(2, 16)
        assert torch.equal(model.head(x)[:, 4:], plain.head(x)[:, 4:])
        assert model.head.rows is model.embedding.rows


def test_layer_wise_rates():
    classifier = labelled.Classifier(build("gpt"), 3)
    shares = adapt.lr_shares(classifier, 2, 0.5)
    assert shares["model.layers.1.mlp.up.weight"] == 0.5
    assert shares["model.layers.0.mlp.up.weight"] == 0.25
    assert shares["model.embedding.weight"] == 0.125
    assert "head.weight" not in shares and "model.norm.weight" not in shares
    assert adapt.lr_shares(classifier, 2, 1.0) == {}
    names = {p: name for name, p in classifier.named_parameters()}
    for kind in ("adamw", "muon"):
        optimizers = make_optimizers(classifier, kind, 0.1, 0.2, shares)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        of = {names[p]: group for group in groups for p in group["params"]}
        assert of.keys() == set(names.values())
        assert all(group["lr_share"] == shares.get(name, 1.0) for name, group in of.items())
        assert all(group["weight_decay"] == (0.2 if classifier.get_parameter(name).ndim > 1 else 0)
                   for name, group in of.items())


def test_the_embedding_of_a_classifier_has_its_own_rate():
    classifier = labelled.Classifier(build("gpt"), 3)
    optimizers = make_optimizers(classifier, "muon", 0.1, embedding_lr=10.0,
                                 lr_shares={"head.weight": 0.5})
    shares = {id(p): group["lr_share"] for optimizer in optimizers
              for group in optimizer.param_groups for p in group["params"]}
    named = {name: shares[id(p)] for name, p in classifier.named_parameters()}
    assert named.pop("model.embedding.weight") == 10 and named.pop("head.weight") == 0.5
    assert set(named.values()) == {1.0}


def test_training_takes_these_rates(base, reviews, tmp_path, no_plot):
    args = classify.make_parser().parse_args([
        *flags_for(reviews, base, tmp_path / "run"), "--device=cpu", "--steps=3", "--no-baselines",
        "--lr-decay=0.000001", "--weight-decay=0"])
    classifier, _, _ = sorting.load_classifier(classify.new_run(args))
    before = dict(sample.load_run(base)[0].named_parameters())
    moved = {name: (p - before[name]).abs().max().item()
             for name, p in classifier.model.named_parameters()}
    assert 0 < moved["layers.1.mlp.up.weight"] < 1e-6 and moved["embedding.weight"] < 1e-6
    assert moved["norm.weight"] > 1e-3 and classifier.head.weight.abs().max() > 1e-3


def test_while_it_trains_the_tokens_before_the_last_are_labelled_too():
    weights = torch.tensor([1.0, 2.0, 0.5])
    classifier = labelled.Classifier(build("gpt", 30, 16), 3, weights)
    torch.nn.init.normal_(classifier.head.weight)
    sequences, labels = [[0, 5, 6, 7], [0, 8], [0, 9, 10]], [2, 0, 1]
    tokens, targets = map(torch.from_numpy, labelled.batch_of(sequences, labels))
    classifier.early = 0.25

    def nats(row, place):
        at = torch.zeros_like(targets, dtype=torch.bool)
        at[row, place] = True
        logits = classifier(tokens, at)[0]
        return -logits.log_softmax(0)[labels[row]] * classifier.class_weights[labels[row]]

    last = sum(nats(row, len(ids) - 1) for row, ids in enumerate(sequences)) / 3
    before = 0.0  # the later the more, and every text the same
    for row, ids in enumerate(sequences):
        gains = range(1, len(ids))
        before += sum(gain * nats(row, gain - 1) for gain in gains) / sum(gains) / 3
    with torch.no_grad():
        judged = classifier.eval().loss(tokens, targets)
        assert float(judged) == pytest.approx(float(last), abs=1e-5)
        trained = classifier.train().loss(tokens, targets)
        assert float(trained) == pytest.approx(float(0.75 * last + 0.25 * before), abs=1e-5)


# Chats


@pytest.fixture(scope="session")
def letters():
    small = "abcdefghijklmnopqrstuvwxyz"
    return data.CharTokenizer.train([small, small.upper(), " .,:?!-\n"])


def test_the_format_and_what_is_learned(letters):
    talk = Conversation(["ab", "c", "d", "ef"])
    chunk = chat.encode(talk, letters, 100)
    a, b, c, d, e, f = letters.encode("abcdef")
    assert chunk.inputs == [END, USER, a, b, ASSISTANT, c, TURN, USER, d, ASSISTANT, e, f]
    learned = [(i, t) for i, t in enumerate(chunk.targets) if t != IGNORED]
    assert learned == [(4, c), (5, TURN), (9, e), (10, f), (11, TURN)]
    assert chat.question(["ab", "c", "d"], letters) == (chunk.inputs[:10], 0)
    assert chat.question(["abcd"], letters, 5) == ([END, USER, c, d, ASSISTANT], 2)
    assert chat.question(["ab", "c", "def"], letters, 5) == ([USER, d, e, f, ASSISTANT], 7)
    assert chunk.cut == chunk.unseen == 0


@pytest.mark.parametrize("length", range(1, 14))
def test_what_is_too_long_loses_the_beginning_of_the_first_message(letters, length):
    talk = Conversation(["abcd", "xyz"])
    whole = chat.encode(talk, letters, 100)
    chunk = chat.encode(talk, letters, length)
    assert len(chunk.inputs) == len(chunk.targets) == min(length, len(whole.inputs))
    assert chunk.cut == max(0, len(whole.inputs) - length)
    if length >= 7:  # the answer is whole
        assert [t for t in chunk.targets if t != IGNORED] == [*letters.encode("xyz"), TURN]
        assert chunk.inputs[:2] == [END, USER]


def test_unseen_characters_are_counted(letters):
    chunk = chat.encode(Conversation(["a7b8", "c"]), letters, 100)
    assert chunk.unseen == 2 and chunk.inputs == chat.encode(
        Conversation(["ab", "c"]), letters, 100).inputs
    assert pretrained.known_ids(letters, "7") == ([], 1, 0)


def test_capitals_become_small_letters_where_these_alone_are_known(letters):
    small = data.CharTokenizer.train(["annalise"])
    assert pretrained.known_ids(small, "Anna-LISE") == (small.encode("annalise"), 1, 5)
    assert pretrained.known_ids(letters, "Anna") == (letters.encode("Anna"), 0, 0)
    chunk = chat.encode(Conversation(["Anna", "LISE!"]), small, 100)
    assert chunk.inputs == chat.encode(Conversation(["anna", "lise"]), small, 100).inputs
    assert (chunk.lowered, chunk.unseen) == (5, 1)
    bpe = data.BytePairTokenizer.train(["annalise"], 261)
    assert pretrained.known_ids(bpe, "Anna") == (bpe.encode("Anna"), 0, 0)


@pytest.fixture(scope="session")
def pairs():
    return data.BytePairTokenizer.train(["the boot was in her old red boot " * 9], 300)


def test_an_answer_has_the_byte_pairs_that_it_has_within_a_text(pairs):
    chunk = chat.encode(Conversation(["her old red boot", "boot"]), pairs, 99)
    at = chunk.inputs.index(ASSISTANT)
    answer = chunk.targets[at:-1]
    assert chunk.targets[-1] == TURN and answer == chunk.inputs[at - len(answer):at]
    assert pairs.decode(answer) == " boot"
    assert chat.question(["her old red boot"], pairs) == (chunk.inputs[:at + 1], 0)


def test_what_is_spelled_is_learned_letter_by_letter(pairs, letters):
    for tokenizer in (pairs, letters):
        chunk = chat.encode(Conversation(["the boot", "boot"], spelled=True), tokenizer, 99)
        answer = [t for t in chunk.targets if t != IGNORED]
        begin = chat.prefix(tokenizer)
        assert [tokenizer.decode([t]) for t in answer[:-1]] == [*begin, *"boot"]
        plain = chat.encode(Conversation(["the boot", "boot"]), tokenizer, 99)
        at = plain.inputs.index(ASSISTANT)
        assert chunk.inputs[:at] == plain.inputs[:at]  # what is asked stays as it is
    assert len(answer) == 5


@torch.no_grad()
@pytest.mark.parametrize("stage", ["gpt", "lstm", "cnn", "bigram"])
@pytest.mark.parametrize("chunk", [2**25, 100])
def test_every_kind_of_rows_counts_by_its_rows(letters, stage, chunk, monkeypatch):
    monkeypatch.setattr(chat, "CHUNK", chunk)
    model = build(stage, letters.vocab_size, 32)
    long = chat.encode(Conversation(["a", "bcdefghijklmnopqrstuvw"]), letters, 32)
    short = chat.encode(Conversation(["abcdefghijklmnopqrstuvw", "x"]), letters, 32)
    batches = chat.ChatBatches([[long]], 32, 1, ((lambda generator, way: short, 3),))
    tokens, targets, segments, weights = batches(0, 0)
    assert weights.sum() == pytest.approx(4) and np.all((weights > 0) == (targets != IGNORED))
    assert not chat.weights(np.full((2, 3), IGNORED)).any()  # a kind of which nothing is learned
    got = chat.loss_of_answers(model, *map(torch.from_numpy, (tokens, targets, segments, weights)))
    apart = [model.loss(*map(torch.from_numpy, chat.arrays([[chunk]], 32))) for chunk in
             (long, short)]
    assert float(got) == pytest.approx(float(apart[0]) / 4 + float(apart[1]) * 3 / 4, abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("stage", ["gpt", "lstm", "cnn"])
def test_packed_conversations_do_not_see_each_other(letters, stage):
    model = build(stage, letters.vocab_size, 32).double()
    talks = [Conversation(["abc", "de"]), Conversation(["f", "ghi", "j", "k"]),
             Conversation(["lmnop", "q"]), Conversation(["rs", "t"])]
    chunks = [chat.encode(talk, letters, 32) for talk in talks]
    rows = chat.pack(chunks, 32)
    assert len(rows) < len(chunks) and sum(map(len, rows)) == len(chunks)
    assert all(sum(len(chunk.inputs) for chunk in row) <= 32 for row in rows)
    packed = list(map(torch.from_numpy, chat.arrays(rows, 32)))
    total = count = 0
    for chunk in chunks:
        alone = list(map(torch.from_numpy, chat.arrays([[chunk]], len(chunk.inputs))))
        n = int((alone[1] != IGNORED).sum())
        total, count = total + n * model.loss(*alone).item(), count + n
    assert int((packed[1] != IGNORED).sum()) == count
    assert model.loss(*packed).item() == pytest.approx(total / count, abs=1e-10)


def test_chat_batches_follow_from_seed_and_step_and_fill_their_rows(letters):
    chunks = [chat.encode(Conversation(["a" * n, "b"]), letters, 99) for n in range(1, 15)]

    ways = []

    def fresh(generator, way):
        ways.append(way)
        prompt, answer, _ = strings.make(generator)
        return chat.encode(Conversation([prompt, answer]), letters, 99)

    def make():
        return chat.ChatBatches(chat.pack(chunks, 99), 99, 3, ((fresh, 1),), steps=5)

    one, other = make(), make()
    batches = [one(5, step) for step in range(6)]
    assert list(dict.fromkeys(ways)) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    for step in (5, 0, 3):
        assert all(map(np.array_equal, batches[step], other(5, step)))
    assert not np.array_equal(batches[0][0], one(6, 0)[0])
    assert [len(batch[0]) for batch in batches] == [4] * 6
    assert not np.array_equal(batches[0][0][3], batches[1][0][3])
    row = one.rows[-1][:1]  # with room
    first, second = (one.filled(row, [5, epoch], 0.0) for epoch in (0, 1))
    assert first[:1] == second[:1] == row and first != second
    for tokens_, targets, segments, weights in batches:
        learned = targets != IGNORED
        assert np.all(segments[learned] >= 0) and np.all(tokens_[segments == -1] == END)
        assert np.array_equal(weights > 0, learned)


MADE = {  # a clause, and what the rules make of it
    "Anjali brought him hay.": [("What did Anjali bring him?", "hay")],
    "She carried the egg to the school.": [
        ("What did she carry to the school?", "the egg"),
        ("Where did she carry the egg?", "to the school"),
        ("What did she carry the egg to?", "the school")],
    "The goose shut its beak.": [
        ("What shut its beak?", "The goose"), ("What did the goose shut?", "its beak")],
    "There were four eggs.": [("How many eggs were there?", "four")],
    "He wore a red boot.": [("What color boot did he wear?", "red"),
                            ("What did he wear?", "a red boot")],
    "And then nothing of that at all.": [],
}


@pytest.mark.parametrize("clause", MADE)
def test_questions_that_the_rules_make(clause):
    drawn = {pair for seed in range(20)
             for pair in questions.questions(clause, np.random.default_rng(seed), 9)}
    assert drawn >= set(MADE[clause]) and bool(drawn) == bool(MADE[clause])


def test_made_questions_are_answered_by_the_tale_and_other_names_stay_in_step():
    generator = np.random.default_rng(0)
    for tale in tasks.tales()["train"][::60]:
        pairs = questions.questions(tale["text"], generator, 8)
        assert 3 < len(pairs) <= 8 and all(answer in tale["text"] for _, answer in pairs)
        said = [tale["text"], *(text for pair in pairs for text in pair)]
        text, *others = questions.exchanged(said, generator)
        assert all(answer in text for answer in others[1::2])
        names = {word.partition("'")[0] for word in questions.words_of(tale["text"])
                 if questions.is_name(word)}
        assert not names or text != tale["text"]
        new = {word.partition("'")[0] for word in questions.words_of(text)} - {
            word.partition("'")[0] for word in questions.words_of(tale["text"])}
        assert new <= set(strings.words()["train"])


def test_what_is_asked_about_grows_on_the_way():
    def lengths(way):
        return [len(curriculum.question_talk(np.random.default_rng(seed), way).messages[0])
                for seed in range(60)]

    first, last = np.mean(lengths(0.0)), np.mean(lengths(1.0))
    assert last > 2 * first
    assert np.mean(lengths(0.5)) == pytest.approx((first + last) / 2, rel=0.3)


def test_first_a_passage_is_said_again_and_in_the_end_it_is_asked_about():
    def shares(way):
        talks = [curriculum.question_talk(np.random.default_rng(seed), way) for seed in range(60)]
        again = [talk.messages[0] == curriculum.about(talk.messages[1], asked)
                 for talk in talks for asked in curriculum.SAY_AGAIN]
        recalled = [text.startswith("What comes after") for talk in talks
                    for text in (talk.messages[0].rpartition("\n")[2], *talk.messages[2::2])]
        return sum(again) / len(talks), np.mean(recalled)

    first, last = shares(0.0), shares(1.0)
    assert first[0] > 0.6 and first[1] > 0.05 and last == (0, 0)
    assert all(len(curriculum.question_talk(np.random.default_rng(seed), way).messages) // 2
               <= curriculum.MOST for seed in range(20) for way in (0.0, 0.3, 1.0))


def test_what_is_recalled_stands_in_the_text():
    text = tasks.tales()["train"][0]["text"]
    found = questions.recalled(text, np.random.default_rng(0), 6)
    assert len(found) > 3
    for asked, answer in found:
        begin = asked.removeprefix("What comes after ").removesuffix("?")
        assert f"{begin} {answer}" in text


def test_what_is_recalled_follows_at_once():
    text = "He sold 12 red eggs to the old baker - and went home."
    for seed in range(20):
        for asked, answer in questions.recalled(text, np.random.default_rng(seed), 6):
            begin = asked.removeprefix("What comes after ").removesuffix("?")
            assert f"{begin} {answer}" in text and not begin.endswith("sold")


@pytest.mark.parametrize("text", ["Anjali had no hay. She brought him clover.",
                                  "Anjali's goat ran. She brought him clover."])
def test_he_and_she_are_asked_about_by_name(text):
    asked = {question for seed in range(20)
             for question, _ in questions.questions(text, np.random.default_rng(seed), 9)}
    assert {"What did Anjali bring him?", "What did she bring him?"} <= asked


def test_what_is_made_afresh_is_of_training_alone():
    train = " ".join(tale["text"] for tale in tasks.tales()["train"])
    for seed in range(30):
        talk = curriculum.question_talk(np.random.default_rng(seed), seed / 30)
        again = curriculum.question_talk(np.random.default_rng(seed), seed / 30)
        assert talk.messages == again.messages and len(talk.messages) % 2 == 0
        text = talk.messages[0].rsplit("\n\n", 1)[0]
        plain = [part for part in re.split(r"[A-Z]\w*|[^a-z ]", text) if len(part) > 20]
        assert all(part in train for part in plain)
        assert all(answer in talk.messages[0] for answer in talk.messages[1::2])


def test_answers_by_shared_words():
    texts = ["The cat sat on a mat.", "A dog ran.", "The moon rose over the hill."]
    overlap = baselines.Overlap(texts)
    text = "A dog slept in the barn. Ana gave the goat seven figs at noon. The wind blew."
    for question, answer in {
        "How many figs did Ana give?": "seven", "Who gave the goat figs?": "Ana",
        "Where did the dog sleep?": "in the barn", "What blew?": "The wind",
    }.items():
        assert overlap(text, question) == answer
    assert overlap("", "Who?") == ""


@pytest.mark.parametrize("name", strings.TASKS)
def test_answers_of_string_tasks(name):
    quoted = data.load("tales").splits["train"]
    assert quoted
    for prompt, answer, task in strings.examples(20, "train", False):
        if task != name:
            continue
        words = [w for w in prompt.replace(",", " ").replace("?", " ").replace(".", " ")
                 .replace(":", " ").split()]
        if name == "backwards":
            assert answer[::-1] in words
        elif name == "count":
            number = strings.NUMBERS.index(answer)
            letter = next(w for w in words if len(w) == 1 and w.islower() and w != "a"
                          or w == "a" and words.count("a"))
            assert any(w.lower().count(letter) == number for w in words)
        elif name in ("first", "last"):
            assert len(answer) == 1 and any(w[0 if name == "first" else -1] == answer
                                            for w in words)
        elif name == "upper":
            assert answer.isupper() and answer.lower() in [w.lower() for w in words]
        elif name == "sort":
            first, second = answer.split()
            assert first.lower() <= second.lower() and {first, second} <= set(words)
        elif name == "repeat":
            first, second = answer.split()
            assert first == second and first in words
        else:
            assert all(part in words for part in answer.split("-")) and answer.count("-") == 1


def test_string_tasks_hold_out_words_and_phrasings():
    words = strings.words()
    assert min(map(len, words.values())) > 200
    assert not set(words["train"]) & (set(words["test"]) | set(words["val"]))
    names = {name.capitalize() for name in data.load("names").splits["test"]}
    assert {word for word in words["test"] if word[0].isupper()} <= names
    assert not {w for w in words["train"] if w[0].isupper()} & names
    for task in strings.TASKS.values():
        assert len(task.unseen) >= 2 and not set(task.seen) & set(task.unseen)
    assert strings.examples(3, "test", True) == strings.examples(3, "test", True)
    characters = set("".join(data.load("tales").splits["train"]))
    assert all(set(p + a) <= characters for p, a, _ in strings.examples(20, "test", True))


@torch.no_grad()
@pytest.mark.parametrize("stage, more", [("gpt", {}), ("lstm", {}),
                                         ("gpt", dict(position="learned"))])
def test_a_talk_keeps_its_history_in_the_state(letters, stage, more):
    model = build(stage, letters.vocab_size, 200, **more)
    talk = chat.Talk(model, letters, temperature=0)
    said = ["".join(talk.say(text, 6)) for text in ("hello there", "and now?")]
    read = talk.said
    assert read[0] == END and read.count(USER) == read.count(ASSISTANT) == read.count(TURN) == 2
    logits, _ = model(torch.tensor([read]))
    assert (logits[:, -1] - talk.logits).abs().max() < 1e-4
    # each answer is the likeliest one after all that was said before it
    for n in range(2):
        begin = [i for i, token in enumerate(read) if token == ASSISTANT][n] + 1
        end = [i for i, token in enumerate(read) if token == TURN][n]
        assert letters.decode(read[begin:end]) == said[n]
        shown = logits[0, begin - 1:end - 1].clone()
        shown[:, [END, USER, ASSISTANT]] = -math.inf
        assert shown.argmax(1).tolist() == read[begin:end]


@torch.no_grad()
def test_a_talk_in_byte_pairs_is_what_is_answered_at_once(pairs):
    model = build("gpt", pairs.vocab_size, 200)
    torch.nn.init.normal_(model.head.weight)
    prompt, _ = chat.question(["the boot"], pairs)
    (expected, _), = chat.answers(model, pairs, [prompt], 8, 0.0)
    assert "".join(chat.Talk(model, pairs, temperature=0).say("the boot", 8)) == expected


def test_the_space_before_an_answer_is_not_shown(pairs):
    class Parrot(torch.nn.Module):
        """Says " ", "b", "o" and ends, whatever it is told."""

        vocab_size, said = pairs.vocab_size, [*(pairs.encode(c)[0] for c in " bo"), TURN]

        def __init__(self):
            super().__init__()
            self.weight, self.at = torch.nn.Parameter(torch.zeros(1)), -1

        def forward(self, tokens, state=None):
            self.at = 0 if int(tokens[0, -1]) == ASSISTANT else self.at + 1
            logits = torch.zeros(1, tokens.shape[1], self.vocab_size)
            logits[0, -1, self.said[min(self.at, 3)]] = 9.0
            return logits, None

    assert "".join(chat.Talk(Parrot(), pairs, temperature=0).say("boot", 9)) == "bo"


@pytest.mark.parametrize("what", ["sorter", "talker"])
def test_a_run_of_another_format_is_refused(what, request, tmp_path, talks, refusal):
    run = tmp_path / "run"
    shutil.copytree(request.getfixturevalue(what), run)
    for name in ("best.pt", "last.pt"):
        checkpoint = runs.load_checkpoint(run / name)
        del checkpoint["config"]["finetune"]["format"]
        runs.save_checkpoint(run / name, checkpoint)
    main, ask = ((classify.main, "--classify=a") if what == "sorter" else
                 (instruct.main, "--prompt=a"))
    for command, *flags in ((main, f"--resume={run}"), (sample.main, f"--run={run}", ask),
                            (evaluate.main, f"--run={run}", f"--test={talks}")):
        assert "another version of this project" in refusal(command, *flags)


@torch.no_grad()
def test_a_talk_goes_on_when_learned_positions_are_full(letters):
    model = build("gpt", letters.vocab_size, 16, position="learned")
    talk = chat.Talk(model, letters, seed=1)
    for text in ("hello there, how are you today?", "what?", "and now?"):
        assert len("".join(talk.say(text, 30))) <= 30
    assert int(talk.state.position[0]) <= 16


def test_batched_answers_are_those_of_one_alone(letters):
    model = build("gpt", letters.vocab_size, 64)
    prompts = [chat.question([text], letters)[0] for text in ("ab", "hello", "z")]
    together = chat.answers(model, letters, prompts, 10, 0.0)
    alone = [chat.answers(model, letters, [prompt], 10, 0.0)[0] for prompt in prompts]
    assert together == alone


def test_answers_show_how_far_they_are(letters, monkeypatch):
    bars = []

    class Bar(chat.tqdm):
        def __init__(self, *args, **more):
            super().__init__(*args, **more | dict(disable=False, file=io.StringIO()))
            bars.append(self)

    monkeypatch.setattr(chat, "tqdm", Bar)
    model = build("gpt", letters.vocab_size, 64)
    prompts = [chat.question([text], letters)[0] for text in "abcdefgh"]
    ended = [end for _, end in chat.answers(model, letters, prompts, 40, 1.0, rows=3)]
    assert any(ended) and not all(ended)  # of both the bar comes to its end
    assert [(bar.n, bar.total) for bar in bars] == [(320, 320)]


# Runs of classification


def test_a_run_that_sorts(sorter, base):
    names = {"config.json", "metrics.jsonl", "last.pt", "best.pt", "loss.png", "samples.txt",
             "result.json", "report.txt", "confusion.png", "confusion.csv"}
    assert names <= {path.name for path in sorter.iterdir()}
    result = json.loads((sorter / "result.json").read_text("utf-8"))
    assert result["accuracy"] > 0.6 > result["baselines"]["commonest label"]["accuracy"]
    low, high = result["accuracy_interval"]
    assert low <= result["accuracy"] <= high
    assert set(result["baselines"]) == {"random first weights", "n-gram regression",
                                        "commonest label"}
    assert result["baselines"]["n-gram regression"]["accuracy"] > 0.6
    assert result["with_ngrams"]["accuracy"] > 0.6 and min(result["with_ngrams"]["powers"]) > 0
    assert learn.TOGETHER in (sorter / "report.txt").read_text("utf-8")
    assert result["pretraining_loss_before"] == pytest.approx(
        json.loads((base / "result.json").read_text())["val_loss"], rel=1e-4)
    assert result["pretraining_loss_after"] > result["pretraining_loss_before"]
    rows = list(csv.reader(io.StringIO((sorter / "confusion.csv").read_text("utf-8"))))
    assert rows[0][1:] == ["1", "3", "5"]
    assert sum(int(n) for row in rows[1:] for n in row[1:]) == result["test_texts"]


def test_the_run_that_was_pretrained_stays_as_it_was(sorter, base):
    model, _ = sample.load_run(base)
    assert model.training is False
    classifier, _, _ = sorting.load_classifier(sorter)
    theirs = dict(classifier.model.named_parameters())
    assert any(not torch.equal(p, theirs[name]) for name, p in model.named_parameters())


def test_the_labels_of_a_text(sorter, command):
    code, out, err = command(sample.main, f"--run={sorter}", "--classify=the dog sat on the mat")
    assert code == 0, err
    shown = [line.rsplit(maxsplit=1) for line in out.splitlines()]
    assert sorted(label.strip() for label, _ in shown) == ["1", "3", "5"]
    shares = [float(share.rstrip("%")) for _, share in shown]
    assert sum(shares) == pytest.approx(100, abs=0.2) and shares == sorted(shares, reverse=True)
    both = command(sample.main, f"--run={sorter}", "--classify= the dog sat on the mat", "--ngrams")
    assert both[0] == 0 and both[1] != out
    text = "the dog" + 3 * "Q" + 50 * " t"
    both = command(sample.main, f"--run={sorter}", f"--classify={text}", "--ngrams")
    assert both[0] == 0 and "n-grams are of the whole text" in both[2]
    code, out, err = command(sample.main, f"--run={sorter}", f"--classify={text}")
    assert code == 0 and "3 characters" in err and "cut off" in err


def test_n_grams_are_asked_where_there_are_some(sorter, reviews, base, tmp_path, refusal, no_plot):
    saved = runs.load_checkpoint(sorter)["config"]
    found = sorting.load_ngrams(sorter / "last.pt", saved).probabilities(
        np.full((1, 3), 1 / 3), ["the dog"])
    assert found.argmax() == 2
    args = classify.make_parser().parse_args([
        *flags_for(reviews, base, tmp_path / "run"), "--device=cpu", "--steps=1",
        "--no-baselines"])
    run = classify.new_run(args)
    assert "without --no-baselines" in refusal(
        sample.main, f"--run={run}", "--classify=the dog", "--ngrams")
    assert json.loads((run / "result.json").read_text("utf-8"))["with_ngrams"] is None
    assert "--classify=TEXT" in refusal(sample.main, f"--run={sorter}", "--ngrams")
    stopped = tmp_path / "stopped"
    shutil.copytree(sorter, stopped)
    asked = f"--run={stopped}", "--classify=the dog", "--ngrams"
    ngrams = runs.load_checkpoint(sorter / "ngrams.pt")
    for broken in ({"rarity": ngrams["rarity"][1:]}, {"features": "signs"},
                   {"weights": ngrams["weights"][:, 1:]}):
        runs.save_checkpoint(stopped / "ngrams.pt", ngrams | broken)
        assert "another version" in refusal(sample.main, *asked)
    (stopped / "ngrams.pt").unlink()
    assert f"--resume={stopped}" in refusal(sample.main, *asked)


def test_other_commands_pass_over_a_run_that_sorts(sorter, refusal):
    assert "--classify" in refusal(sample.main, f"--run={sorter}")
    assert runs.model_of(sorter / "config.json") is None
    assert newest_results(sorter.parent) == ({}, [])
    assert "sorts texts already" in refusal(
        classify.main, f"--from={sorter}", "--task=topic")


@pytest.mark.parametrize("more", [
    ["--tune=head", "--pool=mean", "--early=0.5"], ["--tune=last"],
    ["--tune=lora", "--rank=2", "--matrices=qkv,up"],
    ["--tune=lora", "--rank=2", "--matrices=embedding"],
    ["--lr-decay=0.5", "--replay=0.3", "--dropout=0.1", "--optimizer=muon"],
])
def test_other_tunings(base, reviews, tmp_path, more, no_plot):
    args = classify.make_parser().parse_args([
        *flags_for(reviews, base, tmp_path / "run"), "--device=cpu", "--steps=4", *more,
        "--no-baselines"])
    run = classify.new_run(args)
    classifier, _, saved = sorting.load_classifier(run)
    before = dict(sample.load_run(base)[0].named_parameters())
    changed = {name for name, p in classifier.model.named_parameters()
               if not torch.equal(p, before[name])}
    if "--matrices=embedding" in more:
        assert changed == {"embedding.weight"}
    elif more[0].startswith("--tune"):  # then of the embedding special tokens alone
        moved = classifier.model.embedding.weight - before["embedding.weight"]
        assert moved[TURN].any() and not moved[adapt.EXTRA:].any()
        changed.remove("embedding.weight")
    if "--tune=head" in more:
        assert not changed
    if "--tune=last" in more:
        assert changed and all(name.startswith(("layers.1", "norm")) for name in changed)
    if "--matrices=qkv,up" in more:
        assert changed == {f"layers.{i}.{m}.weight" for i in (0, 1)
                           for m in ("attention.qkv", "mlp.up")}
    if "--replay=0.3" in more:
        assert "head.weight" in changed
    assert json.loads((run / "result.json").read_text())["trained_parameters"] == \
        saved["finetune"]["trained_parameters"]


def test_what_lora_is_of_where_nothing_is_said_reaches_the_run(
    base, reviews, tmp_path, no_plot, monkeypatch
):
    chosen = dict(matrices="embedding", rank=3, alpha=6.0)
    monkeypatch.setattr(usual, "lora", lambda texts, args, tokenizer: chosen)
    run = classify.new_run(classify.make_parser().parse_args([
        *flags_for(reviews, base, tmp_path / "run"), "--tune=lora", "--device=cpu", "--steps=2",
        "--no-baselines"]))
    tuning = sorting.load_classifier(run)[2]["finetune"]["tuning"]
    assert (tuning["matrices"], tuning["rank"], tuning["alpha"]) == (("embedding",), 3, 6.0)


def test_long_texts_are_read_as_a_whole():
    lengths = [usual.LONG - 1, usual.LONG, usual.LONG + 9]
    texts = labelled.Encoded([[END] * n for n in lengths], [(0,)] * 3)
    assert usual.pool(texts) == "quarters" and usual.lr(texts) < usual.LR
    assert usual.early(None, "quarters") == 0 < usual.early(None, "last")
    assert usual.embedding_lr(texts, "muon") > 1 == usual.embedding_lr(texts, "adamw")
    long = usual.training(texts, None, "muon")
    asked = [classify.make_parser().parse_args(["--tune=lora", *more])
             for more in ([], ["--rank=4"], ["--matrices=qkv"], ["--replay=0.1"])]
    found = [usual.lora(texts, args, "bpe") for args in asked]
    assert found == [dict(matrices="embedding", rank=rank, alpha=2 * rank) for rank in (32, 4)] + [
        {}, {}]
    assert not usual.lora(texts, asked[0], "char")  # of which a single one tells nothing
    texts.sequences[1].pop()
    assert usual.pool(texts) == "last" and usual.lr(texts) == usual.LR
    short = usual.training(texts, None, "muon")
    assert not usual.lora(texts, asked[0], "bpe")
    assert short["batch_size"] > long["batch_size"] and short["patience"] < long["patience"]
    many = labelled.Encoded([[END] * usual.LONG] * 1600, [(0,)] * 1600)
    steps = [usual.training(many, None, "muon", tune)["steps"] for tune in (None, "lora")]
    assert steps == [100 * usual.LONG_EPOCHS, 100 * usual.LONG_LITTLE_EPOCHS]


def test_who_learns_little_drops_little_but_not_the_baseline(base, tmp_path, monkeypatch):
    shares = [usual.dropout(tune) for tune in adapt.TUNES]
    begun = pretrained.load(base, usual_dropout=shares[-1])
    given = []
    monkeypatch.setattr(learn, "fit", lambda begun, *_, **__: given.append(begun))
    about = {"config": {"finetune": {"tuning": {"tune": "lora"}}}}
    texts = {"train": labelled.Encoded([[END]], [(0,)])}
    learn.from_random(begun, texts, begun.config, tmp_path / "random", about,
                      Machine("cpu", "float32", False))
    dropout = [each.config.sizes["dropout"] for each in (begun, *given)]
    assert dropout == [usual.LITTLE_DROPOUT, usual.DROPOUT]
    assert shares == [usual.DROPOUT, usual.LITTLE_DROPOUT, usual.DROPOUT, usual.LITTLE_DROPOUT]


@pytest.mark.parametrize("more", [[], ["--tune=lora", "--pool=quarters", "--average=0.9"]])
def test_a_run_that_was_stopped_ends_as_if_it_never_was(base, reviews, tmp_path, monkeypatch,
                                                        more, no_plot):
    flags = ["--device=cpu", "--steps=8", "--eval-every=2", "--dropout=0.1", "--no-baselines",
             *more]
    parse = classify.make_parser().parse_args
    whole = classify.new_run(parse([*flags_for(reviews, base, tmp_path / "whole"), *flags]))
    usual = labelled.LabelBatches.__call__

    def stop(self, seed, step):
        if step == 5:
            raise KeyboardInterrupt
        return usual(self, seed, step)

    monkeypatch.setattr(labelled.LabelBatches, "__call__", stop)
    with pytest.raises(train.Stopped, match="finetune.classify --resume"):
        classify.new_run(parse([*flags_for(reviews, base, tmp_path / "cut"), *flags]))
    # what it has learned so far can be used already
    assert sorting.load_classifier(tmp_path / "cut")[0].training is False
    monkeypatch.undo()
    monkeypatch.setattr(runs, "plot", lambda run, **_: None)
    cut = classify.resume_run(parse([f"--resume={tmp_path / 'cut'}"]))
    for name in ("last.pt", "best.pt"):
        one, other = (runs.load_checkpoint(run / name)["model"] for run in (whole, cut))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    # best.pt is for use, not to go on from, and asking for it costs nothing
    with pytest.raises(ValueError, match="last.pt"):
        classify.resume_run(parse([f"--resume={whole / 'best.pt'}", "--steps=20"]))
    assert (whole / "result.json").exists()


def test_more_steps_are_new_patience_for_the_random_baseline_too(base, reviews, tmp_path, no_plot,
                                                                 monkeypatch):
    regression = baselines.fit_one([("a", (0,)), ("b", (1,)), ("c", (2,))], 3,
                                   {"features": "words", "decay": 1.0})
    monkeypatch.setattr(learn, "fit_ngrams", lambda *_: (Both(regression, (0.5, 0.5)), {}))
    parse, run = classify.make_parser().parse_args, tmp_path / "run"
    classify.new_run(parse([*flags_for(reviews, base, run), "--device=cpu", "--steps=6",
                            "--eval-every=2", "--patience=2"]))
    path = run / "random/last.pt"
    checkpoint = runs.load_checkpoint(path)
    checkpoint["progress"]["since_best"] = 2  # as if patience had run out
    runs.save_checkpoint(path, checkpoint)
    classify.resume_run(parse([f"--resume={run}"]))
    assert runs.load_checkpoint(path)["progress"]["step"] == 6
    classify.resume_run(parse([f"--resume={run}", "--steps=8"]))
    assert runs.load_checkpoint(path)["progress"]["step"] == 8
    result = json.loads((run / "result.json").read_text("utf-8"))
    row = result["baselines"]["random first weights"]
    model = sample.load_run(base)[0]
    unused = sum(p.numel() for p in model.head.parameters())  # of the language model
    assert row["trained_parameters"] == result["parameters"] - unused and row["steps"] == 8
    path.write_bytes(b"damaged")  # the baseline then begins anew
    classify.resume_run(parse([f"--resume={run}", "--steps=8"]))
    assert runs.load_checkpoint(path)["progress"]["step"] > 0


def test_a_replayed_text_is_found_from_another_folder(base, passage, reviews, tmp_path, no_plot,
                                                      monkeypatch):
    parse, run = classify.make_parser().parse_args, tmp_path / "run"
    monkeypatch.chdir(passage.parent)
    classify.new_run(parse([*flags_for(reviews, base, run), "--device=cpu", "--steps=2",
                            "--replay=0.2", f"--replay-data={passage.name}", "--no-baselines"]))
    monkeypatch.chdir(tmp_path)
    classify.resume_run(parse([f"--resume={run}", "--steps=3"]))
    assert json.loads((run / "result.json").read_text("utf-8"))["steps"] == 3


def test_many_labels_are_shown_in_part(tmp_path, monkeypatch):
    labels = [f"label {n}" for n in range(100)]
    matrix = 5 * np.eye(100, dtype=int)
    matrix[7, 93], matrix[93, 8], matrix[np.arange(20, 60), 3] = 9, 8, 1
    task = tasks.Task("many", labels, {})
    table = report.confused(matrix, task)
    assert len(table.splitlines()) == 1 + report.PAIRS and "of 100 labels only the 20" in table
    assert table.splitlines()[1].split() == "9 times label 7 was taken for label 93".split()
    shown = []
    monkeypatch.setattr(runs, "save_figure", lambda figure, path: shown.append(figure))
    report.plot_confusion(matrix, task, tmp_path)
    few = tasks.Task("few", labels[:report.LABELS], {})
    report.plot_confusion(matrix[:report.LABELS, :report.LABELS], few, tmp_path)
    assert max(shown[0].get_size_inches()) == max(shown[1].get_size_inches()) < 13
    places = [label.get_text() for label in shown[0].axes[0].get_yticklabels()]
    assert len(places) == report.LABELS and {"label 7", "label 93", "label 8"} <= set(places)
    assert "of 100 labels" in shown[0].axes[0].get_title()
    assert len(report.confused(matrix[:30, :30], few).splitlines()) == 32


def test_a_file_is_scored(sorter, reviews, command, tmp_path):
    out = tmp_path / "scores.json"
    code, said, err = command(evaluate.main, f"--run={sorter}", f"--test={reviews}", f"--out={out}")
    assert code == 0, err
    scores = json.loads(out.read_text("utf-8"))
    examples = tasks.read_examples(reviews, "review", "stars")
    classifier, tokenizer, saved = sorting.load_classifier(sorter)
    right = [sorting.assign(classifier, tokenizer, saved, e.text, CPU)[0][0][0] in e.labels
             for e in examples]
    assert scores["texts"] == 120 and scores["accuracy"] == pytest.approx(np.mean(right))
    assert f"{np.mean(right):.3f}" in said
    ngrams = sorting.load_ngrams(sorter, saved)
    both = [sorting.assign(classifier, tokenizer, saved, e.text, CPU, ngrams)[0][0][0] in e.labels
            for e in examples]
    assert scores["with_ngrams"]["accuracy"] == pytest.approx(np.mean(both))
    assert learn.TOGETHER in said
    again = [f"--run={sorter}", f"--test={reviews}"]
    assert command(evaluate.main, *again, f"--out={out}")[0] == 0  # its own it may overwrite
    kept = tmp_path / "mine.csv"
    shutil.copy(reviews, kept)
    for path, why in ((kept, "not overwritten"), (sorter / "best.pt", "not overwritten"),
                      (sorter / "config.json", "not overwritten"), (tmp_path, "is a folder")):
        before = path.read_bytes() if path.is_file() else b""
        code, _, err = command(evaluate.main, *again, f"--out={path}")
        assert code == 2 and why in err
        assert not before or path.read_bytes() == before


# What has been learned from


def test_texts_that_were_learned_from_are_found(letters):
    capitals = data.CharTokenizer.train(["the catson"])
    texts = seen.readable([("The cat!",), ("sat",), ("a", "b", "c")], capitals)
    assert texts == [("the cat",), ("sat",), ("a", "", "c")]
    earlier = seen.remember({"train": [("ran",)], "val": []}, None)
    learned = seen.remember({"train": texts[:1], "val": texts[1:2]}, earlier)
    assert {split: len(keys) for split, keys in learned.items()} == {"train": 2, "val": 1}
    asked = [("the cat",), ("the cat", "sat"), ("sat",), ("ran",), ("ca",)]
    found = seen.look(asked, learned, None)
    assert found == {"train": 2, "val": 1, "pretraining": None}
    assert seen.look(asked, {}, None)["train"] == 0 and seen.look(asked, None, None)["val"] is None


@pytest.mark.parametrize("at", range(seen.WINDOW))
def test_a_passage_is_found_wherever_it_stands_in_the_pretraining_text(at):
    passage = "".join(map(chr, range(1000, 1000 + 2 * seen.WINDOW)))
    document = "x" * (3 * seen.WINDOW + at) + passage + "y" * 50
    text = data.Dataset("a", "text", {"train": ["short", document]})
    asked = [(passage,), (passage[::-1],), ("short",), ("y" * 10,), ("no", document[5:])]
    assert seen.in_pretraining(asked, text) == 3
    assert seen.in_pretraining([(passage[1:],)], text) == 0  # so short a one counts if it is all
    lines = data.Dataset("a", "lines", {"train": ["anna", passage]})
    assert seen.in_pretraining([("anna",), ("ann",), (passage[1:],), (passage,)], lines) == 2


def test_scores_on_texts_that_were_trained_on_say_so(sorter, reviews, command, tmp_path):
    splits = tasks.from_files(reviews, None, "review", "stars").splits
    path, out = tmp_path / "few.csv", tmp_path / "scores.json"
    rows = [e.text for s, n in (("train", 4), ("val", 3), ("test", 2)) for e in splits[s][:n]]
    long = "the dog ran to the cat.\nwhere is the mat?"
    path.write_text("review,stars\n" + "".join(f'"{text}",3\n' for text in [*rows, long]), "utf-8")
    code, said, err = command(evaluate.main, f"--run={sorter}", f"--test={path}", f"--out={out}")
    assert code == 0, err
    for n, where in ((4, "training split of finetuning"), (3, "validation split"),
                     (1, "text that the run was pretrained on")):
        assert f"note: {n} of the 10 texts of {path} stand in " in said and where in said
    found = json.loads(out.read_text("utf-8"))["learned_from"]
    assert found == {"train": 4, "val": 3, "pretraining": 1}


def test_scores_on_conversations_trained_on_say_so(talker, base, talks, command, tmp_path):
    out = tmp_path / "scores.json"
    code, said, err = command(evaluate.main, f"--run={talker}", f"--test={talks}", f"--out={out}")
    assert code == 0, err
    found = json.loads(out.read_text("utf-8"))["learned_from"]
    splits = instruct.conversations({"train": talks})[0]
    asked = {s: Counter(talk.messages[0] for talk in part) for s, part in splits.items()}
    assert found == {"train": asked["train"].total(), "val": asked["val"].total(), "pretraining": 0}
    assert f"{found['train']} of the 40 texts of {talks} stand in the training split" in said
    code, said, err = command(evaluate.main, f"--run={base}", f"--test={talks}", f"--out={out}")
    assert code == 0 and "stand in" not in said, err


def test_tales_that_were_trained_on_say_so(letters, few_tales):
    other = [tale for tale in data.tales() if tale not in few_tales["train"]][:5]
    begun = SimpleNamespace(tokenizer=letters)
    learned = seen.remember(instruct.texts_of(instruct.conversations({})[0], begun), None)
    items = judging.Items(few_tales["train"][2:] + few_tales["test"] + other)
    asked = seen.readable(judging.texts_of(items), letters)
    assert seen.look(asked, learned, None)["train"] == 1


def test_a_missing_pretraining_text_is_said(sorter, reviews, command, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "pretraining_text", lambda *_: (None, "it is not here"))
    code, said, err = command(evaluate.main, f"--run={sorter}", f"--test={reviews}",
                              f"--out={tmp_path / 'scores.json'}")
    assert code == 0 and "pretraining text is not here, so whether" in said, err


def test_a_separate_test_file_that_overlaps_says_so(base, reviews, talks, command, tmp_path,
                                                    no_plot):
    splits = tasks.from_files(reviews, reviews, "review", "stars").splits
    path = tmp_path / "test.csv"
    rows = [e for s, n in (("train", 4), ("val", 2)) for e in splits[s][:n]]
    path.write_text("review,stars\nthe dog and the cat,3\n"
                    + "".join(f'"{e.text}",{e.labels[0]}\n' for e in rows), "utf-8")
    code, out, err = command(classify.main, *flags_for(reviews, base, tmp_path / "run"),
                             f"--test={path}", "--steps=1", "--no-baselines")
    assert code == 0, err
    assert f"note: 4 of the 7 texts of {path} stand in the training split" in out
    assert f"note: 2 of the 7 texts of {path} stand in its validation split" in out
    assert "stand in the training split" in (tmp_path / "run/report.txt").read_text("utf-8")
    assert re.search(r"step 1 of 1: .* texts/s", out)  # of which a loss is, and not of tokens
    splits = instruct.conversations({"train": talks, "test": talks})[0]
    path = tmp_path / "test.jsonl"
    known = [talk.messages for s, n in (("train", 3), ("val", 2)) for talk in splits[s][:n]]
    known.append([data.load(json.loads((base / "config.json").read_text())["data"])
                  .splits["train"][0][5:90], "on the mat."])
    path.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r, *_ in known),
                    "utf-8")
    code, out, err = command(
        instruct.main, f"--from={base}", f"--train={talks}", f"--test={path}", "--steps=1",
        "--block-size=64", f"--out={tmp_path / 'talks'}")
    assert code == 0, err
    for n, where in ((3, "the training split"), (2, "its validation split"),
                     (1, "the text that the run was pretrained on")):
        assert f"note: {n} of the 6 texts of {path} stand in {where}" in out


# Runs of instruction


def test_a_run_that_answers(talker, base, command):
    result = json.loads((talker / "result.json").read_text("utf-8"))
    before, after = result["before"], result["after"]
    assert after["own_loss"]["nats_per_token"] < before["own_loss"]["nats_per_token"] - 0.5
    assert after["own"].keys() == {"greedy", "sampled"}
    assert before["own"]["greedy"]["exact"]["mean"] <= after["own"]["greedy"]["exact"]["mean"]
    text = (talker / "samples.txt").read_text("utf-8")
    assert "before, greedy" in text and "after, sampled" in text
    code, out, err = command(sample.main, f"--run={talker}", "--chat", "--prompt=where is the t",
                             "--temperature=0", "--length=20")
    assert code == 0 and 0 < len(out) <= 21, err
    model, tokenizer = sample.load_run(talker)
    expected, _ = chat.answers(model, tokenizer, [chat.question(["where is the t"], tokenizer)[0]],
                               20, 0.0)[0]
    assert out == expected + "\n"


def test_talking_in_the_terminal(talker, command, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("where is the t\nand the cat\n\nnever\n"))
    code, out, err = command(sample.main, f"--run={talker}", "--chat", "--length=10")
    assert code == 0 and out.count("\n") >= 2, err


def test_a_line_that_cannot_be_read_does_not_end_the_talk(talker, command, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("777\nand the cat\n\n"))
    code, out, err = command(sample.main, f"--run={talker}", "--chat", "--length=10")
    assert code == 0 and out.strip() and "note: " in err and err.count("> ") == 3


def test_conversations_are_scored(talker, talks, command, tmp_path):
    out = tmp_path / "scores.json"
    code, said, err = command(evaluate.main, f"--run={talker}", f"--test={talks}", f"--out={out}")
    assert code == 0, err
    scores = json.loads(out.read_text("utf-8"))
    assert scores["own"]["greedy"]["n"] == 40 == len(scores["answers"])
    right = [measures.exact(entry["greedy"], entry["expected"]) for entry in scores["answers"]]
    assert scores["own"]["greedy"]["exact"]["mean"] == pytest.approx(np.mean(right))


def test_tales_end_to_end(teller, tmp_path, command, no_plot, monkeypatch, few_tales):
    overlap = baselines.Overlap([tale["text"] for tale in few_tales["train"]])
    judge = judging.Judge(lambda text: "farm", "farm", 0.5, set(), overlap)
    for module in (judging, evaluate):
        monkeypatch.setattr(module, "make_judge", lambda run, machine: judge)
    run = tmp_path / "run"
    code, _, err = command(
        instruct.main, f"--from={teller}", "--steps=2", "--judged=1", "--batch-size=3",
        "--block-size=256", "--tune=lora", f"--out={run}")
    assert code == 0, err
    result = json.loads((run / "result.json").read_text("utf-8"))
    after = result["after"]
    assert after["tales"]["greedy"]["n"] == 1 and after["questions"]["sampled"]["n"] == 2
    assert after["strings"]["greedy"]["unseen"]["n"] == len(strings.TASKS)
    assert after["tales"]["greedy"].keys() >= {"ended", "copied", "topic"}
    assert result["pretraining_loss_before"] > 0 and result["pretraining_loss_after"] > 0
    model, _ = sample.load_run(run)
    assert not adapt.is_adapted(model.state_dict()) and model.block_size == 256
    path = tmp_path / "held-out.jsonl"
    path.write_text(json.dumps(few_tales["test"][0]) + "\n", "utf-8")
    code, said, err = command(evaluate.main, f"--run={run}", f"--test={path}", "--strings=1")
    assert code == 0 and "1 tales" in said and "2 questions" in said, err
    assert (run / "evaluation-held-out.json").exists()
    others = [tmp_path / folder / "held-out.jsonl" for folder in "ab"]  # of the same name
    runs.write_json(run / "evaluation-held-out-2.json",
                    {"run": "", "test": str(others[0]), "learned_from": {}})
    assert [evaluate.usual_out(run, test).name for test in (path, *others)] == [
        f"evaluation-held-out{number}.json" for number in ("", "-2", "-3")]


@pytest.mark.parametrize("kind", ["letters", "pairs"])
def test_the_loss_of_the_true_answers(kind, request):
    tokenizer = request.getfixturevalue(kind)
    model = build("gpt", tokenizer.vocab_size, 64)
    talks = [Conversation(["the", "in"]), Conversation(["h", "red"])]
    found = judging.answer_loss(model, tokenizer, talks, 64, CPU)
    nats = number = 0.0
    for talk in talks:
        prompt, _ = chat.question(talk.messages[:1], tokenizer)
        answer = [*tokenizer.encode(chat.prefix(tokenizer) + talk.messages[1]), TURN]
        logits = model(torch.tensor([prompt + answer]))[0][0].log_softmax(1)
        nats -= sum(logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer))
        number += len(answer)
    assert found["nats_per_token"] == pytest.approx(nats / number, rel=1e-4)
    assert found["bits_per_char"] == pytest.approx(nats / math.log(2) / 7, rel=1e-4)


# Its benchmarks


def test_a_fold_pretrains_on_its_own_training_tales(tmp_path):
    examples = [tasks.as_example(tale, "topic") for tale in data.tales()[:20]]
    for number, splits in enumerate(tasks.folds(examples, 4)):
        folder = benchmark.fold_folder(splits, tmp_path / str(number))
        found = data.load(str(folder)).splits
        assert found == {s: [e.text for e in part] for s, part in splits.items()}


def test_bases_that_are_there_are_not_trained_again(tmp_path, monkeypatch):
    commands = []

    def timed(command):
        commands.append(command[-1])
        run = tmp_path / "bases" / command[-1].split("/")[-1]
        run.mkdir(parents=True, exist_ok=True)
        (run / ("result.json" if "--resume" in command[-1] else "last.pt")).touch()

    monkeypatch.setattr(benchmark, "timed", timed)
    again = [benchmark.pretrain(benchmark.NAMES, "names", tmp_path / "bases", toy)
             for toy in (False, False, False, True)]
    assert len(set(again)) == 2 and again[0] == again[2] != again[3]  # a toy is another
    assert commands == [f"--out={again[0]}", f"--resume={again[0]}", f"--out={again[3]}"]


def test_what_another_version_of_the_code_found_does_not_count(base, tmp_path, monkeypatch):
    run = tmp_path / "base"
    shutil.copytree(base, run)
    task = tasks.make("cats", {s: [tasks.Example("the cat", ("a",)), tasks.Example("a dog", ("b",))]
                               for s in ("train", "val", "test")})
    new = iter([[[0.1, 0.9]], [[0.3, 0.7]]])
    monkeypatch.setattr(benchmark, "trained",
                        lambda *_: ({"test": np.array(next(new))}, {"seconds": 1.0}))

    def found():
        return benchmark.network(run, task, "finetuned", 0, True)[0]["test"].tolist()

    assert found() == found() == [[0.1, 0.9]]
    monkeypatch.setattr(benchmark, "code", lambda: "another")
    assert found() == [[0.3, 0.7]]


def test_few_labels_are_few_to_validate_on_too():
    part = {s: [tasks.Example(f"{s} {n}", ("ab"[n % 2],)) for n in range(200)]
            for s in ("train", "val", "test")}
    part["train"].append(tasks.Example("rare", ("c",)))
    task = tasks.make("few", part)
    kept = benchmark.fewer(task, 0.01).splits
    assert [len(kept[s]) for s in ("val", "test")] == [2, 200] and 3 <= len(kept["train"]) <= 4
    assert {label for e in kept["train"] for label in e.labels} == set("abc")
    assert benchmark.fewer(task, 1.0).splits == part


def test_the_regression_weighs_the_labels_of_a_skewed_set_as_the_network_does(monkeypatch):
    given = []
    for name in ("fit", "fit_one"):
        plain = getattr(baselines, name)
        monkeypatch.setattr(baselines, name, lambda *args, plain=plain:
                            given.append(args[3]) or plain(*args))
    part = [tasks.Example(f"text {n}", ("b" if n % 20 == 0 else "a",)) for n in range(60)]
    task = tasks.make("skewed", {"train": part, "val": part, "test": part})
    found = np.eye(2)[[int(e.labels[0] == "b") for e in part]]  # the network knows it all
    networks = {"finetuned": 2 * [{"val": found, "test": found}]}
    right = benchmark.right_of(task, networks, toy=True)
    labels = [(int(e.labels[0] == "b"),) for e in part]
    expected = labelled.class_weights(labels, 2, 0.5).tolist()
    assert len(given) == 3 and all(w.tolist() == expected != [1, 1] for w in given)
    assert [right[name].mean() for name in ("finetuned", learn.TOGETHER, "commonest label")] == [
        1, 1, 0.95]


def test_how_far_finetuning_is_ahead():
    right = {"finetuned": np.array([1, 1, 0.5, 0]), "n-gram regression": np.array([1, 0, 0, 0.0])}
    costs = {"finetuned": [{"trained_parameters": 5, "seconds": n} for n in (1, 9, 2)]}
    rows = benchmark.judged("topic", right, costs, folds=4)
    assert (rows[0]["trained_parameters"], rows[0]["seconds"]) == (5, 2)
    assert "seconds" not in rows[1]
    assert [row["accuracy"] for row in rows] == [0.625, 0.25]
    assert rows[1]["behind_finetuned"] == 0.375 and "behind_together" not in rows[1]
    low, high = rows[1]["behind_finetuned_interval"]
    assert low <= 0.375 <= high and "0.625" in benchmark.table(rows)
    right[learn.TOGETHER] = np.array([1, 1, 1, 0.0])
    rows = benchmark.judged("topic", right, costs)
    assert [row.get("behind_together") for row in rows] == [0.125, 0.5, None]
    assert "| +0.500 (" in benchmark.table(rows)


def test_the_table_of_the_chain_is_over_seeds_of_one_choice():
    def row(seed, steps, right):
        tasks_ = {"first": right, "last": 1.0}
        return {"tokens": "1024", "seed": seed, "pretrain": chain.PRETRAIN, "steps": steps,
                "seconds": 60.0, "bits_per_char": 2.0, "questions": [right] * 8 + [0.0] * 4,
                "strings_seen": tasks_, "strings_unseen": tasks_,
                "environment": {"threads": 1 + seed}}

    rows = [row(1, chain.STEPS, 1.0), row(0, chain.STEPS, 0.0), row(0, 7, 1.0)]
    lines = chain.table(rows).splitlines()
    assert len(lines) == 4 and "0.750 ±" in lines[2] and "1.000" in lines[3]
    assert lines[2].endswith("| 1 on 2 threads |")  # seed 0 had one
    assert [r["seed"] for r in chain.chosen(rows)] == [0, 1]
    assert chain.some(list(range(20))) == list(range(0, 16, 2)) and chain.some([3]) == [3]


def test_toy_rows_do_not_go_among_the_results(refusal, monkeypatch):
    for main in (benchmark.main, chain.main):
        assert "--toy is not for the results" in refusal(main, "--toy")


def test_seconds_and_memory_of_a_process(tmp_path):
    command = [sys.executable, "-c", "x = bytes(range(256)) * 2**18"]
    seconds, peak = tunings.measured(command, tmp_path / "log")
    assert seconds > 0 and (peak is None or peak > 2**26)
    with pytest.raises(ValueError, match="no file"):
        tunings.measured([sys.executable, "-c", "raise SystemExit('no file')"], tmp_path / "log")


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_sorts_names(stage, small, start, words, spelled, command, tmp_path, no_plot):
    run, out = tmp_path / stage, tmp_path / "sorts"
    start(*small(stage), f"--data={words}", "--lines", "--steps=2", "--batch-size=8",
          "--block-size=8", f"--out={run}")
    code, said, err = command(
        classify.main, f"--from={run}", f"--train={spelled}", "--steps=60", "--lr=0.05",
        "--batch-size=16", "--eval-every=60", "--no-baselines", f"--out={out}")
    assert code == 0, err
    losses = [line["val_loss"] for line in runs.read_metrics(out)]
    assert losses[0] == pytest.approx(math.log(3), abs=1e-4) and losses[1] < losses[0] - 0.1
    code, said, err = command(sample.main, f"--run={out}", "--classify=Kanas")
    assert code == 0 and len(said.splitlines()) == 3, err


# GPT-2's weights


def test_gpt2_weights_sort_and_answer(tmp_path, monkeypatch, command, no_plot, reviews, talks):
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    made = [bytes([n]) for n in range(256)] + [b"\xff%d" % n for n in range(50_000)]
    monkeypatch.setattr("data.tokenizer.gpt2_vocabulary", lambda: made)
    tokenizer = data.GPT2Tokenizer()  # takes longer to make than all that is done with it
    monkeypatch.setattr(data.GPT2Tokenizer, "from_dict", lambda d: tokenizer)
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=64)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "theirs")
    from nanogpt import weights

    run = tmp_path / "gpt2"
    code, _, err = command(weights.main, f"--from={tmp_path / 'theirs'}", f"--out={run}")
    assert code == 0, err
    code, out, err = command(
        classify.main, f"--from={run}", f"--train={reviews}", "--text=review", "--label=stars",
        "--steps=2", "--no-baselines", "--tune=lora", f"--out={tmp_path / 'sorts'}")
    assert code == 0 and "not here" in out, err
    code, out, err = command(sample.main, f"--run={tmp_path / 'sorts'}", "--classify=the cat")
    assert code == 0 and len(out.splitlines()) == 3, err
    for tune in ("all", "lora"):
        path = tmp_path / f"answers-{tune}"
        code, out, err = command(instruct.main, f"--from={run}", f"--train={talks}", "--steps=2",
                                 "--judged=2", f"--tune={tune}", f"--out={path}")
        assert code == 0, err
        model, _ = sample.load_run(path)
        assert model.head.weight is model.embedding.weight and model.limit == 64
        code, out, err = command(sample.main, f"--run={path}", "--chat", "--prompt=hello",
                                 "--length=80")
        assert code == 0, err


# What cannot work is said


@pytest.mark.parametrize("content, said", [
    ("", "empty"),
    ("text,label\n", "no line"),
    ("review,score\nfine,1\n", "has no column 'text'; it has review, score"),
    ("fine,1\nbad,2\n", "it has fine, 1, by its first line, which must name the columns"),
    ("fine\t1\nbad\t2\n", "it has fine, 1, by its first line, which must name the columns"),
    ("text,label\nfine,1\n,2\n", "line 3: the text is empty"),
    ("text,label\nfine,1\nbad,\n", "line 3: the label is empty"),
    ("text,label\nfine,1,2\n", "line 2 has 3 cells"),
    ('text,label\nfine,1\n"bad,2\n', "is no CSV"),
    ("text,label\nthe cat,1\nthe dog,1\nthe mat,1\nthe t,1\nthe c,1\n", "sorting needs two"),
    ("text,label\nthe cat,1\nthe dog,2\n", "too few"),
    ("text,label\n" + "".join(f"the {n * 't'},{n}\n" for n in range(60)),
     "'label' names them: is that the right column?"),
    ("text,label\n" + 9 * "the cat,1\n", "only one distinct text"),
])
def test_wrong_tables(content, said, base, tmp_path, refusal):
    path = tmp_path / "a.csv"
    path.write_text(content, "utf-8")
    assert said in refusal(classify.main, f"--from={base}", f"--train={path}")


@pytest.mark.parametrize("line, said", [
    ("{", "line 2: expected a JSON object"),
    ("[" * 100_000, "line 2: this JSON cannot be read (nested too deeply)"),
    ('{"prompt": ' + "9" * 5000 + "}", "line 2: this JSON cannot be read (Exceeds the limit"),
    ("[1]", "line 2: expected a JSON object, and it is [1]"),
    ('{"prompt": "a"}', 'line 2: expected "prompt" and "response"'),
    ('{"prompt": "a", "response": " "}', 'line 2: expected "prompt" and "response"'),
    ('{"messages": []}', "line 2: expected \"messages\" as a list"),
    ('{"messages": [{"role": "user", "content": "a"}]}', "odd number"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}',
     "message 2 has the role 'system'"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]}',
     "message 2 has no text"),
])
def test_wrong_conversations(line, said, base, tmp_path, refusal):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n' + line + "\n", "utf-8")
    assert said in refusal(instruct.main, f"--from={base}", f"--train={path}")
    assert f"{path}, line 2" in refusal(evaluate.main, f"--run={base}", f"--test={path}")


@pytest.fixture(scope="session")
def spelled(words, tmp_path_factory):
    """A CSV of the lines that lines_run has learned, some with capitals, and how each ends."""
    path = tmp_path_factory.mktemp("spelled") / "spelled.csv"
    rows = [(word.capitalize() if n % 3 == 0 else word, word[-1])
            for n, word in enumerate(words.read_text("utf-8").split())]
    path.write_text("text,label\n" + "".join(f"{t},{label}\n" for t, label in rows), "utf-8")
    return path


def test_capitals_are_read_as_small_letters(lines_run, spelled, command, tmp_path, no_plot):
    run = tmp_path / "run"
    code, out, err = command(classify.main, f"--from={lines_run}", f"--train={spelled}",
                             "--steps=2", "--no-baselines", f"--out={run}")
    assert code == 0, err
    assert out.count("have capitals") == 1 and "note: 20 texts have capitals" in out
    said = {}
    for text in ("Kanas", "kanas"):
        code, said[text], err = command(sample.main, f"--run={run}", f"--classify={text}")
        assert code == 0 and ("1 capitals" in err) == (text == "Kanas")
    assert said["Kanas"] == said["kanas"]


@pytest.mark.parametrize("where", ["train", "test"])
def test_a_text_that_cannot_be_read_is_named(lines_run, sorter, spelled, tmp_path, refusal, where):
    path = tmp_path / "odd.csv"
    path.write_text(spelled.read_text("utf-8") + "😀,s\n", "utf-8")
    files = {"train": spelled, "test": spelled} | {where: path}
    flags = [f"--{name}={file}" for name, file in files.items()]
    said = refusal(classify.main, f"--from={lines_run}", *flags, f"--out={tmp_path / 'run'}")
    assert f"{path}, line 62: the text '😀'" in said and not (tmp_path / "run").exists()
    path.write_text("review,stars\nthe cat,3\n777,1\n", "utf-8")
    assert f"{path}, line 3: " in refusal(evaluate.main, f"--run={sorter}", f"--test={path}")


def test_a_message_that_cannot_be_read_is_named(base, talker, talks, tmp_path, refusal):
    path = tmp_path / "odd.jsonl"
    odd = json.dumps({"prompt": "the cat", "response": "777"})
    path.write_text(talks.read_text("utf-8") + odd + "\n", "utf-8")
    for said in (
        refusal(instruct.main, f"--from={base}", f"--train={path}", f"--out={tmp_path / 'run'}"),
        refusal(instruct.main, f"--from={base}", f"--train={talks}", f"--test={path}",
                f"--out={tmp_path / 'run'}"),
        refusal(evaluate.main, f"--run={talker}", f"--test={path}"),
    ):
        assert f"{path}, line 41: " in said and "'777'" in said
    assert not (tmp_path / "run").exists()


def test_labels_of_commas_alone(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,label\nSami,"Arabic, Finnish"\nAnn,","\n', "utf-8")
    with pytest.raises(ValueError, match="line 3: the label is ',', which names none"):
        tasks.read_examples(path, "text", "label", parted=True)


def test_half_a_character_is_read_as_one_that_is_unknown(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a \\ud800", "label": "x"}\n', "utf-8")
    assert tasks.read_examples(path, "text", "label") == [tasks.Example("a \ufffd", ("x",))]


def test_what_the_network_cannot_make_numbers_of(base, reviews, tmp_path, refusal):
    run = tmp_path / "run"
    shutil.copytree(base, run)
    for name in ("best.pt", "last.pt"):
        checkpoint = runs.load_checkpoint(run / name)
        checkpoint["model"]["embedding.weight"][END] = math.nan
        runs.save_checkpoint(run / name, checkpoint)
    said = refusal(classify.main, *flags_for(reviews, run, tmp_path / "out"), "--early=0")
    assert "no finite numbers" in said
    # and where nothing was saved, that there is nothing to go on from
    (tmp_path / "out/config.json").write_text("{}", "utf-8")
    said = refusal(classify.main, *flags_for(reviews, base, tmp_path / "out"))
    assert "remove it" in said and "--resume" not in said


def test_unknown_labels(sorter, base, reviews, tmp_path, refusal):
    path = tmp_path / "other.csv"
    path.write_text("review,stars\nthe cat,3\nthe dog,7\n", "utf-8")
    for said in (
        refusal(evaluate.main, f"--run={sorter}", f"--test={path}"),
        refusal(classify.main, *flags_for(reviews, base, tmp_path / "run"), f"--test={path}"),
    ):
        assert "'7' (1 times)" in said and str(path) in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags, said", [
    ([], "name the pretrained run"),
    (["--from=RUN"], "say what to sort"),
    (["--from=RUN", "--task=topics"], "Did you mean topic"),
    (["--from=RUN", "--task=topic", "--text=review"], "--text is for --train"),
    (["--from=RUN", "--task=topic", "--train=x.csv"], "say what to sort"),
    (["--from=RUN", "--train=x.csv"], "cannot be read"),
    (["--from=nowhere", "--task=topic"], "no run folder"),
    (["--from=RUN", "--task=topic", "--tune=lora", "--rank=0"], "--rank must be"),
    (["--from=RUN", "--task=topic", "--rank=4"], "--rank is for --tune=lora"),
    (["--from=RUN", "--task=topic", "--last=4"], "--last is for --tune=last"),
    (["--from=RUN", "--task=topic", "--lr-decay=0"], "--lr-decay must be"),
    (["--from=RUN", "--task=topic", "--replay=1"], "--replay must be"),
    (["--from=RUN", "--task=topic", "--balance=2"], "--balance must be"),
    (["--from=RUN", "--task=topic", "--early=1"], "--early must be"),
    (["--from=RUN", "--task=topic", "--early=-0.1"], "--early must be"),
    (["--resume=RUN", "--early=0.1"], "--early cannot change"),
    (["--from=RUN", "--task=topic", "--steps=0"], "--steps must be"),
    (["--resume=RUN"], "is no run of finetune.classify"),
    (["--resume=RUN", "--lr=1"], "--lr cannot change"),
])
def test_wrong_flags(flags, said, base, refusal, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    flags = [flag.replace("RUN", str(base)) for flag in flags]
    assert said in refusal(classify.main, *flags)
    assert not Path("runs").exists()


@pytest.mark.parametrize("flags, said", [
    (["--tune=lora", "--matrices=foo"], "and not foo"),
    (["--tune=lora", "--matrices=embedding:0"], "such as embedding:16"),
    (["--tune=lora", "--matrices=up:"], "such as embedding:16"),
    (["--tune=lora", "--matrices=up:1:2"], "such as embedding:16"),
    (["--tune=last", "--last=9"], "--last=9 layers are more"),
    (["--tune=lora", "--alpha=inf"], "--alpha must be"),
    (["--tune=lora", "--matrices=qkv:2,up,qkv"], "has a name twice"),
    (["--replay=0.5", "--replay-data=nowhere.txt"], "nowhere.txt"),
    (["--replay=1.5"], "--replay must be"),
    (["--device=nonsense"], "nonsense"),
    (["--device=cuda:7"], "CUDA"),
    (["--dropout=1"], "dropout must be"),
    (["--block-size=0"], "--block-size must be"),
    (["--average=1"], "--average must be"),
    (["--eval-every=0"], "--eval-every must be"),
    (["--lr=nan"], "--lr must be"),
])
def test_wrong_flags_leave_no_folder(flags, said, base, reviews, talks, refusal, monkeypatch,
                                     tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judging, "judge_chat", None)  # nothing is judged before all is checked
    sort = ["--text=review", "--label=stars", f"--train={reviews}"]
    for command, more in ((classify, sort), (instruct, [f"--train={talks}"])):
        for out in ([], ["--out=there"]):
            assert said in refusal(command.main, f"--from={base}", *more, *flags, *out)
    assert not any(tmp_path.iterdir())


def test_replay_needs_a_text_and_something_to_keep(base, sorter, reviews, talks, refusal, tmp_path,
                                                   monkeypatch):
    out = f"--out={tmp_path / 'run'}"
    sort = flags_for(reviews, base, tmp_path / "run")
    assert "nothing is forgotten" in refusal(classify.main, *sort, "--tune=head", "--replay=0.2")
    flags = (f"--from={base}", f"--train={talks}", out)
    assert "of 8 rows is none" in refusal(instruct.main, *flags, "--replay=0.01")
    assert "--topics is for tales" in refusal(instruct.main, *flags, f"--topics={sorter}")
    monkeypatch.setattr(pretrained, "pretraining_text", lambda *_: (None, "it is gone"))
    for main, several in ((classify.main, sort), (instruct.main, flags)):
        assert "nothing to --replay: it is gone" in refusal(main, *several, "--replay=0.2")
    assert not (tmp_path / "run").exists()


def test_who_judges_topics_must_sort_by_the_topics_of_tales(base, sorter, reviews, tmp_path,
                                                            refusal, teller, few_tales):
    imposter = tmp_path / "imposter"
    imposter.mkdir()
    checkpoint = runs.load_checkpoint(sorter)
    checkpoint["config"]["finetune"]["name"] = "topic"  # as of the user's own topic.csv
    runs.save_checkpoint(imposter / "best.pt", checkpoint)
    for run, said in ((imposter, "not by the topics of the tales"), (base, "does not sort texts")):
        assert said in refusal(instruct.main, f"--from={teller}", f"--topics={run}",
                               "--block-size=64", f"--out={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_a_damaged_classifier_is_said_in_a_sentence(sorter, tmp_path, refusal):
    for number, change in enumerate((
        lambda c: c["model"].pop("head.weight"),
        lambda c: c["model"].update({"head.weight": torch.zeros(5, 5)}),
        lambda c: c["config"]["finetune"].pop("labels"),
    )):
        run = tmp_path / str(number)
        run.mkdir()
        checkpoint = runs.load_checkpoint(sorter)
        change(checkpoint)
        runs.save_checkpoint(run / "best.pt", checkpoint)
        assert f"{run} is damaged" in refusal(sample.main, f"--run={run}", "--classify=the cat")


def test_classify_and_chat_want_a_run_and_nothing_else(sorter, talker, refusal, reviews, talks):
    assert "--classify is for a run of finetune.classify" in refusal(sample.main, "--classify=a")
    assert "--chat is for a run of finetune.instruct" in refusal(sample.main, "--chat")
    for flag in ("--chat", "--prompt=a", "--num=2"):
        said = refusal(sample.main, f"--run={sorter}", "--classify=a", flag)
        assert flag.split("=")[0] in said and "leave one of them out" in said
    said = refusal(evaluate.main, f"--run={sorter}", f"--test={reviews}", "--strings=1")
    assert "--strings is for a run that does not sort" in said
    for flag, why in (("--text=review", "a run that sorts"), (f"--topics={sorter}", "tales")):
        assert why in refusal(evaluate.main, f"--run={talker}", f"--test={talks}", flag)


def test_runs_of_a_wrong_kind(base, lines_run, sorter, talker, refusal, tmp_path, start, words,
                              few_tales):
    assert "never seen" in refusal(instruct.main, f"--from={lines_run}")
    assert "no run of finetune.instruct" in refusal(instruct.main, f"--resume={sorter}")
    assert "never learned to talk" in refusal(sample.main, f"--run={base}", "--chat")
    assert "does not sort" in refusal(sample.main, f"--run={base}", "--classify=a")
    assert "is empty" in refusal(sample.main, f"--run={sorter}", "--classify=")
    assert "never seen" in refusal(sample.main, f"--run={sorter}", "--classify=QQQ")
    numpy = tmp_path / "numpy"
    start("--model=bigram", "--backend=numpy", f"--data={words}", "--lines", "--steps=1",
          f"--out={numpy}")
    for run, name in ((sorter, "classify"), (talker, "instruct")):
        assert f"finetune.{name} --resume" in refusal(train.main, f"--resume={run}")
        assert "finetuned run" in refusal(train.main, f"--config={run / 'config.json'}")
    assert "in NumPy" in refusal(classify.main, f"--from={numpy}", "--task=origin")


def test_learned_positions_are_not_stretched(start, passage, tmp_path, refusal, reviews, command,
                                             no_plot):
    run = tmp_path / "learned"
    start("--model=gpt", "--position=learned", "--layers=1", "--heads=2", "--width=8",
          "--block-size=16", f"--data={passage}", "--steps=1", "--batch-size=2", f"--out={run}")
    assert "learned positions, 16" in refusal(
        classify.main, *flags_for(reviews, run, tmp_path / "out"), "--block-size=32")
    assert pretrained.load(run, fits=512).config.block_size == 16
    code, out, err = command(classify.main, *flags_for(reviews, run, tmp_path / "out"),
                             "--steps=1", "--no-baselines")
    assert code == 0 and "texts of test are longer than the block of 16 tokens" in out, err
    result = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))
    assert result["cut"]["train"] > 60
