"""How soon ours is where makemore ends: whole processes, to makemore's test loss or below.

    python -m benchmarks.race --makemore CLONE [--times 3]

makemore's defaults for 10,000 steps and ours, --recipe=quick-STAGE, in turn, three of each. Ours
were chosen on validation data; the names and the split are makemore's (as benchmarks.ladder has
them). A test loss of ours that is not as low as makemore's is marked.
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


def table(rows: list[dict]) -> str:
    """A row a stage: medians of both, and ours as a share of makemore's time."""
    lines = ["| stage | makemore: test loss | seconds | ours: test loss | seconds | share of the "
             "time |", "| --- " * 6 + "|"]
    peers = dict.fromkeys(row["stage"] for row in rows if row["stage"].startswith("makemore "))
    for name in peers:
        stage = name.split()[-1]
        (loss, seconds), (peer, theirs) = (
            [statistics.median(row[what] for row in rows if row["stage"] == who)
             for what in ("test_loss", "seconds")] for who in (stage, name))
        mark = " (above)" * (loss > peer)
        lines.append(f"| {stage} | {peer:.4f} | {theirs:.1f} | {loss:.4f}{mark} | {seconds:.1f} | "
                     f"{seconds / theirs:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = cli.Parser(prog="python -m benchmarks.race", description=__doc__)
    cli.add(parser, "makemore", "a clone of makemore", Path, metavar="CLONE")
    cli.add(parser, "stages", f"with blanks between (default: {' '.join(PEER_STAGES)})", str)
    cli.add(parser, "times", "of each (default 3)")
    cli.add(parser, "out", "(default benchmarks/results/race.json)", Path)
    args = parser.parse_args()
    times = 3 if args.times is None else args.times
    stages = args.stages.split() if args.stages else PEER_STAGES
    if times < 1:
        raise ValueError(f"--times must be at least 1, not {times}.")
    if unknown := [stage for stage in stages if stage not in PEER_STAGES]:
        raise ValueError(f"makemore has no {unknown[0]} here; it has {', '.join(PEER_STAGES)}.")
    if args.makemore is None:
        raise ValueError("name the folder of a clone: --makemore=CLONE.")
    out = args.out or ROOT / "benchmarks/results/race.json"
    rows = json.loads(out.read_text("utf-8"))["rows"] if out.exists() else []
    when = {"date": datetime.date.today().isoformat(), "environment": runs.environment()}

    def note(row: dict) -> None:
        rows.append(row | when)
        rows.sort(key=lambda row: PEER_STAGES.index(row["stage"].split()[-1]))
        runs.write_json(out, {"rows": rows})
        print(json.dumps(row), file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        folder = makemore_split(Path(scratch, "usnames_makemore"))
        splits = data.load(str(folder), lines=True).splits
        known = set(splits["train"]) | set(splits["val"])
        unseen = [line for line in splits["test"] if line not in known]
        for stage in stages:
            rows[:] = [row for row in rows if row["stage"].split()[-1] != stage]
            for seed in range(times):
                quick = f"--recipe=quick-{stage}"
                note(ours(stage, seed, folder, unseen, Path(scratch), quick))
                note(theirs(stage, args.makemore, splits["test"], unseen,
                            Path(scratch, str(seed))))
    print(table(rows))


if __name__ == "__main__":
    cli.run(main)
