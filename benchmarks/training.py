"""Training GPT-2 (124M): tokens a second, MFU and memory, ours beside nanoGPT's own train.py.

    python -m benchmarks.training --nanogpt CLONE [--largest]

Rows of 1,024 tokens, bfloat16, torch.compile, on one GPU; every contender a process of its own, in
turn. nanoGPT is its train.py as it stands, in a copy of the clone; ours is the loop of train.py
with --recipe=gpt2: the architecture gpt2 (the same network, with biases), and modern with Muon.
--without has ours alone, once more, with our kernels taken away one at a time. All learn from the
same tokens, at random but as unequal in number as words are (Zipf). A step's time is the median
over the later half of the steps; of theirs what it prints. Operations are counted alike for all, 6
a weight that multiplies and 12 layers x width x length for attention, whatever a contender really
does; MFU is of what the maker states. Memory is what PyTorch has allocated at most.

First all at one batch, for memory; --largest: at the largest that fits, as that memory foretells
it, less by an eighth as often as it did not. --toy: at a toy size, on the CPU, not compiled; its
times mean nothing.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import data
import nanogpt
import train
from benchmarks import nanogpt_peer, timing
from benchmarks.ladder import ROOT
from data import cli
from data.batches import TextBatches
from nanogpt import attention
from nanogpt.estimate import peak_flops, total
from nanogpt.machine import choose
from nanogpt.settings import make_parser, settle

SIZE = dict(layers=12, heads=12, width=768, block_size=1024)
TOY = dict(layers=1, heads=2, width=16, block_size=16)
VOCABULARY = 50304  # of GPT-2, padded as in nanoGPT
TOKENS = 2**21
OURS = {"gpt2": "adamw", "modern": "muon"}  # architectures, and what trains them
WITHOUT = ("attention", "loss")
SPARE = 0.94  # of the memory that there is: what can be filled, as pieces of it lie idle


def zipf(number: int, vocabulary: int) -> np.ndarray:
    """Tokens at random, the n-th as often as 1 / n."""
    shares = np.random.default_rng(0).random(number)
    return (vocabulary**shares).astype(np.uint16) - 1


def of_size(toy: bool) -> tuple[dict, int, int]:
    """Sizes of the model, of the vocabulary, of the text."""
    return (TOY, 96, 2048) if toy else (SIZE, VOCABULARY, TOKENS)


def flops(sizes: dict, vocabulary: int) -> int:
    """Operations of a token's training."""
    layers, width = sizes["layers"], sizes["width"]
    multiply = 12 * layers * width**2 + width * vocabulary
    return 6 * multiply + 12 * layers * width * sizes["block_size"]


def train_ours(name: str, batch: int, steps: int, toy: bool) -> dict:
    """A training in this process: seconds of its later steps, parameters, memory."""
    arch, *without = name.split(" without ")
    sizes, vocabulary, number = of_size(toy)
    shape = {key: sizes[key] for key in ("layers", "heads", "width")}
    given = dict(recipe="gpt2", arch=arch, optimizer=OURS[arch], batch_size=batch, accumulate=1,
                 steps=steps, eval_every=steps, patience=0, **shape, block_size=sizes["block_size"])
    if "attention" in without:
        given["attention"] = "sdpa"
    flags = [f"{cli.flag(key)}={value}" for key, value in given.items()]
    config = settle(make_parser().parse_args(flags), "tales", data.load("tales"), {})
    if toy:
        config = replace(config, device="cpu", dtype="float32", compile=False)
    machine = choose(config.device, config.dtype, config.compile)
    torch.manual_seed(0)
    model = nanogpt.build("gpt", vocabulary, config.block_size, **config.sizes).to(machine.device)
    attention.use(model, attention.choose(config.attention, machine))
    if without:
        model.fused_loss = "loss" not in without and machine.kind == "cuda"
    rows = TextBatches(zipf(number, vocabulary), config.block_size, batch)
    on_gpu = machine.kind == "cuda"
    asked, kept = [], None

    def batches(seed: int, step: int):
        nonlocal kept  # between two steps: the weights and all that the optimizer has
        kept = torch.cuda.memory_allocated() if on_gpu else None
        asked.append(time.perf_counter())
        return rows(seed, step)

    with tempfile.TemporaryDirectory() as run:
        train.train(model, batches, model.loss, config, evaluate=lambda: 1.0, machine=machine,
                    run=Path(run), about={})
    seconds = [after - before for before, after in zip(asked, asked[1:])]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "step_seconds": seconds,
        "peak": torch.cuda.max_memory_allocated() if on_gpu else None,
        "kept": kept,
        "attention": model.attention, "fused_loss": model.fused_loss,
    }


