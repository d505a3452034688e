"""The small kernels beside PyTorch, as it is and compiled: time, GB/s and memory, in one run.

    python -m benchmarks.kernels [--only loss norm rotary]

    loss      the head and the cross-entropy, capped, over GPT-2's vocabulary (padded to 50,304),
              16,384 tokens; "chunked" is the loss of nanogpt/gpt.py, which keeps a part of the
              logits at a time and makes them twice. The rate is in TFLOP/s, three products counted.
    norm      the residual sum and its RMS norm. The rate is in GB/s of what must be read and
              written, as of
    rotary    rotary positions, angles and all, on heads in memory (B, T, H, D).

bfloat16, forward and backward in one, the contenders in turn, medians of CUDA events with the cache
emptied before each run. Errors are the largest, of results and gradients, against float64, as
shares of the largest number among them. "times" says how often longer than ours.

Without a GPU: what is to be computed and moved at least. --toy: the whole script at a toy size, on
the CPU, ours in Triton's interpreter and nothing compiled; its times mean nothing.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks import timing
from benchmarks.ladder import ROOT
from data import cli
from makemore.transformer import rotary_frequencies, rotate
from nanogpt.gpt import GPT

CAP = 15.0
WANTED = ("loss", "norm", "rotary")
SIZES = {  # tokens, then: features and vocabulary; features; heads and their width
    "loss": [(16384, 768, 50304), (16384, 2048, 50304)],
    "norm": [(16384, 768), (16384, 2048), (16384, 8192)],
    "rotary": [(16384, 16, 64), (16384, 16, 128)],
}
TOY = {"loss": [(24, 16, 65)], "norm": [(8, 32)], "rotary": [(16, 2, 8)]}


def chunked(x, weight, targets):
    """The loss as GPT has it, on features that are there already."""
    head = nn.Linear(*weight.shape[::-1], bias=False, device="meta")
    head.weight = nn.Parameter(weight)
    head.forward = lambda features: F.linear(features, weight)  # so that weight has the gradient
    model = SimpleNamespace(head=head, logit_cap=CAP, vocab_size=len(weight))
    model.logits = partial(GPT.logits, model)
    model.features = lambda tokens, segments: (x[None], None)
    return GPT.loss(model, None, targets[None])


def turned(x, positions):
    """Rotary positions as the models have them."""
    angles = positions[:, None, :, None] * rotary_frequencies(x.shape[3]).to(x.device)
    return rotate(x, angles.cos(), angles.sin())


def loss_case(N, C, V, dtype, device):
    """Inputs that have gradients, the contenders, and a function that does it in any precision."""
    from kernels import cross_entropy  # late, so that --toy may choose the interpreter before

    targets = torch.randint(V, (N,), device=device)
    inputs = [torch.randn(N, C, dtype=dtype, device=device),
              torch.randn(V, C, dtype=dtype, device=device) * C**-0.5]
    plain = partial(cross_entropy.reference, targets=targets, cap=CAP)
    found = {"ours": partial(cross_entropy.linear_cross_entropy, targets=targets, cap=CAP),
             "PyTorch": plain, "compiled": plain, "chunked": partial(chunked, targets=targets)}
    return inputs, found, found["chunked"]  # float64 logits of all tokens would be 7 GB, five times


def norm_case(N, C, dtype, device):
    from kernels import norm

    def plain(x, y, weight):
        x = x + y
        return x, F.rms_norm(x, (C,), weight, 1e-6)

    inputs = [torch.randn(*shape, dtype=dtype, device=device) for shape in ((N, C), (N, C), (C,))]
    found = {"ours": partial(norm.add_rms_norm, eps=1e-6), "PyTorch": plain, "compiled": plain}
    return inputs, found, partial(norm.reference, eps=1e-6)


def rotary_case(T, H, D, dtype, device):
    from kernels import rotary

    x = torch.randn(1, T, H, D, dtype=dtype, device=device).transpose(1, 2)
    positions = torch.arange(T, device=device)[None]
    plain = partial(turned, positions=positions)
    found = {"ours": partial(rotary.rotary, positions=positions), "PyTorch": plain,
             "compiled": plain}
    return [x], found, partial(rotary.reference, positions=positions)


def cost(name: str, size: tuple[int, ...]) -> tuple[int, int]:
    """Operations of matrix products, and bytes of what has to be read and written at two a number.

    Forward and backward: the loss reads x and W and writes their gradients. The norm reads x, y and
    writes sum and norm, then reads the sum and two gradients and writes one. Rotary positions read
    and write their numbers twice.
    """
    if name == "loss":
        N, C, V = size
        return 6 * N * V * C, 4 * (N + V) * C + 8 * N
    if name == "norm":
        N, C = size
        return 0, 2 * 8 * N * C
    T, H, D = size
    return 0, 2 * 4 * T * H * D + 16 * T


CASES = {"loss": loss_case, "norm": norm_case, "rotary": rotary_case}


def both_passes(function: Callable, inputs: list) -> list:
    """Results and gradients of a function, with the same gradients given to all."""
    results = function(*inputs)
    results = results if isinstance(results, tuple) else (results,)
    gradients = torch.autograd.grad(results, inputs, [torch.ones_like(x) for x in results])
    return [*(x.detach() for x in results), *gradients]


def off(results: list, exact: list) -> float:
    """The largest error, as a share of the largest number of each."""
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(results, exact))


def exactly(function: Callable, inputs: list) -> list:
    """The same in float64."""
    return both_passes(function, [x.detach().double().requires_grad_() for x in inputs])


def measure(wanted: list[str], sizes: dict, rounds: int, device: str) -> list[dict]:
    """A row for each case and contender."""
    rows = []
    dtype = torch.bfloat16 if device != "cpu" else torch.float32
    for name, size in tqdm([(n, s) for n in wanted for s in sizes[n]], unit="case", disable=None):
        inputs, found, reference = CASES[name](*size, dtype, device)
        flops, moved = cost(name, size)
        inputs = [x.requires_grad_() for x in inputs]
        exact = exactly(reference, inputs)
        makers = {}
        for contender, function in found.items():
            if contender == "compiled":
                if device == "cpu":
                    continue
                function = torch.compile(function, dynamic=False)
            makers[contender] = partial(partial, both_passes, function, inputs)
        results = timing.contest(makers, rounds, device, partial(off, exact=exact))
        rows += [{"kernel": name, "size": list(size), "contender": contender, "flops": flops,
                  "bytes": moved, **result} for contender, result in results.items()]
    return rows


def table(rows: list[dict]) -> str:
    lines = ["| kernel | size | contender | milliseconds | rate | times | GiB | error |",
             8 * "| --- " + "|"]
    for row in rows:
        what = f"| {row['kernel']} | {' x '.join(map(str, row['size']))} | {row['contender']} "
        if "failed" in row:
            lines.append(f"{what}| {row['failed']} | | | | |")
            continue
        [ours] = [other for other in rows if other["contender"] == "ours"
                  and (other["kernel"], other["size"]) == (row["kernel"], row["size"])]
        times = f"{row['seconds'] / ours['seconds']:.2f}" if "seconds" in ours else "-"
        rate = f"{row['bytes'] / row['seconds'] / 1e9:,.0f} GB/s"
        if row["flops"]:
            rate = f"{row['flops'] / row['seconds'] / 1e12:,.0f} TFLOP/s"
        lines.append(f"{what}| {row['seconds'] * 1000:.3f} | {rate} | {times} "
                     f"| {timing.gib(row['peak'])} | {row['error']:.1e} |")
    return "\n".join(lines)


def floors(wanted: list[str], sizes: dict) -> str:
    """What the cases cost at least, on an H200."""
    lines = ["| kernel | size | GFLOP | MiB | least milliseconds |", 5 * "| --- " + "|"]
    for name in wanted:
        for size in sizes[name]:
            flops, moved = cost(name, size)
            least = timing.floor(flops, moved)
            lines.append(f"| {name} | {' x '.join(map(str, size))} | {flops / 1e9:,.0f} "
                         f"| {moved / 2**20:,.0f} | {least * 1000:.3f} |")
    return "\n".join(lines)


def main() -> None:
    title = __doc__.split("\n")[0]
    parser = cli.Parser(prog="python -m benchmarks.kernels", description=title)
    parser.add_argument("--only", nargs="+", choices=WANTED, default=list(WANTED), metavar="KERNEL",
                        help="of loss norm rotary")
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="default 20")
    parser.add_argument("--toy", action="store_true", help="a toy size, on the CPU")
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="default benchmarks/results/kernels.json on a GPU")
    args = parser.parse_args()
    if args.rounds < 1:
        raise ValueError(f"--rounds must be at least 1, not {args.rounds}.")
    if args.toy:
        os.environ["TRITON_INTERPRET"] = "1"
        rows = measure(args.only, TOY, 1, "cpu")
    elif torch.cuda.is_available():
        torch.manual_seed(0)
        rows = measure(args.only, SIZES, args.rounds, "cuda")
    else:
        print(timing.NO_GPU, floors(args.only, SIZES), sep="\n\n")
        return
    print(table(rows))
    out = args.out or (None if args.toy else ROOT / "benchmarks/results/kernels.json")
    timing.save(out, "kernels", timing.about("cpu" if args.toy else "cuda") | {"rows": rows})


if __name__ == "__main__":
    cli.run(main)
