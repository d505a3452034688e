"""All that is to be shown on a GPU, by one command: tests, bits, speed, losses; part by part.

    python -m benchmarks.gpu [--nanogpt CLONE] [--transformers] [--minutes 9.5] [--out FOLDER]

The parts are done in order, or those of --parts. Each has a limit of time; one that fails or
outlasts it is reported, and the rest are done. What is done already on this GPU, as gpu.json in the
folder says, is not done again: so the same command goes on where the last one ended, first with
what was never tried, and with --minutes each call ends in time. --again does it anew, the oldest
first. Results lie in the folder, one file a script; gpu.log has all that was printed. What to
expect, and why, is in benchmarks/results/GPU.md.

--toy: every part to its end on a CPU, at toy sizes, in a few minutes where nothing else runs.
"""

import argparse
import datetime
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import timing
from benchmarks.ladder import ROOT
from data import cli, runs

RESULTS = ROOT / "benchmarks/results"
TESTS = ["tests/test_attention.py", "tests/test_kernels.py"]
NO_CHIP = "not without_a_gpu and not on_a_cpu and not without_triton"  # of these tests
TOY = "same_bits or is_that_of_gpt"
UNHELD = {"PYTHONUNBUFFERED": "1"}  # so that the log has all that was said before a limit
FEW = "agrees_with or half_precision or decoding or test_loss or test_norm or test_rotary"


class Part(NamedTuple):
    """seconds: the limit. missing: why it cannot be done here, if so."""

    seconds: int
    command: list[str]
    missing: str = ""


def parts(args: argparse.Namespace) -> dict[str, Part]:
    """All parts, the most valuable first."""
    out, toy = args.out.resolve(), ["--toy"] * args.toy
    python = [sys.executable, "-W", "ignore", "-m"]
    clone = ["--nanogpt", str(args.nanogpt.resolve())] if args.nanogpt else []
    no_clone = "" if clone or args.toy else "give --nanogpt CLONE"
    workers = ["-n", "8"] if importlib.util.find_spec("xdist") and not args.toy else []
    tests = [*python, "pytest", *TESTS, *workers, "-k", TOY if args.toy else NO_CHIP]
    # every allocation by itself, so that a step beyond one is seen
    check = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", "compute-sanitizer", "--tool=memcheck",
             "--error-exitcode=9", *python, "pytest", *TESTS, "-k", FEW]
    no_checker = "" if shutil.which("compute-sanitizer") else "compute-sanitizer is not there"
    sampling = ["--transformers", "--device=cuda", "--dtypes=bfloat16"]
    no_peer = "" if args.transformers else "give --transformers, if that is installed"

    def script(name: str, *flags: str) -> list[str]:
        return [*python, f"benchmarks.{name}", *flags, *toy, f"--out={out / name}.json"]

    cases = ["--widths", "128", "64", "--lengths", "2048", "4096", "8192", "16384", "--rounds=10"]
    decode = [] if args.toy else ["--decode"]  # the toy has it all in one
    again = ["--again"] * args.again
    tuned = ["env", "RUNGS_AUTOTUNE=1", *python, "benchmarks.attention", *cases[:3], "--lengths",
             "4096", "16384", "--rounds=10", *toy, f"--out={out / 'attention_tuned.json'}"]
    return {
        "tests": Part(240, tests),
        "bits": Part(60, [*python, "benchmarks.bits", *toy]),
        "attention": Part(400, script("attention", *cases)),
        "decode": Part(90, script("attention", *decode)),
        "training": Part(300, script("training", *clone, *again), no_clone),
        "shakespeare_char": Part(330, script("shakespeare_char", *clone), no_clone),
        "kernels": Part(90, script("kernels")),
        "tuned": Part(400, tuned),  # whether TMA pays, beside "attention"
        "largest": Part(330, script("training", *clone, "--largest", *again), no_clone),
        "sampling": Part(260, script("sampling", *sampling), no_peer),
        "memcheck": Part(150, check, no_checker),
        "without": Part(330, script("training", "--without", "attention", "loss", *again)),
    }


def carry_out(command: list[str], seconds: int, log: Path) -> str:
    """Do a part in so many seconds, its words into the log: "done", or how it failed."""
    with open(log, "ab") as said:
        said.write(f"\n$ {' '.join(command)}\n".encode())
        said.flush()
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | UNHELD, stdout=said,
                                   stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"outlasted {seconds} seconds"
        finally:
            end(process)
    return "done" if code == 0 else f"failed with exit code {code}"


