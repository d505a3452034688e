"""The ladder on makemore's names: test loss, parameters and time of each stage's bare run.

    python -m benchmarks.ladder [--makemore CLONE]

The names and the split are makemore's: its names.txt (the set usnames), parted as its default seed
does. Nothing is chosen on test: a run validates on a slice of train. Each run is a process of its
own, timed from start to end. With --makemore, the stages that makemore has are run beside ours with
its defaults for 10,000 steps. makemore keeps the checkpoint that is best on test, ours the one that
is best on validation.
"""

import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import data
import makemore
from benchmarks import makemore_peer
from data import cli, runs
from data.files import decode, fetch
from data.sets import as_lines
from nanogpt.evaluate import mean_loss
from nanogpt.machine import choose
from sample import load_run

ROOT = Path(__file__).parent.parent
SCRIPT = (sys.executable, "train.py")
PEER_STAGES = ("bigram", "mlp", "rnn", "gru", "transformer")


def timed(command: list[str], cwd: Path = ROOT) -> float:
    """Seconds of a process from start to end. ValueError with what it said, if it fails."""
    began = time.monotonic()
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
    return time.monotonic() - began


def makemore_split(folder: Path) -> Path:
    """Write train.txt and test.txt as makemore parts its names by default; the folder."""
    names = as_lines(decode(fetch("usnames"), "usnames"))
    torch.manual_seed(makemore_peer.SPLIT_SEED)
    mixed = [names[i] for i in torch.randperm(len(names)).tolist()]
    folder.mkdir(parents=True)
    for name, lines in (("train.txt", mixed[:-1000]), ("test.txt", mixed[-1000:])):
        runs.write(folder / name, "\n".join(lines) + "\n")
    return folder


def ours(
    stage: str, seed: int, folder: Path, unseen: list[str], scratch: Path, *more: str
) -> dict:
    """A bare default run, or one with more flags."""
    run = scratch / f"{stage}-{seed}"
    flags = [f"--model={stage}", f"--data={folder}", "--lines", *more]
    seconds = timed([*SCRIPT, *flags, "--device=cpu", f"--seed={seed}", f"--out={run}"])
    result = json.loads((run / "result.json").read_text("utf-8"))
    model, tokenizer = load_run(run)
    batches = data.LineBatches([tokenizer.encode(line) for line in unseen], 10**6, 1)
    groups = [batches.rows(range(len(unseen)))]
    return {
        "stage": stage,
        "seed": seed,
        "parameters": result["parameters"],
        "val_loss": result["val_loss"],
        "test_loss": result["test_loss"],
        "unseen_loss": mean_loss(model, groups, choose("cpu"))[0],
        "seconds": seconds,
        **spent(result),
    }


def spent(result: dict) -> dict[str, float]:
    """Of a run's result: the seconds of its steps, without all else that a process does, and the
    floor below them, by their operations and the speed of a large product."""
    steps = result["tokens"] / result["tokens_per_second"]
    return {"steps_seconds": steps, "floor_seconds": steps * result["mfu"]}


def theirs(stage: str, clone: Path, test: list[str], unseen: list[str], scratch: Path) -> dict:
    """makemore's defaults for 10,000 steps."""
    out = scratch / f"makemore-{stage}"
    script = [sys.executable, "-m", "benchmarks.makemore_peer", str(clone.resolve())]
    options = ["-i", str(clone.resolve() / "names.txt"), "-o", str(out), "--type", stage]
    seconds = timed([*script, *options, "--max-steps=10001"])
    _, model = makemore_peer.load(clone, stage, 27, 16, out / "model.pt")
    return {
        "stage": f"makemore {stage}",
        "seed": makemore_peer.SPLIT_SEED,
        "parameters": sum(p.numel() for p in model.parameters()),
        "test_loss": makemore_peer.mean_loss(model, test),
        "unseen_loss": makemore_peer.mean_loss(model, unseen),
        "seconds": seconds,
    }


def key(row: dict) -> tuple:
    """What a row is about, in the order of the table: ours before makemore's."""
    stage = row["stage"].split()[-1]
    return list(makemore.STAGES).index(stage), row["stage"] != stage, row["seed"]


def spread(values: list[float], digits: int = 4) -> str:
    middle = f"{statistics.mean(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ±{statistics.stdev(values):.{digits}f}"


def table(rows: list[dict]) -> str:
    """A row a stage: means over the seeds and the standard deviation."""
    lines = [
        "| stage | parameters | test loss | on unseen names | seconds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for stage in dict.fromkeys(row["stage"] for row in rows):
        group = [row for row in rows if row["stage"] == stage]
        cells = [
            stage if stage in makemore.STAGES else f"*{stage}*",
            f"{group[0]['parameters']:,}",
            spread([row["test_loss"] for row in group]),
            spread([row["unseen_loss"] for row in group]),
            spread([row["seconds"] for row in group], 1),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = cli.Parser(prog="python -m benchmarks.ladder", description=__doc__.split("\n")[0])
    parser.add_argument("--makemore", type=Path, metavar="CLONE", help="to run beside ours")
    parser.add_argument("--stages", nargs="+", choices=list(makemore.STAGES), metavar="STAGE",
                        default=list(makemore.STAGES), help="default all; others stay as they are")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N",
                        help="default 0 1 2")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/ladder.json",
                        metavar="FILE", help="default benchmarks/results/ladder.json")
    args = parser.parse_args()
    rows = json.loads(args.out.read_text("utf-8"))["rows"] if args.out.exists() else []
    args.out.parent.mkdir(parents=True, exist_ok=True)
    when = {"date": datetime.date.today().isoformat(), "environment": runs.environment()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = makemore_split(Path(scratch, "usnames_makemore"))
        splits = data.load(str(folder), lines=True).splits
        known = set(splits["train"]) | set(splits["val"])
        unseen = [line for line in splits["test"] if line not in known]
        for stage in args.stages:
            jobs = [(ours, (stage, seed, folder, unseen, Path(scratch))) for seed in args.seeds]
            if args.makemore and stage in PEER_STAGES:
                peer = (stage, args.makemore, splits["test"], unseen, Path(scratch))
                jobs.append((theirs, peer))
            for job, arguments in jobs:
                row = job(*arguments) | when
                rows = [old for old in rows if key(old) != key(row)] + [row]
                runs.write_json(args.out, {"rows": sorted(rows, key=key)})
                print(json.dumps(row), file=sys.stderr, flush=True)
    rows.sort(key=key)
    print(table(rows))


if __name__ == "__main__":
    cli.run(main)
