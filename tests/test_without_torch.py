"""makemore/without_torch/: its pieces and models against PyTorch's, and its runs."""

import functools
import itertools
import json
import math
import os
import subprocess
import sys
import tomllib
from collections import Counter
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import data
import sample
import train
from data import runs
from makemore import BACKENDS, build
from makemore.model import IGNORED
from makemore.without_torch.activations import ACTIVATIONS
from makemore.without_torch.bigram import Bigram
from makemore.without_torch.initialisation import INITS
from makemore.without_torch.losses import LOSSES, CrossEntropy
from makemore.without_torch.mlp import MLP
from makemore.without_torch.norms import EPSILON, L1, L2, NORMS, PENALTIES, BatchNorm, Dropout
from makemore.without_torch.optimizers import OPTIMIZERS, AdamW, Muon, orthogonalise
from makemore.without_torch.schedules import FINAL, SCHEDULES
from nanogpt import optim
from nanogpt.machine import Machine
from nanogpt.settings import restore_config

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "makemore" / "without_torch"
PIECES = ["activations", "losses", "norms", "initialisation", "optimizers", "schedules"]
TABLES = [ACTIVATIONS, LOSSES, NORMS, PENALTIES, INITS, OPTIMIZERS, SCHEDULES]
PLOT = runs.plot
FILES = {
    "config.json", "metrics.jsonl", "last.pt", "best.pt", "loss.png", "samples.txt", "result.json"
}
V, BLOCK = 11, 8


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch, no_plot):
    monkeypatch.chdir(tmp_path)


def close(a, b, tolerance=1e-10):
    """Of one shape, and no further apart than this share of the largest number in b.

    A largest number below 0.01 counts as 0.01: what ought to be 0 never is quite.
    """
    a, b = (np.asarray(x.detach() if isinstance(x, torch.Tensor) else x) for x in (a, b))
    assert a.shape == b.shape
    assert np.abs(a - b).max(initial=0) <= tolerance * np.abs(b).max(initial=0.01)


def some(rng, *shape, extreme=True):
    """Numbers at random, and among them -50, 0 and 50."""
    ends = rng.choice([-50.0, 0.0, 50.0], shape)
    return np.where(extreme * rng.random(shape) > 0.8, ends, 2 * rng.normal(size=shape))


def shapes(rng, count=8, dimensions=None):
    for _ in range(count):
        yield tuple(rng.integers(2, 7, dimensions or rng.integers(1, 4)))


def leaves(*arrays):
    """Tensors like the arrays, that are to have gradients."""
    return [torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in arrays]


def slope(f, x, direction, step=1e-6):
    """How fast f grows where x goes in that direction: a central difference."""
    return (f(x + step * direction) - f(x - step * direction)) / (2 * step)


def same_slopes(f, x, gradient, rng, count=3):
    """The gradient of f at x agrees with central differences in some directions."""
    for _ in range(count):
        direction = rng.normal(size=x.shape)
        expected = slope(f, x, direction)
        assert (gradient * direction).sum() == pytest.approx(expected, rel=1e-5, abs=1e-6)


# Activations


