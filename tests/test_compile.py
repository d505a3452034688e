"""Every kernel compiled for chips that are not here, by the command that a user runs."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the compiler is Triton's")
ROOT = Path(__file__).parent.parent
MATRIX = {"sm_80": "mma", "sm_90": "wgmma", "sm_100": "tcgen05", "gfx942": "mfma"}
SHARED = {"sm_80": 163, "sm_90": 227, "sm_100": 227, "gfx942": 64}  # KiB a program may have


def command(*flags, **variables):
    """python -m kernels.compile in a process of its own, where launches compile."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | variables
    line = [sys.executable, "-m", "kernels.compile", *map(str, flags)]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The process, and its rows."""
    out = tmp_path_factory.mktemp("compile") / "rows.json"
    process = command("--processes", 2, "--out", out)
    assert out.exists(), process.stderr
    return process, json.loads(out.read_text("utf-8"))["rows"]


def test_every_default_compiles_and_the_table_shows_it(compiled):
    process, rows = compiled
    assert {row["target"] for row in rows} == set(MATRIX)
    assert not [row for row in rows if "error" in row]
    lines = process.stdout.splitlines()
    assert len(lines) == 2 + len(rows) and len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize("target", MATRIX)
def test_defaults_fit_and_do_not_spill(compiled, target):
    for row in (row for row in compiled[1] if row["target"] == target):
        assert row["spills"] == 0, row
        smallest = target == "sm_80" and row["kernel"].startswith("attention")
        assert row["shared"] <= (99 if smallest else SHARED[target]) * 1024, row  # as 8.6 has
        assert 0 < row["registers"] <= (512 if target == "gfx942" else 255), row


@pytest.fixture(scope="module")
def chosen():
    """Rows of what the command does not compile unasked, by their job."""
    from kernels.compile import Job, compile_all, configurations

    passes = [f"attention {name}" for name in ("forward", "backward_q", "backward_kv")]
    jobs = []
    for name in passes:
        jobs += [Job(name, "sm_80", 128, "float32"), Job(name, "sm_90", 64, "float32"),
                 Job(name, "sm_90", 128, "bfloat16", features="packed"),
                 Job(name, "gfx942", 64, "bfloat16", features="packed")]
        for target, width in (("sm_90", 128), ("sm_100", 64)):
            first = Job(name, target, width, "bfloat16")
            reads = [config["READ"] for config in configurations(first)]
            jobs += [replace(first, config=reads.index(read)) for read in {*reads} - {"threads"}]
    for name, what in (("attention forward", "packed"), ("attention backward_kv", "dropout")):
        first = Job(name, "sm_90", 128, "bfloat16", features=what)
        reads = [config["READ"] for config in configurations(first)]
        jobs.append(replace(first, config=reads.index("tma")))
    return dict(zip(jobs, compile_all(jobs, 2)))


def test_float32_and_packed_documents_do_not_spill(chosen):
    for job, row in chosen.items():
        if job.config == 0:
            assert "error" not in row and row["spills"] == 0, row
            assert row["shared"] <= (99 if job.target == "sm_80" else SHARED[job.target]) * 1024
            assert not row["tma"] and not row["specialised"]


def test_tiles_are_read_by_tma_where_it_is_chosen(chosen):
    reads = []
    for job, row in chosen.items():
        if job.config:
            assert row["tma"] and row["spills"] == 0 and row["matrix"] == MATRIX[job.target], row
            assert row["specialised"] == (row["read"] == "warps")
            reads.append((job.kernel, row["read"]))
    assert ("attention forward", "warps") in reads
    assert {name for name, read in reads if read == "tma"} == {job.kernel for job in chosen}


@pytest.mark.parametrize("target", MATRIX)
def test_products_are_of_the_matrix_units(compiled, target):
    rows = [row for row in compiled[1] if row["target"] == target]
    found = {(row["kernel"], row["width"]): row["matrix"] for row in rows}
    for name in ("forward", "backward_q", "backward_kv"):
        assert found[f"attention {name}", 64] == found[f"attention {name}", 128] == MATRIX[target]
    assert [row["features"] for row in rows if row["kernel"] == "decode"] == 2 * ["", "packed"]
    assert found["decode", 64] in (MATRIX[target], "mma")  # 16 rows are too few for the large ones
    assert found["rotary", 64] == "-"


def test_exit_code_is_that_of_the_table(compiled):
    process, rows = compiled
    assert process.returncode == any(row["spills"] for row in rows)
    assert ("spills" in process.stderr) == process.returncode


def test_what_does_not_fit_is_said():
    from kernels.compile import faults

    row = {"target": "gfx942", "spills": 3, "shared": 80 * 1024}
    assert faults(row) == "spills (3) and takes 80 KiB of shared memory, of 64"
    assert faults(row | {"spills": 0, "shared": 64 * 1024}) == ""
    assert "boom" in faults({"error": "boom"})


@pytest.mark.parametrize("flags, sentence", (
    (["--targets=sm_75"], "sm_75"), (["--widths", 300], "300"), (["--processes=0"], "at least 1"),
))
def test_bad_flags_are_refused(flags, sentence):
    process = command(*flags)
    assert process.returncode == 2 and sentence in process.stderr
    assert process.stderr.count("\n") == 1 and not process.stdout


def test_the_interpreter_is_refused():
    process = command(TRITON_INTERPRET="1")
    assert process.returncode == 2 and "TRITON_INTERPRET" in process.stderr


def test_without_triton_the_command_says_so():
    script = ("import runpy, sys; sys.modules['triton'] = None; sys.argv[1:] = ['--help']; "
              "runpy.run_module('kernels.compile', run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.startswith("error: Triton is not installed")
