"""The pretrained run that finetuning begins with, the text it was pretrained on, and replay of it.
"""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import data
import nanogpt
import sample
from data import runs
from makemore.model import IGNORED, LanguageModel
from nanogpt import attention
from nanogpt.evaluate import mean_loss
from nanogpt.machine import Machine
from nanogpt.settings import Config, restore_config

JUDGED = 200_000  # tokens of the pretraining text that its loss is taken of, at most
FORMAT = 2  # of texts and messages in tokens; 1 had neither TURN after a text nor a space before
LONGEST = 2048  # tokens of a row, if the user names no block size


@dataclass
class Pretrained:
    """A run to begin with. config: its settings, with the sizes that it is finetuned in.

    block_size, optimizer: those of pretraining. text: what was pretrained on, or None where it is
    not to be had; note: why not. learned: of a run that was finetuned before, see seen.py.
    """

    path: Path
    config: Config
    tokenizer: data.Tokenizer
    weights: dict[str, torch.Tensor]
    block_size: int
    optimizer: str
    text: data.Dataset | None
    note: str = ""
    learned: dict[str, torch.Tensor] | None = None

    def build(self, pretrained: bool = True, seed: int = 0) -> LanguageModel:
        """The model, with the weights of the run, or with random ones."""
        torch.manual_seed(seed)
        sizes = (self.tokenizer.vocab_size, self.config.block_size)
        model = nanogpt.build(self.config.model, *sizes, **self.config.sizes)
        if pretrained:
            try:
                model.load_state_dict(self.weights)
            except RuntimeError as error:
                raise other_version(self.path, error) from None
        return model


def check_format(saved: dict) -> None:
    """ValueError: settings of a run that was finetuned in another format."""
    finetune = saved["finetune"]
    if finetune.get("format") != FORMAT:
        raise ValueError("this run was finetuned by another version of this project, which puts "
                         f"texts into other tokens; finetune {finetune['from']} anew.")


def other_version(path: Path, error: Exception) -> ValueError:
    """What to raise where a checkpoint does not hold what it should."""
    said = " ".join(str(error).split())[:200]
    return ValueError(f"{path} is damaged, or of another version ({said}).")


def load(
    path: Path, block_size: int | None = None, fits: int = 0, dropout: float | None = None,
    text: str | None = None, usual_dropout: float | None = None,
) -> Pretrained:
    """The run at a path, as it is to be finetuned.

    block_size: tokens of a row; None: that of the run, or `fits` if that is more and the model has
    no learned positions. dropout: None: usual_dropout, if that is given and the stage has one; else
    that of the run. text: where the pretraining text is, if not where the run says.
    ValueError: no such run, or of a wrong kind.
    """
    checkpoint = runs.load_checkpoint(path)
    saved = checkpoint["config"]
    if saved.get("finetune", {}).get("kind") == "classify":
        raise ValueError(f"{path} sorts texts already; begin with the run that it was made from, "
                         f"{saved['finetune']['from']}.")
    sample.check_speaks(checkpoint)
    if saved.get("backend", "torch") != "torch":
        raise ValueError(f"{path} is a model in NumPy, which is not finetuned; train one without "
                         "--backend=numpy.")
    try:
        config = restore_config(saved)
        tokenizer = data.tokenizer_from_dict(checkpoint["tokenizer"])
    except (KeyError, TypeError) as error:
        raise other_version(path, error) from None
    sizes = dict(config.sizes)
    if dropout is not None:
        if "dropout" not in nanogpt.sizes(config.model):
            raise ValueError(f"the stage {config.model} has no --dropout.")
        sizes["dropout"] = dropout
    elif usual_dropout is not None and "dropout" in nanogpt.sizes(config.model):
        sizes["dropout"] = usual_dropout
    learned = sizes.get("position") == "learned"
    if block_size is not None and block_size < 1:
        raise ValueError(f"--block-size must be at least 1, not {block_size}.")
    size = block_size or (config.block_size if learned else max(config.block_size, fits))
    if learned and size != config.block_size:
        raise ValueError(f"{path} has learned positions, {config.block_size} of them, so "
                         f"--block-size cannot be {size}.")
    weights = sample.weights_of(checkpoint)
    dataset, note = pretraining_text(saved, text)
    before = (config.block_size, config.optimizer)
    config = replace(config, sizes=sizes, block_size=size)
    return Pretrained(Path(path), config, tokenizer, weights, *before, dataset, note,
                      checkpoint.get("learned"))