IN_TORCH = {
    "sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": F.relu, "leaky-relu": F.leaky_relu,
    "elu": F.elu, "gelu": functools.partial(F.gelu, approximate="tanh"), "silu": F.silu,
    "softmax": functools.partial(torch.softmax, dim=-1),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_pytorch_s(name):
    rng, activation = np.random.default_rng(0), ACTIVATIONS[name]
    for shape in [(1,), *shapes(rng)]:
        x, dy = some(rng, *shape), rng.normal(size=shape)
        (x_,) = leaves(x)
        y_ = IN_TORCH[name](x_)
        y_.backward(torch.from_numpy(dy))
        y = activation.forward(x)
        close(y, y_)
        close(activation.backward(x, y, dy), x_.grad)
        small = activation.forward(x.astype(np.float32))
        assert small.dtype == np.float32  # and stays so on the way back
        back = activation.backward(x.astype(np.float32), small, dy.astype(np.float32))
        assert back.dtype == np.float32


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_slope_of_an_activation_is_a_difference(name):
    rng, activation = np.random.default_rng(1), ACTIVATIONS[name]
    for shape in shapes(rng, 4):
        x, dy = some(rng, *shape, extreme=False), rng.normal(size=shape)
        dx = activation.backward(x, activation.forward(x), dy)
        same_slopes(lambda x: (dy * activation.forward(x)).sum(), x, dx, rng)  # noqa: B023


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_does_not_overflow(name):
    x = np.array([[-1e4, 0.0, 1e4]], np.float32)
    with np.errstate(over="raise", invalid="raise"):
        y = ACTIVATIONS[name].forward(x)
        assert np.isfinite(ACTIVATIONS[name].backward(x, y, np.ones_like(x))).all()


# Losses


def loss_cases():
    """(the loss, PyTorch's, outputs, targets), many of each."""
    rng = np.random.default_rng(2)
    for shape in shapes(rng):
        outputs, targets = some(rng, *shape), some(rng, *shape)
        yield LOSSES["mean-squared-error"](), F.mse_loss, outputs, targets
        shares = np.where(rng.random(shape) < 0.5, rng.integers(0, 2, shape), rng.random(shape))
        theirs = F.binary_cross_entropy_with_logits
        yield LOSSES["binary-cross-entropy"](), theirs, outputs, shares
    for N, C in [(1, 1), (1, 5), (6, 2), *shapes(rng, dimensions=2)]:
        outputs, labels = some(rng, N, C), rng.integers(0, C, N)
        for smoothing in (0.0, 0.1):
            theirs = functools.partial(F.cross_entropy, label_smoothing=smoothing)
            yield CrossEntropy(smoothing), theirs, outputs, labels
        yield LOSSES["hinge"](), F.multi_margin_loss, outputs, labels


def test_losses_are_pytorch_s():
    seen = set()
    for loss, theirs, outputs, targets in loss_cases():
        (outputs_,) = leaves(outputs)
        value = theirs(outputs_, torch.from_numpy(targets))
        value.backward()
        close(loss.forward(outputs, targets), value)
        close(loss.backward(outputs, targets), outputs_.grad)
        seen.add(type(loss))
    assert seen == set(LOSSES.values())


def test_the_slopes_of_losses_are_differences():
    rng = np.random.default_rng(3)
    for loss, _, outputs, targets in loss_cases():
        outputs = some(rng, *outputs.shape, extreme=False)
        gradient = loss.backward(outputs, targets)
        same_slopes(lambda x: loss.forward(x, targets), outputs, gradient, rng)  # noqa: B023


def test_label_smoothing_keeps_the_logits_from_growing():
    labels = np.array([0])
    sure, surer = np.array([[10.0, 0, 0]]), np.array([[20.0, 0, 0]])
    for smoothing, better in ((0.0, True), (0.1, False)):
        loss = CrossEntropy(smoothing)
        assert (loss.forward(surer, labels) < loss.forward(sure, labels)) == better


ROWS, NAN = np.zeros((4, 3)), np.array([[0.0, np.nan]])
WRONG_BATCHES = [
    ("cross-entropy", ROWS, np.array([0, 1, 2, 3]), "3.*out of range.*3 classes.*0 to 2"),
    ("cross-entropy", ROWS, np.array([0, -1, 2, 1]), "-1.*out of range"),
    ("cross-entropy", ROWS, np.array([0, 1, 2]), r"\(4, 3\).*\(4,\).*\(3,\)"),
    ("cross-entropy", ROWS, np.zeros((4, 3), int), r"\(4,\).*\(4, 3\)"),
    ("cross-entropy", ROWS, np.zeros(4), "whole numbers.*float64"),
    ("cross-entropy", np.zeros(3), np.zeros(3, int), r"\(N, V\).*\(3,\)"),
    ("cross-entropy", np.zeros((0, 3)), np.zeros(0, int), r"\(0, 3\)"),
    ("cross-entropy", NAN, np.array([1]), "1 of the 2 outputs are NaN"),
    ("hinge", ROWS, np.array([0, 1, 2, 3]), "out of range"),
    ("hinge", NAN, np.array([1]), "NaN"),
    ("mean-squared-error", ROWS, np.zeros((3, 4)), r"\(4, 3\).*\(3, 4\)"),
    ("mean-squared-error", ROWS, np.zeros(3), r"\(4, 3\).*\(3,\)"),  # which would be spread
    ("mean-squared-error", NAN, np.zeros((1, 2)), "NaN"),
    ("binary-cross-entropy", ROWS, np.zeros((4, 1)), r"\(4, 3\).*\(4, 1\)"),
    ("binary-cross-entropy", NAN, np.zeros((1, 2)), "NaN"),
    ("binary-cross-entropy", ROWS, np.full((4, 3), 2.0), "0.*1"),
]


@pytest.mark.parametrize("name, outputs, targets, said", WRONG_BATCHES)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_loss_says_what_does_not_fit(name, outputs, targets, said, direction):
    with pytest.raises(ValueError, match=said):
        getattr(LOSSES[name](), direction)(outputs, targets)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
def test_a_smoothing_that_cannot_work_is_refused(smoothing):
    with pytest.raises(ValueError, match="smoothing"):
        CrossEntropy(smoothing)


# Norms


def norm_in_torch(name, x, gain, shift=None):
    """As PyTorch does it, in training."""
    if name == "batch":
        return F.batch_norm(x, None, None, gain, shift, training=True)
    if name == "layer":
        return F.layer_norm(x, x.shape[1:], gain, shift)
    return F.rms_norm(x, x.shape[1:], gain, eps=EPSILON)


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_is_pytorch_s(name):
    rng, norm = np.random.default_rng(4), NORMS[name]
    for N, C in [(2, 1), (1, 2), *shapes(rng, dimensions=2)]:
        if N == 1 and name == "batch":
            continue  # PyTorch refuses to
        x, dy = some(rng, N, C), rng.normal(size=(N, C))
        x[:, 0] = 3.0  # a feature that is constant
        weights = [rng.normal(size=C) for _ in norm.WEIGHTS]
        x_, *weights_ = leaves(x, *weights)
        y_ = norm_in_torch(name, x_, *weights_)
        y_.backward(torch.from_numpy(dy))
        y, kept = norm.forward(x, *weights)
        close(y, y_)
        gradients = norm.backward(dy, weights[0], kept)
        for ours, theirs in zip(gradients, (x_, *weights_), strict=True):
            close(ours, theirs.grad)


@pytest.mark.parametrize("name", NORMS)
def test_the_slopes_of_a_norm_are_differences(name):
    rng, norm = np.random.default_rng(5), NORMS[name]
    for N, C in shapes(rng, 4, dimensions=2):
        dy = rng.normal(size=(N, C))
        given = [rng.normal(size=shape) for shape in [(N, C), *[(C,) for _ in norm.WEIGHTS]]]
        gradients = norm.backward(dy, given[1], norm.forward(*given)[1])
        for i, gradient in enumerate(gradients):
            def total(x, i=i, given=given, dy=dy):
                return (dy * norm.forward(*given[:i], x, *given[i + 1:])[0]).sum()

            same_slopes(total, given[i], gradient, rng)


def test_the_averages_of_batch_norm_are_pytorch_s():
    rng = np.random.default_rng(6)
    theirs = nn.BatchNorm1d(5, dtype=torch.float64)
    mean, variance, gain, shift = np.zeros(5), np.ones(5), rng.normal(size=5), rng.normal(size=5)
    theirs.load_state_dict(theirs.state_dict() | {
        "weight": torch.from_numpy(gain), "bias": torch.from_numpy(shift)
    })
    for _ in range(4):
        x = 3 + some(rng, 6, 5)
        theirs(torch.from_numpy(x))
        BatchNorm.average(x, mean, variance)
        close(mean, theirs.running_mean)
        close(variance, theirs.running_var)
    x = some(rng, 1, 5)
    expected = theirs.eval()(torch.from_numpy(x))
    close(BatchNorm.forward_averages(x, gain, shift, mean, variance), expected)


# Penalties


def test_dropout():
    rng = np.random.default_rng(7)
    x = 1 + np.abs(rng.normal(size=(400, 500)))  # none is 0
    for share in (0.1, 0.5, 0.9):
        y, mask = Dropout.forward(x, share, rng)
        dropped = y == 0
        assert dropped.mean() == pytest.approx(share, abs=0.01)
        close(y[~dropped], x[~dropped] / (1 - share))
        assert y.mean() == pytest.approx(x.mean(), rel=0.02)
        assert abs(dropped.mean(0) - share).max() < 0.15  # no feature alone, and no row
        assert abs(dropped.mean(1) - share).max() < 0.15
        close(Dropout.backward(x, mask), y, 0)
        again, _ = Dropout.forward(x, share, rng)
        assert ((again == 0) != dropped).any()
    assert Dropout.forward(x.astype(np.float32), 0.5, rng)[0].dtype == np.float32


@pytest.mark.parametrize("share, seed", [(0.5, None), (0.0, 0)])
def test_without_dropout_nothing_changes(share, seed):
    x = np.arange(6.0).reshape(2, 3)
    y, mask = Dropout.forward(x, share, seed if seed is None else np.random.default_rng(seed))
    close(y, x, 0)
    close(Dropout.backward(x, mask), x, 0)


@pytest.mark.parametrize("penalty, theirs", [
    (L1, lambda w: 0.3 * w.abs().sum()), (L2, lambda w: 0.3 / 2 * (w * w).sum()),
])
def test_a_penalty_is_pytorch_s(penalty, theirs):
    rng = np.random.default_rng(8)
    for shape in shapes(rng):
        w = some(rng, *shape)
        (w_,) = leaves(w)
        theirs(w_).backward()
        close(penalty.forward(w, 0.3), theirs(w_))
        close(penalty.backward(w, 0.3), w_.grad)
        w = some(rng, *shape, extreme=False)
        same_slopes(lambda w: penalty.forward(w, 0.3), w, penalty.backward(w, 0.3), rng)


# Initialisation


@pytest.mark.parametrize("rows, columns", [(300, 200), (200, 300), (250, 250)])
def test_first_weights_have_their_variance(rows, columns):
    variances = {
        "zeros": 0, "xavier": 2 / (rows + columns), "he": 2 / columns,
        "orthogonal": 1 / max(rows, columns),
    }
    assert variances.keys() == INITS.keys()
    for name, variance in variances.items():
        w = INITS[name](np.random.default_rng(0), rows, columns)
        assert w.shape == (rows, columns)
        assert w.var() == pytest.approx(variance, rel=0.05)
        assert abs(w.mean()) <= 0.02 * variance**0.5


@pytest.mark.parametrize("rows, columns", [(5, 5), (4, 9), (9, 4), (1, 3), (1, 1)])
def test_orthogonal_rows_or_columns(rows, columns):
    rng = np.random.default_rng(0)
    w = INITS["orthogonal"](rng, rows, columns)
    assert w.shape == (rows, columns)
    close(w @ w.T if rows <= columns else w.T @ w, np.eye(min(rows, columns)), 1e-12)
    # none is likelier than another: without the signs put right, this corner is always negative
    corner = np.mean([INITS["orthogonal"](rng, rows, columns)[0, 0] for _ in range(400)])
    assert abs(corner) < 0.2


def test_he_carries_signals_through_relus_and_xavier_does_not():
    for name, low, high in (("he", 0.3, 3), ("xavier", 0, 0.02)):
        rng = np.random.default_rng(0)
        x = first = rng.normal(size=(50, 256))
        for _ in range(10):
            x = ACTIVATIONS["relu"].forward(x @ INITS[name](rng, 256, 256).T)
        assert low < np.square(x).mean() / np.square(first).mean() < high


@pytest.mark.parametrize("sizes", [{}, dict(layers=3, activation="relu"), dict(norm="layer")])
def test_with_zeros_nothing_but_the_bias_learns(sizes):
    model = MLP(V, BLOCK, 3, 4, 8, **sizes, init="zeros")
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(V, size=(2, 5, BLOCK))
    optimizer = AdamW(model.parameters, decay=0.0)
    for _ in range(5):
        _, gradients = model.gradients(tokens, targets, None, rng)
        for name, gradient in gradients.items():
            assert (np.abs(gradient).max() > 0) == (name == "head.bias"), name
        optimizer.step(gradients, 0.01)


# Optimizers


OPTIMIZERS_IN_TORCH = {
    "sgd": functools.partial(torch.optim.SGD),
    "momentum": functools.partial(torch.optim.SGD, momentum=0.9),
    "nesterov": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "adagrad": functools.partial(torch.optim.Adagrad, eps=1e-10),
    "rmsprop": functools.partial(torch.optim.RMSprop, alpha=0.99, eps=1e-8),
    "adam": torch.optim.Adam,
    "adamw": functools.partial(torch.optim.AdamW, weight_decay=0.01),
}
SHAPES = [(), (4,), (3, 5), (2, 3, 4)]


def gradients_of(rng, weights):
    """One for each weight, of a size that is never the same; some of it 0."""
    scale = 10 ** rng.uniform(-3, 2)
    return {
        name: np.where(rng.random(w.shape) < 0.1, 0, scale * rng.normal(size=w.shape))
        for name, w in weights.items()
    }


@pytest.mark.parametrize("name, given, theirs_given", [
    *((name, {}, {}) for name in OPTIMIZERS if name != "muon"),
    ("momentum", dict(momentum=0.5), dict(momentum=0.5)),
    ("nesterov", dict(momentum=0.5), dict(momentum=0.5)),
    ("rmsprop", dict(keep=0.9), dict(alpha=0.9)),
    ("adam", dict(keep_mean=0.8, keep=0.9), dict(betas=(0.8, 0.9))),
    ("adamw", dict(keep_mean=0.8, keep=0.9, decay=0.3), dict(betas=(0.8, 0.9), weight_decay=0.3)),
])
def test_an_optimizer_is_pytorch_s(name, given, theirs_given):
    rng = np.random.default_rng(9)
    weights = {str(shape): rng.normal(size=shape) for shape in SHAPES}
    leaves_ = leaves(*weights.values())
    ours = OPTIMIZERS[name](weights, **given)
    theirs = OPTIMIZERS_IN_TORCH[name](leaves_, lr=1.0, **theirs_given)
    before = dict(weights)
    for step in range(10):
        lr = 0.1 * (1 + step) / 3 ** (step % 4)
        gradients = gradients_of(rng, weights)
        for w_, g in zip(leaves_, gradients.values()):
            w_.grad = torch.from_numpy(g.copy())
        theirs.param_groups[0]["lr"] = lr
        theirs.step()
        ours.step(gradients, lr)
        for name, w_ in zip(weights, leaves_):
            close(weights[name], w_, 1e-12)
    assert all(weights[name] is w for name, w in before.items())  # changed in place


def muon_by_svd(w, gradients, rates, momentum=0.95, decay=0.0):
    """Muon from its description: every singular value goes through the polynomial on its own."""
    w, mean = w.copy(), np.zeros_like(w)
    for g, lr in zip(gradients, rates, strict=True):
        mean = momentum * mean + (1 - momentum) * g
        u, s, vt = np.linalg.svd(momentum * mean + (1 - momentum) * g, full_matrices=False)
        s = s / (np.sqrt((s * s).sum()) + 1e-7)
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        w = (1 - lr * decay) * w - lr * 0.2 * max(w.shape) ** 0.5 * (u * s) @ vt
    return w


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(5, 5), (3, 7), (7, 3), (1, 4), (4, 1), (1, 1)])
def test_muon_is_its_polynomial_of_the_singular_values(shape, decay):
    rng = np.random.default_rng(10)
    weights = {"w": rng.normal(size=shape)}
    gradients, rates = rng.normal(size=(10, *shape)), [0.1 / (1 + step) for step in range(10)]
    expected = muon_by_svd(weights["w"], gradients, rates, decay=decay)
    optimizer = Muon(weights, decay=decay)
    for g, lr in zip(gradients, rates):
        optimizer.step({"w": g}, lr)
    close(weights["w"], expected)


