"""How the cost of a step grows: seconds a token and memory against width, depth, block and batch.

    python -m benchmarks.growth [--steps 8] [--toy]          some 20 minutes

One dial of a gpt at a time, the others as in BASE; each a process of its own, of a few steps on
random letters, so that only the cost counts. Beside what was measured stands what is expected: the
operations that a token takes (nanogpt/estimate.py, and its share of Muon's) at the speed of BASE.
"""

import datetime
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.ladder import ROOT, SCRIPT
from data import cli, runs

BASE = {"width": 256, "layers": 4, "block-size": 256, "batch-size": 16}
DIALS = {
    "width": (64, 128, 256, 512, 1024),
    "layers": (1, 2, 4, 8, 16),
    "block-size": (64, 128, 256, 512, 1024, 2048, 4096),
    "batch-size": (1, 4, 16, 64),
}
TOY = {"width": (16, 32), "layers": (1,), "block-size": (16,), "batch-size": (2,)}
HEAD = 64  # features of a head
BLOCKS = 12  # square matrices of a layer: q, k, v, out, and four on either side of the MLP's middle
MUON = 5 * 3 * 2  # operations a step for each, times its width cubed: five times three products


def measure(sizes: dict, text: Path, steps: int, scratch: Path) -> dict:
    """A row: seconds a token of the steps, memory in bytes, operations a token."""
    run = scratch / "-".join(map(str, sizes.values()))
    heads = max(1, sizes["width"] // HEAD)
    flags = [f"--{name}={value}" for name, value in sizes.items()]
    command = [*SCRIPT, "--model=gpt", f"--data={text}", f"--heads={heads}", "--device=cpu",
               f"--steps={steps}", f"--eval-every={steps // 2}", *flags, f"--out={run}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}")
    result = json.loads((run / "result.json").read_text("utf-8"))
    return {**sizes, "parameters": result["parameters"], "memory": result["memory"],
            "seconds_per_token": steady(runs.read_metrics(run)),
            "flops_per_token": result["flops_per_token"]}


def steady(metrics: list[dict]) -> float:
    """Seconds a token of the later half of the steps: the first ones load and warm what they need.
    """
    first, last = ((line["tokens"], line["tokens"] / line["tokens_per_second"])
                   for line in (metrics[1], metrics[-1]))
    return (last[1] - first[1]) / (last[0] - first[0])


def random_text(folder: Path, characters: int = 300_000) -> Path:
    """Random letters: what a text is makes no difference to what a step costs."""
    letters = np.random.default_rng(0).integers(97, 123, characters).astype(np.uint8)
    path = folder / "text.txt"
    path.write_bytes(letters.tobytes())
    return path


def operations(row: dict) -> float:
    """Of a token: those of the network, and its share of Muon's, which are the same for a step of
    many tokens as for one of few."""
    shared = MUON * row["width"]**3 * BLOCKS * row["layers"]
    return row["flops_per_token"] + shared / (row["block-size"] * row["batch-size"])


def table(rows: list[dict]) -> str:
    """A row a size; expected: by its operations, at the speed of the base."""
    speed = speed_of(rows)
    lines = ["| dial | value | microseconds a token | expected | of that | MB |",
             "| --- " * 6 + "|"]
    for row in rows:
        taken, expected = row["seconds_per_token"], speed * operations(row)
        lines.append(
            f"| {row['dial']} | {row[row['dial']]:,} | {1e6 * taken:.1f} | {1e6 * expected:.1f} | "
            f"{taken / expected:.2f} | {row['memory'] / 1e6:,.0f} |")
    return "\n".join(lines)


def speed_of(rows: list[dict]) -> float:
    """Seconds an operation of the base, which is measured once for every dial."""
    base = base_of(rows)
    return statistics.median(row["seconds_per_token"] / operations(row) for row in rows
                             if all(row[name] == value for name, value in base.items()))


def base_of(rows: list[dict]) -> dict:
    """The sizes that most rows have."""
    return {name: max(values, key=values.count) for name in BASE
            if (values := [row[name] for row in rows])}


def plot(rows: list[dict], path: Path) -> None:
    """Cost against each dial, and as a broken line what is expected of it."""
    speed = speed_of(rows)
    figure = runs.new_figure(9, 5)
    grid = figure.subplots(2, len(DIALS), sharex="col", sharey="row")
    for column, dial in enumerate(DIALS):
        group = [row for row in rows if row["dial"] == dial]
        values = [row[dial] for row in group]
        costs = [1e6 * row["seconds_per_token"] for row in group], [
            row["memory"] / 1e6 for row in group]
        for axes, cost in zip(grid[:, column], costs):
            axes.plot(values, cost, "o-")
            axes.set(xscale="log", yscale="log")
            axes.grid(alpha=0.3)
        expected = [1e6 * speed * operations(row) for row in group]
        grid[0, column].plot(values, expected, "--", color="grey", label="by its operations")
        grid[1, column].set_xlabel(dial)
    grid[0, 0].set_ylabel("microseconds a token")
    grid[0, 0].legend(frameon=False)
    grid[1, 0].set_ylabel("memory, MB")
    runs.save_figure(figure, path)


def main() -> None:
    parser = cli.Parser(prog="python -m benchmarks.growth", description=__doc__)
    cli.add(parser, "steps", "of each, an even number (default 8)")
    cli.add(parser, "toy", "as small as can be", bool)
    cli.add(parser, "out", "(default benchmarks/results/growth.json)", Path)
    args = parser.parse_args()
    steps = args.steps or 8
    if steps < 2 or steps % 2:
        raise ValueError(f"--steps must be an even number of at least 2, not {steps}.")
    if args.toy and not args.out:
        raise ValueError("--toy is not for the results: say where to, by --out=FILE.")
    out = args.out or ROOT / "benchmarks/results/growth.json"
    base = {name: values[0] for name, values in TOY.items()} if args.toy else BASE
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        text = random_text(Path(folder))
        for dial, values in (TOY if args.toy else DIALS).items():
            for value in values:
                row = measure(base | {dial: value}, text, steps, Path(folder, dial))
                rows.append(row | {"dial": dial})
                print(json.dumps(rows[-1]), flush=True)
    runs.write_json(out, {"date": datetime.date.today().isoformat(), "steps": steps,
                          "environment": runs.environment(), "rows": rows})
    plot(rows, out.with_suffix(".png"))
    print(table(rows))


if __name__ == "__main__":
    cli.run(main)
