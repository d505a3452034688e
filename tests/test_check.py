"""train.py --check: whether a run is where its recipe's runs were."""

import json

import pytest

import train
from benchmarks import expected
from data import cli, runs
from nanogpt import check

LOSSES = {"200": [2.30, 2.31, 2.32], "1000": [2.20, 2.21, 2.19], "2000": [2.15, 2.15, 2.15]}


@pytest.fixture
def known(tmp_path, monkeypatch):
    """One recipe, the transformer's on names; its settings."""
    what = expected.asked("--model=transformer", 3)
    path = tmp_path / "expected.json"
    path.write_text(json.dumps({"recipes": [what | {"losses": LOSSES}]}), "utf-8")
    monkeypatch.setattr(check, "PATH", path)
    return what


@pytest.fixture
def run(tmp_path, known):
    """make(losses by step, other settings): a run folder of that recipe."""
    def make(losses, **others):
        folder = tmp_path / "run"
        folder.mkdir()
        machine = dict(seed=7, device="auto", dtype="float32", compile=False, eval_every=7,
                       patience=1)
        saved = known["settings"] | machine | {"fingerprint": known["fingerprint"]} | others
        runs.write_json(folder / "config.json", saved)
        for step, loss in losses.items():
            runs.append_metrics(folder, {"step": step, "val_loss": loss, "train_loss": None})
        return folder
    return make


def start(monkeypatch, *flags):
    """The exit code of train.py."""
    monkeypatch.setattr("sys.argv", ["train.py", *map(str, flags)])
    with pytest.raises(SystemExit) as end:
        cli.run(train.main)
    return end.value.code


def test_the_command(run, monkeypatch, capsys):
    folder = run({200: 2.31, 1000: 2.5})
    assert start(monkeypatch, f"--check={folder}") == 1
    assert "the run is worse than it should be" in capsys.readouterr().out
    assert start(monkeypatch, f"--check={folder}", "--lr=3") == 2
    assert "leave out --lr" in capsys.readouterr().err


def test_tolerance_covers_one_more_seed():
    mean, most = check.tolerance([2.30, 2.31, 2.32])
    assert mean == pytest.approx(2.31) and most == pytest.approx(3 * 0.01 * (4 / 3) ** 0.5)
    assert check.tolerance([2.0, 2.0, 2.0]) == (2.0, check.LEAST)


@pytest.mark.parametrize("losses, good, word", [
    ({200: 2.33, 1000: 2.20, 2000: 2.151}, True, "as expected"),
    ({200: 2.31, 1000: 2.40}, False, "worse"),
    ({200: 2.31, 300: 9.0, 1000: 2.05}, True, "better"),
])
def test_a_run_is_judged_at_the_steps_that_are_known(run, losses, good, word):
    lines, found = check.check(run(losses))
    assert found == good and any(line.endswith(word) for line in lines)
    assert len(lines) == 2 + sum(str(step) in LOSSES for step in losses)


@pytest.mark.parametrize("others, sentence", [
    ({"lr": 0.5}, r"the nearest, --model=transformer, it differs in --lr \(0.5, there 0.01\)"),
    ({"data": "tales"}, "are not measured yet .only those of --model=transformer are"),
    ({"fingerprint": "other"}, "is not what it was"),
])
def test_what_cannot_be_compared_is_said(run, others, sentence):
    with pytest.raises(ValueError, match=sentence):
        check.check(run({200: 2.3}, **others))


def test_a_young_run_and_no_run(run, tmp_path):
    with pytest.raises(ValueError, match="has no evaluation yet at a step"):
        check.check(run({0: 3.3}))
    with pytest.raises(ValueError, match="is not the config.json of a run"):
        check.check(tmp_path)


def test_a_run_from_before_a_size_was_known_had_its_default():
    settings = next(r["settings"] for r in check.load() if r["command"] == "--model=gpt")
    before = settings | {"sizes": {n: v for n, v in settings["sizes"].items() if n != "conv"}}
    assert check.differences(before, settings) == []
    other = settings | {"sizes": settings["sizes"] | {"conv": 4}}
    assert check.differences(other, settings) == ["--conv (4, there 0)"]