def their_flags(batch: int, steps: int, toy: bool) -> list[str]:
    """What nanoGPT's train.py is told."""
    sizes, _, _ = of_size(toy)
    given = dict(batch_size=batch, gradient_accumulation_steps=1, max_iters=steps, eval_iters=1,
                 n_layer=sizes["layers"], n_head=sizes["heads"], n_embd=sizes["width"],
                 block_size=sizes["block_size"])
    if toy:
        given |= dict(device="cpu", compile=False, dtype="float32")
    return [f"--{name}={value}" for name, value in given.items()]


def theirs(clone: Path, batch: int, steps: int, toy: bool, scratch: Path) -> list[str]:
    """The command of a training by nanoGPT, in a copy with our tokens."""
    folder = scratch / "nanoGPT"
    if not folder.exists():
        nanogpt_peer.copy_of(clone, folder)
        _, vocabulary, number = of_size(toy)
        place = folder / "data/openwebtext"
        place.mkdir(parents=True, exist_ok=True)
        for split in ("train", "val"):
            zipf(number, vocabulary).tofile(place / f"{split}.bin")
    flags = their_flags(batch, steps, toy)
    return [sys.executable, "-W", "ignore", "-m", "benchmarks.nanogpt_peer", str(folder), *flags]


def answer(command: list[str]) -> dict:
    """What a command prints last, as JSON, and its seconds. ValueError with what it said, if it
    fails."""
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(done.stderr.strip())
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": time.monotonic() - began}


