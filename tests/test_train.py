"""train.py: the loop, stopping at any moment and going on, what is refused, and the run folder."""

import dataclasses
import errno
import functools
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import data
import makemore
import train
from data import runs
from makemore.recipes import RECIPES
from makemore.without_torch import schedules
from nanogpt.machine import Machine, choose
from nanogpt.optim import Optimizer
from sample import load_run

ROOT = Path(__file__).parents[1]
PLOT = runs.plot
FILES = {
    "config.json", "metrics.jsonl", "last.pt", "best.pt", "loss.png", "samples.txt", "result.json"
}
CLOCKS = {"seconds", "training_seconds", "tokens_per_second", "mfu", "memory", "memory_expected"}
BATCHES = data.batches
# over three epochs, with evaluations at 0, 4, 8 and 10
WHOLE = ["--lines", "--steps=10", "--eval-every=4", "--batch-size=16"]

each_stage = pytest.mark.parametrize("stage", makemore.STAGES)
needs_signals = pytest.mark.skipif(os.name == "nt", reason="os.kill ends a process there")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and kill -9")


class Crash(BaseException):
    """Ends a run with all that it has not saved."""


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch, no_plot):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def at_step(monkeypatch):
    """at_step(step, act): call act before the batch of that step is given."""

    def plan(step, act):
        def batches(*args, **more):
            give = BATCHES(*args, **more)

            def batch(seed, at):
                if at == step:
                    act()
                return give(seed, at)

            return batch

        monkeypatch.setattr(data, "batches", batches)

    return plan


@pytest.fixture
def resume_here(monkeypatch, start):
    """resume_here(run, ...): go on with a run as if nothing had been planned for its batches."""

    def go(path, *flags):
        monkeypatch.setattr(data, "batches", BATCHES)
        start(f"--resume={path}", *flags)

    return go


@pytest.fixture(scope="module")
def never_stopped(start, small, words, tmp_path_factory):
    """never_stopped(stage): the run that all others are to end like. Not to be written to."""
    folder = tmp_path_factory.mktemp("never-stopped")

    @functools.cache
    def run(stage):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runs, "plot", lambda run: None)
            patch.setattr(data, "batches", BATCHES)  # whatever the test at hand has planned
            start(*small(stage), f"--data={words}", *WHOLE, f"--out={folder / stage}")
        return folder / stage

    return run


@pytest.fixture(params=["lines", "text"])
def finished(request, lines_run, text_run):
    """A kind of data and the folder of a finished run on it."""
    return request.param, {"lines": lines_run, "text": text_run}[request.param]


@pytest.fixture
def updates(monkeypatch):
    """A list that gets (optimizer, learning rates, norm of its gradient) at every step of one."""
    seen = []

    def note(optimizer):
        groups = optimizer.param_groups
        squares = [p.grad.double().square().sum().item() for g in groups for p in g["params"]]
        rates = {group["lr"] for group in groups}
        seen.append((type(optimizer).__name__, rates, math.sqrt(sum(squares))))

    def step(optimizer):
        note(optimizer)
        real(optimizer)

    real = Optimizer.step
    monkeypatch.setattr(Optimizer, "step", step)
    return seen


def crash(*_):
    raise Crash


def config(**given):
    """A Config, for the loop itself."""
    plain = dict(
        model="mlp", data="", lines=True, sizes={}, block_size=8, steps=6, batch_size=4, lr=0.01,
        warmup=0, optimizer="muon", weight_decay=0.0, clip=1.0, eval_every=2, patience=0, seed=0,
        device="cpu", dtype="float32", compile=False,
    )
    return train.Config(**plain | given)


def drill(
    run, *, losses=None, evaluate=None, loss=None, batches=None, resume=None, machine=None, **given
):
    """train.train on noise. losses: what the evaluations say, one after the other."""
    run.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = makemore.build("mlp", 9, 8, context=3, embed=4, width=8, dropout=0.2)
    if resume:
        model.load_state_dict(resume["model"])
    else:
        torch.nn.init.normal_(model.head.weight)  # with zeros there, all losses are alike
    said = iter(losses or [])

    def noise(seed, step):
        tokens = np.random.default_rng([seed, step]).integers(9, size=(4, 9))
        return tokens[:, :-1].copy(), tokens[:, 1:].copy()

    settings = config(**given)
    return train.train(
        model, batches or noise, functools.partial(loss, model) if loss else model.loss, settings,
        evaluate=functools.partial(evaluate, model) if evaluate else lambda: next(said, 2.0),
        machine=machine or choose("cpu", settings.dtype), run=run, about={}, resume=resume,
    )


def test_the_batch_that_a_gpu_gets_ahead_changes_nothing(tmp_path):
    class Elsewhere(Machine):  # the CPU, where train takes it for another device
        kind = property(lambda self: "mps")

    asked = []

    def batches(seed, step):
        asked.append(step)
        tokens = np.random.default_rng(step).integers(9, size=(4, 9))
        return tokens[:, :-1].copy(), tokens[:, 1:].copy()

    found = []
    for machine in (None, Elsewhere("cpu", "float32", False)):
        run = tmp_path / str(len(found))
        drill(run, batches=batches, machine=machine, steps=5, eval_every=2, accumulate=2)
        found.append(runs.load_checkpoint(run / "last.pt"))
    assert not differences(*found)
    assert asked == 2 * list(range(5))  # each once, and none beyond the last


def differences(a, b, where=""):
    """Where two values of a checkpoint are not the same bit for bit; clocks aside."""
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        return [] if same else [where]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        inner = [differences(a[k], b[k], f"{where}/{k}") for k in a if k not in CLOCKS]
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        inner = [differences(x, y, f"{where}/{i}") for i, (x, y) in enumerate(zip(a, b))]
    else:
        return [] if type(a) is type(b) and a == b else [f"{where}: {a} and {b}"]
    return sum(inner, [])


