"""How the attention kernels are launched: what they are told, and in which sizes they work."""

import functools
import json
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.errors import TritonError
from triton.tools.tensor_descriptor import TensorDescriptor


class Job(NamedTuple):
    """What all kernels are told, besides their tensors. Made on the host, read in the kernels.

    H query heads, each `group` of which share a head of keys; T queries, S keys. window, segments,
    softcap and seed are None where there are none; segments are (B, T) and (B, S), contiguous; seed
    is a pointer to one int64, so that drawing it need not wait for the device.
    """

    H: int
    group: int
    T: int
    S: int
    scale: float
    softcap: float | None
    window: int | None
    q_segments: Any
    k_segments: Any
    dropout: float
    seed: Any


# Tiles and how many warps and pipeline stages work on them: (BLOCK_T, BLOCK_S, warps, stages), by
# the width of a tile and the bytes of a number. The first of each list is taken, the others are
# what tuning tries. They fit the 99 KiB of shared memory of the smaller chips.
CONFIGURATIONS = {
    "forward": {
        (64, 2): [(128, 64, 8, 3), (64, 64, 4, 3), (128, 128, 8, 2)],
        (128, 2): [(128, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 3), (128, 32, 8, 3)],
        (256, 2): [(64, 32, 8, 2), (64, 32, 4, 2), (64, 16, 4, 2)],
        (64, 4): [(64, 32, 8, 2), (32, 32, 4, 2)],
        (128, 4): [(32, 32, 8, 1), (32, 16, 4, 2)],
        (256, 4): [(16, 16, 4, 1), (16, 16, 8, 1)],
    },
    "backward_q": {
        (64, 2): [(64, 64, 4, 2), (128, 64, 8, 2), (64, 32, 4, 3)],
        (128, 2): [(64, 32, 4, 2), (64, 64, 8, 2), (128, 32, 8, 2)],
        (256, 2): [(32, 32, 8, 1), (64, 16, 8, 1)],
        (64, 4): [(32, 32, 8, 1), (16, 32, 4, 1)],
        (128, 4): [(16, 16, 8, 1)],
        (256, 4): [(16, 16, 8, 1)],
    },
    "backward_kv": {
        (64, 2): [(32, 64, 4, 2), (32, 64, 8, 2), (32, 128, 8, 2)],
        (128, 2): [(64, 64, 8, 2), (32, 64, 8, 2), (32, 64, 8, 3)],
        (256, 2): [(16, 32, 8, 1), (32, 32, 8, 1)],
        (64, 4): [(32, 32, 8, 1), (32, 16, 4, 1)],
        (128, 4): [(16, 16, 8, 1)],
        (256, 4): [(16, 16, 8, 1)],
    },
}
HOPPER = {  # capability 9 and 10, where these are not the same; 12 has the small memory again
    "forward": {
        (64, 2): [(128, 64, 4, 3), (128, 128, 8, 2), (64, 64, 4, 3)],
        (128, 2): [(128, 64, 8, 2), (128, 128, 8, 2), (64, 64, 4, 2)],
    },
    "backward_kv": {
        (64, 2): [(64, 128, 8, 2), (64, 64, 4, 2), (64, 128, 8, 1)],
        (128, 2): [(32, 128, 8, 2), (32, 64, 4, 2), (32, 64, 8, 2)],
    },
}
TMA = {  # what tuning tries there besides; none is a default until a GPU has shown that it pays
    "forward": {
        (64, 2): [(128, 64, 8, 3, "tma"), (128, 128, 8, 2, "tma"), (64, 64, 4, 2, "warps")],
        (128, 2): [(128, 128, 8, 2, "tma"), (128, 64, 8, 3, "tma"), (64, 64, 4, 2, "warps")],
    },
    "backward_q": {
        (64, 2): [(64, 64, 4, 2, "tma"), (128, 64, 8, 2, "tma")],
        (128, 2): [(64, 64, 8, 2, "tma"), (128, 64, 8, 2, "tma")],
    },
    "backward_kv": {
        (64, 2): [(64, 128, 8, 2, "tma"), (64, 64, 4, 2, "tma")],
        (128, 2): [(32, 128, 8, 2, "tma"), (64, 128, 8, 2, "tma")],
    },
}
AMD = {"backward_kv": {(128, 2): [(32, 64, 4, 2), (32, 32, 4, 2)]}}  # with warps of 64 threads
PACKED = {  # with documents all blocks are masked, which takes registers: these come first then
    "forward": {(64, 2): [(128, 64, 8, 3)], (128, 2): [(128, 32, 8, 2)]},
    "backward_q": {(64, 2): [(64, 32, 4, 2)]},
    "backward_kv": {(128, 2): [(32, 64, 8, 2)]},
}
PACKED_AMD = {"forward": {(64, 2): [(128, 64, 4, 2)], (128, 2): [(128, 32, 4, 2)]}}
OPTIONS = dict(enable_fp_fusion=True)  # products and sums in one, which Triton may cease to assume
NAMES = ("BLOCK_T", "BLOCK_S", "num_warps", "num_stages", "READ")
# How tiles of queries, keys and values are read: by all threads; by TMA, the unit of Hopper and
# newer that copies tiles; or by TMA in warps that do nothing else, beside those that multiply (warp
# specialisation: of the forward pass, as Triton cannot part the others, of 64 queries on 9.0).
READS = ("threads", "tma", "warps")
TILES = {"q": "BLOCK_T", "do": "BLOCK_T", "k": "BLOCK_S", "v": "BLOCK_S"}  # what TMA can read


