"""A language model with a head for labels, and texts with labels as its batches."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import data
from data.batches import items
from makemore.model import IGNORED, LanguageModel
from nanogpt.attention import STAGES
from nanogpt.evaluate import to_device
from nanogpt.machine import Machine

from . import tasks
from .pretrained import Known, Replay, known_ids

TOKENS = 16384  # of a batch that is only judged
POOLS = {"last": 0, "mean": 1, "quarters": 4}  # parts of a text whose means the head reads
SKEWED = 10  # times the rarest label: a commoner one is weighed less


class Classifier(nn.Module):
    """A language model with a head for labels on its features: tokens (B, T) -> logits (., K)."""

    def __init__(
        self, model: LanguageModel, classes: int, class_weights: Tensor | None = None,
        pool: str = "last",
    ):
        """class_weights (K,): how much an example of each label counts, 1 on average. pool: the
        head reads the features of the last token, with "mean" beside these the mean of all tokens
        so far (Howard & Ruder 2018), with "quarters" the mean of each quarter of them, for where
        something stands tells too (Lazebnik et al. 2006, of pictures)."""
        super().__init__()
        assert pool in POOLS
        self.model, self.pool, self.replay, self.early = model, pool, 0.0, 0.0
        device = next(model.parameters()).device
        with torch.inference_mode():
            width = model.features(torch.zeros(1, 1, dtype=torch.int64, device=device))[0].shape[2]
        self.head = nn.Linear(width * (1 + POOLS[pool]), classes, device=device)
        nn.init.zeros_(self.head.weight)  # at first all labels are as likely
        nn.init.zeros_(self.head.bias)
        weights = torch.ones(classes) if class_weights is None else class_weights
        self.register_buffer("class_weights", weights.to(device))

    def forward(self, tokens: Tensor, at: Tensor) -> Tensor:
        """Logits (N, K) at the N places where `at` (B, T) is true."""
        return self.head(self.reads(tokens, at))

    def reads(self, tokens: Tensor, at: Tensor) -> Tensor:
        """What the head takes at these places, (N, C) or with means (N, C (1 + parts))."""
        x, _ = self.model.features(tokens)
        if not POOLS[self.pool]:
            return x[at]
        rows, places = at.nonzero(as_tuple=True)
        sums = x.cumsum(1, dtype=torch.promote_types(x.dtype, torch.float32))
        sums = F.pad(sums, (0, 0, 1, 0))  # (B, T + 1, C): of the first t tokens
        edges = [(places + 1) * k // POOLS[self.pool] for k in range(POOLS[self.pool] + 1)]
        means = [(sums[rows, end] - sums[rows, begin]) / (end - begin).clamp(min=1)[:, None]
                 for begin, end in pairwise(edges)]
        return torch.cat([x[at], *(mean.to(x.dtype) for mean in means)], 1)

    def loss(self, tokens: Tensor, targets: Tensor, *replayed: Tensor) -> Tensor:
        """Mean nats of the labels, which stand in targets (B, T) where a text ends, else -1.

        While it trains, the share self.early of it is of the label at the tokens before, the later
        the more (Dai & Le 2015): so there is something to learn from wherever a text could end.
        replayed: a batch of the pretraining text; its loss has the share self.replay.
        """
        labels, ends = (several[:, None] for several in targets.max(1))
        early = self.early if self.training else 0.0
        places = torch.arange(targets.shape[1], device=targets.device)
        before = (places < ends) * (places + 1.0)
        before = before / before.sum(1, keepdim=True).clamp(min=1)
        shares = ((1 - early) * (places == ends) + early * before) / len(targets)
        at = shares > 0
        logits = self(tokens, at).float()
        every = labels.expand_as(targets)[at]
        each = F.cross_entropy(logits, every, self.class_weights, reduction="none")
        nats = (each * shares[at]).sum()
        if not replayed:
            return nats
        return (1 - self.replay) * nats + self.replay * self.model.loss(*replayed)


@dataclass
class Encoded:
    """A split in tokens. sequences: see `sequence`. labels: the right ones of each.

    cut: how many texts were longer than the block, and lost their ends. unseen: how many have
    characters that the tokenizer has never seen, and lost them; lowered: or capitals that became
    small letters.
    """

    sequences: list[list[int]]
    labels: list[tuple[int, ...]]
    cut: int = 0
    unseen: int = 0
    lowered: int = 0

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Each text, by its number, with each of its labels."""
        return [(i, label) for i, several in enumerate(self.labels) for label in several]


def encode(
    examples: list[tasks.Example], labels: list[str], tokenizer: data.Tokenizer, block_size: int,
    stage: str,
) -> Encoded:
    """ValueError: a text of which nothing is left, with where it stands in a file."""
    number = {label: i for i, label in enumerate(labels)}
    encoded = Encoded([], [])
    for example in examples:
        try:
            ids, unseen, lowered = sequence(example.text, tokenizer, stage)
        except ValueError as error:
            raise ValueError(f"{example.where}: {error}" if example.where else error) from None
        encoded.cut += len(ids) > block_size
        encoded.unseen += unseen > 0
        encoded.lowered += lowered > 0
        encoded.sequences.append(shortened(ids, block_size, stage))
        encoded.labels.append(tuple(number[label] for label in example.labels))
    return encoded