def end(process: subprocess.Popen) -> None:
    """End a process with all its children, so that the GPU is free for the next."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # all have ended
        return
    process.wait()


def last_words(log: Path, begin: int) -> str:
    """What was said since that place of the log, its last lines."""
    with open(log, "rb") as said:
        said.seek(begin)
        return "\n".join(said.read().decode("utf-8", "replace").splitlines()[-40:])


def in_turn(chosen: list[str], done: dict[str, dict]) -> list[str]:
    """What was never tried comes first, then what was tried longest ago: so none is in the way."""
    tried = {name: done[name]["date"] for name in chosen if was_tried(done.get(name))}
    return sorted(chosen, key=lambda name: tried.get(name, ""))


def was_tried(state: dict | None) -> bool:
    return state is not None and not state["state"].startswith("left")


def begun(folder: Path, about: dict) -> dict[str, dict]:
    """The parts that gpu.json of a folder knows of this GPU."""
    path = folder / "gpu.json"
    before = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return before.get("parts", {}) if before.get("gpu") == about.get("gpu") else {}


def take_over(folder: Path, about: dict) -> None:
    """Copy into a folder the results that it lacks, if they are not those of another GPU."""
    if (RESULTS / "gpu.json").exists() and not begun(RESULTS, about):
        return
    names = ("gpu", "attention", "attention_tuned", "training", "kernels", "shakespeare_char",
             "sampling")
    for path in (RESULTS / f"{name}.json" for name in names):
        if path.exists() and not (folder / path.name).exists():
            shutil.copy(path, folder)


def table(done: dict[str, dict]) -> str:
    lines = ["| part | state | seconds | date |", 4 * "| --- " + "|"]
    for name, state in done.items():
        seconds = "-" if state["seconds"] is None else f"{state['seconds']:.0f}"
        lines.append(f"| {name} | {state['state']} | {seconds} | {state['date']} |")
    return "\n".join(lines)


def main() -> int:
    began = time.monotonic()
    title = __doc__.split("\n")[0]
    parser = cli.Parser(prog="python -m benchmarks.gpu", description=title)
    parser.add_argument("--nanogpt", type=Path, metavar="CLONE", help="to run beside ours")
    parser.add_argument("--transformers", action="store_true", help="beside it, in sampling")
    parser.add_argument("--parts", metavar="NAMES", help="with commas (default all, in order)")
    parser.add_argument("--minutes", type=float, default=0, metavar="X",
                        help="begin no part that might not end in these; 0: do all (default)")
    parser.add_argument("--again", action="store_true", help="also what is done already")
    parser.add_argument("--toy", action="store_true", help="at toy sizes, on the CPU")
    parser.add_argument("--out", type=Path, metavar="FOLDER",
                        help="default benchmarks/results; what that has is taken over")
    args = parser.parse_args()
    if args.toy and args.out is None:
        raise ValueError("--toy needs --out FOLDER, as its times mean nothing.")
    args.out = args.out or RESULTS
    known = parts(args)
    chosen = args.parts.split(",") if args.parts else list(known)
    if wrong := [name for name in chosen if name not in known]:
        raise ValueError(f"there is no part {wrong[0]}; the parts are {', '.join(known)}.")
    if not args.toy and not torch.cuda.is_available():
        raise ValueError("there is no GPU here that this PyTorch can use; try --toy.")
    args.out.mkdir(parents=True, exist_ok=True)
    about = timing.about("cpu" if args.toy else "cuda")
    if not args.toy:  # so that a new folder goes on, too
        take_over(args.out, about)
    path, log = args.out / "gpu.json", args.out / "gpu.log"
    done, failed = begun(args.out, about), False
    for name in in_turn(chosen, done):
        part, left = known[name], args.minutes * 60 - (time.monotonic() - began)
        if done.get(name, {}).get("state") == "done" and not args.again:
            continue
        started, place = time.monotonic(), log.stat().st_size if log.exists() else 0
        if part.missing:
            state = f"left out: {part.missing}"
        elif args.minutes and part.seconds > left:
            state = "left for another call"
        else:
            print(f"{name} ...", flush=True)
            more = 10 if args.toy else 1  # a CPU takes its time
            state = carry_out(part.command, more * part.seconds, log)
            print(last_words(log, place), flush=True)
        new = {"state": state, "seconds": time.monotonic() - started,
               "date": datetime.datetime.now().isoformat(sep=" ", timespec="seconds")}
        failed |= state != "done" and was_tried(new)
        if was_tried(new):
            done[name] = new
        elif not was_tried(done.get(name)):  # what became of it before says more
            done[name] = new | {"seconds": None}
        done = {name: done[name] for name in known if name in done}
        runs.write_json(path, about | {"parts": done})
    print(table(done))
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
