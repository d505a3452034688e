"""nanoGPT's shakespeare_char on a GPU: loss over all of validation, time and size, by nanoGPT.

    python -m benchmarks.shakespeare_char --nanogpt CLONE [--times 1]

Whole processes from start to end, in turn: nanoGPT's train.py as it is with that configuration (6
layers, 6 heads, 384 wide, block 256, 64 windows a step, 5,000 steps, compiled); our architecture
gpt2 with the same sizes, rates and steps, compiled too; and --recipe=shakespeare-baby, our modern
form, with what it stands for. The best checkpoint of each, by its own evaluations, is judged as
ours are: windows of the block size, every character but the first once, in float32. --toy: two
small steps of each, on the CPU.
"""

import datetime
import json
import statistics
import sys
import tempfile
from pathlib import Path

import torch

import data
import sample
from benchmarks import nano
from benchmarks.ladder import ROOT, SCRIPT, timed
from data import cli, runs
from nanogpt.evaluate import mean_loss
from nanogpt.machine import choose

BLOCK, ROWS, STEPS = 256, 64, 5000
GPT2 = ("--model=gpt", "--data=shakespeare", "--arch=gpt2", "--size=baby", "--no-bias",
        "--dropout=0.2", "--steps=5000", "--batch-size=64", "--optimizer=adamw", "--lr=0.001",
        "--weight-decay=0.1", "--warmup=100", "--eval-every=250", "--patience=0",
        "--dtype=bfloat16", "--compile")
MODERN = ("--recipe=shakespeare-baby",)
TOY_THEIRS = {
    "device": "cpu", "compile": False, "eval_iters": 1, "eval_interval": 1, "batch_size": 2,
    "block_size": 32, "n_layer": 1, "n_head": 2, "n_embd": 16, "max_iters": 2,
    "always_save_checkpoint": True,
}
TOY = ("--device=cpu", "--dtype=float32", "--steps=2", "--eval-every=1", "--batch-size=2",
       "--block-size=32", "--layers=1", "--heads=2", "--width=16")


def ours(name: str, flags: tuple[str, ...], device: str, seed: int, run: Path) -> dict:
    """Our run, as a user starts it; its best checkpoint judged as theirs."""
    seconds = timed([*SCRIPT, *flags, f"--seed={seed}", f"--out={run}"])
    result = json.loads((run / "result.json").read_text("utf-8"))
    model, tokenizer = sample.load_run(run)
    source = json.loads((run / "config.json").read_text("utf-8"))["data"]
    groups = data.evaluation_batches(data.load(source), tokenizer, "val", model.block_size)
    loss = mean_loss(model.to(device), groups, choose(device))[0]
    kept = {key: result[key] for key in ("parameters", "tokens", "steps", "best_step")}
    return {"model": name, "seed": seed, **kept, "val_loss": loss, "seconds": seconds}


def theirs(clone: Path, device: str, toy: bool, seed: int, folder: Path) -> dict:
    """nanoGPT's run; it makes a step more than it is told."""
    settings = (TOY_THEIRS if toy else {}) | {"device": device}
    block, rows = (32, 2) if toy else (BLOCK, ROWS)
    steps = 1 + (settings.get("max_iters") or STEPS)
    row = nano.theirs(nano.their_folder(clone, folder), settings, block, device)
    return row | {"seed": seed, "steps": steps, "tokens": steps * rows * block}


def table(rows: list[dict]) -> str:
    """A row a model: medians of its runs, and its time as a share of nanoGPT's."""
    lines = ["| model | parameters | tokens | val loss | seconds | of nanoGPT's |",
             "| --- " * 6 + "|"]
    times = [row["seconds"] for row in rows if row["model"] == "nanoGPT"]
    for model in dict.fromkeys(row["model"] for row in rows):
        group = [row for row in rows if row["model"] == model]
        loss, seconds = (statistics.median(r[k] for r in group) for k in ("val_loss", "seconds"))
        share = f"{seconds / statistics.median(times):.2f}" if times else "-"
        lines.append(f"| {model} | {group[0]['parameters']:,} | {group[0]['tokens']:,} "
                     f"| {loss:.4f} | {seconds:.1f} | {share} |")
    return "\n".join(lines)


def main() -> None:
    title = __doc__.split("\n")[0]
    parser = cli.Parser(prog="python -m benchmarks.shakespeare_char", description=title)
    parser.add_argument("--nanogpt", type=Path, metavar="CLONE", help="to run beside ours")
    parser.add_argument("--times", type=int, default=1, metavar="N", help="of each (default 1)")
    parser.add_argument("--toy", action="store_true", help="a toy size, on the CPU")
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="default benchmarks/results/shakespeare_char.json on a GPU")
    args = parser.parse_args()
    if args.times < 1:
        raise ValueError(f"--times must be at least 1, not {args.times}.")
    if not args.toy and not torch.cuda.is_available():
        raise ValueError("there is no GPU here, and on a CPU this takes days; try --toy.")
    device = "cpu" if args.toy else "cuda"
    more = TOY if args.toy else ()
    out = args.out or (None if args.toy else ROOT / "benchmarks/results/shakespeare_char.json")
    when = {"date": datetime.date.today().isoformat(), "environment": runs.environment()}
    rows: list[dict] = []

    def note(row: dict) -> None:
        rows.append(row | when | {"gpu": torch.cuda.get_device_name() if not args.toy else None})
        if out:
            out.parent.mkdir(parents=True, exist_ok=True)
            runs.write_json(out, {"rows": rows})
        print(json.dumps(row), file=sys.stderr, flush=True)

    gpt2 = tuple(flag for flag in GPT2 if flag != "--compile") if args.toy else GPT2
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(args.times):
            if args.nanogpt:
                folder = Path(scratch, f"theirs-{seed}")
                note(theirs(args.nanogpt, device, args.toy, seed, folder))
            for name, flags in (("ours, modern", MODERN), ("ours, gpt2", gpt2)):
                run = Path(scratch, f"{name.split()[-1]}-{seed}")
                note(ours(name, flags + more, device, seed, run))
    print(table(rows))


if __name__ == "__main__":
    cli.run(main)