def trained(name: str, batch: int, args, scratch: Path) -> dict:
    """The row of a contender at a batch; of one that fails, and be it for want of memory, why."""
    row = {"contender": name, "batch": batch}
    if name == "nanoGPT":
        command = theirs(args.nanogpt, batch, args.steps, args.toy, scratch)
    else:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.training", f"--one={name}",
                   f"--batch={batch}", f"--steps={args.steps}", *["--toy"] * args.toy]
    try:
        found = answer(command)
    except ValueError as failure:
        words = str(failure)
        short = "out of memory" in words.lower()
        return row | {"failed": "out of memory" if short else words[-300:].replace("\n", " ")}
    steps = found.pop("step_seconds")
    sizes, vocabulary, _ = of_size(args.toy)
    step = statistics.median(steps[len(steps) // 2:])
    speed = batch * sizes["block_size"] / step
    mfu = speed * flops(sizes, vocabulary) / args.flops
    return row | found | {"seconds_a_step": step, "tokens_per_second": speed, "mfu": mfu}


def largest(row: dict, memory: int) -> int:
    """The batch that should just fit, a multiple of 8, by what was needed at another."""
    each = (row["peak"] - row["kept"]) / row["batch"]
    return max(8, int((SPARE * memory - row["kept"]) / each) // 8 * 8)


def at_its_largest(row: dict, args, scratch: Path) -> dict:
    """The row of a contender at the largest batch that fits."""
    if "failed" in row or row["peak"] is None:
        return row | {"largest": True}
    batch = min(args.most, largest(row, total(choose("cuda"))))
    while True:
        found = trained(row["contender"], batch, args, scratch) | {"largest": True}
        if found.get("failed") != "out of memory" or batch <= row["batch"]:
            return found
        batch = max(row["batch"], batch * 7 // 8 // 8 * 8)


def found_before(result: dict, about: dict, batch: int | None) -> dict[str, dict]:
    """The rows, by contender, that a result of the same day and machine has, and that did not fail.

    batch: the one they must have; None: any.
    """
    if {key: value for key, value in result.items() if key != "rows"} != about:
        return {}
    return {row["contender"]: row for row in result["rows"]
            if "failed" not in row and batch in (None, row["batch"])}


def table(rows: list[dict]) -> str:
    lines = ["| contender | batch | tokens/s | of nanoGPT's | MFU | GiB | of nanoGPT's |",
             "| --- " * 7 + "|"]
    for row in rows:
        what = f"| {row['contender']} | {row['batch']} |"
        if "failed" in row:
            lines.append(f"{what} {row['failed']} | | | | |")
            continue
        peers = [peer for peer in rows if peer["contender"] == "nanoGPT" and "failed" not in peer
                 and peer.get("largest") == row.get("largest")]
        speed = memory = "-"
        if peers:
            speed = f"{row['tokens_per_second'] / peers[0]['tokens_per_second']:.2f}"
            if row["peak"] and row["batch"] == peers[0]["batch"]:
                memory = f"{row['peak'] / peers[0]['peak']:.0%}"
        lines.append(f"{what} {row['tokens_per_second']:,.0f} | {speed} | {row['mfu']:.1%} "
                     f"| {timing.gib(row['peak'])} | {memory} |")
    return "\n".join(lines)


def main() -> None:
    title = __doc__.split("\n")[0]
    parser = cli.Parser(prog="python -m benchmarks.training", description=title)
    parser.add_argument("--nanogpt", type=Path, metavar="CLONE", help="to run beside ours")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="rows (default 32)")
    parser.add_argument("--largest", action="store_true",
                        help="at the largest batch that fits, after a run without this flag")
    parser.add_argument("--most", type=int, default=512, metavar="N", help="... up to this one")
    parser.add_argument("--without", nargs="+", choices=WITHOUT, default=[], metavar="KERNEL",
                        help="ours without our attention, our loss: PyTorch's instead")
    parser.add_argument("--steps", type=int, default=30, metavar="N", help="default 30")
    parser.add_argument("--one", metavar="NAME", help="one of ours in this process (used within)")
    parser.add_argument("--again", action="store_true",
                        help="also contenders that the file has, of today and of this machine")
    parser.add_argument("--toy", action="store_true", help="a toy size, on the CPU")
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="default benchmarks/results/training.json on a GPU")
    args = parser.parse_args()
    if min(args.batch, args.most) < 1 or args.steps < 2:
        raise ValueError("--batch and --most must be at least 1, and --steps at least 2.")
    if args.one:
        print(json.dumps(train_ours(args.one, args.batch, args.steps, args.toy)))
        return
    if args.toy:
        args.batch, args.steps = 2, 2
    elif not torch.cuda.is_available():
        tokens = args.batch * SIZE["block_size"]
        needed = tokens * flops(SIZE, VOCABULARY)
        least = timing.floor(needed, 0)
        print(timing.NO_GPU, f"A step of {args.batch} rows: {tokens:,} tokens, "
              f"{needed / 1e12:,.1f} TFLOP, at least {least * 1e3:.1f} milliseconds: at most "
              f"{tokens / least:,.0f} tokens/s.", sep="\n\n")
        return
    device = "cpu" if args.toy else "cuda"
    out = args.out or (None if args.toy else ROOT / "benchmarks/results/training.json")
    args.flops = peak_flops(choose(device, "float32" if args.toy else "bfloat16"))
    names = ["nanoGPT"] * bool(args.nanogpt) + list(OURS)
    if args.without:
        names = [f"{arch} without {kernel}" for arch in OURS for kernel in args.without]
    before = json.loads(out.read_text("utf-8")) if out and out.exists() else {}
    rows: list[dict] = []
    if args.largest and not args.toy:
        same = {row["contender"]: row for row in before.get("same batch", {}).get("rows", [])}
        if missing := [name for name in names if name not in same]:
            raise ValueError(f"{out} does not know how much {missing[0]} needs: first without "
                             "--largest.")
    key = "without" if args.without else "largest batch" if args.largest else "same batch"
    about = timing.about(device) | {"steps": args.steps}
    batch = None if args.largest else args.batch
    known = {} if args.again else found_before(before.get(key, {}), about, batch)
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            if name in known:
                rows.append(known[name])
            elif args.largest and not args.toy:
                rows.append(at_its_largest(same[name], args, Path(scratch)))
            else:
                rows.append(trained(name, args.batch, args, Path(scratch)))
            waiting = [known[other] for other in names[len(rows):] if other in known]
            timing.save(out, key, about | {"rows": rows + waiting})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(table(rows))


if __name__ == "__main__":
    cli.run(main)
