"""GPT of baby size (10.7M) on a CPU: an iteration beside nanoGPT's, its memory, and the whole way.

    python -m benchmarks.baby --nanogpt CLONE [--iterations 8] [--whole]

An iteration is of 64 windows of 256: nanoGPT's train.py with its configuration shakespeare_char
(dropout 0.2, float32, not compiled); the same without dropout and under bfloat16 autocast, which it
leaves out on a CPU and a copy is given here; and --recipe=shakespeare-baby (residual dropout 0.2,
bfloat16). Seconds are those of the later half of the iterations, of nanoGPT their median; memory is
the most that the process had. --whole: --recipe=shakespeare-baby-cpu as well, from start to end,
once; its loss is over the whole validation split.
"""

import datetime
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.growth import steady
from benchmarks.ladder import ROOT, SCRIPT, spent, timed
from benchmarks.nano import their_folder
from data import cli, runs

TOKENS = 64 * 256  # of an iteration
WITHOUT = "nullcontext() if device_type == 'cpu' else "  # autocast, in nanoGPT's train.py
VARIANTS = {  # of nanoGPT: flags, and whether it gets autocast
    "nanoGPT": ({}, False),
    "nanoGPT, no dropout, bfloat16": ({"dropout": 0.0, "dtype": "bfloat16"}, True),
}
TOY_THEIRS = {"batch_size": 2, "block_size": 32, "n_layer": 1, "n_head": 2, "n_embd": 16}
TOY = ("--batch-size=2", "--block-size=32", "--layers=1", "--heads=2", "--width=16")


def with_autocast(folder: Path) -> None:
    """Change a copy of nanoGPT. ValueError: it is not as it was known here."""
    path = folder / "train.py"
    text = path.read_text("utf-8")
    if text.count(WITHOUT) != 1:
        raise ValueError(f"{path} does not choose autocast as it was known to.")
    path.write_text(text.replace(WITHOUT, ""), "utf-8")


def theirs(name: str, clone: Path, iterations: int, toy: bool, scratch: Path) -> dict:
    """Iterations of a variant of nanoGPT, in a process of its own."""
    flags, autocast = VARIANTS[name]
    folder = their_folder(clone, scratch / f"theirs-{list(VARIANTS).index(name)}")
    if autocast:
        with_autocast(folder)
    given = {"device": "cpu", "compile": False, "eval_iters": 1, "log_interval": 1,
             "max_iters": iterations} | flags | (TOY_THEIRS if toy else {})
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.nanogpt_peer", str(folder),
               "config/train_shakespeare_char.py", *(f"--{n}={v}" for n, v in given.items())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"nanoGPT failed: {done.stderr.strip()[-300:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    seconds = found["step_seconds"][1:]  # the first evaluates
    return {"contender": name, "parameters": found["parameters"], "memory": found["memory"],
            "seconds_an_iteration": statistics.median(seconds[len(seconds) // 2:])}


def ours(iterations: int, toy: bool, scratch: Path) -> dict:
    """Iterations of ours, as a user starts them."""
    run = scratch / "ours"
    flags = [f"--steps={iterations}", f"--eval-every={iterations // 2}", *(TOY if toy else ())]
    timed([*SCRIPT, "--recipe=shakespeare-baby", "--device=cpu", *flags, f"--out={run}"])
    result = json.loads((run / "result.json").read_text("utf-8"))
    tokens = result["tokens"] / iterations
    return {"contender": "ours", "parameters": result["parameters"], "memory": result["memory"],
            "seconds_an_iteration": steady(runs.read_metrics(run)) * tokens,
            "floor_an_iteration": result["mfu"] * tokens / result["tokens_per_second"]}


def whole(toy: bool, scratch: Path) -> dict:
    """The recipe for a CPU from start to end."""
    run = scratch / "whole"
    flags = ["--steps=2", "--eval-every=1", *TOY] if toy else []
    seconds = timed([*SCRIPT, "--recipe=shakespeare-baby-cpu", "--device=cpu", *flags,
                     f"--out={run}"])
    result = json.loads((run / "result.json").read_text("utf-8"))
    kept = {key: result[key] for key in ("parameters", "steps", "tokens", "val_loss", "memory")}
    losses = [[line["step"], line["seconds"], line["val_loss"]] for line in runs.read_metrics(run)]
    return {"contender": "ours, from start to end", "seconds": seconds, "losses": losses, **kept,
            **spent(result)}


def table(rows: list[dict]) -> str:
    """Iterations: a row a contender, beside nanoGPT as it is configured."""
    lines = ["| | seconds an iteration | of nanoGPT's | its floor | memory | of nanoGPT's |",
             "| --- " * 6 + "|"]
    peers = [row for row in rows if row["contender"] == "nanoGPT"]
    for row in rows:
        if "losses" in row:
            continue
        time, memory = row["seconds_an_iteration"], row["memory"]
        shares = (f"{time / peers[0]['seconds_an_iteration']:.2f}",
                  f"{memory / peers[0]['memory']:.2f}") if peers else ("-", "-")
        floor = f"{row['floor_an_iteration']:.2f}" if "floor_an_iteration" in row else "-"
        lines.append(f"| {row['contender']} | {time:.2f} | {shares[0]} | {floor} "
                     f"| {memory / 1e9:.2f} GB | {shares[1]} |")
    return "\n".join(lines)


def floor(rows: list[dict]) -> float:
    """Seconds below the whole way: its operations at the best speed that one of the processes found
    of large products, which each measures once at its start, and another's work may disturb."""
    (whole_way,) = (row for row in rows if "losses" in row)
    share = whole_way["tokens"] / TOKENS
    return min([whole_way["floor_seconds"]] + [row["floor_an_iteration"] * share for row in rows
                                               if "floor_an_iteration" in row])


def way(row: dict) -> str:
    """What a whole run came to."""
    return (f"--recipe=shakespeare-baby-cpu: {row['val_loss']:.4f} after {row['seconds'] / 60:.1f} "
            f"minutes and {row['tokens']:,} tokens.")


def main() -> None:
    parser = cli.Parser(prog="python -m benchmarks.baby", description=__doc__)
    cli.add(parser, "nanogpt", "a clone, to run beside ours", Path, metavar="CLONE")
    cli.add(parser, "iterations", "of each, an even number (default 8)")
    cli.add(parser, "whole", "also the recipe for a CPU, to its end", bool)
    cli.add(parser, "toy", "as small as can be", bool)
    cli.add(parser, "out", "(default benchmarks/results/baby.json)", Path)
    args = parser.parse_args()
    iterations = 8 if args.iterations is None else args.iterations
    if iterations < 2 or iterations % 2:
        raise ValueError(f"--iterations must be an even number above 0, not {iterations}.")
    if args.toy and not args.out:
        raise ValueError("--toy is not for the results: say where to, by --out=FILE.")
    out = args.out or ROOT / "benchmarks/results/baby.json"
    rows = json.loads(out.read_text("utf-8"))["rows"] if out.exists() else []
    when = {"date": datetime.date.today().isoformat(), "environment": runs.environment()}

    def note(row: dict) -> None:
        rows[:] = [old for old in rows if old["contender"] != row["contender"]] + [row | when]
        runs.write_json(out, {"rows": rows})
        print(json.dumps(row), file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for name in VARIANTS if args.nanogpt else ():
            note(theirs(name, args.nanogpt, iterations, args.toy, scratch))
        note(ours(iterations, args.toy, scratch))
        if args.whole:
            note(whole(args.toy, scratch))
    print(table(rows))
    print(*(way(row) for row in rows if "losses" in row), sep="\n")


if __name__ == "__main__":
    cli.run(main)
