"""data/runs.py: no crash costs what was there before, and no damaged file ends in a traceback."""

import errno
import io
import json
import math
import os
import pickle
import shutil

import pytest
import torch

from data import runs


class Full:
    """Fails as a full disk does, or as a second Ctrl-C."""

    def __init__(self, error):
        self.error = error

    def __call__(self, *args, **more):
        raise self.error


class Evil:
    """A pickle of it makes a file when it is read as code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def checkpoint(**more):
    """What train.py saves, in small."""
    return {
        "model": {"head.weight": torch.arange(6.0).view(2, 3)},
        "optimizers": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}],
        "progress": {"step": 3, "best_loss": math.inf, "none": None},
        "config": {"model": "lstm", "lines": True, "data": "Łódź 🙂.txt"},
        **more,
    }


def saved(run, *names):
    """The folder with whole checkpoints of those names."""
    run.mkdir(parents=True, exist_ok=True)
    for name in names:
        runs.save_checkpoint(run / name, checkpoint())
    return run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def refusal(path):
    """The sentence with which a checkpoint is refused."""
    with pytest.raises(ValueError) as error:
        runs.load_checkpoint(path)
    return str(error.value)


# Files are written whole or not at all


def test_a_text_is_written_as_utf_8_with_its_line_ends(tmp_path):
    runs.write(tmp_path / "a.txt", "Łódź\r\n🙂\n")
    assert (tmp_path / "a.txt").read_bytes() == "Łódź\r\n🙂\n".encode()
    runs.write_json(tmp_path / "a.json", {"name": "Łódź 🙂", "test_loss": None})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {
        "name": "Łódź 🙂", "test_loss": None
    }


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_an_error_while_writing_costs_nothing(where, tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    runs.write(path, b"before")
    monkeypatch.setattr(os, where, Full(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left on device") as error:
        runs.write(path, b"after")
    assert str(path) in str(error.value) and "untouched" in str(error.value)
    assert path.read_bytes() == b"before"
    assert names(tmp_path) == ["last.pt"]


def test_an_error_at_the_first_writing_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", Full(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError) as error:
        runs.write(tmp_path / "last.pt", b"after")
    assert "untouched" not in str(error.value)  # there was none
    assert names(tmp_path) == []


def test_a_second_interrupt_while_writing_leaves_no_temporary(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    runs.write(path, b"before")
    monkeypatch.setattr(os, "fsync", Full(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        runs.write(path, b"after")
    assert path.read_bytes() == b"before"
    assert names(tmp_path) == ["last.pt"]


def test_content_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    happened = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (happened.append("fsync"), fsync(file)))

    def rename(source, target):
        happened.append(("replace", open(source, "rb").read()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", rename)
    runs.write(tmp_path / "last.pt", b"all of it")
    assert happened[:2] == ["fsync", ("replace", b"all of it")]


def test_a_file_in_a_folder_that_has_gone_is_an_error_with_its_path(tmp_path):
    with pytest.raises(OSError, match="gone"):
        runs.write(tmp_path / "gone" / "last.pt", b"")


# Checkpoints


def test_a_checkpoint_comes_back(tmp_path):
    before = checkpoint()
    runs.save_checkpoint(tmp_path / "last.pt", before)
    after = runs.load_checkpoint(tmp_path / "last.pt")
    assert torch.equal(after.pop("model")["head.weight"], before.pop("model")["head.weight"])
    assert torch.equal(
        after["optimizers"][0]["state"].pop(0)["step"],
        before["optimizers"][0]["state"].pop(0)["step"],
    )
    assert after == before | {"format": runs.FORMAT}


def test_a_folder_gives_its_best_checkpoint(tmp_path):
    runs.save_checkpoint(tmp_path / "last.pt", checkpoint(which="last"))
    assert runs.load_checkpoint(tmp_path)["which"] == "last"
    runs.save_checkpoint(tmp_path / "best.pt", checkpoint(which="best"))
    assert runs.load_checkpoint(tmp_path)["which"] == "best"
    assert runs.load_checkpoint(str(tmp_path))["which"] == "best"
    assert runs.load_checkpoint(tmp_path / "last.pt")["which"] == "last"


@pytest.mark.parametrize("share", [0, 1e-9, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1 - 1e-9])
def test_a_truncated_checkpoint_is_refused_and_the_whole_one_named(share, tmp_path):
    saved(tmp_path, "best.pt", "last.pt")
    raw = (tmp_path / "best.pt").read_bytes()
    # of the whole not all: from no byte to all but one
    (tmp_path / "best.pt").write_bytes(raw[: math.ceil(share * (len(raw) - 1))])
    for path in (tmp_path, tmp_path / "best.pt"):
        said = refusal(path)
        assert "damaged" in said and str(tmp_path / "last.pt") in said and "whole" in said
    assert runs.load_checkpoint(tmp_path / "last.pt")["progress"]["step"] == 3


def torch_saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


GARBAGE = {
    "text": b"this is not a checkpoint\n",
    "zeros": bytes(2000),
    "ones": b"\xff" * 2000,
    "half a zip": b"PK\x03\x04" + bytes(100),
    "an empty zip": b"PK\x05\x06" + bytes(18),
    "pickle's end alone": b".",
    "pickle with nothing on its stack": b"\x80\x02.",
    "pickle of a cut number": b"\x80\x02K",
    "pickle of a missing memo": b"\x80\x02h\x07.",
    "pickle of a bad name": b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
    "pickle of a tuple of nothing": b"\x80\x02\x86.",
    "a plain pickle": pickle.dumps({"format": 1}, 2),
    "another class": torch_saved({"format": runs.FORMAT, "model": Full(None)}),
    "a list": torch_saved([1, 2, 3]),
    "a tensor": torch_saved(torch.zeros(3)),
    "without a format": torch_saved({"model": {}}),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_what_is_no_checkpoint_is_refused(what, tmp_path):
    saved(tmp_path, "last.pt")
    (tmp_path / "best.pt").write_bytes(GARBAGE[what])
    assert str(tmp_path / "last.pt") in refusal(tmp_path)


@pytest.mark.parametrize("seed", range(40))
def test_noise_never_ends_in_a_traceback(seed, tmp_path):
    noise = torch.Generator().manual_seed(seed)
    raw = bytes(torch.randint(256, (300,), generator=noise).tolist())
    # behind a pickle's first bytes more of the reader is reached
    (tmp_path / "last.pt").write_bytes(b"\x80\x02}" * (seed % 2) + raw)
    assert "damaged" in refusal(tmp_path)


def test_two_damaged_checkpoints_offer_none(tmp_path):
    for name in runs.CHECKPOINTS:
        (tmp_path / name).write_bytes(b"")
    said = refusal(tmp_path)
    assert "no whole" in said and "name that" not in said


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    made = tmp_path / "made"
    for raw in (torch_saved({"format": 1, "x": Evil(made)}), pickle.dumps(Evil(made), 2)):
        (tmp_path / "last.pt").write_bytes(raw)
        refusal(tmp_path / "last.pt")
        assert not made.exists()


@pytest.mark.parametrize("other", [runs.FORMAT + 1, 0, None, "new"])
def test_another_format_is_named(other, tmp_path):
    torch.save(checkpoint(format=other), tmp_path / "last.pt")
    said = refusal(tmp_path)
    assert "version" in said and str(other) in said and str(runs.FORMAT) in said
    assert "damaged" not in said


def test_a_place_without_a_checkpoint_is_named(tmp_path):
    assert str(tmp_path) in refusal(tmp_path)
    assert "nowhere" in refusal(tmp_path / "nowhere")
    assert "best.pt" in refusal(tmp_path / "best.pt")


# Run folders


def test_run_folders_are_numbered(tmp_path):
    path = tmp_path / "runs" / "lstm-names"
    made = [runs.make_run(path) for _ in range(3)]
    assert [run.name for run in made] == ["lstm-names", "lstm-names-2", "lstm-names-3"]
    assert all(run.is_dir() and run.parent == tmp_path / "runs" for run in made)
    shutil.rmtree(made[1])
    assert runs.make_run(path).name == "lstm-names-2"


def test_a_file_in_the_way_is_left_alone(tmp_path):
    (tmp_path / "run").write_text("mine")
    assert runs.make_run(tmp_path / "run").name == "run-2"
    assert (tmp_path / "run").read_text() == "mine"


def test_a_folder_asked_for_is_made_or_taken_when_empty(tmp_path):
    for _ in range(2):
        assert runs.make_run(tmp_path / "a" / "b", exactly=True) == tmp_path / "a" / "b"
    assert names(tmp_path / "a") == ["b"]


def test_a_folder_asked_for_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(ValueError, match=f"{name} .*--out"):
            runs.make_run(tmp_path / name, exactly=True)
    assert names(tmp_path) == ["file", "full"] and names(tmp_path / "full") == ["thesis.txt"]


def made(root, name, model, time, *checkpoints):
    run = saved(root / name, *checkpoints)
    (run / "config.json").write_text(json.dumps({"model": model}))
    for path in checkpoints:
        os.utime(run / path, (time, time))
    return run


def test_the_newest_run_of_a_model(tmp_path):
    made(tmp_path, "z-old", "lstm", 1000, "best.pt", "last.pt")
    new = made(tmp_path, "a-new", "lstm", 2000, "best.pt")
    made(tmp_path, "other", "gru", 3000, "best.pt", "last.pt")
    made(tmp_path, "empty", "lstm", 4000)
    for name, config in (("cut", '{"model": "ls'), ("list", "[]"), ("raw", b"\xff\xfe")):
        run = made(tmp_path, name, "lstm", 5000, "last.pt")
        (run / "config.json").write_bytes(config if isinstance(config, bytes) else config.encode())
    saved(tmp_path / "no-config", "best.pt")
    assert runs.newest_run("lstm", tmp_path) == new
    # a run that goes on is the newest again, though its best is old
    os.utime(new / "best.pt", (1500, 1500))
    os.utime(tmp_path / "z-old" / "last.pt", (1600, 1600))
    assert runs.newest_run("lstm", tmp_path).name == "z-old"


def test_no_run_of_a_model_says_how_to_train_one(tmp_path):
    made(tmp_path, "empty", "lstm", 4000)
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="python train.py --model=lstm"):
            runs.newest_run("lstm", root)


# metrics.jsonl


def line(step):
    return {"step": step, "train_loss": None, "val_loss": 2.0 + 0.1 / (step + 1)}


def test_metrics_come_back_exactly(tmp_path):
    assert runs.read_metrics(tmp_path) == []
    for step in (0, 5, 10):
        runs.append_metrics(tmp_path, line(step))
    assert runs.read_metrics(tmp_path) == [line(0), line(5), line(10)]
    assert runs.read_metrics(tmp_path, until=5) == [line(0), line(5)]
    assert runs.read_metrics(tmp_path, until=4) == [line(0)]


def test_a_cut_last_line_does_not_count(tmp_path):
    for step in (0, 5, 10):
        runs.append_metrics(tmp_path, line(step))
    path = tmp_path / "metrics.jsonl"
    raw = path.read_bytes()
    last = raw.index(b'{"step": 10')
    for end in range(last, len(raw) - 1, 3):
        path.write_bytes(raw[:end])
        assert runs.read_metrics(tmp_path) == [line(0), line(5)]
    path.write_bytes(raw[:-1])  # nothing but the line's end is missing
    assert runs.read_metrics(tmp_path) == [line(0), line(5), line(10)]


def test_metrics_are_cut_back_to_a_step(tmp_path):
    for step in (0, 5, 10):
        runs.append_metrics(tmp_path, line(step))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    runs.cut_metrics(tmp_path, 5)
    runs.append_metrics(tmp_path, line(10))  # on a line of its own, whatever was cut
    assert runs.read_metrics(tmp_path) == [line(0), line(5), line(10)]
    assert names(tmp_path) == ["metrics.jsonl"]


def test_the_plot_is_a_picture(tmp_path):
    runs.append_metrics(tmp_path, line(0))  # all that a run has that ends at once
    runs.plot(tmp_path)
    runs.append_metrics(tmp_path, line(5) | {"train_loss": 2.5})
    runs.plot(tmp_path)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert names(tmp_path) == ["loss.png", "metrics.jsonl"]


def test_the_plot_says_what_has_a_loss(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(runs, "save_figure", lambda figure, path: drawn.append(figure))
    runs.append_metrics(tmp_path, line(0))
    runs.plot(tmp_path)
    runs.plot(tmp_path, per="text")
    said = [figure.axes[0].get_ylabel() for figure in drawn]
    assert said == ["loss (nats per token)", "loss (nats per text)"]


# What a run depends on


def test_the_fingerprint_tells_data_apart():
    splits = {"train": ["ab", "c"], "val": ["d"], "test": []}
    same = runs.fingerprint(splits)
    assert runs.fingerprint({name: list(items) for name, items in splits.items()}) == same
    others = [
        splits | {"train": ["ab", "C"]}, splits | {"train": ["c", "ab"]},
        splits | {"train": ["a", "bc"]}, {"train": ["ab"], "val": ["c", "d"], "test": []},
    ]
    assert len({same, *map(runs.fingerprint, others)}) == 5


def test_the_environment_is_known_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = runs.environment()
    assert found["commit"] is None
    assert found["torch"] == torch.__version__ and found["threads"] == torch.get_num_threads()


def test_what_a_killed_process_left_half_written_is_swept_away(tmp_path):
    for name in ("last.pt", ".last.pt.123.part", ".config.json.9.part"):
        (tmp_path / name).write_bytes(b"x")
    runs.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
