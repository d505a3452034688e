"""Runs a clone of makemore as it is, for comparisons: its own script, model and generate().

The clone is never changed. makemore logs to tensorboard; a stand-in that logs nothing takes its
place, so that the comparison needs no package of its own and costs makemore nothing.
"""

import argparse
import contextlib
import io
import runpy
import sys
import types
from pathlib import Path

import numpy as np
import torch

SPLIT_SEED = 3407  # makemore's default, which decides its split


def prepare(clone: Path, arguments: list[str]) -> None:
    """Let `import makemore` and runs of the script find what they need."""
    if not (clone / "makemore.py").is_file():
        raise ValueError(f"{clone} has no makemore.py; give the folder of a clone of makemore.")
    board = types.ModuleType("torch.utils.tensorboard")

    class SummaryWriter:
        def __init__(self, *args, **options): ...

        def add_scalar(self, *args): ...

        def flush(self): ...

    board.SummaryWriter = SummaryWriter
    sys.modules["torch.utils.tensorboard"] = board
    sys.argv = ["makemore.py", *arguments]


def run_script(clone: Path, arguments: list[str]) -> dict:
    """makemore.py as a program, to its end; its globals."""
    prepare(clone, arguments)
    return runpy.run_path(str(clone / "makemore.py"), run_name="__main__")


def load(clone: Path, kind: str, vocab_size: int, block_size: int, weights: Path | None):
    """The module of the clone and a model of its default sizes, in evaluation mode."""
    prepare(clone, [])
    names = runpy.run_path(str(clone / "makemore.py"), run_name="makemore")
    config = names["ModelConfig"](
        vocab_size=vocab_size, block_size=block_size, n_layer=4, n_head=4, n_embd=64, n_embd2=64
    )
    classes = {"bigram": "Bigram", "mlp": "MLP", "bow": "BoW", "transformer": "Transformer"}
    if kind in ("rnn", "gru"):
        model = names["RNN"](config, cell_type=kind)
    else:
        model = names[classes[kind]](config)
    if weights:
        model.load_state_dict(torch.load(weights, weights_only=True))
    return names, model.eval()


@torch.inference_mode()
def mean_loss(model, lines: list[str]) -> float:
    """Mean nats per token over lines of a-z, end token included, as this project measures it."""
    longest = max(map(len, lines)) + 1
    tokens = np.zeros((len(lines), longest), np.int64)
    targets = np.full((len(lines), longest), -1, np.int64)
    for row, line in enumerate(lines):
        ids = [ord(character) - ord("a") + 1 for character in line]
        tokens[row, 1 : len(ids) + 1] = ids
        targets[row, : len(ids) + 1] = [*ids, 0]
    return model(torch.from_numpy(tokens), torch.from_numpy(targets))[1].item()


def main() -> None:
    """python -m benchmarks.makemore_peer CLONE ARGUMENT ...: makemore's script, hushed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("clone", type=Path)
    arguments, rest = parser.parse_known_args()
    with contextlib.redirect_stdout(io.StringIO()):
        run_script(arguments.clone, rest)


if __name__ == "__main__":
    main()
