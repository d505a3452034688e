"""The benchmarks for a GPU: to their end at a toy size, and what they say without one."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

import train
from benchmarks import (
    attention,
    bits,
    gpu,
    kernels,
    sampling,
    shakespeare_char,
    timing,
    training,
)

triton = pytest.importorskip("triton", reason="the kernels need Triton")
ROOT = Path(__file__).parent.parent


def script(name, *flags):
    """What python -m benchmarks.NAME prints, with no GPU to be seen."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{name}", *map(str, flags)]
    process = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


def rows_of(path, name):
    """Those with an error to check, and the contenders that failed."""
    result = json.loads(path.read_text("utf-8"))[name]
    assert result["environment"]["torch"] and result["triton"]
    rows = result["rows"]
    for row in rows:
        assert ("failed" in row) != ("seconds" in row)
    return [row for row in rows if "seconds" in row], {
        row["contender"] for row in rows if "failed" in row}


def test_attention_at_a_toy_size(tmp_path):
    out = tmp_path / "attention.json"
    said = script("attention", "--toy", "--out", out)
    rows, failed = rows_of(out, "passes")
    assert {row["contender"] for row in rows} >= {"ours", "naive", "flash"} and "ours" not in failed
    assert {(row["pass"], row["causal"]) for row in rows if row["contender"] == "ours"} == {
        (name, causal) for name in ("forward", "backward") for causal in (True, False)}
    assert all(row["error"] < 1e-5 and row["seconds"] > 0 for row in rows)
    assert said.count("\n| ") == 2 + 4 + 2 + 2 and said.count("| ours |") == 2
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    rows, failed = rows_of(out, "decode")
    assert {row["contender"] for row in rows} >= {"ours", "naive"} and "ours" not in failed
    assert all(row["error"] < 1e-5 and row["bandwidth"] > 0 for row in rows)


def test_a_tuned_result_names_its_configurations(monkeypatch, tmp_path):
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    (tmp_path / "rungs.json").write_text('{"forward": {"BLOCK_T": 64}}', "utf-8")
    monkeypatch.delenv("RUNGS_AUTOTUNE", raising=False)
    assert attention.tuned() == {}
    monkeypatch.setenv("RUNGS_AUTOTUNE", "1")
    assert attention.tuned() == {"tuned": {"forward": {"BLOCK_T": 64}}}


def test_small_kernels_at_a_toy_size(tmp_path):
    out = tmp_path / "kernels.json"
    said = script("kernels", "--toy", "--out", out)
    rows, failed = rows_of(out, "kernels")
    assert not failed and {row["kernel"] for row in rows} == {"loss", "norm", "rotary"}
    assert {row["contender"] for row in rows} == {"ours", "PyTorch", "chunked"}
    assert all(row["error"] < 1e-5 for row in rows)
    assert said.count("\n") == 2 + len(rows)


@pytest.mark.parametrize("module, flags, least", (
    # 4 B H T^2 D = 4 * 1 * 32 * 16384^2 * 64, half of it causal, at 989 TFLOP/s; 2.5 times backward
    (attention, (), "| forward | True | 64 | 16384 | 1,100 | 258 | 1.112 | operations |"),
    (attention, (), "| backward | False | 128 | 16384 | 5,498 | 513 | 5.559 | operations |"),
    # keys and values, 8 heads of 65,536 x 128 for 16 sequences in bfloat16, at 4.8 TB/s
    (attention, ("--decode",), "| 16 | 65536 | 4,096 | 894.8 |"),
    (kernels, (), "| norm | 16384 x 8192 | 0 | 2,048 | 0.447 |"),
    # 32 x 1,024 tokens of 6 (12 x 12 x 768^2 + 768 x 50,304) + 12 x 12 x 768 x 1,024 operations
    (training, (), "A step of 32 rows: 32,768 tokens, 28.0 TFLOP, at least 28.3 milliseconds: "
                   "at most 1,157,192 tokens/s."),
))
def test_floor_without_a_gpu(command, module, flags, least):
    code, said, _ = command(module.main, *flags)
    assert code == 0 and "no GPU" in said.splitlines()[0] and least in said.splitlines()


