"""How the attention kernels are launched: what they are told, and in which sizes they work."""

import functools
import os
from typing import Any, NamedTuple

import torch
import triton


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
        (64, 4): [(64, 32, 4, 2), (32, 32, 4, 2)],
        (128, 4): [(32, 32, 4, 2), (32, 16, 4, 2)],
        (256, 4): [(16, 16, 4, 1), (16, 16, 8, 1)],
    },
    "backward_q": {
        (64, 2): [(64, 64, 4, 2), (128, 64, 8, 2), (64, 32, 4, 3)],
        (128, 2): [(64, 32, 4, 2), (64, 64, 8, 2), (128, 32, 8, 2)],
        (256, 2): [(32, 32, 8, 1), (64, 16, 8, 1)],
        (64, 4): [(32, 32, 4, 1), (16, 32, 4, 1)],
        (128, 4): [(16, 16, 4, 1), (16, 32, 4, 1)],
        (256, 4): [(16, 16, 8, 1)],
    },
    "backward_kv": {
        (64, 2): [(32, 64, 4, 2), (32, 64, 8, 2), (32, 128, 8, 2)],
        (128, 2): [(64, 64, 8, 2), (32, 64, 8, 2), (32, 64, 8, 3)],
        (256, 2): [(16, 32, 8, 1), (32, 32, 8, 1)],
        (64, 4): [(32, 32, 4, 1), (32, 16, 4, 1)],
        (128, 4): [(16, 16, 4, 1), (32, 16, 4, 1)],
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
OPTIONS = dict(enable_fp_fusion=True)  # products and sums in one, which Triton may cease to assume
AMD = {"backward_kv": {(128, 2): [(32, 64, 4, 2), (32, 32, 4, 2)]}}  # with warps of 64 threads
NAMES = ("BLOCK_T", "BLOCK_S", "num_warps", "num_stages")


def configurations(D: int, dtype: torch.dtype, capability: tuple[int, int] | None) -> dict:
    """The launch configurations of every kernel, the default first: {"forward": [dict, ...], ...}.

    capability: (9, 0) and so on; None for the interpreter and for AMD's chips.
    """
    key = max(64, triton.next_power_of_2(D)), dtype.itemsize
    own = AMD if capability is None else HOPPER if (9, 0) <= capability < (12, 0) else {}
    return {
        name: [dict(zip(NAMES, config)) for config in own.get(name, {}).get(key) or table[key]]
        for name, table in CONFIGURATIONS.items()
    }


@functools.cache
def tuned(name: str, kernel, D: int, dtype: torch.dtype, capability):
    """The kernel that times its configurations at the first call, and keeps the choice on disk."""
    configs = [
        triton.Config({k: c[k] for k in NAMES[:2]}, c["num_warps"], c["num_stages"])
        for c in configurations(D, dtype, capability)[name]
    ]
    return triton.autotune(configs, key=["D", "CAUSAL"], cache_results=True)(kernel)


def launch(name: str, kernel, programs, tensors, strided, job, D, CAUSAL, blocks=None) -> None:
    """Run a kernel on programs(BLOCK_T, BLOCK_S) programs. strided: tensors whose strides it takes.

    blocks (BLOCK_T, BLOCK_S): instead of the default. With RUNGS_AUTOTUNE=1 the best is searched.
    """
    q = tensors[0]
    nvidia = q.is_cuda and torch.version.hip is None
    capability = torch.cuda.get_device_capability(q.device) if nvidia else None
    shape = dict(D=D, BLOCK_D=max(16, triton.next_power_of_2(D)), CAUSAL=CAUSAL)
    arguments = *tensors, *(x.stride() for x in strided), job

    def grid(meta):
        return (programs(meta["BLOCK_T"], meta["BLOCK_S"]),)

    config = configurations(D, q.dtype, capability)[name][0]
    if blocks is not None:
        config = config | dict(zip(NAMES, blocks))
    elif q.is_cuda and os.environ.get("RUNGS_AUTOTUNE") == "1":
        kernel, config = tuned(name, kernel, D, q.dtype, capability), {}
    with torch.cuda.device_of(q):  # Triton launches on the current device
        kernel[grid](*arguments, **shape, **config, **OPTIONS)


class Source(NamedTuple):
    """A kernel to be compiled without a GPU, in its usual form: 16 divides lengths and strides.

    source = triton.compiler.ASTSource(s.fn, s.signature, s.constexprs, s.attrs)
    triton.compile(source, target=GPUTarget("cuda", 90, 32), options=s.options)
    """

    name: str
    fn: Any
    signature: dict
    constexprs: dict
    attrs: dict
    options: dict


FLOAT32 = ("lse", "delta", "parts", "part_lse")  # the tensors that do not have the inputs' dtype
INTEGERS = ("H", "T", "begin", "length", "splits")
TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


def source_of(
    name: str, kernel, D: int, dtype: torch.dtype, config: dict, *, window=False, segments=False,
    softcap=False, dropout=False, **constants,
) -> Source:  # fmt: skip
    """The Source of a kernel. Its constexprs are in config and constants; features: those used."""
    options = OPTIONS | {k: v for k, v in config.items() if k.startswith("num_")}
    constants |= {k: v for k, v in config.items() if not k.startswith("num_")}
    constants |= dict(D=D, BLOCK_D=max(16, triton.next_power_of_2(D)))
    job = Job(*["i32"] * 4, "fp32", *["constexpr"] * 4, "fp32", "constexpr")
    job = job._replace(**dict(softcap="fp32") if softcap else {})
    job = job._replace(**dict(window="i32") if window else {})
    job = job._replace(**dict(q_segments="*i64", k_segments="*i64") if segments else {})
    job = job._replace(**dict(seed="*i64") if dropout else {})
    signature, constexprs, sixteen = {}, {}, []
    for i, argument in enumerate(kernel.arg_names):
        if argument == "job":
            signature[argument] = job
            constexprs |= {(i, j): None for j, kind in enumerate(job) if kind == "constexpr"}
            sixteen += [(i, Job._fields.index(length)) for length in "TS"]
        elif argument.endswith("_strides"):
            signature[argument] = ("i32", "i32", "i32", "constexpr")
            constexprs[i, 3] = 1
            sixteen += [(i, j) for j in range(3)]
        elif argument in constants:
            signature[argument] = "constexpr"
            constexprs[i,] = constants[argument]
        elif argument in INTEGERS:
            signature[argument] = "i32"
        else:
            signature[argument] = "*fp32" if argument in FLOAT32 else f"*{TYPES[dtype]}"
            sixteen.append((i,))
    attrs = {place: [["tt.divisibility", 16]] for place in sixteen}
    return Source(name, kernel, signature, constexprs, attrs, options)
