"""Which texts a run has learned from: a score on these flatters, so it is said with it.

The checkpoints of a finetuned run hold 64 bits of the hash of every text that finetuning trained
and validated on; the text that was pretrained on is loaded again. A text is one message, or those
of a conversation up to what is asked; it counts as the tokenizer reads it.
"""

import hashlib
import json

import torch
from torch import Tensor

import data

from .pretrained import legible

WINDOW = 20  # characters. A text of less than twice as many stands in a longer one by chance too

Text = tuple[str, ...]


def readable(texts: list[Text], tokenizer: data.Tokenizer) -> list[Text]:
    """The texts as the tokenizer reads them."""
    return [tuple(legible(tokenizer, message) for message in text) for text in texts]


def key(text: Text) -> int:
    """64 bits of its SHA-256, as an int64."""
    digest = hashlib.sha256(json.dumps(text).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def remember(splits: dict[str, list[Text]], before: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The keys (N,) of the texts of train and val, with those of a finetuning before this one."""
    def of(split: str) -> Tensor:
        earlier = before[split].tolist() if before else []
        return torch.tensor(sorted({*map(key, splits[split]), *earlier}), dtype=torch.int64)

    return {split: of(split) for split in ("train", "val")}


def look(
    texts: list[Text], learned: dict[str, Tensor] | None, text: data.Dataset | None
) -> dict[str, int | None]:
    """How many of the texts stand in "train" and "val" of finetuning, and in "pretraining".

    learned: of `remember`, or {} of a run that was not finetuned. text: what was pretrained on.
    None: that is not known.
    """
    found: dict[str, int | None] = {}
    for split in ("train", "val"):
        known = set(learned[split].tolist()) if learned else set()
        found[split] = None if learned is None else sum(key(one) in known for one in texts)
    return found | {"pretraining": in_pretraining(texts, text)}


def in_pretraining(texts: list[Text], text: data.Dataset | None) -> int | None:
    """How many of the texts have a message that stands in the training split of a dataset.

    None without a dataset, or of one that is streamed, too large to be looked through.
    """
    train = text.splits["train"] if text else None
    if not isinstance(train, list):
        return None
    items, whole = set(train), "\0".join(train)
    # what is twice as long as a window has all of one in it, wherever it stands: so most of what
    # stands nowhere is known at once
    windows = {whole[i:i + WINDOW] for i in range(0, len(whole), WINDOW)}

    def stands(message: str) -> bool:
        if message in items or text.kind == "lines" or len(message) < 2 * WINDOW:
            return message in items
        begins = (message[i:i + WINDOW] for i in range(WINDOW))
        return any(begin in windows for begin in begins) and message in whole

    return sum(any(map(stands, messages)) for messages in texts)


def notes(found: dict[str, int | None], number: int, where: str) -> list[str]:
    """What the user should be told of so many texts."""
    places = {"train": "the training split of finetuning", "val": "its validation split",
              "pretraining": "the text that the run was pretrained on"}
    return [f"{found[name]:,} of the {number:,} texts of {where} stand in {place}, which flatters"
            for name, place in places.items() if found[name]]