def ended_alike(run, other):
    """The runs agree in every file, but for the time that they took."""
    for name in ("last.pt", "best.pt"):
        pair = [runs.load_checkpoint(folder / name) for folder in (run, other)]
        assert differences(*pair) == [], name
    assert losses(run) == losses(other)
    result, others = [json.loads((folder / "result.json").read_text()) for folder in (run, other)]
    assert differences(result, others) == []
    assert (run / "samples.txt").read_bytes() == (other / "samples.txt").read_bytes()


def losses(run):
    """metrics.jsonl without the clocks."""
    lines = runs.read_metrics(run)
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in lines]


def plain(value):
    """Whether a value is a tensor, or one that JSON has, all the way down."""
    if isinstance(value, dict):
        return all(isinstance(key, (str, int)) for key in value) and all(map(plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(plain, value))
    return type(value) in (str, int, float, bool, type(None), torch.Tensor)


def finite(checkpoint):
    return all(tensor.isfinite().all() for tensor in checkpoint["model"].values())


# The learning rate


@pytest.mark.parametrize("warmup", [0, 1, 5, 100])
@pytest.mark.parametrize("steps", [1, 2, 3, 30, 150])
def test_the_learning_rate_rises_and_falls(steps, warmup):
    settings = config(steps=steps, warmup=warmup)
    # also after the last step, where peers' went below 0
    shares = [train.lr_factor(step, settings) for step in range(2 * steps + 10)]
    assert shares[0] > 0
    assert max(shares) <= 1
    assert warmup >= steps or shares[warmup] == 1
    rising, falling = shares[: min(warmup, steps)], shares[warmup:steps]
    assert all(a < b for a, b in zip(rising, rising[1:]))
    assert all(a > b for a, b in zip(falling, falling[1:]))
    assert all(share >= schedules.FINAL * (1 - 1e-9) for share in shares[warmup:])
    if len(falling) > 1:
        assert shares[steps - 1] == pytest.approx(schedules.FINAL)
        assert shares[-1] == pytest.approx(schedules.FINAL)


def test_the_optimizers_get_the_learning_rate(tmp_path, updates):
    settings = dict(steps=7, warmup=2, lr=0.03, eval_every=3)
    drill(tmp_path / "run", **settings)
    rates = [0.03 * train.lr_factor(step, config(**settings)) for step in range(7)]
    # a step is a step of the optimizers, both of them
    assert [(name, found) for name, found, _ in updates] == [
        (name, {rate}) for rate in rates for name in ("AdamW", "Muon")
    ]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_few_steps_are_enough(steps, start, small, words, tmp_path):
    run = tmp_path / "run"
    start(*small("gru"), f"--data={words}", "--lines", f"--steps={steps}", f"--out={run}")
    assert [line["step"] for line in losses(run)] == list(range(steps + 1))
    assert json.loads((run / "result.json").read_text())["steps"] == steps


# A step


def test_dropout_is_on_in_steps_and_off_in_evaluations(tmp_path):
    modes = []

    def evaluate(model):
        modes.append(("evaluate", model.training))
        return 2.0

    def loss(model, *batch):
        modes.append(("step", model.training))
        return model.loss(*batch)

    drill(tmp_path / "run", steps=2, eval_every=1, evaluate=evaluate, loss=loss)
    assert modes == [("evaluate", False)] + [("step", True), ("evaluate", False)] * 2


def test_what_dropout_drops_depends_on_the_step_alone(tmp_path):
    def values(folder, draws):
        seen = []

        def batches(seed, step):
            return np.ones((4, 8), dtype=np.int64), np.ones((4, 8), dtype=np.int64)

        def loss(model, *batch):
            nats = model.loss(*batch)
            seen.append(round(nats.item(), 4))
            return nats

        def evaluate(model):
            torch.rand(draws)  # an evaluation that draws numbers, as sampling might
            return 2.0

        # the same batch and, nearly, the same weights at every step
        drill(tmp_path / folder, batches=batches, loss=loss, evaluate=evaluate, lr=1e-9)
        return seen

    before = values("a", 1)
    assert values("b", 5) == before
    assert len(set(before)) == len(before) == 6


def test_the_gradient_is_clipped_as_a_whole(tmp_path, updates):
    def norms(**given):
        updates.clear()
        drill(tmp_path / "run", **given)
        pairs = [math.hypot(a[2], b[2]) for a, b in zip(updates[::2], updates[1::2])]
        assert len(pairs) == 6
        return pairs

    free = norms(clip=0.0)
    clip = min(free) / 2
    assert norms(clip=clip) == pytest.approx([clip] * 6, rel=1e-4)
    assert norms(clip=2 * max(free)) == free


def test_float16_is_unscaled_before_it_is_clipped(tmp_path, updates):
    drill(tmp_path / "a", clip=1e9)
    free = [norm for *_, norm in updates]
    updates.clear()
    drill(tmp_path / "b", clip=1e9, dtype="float16", steps=12)
    assert updates and 0 < max(norm for *_, norm in updates) < 2 * max(free)
    updates.clear()
    drill(tmp_path / "c", clip=0.01, dtype="float16", steps=12)
    # of the whole; one of the two optimizers has at least the half of its square
    assert updates and 0.007 < max(norm for *_, norm in updates) <= 0.01 * (1 + 1e-3)


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_float16_skips_a_step_that_overflows_for_all_weights(clip, tmp_path, updates):
    counts, before, after = [], [], []

    def loss(model, *batch):
        weights = [parameter.detach().clone() for parameter in model.parameters()]
        counts.append(len(updates))
        after.extend(weights if len(counts) == 12 else [])
        nats = model.loss(*batch)
        if len(counts) == 11:  # too much for one weight alone, once it is scaled
            before.extend(weights)
            steep = model.layers[0].hidden.weight.sum() * 1e36
            nats = nats + (steep - steep.detach())
        return nats

    # the scale comes down in the first steps, which overflow of themselves
    drill(tmp_path / "run", loss=loss, dtype="float16", clip=clip, steps=12)
    assert counts[10] > 0 and counts[11] == counts[10]
    assert differences(before, after) == []
    assert finite(runs.load_checkpoint(tmp_path / "run" / "last.pt"))


def test_only_targets_that_count_are_counted(tmp_path):
    def batches(seed, step):
        tokens = np.full((4, 8), step % 9)
        targets = np.full((4, 8), -1)
        targets[0, : step + 1] = 1
        return tokens, targets

    progress = drill(tmp_path / "run", batches=batches, steps=3)
    assert progress.tokens == 1 + 2 + 3


def test_the_training_loss_is_the_mean_since_the_last_evaluation(tmp_path):
    seen = []

    def loss(model, *batch):
        nats = model.loss(*batch)
        seen.append(nats.item())
        return nats

    drill(tmp_path / "run", loss=loss, steps=5, eval_every=3)
    found = [line["train_loss"] for line in losses(tmp_path / "run")]
    assert found == [None, pytest.approx(np.mean(seen[:3])), pytest.approx(np.mean(seen[3:]))]


# Stopped and gone on with


@each_stage
def test_resumed_after_a_crash_ends_like_never_stopped(
    stage, never_stopped, start, small, words, at_step, resume_here, monkeypatch, tmp_path
):
    # in the middle between two evaluations, the first time with all steps saved
    with monkeypatch.context() as patch:
        patch.setattr(train, "SAVE_SECONDS", -1)
        at_step(6, crash)
        with pytest.raises(Crash):
            start(*small(stage), f"--data={words}", *WHOLE, f"--out={tmp_path / 'run'}")
    assert runs.load_checkpoint(tmp_path / "run" / "last.pt")["progress"]["step"] == 6
    at_step(7, crash)
    with pytest.raises(Crash):
        start(f"--resume={tmp_path / 'run'}")
    assert runs.load_checkpoint(tmp_path / "run" / "last.pt")["progress"]["step"] == 6
    resume_here(tmp_path / "run")
    ended_alike(tmp_path / "run", never_stopped(stage))


@pytest.mark.parametrize("step", range(10))
def test_resumed_from_any_step_ends_like_never_stopped(
    step, never_stopped, start, small, words, at_step, resume_here, tmp_path
):
    at_step(step, crash)
    with pytest.raises(Crash):
        start(*small("bigram"), f"--data={words}", *WHOLE, f"--out={tmp_path / 'run'}")
    resume_here(tmp_path / "run")
    ended_alike(tmp_path / "run", never_stopped("bigram"))


KILLS = """
import os, signal, sys, traceback
import torch
import data, train
from data import runs

runs.plot = lambda run: None

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def killed(flags, step=None, file=None, seconds=60):
    "Go on in a process that is killed before the batch of step, or before it renames to file."
    child = os.fork()
    if child == 0:
        try:
            train.SAVE_SECONDS = seconds
            real, replace = data.batches, os.replace
            def batches(*args, **more):
                give = real(*args, **more)
                return lambda seed, at: die() if at == step else give(seed, at)
            def rename(source, target):
                die() if os.path.basename(target) == file else replace(source, target)
            data.batches, os.replace = batches, rename
            args = train.make_parser().parse_args(flags)
            (train.resume_run if args.resume else train.new_run)(args)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, flags

for line in sys.stdin.read().splitlines():
    flags = line.split("\\t")
    resume = [flag.replace("--out", "--resume") for flag in flags if flag.startswith("--out")]
    killed(flags, step=6)
    killed(resume, step=7, seconds=-1)
    killed(resume, file="last.pt")
"""


@pytest.fixture(scope="module")
def often_killed(small, words, tmp_path_factory):
    """The folder with a run of every stage that was killed three times.

    Two steps after an evaluation; when every step is saved; and with the new best.pt and
    metrics.jsonl there but not the new last.pt. One process forks them all, to import once.
    """
    folder = tmp_path_factory.mktemp("killed")
    given = [f"--data={words}", *WHOLE, "--device=cpu"]
    commands = [[*small(stage), *given, f"--out={folder / stage}"] for stage in makemore.STAGES]
    subprocess.run(
        [sys.executable, "-c", KILLS], input="\n".join(map("\t".join, commands)), text=True,
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True,
        stdout=subprocess.DEVNULL,
    )
    return folder


@needs_fork
@each_stage
def test_resumed_after_kill_9_ends_like_never_stopped(stage, often_killed, never_stopped, start):
    run = often_killed / stage
    assert runs.load_checkpoint(run / "last.pt")["progress"]["step"] == 7
    assert [line["step"] for line in losses(run)] == [0, 4, 8]
    start(f"--resume={run}")
    ended_alike(run, never_stopped(stage))


@pytest.mark.parametrize("stage", ["bigram", "cnn"])
def test_a_text_resumed_ends_like_never_stopped(
    stage, start, small, passage, at_step, resume_here, tmp_path
):
    flags = [*small(stage), f"--data={passage}", "--steps=8", "--eval-every=3", "--batch-size=9"]
    flags += ["--block-size=16"]
    start(*flags, "--out=never")
    at_step(4, crash)
    with pytest.raises(Crash):
        start(*flags, "--out=once")
    resume_here("once")
    ended_alike(tmp_path / "once", tmp_path / "never")


@pytest.mark.parametrize("settings", [dict(dtype="float16"), dict(optimizer="adamw")])
def test_other_settings_resumed_end_like_never_stopped(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "SAVE_SECONDS", -1)
    settings = settings | dict(steps=9, eval_every=4)

    def steep(model, *batch):  # so that float16 soon has a scale that it does not begin with
        return 64 * model.loss(*batch)

    def stopping(model, *batch):
        if next(count) == 6:
            raise Crash
        return steep(model, *batch)

    drill(tmp_path / "never", loss=steep, **settings)
    count = iter(range(9))
    with pytest.raises(Crash):
        drill(tmp_path / "once", loss=stopping, **settings)
    last = runs.load_checkpoint(tmp_path / "once" / "last.pt")
    assert last["progress"]["step"] == 6 and last["scaler"].get("scale", 0) < 65536
    drill(tmp_path / "once", loss=steep, resume=last, **settings)
    pair = [runs.load_checkpoint(tmp_path / name / "last.pt") for name in ("once", "never")]
    assert differences(*pair) == []


def test_a_crash_between_any_two_files_costs_nothing(tmp_path, monkeypatch):
    # the best comes in the middle: its file is not written again later
    said, made, replace = {0: 3.0, 2: 2.0, 4: 1.0, 6: 2.5}, [0], os.replace

    def batches(seed, step):
        made[0] = step + 1
        tokens = np.random.default_rng([seed, step]).integers(9, size=(4, 9))
        return tokens[:, :-1].copy(), tokens[:, 1:].copy()

    def go(run, files=math.inf, resume=None):
        left = iter(range(99))

        def rename(source, target):
            if next(left) == files:
                raise Crash
            replace(source, target)

        monkeypatch.setattr(os, "replace", rename)
        drill(run, batches=batches, evaluate=lambda model: said[made[0]], resume=resume)
        return next(left)

    made[0] = 0
    total = go(tmp_path / "never")
    assert total == 7  # two files at 0, 2 and 4, one at 6
    for files in range(2, total):
        made[0] = 0
        run = tmp_path / f"after-{files}"
        with pytest.raises(Crash):
            go(run, files)
        last = runs.load_checkpoint(run / "last.pt")
        runs.cut_metrics(run, last["progress"]["step"])
        go(run, resume=last)
        for name in runs.CHECKPOINTS:
            pair = [runs.load_checkpoint(folder / name) for folder in (run, tmp_path / "never")]
            assert differences(*pair) == [], (files, name)
        assert losses(run) == losses(tmp_path / "never")


@pytest.fixture
def net(number):
    """Catches a signal that train.py should have caught, lest it end the tests."""

    def handler(*_):
        pytest.fail("the signal was not handled")

    before = signal.signal(number, handler)
    yield handler
    signal.signal(number, before)


@needs_signals
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_stop_saves_and_says_how_to_go_on(
    number, never_stopped, small, words, at_step, resume_here, command, net, tmp_path
):
    at_step(5, lambda: os.kill(os.getpid(), number))
    flags = [*small("lstm"), f"--data={words}", *WHOLE, "--device=cpu", f"--out={tmp_path / 'run'}"]
    code, said, errors = command(train.main, *flags)
    assert code == 130 and errors == ""
    assert signal.getsignal(number) is net
    # the step in hand is finished
    assert runs.load_checkpoint(tmp_path / "run" / "last.pt")["progress"]["step"] == 6
    (go_on,) = re.findall(r"python train.py (--resume=.*)\n", said)
    assert not (tmp_path / "run" / "result.json").exists()
    resume_here(go_on.removeprefix("--resume="))
    ended_alike(tmp_path / "run", never_stopped("lstm"))


@needs_signals
@pytest.mark.parametrize("end, code", [("interrupt", 130), ("nonsense", 1)])
def test_a_run_that_ends_early_is_plotted(end, code, small, words, at_step, command, monkeypatch):
    monkeypatch.setattr(runs, "plot", PLOT)
    if end == "interrupt":
        at_step(5, lambda: os.kill(os.getpid(), signal.SIGINT))
    flags = ["--lr=3e38"] * (end == "nonsense") + ["--device=cpu", "--out=run"]
    assert command(train.main, *small("lstm"), f"--data={words}", *WHOLE, *flags)[0] == code
    assert Path("run/loss.png").read_bytes().startswith(b"\x89PNG")


@needs_signals
def test_a_second_interrupt_stops_at_once(
    never_stopped, small, words, at_step, resume_here, command, tmp_path
):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_step(6, twice)
    flags = [*small("bigram"), f"--data={words}", *WHOLE, f"--out={tmp_path / 'run'}"]
    code, said, errors = command(train.main, *flags, "--device=cpu")
    assert code == 130 and errors == ""
    assert f"--resume={tmp_path / 'run'}" in said and "at once" in said
    assert runs.load_checkpoint(tmp_path / "run" / "last.pt")["progress"]["step"] == 4
    resume_here(tmp_path / "run")
    ended_alike(tmp_path / "run", never_stopped("bigram"))


@needs_signals
def test_an_interrupt_in_the_last_step_lets_the_run_end(
    never_stopped, small, words, at_step, command, tmp_path
):
    at_step(9, lambda: os.kill(os.getpid(), signal.SIGINT))
    flags = [*small("bigram"), f"--data={words}", *WHOLE, f"--out={tmp_path / 'run'}"]
    assert command(train.main, *flags, "--device=cpu")[0] == 0
    ended_alike(tmp_path / "run", never_stopped("bigram"))


def test_batches_go_on_where_they_were(start, small, words, monkeypatch):
    asked = []

    def batches(*args, **more):
        give = BATCHES(*args, **more)
        return lambda seed, step: (asked.append((seed, step)), give(seed, step))[1]

    monkeypatch.setattr(data, "batches", batches)
    start(*small("bigram"), f"--data={words}", *WHOLE, "--seed=3", "--steps=4", "--out=run")
    start("--resume=run", "--steps=9")
    assert asked == [(3, step) for step in range(9)]


def test_more_steps_after_the_last(start, small, words):
    start(*small("gru"), f"--data={words}", *WHOLE, "--steps=4", "--out=run")
    last = runs.load_checkpoint(Path("run/last.pt"))
    last["progress"]["seconds"] = 1000.0
    runs.save_checkpoint(Path("run/last.pt"), last)
    start("--resume=run", "--steps=9")
    last = runs.load_checkpoint(Path("run/last.pt"))
    assert last["progress"]["step"] == last["config"]["steps"] == 9
    assert last["progress"]["seconds"] > 1000
    assert [line["step"] for line in losses(Path("run"))] == [0, 4, 8, 9]
    assert json.loads(Path("run/config.json").read_text())["steps"] == 9
    assert json.loads(Path("run/result.json").read_text())["steps"] == 9
    with pytest.raises(ValueError, match="9 steps.*--steps=8"):
        start("--resume=run", "--steps=8")
    start("--resume=run", "--steps=9")  # nothing left to do but to judge


def test_a_finished_run_resumed_stays_as_it_is(start, never_stopped):
    shutil.copytree(never_stopped("bigram"), "run")
    start("--resume=run")
    ended_alike(Path("run"), never_stopped("bigram"))


@pytest.mark.parametrize("last", [b"damaged", None])
def test_gone_on_with_from_its_best(last, never_stopped, start, small, words, at_step, resume_here):
    at_step(9, crash)
    with pytest.raises(Crash):
        start(*small("gru"), f"--data={words}", *WHOLE, "--out=run")
    assert runs.load_checkpoint(Path("run/best.pt"))["progress"]["step"] == 8
    Path("run/last.pt").unlink()
    if last:
        Path("run/last.pt").write_bytes(last)
    resume_here("run/best.pt" if last else "run")
    ended_alike(Path("run"), never_stopped("gru"))


@pytest.mark.parametrize(
    "given", ["--lr=0.1", "--seed=0", "--model=gru", "--batch-size=16", "--lines", "--out=x",
              "--data=names", "--compile", "--config=run/config.json", "--eval-every=4"]
)
def test_nothing_but_the_steps_can_change(given, never_stopped, refusal):
    shutil.copytree(never_stopped("gru"), "run")
    said = refusal(train.main, "--resume=run", given)
    assert given.partition("=")[0] in said and "--steps" in said


def test_data_that_has_changed_is_refused(start, small, words, refusal, tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text(words.read_text() + "\nextra", "utf-8")
    start(*small("bigram"), f"--data={mine}", *WHOLE, "--out=run")
    before = Path("run/last.pt").read_bytes()
    mine.write_text(words.read_text() + "\nother", "utf-8")
    assert str(mine) in refusal(train.main, "--resume=run", "--steps=20")
    mine.unlink()
    assert str(mine) in refusal(train.main, "--resume=run", "--steps=20")
    assert Path("run/last.pt").read_bytes() == before


def test_what_cannot_be_gone_on_with_is_refused(never_stopped, refusal):
    assert "nowhere" in refusal(train.main, "--resume=nowhere")
    Path("empty").mkdir()
    assert "empty" in refusal(train.main, "--resume=empty")
    shutil.copytree(never_stopped("gru"), "run")
    Path("run/last.pt").write_bytes(Path("run/last.pt").read_bytes()[:1000])
    assert "run/best.pt" in refusal(train.main, "--resume=run")


# The best


def test_patience_ends_a_run_and_the_best_is_kept(tmp_path):
    run = tmp_path / "run"
    said = [3.0, 2.0, 2.5, 2.0, 1.0]  # as good as the best is not better
    progress = drill(run, losses=said, steps=20, eval_every=2, patience=2)
    assert (progress.step, progress.best_step, progress.best_loss) == (6, 2, 2.0)
    assert [line["val_loss"] for line in losses(run)] == said[:4]
    steps = [runs.load_checkpoint(run / name)["progress"]["step"] for name in runs.CHECKPOINTS]
    assert steps == [2, 6]


def test_without_patience_a_run_goes_to_its_end(tmp_path):
    progress = drill(tmp_path / "run", losses=[2.0] + [3.0] * 9, steps=18, patience=0)
    assert progress.step == 18


def test_patience_and_the_best_are_remembered(tmp_path):
    run = tmp_path / "run"
    drill(run, losses=[3.0, 2.0, 2.5], steps=4, eval_every=2, patience=3)
    best = (run / "best.pt").read_bytes()
    last = runs.load_checkpoint(run / "last.pt")
    progress = drill(
        run, losses=[2.9, 2.1, 1.0], steps=20, eval_every=2, patience=3, resume=last
    )
    assert (progress.step, progress.best_step, progress.best_loss) == (8, 2, 2.0)
    assert (run / "best.pt").read_bytes() == best  # a worse model did not take its place


def test_a_first_evaluation_made_again_costs_no_patience(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "SAVE_SECONDS", -1)
    run = tmp_path / "run"

    def stop(seed, step):
        raise Crash

    with pytest.raises(Crash):
        drill(run, losses=[3.0], batches=stop, patience=2)
    first = runs.load_checkpoint(run / "last.pt")
    assert first["progress"]["step"] == 0
    progress = drill(
        run, evaluate=lambda model: 3.0, resume=first, steps=20, eval_every=2, patience=2
    )
    assert progress.step == 4  # two evaluations without a better one


def test_patience_from_the_command_line(start, small, words):
    # with such a learning rate it soon gets worse
    flags = ["--steps=60", "--eval-every=1", "--lr=0.5", "--patience=3", "--batch-size=4"]
    start(*small("mlp"), f"--data={words}", "--lines", *flags, "--out=run")
    result = json.loads(Path("run/result.json").read_text())
    found = {line["step"]: line["val_loss"] for line in losses(Path("run"))}
    assert result["steps"] < 60 and result["steps"] == result["best_step"] + 3
    assert found[result["best_step"]] == min(found.values())
    assert result["val_loss"] == pytest.approx(min(found.values()), rel=1e-6)


def test_more_steps_are_not_left_out_in_silence(small, words, command):
    flags = ["--steps=60", "--eval-every=1", "--lr=0.5", "--patience=2", "--batch-size=4"]
    command(train.main, *small("mlp"), f"--data={words}", "--lines", *flags, "--out=run")
    before = json.loads(Path("run/result.json").read_text())["steps"]
    assert before < 60
    code, said, _ = command(train.main, "--resume=run", "--steps=90")
    after = json.loads(Path("run/result.json").read_text())["steps"]
    assert code == 0 and (after > before or "patience" in said)


# A loss that is no number


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_ends_the_run(wrong, tmp_path):
    run, count = tmp_path / "run", iter(range(99))

    def loss(model, *batch):
        return model.loss(*batch) * (wrong if next(count) == 3 else 1)

    with pytest.raises(train.Diverged, match="step 4.*lower --lr") as error:
        drill(run, loss=loss, eval_every=2)
    assert str(run / "last.pt") in str(error.value)
    last = runs.load_checkpoint(run / "last.pt")
    assert last["progress"]["step"] == 2 and finite(last)


def test_a_gradient_that_is_no_number_ends_the_run(tmp_path):
    run, count = tmp_path / "run", iter(range(99))

    def loss(model, *batch):
        nats = model.loss(*batch)
        if next(count) == 3:  # 0 with an infinite slope
            nats = nats + (model.embedding.weight[:1] * 0).sum().sqrt()
        return nats

    with pytest.raises(train.Diverged, match="gradient.*step 4.*lower --lr"):
        drill(run, loss=loss, eval_every=2)
    assert finite(runs.load_checkpoint(run / "last.pt"))


def test_float16_without_a_gradient_ends_the_run(tmp_path):
    # an overflow goes away as the scale comes down; this does not, and no step is ever made
    def loss(model, *batch):
        return model.loss(*batch) + (model.embedding.weight[:1] * 0).sum().sqrt()

    with pytest.raises(train.Diverged, match="gradient"):
        drill(tmp_path / "run", loss=loss, dtype="float16", steps=300, eval_every=100)


@pytest.mark.parametrize("at", [2, 3])
def test_an_evaluation_that_is_no_number_ends_the_run(at, tmp_path):
    # also the last one, behind which no step would notice
    run = tmp_path / "run"
    with pytest.raises(train.Diverged, match="lower --lr"):
        drill(run, losses=[2.0, 1.9, 1.8][:at] + [math.nan], steps=6, eval_every=2)
    assert runs.load_checkpoint(run / "last.pt")["progress"]["step"] == 2 * (at - 1)
    for text in (run / "metrics.jsonl").read_text().splitlines():
        json.loads(text, parse_constant=pytest.fail)  # NaN is no JSON


@pytest.mark.parametrize("lr", ["1e30", "3e38"])
@pytest.mark.parametrize("every", [1, 3, 20])
def test_an_absurd_learning_rate_leaves_a_good_checkpoint(
    lr, every, small, words, command, tmp_path
):
    flags = ["--lines", "--steps=20", f"--eval-every={every}", f"--lr={lr}", "--patience=0"]
    code, _, said = command(
        train.main, *small("lstm"), f"--data={words}", *flags, f"--out={tmp_path / 'run'}"
    )
    assert code == 1
    assert said.startswith("error: ") and said.count("\n") == 1 and "lower --lr" in said
    (kept,) = re.findall(r"\S+last\.pt", said)
    assert finite(runs.load_checkpoint(Path(kept)))
    model, tokenizer = load_run(kept)
    ids = torch.tensor([[data.END] + tokenizer.encode("kanas")])
    assert model.loss(ids[:, :-1], ids[:, 1:]).isfinite()


# The loss


def by_hand(run, split):
    """Nats over all targets of a split, in float64, one line or window at a time; and how many."""
    model, tokenizer = load_run(run)
    model = model.double()
    config = json.loads((run / "config.json").read_text())
    block, dataset = config["block_size"], data.load(config["data"], config["lines"])
    rows = []
    for item in dataset.splits[split]:
        ids = tokenizer.encode(item)
        if config["lines"]:
            ids = ([data.END] + ids + [data.END])[: block + 1]
            rows.append(ids)
        else:
            if split == "train":  # of a text, as many tokens as validation has
                ids = ids[: len(tokenizer.encode(dataset.splits["val"][0]))]
            rows += [ids[i : i + block + 1] for i in range(0, len(ids) - 1, block)]
    nats = count = 0
    with torch.no_grad():
        for ids in map(torch.tensor, rows):
            logits, _ = model(ids[None, :-1])
            nats += F.cross_entropy(logits[0], ids[1:], reduction="sum").item()
            count += len(ids) - 1
    return nats, count


def test_the_result_is_the_loss_of_the_best_over_whole_splits(finished):
    kind, run = finished
    result = json.loads((run / "result.json").read_text())
    splits = ["train", "val", "test"] if kind == "lines" else ["train", "val"]
    for split in splits:
        nats, count = by_hand(run, split)
        assert result[f"{split}_loss"] == pytest.approx(nats / count, rel=1e-6)
    # a target is a character, or the end of a line, which counts as one
    assert result["bits_per_char"] == pytest.approx(nats / count / math.log(2), rel=1e-6)
    assert (result["test_loss"] is None) == (kind == "text")


def test_the_evaluations_are_those_of_the_best(lines_run):
    best = runs.load_checkpoint(lines_run / "best.pt")["progress"]
    nats, count = by_hand(lines_run, "val")
    found = {line["step"]: line["val_loss"] for line in losses(lines_run)}
    assert found[best["step"]] == best["best_loss"] == min(found.values())
    assert best["best_loss"] == pytest.approx(nats / count, rel=1e-6)


# The run folder


FIELDS = {
    "model", "data", "parameters", "steps", "best_step", "tokens", "seconds", "tokens_per_second",
    "flops_per_token", "mfu", "memory", "memory_expected", "train_loss", "val_loss", "test_loss",
    "bits_per_char", "bits_per_byte", "seed", "device", "dtype",
}


def test_a_run_folder_holds_what_it_should(finished):
    _, run = finished
    assert {path.name for path in run.iterdir()} == FILES
    result = json.loads((run / "result.json").read_text("utf-8"), parse_constant=pytest.fail)
    assert result.keys() == FIELDS
    config = json.loads((run / "config.json").read_text("utf-8"))
    assert config.keys() >= {field.name for field in dataclasses.fields(train.Config)}
    assert config["environment"]["torch"] == torch.__version__
    assert "commit" in config["environment"]
    lines = runs.read_metrics(run)
    assert [line["step"] for line in lines][:2] == [0, config["eval_every"]]
    assert lines[-1]["step"] == config["steps"] == result["steps"]
    assert lines[-1]["tokens"] == result["tokens"] > lines[1]["tokens"] > lines[0]["tokens"] == 0
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "samples.txt").read_text("utf-8").strip()
    model, _ = load_run(run)
    assert result["parameters"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", runs.CHECKPOINTS)
def test_checkpoints_hold_plain_values_and_tensors(name, lines_run):
    checkpoint = torch.load(lines_run / name, weights_only=True)
    assert plain(checkpoint)
    assert checkpoint.keys() >= {"model", "optimizers", "scaler", "progress", "config", "tokenizer"}
    json.dumps([checkpoint[part] for part in ("progress", "config", "tokenizer")])


def test_nothing_is_overwritten_unasked(start, small, words, refusal):
    flags = [*small("bigram"), f"--data={words}", "--lines", "--steps=2", "--batch-size=4"]
    for _ in range(2):
        start(*flags)
    assert {path.name for path in Path("runs").iterdir()} == {"bigram-words", "bigram-words-2"}
    before = Path("runs/bigram-words/last.pt").read_bytes()
    said = refusal(train.main, *flags, "--out=runs/bigram-words")
    assert "--out" in said and "--resume=runs/bigram-words" in said
    assert Path("runs/bigram-words/last.pt").read_bytes() == before


def test_lines_that_are_cut_are_counted(small, words, command):
    lines = words.read_text("utf-8").splitlines()
    flags = [*small("bigram"), f"--data={words}", "--lines", "--steps=1", "--device=cpu"]
    for block in (max(map(len, lines)) + 1, max(map(len, lines)), 5):
        _, said, _ = command(train.main, *flags, f"--block-size={block}", f"--out=run-{block}")
        cut = sum(len(line) + 1 > block for line in lines)
        assert re.findall(r"(\d+) lines are cut", said) == ([str(cut)] if cut else [])


@each_stage
def test_a_text_is_learned_from(stage, start, small, passage):
    start(*small(stage), f"--data={passage}", "--steps=3", "--block-size=16", "--out=run")
    result = json.loads(Path("run/result.json").read_text())
    assert result["steps"] == 3 and result["test_loss"] is None
    assert math.isfinite(result["val_loss"])


@each_stage
def test_the_recipes_of_a_stage_work(stage, start, words, passage):
    # one step each at the sizes that the bare command takes
    for name, source in (("lines", words), ("text", passage)):
        flags = ["--lines"] * (name == "lines") + ["--steps=1", "--batch-size=1"]
        start(f"--model={stage}", f"--data={source}", *flags, f"--out={name}")
        sizes = json.loads(Path(f"{name}/config.json").read_text())["sizes"]
        recipe = RECIPES[name][stage]
        expected = {size: recipe.get(size, own) for size, own in makemore.sizes(stage).items()}
        assert sizes == expected


def test_two_lines_are_enough(start, small):
    Path("two.txt").write_text("ab\ncd\n")
    start(*small("rnn"), "--data=two.txt", "--lines", "--steps=2", "--out=run")
    result = json.loads(Path("run/result.json").read_text())
    assert result["test_loss"] is None and result["bits_per_char"] > 0


def test_a_terminal_without_the_characters_is_no_obstacle(small, monkeypatch):
    Path("cities.txt").write_text("\n".join(f"Łódź🙂{i}" for i in range(30)), "utf-8")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    flags = [*small("bigram"), "--data=cities.txt", "--lines", "--steps=2", "--out=run"]
    monkeypatch.setattr(sys, "argv", ["train.py", "--device=cpu", *flags])
    with pytest.raises(SystemExit) as left:
        train.cli.run(train.main)
    assert left.value.code == 0
    assert {path.name for path in Path("run").iterdir()} == FILES - {"loss.png"}
    assert set("Łódź🙂") & set(Path("run/samples.txt").read_text("utf-8"))


def test_the_command_where_the_encoding_is_not_utf_8(small):
    Path("cities.txt").write_text("\n".join(f"Łódź🙂{i}" for i in range(30)), "utf-8")
    env = os.environ | {
        "OMP_NUM_THREADS": "1", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0",
        "PYTHONIOENCODING": "utf-8",
    }
    flags = [*small("bigram"), "--data=cities.txt", "--lines", "--steps=2", "--device=cpu"]
    done = subprocess.run([sys.executable, ROOT / "train.py", *flags], env=env, capture_output=True)
    assert done.returncode == 0 and done.stderr == b""
    assert "bigram" in done.stdout.decode("utf-8")
    run = Path("runs/bigram-cities")
    assert {path.name for path in run.iterdir()} == FILES
    assert set("Łódź🙂") <= set(load_run(run)[1].characters)


# Repeating a run


def test_a_run_is_repeated_from_its_config(never_stopped, start):
    run = never_stopped("transformer")
    start(f"--config={run / 'config.json'}", "--out=again")
    ended_alike(Path("again"), run)
    start(f"--config={run / 'config.json'}", "--seed=1", "--out=other")
    changed = json.loads(Path("other/config.json").read_text())
    kept = json.loads((run / "config.json").read_text())
    assert changed == kept | {"seed": 1}
    assert losses(Path("other"))[1] != losses(run)[1]


def test_a_flag_overrides_the_config(never_stopped, start):
    config = never_stopped("transformer") / "config.json"
    start(f"--config={config}", "--width=4", "--heads=1", "--steps=2", "--out=narrow")
    changed = json.loads(Path("narrow/config.json").read_text())
    kept = json.loads(config.read_text())
    sizes = kept["sizes"] | {"width": 4, "heads": 1}
    assert changed == kept | {"steps": 2, "sizes": sizes}
    # of another stage the sizes are its own
    start(f"--config={config}", "--model=bigram", "--steps=2", "--out=bigram")
    assert json.loads(Path("bigram/config.json").read_text())["sizes"] == {}


@pytest.mark.parametrize(
    "change", [None, {"model": "lstn"}, {"steps": "many"}, {"sizes": None}, {"sizes": {"width": 0}},
               {"lr": None}, {"data": 3}, {"dtype": "float8"}, {"optimizer": "sgdd"}]
)
def test_a_config_that_cannot_work_is_refused(change, never_stopped, refusal):
    saved = json.loads((never_stopped("transformer") / "config.json").read_text())
    text = "[]" if change is None else json.dumps(saved | change)
    Path("config.json").write_text(text)
    refusal(train.main, "--config=config.json", "--out=run")
    assert not Path("run").exists()


def test_what_is_no_config_is_refused(refusal):
    Path("config.json").write_text('{"model": "lstm"')
    for path in ("config.json", "nowhere.json", "."):
        assert path in refusal(train.main, f"--config={path}")


# What cannot work


WRONG = {
    "--model=lstn": "Did you mean lstm?",
    "--data=nmaes": "Did you mean names?",
    "--widht=8": "Did you mean --width?",
    "--step=8": "Did you mean --steps?",  # no abbreviations: a later flag could change them
    "--model=transformer --width=8 --heads=3": "heads",
    "--model=transformer --width=8 --heads=8": "heads",  # a head needs pairs to turn
    "--model=transformer --width=12 --heads=4": "heads",
    "--model=lstm --heads=2": "--layers, --width, --dropout",
    "--model=bigram --width=8": "no sizes",
    "--model=mlp --layers=2": "--context, --embed, --width, --dropout",
    "--block-size=0": "--block-size",
    "--steps=-3": "--steps",
    "--steps=0": "--steps",
    "--steps=2.5": "--steps",
    "--batch-size=0": "--batch-size",
    "--lr=0": "--lr",
    "--lr=nan": "--lr",
    "--lr=-1": "--lr",
    "--lr=inf": "--lr",
    "--warmup=-1": "--warmup",
    "--clip=-1": "--clip",
    "--clip=nan": "--clip",
    "--weight-decay=nan": "--weight-decay",
    "--weight-decay=inf": "--weight-decay",
    "--eval-every=0": "--eval-every",
    "--patience=-1": "--patience",
    "--seed=-1": "--seed",
    "--seed=99999999999999999999": "seed",
    "--dropout=1": "dropout",
    "--dropout=nan": "dropout",
    "--layers=0": "layers",
    "--width=-8": "width",
    "--device=gpu": "cuda",
    "--dtype=float64": "float32",
    "--data=nowhere.txt": "nowhere.txt",
    "extra": "extra",
}


@pytest.mark.parametrize("flags", WRONG)
def test_what_cannot_work_is_refused_in_a_sentence(flags, words, refusal, tmp_path):
    given = ["--model=transformer", f"--data={words}", "--lines", "--steps=2", "--device=cpu"]
    said = refusal(train.main, *given, *flags.split())
    assert WRONG[flags] in said
    assert not any(tmp_path.iterdir())  # no run folder either


def test_a_text_too_short_for_a_block_is_refused(small, refusal, tmp_path):
    Path("short.txt").write_text("abc" * 10)
    said = refusal(train.main, *small("bigram"), "--data=short.txt", "--block-size=64")
    assert "block size" in said
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


# Machines and disks


def test_without_a_compiler_it_goes_on(small, words, command, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *args, **more: None)
    flags = [*small("bigram"), f"--data={words}", "--lines", "--steps=2", "--device=cpu"]
    code, said, _ = command(train.main, *flags, "--compile", "--out=run")
    assert code == 0 and "not compiled" in said.lower() and "compiler" in said
    assert Path("run/result.json").exists()


def test_compiled_weights_keep_their_names(start, small, words, monkeypatch):
    # whatever is compiled, what is saved can be read by a model that is not
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **_: real(f, backend="eager", dynamic=True))
    flags = [f"--data={words}", "--lines", "--steps=2", "--batch-size=4", "--compile"]
    start(*small("bigram"), *flags, "--out=run")
    for name in runs.CHECKPOINTS:
        assert list(runs.load_checkpoint(Path("run", name))["model"]) == ["embedding.weight"]
    load_run("run")


def test_a_full_disk_costs_nothing_that_was_saved(
    never_stopped, small, words, at_step, resume_here, command, monkeypatch, tmp_path
):
    real = os.fsync

    def fill():
        def fsync(file):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", fsync)

    monkeypatch.setattr(runs, "plot", PLOT)  # it is not to hide what went wrong by failing too
    at_step(6, fill)
    flags = [*small("lstm"), f"--data={words}", *WHOLE, "--device=cpu", f"--out={tmp_path / 'run'}"]
    code, _, said = command(train.main, *flags)
    assert code == 2
    assert said.startswith("error: ") and said.count("\n") == 1 and "No space left" in said
    assert {path.name for path in Path("run").iterdir()} == {
        "config.json", "metrics.jsonl", "best.pt", "last.pt"
    }
    assert "metrics.jsonl" in said  # the first to be written
    monkeypatch.setattr(os, "fsync", real)
    monkeypatch.setattr(runs, "plot", lambda run: None)
    resume_here(tmp_path / "run")
    ended_alike(tmp_path / "run", never_stopped("lstm"))


def test_a_disk_that_is_full_for_one_line_costs_nothing(
    never_stopped, small, words, at_step, resume_here, command, tmp_path
):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        size = Path("run/metrics.jsonl").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))

    at_step(6, fill)
    flags = [*small("lstm"), f"--data={words}", *WHOLE, "--device=cpu", f"--out={tmp_path / 'run'}"]
    try:
        code, _, said = command(train.main, *flags)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2
    assert said.startswith("error: ") and said.count("\n") == 1
    assert "metrics.jsonl" in said  # which file, as for every other
    assert not list(Path("run").glob(".*"))
    resume_here(tmp_path / "run")
    ended_alike(tmp_path / "run", never_stopped("lstm"))


def test_a_run_whose_best_is_damaged_goes_on_with_its_last(
    start, small, words, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    start(*small("lstm"), f"--data={words}", "--lines", "--steps=4", "--batch-size=4", "--out=run")
    last = runs.load_checkpoint(Path("run/last.pt"))
    for damage in (lambda path: path.write_bytes(b"cut"), lambda path: path.unlink()):
        damage(Path("run/best.pt"))
        start("--resume=run")
        best = runs.load_checkpoint(Path("run/best.pt"))
        for name, weights in last["model"].items():
            assert torch.equal(best["model"][name], weights)
        assert best["progress"]["best_loss"] == last["progress"]["val_loss"]
        assert json.loads(Path("run/result.json").read_text("utf-8"))["best_step"] == 4
