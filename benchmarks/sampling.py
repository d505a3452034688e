"""Sampling names from the transformer: characters per second, ours beside makemore's.

    python -m benchmarks.sampling --makemore CLONE

The names and the split are makemore's, as in benchmarks.ladder. Both models have their default
sizes and are first trained for 500 steps, so that they write names of natural length. Then they
take turns, round by round, in one process: batches of 1 and of 100 names, with the generate() that
each project's own command line uses. Characters are those delivered, the end of a name counted as
one; makemore draws a fixed number for every name and throws away what follows its end. "drawn"
counts those too: it is the speed of the step alone, with ours not stopping at the end either.
"""

import datetime
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import data
from benchmarks import makemore_peer
from benchmarks.ladder import ROOT, makemore_split, timed
from data import cli, runs
from sample import generate, load_run

LENGTH = 15  # what makemore draws for a name: the longest of its names
NAMES = 200  # a round


def our_round(model, batch: int, stop: int | None, seed: int) -> int:
    """Draw NAMES names; the number of characters."""
    total = 0
    for i in range(NAMES // batch):
        prompts = [[data.END]] * batch
        total += sum(1 for _ in generate(model, prompts, LENGTH, seed=seed * NAMES + i, stop=stop))
    return total


def their_round(names: dict, model, batch: int, stop: int | None, seed: int) -> int:
    """The same with makemore's generate."""
    torch.manual_seed(seed)
    total = 0
    with torch.inference_mode():
        for _ in range(NAMES // batch):
            begin = torch.zeros(batch, 1, dtype=torch.long)
            drawn = names["generate"](model, begin, LENGTH, do_sample=True)[:, 1:].tolist()
            for row in drawn:
                total += row.index(0) + 1 if stop is not None and 0 in row else len(row)
    return total


def turns(jobs: list[Callable[[int], int]], rounds: int) -> list[list[float]]:
    """Characters per second of each job in each round, after one round that does not count."""
    speeds: list[list[float]] = [[] for _ in jobs]
    for round in range(rounds + 1):
        for speed, job in zip(speeds, jobs):
            began = time.perf_counter()
            characters = job(round)
            speed.append(characters / (time.perf_counter() - began))
    return [speed[1:] for speed in speeds]


def main() -> None:
    parser = cli.Parser(prog="python -m benchmarks.sampling", description=__doc__.split("\n")[0])
    parser.add_argument("--makemore", type=Path, required=True, metavar="CLONE", help="a clone")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default 5")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/sampling.json",
                        metavar="FILE", help="default benchmarks/results/sampling.json")
    args = parser.parse_args()
    clone = args.makemore.resolve()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = makemore_split(Path(scratch, "usnames_makemore"))
        options = ["--steps=500", "--device=cpu", "--lines", f"--out={scratch}/ours"]
        timed([sys.executable, "train.py", f"--data={folder}", *options])
        options = ["-i", str(clone / "names.txt"), "-o", f"{scratch}/theirs", "--max-steps=501"]
        timed([sys.executable, "-m", "benchmarks.makemore_peer", str(clone), *options])
        model, _ = load_run(f"{scratch}/ours")
        weights = Path(scratch, "theirs", "model.pt")
        names, peer = makemore_peer.load(clone, "transformer", 27, 16, weights)
    rows = []
    for what, stop in (("delivered", data.END), ("drawn", None)):
        for batch in (1, 100):
            jobs = [
                partial(our_round, model, batch, stop),
                partial(their_round, names, peer, batch, stop),
            ]
            ours, theirs = turns(jobs, args.rounds)
            rows.append({
                "characters": what,
                "batch": batch,
                "ours_per_second": statistics.median(ours),
                "makemore_per_second": statistics.median(theirs),
                "ratio": statistics.median(a / b for a, b in zip(ours, theirs)),
            })
    print("| characters | batch | ours, a second | makemore, a second | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for row in rows:
        speeds = f"{row['ours_per_second']:,.0f} | {row['makemore_per_second']:,.0f}"
        print(f"| {row['characters']} | {row['batch']} | {speeds} | {row['ratio']:.1f} |")
    today = datetime.date.today().isoformat()
    runs.write_json(args.out, {"date": today, "environment": runs.environment(), "rows": rows})


if __name__ == "__main__":
    cli.run(main)
