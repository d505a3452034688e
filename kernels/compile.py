"""The kernels compiled ahead of time, for chips that are not here, and what became of them.

    python -m kernels.compile [--targets sm_80 sm_90 sm_100 gfx942] [--widths 64 128] [--space]

Triton's compiler needs no GPU, only the name of one. So whether a kernel fits its chip can be known
on a laptop: that it compiles at all, takes no more shared memory than there is, keeps its numbers
in registers, and multiplies on the matrix units. One row for each kernel and chip:

    registers   of a thread (on AMD's chips: vector registers, of a lane)
    shared      KiB of memory shared by a program's threads, and of how many
    spills      values that found no register: loads and stores of local memory in NVIDIA's code, in
                AMD's the compiler's count of vector registers (scalar ones go to vector registers)
    matrix      the instruction that the products became, "-" where there is none
    read        how tiles come from memory: by the threads, by TMA, or by TMA in warps of their own

Nothing is described twice: the functions that launch kernels are called as always, on tensors of
the CPU, and a launch compiles instead of running. The results mean nothing and are thrown away.

By default the configuration that a launch takes first, causal, bfloat16; decoding also "packed"
(documents, a window and capped scores at once). --space: all that tuning tries, in bfloat16 and
float32, widths to 256. --all: every dtype, and the first also not causal, packed, and with dropout
as well. Exit code 1: of widths 64 or 128 a first configuration, in any dtype, packed or not, spills
or is too big.
"""

import datetime
import itertools
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from data import cli, runs

try:
    import triton
    from triton.backends.compiler import GPUTarget
except ModuleNotFoundError:
    if __name__ != "__main__":
        raise
    from . import unavailable

    print(f"error: {unavailable(None)}", file=sys.stderr)
    raise SystemExit(2) from None

from . import cross_entropy, norm, rotary
from .attention import backward, forward  # kernels.attention itself is the function
from .decode import decode
from .launch import CONFIGURATIONS
from .launch import configurations as configurations_of

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),  # A100
    "sm_90": GPUTarget("cuda", 90, 32),  # H100, H200
    "sm_100": GPUTarget("cuda", 100, 32),  # B200
    "gfx942": GPUTarget("hip", "gfx942", 64),  # MI300
}
SHARED = {"sm_80": 163, "sm_90": 227, "sm_100": 227, "gfx942": 64}  # KiB that a program may have
DTYPES = ("bfloat16", "float32", "float16")
WIDTHS = (64, 128)  # those that must fit
INSTRUCTIONS = {  # the first that is found
    "ptx": {"tcgen05.mma": "tcgen05", "wgmma.mma_async": "wgmma", "mma.sync": "mma"},
    "amdgcn": {"v_mfma": "mfma"},
}


@dataclass(frozen=True)
class Job:
    """One kernel to compile. config: its launch configuration, by number, 0 the default.

    features: of attention and decoding, "packed" for documents, a window and capped scores at once;
    of attention "dropout" for dropout besides.
    """

    kernel: str
    target: str
    width: int
    dtype: str
    causal: bool = True
    features: str = ""
    config: int = 0

    @property
    def required(self) -> bool:
        """Whether it must fit."""
        return self.config == 0 and self.features != "dropout" and self.width in WIDTHS


class Offline:
    """What Triton asks of a driver to compile for a GPU that is not here."""

    def __init__(self, target: GPUTarget):
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return str(self.target)  # by which a kernel keeps what it has compiled

    def get_current_stream(self, device) -> int:
        return 0


@contextmanager
def compiling(target: GPUTarget, wanted: str) -> Iterator[list]:
    """Inside, launches of the kernel of that name compile it into the list, and none runs."""
    made: list = []

    def launch(kernel, grid):
        if kernel.__name__ != wanted:
            return lambda *arguments, **options: None
        return lambda *arguments, **options: made.append(
            kernel.warmup(*arguments, grid=(1,), **options)
        )

    before = triton.JITFunction.__getitem__
    triton.runtime.driver.set_active(Offline(target))
    triton.JITFunction.__getitem__ = launch
    try:
        yield made
    finally:
        triton.JITFunction.__getitem__ = before
        triton.runtime.driver.set_active(None)  # the next use looks for a GPU


def tensors(job: Job, count: int) -> tuple[Tensor, ...]:
    """Such as attention takes (1, 2, 512, D), in memory (B, T, H, D): so a projection leaves it."""
    dtype = getattr(torch, job.dtype)
    return torch.zeros(count, 1, 512, 2, job.width, dtype=dtype).transpose(2, 3).unbind()


