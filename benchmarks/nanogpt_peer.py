"""Runs a clone of nanoGPT as it is, for comparisons: its GPT, its generate() and its train.py.

    python -m benchmarks.nanogpt_peer COPY FLAG ...     its train.py, and what it took, as JSON

The clone is never changed: a training works in a copy of it.
"""

import contextlib
import io
import json
import os
import re
import runpy
import shutil
import sys
from pathlib import Path

import torch


def load(clone: Path, vocab_size: int, block_size: int, layers: int, heads: int, width: int):
    """A GPT of the clone with weights at random, in evaluation mode. ValueError: no clone there."""
    path = clone / "model.py"
    names = runpy.run_path(str(path), run_name="model") if path.is_file() else {}
    if not {"GPT", "GPTConfig"} <= names.keys():
        raise ValueError(f"{clone} has no model.py of nanoGPT; give the folder of a clone of it.")
    config = names["GPTConfig"](
        vocab_size=vocab_size, block_size=block_size, n_layer=layers, n_head=heads, n_embd=width
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it says how many parameters it has
        return names["GPT"](config).eval()


@torch.inference_mode()
def draw(model, prompt: int, tokens: int) -> None:
    """Draw so many tokens after a prompt of so many, as the clone's sample.py does on a CPU."""
    model.generate(torch.zeros(1, prompt, dtype=torch.long), tokens)


def copy_of(clone: Path, folder: Path) -> Path:
    """The clone again, to be written into; the folder. ValueError: no clone there."""
    if not (clone / "train.py").is_file():
        raise ValueError(f"{clone} has no train.py of nanoGPT; give the folder of a clone of it.")
    shutil.copytree(clone, folder, ignore=shutil.ignore_patterns(".git", "out*"))
    return folder


def run_training(folder: Path, flags: list[str]) -> dict:
    """Its train.py to the end: seconds of every step as it says them, parameters, the most memory
    of the process, and of a GPU the bytes that were allocated at most and are still: peak, kept."""
    sys.argv = ["train.py", *flags]
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        names = runpy.run_path("train.py", run_name="__main__")
    seconds = [float(time) / 1000 for time in re.findall(r"time ([\d.]+)ms", said.getvalue())]
    from nanogpt.estimate import most_used  # only now: the memory is that of nanoGPT
    from nanogpt.machine import choose

    memory = most_used(choose("cpu"))
    on_gpu = torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0
    return {
        "parameters": sum(p.numel() for p in names["raw_model"].parameters()),
        "step_seconds": seconds,
        "memory": memory,
        "peak": torch.cuda.max_memory_allocated() if on_gpu else None,
        "kept": torch.cuda.memory_allocated() if on_gpu else None,
    }


if __name__ == "__main__":
    print(json.dumps(run_training(Path(sys.argv[1]).resolve(), sys.argv[2:])))
