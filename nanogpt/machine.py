"""The one place that decides where and how precisely to compute, and says what it chose."""

import ctypes
import os
import platform
import shutil
import sys
from contextlib import nullcontext
from dataclasses import dataclass

import torch

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("float32", "bfloat16", "float16")
TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of glibc's malloc.h
PIECE = 2**25  # bytes; above it glibc, left alone, always takes a piece of its own from the system


@dataclass(frozen=True)
class Machine:
    """device: "cpu", "cuda", "cuda:1" or "mps". compiled: whether torch.compile is used.

    dtype: one of DTYPES, for the products (autocast); the weights are float32 always.
    notes: sentences for the user about what was asked for and is not to be had.
    """

    device: str
    dtype: str
    compiled: bool
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return self.device.split(":")[0]

    def autocast(self):
        """The context of the forward pass."""
        if self.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.kind, dtype=getattr(torch, self.dtype))

    @property
    def products(self) -> torch.dtype | None:
        """Of an optimizer that multiplies weights: bfloat16 where that was chosen, for there
        float32 takes twice (a CPU) to ten times as long; else None, that of the weights."""
        return torch.bfloat16 if self.dtype == "bfloat16" and self.kind != "mps" else None

    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss under float16, where small gradients would vanish; else does nothing."""
        return torch.amp.GradScaler(self.kind, enabled=self.dtype == "float16")

    def compile(self, function):
        """The function, compiled where that was chosen; its arguments should keep their shapes."""
        return torch.compile(function, dynamic=False) if self.compiled else function

    def describe(self) -> str:
        if self.kind == "cuda":
            where = torch.cuda.get_device_name(self.device)
        else:
            threads = torch.get_num_threads()
            where = f"{self.device} ({threads} thread{'s' * (threads > 1)})"
        return f"{where}, {self.dtype}, {'compiled' if self.compiled else 'not compiled'}"


def choose(device: str = "auto", dtype: str = "float32", compile: bool = False) -> Machine:
    """Settle what was asked for against what is there.

    ValueError: a device that this machine or this PyTorch has not, or a dtype it cannot do.
    """
    kind, colon, index = device.partition(":")
    if kind not in DEVICES or (colon and not (kind == "cuda" and index.isdigit())):
        known = ", ".join(DEVICES)
        raise ValueError(f"the device {device} is not known; choose one of {known}, or cuda:1.")
    if kind == "auto":
        device = kind = "cuda" if torch.cuda.is_available() else "mps" if mps_available() else "cpu"
    if kind == "cuda":
        count = torch.cuda.device_count()
        if count == 0:
            raise ValueError("there is no CUDA device that this PyTorch can use; try --device=cpu.")
        if index and int(index) >= count:
            raise ValueError(f"there is no {device} here; there are {count}, from cuda:0 on.")
        if dtype == "bfloat16" and torch.cuda.get_device_capability(device) < (8, 0):
            raise ValueError("this GPU has no bfloat16; try --dtype=float16 or --dtype=float32.")
    if kind == "mps" and not mps_available():
        raise ValueError("there is no MPS device here that this PyTorch can use; try --device=cpu.")
    if dtype not in DTYPES:
        raise ValueError(f"the dtype {dtype} is not known; choose one of {', '.join(DTYPES)}.")
    why_not = cannot_compile(device) if compile else ""
    notes = (f"Not compiled: {why_not}; going on without.",) if why_not else ()
    return Machine(device, dtype, compile and not why_not, notes)


def keep_freed_memory(largest: int = 0) -> bool:
    """Let this process keep what large tensors leave behind, for the next ones; whether that could
    be told. largest: the bytes of the largest matrix of weights.

    Left alone, glibc gives every freed piece above 32 MiB back to the system and takes it anew,
    page by page, for the next step. Where a matrix is larger than that, it stays so: its gradient
    and what the optimizer remembers lie between the pieces that come and go, and the holes that
    they leave would add a quarter to the memory of a run. Whoever sets malloc by the environment
    (man mallopt: MALLOC_..., GLIBC_TUNABLES) has it as set there. Other systems do as they do.
    """
    if largest > PIECE:
        return False
    set_there = any(name.startswith("MALLOC_") for name in os.environ)
    if set_there or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = of_glibc("mallopt")
    return bool(mallopt and mallopt(TRIM_THRESHOLD, -1) and mallopt(MMAP_MAX, 0))


def give_freed_memory_back() -> None:
    """All that was kept, to the system: what comes after a training has other needs."""
    if trim := of_glibc("malloc_trim"):
        trim(0)


def of_glibc(name: str):
    """A function of the C library, or None where it has none of that name, as musl."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def mps_available() -> bool:
    return torch.backends.mps.is_available()


def cannot_compile(device: str) -> str:
    """Why torch.compile will not work on this device, or ''. The last word has a trial."""
    kind = device.split(":")[0]
    if kind == "cpu" and platform.system() == "Windows" and not shutil.which("cl"):
        return "torch.compile on Windows needs the compiler cl on the PATH"
    if kind == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        return "torch.compile needs a C++ compiler and there is none on the PATH"
    if kind == "cuda" and torch.cuda.get_device_capability(device) < (7, 0):
        return f"{torch.cuda.get_device_name(device)} is too old for torch.compile"
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # whatever the compiler throws, training can go on without it
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
        return f"a trial of torch.compile failed ({reason})"
    return ""
