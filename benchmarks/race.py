"""How soon ours is where makemore ends: whole processes, to makemore's test loss or below.

    python -m benchmarks.race --makemore CLONE [--times 3]

makemore's defaults for 10,000 steps, once, after the first of ours, which are three, on its names
and its split (as benchmarks.ladder has them). Ours is the stage's own recipe with fewer steps; how
many was chosen on validation data, and stands below. A test loss of ours that is not as low as
makemore's is marked.
"""

import datetime
import json
import statistics
import sys
import tempfile
from pathlib import Path

import data
from benchmarks.ladder import PEER_STAGES, ROOT, makemore_split, ours, theirs
from data import cli, runs

FAST = {
    "bigram": ("--steps=200", "--eval-every=200"),
    "mlp": ("--steps=300", "--eval-every=300"),
    "rnn": ("--steps=200", "--eval-every=200"),
    "gru": ("--steps=300", "--eval-every=300"),
    "transformer": ("--steps=500", "--eval-every=500"),
}


def table(rows: list[dict]) -> str:
    """A row a stage: medians of ours, and the share of makemore's time."""
    lines = ["| stage | makemore: test loss | seconds | ours: test loss | seconds | share of the "
             "time |", "| --- " * 6 + "|"]
    for stage in dict.fromkeys(row["stage"].split()[-1] for row in rows):
        peer, = (row for row in rows if row["stage"] == f"makemore {stage}")
        mine = [row for row in rows if row["stage"] == stage]
        loss, seconds = (statistics.median(row[name] for row in mine)
                         for name in ("test_loss", "seconds"))
        lines.append(f"| {stage} | {peer['test_loss']:.4f} | {peer['seconds']:.1f} | {loss:.4f}"
                     f"{' (above)' * (loss > peer['test_loss'])} | "
                     f"{seconds:.1f} | {seconds / peer['seconds']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = cli.Parser(prog="python -m benchmarks.race", description=__doc__)
    cli.add(parser, "makemore", "a clone of makemore", Path, metavar="CLONE")
    cli.add(parser, "times", "of ours (default 3)")
    cli.add(parser, "out", "(default benchmarks/results/race.json)", Path)
    args = parser.parse_args()
    times = 3 if args.times is None else args.times
    if times < 1:
        raise ValueError(f"--times must be at least 1, not {times}.")
    if args.makemore is None:
        raise ValueError("name the folder of a clone: --makemore=CLONE.")
    out = args.out or ROOT / "benchmarks/results/race.json"
    when = {"date": datetime.date.today().isoformat(), "environment": runs.environment()}
    rows: list[dict] = []

    def note(row: dict) -> None:
        rows.append(row | when)
        runs.write_json(out, {"rows": rows})
        print(json.dumps(row), file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        folder = makemore_split(Path(scratch, "usnames_makemore"))
        splits = data.load(str(folder), lines=True).splits
        known = set(splits["train"]) | set(splits["val"])
        unseen = [line for line in splits["test"] if line not in known]
        for stage in PEER_STAGES:
            for seed in range(times):
                note(ours(stage, seed, folder, unseen, Path(scratch), FAST[stage]))
                if seed == 0:
                    note(theirs(stage, args.makemore, splits["test"], unseen, Path(scratch)))
    print(table(rows))


if __name__ == "__main__":
    cli.run(main)