def test_muon_is_that_of_the_other_models():
    rng = np.random.default_rng(11)
    weights = {"a": rng.normal(size=(6, 6)), "b": rng.normal(size=(16, 16))}
    leaves_ = leaves(*weights.values())
    ours = Muon(weights, decay=0.1)
    theirs = optim.Muon(leaves_, lr=1.0, weight_decay=0.1)
    for step in range(10):
        gradients = {name: rng.normal(size=w.shape) for name, w in weights.items()}
        for w_, g in zip(leaves_, gradients.values()):
            w_.grad = torch.from_numpy(g.copy())
        theirs.param_groups[0]["lr"] = 0.1 / (1 + step)
        theirs.step()
        ours.step(gradients, 0.1 / (1 + step))
        for name, w_ in zip(weights, leaves_):
            close(weights[name], w_)


def test_orthogonalised_singular_values_are_near_1():
    values = np.linalg.svd(orthogonalise(np.random.default_rng(0).normal(size=(8, 24))))[1]
    assert 0.6 < values.min() and values.max() < 1.3
    close(orthogonalise(np.zeros((3, 5))), np.zeros((3, 5)), 0)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("shape", [(4,), (1, 4), (4, 3), ()])
def test_a_gradient_of_the_wrong_shape_is_refused(name, shape):
    # some of these NumPy would spread without a word
    weights = {"the weight": np.zeros((3, 4))}
    with pytest.raises(ValueError) as error:
        OPTIMIZERS[name](weights).step({"the weight": np.ones(shape)}, 0.1)
    for what in ("the weight", "(3, 4)", str(shape)):
        assert what in str(error.value)
    assert not weights["the weight"].any()


# Schedules


def torch_rates(schedule, steps, **given):
    optimizer = torch.optim.SGD(leaves(np.zeros(1)), lr=1.0)
    schedule = schedule(optimizer, **given)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def rates(name, steps, warmup=0, over=0):
    return [SCHEDULES[name](step, steps, warmup) for step in range(steps + over)]


