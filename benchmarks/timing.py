"""What the benchmarks of kernels share: times in turn, peak memory, bandwidth, the floor."""

import datetime
import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

from data import runs

FLUSH = 2**28  # bytes written before each run, more than a GPU's cache holds
H200 = {"flops": 989e12, "bandwidth": 4.8e12}  # bfloat16 without sparsity; bytes a second
NO_GPU = ("There is no GPU here, so this is counted, not measured: operations, bytes of inputs and "
          "outputs, and the least time for them at an H200's 989 TFLOP/s and 4.8 TB/s.")


def seconds(job: Callable, device: str) -> float:
    """Of one run, with the cache of the GPU emptied before it."""
    if device == "cpu":
        began = time.perf_counter()
        job()
        return time.perf_counter() - began
    torch.empty(FLUSH, dtype=torch.int8, device=device).zero_()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    job()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def peak(job: Callable, device: str) -> int | None:
    """Bytes that are allocated during a run, at most, beyond those before it; on a CPU None."""
    if device == "cpu":
        job()
        return None
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    job()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def contest(
    makers: dict[str, Callable[[], Callable]], rounds: int, device: str,
    error: Callable[[object], float],
) -> dict[str, dict]:
    """The contenders in turn, round by round: seconds (the median), peak bytes, error.

    makers: of each a function that returns its job, which is run twice before it counts. error: of
    what a job returns. A contender that fails, and be it for want of memory, has a "failed" alone.
    """
    results: dict[str, dict] = {}
    jobs = {}
    for name, make in makers.items():
        try:
            job = make()
            found = error(job())
            results[name] = {"error": found, "peak": peak(job, device), "seconds": []}
            jobs[name] = job
        except Exception as failure:  # whatever it is, the others go on
            results[name] = {"failed": reason(failure)}
            if device != "cpu":
                torch.cuda.empty_cache()
    for _ in range(rounds):
        for name, job in jobs.items():
            results[name]["seconds"].append(seconds(job, device))
    for name in jobs:
        results[name]["seconds"] = statistics.median(results[name]["seconds"])
    return results


def reason(failure: Exception) -> str:
    """What a contender failed of, on one line."""
    first = (str(failure).strip().splitlines() or [""])[0]
    return f"{type(failure).__name__}: {first}"[:150]


def bandwidth(device: str, size: int = 2**30) -> float:
    """Bytes a second, read and written, of a large copy: the median of 20."""
    size = size if device != "cpu" else 2**24
    source = torch.zeros(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    times = [seconds(lambda: target.copy_(source), device) for _ in range(23)][3:]
    return 2 * size / statistics.median(times)


def floor(flops: float, size: float) -> float:
    """Seconds that an H200 needs at least, for so many operations and bytes."""
    return max(flops / H200["flops"], size / H200["bandwidth"])


def about(device: str) -> dict:
    """The date, versions and the GPU of a measurement; of Triton None where it is not installed."""
    try:
        from triton import __version__ as triton
    except ImportError:
        triton = None
    found = {"date": datetime.date.today().isoformat(), "environment": runs.environment(),
             "triton": triton}
    if device != "cpu":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda,
                  "cudnn": torch.backends.cudnn.version(), "driver": driver()}
    return found


def driver() -> str | None:
    """The version of NVIDIA's driver, if its tool is there to say it."""
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip().splitlines()[0]


def save(path: Path | None, name: str, result: dict) -> None:
    """Put a result into a file of several, each with its own date."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text("utf-8")) if path.exists() else {}
    runs.write_json(path, before | {name: result})


def gib(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**30:.2f}"