def ending(stage: str) -> list[int]:
    """What comes after every text. A stage with attention gets a token that stands in no text:
    whatever the text ends with, there it can look for what the label needs (Radford et al. 2018).
    Others know most where they have just read."""
    return [data.TURN] if stage in STAGES else []


def sequence(text: str, tokenizer: data.Tokenizer, stage: str) -> Known:
    """END, the tokens of a text and its ending, and what became of its unseen characters.

    ValueError: nothing is left.
    """
    ids, *changed = known_ids(tokenizer, text)
    if not ids:
        why = "the tokenizer of this run has never seen its characters" if text else "it is empty"
        raise ValueError(f"the text {text[:40]!r} cannot be sorted: {why}.")
    return Known([data.END, *ids, *ending(stage)], *changed)


def shortened(ids: list[int], length: int, stage: str) -> list[int]:
    """A sequence of at most so many tokens: a longer one loses the end of its text."""
    last = ending(stage)
    return ids if len(ids) <= length else ids[:length - len(last)] + last


def notes_of(encoded: Encoded, split: str, block_size: int) -> list[str]:
    """What the user should be told of a split."""
    notes, n = [], len(encoded.sequences)
    if encoded.cut:
        notes.append(f"{encoded.cut:,} of the {n:,} texts of {split} are longer than the block of "
                     f"{block_size} tokens; their ends are cut off")
    if encoded.unseen:
        notes.append(f"{encoded.unseen:,} of the {n:,} texts of {split} have characters that the "
                     "tokenizer of the run has never seen; these are left out")
    return notes


def note_of_capitals(number: int, what: str) -> list[str]:
    """What the user should be told of so many texts whose capitals became small letters."""
    return [f"{number:,} {what} have capitals that the tokenizer of the run has never seen; they "
            "are read as small letters"] if number else []


def padded(sequences: list[list[int]]) -> np.ndarray:
    """Rows of tokens (B, T), END after those that are shorter."""
    tokens = np.full((len(sequences), max(map(len, sequences))), data.END, dtype=np.int64)
    for row, ids in zip(tokens, sequences):
        row[:len(ids)] = ids
    return tokens


def batch_of(sequences: list[list[int]], labels: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """tokens, targets (B, T): the label stands at the last token of a text, else -1."""
    tokens = padded(sequences)
    targets = np.full_like(tokens, IGNORED)
    targets[np.arange(len(tokens)), [len(ids) - 1 for ids in sequences]] = labels
    return tokens, targets


class LabelBatches:
    """Batches of texts and labels, a function of (seed, step); perhaps with replayed text."""

    def __init__(self, encoded: Encoded, batch_size: int, replay: Replay | None = None):
        self.encoded, self.pairs = encoded, encoded.pairs
        self.batch_size, self.replay = batch_size, replay

    def __call__(self, seed: int, step: int) -> tuple[np.ndarray, ...]:
        _, chosen = items(seed, step, self.batch_size, len(self.pairs))
        batch = self.batch([self.pairs[i] for i in chosen])
        return batch + (self.replay(seed, step) if self.replay else ())

    def batch(self, pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        return batch_of([self.encoded.sequences[i] for i, _ in pairs], [n for _, n in pairs])


def by_length(lengths: list[int], most: int = TOKENS) -> list[list[int]]:
    """Items in groups of about one length, the longest first, each of at most so many tokens."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not groups or (len(groups[-1]) + 1) * lengths[groups[-1][0]] > most:
            groups.append([])
        groups[-1].append(i)
    return groups


def probabilities(
    classifier: Classifier, sequences: list[list[int]], machine: Machine
) -> np.ndarray:
    """The probability of every label for each text, (N, K) float64. The classifier is in eval."""
    assert not classifier.training
    return at_ends(classifier, sequences, machine, "sorting").double().softmax(1).numpy()


@torch.inference_mode()
def at_ends(
    of: Callable[[Tensor, Tensor], Tensor], sequences: list[list[int]], machine: Machine, doing: str
) -> Tensor:
    """What a function of tokens and places makes of the ends of the texts, (N, ...) on the CPU."""
    groups = by_length([len(ids) for ids in sequences])
    found = []
    for group in tqdm(groups, doing, leave=False, delay=2, disable=None):
        batch = batch_of([sequences[i] for i in group], [0] * len(group))
        tokens, targets = to_device(batch, machine.device)
        with machine.autocast():
            found.append(of(tokens, targets != IGNORED).cpu().float())
    order = [i for group in groups for i in group]
    return torch.cat(found)[np.argsort(order)]


def class_weights(labels: list[tuple[int, ...]], classes: int, balance: float) -> Tensor:
    """(K,): a label's count to the power -balance, so that an example counts 1 on average."""
    counts = Counter(label for several in labels for label in several)
    numbers = torch.tensor([counts[label] for label in range(classes)], dtype=torch.float64)
    weights = numbers.clamp(min=1) ** -balance
    return (weights * numbers.sum() / (weights * numbers).sum()).float()


def default_balance(labels: list[tuple[int, ...]]) -> float:
    """0.5 for a skewed set, else 0."""
    counts = Counter(label for several in labels for label in several).values()
    return 0.5 if max(counts) > SKEWED * min(counts) else 0.0