@pytest.mark.parametrize("steps", [12, 40, 101])
def test_schedules_are_pytorch_s(steps):
    kinds = torch.optim.lr_scheduler
    assert rates("constant", steps) == torch_rates(kinds.ConstantLR, steps, factor=1.0)
    drops = [math.ceil(steps / 2), math.ceil(3 * steps / 4)]
    close(rates("step", steps), torch_rates(kinds.MultiStepLR, steps, milestones=drops))
    half = dict(T_max=steps - 1, eta_min=FINAL)
    close(rates("cosine", steps), torch_rates(kinds.CosineAnnealingLR, steps, **half), 1e-9)


@pytest.mark.parametrize("steps, warmup", [(10, 0), (40, 5), (100, 10), (99, 33)])
def test_warm_up_stable_decay_is_three_lines(steps, warmup):
    corners = [-1, warmup, max(warmup, round(0.8 * steps)), steps - 1]
    expected = np.interp(range(steps), corners, [0, 1, 1, 0.01])
    close(rates("wsd", steps, warmup), expected)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 30, 151])
def test_a_schedule_keeps_its_bounds(name, steps):
    for warmup in (0, 1, 3, 20, 200):
        shares = rates(name, steps, warmup, over=10)  # a step too far is no disaster
        assert min(shares) > 0 and max(shares) <= 1
        rising = shares[:warmup] if name in ("cosine", "wsd") else []
        close(rising, np.arange(1, len(rising) + 1) / (warmup + 1))
        falling = shares[len(rising):]
        assert all(a >= b for a, b in itertools.pairwise(falling))
        assert falling[:1] in ([], [1])
        if name != "constant" and warmup < steps - 1 and (name != "step" or steps >= 4):
            assert shares[steps - 1] == pytest.approx(0.01), warmup
            assert shares[-1] == pytest.approx(0.01)


def config(**given):
    """A Config, for the loop itself."""
    plain = dict(
        model="mlp", data="", lines=True, sizes={}, block_size=8, steps=40, batch_size=4, lr=0.01,
        warmup=5, optimizer="muon", weight_decay=0.0, clip=1.0, eval_every=2, patience=0, seed=0,
        device="cpu", dtype="float32", compile=False,
    )
    return train.Config(**plain | given)


def test_the_loop_takes_the_schedule_that_it_is_told():
    found = {
        name: [train.lr_factor(step, config(schedule=name)) for step in range(40)]
        for name in SCHEDULES
    }
    assert found == {name: rates(name, 40, 5) for name in SCHEDULES}
    assert found["cosine"] == [train.lr_factor(step, config()) for step in range(40)]
    assert len(set(map(tuple, found.values()))) == len(SCHEDULES)


# The models against autograd


SMALL = dict(context=3, embed=4, width=8)


def exact(model, shaken=True):
    """The model of build(..., "numpy") in float64, so that only a mistake is larger than 1e-10,
    and with noise on every weight and average, since zeros would hide mistakes."""
    rng, own = np.random.default_rng(1), model.model
    for arrays in (own.parameters, own.averages):
        for name, array in arrays.items():
            arrays[name] = array.astype(np.float64) + shaken * rng.uniform(0, 0.4, array.shape)
            module, last = model.place(name)
            tensor = torch.from_numpy(arrays[name])
            if arrays is own.parameters:
                module.register_parameter(last, nn.Parameter(tensor))
            else:
                module.register_buffer(last, tensor)
    return model


def make(stage, shaken=True, **given):
    torch.manual_seed(0)
    sizes = SMALL | given if stage == "mlp" else given
    return exact(build(stage, V, BLOCK, "numpy", **sizes), shaken)


def known(tokens, segments, reach):
    """For every position the tokens that it knows, the oldest first, None before the beginning."""
    B, T = tokens.shape
    windows = []
    for row, t in itertools.product(range(B), range(T)):
        begin = t
        while begin > 0 and (segments is None or segments[row, begin - 1] == segments[row, t]):
            begin -= 1
        own = tokens[row, begin : t + 1].tolist()[-reach:]
        windows.append([None] * (reach - len(own)) + own)
    return windows


def restated(weights, sizes, tokens, targets, segments):
    """The loss of the MLP in training, in PyTorch, from its description."""
    count = (targets != IGNORED).flatten().tolist()
    seen = itertools.compress(known(tokens, segments, sizes["context"]), count)
    nothing = torch.zeros(sizes["embed"], dtype=torch.float64)
    embedding = weights["embedding.weight"]
    x = torch.stack([
        torch.cat([nothing if token is None else embedding[token] for token in window])
        for window in seen
    ])
    for i in range(sizes["layers"]):
        x = F.linear(x, weights[f"layers.{i}.hidden.weight"], weights[f"layers.{i}.hidden.bias"])
        if sizes["norm"] != "none":
            names = NORMS[sizes["norm"]].WEIGHTS
            x = norm_in_torch(sizes["norm"], x, *(weights[f"layers.{i}.{n}"] for n in names))
        x = IN_TORCH[sizes["activation"]](x)
    logits = F.linear(x, weights["head.weight"], weights["head.bias"])
    return F.cross_entropy(logits, torch.from_numpy(targets).flatten()[torch.tensor(count)])


def random_batch(seed, B, T, packed=False):
    """tokens, targets with padding, and segments (None where a row is one document)."""
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(V, size=(2, B, T))
    targets[rng.random((B, T)) < 0.3] = IGNORED
    targets[:2, 0] = 1, 2  # at least two count, as batch normalisation in PyTorch wants
    segments = np.cumsum(rng.random((B, T)) < 0.3, axis=1) if packed else None
    return tokens, targets, segments


BATCHES = [random_batch(0, 4, 7), random_batch(1, 3, 9, packed=True), random_batch(2, 5, 1)]


@pytest.mark.parametrize("norm", ["none", *NORMS])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradients_of_the_mlp_are_autograd_s(activation, norm):
    for layers, batch in itertools.product((1, 3), BATCHES):
        sizes = SMALL | dict(layers=layers, activation=activation, norm=norm)
        model = make("mlp", **sizes, dropout=0.0).model
        names = list(model.parameters)
        weights = dict(zip(names, leaves(*model.parameters.values())))
        expected = restated(weights, sizes, *batch)
        expected.backward()
        loss, gradients = model.gradients(*batch, np.random.default_rng(0))
        close(loss, expected)
        assert gradients.keys() == weights.keys()
        for name, weight in weights.items():
            close(gradients[name], weight.grad)


@pytest.mark.parametrize("stage", BACKENDS["numpy"])
def test_a_stage_is_that_of_pytorch(stage):
    sizes = SMALL | {"dropout": 0.0} if stage == "mlp" else {}
    ours, theirs = make(stage, **sizes), build(stage, V, BLOCK, **sizes).double()
    theirs.load_state_dict(ours.state_dict())
    for batch in BATCHES:
        tokens, targets, segments = batch_ = [None if x is None else torch.from_numpy(x)
                                              for x in batch]
        close(ours(tokens, segments=segments)[0], theirs(tokens, segments=segments)[0])
        for model in (ours, theirs):
            model.train().zero_grad()
            model.loss(*batch_).backward()
        close(ours.model.loss(*batch), theirs.loss(*batch_))
        close(ours.loss(*batch_), theirs.loss(*batch_), 1e-6)  # the loop's, in float32
        for (name, mine), (its, other) in zip(
            sorted(ours.named_parameters()), sorted(theirs.named_parameters()), strict=True
        ):
            assert name == its
            close(mine.grad, other.grad)