@functools.cache
def configurations(
    D: int, dtype: torch.dtype, capability: tuple[int, int] | None, packed: bool = False
) -> dict:
    """The launch configurations of every kernel, the default first: {"forward": [dict, ...], ...}.

    capability: (9, 0) and so on; None for the interpreter and for AMD's chips. packed: there are
    documents.
    """
    key = max(64, triton.next_power_of_2(D)), dtype.itemsize
    own = AMD if capability is None else HOPPER if (9, 0) <= capability < (12, 0) else {}
    found = {}
    for name, table in CONFIGURATIONS.items():
        configs = own.get(name, {}).get(key) or table[key]
        if packed:
            first = (PACKED_AMD if own is AMD else PACKED).get(name, {}).get(key, [])
            configs = list(dict.fromkeys(first + configs))
        if own is HOPPER:
            configs = configs + TMA[name].get(key, [])
        found[name] = [dict(zip(NAMES, (*config, "threads"))) for config in configs]
    return found


def readable(kernel, tensors) -> bool:
    """Whether TMA can read all that it is to read."""
    return all(describable(x) for name, x in zip(kernel.arg_names, tensors) if name in TILES)


def describable(x) -> bool:
    """Whether TMA can read x (B, H, T, D): rows without gaps, all else in steps of 16 bytes."""
    *outer, last = x.stride()
    steps = [stride * x.element_size() for stride in outer]
    whole = last == 1 and x.numel() > 0 and x.data_ptr() % 16 == 0
    return whole and all(step > 0 and step % 16 == 0 for step in steps)


def described(kernel, tensors, config: dict, width: int) -> list | None:
    """The tensors, with descriptors for those that TMA is to read. None: it cannot read them.

    A descriptor knows shape and strides; what lies beyond a border is read as zeros.
    """
    if not readable(kernel, tensors):
        return None
    given = []
    for name, x in zip(kernel.arg_names, tensors):
        if name in TILES:
            x = TensorDescriptor.from_tensor(x, [1, 1, config[TILES[name]], width])
        given.append(x)
    return given


def place_of_choices() -> Path:
    return Path(triton.knobs.cache.dir, "rungs.json")


@functools.cache
def choices(path: Path) -> dict[str, dict]:
    """What was found fastest, by what it is for: read once, and added to by `fastest`."""
    return read(path)


def read(path: Path) -> dict[str, dict]:
    """What a file of choices has; of one that is damaged or not there, nothing."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def seconds(run: Callable[[], None]) -> float:
    """How long it takes on the GPU; infinity where it does not fit, or its memory does not."""
    try:
        return triton.testing.do_bench(run, return_mode="median") / 1000
    except (TritonError, RuntimeError):  # of PyTorch's, too: out of memory
        return math.inf


def fastest(configs: list[dict], case: str, run: Callable[[dict], None]) -> dict:
    """The configuration with which run(config) is fastest; timed once for a case, kept on disk."""
    path = place_of_choices()
    known = choices(path)
    if known.get(case) not in configs:
        known[case] = min(configs, key=lambda config: seconds(partial(run, config)))
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}")
        # other processes tune, too
        new.write_text(json.dumps(read(path) | {case: known[case]}, indent=1), "utf-8")
        new.replace(path)
    return known[case]


def case_of(name: str, q, job: Job, CAUSAL: bool) -> str:
    """What a choice of tuning is for; lengths by powers of two."""
    extras = [k for k in ("window", "q_segments", "softcap", "seed") if getattr(job, k) is not None]
    lengths = triton.next_power_of_2(job.T), triton.next_power_of_2(job.S)
    gpu = torch.cuda.get_device_name(q.device)
    return f"{name} {gpu} {triton.__version__} {q.dtype} {q.shape[3]} {lengths} {CAUSAL} {extras}"


def tuning() -> bool:
    """Whether the fastest configuration is searched."""
    return os.environ.get("RUNGS_AUTOTUNE") == "1"


def launch(name: str, kernel, programs, tensors, strided, job, D, CAUSAL, blocks=None) -> None:
    """Run a kernel on programs(BLOCK_T, BLOCK_S) programs. strided: tensors whose strides it takes.

    blocks: the first fields of a configuration, instead of the default's. With RUNGS_AUTOTUNE=1 the
    fastest is searched. What TMA cannot read is not asked of it: then no configuration with it is
    taken, and of one in `blocks` the threads read.
    """
    q, width = tensors[0], max(16, triton.next_power_of_2(D))
    nvidia = q.is_cuda and torch.version.hip is None
    capability = torch.cuda.get_device_capability(q.device) if nvidia else None
    configs = configurations(D, q.dtype, capability, job.q_segments is not None)[name]

    def run(config):
        config = dict(config)
        read = config.pop("READ")
        given = None if read == "threads" else described(kernel, tensors, config, width)
        if "SPECIALISED" in kernel.arg_names:
            config["SPECIALISED"] = read == "warps" and given is not None
        kernel[(programs(config["BLOCK_T"], config["BLOCK_S"]),)](
            *(given or tensors), *(x.stride() for x in strided), job, D=D, BLOCK_D=width,
            CAUSAL=CAUSAL, **config, **OPTIONS,
        )  # fmt: skip

    with torch.cuda.device_of(q):  # Triton launches on the current device
        if blocks is not None:
            run(configs[0] | dict(zip(NAMES, blocks)))
            return
        tuned, extra = q.is_cuda and tuning(), ""
        if any(config["READ"] != "threads" for config in configs[:None if tuned else 1]):
            if not readable(kernel, tensors):  # and tiles for TMA may be too large for the threads
                configs = [config for config in configs if config["READ"] == "threads"]
                extra = " by threads"
        if tuned:
            run(fastest(configs, case_of(name, q, job, CAUSAL) + extra, run))
        else:
            run(configs[0])
