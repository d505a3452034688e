"""The benchmarks of kernels: to their end at a toy size, and what they say without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import attention, kernels, timing

pytest.importorskip("triton", reason="the kernels need Triton")
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
))
def test_floor_without_a_gpu(command, module, flags, least):
    code, said, _ = command(module.main, *flags)
    assert code == 0 and "no GPU" in said.splitlines()[0] and least in said.splitlines()


def test_bad_flags_are_refused(refusal):
    assert "--rounds" in refusal(attention.main, "--rounds=0")
    assert "--rounds" in refusal(kernels.main, "--rounds=0")
    assert "norn" in refusal(kernels.main, "--only", "norn")


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