@pytest.mark.parametrize("stage, sizes", [
    ("bigram", {}), ("mlp", dict(dropout=0.4)),
    ("mlp", dict(dropout=0.4, layers=2, norm="batch", activation="silu")),
])
def test_the_slopes_of_a_model_are_differences(stage, sizes):
    # with dropout, and the same is dropped every time
    model, batch = make(stage, **sizes).model, BATCHES[1]
    rng = np.random.default_rng(12)
    loss, gradients = model.gradients(*batch, np.random.default_rng(5))
    for name, weight in model.parameters.items():
        def value(w, name=name, weight=weight):
            before = weight.copy()
            weight[:] = w
            try:
                return model.loss(*batch, np.random.default_rng(5))
            finally:
                weight[:] = before

        same_slopes(value, weight.copy(), gradients[name], rng)
    close(loss, model.loss(*batch, np.random.default_rng(5)), 0)


def test_float32_stays_float32():
    kinds = itertools.product(ACTIVATIONS, ["none", *NORMS])
    models = [MLP(V, BLOCK, **SMALL, activation=a, norm=n, dropout=0.2) for a, n in kinds]
    for model in [Bigram(V, BLOCK), *models]:
        _, gradients = model.gradients(*BATCHES[1], np.random.default_rng(0))
        arrays = [model(BATCHES[1][0])[0], *gradients.values(), *model.parameters.values(),
                  *model.averages.values()]
        assert {array.dtype for array in arrays} == {np.dtype(np.float32)}


@functools.cache
def names_batches(block_size, batch_size):
    dataset = data.load("names")
    tokenizer = data.CharTokenizer.train(dataset.splits["train"])
    return data.batches(dataset, tokenizer, block_size, batch_size), tokenizer.vocab_size


@pytest.mark.parametrize("width", [32, 24])  # twice 4 * 4, for Muon's square blocks; no multiple
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_trained_beside_the_pytorch_mlp_it_stays_beside_it(kind, width):
    batches, size = names_batches(16, 32)
    sizes = dict(context=4, embed=4, width=width, dropout=0.0)
    torch.manual_seed(0)
    ours = exact(build("mlp", size, 16, "numpy", **sizes), shaken=False)
    theirs = build("mlp", size, 16, **sizes).double()
    theirs.load_state_dict(ours.state_dict())
    pair = [(m.train(), optim.make_optimizers(m, kind, 0.01, 0.1)) for m in (ours, theirs)]
    losses = []
    for step in range(50):
        batch = batches(0, step)
        tensors = [torch.from_numpy(array) for array in batch]
        for model, optimizers in pair:
            nats = model.loss(*tensors)
            value = nats.item() if model is theirs else model.model.loss(*batch)
            losses.append(value)
            nats.backward()
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = 0.01 * train.lr_factor(step, config(steps=50))
                optimizer.step()
                optimizer.zero_grad()
        assert losses[-2] == pytest.approx(losses[-1], rel=0, abs=1e-9), step
    assert losses[-1] < losses[0] - 0.3
    for name, weight in theirs.state_dict().items():
        close(ours.state_dict()[name], weight, 1e-7)


# The ladder's contract


MODELS = {
    "bigram": ("bigram", {}),
    "mlp": ("mlp", {}),
    "mlp-batch": ("mlp", dict(layers=2, norm="batch", activation="relu")),
    "mlp-rms": ("mlp", dict(layers=3, norm="rms", activation="gelu", context=1)),
}
each_model = pytest.mark.parametrize("name", MODELS)


def made(name):
    stage, sizes = MODELS[name]
    return make(stage, **sizes).eval()


def draw(*shape, seed=0):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def in_pieces(model, tokens, cuts, segments=None, state=None):
    """The logits of tokens cut before each of cuts, with the state carried, and the last state."""
    logits = []
    parts = tokens.tensor_split(cuts, 1)
    labels = [None] * len(parts) if segments is None else segments.tensor_split(cuts, 1)
    for part, label in zip(parts, labels):
        part_logits, state = model(part, state, label)
        logits.append(part_logits)
    return torch.cat(logits, 1), state


def same_state(a, b):
    assert torch.equal(a.position, b.position) and torch.equal(a.segment, b.segment)
    for mine, others in zip(a.memories, b.memories, strict=True):
        assert all(map(torch.equal, mine, others))


@each_model
def test_logits_ignore_later_tokens(name):
    model, tokens = made(name), draw(2, BLOCK)
    logits, state = model(tokens)
    assert logits.shape == (2, BLOCK, V) and state.position.tolist() == [BLOCK, BLOCK]
    for t in range(BLOCK):
        changed = tokens.clone()
        changed[:, t + 1 :] = (changed[:, t + 1 :] + 1) % V
        close(model(changed)[0][:, : t + 1], logits[:, : t + 1], 1e-12)


@each_model
def test_a_position_knows_the_last_tokens(name):
    model, tokens = made(name), draw(1, 2 * BLOCK)
    last = model(tokens)[0][0, -1]
    seen = set()
    for age in range(2 * BLOCK):
        changed = tokens.clone()
        changed[0, -1 - age] = (changed[0, -1 - age] + 1) % V
        if (model(changed)[0][0, -1] - last).abs().max() > 1e-9:
            seen.add(age)
    assert seen == set(range(model.model.context))


DOCUMENTS = [[3, 5, 4], [1, 10, 1]]
LABELS = [[4, 0, 7], [2, 9, 1]]


def packed():
    """Two rows whose documents begin and end at different places, their labels in no order."""
    rows = [torch.tensor(labels).repeat_interleave(torch.tensor(lengths))
            for labels, lengths in zip(LABELS, DOCUMENTS)]
    return draw(2, 12), torch.stack(rows)


@each_model
def test_a_row_may_be_split_anywhere(name):
    model = made(name)
    tokens, segments = packed()
    for labels in (None, segments):
        logits, state = model(tokens, segments=labels)
        for cuts in [*([cut] for cut in range(1, 12)), list(range(1, 12)), [3, 8]]:
            pieces, last = in_pieces(model, tokens, cuts, labels)
            close(pieces, logits, 1e-12)
            same_state(last, state)


@each_model
def test_packed_documents_give_the_logits_of_each_alone(name):
    model = made(name)
    tokens, segments = packed()
    logits, state = model(tokens, segments=segments)
    assert state.position.tolist() == [lengths[-1] for lengths in DOCUMENTS]
    for row, lengths in enumerate(DOCUMENTS):
        alone = [model(document[None])[0][0] for document in tokens[row].split(lengths)]
        close(logits[row], torch.cat(alone), 1e-12)


PROMPTS = [[1, 2, 3, 4, 5], [6], [7, 8, 9, 1, 2, 3, 4], [5, 5]]


@each_model
def test_rows_of_a_state_are_selected_reordered_and_repeated(name):
    model = made(name)
    tokens, segments = sample.pack_prompts(PROMPTS)
    _, state = model(tokens, segments=segments)
    rows = [2, 0, 0, 3, 1]
    more = draw(len(rows), 5)
    logits, _ = model(more, state.rows(torch.tensor(rows)))
    for i, row in enumerate(rows):
        alone, _ = model(torch.cat([torch.tensor(PROMPTS[row]), more[i]])[None])
        close(logits[i], alone[0, len(PROMPTS[row]) :], 1e-12)


