"""Every stage on running text with one budget of time: what architecture and scale bring.

    python -m benchmarks.text [--seconds 60] [--data shakespeare tales]

Each stage with its own recipe, but for the steps: a short trial tells how long one takes, and the
run gets as many as fit into the seconds of training (evaluations and samples come on top). Block
size 64 and a token a character for all. Losses over the whole validation split.
"""

import datetime
import json
import sys
import tempfile
from pathlib import Path

import nanogpt
from benchmarks.ladder import ROOT, SCRIPT, timed
from data import cli, runs

TRIAL = 30  # steps
SETS = ("shakespeare", "tales")


def train(stage: str, source: str, steps: int, run: Path) -> dict:
    """The result.json of a run of so many steps, its whole time and that of its training."""
    flags = [f"--model={stage}", f"--data={source}", f"--steps={steps}", "--patience=0"]
    every = f"--eval-every={max(1, steps // 5)}"
    seconds = timed([*SCRIPT, *flags, every, "--block-size=64", "--device=cpu", f"--out={run}"])
    result = json.loads((run / "result.json").read_text("utf-8"))
    return result | {"whole": seconds, "training": result["tokens"] / result["tokens_per_second"]}


def row(stage: str, source: str, seconds: float, scratch: Path) -> dict:
    """What a stage reaches on a set in that time."""
    trial = train(stage, source, TRIAL, scratch / f"trial-{stage}-{source}")
    steps = max(TRIAL, round(seconds * TRIAL / trial["training"]))
    run = scratch / f"{stage}-{source}"
    result = train(stage, source, steps, run)
    names = ("parameters", "steps", "best_step", "val_loss", "bits_per_char", "training", "whole")
    curve = [[line["tokens"], line["val_loss"]] for line in runs.read_metrics(run)]
    return {"stage": stage, "data": source, **{n: result[n] for n in names}, "curve": curve}


def table(rows: list[dict]) -> str:
    """A row a stage, a column a set."""
    sets = list(dict.fromkeys(row["data"] for row in rows))
    lines = [f"| stage | parameters | {' | '.join(sets)} | seconds of training |"]
    lines.append("| --- " * (len(sets) + 3) + "|")
    for stage in dict.fromkeys(row["stage"] for row in rows):
        group = {row["data"]: row for row in rows if row["stage"] == stage}
        first = next(iter(group.values()))
        losses = [f"{group[s]['val_loss']:.4f}" if s in group else "-" for s in sets]
        times = ", ".join(f"{group[s]['training']:.0f}" for s in sets if s in group)
        lines.append(f"| {stage} | {first['parameters']:,} | {' | '.join(losses)} | {times} |")
    return "\n".join(lines)


def plot(rows: list[dict], path: Path) -> None:
    """The validation loss of every stage against the tokens it has learned from, a set beside the
    other."""
    sets = list(dict.fromkeys(row["data"] for row in rows))
    figure = runs.new_figure(5.5 * len(sets), 4.5)
    for axes, source in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets):
        for line in (row for row in rows if row["data"] == source):
            tokens, losses = zip(*line["curve"][1:])
            label = f"{line['stage']}: {line['val_loss']:.3f}"
            axes.plot(tokens, losses, ".-", label=label)
        axes.set(xlabel="characters learned from", ylabel="validation loss (nats per character)",
                 title=source, xscale="log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    runs.save_figure(figure, path)


def main() -> None:
    title = __doc__.split("\n")[0]
    parser = cli.Parser(prog="python -m benchmarks.text", description=title)
    parser.add_argument("--seconds", type=float, default=60, help="of training (default 60)")
    parser.add_argument("--data", nargs="+", default=list(SETS), metavar="SET",
                        help=f"default {' '.join(SETS)}")
    parser.add_argument("--stages", nargs="+", default=nanogpt.STAGES, metavar="STAGE",
                        choices=nanogpt.STAGES, help="default all")
    results = ROOT / "benchmarks/results/text.json"
    parser.add_argument("--out", type=Path, default=results, metavar="FILE",
                        help="default benchmarks/results/text.json, and .png beside it")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    when = {"date": datetime.date.today().isoformat(), "environment": runs.environment()}
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as scratch:
        for source in args.data:
            for stage in args.stages:
                rows.append(row(stage, source, args.seconds, Path(scratch)) | when)
                runs.write_json(args.out, {"rows": rows})
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    plot(rows, args.out.with_suffix(".png"))
    print(table(rows))


if __name__ == "__main__":
    cli.run(main)
