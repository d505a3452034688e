"""The loss of a model, measured over whole splits: no sampling of batches, no carried state."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import data
from makemore.model import IGNORED, LanguageModel

from .machine import Machine
from .processes import Processes

ALONE = Processes()
LEARNED = 32768  # targets of the training split that are judged, of a text


def to_device(batch: tuple[np.ndarray, ...], device: str) -> list[Tensor]:
    """The arrays of a batch as tensors. To a GPU they go while this process goes on."""
    tensors = [torch.from_numpy(array) for array in batch]
    if device.startswith("cuda"):  # which fetches them itself, from memory that stays in its place
        return [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]
    return [tensor.to(device) for tensor in tensors]


def mean_loss(
    model: LanguageModel, groups: Sequence, machine: Machine, processes: Processes = ALONE
) -> tuple[float, int]:
    """Mean nats over all targets of a list of batches, and their number; the model is in eval.

    Several processes take turns. All make as many steps, since they may hold a model together.
    """
    total, count = 0.0, 0
    rounds = range(processes.rank, processes.rank + len(groups), processes.world)
    hidden = None if processes.first else True
    with no_gradient(processes), machine.autocast():
        for number in tqdm(rounds, "evaluating", disable=hidden, leave=False, delay=2):
            batch = groups[min(number, len(groups) - 1)]
            loss = model.loss(*to_device(batch, machine.device)).item()
            if number < len(groups):
                counted = int((batch[1] != IGNORED).sum())
                total += counted * loss
                count += counted
    total, count = processes.total(total, count)
    return total / count, int(count)


def no_gradient(processes: Processes):
    """Inference mode, which weights that are parted among processes do not take."""
    return torch.no_grad() if processes.shard else torch.inference_mode()


def evaluate_splits(
    model, tokenizer, dataset: data.Dataset, block_size: int, machine: Machine,
    processes: Processes = ALONE, val_loss: float | None = None,
) -> dict[str, float | None]:
    """train_loss, val_loss, test_loss (None if there is no such split), bits_per_char and _byte.

    Losses in nats per token; of the training split of a text over as many tokens as validation has,
    at most LEARNED.
    Bits are those of test, or of val where there is none. val_loss: if it is known already.
    """
    result: dict[str, float | None] = {}
    tokens = {}
    for split in ("val", "test", "train"):
        shortened = split == "train" and dataset.kind == "text"
        most = min(tokens["val"], LEARNED) if shortened else None
        groups = data.evaluation_batches(dataset, tokenizer, split, block_size, most=most)
        result[f"{split}_loss"] = None
        if groups:
            tokens[split] = sum(int((batch[1] != IGNORED).sum()) for batch in groups)
            known = val_loss if split == "val" else None
            loss = mean_loss(model, groups, machine, processes)[0] if known is None else known
            result[f"{split}_loss"] = loss
    judged = "val" if result["test_loss"] is None else "test"
    bits = result[f"{judged}_loss"] * tokens[judged] / math.log(2)
    characters, size = data.extent(dataset, tokenizer, judged, block_size)
    return result | {"bits_per_char": bits / characters, "bits_per_byte": bits / size}