@each_model
@pytest.mark.parametrize("steps", [1, BLOCK])
def test_forward_leaves_its_state_as_it_was(name, steps):
    model, tokens = made(name), draw(2, steps, seed=1)
    for state in (model(draw(2, BLOCK))[1], model(draw(2, 1))[1]):
        before = deepcopy(state)
        first, after = model(tokens, state)
        model(tokens, after)
        model(tokens, state, torch.ones(2, steps, dtype=torch.int64))
        same_state(state, before)
        close(model(tokens, state)[0], first, 0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sizes", [
    None, *(dict(init=init) for init in INITS), *(dict(norm=norm) for norm in NORMS),
    *(dict(activation=activation) for activation in ACTIVATIONS),
    dict(layers=3, activation="relu", init="he"),
], ids=str)
def test_the_first_loss_is_that_of_a_guess(sizes, training):
    torch.manual_seed(0)
    model = build("bigram" if sizes is None else "mlp", 30, 16, "numpy", **sizes or {})
    tokens, targets = torch.randint(30, (2, 8, 16))
    loss = model.train(training).loss(tokens, targets)
    assert loss.item() == pytest.approx(math.log(30), abs=0.1)


def test_first_weights_follow_from_the_seed():
    def weights(stage, seed):
        torch.manual_seed(seed)
        return build(stage, V, BLOCK, "numpy").state_dict()["embedding.weight"]

    for stage in BACKENDS["numpy"]:
        assert torch.equal(weights(stage, 0), weights(stage, 0))
        assert not torch.equal(weights(stage, 0), weights(stage, 1))


def test_dropout_is_off_in_use():
    model, plain = make("mlp", dropout=0.5), make("mlp", dropout=0.0)
    tokens, targets = draw(4, BLOCK), draw(4, BLOCK, seed=1)
    expected = plain.eval().loss(tokens, targets).item()
    assert model.eval().loss(tokens, targets).item() == expected
    assert torch.equal(model(tokens)[0], plain(tokens)[0])
    model.train()
    losses = {model.loss(tokens, targets).item() for _ in range(3)} | {expected}
    assert len(losses) == 4
    with torch.no_grad():  # an evaluation
        model.eval()
        assert model.loss(tokens, targets).item() == expected


def test_batch_norm_moves_its_averages_in_training_alone():
    model = make("mlp", norm="batch", shaken=False)
    tokens, targets = draw(4, BLOCK), draw(4, BLOCK, seed=1)
    begin = deepcopy(model.state_dict())
    model.eval().loss(tokens, targets)
    model(tokens)
    assert all(torch.equal(w, model.state_dict()[name]) for name, w in begin.items())
    model.train().loss(tokens, targets)
    moved = {n for n, w in model.state_dict().items() if not torch.equal(w, begin[n])}
    assert moved == {"layers.0.mean", "layers.0.variance"}


@each_model
def test_saved_and_loaded_gives_the_same_logits(name):
    stage, sizes = MODELS[name]
    sizes = SMALL | sizes if stage == "mlp" else sizes
    torch.manual_seed(0)
    model, other = (build(stage, V, BLOCK, "numpy", **sizes) for _ in range(2))
    optimizers = optim.make_optimizers(model, "muon", 0.05)
    for _ in range(3):
        model.train().loss(draw(3, BLOCK), draw(3, BLOCK, seed=1)).backward()
        optimizers[0].step()
    tokens = draw(2, BLOCK, seed=2)
    logits = model.eval()(tokens)[0]
    assert not torch.equal(other.eval()(tokens)[0], logits)
    torch.save(model.state_dict(), "model.pt")
    other.load_state_dict(torch.load("model.pt", weights_only=True))
    assert torch.equal(other(tokens)[0], logits)


@pytest.mark.parametrize("tokens, said", [([[1, V]], f"token {V}.*0 to {V - 1}"), ([[-1]], "-1")])
def test_a_token_out_of_range_is_refused(tokens, said):
    for stage in BACKENDS["numpy"]:
        with pytest.raises(ValueError, match=said):
            make(stage)(torch.tensor(tokens))


def test_shapes_that_do_not_fit_are_refused():
    for stage, tokens in itertools.product(BACKENDS["numpy"], (draw(2, 3), draw(3))):
        with pytest.raises(ValueError, match=r"\(B, T\)"):
            make(stage).loss(tokens, draw(4))


@pytest.mark.parametrize("given, said", [
    (dict(activation="rel"), "rel.*Did you mean relu"), (dict(norm="bach"), "bach.*batch"),
    (dict(init="xaver"), "xaver.*xavier"), (dict(init=3), "init must be a name"),
    (dict(layers=0), "layers"), (dict(heads=2), "heads"),
])
def test_a_model_that_cannot_be_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        build("mlp", V, BLOCK, "numpy", **given)


# Counting


def counted_slowly(texts, tokenizer):
    """Pair -> how often, over lines that begin and end with END."""
    pairs = Counter()
    for text in texts:
        ids = [data.END, *tokenizer.encode(text), data.END]
        pairs.update(itertools.pairwise(ids))
    return pairs


@pytest.fixture(scope="module")
def few_words():
    """Lines, their tokenizer (which knows letters that never come), and all their batches."""
    texts = ["abba", "abcab", "cab", "bb", "acca", "a", "abba"]
    tokenizer = data.CharTokenizer.train([*texts, "xyz"])
    lines = data.LineBatches([tokenizer.encode(text) for text in texts], 8, 4)
    return texts, tokenizer, [lines.rows(np.arange(4)), lines.rows(np.arange(4, 7))]


def in_float64(model):
    model.parameters = {name: w.astype(np.float64) for name, w in model.parameters.items()}
    return model


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 2.0])
def test_counting_is_counting(smoothing, few_words):
    texts, tokenizer, batches = few_words
    size = tokenizer.vocab_size
    model = in_float64(Bigram(size, 8))
    model.count(batches, smoothing)
    pairs = counted_slowly(texts, tokenizer)
    table = np.exp(model.parameters["embedding.weight"])
    for a in range(size):
        row = [pairs[a, b] + max(smoothing, 1e-9) for b in range(size)]
        close(table[a], np.array(row) / sum(row))  # a row of nothing: all alike


def test_the_default_of_counting_is_a_half(few_words):
    *_, batches = few_words
    given, default = in_float64(Bigram(12, 8)), in_float64(Bigram(12, 8))
    given.count(batches, 0.5)
    default.count(batches)
    assert (given.parameters["embedding.weight"] == default.parameters["embedding.weight"]).all()


def test_counted_pairs_are_where_gradient_descent_ends(few_words):
    _, tokenizer, batches = few_words
    whole = data.LineBatches([tokenizer.encode(text) for text in few_words[0]], 8, 7)(0, 0)
    counted = in_float64(Bigram(tokenizer.vocab_size, 8))
    counted.count(batches, smoothing=0.0)
    least, gradients = counted.gradients(*whole, None, None)
    assert np.abs(gradients["embedding.weight"]).max() < 1e-7

    learnt = Bigram(tokenizer.vocab_size, 8)
    optimizer = AdamW(learnt.parameters, decay=0.0)
    for step in range(300):
        loss, gradients = learnt.gradients(*whole, None, None)
        optimizer.step(gradients, 0.5 * (1 - step / 300))
    assert least - 1e-6 < loss < least + 1e-3
    seen = sorted({a for a, _ in counted_slowly(few_words[0], tokenizer)})
    tables = [m.parameters["embedding.weight"][seen].astype(float) for m in (counted, learnt)]
    close(*(ACTIVATIONS["softmax"].forward(table) for table in tables), 1e-2)


