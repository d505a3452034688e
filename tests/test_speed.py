"""The benchmarks of speed on a CPU: what they make of their rows, and what they refuse; and what
keeps a command from being there at once."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import nanogpt
from benchmarks import baby, expected, growth, ladder, race
from data import runs
from nanogpt.optim import make_optimizers

ROOT = Path(__file__).parents[1]
SLOW = ("triton", "torch._dynamo", "torch.distributed.fsdp", "sympy")


def test_what_is_slow_to_import_waits_until_it_is_needed():
    slow = (*SLOW, "matplotlib")
    code = f"import train, sample, sys; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stdout + done.stderr


@pytest.mark.parametrize("flags", ["--model=mlp", "--model=gpt --data=names --average=0.9"])
def test_a_small_run_on_a_cpu_never_needs_it(flags, tmp_path):
    flags = [*flags.split(), "--device=cpu", "--steps=1", f"--out={tmp_path / 'run'}"]
    code = f"""import sys, train
sys.argv[1:] = {flags}
train.main()
print([name for name in {SLOW} if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("module", ["torch._dynamo", "kernels"])
def test_a_command_ends_without_a_word_whatever_it_imports(module):
    """Triton's bindings name all that is left when Python ends."""
    pytest.importorskip("triton")
    before, after = ("", module) if module == "torch._dynamo" else (module, "torch")
    code = f"""import sys, train{before and ", " + before}
from data import cli
def main():
    import {after}
    assert "triton" in sys.modules
cli.run(main)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_race_is_of_medians_and_says_who_is_behind():
    def row(stage, loss, seconds):
        return {"stage": stage, "test_loss": loss, "seconds": seconds}

    rows = [row("gru", 2.01, 9.0), row("makemore gru", 2.03, 50.0), row("gru", 2.02, 10.0),
            row("makemore gru", 2.03, 90.0), row("makemore gru", 2.03, 40.0),
            row("gru", 2.05, 30.0), row("mlp", 2.06, 10.0), row("makemore mlp", 2.05, 40.0)]
    lines = race.table(rows).splitlines()[2:]
    assert lines == ["| gru | 2.0300 | 50.0 | 2.0200 | 10.0 | 0.20 |",
                     "| mlp | 2.0500 | 40.0 | 2.0600 (above) | 10.0 | 0.25 |"]


def test_a_race_needs_makemore_and_its_stages(refusal):
    assert "--makemore" in refusal(race.main)
    assert "lstm" in refusal(race.main, "--stages=lstm mlp")
    assert "--times" in refusal(race.main, "--times=0")


def test_what_a_run_spent_is_parted():
    spent = ladder.spent({"tokens": 3000, "tokens_per_second": 100, "mfu": 0.2})
    assert spent == {"steps_seconds": 30.0, "floor_seconds": 6.0}


def test_nanogpt_gets_autocast_on_a_cpu_in_its_copy(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(f"ctx = {baby.WITHOUT}torch.amp.autocast('cpu')\n", "utf-8")
    baby.with_autocast(tmp_path)
    assert path.read_text("utf-8") == "ctx = torch.amp.autocast('cpu')\n"
    with pytest.raises(ValueError, match="autocast"):
        baby.with_autocast(tmp_path)


def test_iterations_are_compared_with_those_of_nanogpt():
    rows = [{"contender": "nanoGPT", "seconds_an_iteration": 8.0, "memory": 4e9},
            {"contender": "ours", "seconds_an_iteration": 2.0, "memory": 1e9,
             "floor_an_iteration": 0.5},
            {"contender": "whole", "losses": [], "val_loss": 1.5, "seconds": 120, "tokens": 4096}]
    lines = baby.table(rows).splitlines()
    assert lines[2:] == ["| nanoGPT | 8.00 | 1.00 | - | 4.00 GB | 1.00 |",
                         "| ours | 2.00 | 0.25 | 0.50 | 1.00 GB | 0.25 |"]
    assert "1.5000 after 2.0 minutes" in baby.way(rows[-1])


def test_the_floor_is_that_of_the_process_that_was_disturbed_least():
    def rows(whole):
        return [{"contender": "ours", "floor_an_iteration": 2.0},
                {"losses": [], "tokens": 3 * baby.TOKENS, "floor_seconds": whole}]

    assert baby.floor(rows(9.0)) == 6.0 and baby.floor(rows(5.0)) == 5.0


def test_growth_is_held_against_the_operations_at_the_speed_of_the_base():
    def row(dial, seconds, flops, **sizes):
        base = {"width": 8, "layers": 2, "block-size": 4, "batch-size": 2}
        return {"dial": dial, "seconds_per_token": seconds, "flops_per_token": flops,
                "memory": 2e6} | base | sizes

    rows = [row("width", 2e-6, 100), row("layers", 2e-6, 100), row("batch-size", 2e-6, 100),
            row("width", 12e-6, 400, width=16)]
    # of a token, Muon's: 5 times 3 products of 2 W^3, 24 of them, over 8 tokens: 90 W^3
    expected = 2 * (400 + 90 * 16**3) / (100 + 90 * 8**3)
    assert growth.table(rows).splitlines()[-1] == (
        f"| width | 16 | 12.0 | {expected:.1f} | {12 / expected:.2f} | 2 |")


def test_muons_operations_are_counted_as_pytorch_counts_them():
    model = nanogpt.build("gpt", 20, 4, layers=2, heads=1, width=8)
    optimizers = make_optimizers(model, "muon", 0.01)
    model.loss(*torch.zeros(2, 2, 4, dtype=torch.long)).backward()
    with FlopCounterMode(display=False) as counter:
        for optimizer in optimizers:
            optimizer.step()
    sizes = {"width": 8, "layers": 2, "block-size": 4, "batch-size": 2, "flops_per_token": 0}
    assert growth.operations(sizes) == counter.get_total_flops() / 8


def test_the_first_steps_do_not_count_in_growth():
    metrics = [{"tokens": 0, "tokens_per_second": 0}, {"tokens": 100, "tokens_per_second": 10},
               {"tokens": 200, "tokens_per_second": 16}]  # 10 s, and 2.5 s for the other half
    assert growth.steady(metrics) == pytest.approx(0.025)


def test_recipes_with_losses_to_expect_are_of_the_flags_that_they_name():
    quick = expected.asked("--recipe=quick-mlp", 3)
    assert (quick["settings"]["model"], quick["settings"]["data"]) == ("mlp", "names")
    assert expected.asked("--model=gpt", 1)["settings"]["data"] == "tales"
    assert "eval_every" not in quick["settings"] and "steps" in quick["settings"]
    places = [expected.place({"command": c}) for c in ("--model=bigram", "--model=gpt", "--lr=3")]
    assert places == sorted(places) and len(set(places)) == 3


@pytest.mark.parametrize("steps, trainings", [(200, 1), (72, 2)])
def test_losses_to_expect_are_those_of_a_tenth_a_half_and_all(steps, trainings, monkeypatch):
    asked = []

    def timed(command):
        given = dict(flag[2:].split("=") for flag in command if flag.startswith("--"))
        every = int(given["eval-every"])
        Path(given["out"]).mkdir()
        asked.append(every)
        for step in sorted({*range(0, steps + 1, every), steps}):
            line = {"step": step, "val_loss": step + int(given["seed"]) / 10}
            runs.append_metrics(Path(given["out"]), line)

    monkeypatch.setattr(expected, "timed", timed)
    what = {"command": "--model=mlp", "settings": {"steps": steps}, "seeds": 2}
    tenth, half = round(steps / 10), steps // 2
    assert expected.measured(what) == {
        str(step): [step, step + 0.1] for step in (tenth, half, steps)}
    assert len(asked) == 2 * trainings


def test_what_cannot_be_measured_is_refused(refusal):
    assert "--seeds" in refusal(expected.main, "--seeds=0")
    assert "--data=mine.txt" in refusal(expected.main, "--runs=--data=mine.txt")
    assert "--runs" in refusal(expected.main, "--runs=,")
    assert "--out" in refusal(growth.main, "--toy")
