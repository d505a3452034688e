"""Runs the model of a clone of nanoGPT as it is, for comparisons: its GPT and its generate().

The clone is never changed.
"""

import contextlib
import io
import runpy
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