def test_bad_flags_are_refused(refusal):
    assert "--rounds" in refusal(attention.main, "--rounds=0")
    assert "--rounds" in refusal(kernels.main, "--rounds=0")
    assert "norn" in refusal(kernels.main, "--only", "norn")
    assert "--steps" in refusal(training.main, "--steps=1")
    assert "--times" in refusal(bits.main, "--times=1")
    assert "--times" in refusal(shakespeare_char.main, "--toy", "--times=0")
    assert "--batches" in refusal(sampling.main, "--transformers", "--batches=0")
    assert "attention" in refusal(gpu.main, "--toy", "--out=x", "--parts=bits,atention")
    assert "--out" in refusal(gpu.main, "--toy")
    for module in (bits, gpu, shakespeare_char):
        assert "no GPU" in refusal(module.main)


def test_a_result_keeps_those_of_other_days(tmp_path):
    path = tmp_path / "new" / "attention.json"
    timing.save(path, "passes", {"rows": [1]})
    timing.save(path, "decode", {"rows": [2]})
    timing.save(path, "passes", {"rows": [3]})
    assert json.loads(path.read_text("utf-8")) == {"passes": {"rows": [3]}, "decode": {"rows": [2]}}


def test_a_contender_that_fails_does_not_stop_the_others():
    def broken():
        raise RuntimeError("out of memory\nand more")

    found = timing.contest({"a": lambda: lambda: 1.0, "b": broken, "c": lambda: lambda: 2.0}, 3,
                           "cpu", float)
    assert found["b"] == {"failed": "RuntimeError: out of memory"}
    assert (found["a"]["error"], found["c"]["error"]) == (1.0, 2.0)
    assert found["a"]["seconds"] > 0


THEIRS = """
import sys, torch
assert "--batch_size=2" in sys.argv, "CUDA out of memory. Tried to allocate much"
raw_model = torch.nn.Linear(3, 4)
for i in range(5):
    print(f"iter {i}: loss 4.1000, time {1000 if i < 3 else 16}.00ms, mfu -100.00%")
"""


@pytest.fixture
def clone(tmp_path):
    """The folder of something that speaks as nanoGPT does."""
    folder = tmp_path / "clone"
    folder.mkdir()
    (folder / "train.py").write_text(THEIRS, "utf-8")
    return folder


def test_a_training_of_nanogpt(clone, tmp_path):
    args = Namespace(nanogpt=clone, steps=4, toy=True, flops=1e9)
    row = training.trained("nanoGPT", 2, args, tmp_path)
    # the later half of the steps takes 16 ms, each of 2 x 16 tokens
    assert row["seconds_a_step"] == 0.016 and row["tokens_per_second"] == 2000
    assert row["mfu"] == pytest.approx(2000 * training.flops(training.TOY, 96) / 1e9)
    assert row["parameters"] == 16 and row["peak"] is None
    tokens = (tmp_path / "nanoGPT/data/openwebtext/train.bin").read_bytes()
    assert len(tokens) == 2 * 2048 and not (clone / "data").exists()
    assert training.trained("nanoGPT", 4, args, tmp_path)["failed"] == "out of memory"


@pytest.mark.parametrize("name", ["gpt2", "modern without attention without loss"])
def test_a_training_of_ours(name, monkeypatch):
    seen = []
    real = train.train

    def spy(model, batches, loss, config, **how):
        seen.append((model, config))
        return real(model, batches, loss, config, **how)

    monkeypatch.setattr(train, "train", spy)
    found = training.train_ours(name, 2, 3, toy=True)
    [(model, config)] = seen
    assert (config.optimizer, model.position) == (
        ("adamw", "learned") if name == "gpt2" else ("muon", "rotary"))
    assert (config.batch_size, config.accumulate, config.steps) == (2, 1, 3)
    assert found["kept"] is None  # as on every CPU
    assert len(found["step_seconds"]) == 2 and min(found["step_seconds"]) > 0
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["attention"] == "sdpa" and not found["fused_loss"]


def test_tokens_are_as_unequal_as_words():
    tokens = training.zipf(20000, 96)
    counts = [(tokens == token).sum() for token in (0, 9)]
    assert 0 <= tokens.min() and tokens.max() == 94 and 4 < counts[0] / counts[1] < 12