def attend(job: Job) -> None:
    """One of the passes of attention, in the configuration of the job."""
    q, k, v, out, do = tensors(job, 5)
    segments = torch.zeros(1, 512, dtype=torch.int64) if job.features else None
    window, softcap = (256, 30.0) if job.features else (None, None)
    dropping = job.features == "dropout"
    seed = torch.zeros((), dtype=torch.int64) if dropping else None
    blocks = tuple(configurations(job)[job.config].values())
    options = job.causal, job.width**-0.5, window, softcap, 0.1 * dropping, blocks
    rest = segments, segments, seed, *options
    if job.kernel == "attention forward":
        forward(q, k, v, *rest)
    else:
        backward(do, q, k, v, out, torch.zeros(q.shape[:3]), *rest)


def step(job: Job) -> None:
    """Attention of one query to the keys of a cache."""
    q, k, v = tensors(job, 3)
    documents, window, softcap = None, None, None
    if job.features:
        segments = torch.zeros(1, 512, dtype=torch.int64)
        documents, window, softcap = (segments[:, :1].clone(), segments), 256, 30.0
    decode(q[:, :, :1], k, v, *(documents or (None, None)), job.causal, job.width**-0.5, window,
           softcap)


def configurations(job: Job) -> list[dict]:
    """The launch configurations of a kernel; a small one has one that its sizes decide."""
    where, _, name = job.kernel.partition(" ")
    if where != "attention":
        return [{}]
    arch = TARGETS[job.target].arch
    capability = divmod(arch, 10) if isinstance(arch, int) else None
    dtype = getattr(torch, job.dtype)
    return configurations_of(job.width, dtype, capability, bool(job.features))[name]


def lose(job: Job) -> None:
    """The head and the loss over GPT-2's vocabulary, capped."""
    x, weight = (torch.zeros(n, 16, dtype=getattr(torch, job.dtype)) for n in (2, 50304))
    targets, gradient = torch.zeros(2, dtype=torch.int64), job.kernel == "loss, gradient"
    cross_entropy.linear_cross_entropy_sum(x, weight, targets, 15.0, 0, gradient, gradient)


def normalise(job: Job) -> None:
    """Both passes of the norm, over as many features as 64 heads have."""
    x = torch.zeros(4, 64 * job.width, dtype=getattr(torch, job.dtype))
    norm.add_rms_norm_forward(x, x, x[0], 1e-6)
    norm.add_rms_norm_backward(x, x[0], torch.zeros(4, 1), x, x)


def rotate(job: Job) -> None:
    """Rotary positions, on heads in memory (B, T, H, D)."""
    x = tensors(job, 1)[0]
    rotary.turned(x, torch.arange(x.shape[2])[None], 10000.0, False)


# what launches each kernel, and its name in the code
KERNELS: dict[str, tuple[Callable[[Job], None], str]] = {
    **{f"attention {name}": (attend, f"{name}_kernel") for name in CONFIGURATIONS},
    "decode": (step, "split_kernel"),
    "decode, combined": (step, "combine_kernel"),
    "loss": (lose, "replace_logits"),
    "loss, gradient": (lose, "replace_logits"),
    "norm forward": (normalise, "norm_forward"),
    "norm backward": (normalise, "norm_backward"),
    "rotary": (rotate, "turn"),
}


def run(job: Job) -> dict:
    """Compile one: a row of the table. An "error" in it says why there is nothing else."""
    act, wanted = KERNELS[job.kernel]
    config = configurations(job)[job.config]
    sizes = [str(v) for k, v in config.items() if k.startswith("BLOCK")]
    about = vars(job) | {"blocks": "x".join(sizes), "read": config.get("READ", "threads")}
    try:
        with compiling(TARGETS[job.target], wanted) as made:
            act(job)
    except Exception as error:  # whatever the compiler throws is what this table is to show
        reason = (str(error).strip().splitlines() or [""])[-1]
        return about | {"error": f"{type(error).__name__}: {reason}"[:200]}
    [kernel] = made
    text = "ptx" if "ptx" in kernel.asm else "amdgcn"
    found = (name for part, name in INSTRUCTIONS[text].items() if part in kernel.asm[text])
    return about | {
        "warps": kernel.metadata.num_warps, "stages": kernel.metadata.num_stages,
        "shared": kernel.metadata.shared, "matrix": next(found, "-"),
        "tma": "cp.async.bulk.tensor" in kernel.asm[text],
        "specialised": "ttg.warp_specialize(" in kernel.asm["ttgir"],
    } | (nvidia(kernel.asm["cubin"]) if text == "ptx" else amd(kernel.asm[text]))