def test_pairs_of_packed_documents_are_counted_where_they_count():
    tokens, targets, segments = random_batch(3, 6, 20, packed=True)
    model = in_float64(Bigram(V, 20))
    model.count([(tokens, targets, segments)], smoothing=1.0)
    pairs = Counter(zip(tokens.flatten().tolist(), targets.flatten().tolist()))
    rows = np.array([[pairs[a, b] + 1 for b in range(V)] for a in range(V)])
    close(np.exp(model.parameters["embedding.weight"]), rows / rows.sum(1, keepdims=True))


# Without PyTorch


def test_no_torch_is_needed():
    code = f"""
import sys
sys.modules["torch"] = None
from importlib import import_module
for name in {["bigram", "mlp", *PIECES]}:
    import_module("makemore.without_torch." + name)
import numpy as np
from makemore.without_torch.mlp import MLP
from makemore.without_torch.optimizers import Adam
model, rng = MLP(9, 8, norm="batch"), np.random.default_rng(0)
tokens, targets = rng.integers(9, size=(2, 4, 8))
optimizer = Adam(model.parameters)
before, gradients = model.gradients(tokens, targets, None, rng)
optimizer.step(gradients, 0.001)
assert model.gradients(tokens, targets, None, rng)[0] < before
"""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True)


def test_an_installation_has_every_folder_of_code():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    there = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("book", "data", "finetune", "kernels", "makemore", "nanogpt")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert there == set(listed["packages"])


# The command line


BATCHES_OF = data.batches
WHOLE = ["--backend=numpy", "--lines", "--steps=10", "--eval-every=4", "--batch-size=16"]
MANY = dict(norm="batch", layers=2, activation="relu", init="he")  # and dropout, of the small ones
RUNS = {
    "bigram": ("bigram", {}, []),
    "mlp": ("mlp", {}, []),
    "mlp-rmsprop": ("mlp", MANY, ["--optimizer=rmsprop", "--schedule=wsd", "--lr=0.003"]),
    "mlp-muon": ("mlp", MANY, ["--weight-decay=0.1"]),
    "mlp-adam": ("mlp", dict(norm="layer"), ["--optimizer=adam", "--schedule=step"]),
}
CLOCKS = {"seconds", "training_seconds", "tokens_per_second", "mfu", "memory", "memory_expected"}


@pytest.fixture(scope="module")
def finished(start, small, words, tmp_path_factory):
    """finished(name): the folder of that run, which was never stopped. Not to be written to."""
    folder = tmp_path_factory.mktemp("numpy")

    @functools.cache
    def run(name):
        stage, sizes, flags = RUNS[name]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runs, "plot", PLOT if name in ("bigram", "mlp-rmsprop") else lambda _: 0)
            patch.setattr(data, "batches", BATCHES_OF)  # whatever the test at hand has planned
            start(*small(stage, **sizes), f"--data={words}", *WHOLE, *flags,
                  f"--out={folder / name}")
        return folder / name

    return run


class Crash(BaseException):
    """Ends a run with all that it has not saved."""


@pytest.fixture
def crash_at(monkeypatch):
    """crash_at(step): the next run ends before it gets the batch of that step; None: no longer."""

    def plan(step):
        def batches(*args, **more):
            give = BATCHES_OF(*args, **more)

            def batch(seed, at):
                if at == step:
                    raise Crash
                return give(seed, at)

            return batch

        monkeypatch.setattr(data, "batches", batches)

    return plan


