"""The ladder: seven language models, one idea a stage, on one contract (model.py)."""

import inspect

from data.cli import nearest

from .bigram import Bigram
from .cnn import CNN
from .gru import GRU
from .lstm import LSTM
from .mlp import MLP
from .model import IGNORED, LanguageModel, State
from .rnn import RNN
from .transformer import Transformer

STAGES = {
    "bigram": Bigram,
    "mlp": MLP,
    "cnn": CNN,
    "rnn": RNN,
    "lstm": LSTM,
    "gru": GRU,
    "transformer": Transformer,
}


def sizes(stage: str) -> dict[str, int | float]:
    """The sizes that a stage can be given, with their defaults. ValueError: no such stage."""
    if stage not in STAGES:
        guess = nearest(stage, STAGES)
        raise ValueError(f"there is no stage {stage}.{guess} The stages are {', '.join(STAGES)}.")
    parameters = inspect.signature(STAGES[stage]).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def build(stage: str, vocab_size: int, block_size: int, **given: int | float) -> LanguageModel:
    """A stage with its weights at random, from PyTorch's default generator.

    ValueError: no such stage, a size that the stage does not have, or one that cannot work.
    """
    allowed = sizes(stage)
    for name, value in {"vocab_size": vocab_size, "block_size": block_size, **given}.items():
        if name not in ("vocab_size", "block_size", *allowed):
            takes = ", ".join(allowed) or "none"
            raise ValueError(f"the stage {stage} has no size {name}; it takes {takes}.")
        if not isinstance(value, (int, float)):
            raise ValueError(f"{name} must be a number, not {value!r}.")
        if name == "dropout" and not 0 <= value < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {value}.")
        if name != "dropout" and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, not {value}.")
    return STAGES[stage](vocab_size, block_size, **given)
