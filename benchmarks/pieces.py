"""What each lever of speed brings by itself on a CPU: without it and with it, in turn.

    python -m benchmarks.pieces [--rounds 5]

Medians of the rounds, in one process; what compiling takes at first is not counted, but said. What
the C library does with freed memory is a setting of a process, so that piece has two of its own,
one after the other, and is left out where that cannot be set.
"""

import datetime
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import nanogpt
from benchmarks.ladder import ROOT
from data import cli, runs
from nanogpt.dropout import Dropout
from nanogpt.estimate import most_used
from nanogpt.gpt import ARCHS, SIZES
from nanogpt.machine import choose, keep_freed_memory
from nanogpt.optim import make_optimizers, orthogonalise

VOCABULARY = 69  # of tiny shakespeare
Job = Callable[[], object]


def product(rows: int, inner: int, columns: int, dtype: torch.dtype) -> Job:
    a, b = torch.randn(rows, inner, dtype=dtype), torch.randn(inner, columns, dtype=dtype)
    return lambda: a @ b


def muon(size: str, products: torch.dtype | None, one_by_one: bool = False) -> Job:
    """The orthogonalisation of all matrices of a gpt of that size, as square blocks."""
    layers, width = SIZES[size]["layers"], SIZES[size]["width"]
    blocks = torch.randn(12 * layers, width, width)
    if one_by_one:
        return lambda: [orthogonalise(block[None], products=products) for block in blocks]
    return lambda: orthogonalise(blocks, products=products)


def dropout(kind: type) -> Job:
    layer, x = kind(0.2), torch.randn(16384, 384, dtype=torch.bfloat16)
    return lambda: layer(x)


def attention(share: float) -> Job:
    """Forward and backward, of 16 rows of baby size."""
    q, k, v = (torch.randn(16, 6, 256, 64, requires_grad=True) for _ in range(3))
    return lambda: F.scaled_dot_product_attention(
        q, k, v, dropout_p=share, is_causal=True).sum().backward()


def adamw(fused: bool) -> Job:
    weights = [nn.Parameter(torch.randn(p.shape)) for p in model("nano").parameters()]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    return torch.optim.AdamW(weights, fused=fused, foreach=not fused).step


def model(size: str, dropout: float = 0.0):
    shape = {name: value for name, value in SIZES[size].items() if name != "block_size"}
    return nanogpt.build("gpt", VOCABULARY, SIZES[size]["block_size"], **shape, **ARCHS["modern"],
                         dropout=dropout)


def step(size: str, rows: int, dtype: str, compiled: bool = False, dropout: float = 0.0) -> Job:
    """A step of training, of random tokens."""
    machine = choose("cpu", dtype, compiled)
    if compiled and not machine.compiled:
        raise ValueError(machine.notes[0])
    torch.manual_seed(0)
    network = model(size, dropout)
    optimizers = make_optimizers(network, "muon", 0.01, products=machine.products)
    tokens = torch.randint(VOCABULARY, (2, rows, SIZES[size]["block_size"]))
    loss = machine.compile(network.loss)

    def job() -> None:
        with machine.autocast():
            nats = loss(*tokens)
        nats.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return job


def pieces() -> dict[str, tuple[Callable[[], Job], Callable[[], Job]]]:
    """Of each a way to make the job without it and the one with it."""
    full, half = torch.float32, torch.bfloat16
    large, small = (16384, 384, 1536), (1536, 128, 512)
    return {
        "products in bfloat16: 16,384 x 384 x 1,536": (
            lambda: product(*large, full), lambda: product(*large, half)),
        "the same, 1,536 x 128 x 512": (
            lambda: product(*small, full), lambda: product(*small, half)),
        "a step of baby size, 8 rows, in bfloat16": (
            lambda: step("baby", 8, "float32"), lambda: step("baby", 8, "bfloat16")),
        "a step of nano size, 24 rows, in bfloat16": (
            lambda: step("nano", 24, "float32"), lambda: step("nano", 24, "bfloat16")),
        "Muon's products in bfloat16, baby size": (
            lambda: muon("baby", None), lambda: muon("baby", half)),
        "Muon's matrices in one stack, nano size": (
            lambda: muon("nano", None, one_by_one=True), lambda: muon("nano", None)),
        "AdamW fused, nano size": (lambda: adamw(False), lambda: adamw(True)),
        "dropout by 16 bits a feature": (lambda: dropout(nn.Dropout), lambda: dropout(Dropout)),
        "no dropout of attention's weights": (lambda: attention(0.2), lambda: attention(0.0)),
        "a step of nano size, 24 rows, compiled": (
            lambda: step("nano", 24, "float32"), lambda: step("nano", 24, "float32", True)),
        "a step of baby size, 8 rows, compiled": (
            lambda: step("baby", 8, "bfloat16"), lambda: step("baby", 8, "bfloat16", True)),
    }


