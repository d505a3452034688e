"""The benchmarks of speed on a CPU: what they make of their rows, and what they refuse."""

import pytest

from benchmarks import baby, ladder, race


def test_a_race_is_of_medians_and_says_who_is_behind():
    def row(stage, loss, seconds):
        return {"stage": stage, "test_loss": loss, "seconds": seconds}

    rows = [row("gru", 2.01, 9.0), row("makemore gru", 2.03, 50.0), row("gru", 2.02, 10.0),
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
