"""GPT of nano size on tiny shakespeare: loss over the whole validation split, and time, by nanoGPT.

    python -m benchmarks.nano [--nanogpt CLONE]

Whole processes from start to end, in turn, three of each: ours is --recipe=shakespeare-nano, and
once with more steps, for some three minutes; nanoGPT's is its recipe for a MacBook (4 layers, 4
heads, 128 wide, block 64, 12 windows a step, 2,000 iterations, 20 batches an evaluation). Its best
checkpoint is judged as ours are: windows of the block size, every character but the first once.
"""

import datetime
import json
import pickle
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

import data
from benchmarks import nanogpt_peer
from benchmarks.ladder import ROOT, SCRIPT, spent, timed
from data import cli, runs
from nanogpt import weights
from nanogpt.evaluate import mean_loss
from nanogpt.machine import choose

BLOCK = 64
MACBOOK = {
    "device": "cpu", "compile": False, "eval_iters": 20, "log_interval": 1, "block_size": BLOCK,
    "batch_size": 12, "n_layer": 4, "n_head": 4, "n_embd": 128, "max_iters": 2000,
    "lr_decay_iters": 2000, "dropout": 0.0,
}
LONGER = (  # about three minutes
    "--steps=1000", "--batch-size=32", "--lr=0.01", "--momentum=0.9", "--eval-every=250",
)


def their_folder(clone: Path, folder: Path) -> Path:
    """A copy of nanoGPT with tiny shakespeare in characters, as its own prepare.py makes it."""
    nanogpt_peer.copy_of(clone, folder)
    splits = data.load("shakespeare").splits
    train, val = splits["train"][0], splits["val"][0]
    characters = sorted(set(train + val))
    ids = {character: i for i, character in enumerate(characters)}
    place = folder / "data/shakespeare_char"
    place.mkdir(parents=True, exist_ok=True)
    for name, text in (("train", train), ("val", val)):
        np.array([ids[c] for c in text], dtype=np.uint16).tofile(place / f"{name}.bin")
    meta = {"vocab_size": len(ids), "stoi": ids, "itos": dict(enumerate(characters))}
    (place / "meta.pkl").write_bytes(pickle.dumps(meta))
    return folder


def theirs(folder: Path, settings: dict, block: int = BLOCK, device: str = "cpu") -> dict:
    """nanoGPT's run with its shakespeare_char configuration but for these settings, and the loss of
    the checkpoint that it kept."""
    flags = [f"--{name}={value}" for name, value in settings.items()]
    script = [sys.executable, "train.py", "config/train_shakespeare_char.py"]
    seconds = timed([*script, *flags], cwd=folder)
    model, about = weights.load(str(folder / "out-shakespeare-char/ckpt.pt"), "shakespeare")
    tokenizer = data.tokenizer_from_dict(about["tokenizer"])
    groups = data.evaluation_batches(data.load("shakespeare"), tokenizer, "val", block)
    parameters = sum(p.numel() for p in model.parameters()) - 4 * model.embedding.embedding_dim
    loss = mean_loss(model.to(device).eval(), groups, choose(device))[0]
    return {"model": "nanoGPT", "parameters": parameters, "val_loss": loss, "seconds": seconds}


def ours(name: str, flags: tuple[str, ...], seed: int, run: Path) -> dict:
    """Our run, as a user starts it."""
    base = ["--recipe=shakespeare-nano", "--device=cpu", f"--seed={seed}", f"--out={run}"]
    seconds = timed([*SCRIPT, *base, *flags])
    result = json.loads((run / "result.json").read_text("utf-8"))
    kept = {key: result[key] for key in ("parameters", "val_loss", "tokens_per_second")}
    return {"model": name, "seed": seed, **kept, "seconds": seconds, **spent(result)}


def table(rows: list[dict]) -> str:
    """A row a model: medians of its runs, and its time as a share of nanoGPT's."""
    lines = ["| model | parameters | val loss | seconds | of nanoGPT's |", "| --- " * 5 + "|"]
    sizes = {row["model"]: row["parameters"] for row in rows}
    for model, parameters in sizes.items():
        loss, seconds = medians(rows, model)
        share = f"{seconds / medians(rows, 'nanoGPT')[1]:.2f}" if "nanoGPT" in sizes else "-"
        lines.append(f"| {model} | {parameters:,} | {loss:.4f} | {seconds:.1f} | {share} |")
    return "\n".join(lines)


def medians(rows: list[dict], model: str) -> tuple[float, float]:
    """Validation loss and seconds of a model."""
    group = [row for row in rows if row["model"] == model]
    loss, seconds = (statistics.median(r[name] for r in group) for name in ("val_loss", "seconds"))
    return loss, seconds


def main() -> None:
    title = __doc__.split("\n")[0]
    parser = cli.Parser(prog="python -m benchmarks.nano", description=title)
    parser.add_argument("--nanogpt", type=Path, metavar="CLONE", help="to run beside ours")
    parser.add_argument("--times", type=int, default=3, metavar="N", help="of each (default 3)")
    parser.add_argument("--short", action="store_true", help="without the three minutes")
    results = ROOT / "benchmarks/results/nano.json"
    parser.add_argument("--out", type=Path, default=results, metavar="FILE",
                        help="default benchmarks/results/nano.json")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    when = {"date": datetime.date.today().isoformat(), "environment": runs.environment()}
    rows: list[dict] = []

    def note(row: dict) -> None:
        rows.append(row | when)
        runs.write_json(args.out, {"rows": rows})
        print(json.dumps(row), file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        for number in range(args.times):
            note(ours("ours", (), number, Path(scratch, f"run-{number}")))
            if args.nanogpt:
                note(theirs(their_folder(args.nanogpt, Path(scratch, f"theirs-{number}")),
                            MACBOOK))
        if not args.short:
            note(ours("ours, for longer", LONGER, 0, Path(scratch, "longer")))
    print(table(rows))


if __name__ == "__main__":
    cli.run(main)