def place(
    model: LanguageModel, stage: str, machine: Machine, asked: str = "auto"
) -> LanguageModel:
    """The model where it computes, with the attention that is asked for, or right there."""
    if stage in attention.STAGES:
        attention.use(model, attention.choose(asked, machine))
    return model.to(machine.device)


def pretraining_text(saved: dict, text: str | None) -> tuple[data.Dataset | None, str]:
    """The text of a run, or None and why."""
    source, lines = (text, False) if text else (saved["data"], saved["lines"])
    try:
        dataset = data.load(source, lines)
    except (ValueError, OSError):
        if text:
            raise
        return None, f"the pretraining text, {source}, is not here; name it with --replay-data"
    note = ""
    if not text and runs.fingerprint(dataset.splits) != saved.get("fingerprint"):
        note = f"{source} has changed since pretraining"
    return dataset, note


def pretraining_loss(
    model: LanguageModel, pretrained: Pretrained, machine: Machine
) -> float | None:
    """The loss on the validation split of the pretraining text, in nats per token; None without."""
    if pretrained.text is None:
        return None
    try:
        groups = data.evaluation_batches(
            pretrained.text, pretrained.tokenizer, "val", pretrained.block_size, most=JUDGED)
    except ValueError:  # the text has characters that the tokenizer has not
        return None
    was_training = model.training
    model.eval()
    loss = mean_loss(model, groups, machine)[0]
    model.train(was_training)
    return loss


class Replay:
    """Rows of the pretraining text, a function of (seed, step): tokens, targets, segments."""

    def __init__(self, pretrained: Pretrained, rows: int, length: int):
        """rows: of a step. length: tokens of a row, filled up where the text's rows are shorter.

        ValueError: the text is not to be had.
        """
        if pretrained.text is None:
            raise ValueError(f"there is nothing to --replay: {pretrained.note}.")
        size = min(length, pretrained.block_size)
        self.length, self.rows = length, rows
        self.batches = data.batches(pretrained.text, pretrained.tokenizer, size, rows)

    def __call__(self, seed: int, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        tokens, targets, *segments = self.batches(seed, step)
        segments = segments[0] if segments else np.zeros_like(tokens)
        return tuple(
            fill(array, self.length, value)
            for array, value in ((tokens, data.END), (targets, IGNORED), (segments, -1))
        )


def fill(array: np.ndarray, length: int, value: int) -> np.ndarray:
    """(B, T) -> (B, length), filled up with the value."""
    return np.pad(array, ((0, 0), (0, length - array.shape[1])), constant_values=value)


class Known(NamedTuple):
    """What a tokenizer can read of a text. unseen: characters that it has never seen, left out.
    lowered: capitals that it knows as small letters alone, and reads so."""

    ids: list[int]
    unseen: int = 0
    lowered: int = 0


def known_ids(tokenizer: data.Tokenizer, text: str) -> Known:
    """The ids of a text, and what became of the characters that the tokenizer has never seen."""
    if tokenizer.kind != "char":
        return Known(tokenizer.encode(text))
    read = legible(tokenizer, text)
    if read == text:
        return Known(tokenizer.encode(text))
    counts, known = Counter(text), set(tokenizer.characters)
    missing = counts.keys() - known
    lowered = sum(counts[c] for c in missing if known >= set(c.lower()))
    return Known(tokenizer.encode(read), sum(counts[c] for c in missing) - lowered, lowered)


def legible(tokenizer: data.Tokenizer, text: str) -> str:
    """A text in characters that the tokenizer knows: a capital that it has never seen becomes a
    small letter, and what it does not know in any way is left out."""
    if tokenizer.kind != "char":
        return text
    known = set(tokenizer.characters)
    small = {c: c.lower() for c in set(text) - known}
    return text.translate({ord(c): s if known >= set(s) else "" for c, s in small.items()})
