"""Several processes on one run, as torchrun starts them, on the CPU: all come to one result."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train
from data import runs
from nanogpt.processes import Processes, own, together, whole

ROOT = Path(__file__).parents[1]
# Each line of flags is a run of its own, in the same processes: starting them takes longest.
DRIVER = """if True:
    import sys
    import train
    from nanogpt.processes import together
    with together() as processes:
        for line in sys.argv[1].split("\\n"):
            args = train.make_parser().parse_args(line.split())
            (train.resume_run if args.resume else train.new_run)(args, processes)
"""
PLAIN = ["--model=gpt", "--layers=2", "--heads=2", "--width=16", "--block-size=16", "--dropout=0",
         "--batch-size=8", "--eval-every=5", "--patience=0", "--device=cpu", "--lr=0.002"]


def torchrun(*command):
    """Two processes, as a user starts them."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.Popen(
        [*launch, *map(str, command)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


def metrics(run):
    """The losses of a run, training and validation, step by step."""
    lines = runs.read_metrics(run)
    return [x["train_loss"] for x in lines[1:]], [x["val_loss"] for x in lines]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, passage, words, start):
    """Runs of one process under one-..., of two processes under two-..."""
    root = tmp_path_factory.mktemp("processes")
    text = [*PLAIN, f"--data={passage}", "--steps=20"]
    kinds = {
        "adamw": [*text, "--optimizer=adamw"],
        "muon": [*text, "--optimizer=muon", "--accumulate=2", "--average=0.9"],
        "lines": [*PLAIN, f"--data={words}", "--lines", "--steps=20", "--optimizer=adamw"],
    }
    half = [flag for flag in kinds["muon"] if "steps" not in flag] + ["--steps=10"]
    for name, flags in kinds.items():
        start(*flags, f"--out={root / f'one-{name}'}")
    start(*half, f"--out={root / 'one-two'}")
    several = [[*flags, f"--out={root / f'two-{name}'}"] for name, flags in kinds.items()]
    several += [[*flags, "--shard", f"--out={root / f'two-{name}-shard'}"]
                for name, flags in kinds.items()]
    several += [[*half, "--shard", f"--out={root / 'two-one'}"],
                [f"--resume={root / 'one-two'}", "--steps=20"]]
    script = root / "driver.py"
    script.write_text(DRIVER, "utf-8")
    process = torchrun(script, "\n".join(" ".join(map(str, flags)) for flags in several))
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said[:6000]
    start(f"--resume={root / 'two-one'}", "--steps=20")
    return root, said


@pytest.mark.parametrize("kind", ["adamw", "muon", "lines"])
@pytest.mark.parametrize("way", ["", "-shard"])
def test_two_processes_come_to_the_losses_of_one(folders, kind, way):
    root, _ = folders
    alone, together = metrics(root / f"one-{kind}"), metrics(root / f"two-{kind}{way}")
    for a, b in zip(alone, together):
        assert a == pytest.approx(b, abs=1e-5) and len(a) >= 4
    one, two = (json.loads((root / name / "result.json").read_text("utf-8"))
                for name in (f"one-{kind}", f"two-{kind}{way}"))
    for name in ("train_loss", "val_loss", "bits_per_char"):
        assert one[name] == pytest.approx(two[name], abs=1e-5)
    assert one["tokens"] == two["tokens"] and one["parameters"] == two["parameters"]
    texts = [(root / f"{n}-{kind}{w}" / "samples.txt").read_text("utf-8")
             for n, w in (("one", ""), ("two", way))]
    assert len(texts[0]) > 20 and texts[0] == texts[1]


@pytest.mark.parametrize("name", ["two-one", "one-two"])
def test_a_run_is_resumed_by_another_number_of_processes(folders, name):
    root, _ = folders
    for a, b in zip(metrics(root / name), metrics(root / "one-muon")):
        # the schedule of the first half was that of a run of ten steps
        assert len(a) == len(b) and a[-1] < a[1]
    assert metrics(root / "two-one")[1] == pytest.approx(metrics(root / "one-two")[1], abs=1e-5)


def test_one_process_writes_and_speaks(folders):
    root, said = folders
    assert len(re.findall(r"run folder \S*two-adamw\n", said)) == 1
    assert said.count("in 2 processes") == 8
    assert not list(root.rglob("*.part"))
    checkpoint = runs.load_checkpoint(root / "two-muon-shard" / "last.pt")
    shapes = {n: w.shape for n, w in checkpoint["model"].items()}
    single = runs.load_checkpoint(root / "one-muon" / "last.pt")
    assert shapes == {n: w.shape for n, w in single["model"].items()}


def test_a_killed_process_ends_the_run_and_leaves_a_checkpoint(tmp_path, passage, start):
    flags = [*PLAIN, f"--data={passage}", "--steps=100000", f"--out={tmp_path / 'run'}"]
    process = torchrun("train.py", *flags)
    for _ in range(600):
        if len(runs.read_metrics(tmp_path / "run")) > 1:
            break
        time.sleep(0.1)
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], text=True,
                            capture_output=True).stdout.split()
    os.kill(int(listed[-1]), signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "another process of this run has ended, so this one ends too" in said
    step = runs.load_checkpoint(tmp_path / "run" / "last.pt")["progress"]["step"]
    start(f"--resume={tmp_path / 'run'}", f"--steps={step + 5}")
    assert runs.read_metrics(tmp_path / "run")[-1]["step"] == step + 5


# Alone


@pytest.mark.parametrize("flags, sentence", [
    (["--shard"], "--shard parts the weights among processes; start them with torchrun"),
    (["--batch-size=6", "--accumulate=4"], "--accumulate must divide the batch of 6 rows"),
    (["--shard", "--dtype=float16"], "--shard is for --dtype=bfloat16 or float32"),
])
def test_what_cannot_be_shared(refusal, passage, tmp_path, monkeypatch, flags, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refusal(train.main, *PLAIN, f"--data={passage}", *flags)
    assert not list(tmp_path.iterdir())


def test_a_batch_that_processes_cannot_part(passage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = train.make_parser().parse_args([*PLAIN, f"--data={passage}", "--batch-size=7"])
    with pytest.raises(ValueError, match="7 rows cannot be parted equally among 2 processes"):
        train.new_run(args, Processes(0, 2))
    assert not list(tmp_path.iterdir())


def test_a_process_that_is_alone_waits_for_nobody(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with together() as processes:
        assert (processes.first, processes.agree("x"), processes.total(1, 2.5)) == (
            True, "x", [1, 2.5])
        with processes.in_turn():
            pass
    tensor = torch.ones(2)
    assert whole({"a": [tensor], "b": 3})["a"][0] is tensor and own(tensor, tensor) is tensor
