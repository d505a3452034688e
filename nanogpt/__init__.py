"""The last rung: GPT, and what every rung shares with it: settings, device, optimizers, evaluation.

    model = build("gpt", vocab_size, block_size, layers=4, heads=4, width=128)

`build` makes every stage, those of makemore/ too.
"""

import inspect

import makemore
from data.cli import nearest

STAGES = [*makemore.STAGES, "gpt"]


def sizes(stage: str, backend: str = "torch") -> dict[str, int | float | str | bool]:
    """The sizes that a stage can be given, with their defaults. ValueError: no such stage."""
    if stage in makemore.STAGES:
        return makemore.sizes(stage, backend)
    if stage == "gpt" and backend != "torch":
        others = ", ".join(makemore.BACKENDS[backend])
        raise ValueError(f"the stage gpt has no {backend} version; these have: {others}.")
    if stage != "gpt":
        guess = nearest(stage, STAGES)
        raise ValueError(f"there is no stage {stage}.{guess} The stages are {', '.join(STAGES)}.")
    from .gpt import GPT  # here, for whoever only wants its name

    return makemore.defaults(GPT)


def build(stage: str, vocab_size: int, block_size: int, backend: str = "torch", **given):
    """A stage with its weights at random, from PyTorch's default generator: a LanguageModel.

    ValueError: no such stage, a size that the stage does not have, or one that cannot work.
    """
    if stage in makemore.STAGES:
        return makemore.build(stage, vocab_size, block_size, backend, **given)
    makemore.check_sizes(stage, sizes(stage, backend), vocab_size, block_size, given)
    from .gpt import GPT

    return GPT(vocab_size, block_size, **given)