def seconds(job: Job) -> float:
    began = time.perf_counter()
    job()
    return time.perf_counter() - began


def compare(makers: tuple[Callable[[], Job], Callable[[], Job]], rounds: int) -> dict:
    """Seconds without and with, and of the first time with, which may compile."""
    jobs = [make() for make in makers]
    first = [seconds(job) for job in jobs][1]
    times = [[seconds(job) for job in jobs] for _ in range(rounds)]
    without, with_it = (statistics.median(column) for column in zip(*times))
    return {"without": without, "with": with_it, "first": first}


def kept_memory(rounds: int) -> dict:
    """A step of 16,384 tokens of baby size, where freed memory goes back to the system and where it
    stays: two processes. memory: the most bytes that each had."""
    found = []
    for keep in ([], ["--keep"]):
        command = [sys.executable, "-m", "benchmarks.pieces", "--one-step", f"--rounds={rounds}"]
        done = subprocess.run([*command, *keep], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}")
        found.append(json.loads(done.stdout))
    (without, before), (with_it, after) = found
    return {"without": without, "with": with_it, "first": None, "memory": [before, after]}


def table(rows: list[dict]) -> str:
    lines = ["| piece | without, ms | with, ms | of the time |", "| --- " * 4 + "|"]
    for row in rows:
        name = row["piece"]
        if name.endswith("compiled"):
            name += f" (the first: {row['first']:.0f} s)"
        if "memory" in row:
            name += " ({:.2f}, {:.2f} GB)".format(*(size / 1e9 for size in row["memory"]))
        lines.append(f"| {name} | {1e3 * row['without']:,.1f} | {1e3 * row['with']:,.1f} "
                     f"| {row['with'] / row['without']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = cli.Parser(prog="python -m benchmarks.pieces", description=__doc__)
    cli.add(parser, "rounds", "of each (default 5)")
    cli.add(parser, "one_step", "print the seconds of a step of baby size (used within)", bool)
    cli.add(parser, "keep", "... with freed memory kept", bool)
    cli.add(parser, "out", "(default benchmarks/results/pieces.json)", Path)
    args = parser.parse_args()
    rounds = 5 if args.rounds is None else args.rounds
    if rounds < 1:
        raise ValueError(f"--rounds must be at least 1, not {rounds}.")
    if args.one_step:
        if args.keep and not keep_freed_memory():
            raise ValueError("here malloc cannot be told to keep memory, or is told otherwise.")
        job = step("baby", 64, "bfloat16", dropout=0.2)
        job()
        print([statistics.median(seconds(job) for _ in range(rounds)), most_used(choose("cpu"))])
        return
    out = args.out or ROOT / "benchmarks/results/pieces.json"
    rows = []
    for name, makers in pieces().items():
        rows.append({"piece": name, **compare(makers, rounds)})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    if keep_freed_memory():  # which could be told here, so in another process too
        name = "a step of baby size, 64 rows, freed memory kept"
        rows.append({"piece": name, **kept_memory(rounds)})
    runs.write_json(out, {"date": datetime.date.today().isoformat(),
                          "environment": runs.environment(), "rows": rows})
    print(table(rows))


if __name__ == "__main__":
    cli.run(main)
