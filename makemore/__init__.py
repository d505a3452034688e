"""The ladder: seven language models, one idea a stage, on one contract (model.py).

The first two stand in NumPy too, in without_torch/, and nothing there waits for PyTorch: so the
stages are imported when they are asked for.
"""

import inspect
from importlib import import_module

from data.cli import nearest

STAGES = {  # and the class in the file of that name
    "bigram": "Bigram",
    "mlp": "MLP",
    "cnn": "CNN",
    "rnn": "RNN",
    "lstm": "LSTM",
    "gru": "GRU",
    "transformer": "Transformer",
}
BACKENDS = {"torch": tuple(STAGES), "numpy": ("bigram", "mlp")}


def stage_class(stage: str, backend: str = "torch") -> type:
    """The class of a stage. ValueError: no such stage, or not in this backend."""
    if stage not in STAGES:
        guess = nearest(stage, STAGES)
        raise ValueError(f"there is no stage {stage}.{guess} The stages are {', '.join(STAGES)}.")
    if stage not in BACKENDS[backend]:
        others = ", ".join(BACKENDS[backend])
        raise ValueError(f"the stage {stage} has no {backend} version; these have: {others}.")
    package = __name__ if backend == "torch" else f"{__name__}.without_torch"
    return getattr(import_module(f"{package}.{stage}"), STAGES[stage])


def sizes(stage: str, backend: str = "torch") -> dict[str, int | float | str]:
    """The sizes that a stage can be given, with their defaults. ValueError as in stage_class."""
    return defaults(stage_class(stage, backend))


def defaults(model: type) -> dict[str, int | float | str]:
    """What the __init__ of a model takes beside vocab_size and block_size, and its defaults."""
    parameters = inspect.signature(model).parameters.values()
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return {p.name: p.default for p in positional if p.default is not p.empty}


def build(
    stage: str, vocab_size: int, block_size: int, backend: str = "torch", **given: int | float | str
):
    """A stage with its weights at random, from PyTorch's default generator: a LanguageModel.

    ValueError: no such stage, a size that the stage does not have, or one that cannot work.
    """
    check_sizes(stage, sizes(stage, backend), vocab_size, block_size, given)
    model = stage_class(stage, backend)
    if backend == "numpy":
        from .bridge import FromNumpy

        return FromNumpy(model, vocab_size, block_size, **given)
    return model(vocab_size, block_size, **given)


def check_sizes(stage: str, allowed: dict, vocab_size: int, block_size: int, given: dict) -> None:
    """ValueError for a size that is not among the allowed ones (with their defaults), or of
    another kind than its default, or too small."""
    for name, value in {"vocab_size": vocab_size, "block_size": block_size, **given}.items():
        if name not in ("vocab_size", "block_size", *allowed):
            takes = ", ".join(allowed) or "none"
            raise ValueError(f"the stage {stage} has no size {name}; it takes {takes}.")
        default = allowed.get(name, 1)
        if isinstance(default, (str, bool)):
            if type(value) is not type(default):
                kind = "a name" if isinstance(default, str) else "true or false"
                raise ValueError(f"{name} must be {kind}, not {value!r}.")
            continue  # which names there are the stage knows
        if not isinstance(value, (int, float)):
            raise ValueError(f"{name} must be a number, not {value!r}.")
        if name == "dropout" and not 0 <= value < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {value}.")
        least = min(default, 1)
        if isinstance(default, int) and (not isinstance(value, int) or value < least):
            raise ValueError(f"{name} must be a whole number of at least {least}, not {value}.")
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be at least 0, not {value}.")
