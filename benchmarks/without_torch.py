"""The NumPy stages on makemore's names: test loss and time, beside makemore's PyTorch MLP.

    python -m benchmarks.without_torch [--makemore CLONE]

Names, split and rules are those of benchmarks/ladder.py. The bigram is counted in this process, and
only the counting is timed; the MLP's runs and makemore's are processes of their own, in turn.
"""

import datetime
import json
import tempfile
import time
from pathlib import Path

import numpy as np

import data
from benchmarks import ladder
from data import cli, runs
from makemore.without_torch.bigram import Bigram


def counted(folder: Path) -> dict:
    """The bigram that counts the training names once."""
    names = data.load(str(folder), lines=True)
    tokenizer = data.CharTokenizer.train(t for part in names.splits.values() for t in part)
    block = data.default_block_size(names)
    batches = data.evaluation_batches(names, tokenizer, "train", block)
    began = time.monotonic()
    model = Bigram(tokenizer.vocab_size, block)
    model.count(batches)
    seconds = time.monotonic() - began
    groups = data.evaluation_batches(names, tokenizer, "test", block)
    counts = [int((targets >= 0).sum()) for _, targets in groups]
    loss = np.average([model.loss(*batch) for batch in groups], weights=counts)
    size = sum(w.size for w in model.parameters.values())
    row = {"stage": "bigram, counted", "parameters": size, "test_loss": float(loss)}
    return row | {"seconds": seconds}


def ours(folder: Path, seed: int, scratch: Path) -> dict:
    """A bare run of the MLP in NumPy."""
    run = scratch / f"mlp-{seed}"
    flags = ["--model=mlp", "--backend=numpy", f"--data={folder}", "--lines"]
    seconds = ladder.timed([*ladder.SCRIPT, *flags, f"--seed={seed}", f"--out={run}"])
    result = json.loads((run / "result.json").read_text("utf-8"))
    kept = {name: result[name] for name in ("parameters", "val_loss", "test_loss")}
    return {"stage": "mlp in NumPy", "seed": seed, **kept, "seconds": seconds}


def table(rows: list[dict]) -> str:
    """A row a model: means over its runs and their standard deviation."""
    lines = ["| model | parameters | test loss | seconds |", "| --- | --- | --- | --- |"]
    for stage in dict.fromkeys(row["stage"] for row in rows):
        group = [row for row in rows if row["stage"] == stage]
        loss = ladder.spread([row["test_loss"] for row in group])
        seconds = [row["seconds"] for row in group]
        shown = ladder.spread(seconds, 1) if min(seconds) > 1 else ladder.spread(seconds, 3)
        lines.append(f"| {stage} | {group[0]['parameters']:,} | {loss} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    title = __doc__.split("\n")[0]
    parser = cli.Parser(prog="python -m benchmarks.without_torch", description=title)
    parser.add_argument("--makemore", type=Path, metavar="CLONE", help="to run beside ours")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N",
                        help="default 0 1 2")
    results = ladder.ROOT / "benchmarks/results/without_torch.json"
    parser.add_argument("--out", type=Path, default=results, metavar="FILE",
                        help="default benchmarks/results/without_torch.json")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    when = {"date": datetime.date.today().isoformat(), "environment": runs.environment()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = ladder.makemore_split(Path(scratch, "usnames_makemore"))
        rows = [counted(folder) | when]
        for seed in args.seeds:
            rows.append(ours(folder, seed, Path(scratch, str(seed))) | when)
            if args.makemore:  # the same seed each time, for the time alone
                test = data.load(str(folder), lines=True).splits["test"]
                place = Path(scratch, f"theirs-{seed}")
                rows.append(ladder.theirs("mlp", args.makemore, test, test, place) | when)
            runs.write_json(args.out, {"rows": rows})
    print(table(rows))


if __name__ == "__main__":
    cli.run(main)
