"""Attention: TFLOP/s, memory and error of our kernels beside PyTorch's, in one run, in turn.

    python -m benchmarks.attention [--decode] [--widths 64 128] [--lengths 512 ... 16384]

Contenders: ours; naive, which holds the whole matrix of weights; PyTorch's
scaled_dot_product_attention with its flash and with its cuDNN backend; FlexAttention, compiled.
bfloat16, 16,384 tokens a batch and 2,048 features in heads of 64 or 128, in memory (B, T, H, D) as
a projection leaves them. Operations are counted as usual: 4 B H T^2 D forward, half of that where
it is causal, and 2.5 times as many backward, whatever a contender really does. Times are medians of
CUDA events, with the cache emptied before each run. Errors are the largest, of the output and of
the gradients of q, k and v, in the first head, against float64.

--decode: one query to a cache, 32 heads that share 8 of keys and values, 128 wide: what counts is
how fast the cache is read, here as a share of the speed of a large copy on the same GPU.

RUNGS_AUTOTUNE=1 in the environment: ours in the fastest configuration, which the result names.

Without a GPU: what is to be computed and moved at least. --toy: both of it at a toy size, on the
CPU, ours in Triton's interpreter; its times mean nothing.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from benchmarks import timing
from benchmarks.ladder import ROOT
from data import cli, runs

TOKENS, FEATURES = 16384, 2048
LENGTHS = [512, 1024, 2048, 4096, 8192, 16384]
BATCHES, CACHES = (1, 4, 16), (4096, 16384, 65536)
HEADS = (32, 8, 128)  # of --decode: heads, those of keys and values, their width
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def fused(backend: SDPBackend, q, k, v, causal: bool):
    """PyTorch's own, by one of its backends."""
    with sdpa_kernel(backend):
        grouped = k.shape[1] < q.shape[1]
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)


@functools.cache
def flex_mask(T: int, device: str):
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(lambda b, h, t, s: s <= t, None, None, T, T, device=device)


@functools.cache
def flex_compiled() -> Callable:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def flex(q, k, v, causal: bool):
    """FlexAttention; on a CPU, where compiling it takes longer than the toy, as it is."""
    from torch.nn.attention.flex_attention import flex_attention

    function = flex_compiled() if q.is_cuda else flex_attention
    mask = flex_mask(q.shape[2], str(q.device)) if causal else None
    return function(q, k, v, block_mask=mask, enable_gqa=k.shape[1] < q.shape[1])


def contenders() -> dict[str, Callable]:
    """Functions of q, k, v and whether it is causal."""
    from kernels import attention, naive  # late, so that --toy may choose the interpreter before

    return {
        "ours": lambda q, k, v, causal: attention(q, k, v, causal=causal),
        "naive": lambda q, k, v, causal: naive.attention(q, k, v, causal=causal),
        **{name: functools.partial(fused, backend) for name, backend in BACKENDS.items()},
        "flex": flex,
    }


def heads(B, H, T, D, dtype, device):
    """Numbers (B, H, T, D), in memory (B, T, H, D)."""
    return torch.randn(B, T, H, D, dtype=dtype, device=device).transpose(1, 2)


def off(results, exact) -> float:
    """The largest error of the first head's results."""
    return max((a[:1, :1] - b).abs().max().item() for a, b in zip(results, exact, strict=True))


def forward_job(function, q, k, v, causal):
    def job():
        with torch.no_grad():
            return [function(q, k, v, causal)]

    return job


def backward_job(function, q, k, v, causal, gradient):
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    out = function(*inputs, causal)
    return lambda: torch.autograd.grad(out, inputs, gradient, retain_graph=True)


def exactly(q, k, v, causal, gradient):
    """The first head's output and gradients in float64."""
    from kernels import naive

    inputs = [x[:1, :1].detach().double().requires_grad_() for x in (q, k, v)]
    out = naive.attention(*inputs, causal=causal)
    return [out.detach()], torch.autograd.grad(out, inputs, gradient[:1, :1].double())


def cost(backward: bool, causal: bool, B: int, H: int, T: int, D: int) -> tuple[float, float]:
    """Operations, and bytes of what has to be read and written, in two bytes a number."""
    flops = 4 * B * H * T * T * D * (0.5 if causal else 1) * (2.5 if backward else 1)
    numbers = B * H * T * D
    return flops, 2 * numbers * (8 if backward else 4) + 4 * B * H * T