def nvidia(cubin: bytes) -> dict:
    """Registers and spills, as the disassembler that comes with Triton tells them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {"registers": int(re.search(r"REG:(\d+)", said)[1]),
            "spills": len(re.findall(r"\b(?:STL|LDL)\b", said))}


def amd(assembly: str) -> dict:
    """The same of AMD's assembly, which ends with them."""
    def count(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", assembly)[1])

    return {"registers": count("vgpr_count"), "spills": count("vgpr_spill_count")}


def faults(row: dict) -> str:
    """What is wrong with a row, or nothing."""
    if "error" in row:
        return f"does not compile ({row['error']})"
    wrong = []
    if row["spills"]:
        wrong.append(f"spills ({row['spills']})")
    if row["shared"] > SHARED[row["target"]] * 1024:
        wrong.append(f"takes {row['shared'] / 1024:.0f} KiB of shared memory, of "
                     f"{SHARED[row['target']]}")
    return " and ".join(wrong)


def jobs(targets: list[str], widths: list[int], space: bool, everything: bool) -> list[Job]:
    """What to compile, in the order of the table."""
    dtypes = DTYPES if everything else DTYPES[:2] if space else DTYPES[:1]
    found = []
    for kernel in KERNELS:
        sized = not kernel.startswith("loss")
        for target, width, dtype in itertools.product(
            targets, widths if sized else WIDTHS[:1], dtypes
        ):
            first = Job(kernel, target, width, dtype)
            found.append(first)
            if space or everything:
                others = range(1, len(configurations(first)))
                found += [replace(first, config=i) for i in others]
            if kernel == "decode":  # a sampler tells by documents which places are empty
                found.append(replace(first, features="packed"))
            if everything and kernel.startswith("attention"):
                found.append(replace(first, causal=False))
                found += [replace(first, features=what) for what in ("packed", "dropout")]
    return found


def table(rows: list[dict]) -> str:
    names = ("kernel", "target", "width", "dtype", "blocks", "read", "warps", "stages", "registers",
             "shared", "spills", "matrix")
    lines = [f"| {' | '.join(names)} |", len(names) * "| --- " + "|"]
    for row in rows:
        what = row["kernel"] + ", not causal" * (not row["causal"])
        what += f", {row['features']}" if row["features"] else ""
        width = "-" if row["kernel"].startswith("loss") else row["width"]
        cells = [what, row["target"], width, row["dtype"], row["blocks"] or "-", row["read"]]
        if "error" in row:
            cells.append(row["error"])
        else:
            shared = f"{row['shared'] / 1024:.0f} of {SHARED[row['target']]}"
            cells += [row["warps"], row["stages"], row["registers"], shared, row["spills"],
                      row["matrix"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def compile_all(wanted: list[Job], processes: int) -> list[dict]:
    """The rows of the jobs, in their order."""
    context = multiprocessing.get_context("spawn")  # nothing of this process's state gets in
    with ProcessPoolExecutor(processes, context) as pool:
        futures = [pool.submit(run, job) for job in wanted]
        with tqdm(total=len(wanted), unit="kernel", file=sys.stderr, disable=None) as bar:
            for _ in as_completed(futures):
                bar.update()
        return [future.result() for future in futures]


def main() -> int:
    title = __doc__.split("\n")[0]
    parser = cli.Parser(prog="python -m kernels.compile", description=title)
    parser.add_argument("--targets", "--target", nargs="+", choices=TARGETS, default=list(TARGETS),
                        metavar="CHIP", help=f"of {' '.join(TARGETS)} (default all)")
    parser.add_argument("--widths", nargs="+", type=int, metavar="N",
                        help="of heads (default 64 128; with --space and --all 64 128 256)")
    parser.add_argument("--space", action="store_true", help="all that tuning tries")
    parser.add_argument("--all", action="store_true", help="that, every dtype and every variant")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), metavar="N",
                        help="that compile at a time (default: one a core)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the rows, as JSON, too")
    args = parser.parse_args()
    if triton.knobs.runtime.interpret:
        raise ValueError("TRITON_INTERPRET is set, and the interpreter does not compile: unset it.")
    widths = args.widths or [*WIDTHS, *[256] * (args.space or args.all)]
    if any(width < 2 or width > 256 or width % 2 for width in widths):
        raise ValueError(f"--widths must be even and from 2 to 256, not {min(widths)}.")
    if args.processes < 1:
        raise ValueError(f"--processes must be at least 1, not {args.processes}.")
    wanted = jobs(args.targets, widths, args.space, args.all)
    rows = compile_all(wanted, args.processes)
    print(table(rows))
    if args.out:
        about = {"date": datetime.date.today().isoformat(), "environment": runs.environment()}
        runs.write_json(args.out, about | {"triton": triton.__version__, "rows": rows})
    bad = [f"{row['kernel']} for {row['target']}, width {row['width']}, {row['dtype']}: {fault}"
           for job, row in zip(wanted, rows) if job.required and (fault := faults(row))]
    if bad:
        print(f"error: {len(bad)} default configurations: {'; '.join(bad)}.", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    cli.run(main)
