"""`python -m makemore compare`: runs that can be repeated, kept at their best rate, and plots."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import data
from makemore import __main__
from makemore.without_torch import compare
from makemore.without_torch.mlp import MLP

ROOT = Path(__file__).parents[1]
FILES = ["comparison.json", "inside.png", "losses.png", "table.md"]


@pytest.fixture
def listed(words):
    return data.load(str(words), lines=True)


def outcome(variant, rate, *losses):
    inside = compare.Inside([0.25, 0.75], [0.0, 0.5], [0.5, 0.125], [1e-3, 1e-4])
    after = inside if math.isfinite(losses[-1]) else None
    return compare.Outcome(variant, rate, list(range(len(losses))), list(losses), inside, after)


def test_a_run_repeats_and_learns(listed):
    job = (listed, "optimizer", "adam", 0.01, 1200, 3)
    first, second = compare.train(*job), compare.train(*job)
    assert first == second and first.losses[-1] < first.losses[0] - 0.5
    assert first.lines[0] == 0 and first.lines[-1] == 1200 // 64 * 64
    assert compare.train(*job[:-1], 4).losses != first.losses


@pytest.mark.parametrize("vary", compare.VARIANTS)
def test_every_variant_trains(listed, vary):
    for variant in compare.VARIANTS[vary]:
        run = compare.train(listed, vary, variant, 0.01, 640, 0)
        assert run.variant == variant and np.isfinite(run.losses).all()
        for inside in (run.before, run.after):
            assert all(len(x) == compare.SIZES["layers"] for x in vars(inside).values())


def test_a_rate_too_high_is_an_outcome_too(listed):
    run = compare.train(listed, "optimizer", "adam", 1e39, 640, 0)
    assert run.loss == math.inf and run.after is None


def test_looking_inside_finds_what_is_flat_and_changes_nothing(listed):
    tokenizer = data.CharTokenizer.train(t for part in listed.splits.values() for t in part)
    batch = data.batches(listed, tokenizer, 16, 8)(0, 0)
    model = MLP(tokenizer.vocab_size, 16, layers=2, width=4, activation="relu", norm="batch")
    model.parameters["layers.0.shift"][:] = [-1e6, 1e6, -1e6, -1e6]  # off, on, off, off
    averages = {name: average.copy() for name, average in model.averages.items()}
    inside = compare.look_inside(model, batch)
    assert inside.flat[0] == inside.dead[0] == 0.75
    assert all(np.array_equal(average, model.averages[n]) for n, average in averages.items())


def test_each_variant_is_kept_at_its_best_rate():
    outcomes = [outcome("a", 0.1, 3, 2.5), outcome("a", 0.2, 3, 2), outcome("a", 0.3, 3, math.inf),
                outcome("b", 0.1, 3, 1.5), outcome("b", 0.2, 3, 1.75), outcome("c", 1, 3, math.inf)]
    assert [(o.variant, o.rate) for o in compare.best(outcomes)] == [
        ("a", 0.2), ("b", 0.1), ("c", 1)]
    rows = [re.split(r" *\| *", line)[1:-1] for line in compare.table("x", outcomes).splitlines()]
    assert rows[2] == ["a", "0.2 of 0.1, 0.2, 0.3", "2.0000", "50%", "50%", "25%", "0.125", "0.125"]
    assert rows[3][1:3] == ["0.1 of 0.1, 0.2 (at the edge)", "1.5000"]
    assert rows[4][2] == "diverged"


def test_the_command_makes_a_folder(command, words, tmp_path, monkeypatch):
    monkeypatch.setitem(compare.VARIANTS, "norm", ["none", "rms"])
    monkeypatch.setitem(compare.RATES, "adam", (0.003, 0.01))
    before = dict(os.environ)
    flags = ["compare", "--vary=norm", f"--data={words}", "--budget=300"]
    code, out, err = command(__main__.main, *flags, f"--out={tmp_path / 'x'}")
    assert (code, dict(os.environ)) == (0, before)
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == FILES
    text = (tmp_path / "x" / "table.md").read_text("utf-8")
    assert text in out and str(tmp_path / "x") in out
    saved = json.loads((tmp_path / "x" / "comparison.json").read_text("utf-8"))
    alone = compare.train(data.load(str(words), True), "norm", "rms", 0.01, 300, 0)
    assert saved["outcomes"][3]["losses"] == alone.losses
    assert [o["rate"] for o in saved["outcomes"]] == [0.003, 0.01] * 2


def test_plots_of_runs_that_all_diverged(tmp_path):
    outcomes = [outcome("a", 0.1, 3, math.inf), replace(outcome("b", 1, math.inf))]
    compare.plot_losses("x", outcomes, tmp_path / "a.png")
    compare.plot_inside("x", outcomes, tmp_path / "b.png")
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("a.png", "b.png"))


@pytest.mark.parametrize("flags, sentence", [
    (["--vary=optimiser"], "there is no optimiser to vary. Did you mean optimizer? There are "),
    ([], "the following arguments are required: --vary"),
    (["--vary=norm", "--data=tales"], "tales is running text; compare takes a list"),
    (["--vary=norm", "--data=nowhere"], "there is no set, file or folder 'nowhere'"),
    (["--vary=norm", "--budget=0"], "--budget must be at least 1"),
    (["--vary=norm", "--seed=-1"], "--budget must be at least 1, and --seed at least 0"),
    (["--vary=norm", "--rate=1"], "--rate is not known"),
])
def test_what_cannot_be_compared(refusal, tmp_path, monkeypatch, flags, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refusal(__main__.main, "compare", *flags)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_kept(refusal, tmp_path, words):
    (tmp_path / "mine.txt").write_text("mine", "utf-8")
    flags = ["compare", "--vary=norm", f"--data={words}", f"--out={tmp_path}"]
    assert "exists already" in refusal(__main__.main, *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_no_torch_is_needed():
    """The comparisons, in a process that cannot import it."""
    code = """if True:
        import sys
        sys.modules["torch"] = None
        import data
        from makemore.without_torch import compare
        words = data.load(sys.argv[1], lines=True)
        print(compare.train(words, "init", "he", 0.01, 64, 0).losses[-1])
    """
    process = subprocess.run([sys.executable, "-c", code, str(ROOT / "README.md")], cwd=ROOT,
                             capture_output=True, text=True, timeout=60)
    assert process.stderr == "" and float(process.stdout) > 0