def cases(args) -> list[tuple[bool, int, int]]:
    return [(causal, D, T) for D in args.widths for causal in (True, False) for T in args.lengths]


def measure(args, device: str, keep: Callable[[list[dict]], None]) -> list[dict]:
    """A row for each case, pass and contender. keep: gets all so far after each case."""
    rows = []
    dtype = torch.bfloat16 if device != "cpu" else torch.float32
    for causal, D, T in tqdm(cases(args), unit="case", disable=None):
        B, H = max(1, args.tokens // T), max(1, args.features // D)
        q, k, v, gradient = (heads(B, H, T, D, dtype, device) for _ in range(4))
        exact = exactly(q, k, v, causal, gradient)
        for backward in (False, True):
            makers = {}
            for name, function in contenders().items():
                rest = (gradient,) if backward else ()
                make = backward_job if backward else forward_job
                makers[name] = functools.partial(make, function, q, k, v, causal, *rest)
            error = functools.partial(off, exact=exact[backward])
            found = timing.contest(makers, args.rounds, device, error)
            flops, size = cost(backward, causal, B, H, T, D)
            rows += [
                {"pass": "backward" if backward else "forward", "causal": causal, "width": D,
                 "length": T, "batch": B, "heads": H, "contender": name, "flops": flops,
                 "bytes": size, **result}
                for name, result in found.items()
            ]
        keep(rows)
    return rows


def measure_decode(args, device: str, keep: Callable[[list[dict]], None]) -> list[dict]:
    """A row for each batch, length of the cache and contender. keep: as above."""
    rows = []
    dtype = torch.bfloat16 if device != "cpu" else torch.float32
    speed = timing.bandwidth(device)
    H, KV, D = args.heads
    for B in args.batches:
        for S in args.caches:
            q = heads(B, H, 1, D, dtype, device)
            # a cache is in memory (B, H, S, D), so that a head's keys lie together
            k, v = torch.randn(2, B, KV, S, D, dtype=dtype, device=device)
            exact = exactly(q, k, v, False, q)[0]
            makers = {
                name: functools.partial(forward_job, function, q, k, v, False)
                for name, function in contenders().items()
            }
            error = functools.partial(off, exact=exact)
            found = timing.contest(makers, args.rounds, device, error)
            size = (k.numel() + v.numel()) * k.element_size()
            rows += [
                {"batch": B, "cache": S, "contender": name, "bytes": size, "bandwidth": speed,
                 **result}
                for name, result in found.items()
            ]
            keep(rows)
    return rows


def table(rows: list[dict], keys: tuple[str, ...], unit: str, value: Callable) -> str:
    """A line for each case, a column for each contender: value (error, GiB at most)."""
    names = list(dict.fromkeys(row["contender"] for row in rows))
    lines = [f"{unit} (largest error, GiB of memory):", "",
             f"| {' | '.join((*keys, *names))} |", "| --- " * (len(keys) + len(names)) + "|"]
    groups: dict[tuple, dict] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), {})[row["contender"]] = row
    for case, group in groups.items():
        cells = [
            f"{value(row)} ({row['error']:.1e}, {timing.gib(row['peak'])})"
            if "failed" not in row else "-" for row in group.values()
        ]
        lines.append(f"| {' | '.join(map(str, (*case, *cells)))} |")
    failed = {(row["contender"], row["failed"]) for row in rows if "failed" in row}
    lines += [f"- {name}: {why}" for name, why in sorted(failed)]
    return "\n".join(lines)


def speed_of(row: dict) -> str:
    return f"{row['flops'] / row['seconds'] / 1e12:.3g}"


def share_of(row: dict) -> str:
    return f"{row['bytes'] / row['seconds'] / row['bandwidth']:.0%}"