def test_the_largest_batch_that_fits(monkeypatch):
    row = {"contender": "gpt2", "batch": 32, "peak": 20 * 2**30, "kept": 4 * 2**30}
    assert training.largest(row, 100 * 2**30) == 176  # 0.94 x 100 = 4 + 180 halves, by eights
    tried = []

    def trained(name, batch, args, scratch):
        tried.append(batch)
        return {"contender": name, "batch": batch} | (
            {"failed": "out of memory"} if batch > 140 else {})

    monkeypatch.setattr(training, "trained", trained)
    monkeypatch.setattr(training, "choose", lambda device: None)
    monkeypatch.setattr(training, "total", lambda machine: 100 * 2**30)
    found = training.at_its_largest(row, Namespace(most=512), Path())
    assert tried == [176, 152, 128] and (found["batch"], found["largest"]) == (128, True)


def test_trainings_are_compared_at_the_same_batch():
    rows = [{"contender": name, "batch": batch, "tokens_per_second": speed, "mfu": 0.4,
             "peak": peak * 2**30}
            for name, batch, speed, peak in (("nanoGPT", 32, 1000, 20), ("gpt2", 32, 1200, 13),
                                             ("modern", 40, 1500, 13))]
    rows.append({"contender": "other", "batch": 32, "failed": "out of memory"})
    lines = training.table(rows).splitlines()[2:]
    assert lines[1] == "| gpt2 | 32 | 1,200 | 1.20 | 40.0% | 13.00 | 65% |"
    assert lines[2] == "| modern | 40 | 1,500 | 1.50 | 40.0% | 13.00 | - |"
    assert "out of memory" in lines[3]


def test_our_runs_are_judged_over_the_whole_validation_split(start, passage, tmp_path, monkeypatch):
    def timed(command):
        start(*[flag for flag in command[2:] if flag != "--device=cpu"])
        return 4.0

    monkeypatch.setattr(shakespeare_char, "timed", timed)
    flags = ("--model=gpt", f"--data={passage}", *shakespeare_char.TOY)
    row = shakespeare_char.ours("ours", flags, "cpu", 3, tmp_path / "run")
    result = json.loads((tmp_path / "run/result.json").read_text("utf-8"))
    assert row["val_loss"] == pytest.approx(result["val_loss"], abs=1e-6)
    assert (row["seconds"], row["seed"], row["tokens"]) == (4.0, 3, 2 * 2 * 32)
    peer = row | {"model": "nanoGPT", "seconds": 8.0}
    assert shakespeare_char.table([peer, row]).splitlines()[3].endswith("| 4.0 | 0.50 |")


def test_sampling_beside_transformers_with_the_same_weights(tmp_path, command):
    pytest.importorskip("transformers")
    out = tmp_path / "sampling.json"
    code, said, error = command(sampling.main, "--transformers", "--toy", "--out", out)
    assert code == 0, error
    rows = json.loads(out.read_text("utf-8"))["transformers"]["rows"]
    assert [(row["model"], row["batch"]) for row in rows] == [
        (name, batch) for batch in (1, 2) for name in ("transformers", "rungs")]
    assert all(row["off"] < 1e-5 and row["per_second"] > 0 for row in rows)
    assert said.count("\n| ") == 1 + len(rows)