def unclocked(value):
    """The value with bytes for tensors, and without what depends on the time it took."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {k: unclocked(v) for k, v in value.items() if k not in CLOCKS}
    return [unclocked(v) for v in value] if isinstance(value, (list, tuple)) else value


def ended_alike(run, other):
    """The runs agree bit for bit in every file, but for the time that they took."""
    for name in runs.CHECKPOINTS:
        assert unclocked(runs.load_checkpoint(run / name)) == \
            unclocked(runs.load_checkpoint(other / name)), name
    assert unclocked(runs.read_metrics(run)) == unclocked(runs.read_metrics(other))
    pair = [json.loads((folder / "result.json").read_text()) for folder in (run, other)]
    assert unclocked(pair[0]) == unclocked(pair[1])
    assert (run / "samples.txt").read_bytes() == (other / "samples.txt").read_bytes()


@pytest.mark.parametrize("name", ["bigram", "mlp-rmsprop"])
def test_a_run_makes_all_files(name, finished):
    run, (stage, sizes, flags) = finished(name), RUNS[name]
    assert {path.name for path in run.iterdir()} == FILES
    settings = json.loads((run / "config.json").read_text())
    assert settings["backend"] == "numpy" and settings["device"] == "cpu"
    assert settings["sizes"].items() >= sizes.items()
    assert all(str(settings[f[2:].partition("=")[0]]) == f.partition("=")[2] for f in flags)
    losses = [line["val_loss"] for line in runs.read_metrics(run)]
    assert len(losses) == 4 and losses[-1] < losses[0]
    result = json.loads((run / "result.json").read_text())
    model, _ = sample.load_run(run)
    assert result["parameters"] == sum(p.numel() for p in model.parameters()) > 0
    assert result["steps"] == 10 and result["train_loss"] < losses[0]
    # all that a step changes is saved
    checkpoint = runs.load_checkpoint(run / "last.pt")
    averages = {"layers.0.mean", "layers.0.variance", "layers.1.mean", "layers.1.variance"}
    assert checkpoint["model"].keys() >= (averages if stage == "mlp" else {"embedding.weight"})
    (saved,) = checkpoint["optimizers"]
    memory = [tensor for o in saved["optimizers"] for m in o["memory"].values() for tensor in m]
    assert memory and all(tensor.any() for tensor in memory)
    assert {o["steps"] for o in saved["optimizers"]} == {10}


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_resumed_ends_like_never_stopped(
    name, saved, finished, start, small, words, crash_at, monkeypatch, tmp_path
):
    expected, (stage, sizes, flags) = finished(name), RUNS[name]
    with monkeypatch.context() as patch:
        patch.setattr(train, "SAVE_SECONDS", -1 if saved else 60)
        crash_at(6)
        with pytest.raises(Crash):
            start(*small(stage, **sizes), f"--data={words}", *WHOLE, *flags, "--out=run")
    assert runs.load_checkpoint(Path("run/last.pt"))["progress"]["step"] == (6 if saved else 4)
    crash_at(None)
    start("--resume=run")
    ended_alike(tmp_path / "run", expected)


def test_a_run_is_repeated_from_its_config(finished, start):
    start(f"--config={finished('mlp-rmsprop') / 'config.json'}", "--out=again")
    ended_alike(Path("again"), finished("mlp-rmsprop"))


def test_another_backend_from_a_config(finished, start, small, words):
    config = finished("mlp-muon") / "config.json"
    start(f"--config={config}", "--backend=torch", "--steps=2", "--out=torch")
    changed = json.loads(Path("torch/config.json").read_text())
    sizes = json.loads(config.read_text())["sizes"]
    assert changed["backend"] == "torch"
    assert changed["sizes"] == {n: sizes[n] for n in ("context", "embed", "width", "dropout")}


@pytest.mark.parametrize("name", ["bigram", "mlp-rmsprop"])
def test_samples_of_a_run(name, finished, command):
    for prompt in ("ka", ""):
        given = [f"--run={finished(name)}", f"--prompt={prompt}", "--num=3"]
        code, said, _ = command(sample.main, *given)
        lines = said.splitlines()
        assert code == 0 and len(lines) == 4  # and how many are new
        assert all(line.startswith(prompt) for line in lines[:3]) and any(lines[:3])
        assert command(sample.main, *given)[1] == said
    model, tokenizer = sample.load_run(finished(name))
    prompts = [[data.END, *tokenizer.encode(text)] for text in ("", "ka", "mibel")]
    together = list(sample.generate(model, prompts, 12, temperature=0))
    for i, prompt in enumerate(prompts):
        alone = [token for _, token in sample.generate(model, [prompt], 12, temperature=0)]
        assert [token for row, token in together if row == i] == alone


def test_samples_come_from_the_cpu_whatever_else_there_is(finished, command, monkeypatch):
    # on a machine with a GPU, "auto" is that; here a device without memory stands for it
    def choose(device="auto", *_):
        return Machine("meta" if device == "auto" else device, "float32", False)

    monkeypatch.setattr(sample, "choose", choose)
    code, said, _ = command(sample.main, f"--run={finished('mlp')}", "--num=2")
    assert code == 0 and len(said.splitlines()) == 3


def test_a_text_is_learned_from(start, small, passage):
    start(*small("mlp", norm="batch"), f"--data={passage}", "--backend=numpy", "--steps=3",
          "--block-size=16", "--out=run")
    result = json.loads(Path("run/result.json").read_text())
    assert result["steps"] == 3 and math.isfinite(result["val_loss"])


def test_a_bigram_that_counts(start, words):
    given = ["--model=bigram", "--backend=numpy", f"--data={words}", "--lines", "--count"]
    start(*given, "--out=run")
    result = json.loads(Path("run/result.json").read_text())
    settings = json.loads(Path("run/config.json").read_text())
    assert result["steps"] == settings["steps"] == 0 and settings["count"] is True
    assert {path.name for path in Path("run").iterdir()} == FILES - {"loss.png"}
    model, tokenizer = sample.load_run("run")
    dataset = data.load(str(words), True)
    expected = Bigram(tokenizer.vocab_size, settings["block_size"])
    expected.count(
        data.evaluation_batches(dataset, tokenizer, "train", settings["block_size"])
    )
    table = model.state_dict()["embedding.weight"].numpy()
    assert (table == expected.parameters["embedding.weight"]).all()
    pairs = counted_slowly(dataset.splits["train"], tokenizer)
    counts = np.array([[pairs[a, b] + 0.5 for b in range(len(table))] for a in range(len(table))])
    close(np.exp(table), counts / counts.sum(1, keepdims=True), 1e-5)
    start("--resume=run")  # nothing left to do but to judge
    start(f"--config={Path('run/config.json')}", "--out=again")
    ended_alike(Path("again"), Path("run"))
    start(*given, "--steps=5", "--lr=0.01", "--out=more")  # and goes on from there
    first, *_, last = runs.read_metrics(Path("more"))
    assert first["val_loss"] == result["val_loss"] and last["step"] == 5


def test_a_run_of_before_there_were_backends_is_restored(start, small, words):
    start(*small("bigram"), f"--data={words}", "--lines", "--steps=2", "--out=run")
    for name in runs.CHECKPOINTS:
        checkpoint = runs.load_checkpoint(Path("run", name))
        for field in ("backend", "schedule", "count"):
            del checkpoint["config"][field]
        runs.save_checkpoint(Path("run", name), checkpoint)
    settings = restore_config(checkpoint["config"])
    assert (settings.backend, settings.schedule, settings.count) == ("torch", "cosine", False)
    sample.load_run("run")
    start("--resume=run", "--steps=3")
    assert json.loads(Path("run/result.json").read_text())["steps"] == 3


@pytest.mark.parametrize("given", [
    dict(), dict(activation="relu", layers=3), dict(norm="batch", activation="gelu"),
], ids=str)
@pytest.mark.parametrize("optimizer", ["muon", "sgd"])
def test_an_absurd_learning_rate_leaves_a_good_checkpoint(
    optimizer, given, small, words, command, recwarn
):
    # as for every other model: exit code 1 and a sentence that says how to go on
    flags = [f"--optimizer={optimizer}", "--lr=3e38", "--clip=0", "--warmup=0", "--out=run"]
    given = small("mlp", **given)
    code, _, said = command(train.main, *given, f"--data={words}", *WHOLE, *flags)
    assert code == 1
    assert said.startswith("error: ") and said.count("\n") == 1 and "lower --lr" in said
    saved = runs.load_checkpoint(Path("run/last.pt"))["model"]
    assert all(tensor.isfinite().all() for tensor in saved.values())
    assert [str(warning.message) for warning in recwarn] == []  # nor lines of code on the screen


WRONG = {
    "--model=lstm --backend=numpy": "bigram, mlp",
    "--model=mlp --backend=nunpy": "Did you mean numpy",
    "--model=mlp --backend=numpy --activation=rel": "Did you mean relu",
    "--model=mlp --backend=numpy --norm=bach": "Did you mean batch",
    "--model=mlp --backend=numpy --init=xaver": "Did you mean xavier",
    "--model=mlp --backend=numpy --optimizer=adamm": "Did you mean adam",
    "--model=mlp --backend=numpy --schedule=cosin": "Did you mean cosine",
    "--model=mlp --activation=relu": "--activation",
    "--model=mlp --norm=batch --backend=torch": "--norm",
    "--model=bigram --backend=numpy --init=he": "--init",
    "--model=mlp --backend=numpy --heads=2": "--heads",
    "--model=mlp --backend=numpy --layers=0": "layers",
    "--model=mlp --backend=numpy --dropout=1": "dropout",
    "--model=mlp --backend=numpy --device=cuda": "--device",
    "--model=mlp --backend=numpy --dtype=bfloat16": "--dtype",
    "--model=mlp --backend=numpy --compile": "--compile",
    "--model=mlp --backend=numpy --count": "--count",
    "--model=bigram --count": "--count",
    "--model=bigram --backend=numpy --steps=0": "--steps",
    "--model=mlp --optimizer=sgd": "muon, adamw",
    "--model=mlp --backend=numpy --optimizer=sgd --weight-decay=0.1": "--weight-decay",
}


@pytest.mark.parametrize("flags", WRONG)
def test_what_cannot_work_is_refused_in_a_sentence(flags, words, refusal, tmp_path):
    said = refusal(train.main, f"--data={words}", "--lines", "--steps=2", *flags.split())
    assert WRONG[flags] in said
    assert not any(tmp_path.iterdir())  # no run folder either


# The files


@pytest.mark.parametrize("name", PIECES)
def test_a_file_of_pieces_is_short(name):
    assert len((FOLDER / f"{name}.py").read_text("utf-8").splitlines()) <= 150


def test_every_piece_says_what_it_is_for():
    for name, piece in itertools.chain(*(table.items() for table in TABLES)):
        assert len(piece.__doc__ or "") > 40, name