def floors(args) -> str:
    """What the cases cost at least, on an H200."""
    lines = ["| pass | causal | width | length | GFLOP | MiB | least milliseconds | bound by |",
             8 * "| --- " + "|"]
    for causal, D, T in cases(args):
        B, H = max(1, args.tokens // T), max(1, args.features // D)
        for backward in (False, True):
            flops, size = cost(backward, causal, B, H, T, D)
            least = timing.floor(flops, size)
            bound = "operations" if timing.floor(flops, 0) == least else "bytes"
            what = f"{'backward' if backward else 'forward'} | {causal} | {D} | {T}"
            lines.append(f"| {what} | {flops / 1e9:,.0f} | {size / 2**20:,.0f} "
                         f"| {least * 1000:.3f} | {bound} |")
    return "\n".join(lines)


def decode_floors(args) -> str:
    lines = ["| batch | cache | MiB | least microseconds |", 4 * "| --- " + "|"]
    H, KV, D = args.heads
    for B in args.batches:
        for S in args.caches:
            size = 2 * B * KV * S * D * 2
            least = timing.floor(4 * B * H * S * D, size)
            lines.append(f"| {B} | {S} | {size / 2**20:,.0f} | {least * 1e6:.1f} |")
    return "\n".join(lines)


def plot(rows: list[dict], path: Path) -> None:
    """TFLOP/s against the length: a column for each width and mask, forward above backward."""
    columns = list(dict.fromkeys((row["width"], row["causal"]) for row in rows))
    figure = runs.new_figure(4 * len(columns), 7)
    axes_rows = figure.subplots(2, len(columns), squeeze=False)
    for line, axes_row in zip(("forward", "backward"), axes_rows):
        for axes, (width, causal) in zip(axes_row, columns):
            chosen = [row for row in rows if "failed" not in row and row["pass"] == line
                      and (row["width"], row["causal"]) == (width, causal)]
            for name in dict.fromkeys(row["contender"] for row in chosen):
                points = [row for row in chosen if row["contender"] == name]
                speeds = [row["flops"] / row["seconds"] / 1e12 for row in points]
                axes.plot([row["length"] for row in points], speeds, ".-", label=name)
            axes.set_xscale("log", base=2)
            axes.set(xlabel="length", ylabel="TFLOP/s", ylim=(0, None),
                     title=f"{line}, width {width}, {'causal' if causal else 'full'}")
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small")
    runs.save_figure(figure, path)


def tuned() -> dict:
    """With RUNGS_AUTOTUNE=1 the configurations that were found fastest, by what they are for."""
    from kernels import launch

    found = launch.read(launch.place_of_choices()) if launch.tuning() else None
    return {} if found is None else {"tuned": found}


def main() -> None:
    title = __doc__.split("\n")[0]
    parser = cli.Parser(prog="python -m benchmarks.attention", description=title)
    parser.add_argument("--decode", action="store_true", help="one query to a long cache, instead")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128], metavar="N",
                        help="of heads (default 64 128)")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, metavar="N",
                        help="default 512 to 16384")
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="default 20")
    parser.add_argument("--toy", action="store_true", help="a toy size, on the CPU")
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="default benchmarks/results/attention.json on a GPU; .png beside it")
    args = parser.parse_args()
    if min(*args.lengths, *args.widths, args.rounds) < 1:
        raise ValueError("--lengths, --widths and --rounds must be at least 1.")
    args.tokens, args.features = TOKENS, FEATURES
    args.batches, args.caches, args.heads = BATCHES, CACHES, HEADS
    if args.toy:
        os.environ["TRITON_INTERPRET"] = "1"
        args.widths, args.lengths, args.tokens, args.features, args.rounds = [16], [32], 32, 16, 1
        args.batches, args.caches, args.heads = (1, 2), (520,), (4, 2, 16)
    elif not torch.cuda.is_available():
        print(timing.NO_GPU, end="\n\n")
        print(decode_floors(args) if args.decode else floors(args))
        return
    device = "cpu" if args.toy else "cuda"
    torch.manual_seed(0)
    out = args.out or (None if args.toy else ROOT / "benchmarks/results/attention.json")
    about = timing.about(device)

    def keep(name: str, rows: list[dict]) -> None:
        timing.save(out, name, about | tuned() | {"rows": rows})

    if not args.decode or args.toy:
        rows = measure(args, device, functools.partial(keep, "passes"))
        print(table(rows, ("pass", "causal", "width", "length"), "TFLOP/s", speed_of))
        if out:
            plot(rows, out.with_suffix(".png"))
    if args.decode or args.toy:
        rows = measure_decode(args, device, functools.partial(keep, "decode"))
        print(table(rows, ("batch", "cache"), "Share of the bandwidth of a copy", share_of))


if __name__ == "__main__":
    cli.run(main)