def test_bits_at_a_toy_size(command, monkeypatch, interpreter):
    for name in ("TRITON_INTERPRET", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.setenv(name, "1")  # and as they were, afterwards
    try:
        code, said, error = command(bits.main, "--toy", "--times=2")
    finally:
        torch.use_deterministic_algorithms(False)
    assert code == 0, error
    assert said.count("the same bits") == 7 and "OTHER" not in said


def test_the_parts_of_all_go_on_where_they_ended(command, tmp_path, monkeypatch):
    def part(code, seconds=60, missing=""):
        return gpu.Part(seconds, [sys.executable, "-c", code], missing)

    made = {
        "good": part("print('well')"), "bad": part("raise SystemExit('broken')"),
        "slow": part("import time; print('begun'); time.sleep(60)", 0.1),
        "none": part("", missing="not here"), "late": part("", 9999),
    }
    monkeypatch.setattr(gpu, "parts", lambda args: made)
    flags = ["--toy", "--out", tmp_path, "--minutes=30"]
    code, said, _ = command(gpu.main, *flags)
    assert code == 1 and "well" in said and "broken" in said
    done = json.loads((tmp_path / "gpu.json").read_text("utf-8"))["parts"]
    assert {name: state["state"] for name, state in done.items()} == {
        "good": "done", "bad": "failed with exit code 1", "slow": "outlasted 1.0 seconds",
        "none": "left out: not here", "late": "left for another call"}
    made["bad"] = part("print('mended')")
    code, said, _ = command(gpu.main, *flags, "--parts=good,bad")
    assert code == 0 and "mended" in said and "well" not in said
    assert "well" in command(gpu.main, *flags, "--parts=good", "--again")[1]
    log = (tmp_path / "gpu.log").read_text("utf-8")
    assert log.count("well") == 4 and "mended" in log  # its commands among them


def test_no_part_is_in_the_way_of_another(command, tmp_path, monkeypatch):
    """One that fails, and one that is done anew, wait for those that were never tried."""
    def part(name, seconds):
        return gpu.Part(seconds, [sys.executable, "-c", f"raise SystemExit({name == 'bad'})"])

    made = {"bad": part("bad", 60), "long": part("long", 9999), "good": part("good", 60)}
    monkeypatch.setattr(gpu, "parts", lambda args: made)
    days = iter(f"2026-01-02 00:00:{second:02}" for second in range(60))

    class Clock(gpu.datetime.datetime):
        @classmethod
        def now(cls):
            return cls.fromisoformat(next(days))

    monkeypatch.setattr(gpu.datetime, "datetime", Clock)
    flags, path = ["--toy", "--out", tmp_path, "--minutes=30"], tmp_path / "gpu.json"

    def call(*more):
        said = command(gpu.main, *flags, *more)[1]
        done = json.loads(path.read_text("utf-8"))["parts"]
        return [line[:-4] for line in said.splitlines() if line.endswith(" ...")], {
            name: state["state"].split()[0] for name, state in done.items()}

    assert call("--parts=bad")[0] == ["bad"]
    assert call() == (["good", "bad"], {"bad": "failed", "long": "left", "good": "done"})
    made["good"] = part("good", 9999)
    assert call("--again") == (["bad"], {"bad": "failed", "long": "left", "good": "done"})
    made["good"] = part("good", 60)
    assert call("--again")[0] == ["good", "bad"]  # the oldest first


def test_what_another_gpu_did_is_not_done(tmp_path, monkeypatch):
    here, there = {"gpu": "this one"}, {"gpu": "that one"}
    results = tmp_path / "results"
    results.mkdir()
    monkeypatch.setattr(gpu, "RESULTS", results)
    (results / "training.json").write_text("{}", "utf-8")
    done = {"bits": {"state": "done", "seconds": 1.0, "date": "2026-01-02"}}
    (results / "gpu.json").write_text(json.dumps(there | {"parts": done}), "utf-8")
    assert gpu.begun(results, there) == done and gpu.begun(results, here) == {}
    both = {"gpu.json", "training.json"}
    for name, about, copied in (("new", here, set()), ("same", there, both)):
        folder = tmp_path / name
        folder.mkdir()
        gpu.take_over(folder, about)
        assert {path.name for path in folder.iterdir()} == copied


def test_a_training_goes_on_where_it_ended():
    about = {"date": "2026-01-02", "gpu": "this one", "steps": 30}
    rows = [{"contender": "nanoGPT", "batch": 32}, {"contender": "modern", "batch": 8},
            {"contender": "gpt2", "batch": 32, "failed": "out of memory"}]
    result = about | {"rows": rows}
    assert training.found_before(result, about, 32) == {"nanoGPT": rows[0]}
    assert set(training.found_before(result, about, None)) == {"nanoGPT", "modern"}
    for other in ({"gpu": "that one"}, {"date": "2026-01-03"}, {"steps": 9}):
        assert not training.found_before(result, about | other, 32)
    assert not training.found_before({}, about, 32)


def test_versions_can_be_told_without_triton(monkeypatch):
    assert timing.about("cpu")["triton"]
    monkeypatch.setitem(sys.modules, "triton", None)
    assert timing.about("cpu")["triton"] is None


def test_every_part_has_its_command(tmp_path):
    args = Namespace(out=tmp_path, toy=False, nanogpt=None, transformers=False, again=False)
    made = gpu.parts(args)
    assert {name for name, part in made.items() if "--nanogpt" in part.missing} == {
        "training", "shakespeare_char", "largest"}
    args.nanogpt, args.transformers = tmp_path, True
    for name, part in gpu.parts(args).items():
        assert not part.missing or name == "memcheck"
        modules = [word for word in part.command if word.startswith("benchmarks.")]
        for module in modules:
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
