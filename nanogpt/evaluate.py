"""The loss of a model, measured over whole splits: no sampling of batches, no carried state."""

import math

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import data
from makemore.model import IGNORED, LanguageModel

from .machine import Machine


def to_device(batch: tuple[np.ndarray, ...], device: str) -> list[Tensor]:
    """The arrays of a batch as tensors."""
    return [torch.from_numpy(array).to(device) for array in batch]


def mean_loss(model: LanguageModel, groups: list, machine: Machine) -> tuple[float, int]:
    """Mean nats over all targets of a list of batches, and their number; the model is in eval."""
    total, count = 0.0, 0
    with torch.inference_mode(), machine.autocast():
        for batch in tqdm(groups, "evaluating", disable=None, leave=False, delay=2):
            counted = int((batch[1] != IGNORED).sum())
            total += counted * model.loss(*to_device(batch, machine.device)).item()
            count += counted
    return total / count, count


def evaluate_splits(model, tokenizer, dataset: data.Dataset, block_size: int, machine: Machine):
    """train_loss, val_loss, test_loss (None if there is no such split), and bits_per_char: a dict.

    Losses in nats per token. Bits per character are those of test, or of val where there is none.
    """
    result: dict[str, float | None] = {}
    for split in ("train", "val", "test"):
        groups = data.evaluation_batches(dataset, tokenizer, split, block_size)
        result[f"{split}_loss"] = None
        if groups:
            loss, tokens = mean_loss(model, groups, machine)
            characters = data.characters(dataset, split, block_size)
            result[f"{split}_loss"] = loss
            result["bits_per_char"] = loss * tokens / math.log(2) / characters
    return result
