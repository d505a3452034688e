"""Texts to batches of token ids: pure functions of (seed, step), so that a run can be resumed.

A batch is (tokens, targets), or (tokens, targets, segments) where a row may hold several documents,
each (B, T) int64: the inputs, the tokens that follow them, and which document an input belongs
to. A target of -1 is not counted.
"""

from functools import lru_cache

import numpy as np

from .sets import Dataset
from .tokenizer import END


@lru_cache(maxsize=4)  # memory only: the result follows from the arguments
def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order (n,) in which an epoch visits n items; read-only."""
    permutation = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n)
    permutation.flags.writeable = False
    return permutation


def items(seed: int, step: int, batch_size: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The epochs (B,) and items (B,) of a step's rows, out of n items visited epoch by epoch."""
    epochs, places = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), n)
    chosen = np.empty_like(places)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        rows = epochs == epoch
        chosen[rows] = order(seed, epoch, n)[places[rows]]
    return epochs, chosen


class LineBatches:
    """Batches of lines: END c1..cn predicts c1..cn END. An epoch sees every line once.

    A line longer than block_size is cut to its first block_size inputs and targets. one_shape: T
    is the longest of all lines in every batch, as compiled code wants it.
    """

    def __init__(
        self, lines: list[list[int]], block_size: int, batch_size: int, one_shape: bool = False
    ):
        assert lines and block_size > 0 and batch_size > 0
        self.batch_size = batch_size
        self.lengths = np.array([min(len(ids) + 1, block_size) for ids in lines])
        # All lines in one row, END before each: a line's last target is the END of the next.
        flat: list[int] = []
        starts = []
        for ids in lines:
            starts.append(len(flat))
            flat.append(END)
            flat.extend(ids[:block_size])
        flat.extend([END] * (int(self.lengths.max()) + 1))  # room for the last line's padding
        self.flat, self.starts = np.array(flat, dtype=np.int64), np.array(starts)
        self.one_shape = one_shape

    def __call__(self, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """tokens, targets (batch_size, T) of a step; T is the longest of its lines."""
        return self.rows(items(seed, step, self.batch_size, len(self.starts))[1])

    def rows(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """tokens, targets (B, T) of the chosen lines (B,), padded with END and -1."""
        lengths = self.lengths[chosen, None]
        columns = np.arange((self.lengths if self.one_shape else lengths).max())
        at = self.starts[chosen, None] + columns
        inside = columns < lengths
        return np.where(inside, self.flat[at], END), np.where(inside, self.flat[at + 1], -1)


class TextBatches:
    """Batches of windows of block_size tokens that do not overlap within an epoch.

    Every epoch cuts the text anew from a random phase, so that windows begin anywhere in time.
    separated: documents begin with END, and batches have segments.
    """

    def __init__(
        self, ids: np.ndarray, block_size: int, batch_size: int, separated: bool = False
    ):
        assert block_size > 0 and batch_size > 0
        if len(ids) < block_size + 1:
            raise ValueError(f"the text has {len(ids)} tokens, too few for a window of block size "
                             f"{block_size} and its last target; lower the block size to at "
                             f"most {max(len(ids) - 1, 1)}, or give a longer text")
        self.ids, self.block_size, self.batch_size = ids, block_size, batch_size
        self.separated = separated
        # All epochs have as many windows; the phases are at least block_size where the text is
        # long enough, and so many that the latest window ends with the text.
        self.windows = max(1, (len(ids) - block_size) // block_size)
        self.phases = len(ids) - self.windows * block_size

    def phase(self, seed: int, epoch: int) -> int:
        """Where the first window of an epoch begins."""
        # The third number keeps this draw apart from the one in order().
        return int(np.random.Generator(np.random.PCG64([seed, epoch, 1])).integers(self.phases))

    def __call__(self, seed: int, step: int) -> tuple[np.ndarray, ...]:
        """tokens, targets and perhaps segments (batch_size, block_size) of a step."""
        epochs, chosen = items(seed, step, self.batch_size, self.windows)
        first, last = int(epochs[0]), int(epochs[-1])
        phases = np.array([self.phase(seed, epoch) for epoch in range(first, last + 1)])
        starts = phases[epochs - first] + chosen * self.block_size
        return windows(self.ids, starts, self.block_size, self.separated)


def windows(
    ids: np.ndarray, starts: np.ndarray, length: int, separated: bool
) -> tuple[np.ndarray, ...]:
    """tokens, targets and, if separated, segments (B, length) of the windows at starts (B,)."""
    at = starts[:, None] + np.arange(length)
    tokens, targets = ids[at].astype(np.int64), ids[at + 1].astype(np.int64)
    if not separated:
        return tokens, targets
    return tokens, targets, np.cumsum(tokens == END, axis=1)


def split_ids(dataset: Dataset, tokenizer, split: str) -> np.ndarray:
    """All tokens of a split in a row, int64; END before each document if they are separated."""
    ids: list[int] = []
    for document in dataset.splits[split]:
        if dataset.separated:
            ids.append(END)
        ids.extend(tokenizer.encode(document))
    return np.array(ids, dtype=np.int64)


def batches(
    dataset: Dataset,
    tokenizer,
    block_size: int,
    batch_size: int,
    split: str = "train",
    one_shape: bool = False,
):
    """The training batches of a split, a function of (seed, step)."""
    if dataset.kind == "lines":
        lines = [tokenizer.encode(line) for line in dataset.splits[split]]
        return LineBatches(lines, block_size, batch_size, one_shape)
    ids = split_ids(dataset, tokenizer, split)
    return TextBatches(ids, block_size, batch_size, dataset.separated)


def evaluation_batches(dataset: Dataset, tokenizer, split: str, block_size: int,
                       tokens_per_batch: int = 8192) -> list[tuple[np.ndarray, ...]]:
    """A list of batches that covers a split once; an empty split gives none.

    Lines are cut at block_size and batched by length, so that little is padding. Text is cut
    into windows of block_size from its start, the last one shorter in a batch of its own.
    """
    if not dataset.splits[split]:
        return []
    if dataset.kind == "lines":
        lines = batches(dataset, tokenizer, block_size, 1, split)
        left = np.argsort(-lines.lengths, kind="stable")
        groups = []
        while len(left):
            rows = max(1, tokens_per_batch // int(lines.lengths[left[0]]))
            groups.append(lines.rows(left[:rows]))
            left = left[rows:]
        return groups
    ids = split_ids(dataset, tokenizer, split)
    full, rest = divmod(len(ids) - 1, block_size)
    starts, rows = np.arange(full) * block_size, max(1, tokens_per_batch // block_size)
    cuts = [(starts[i:i + rows], block_size) for i in range(0, full, rows)]
    cuts += [(np.array([full * block_size]), rest)] if rest else []
    return [windows(ids, begin, length, dataset.separated) for begin, length in cuts]


def characters(dataset: Dataset, split: str, block_size: int | None = None) -> int:
    """How many characters the targets of evaluation_batches stand for.

    Bits per character are the total nats / ln 2 / this. The end of a line or document counts as
    one. block_size: that of a model on characters, for lines that are cut there.
    """
    counts = [len(item) + 1 for item in dataset.splits[split]]
    if dataset.kind == "lines":
        return sum(min(count, block_size or count) for count in counts)
    # Of a text the first token is not predicted: the first END, or else the first character.
    return max(0, sum(counts) - 1 - (not dataset.separated))


def longest(dataset: Dataset) -> int:
    """Characters of the longest line (or document) of all splits."""
    return max(len(item) for split in dataset.splits.values() for item in split)


def default_block_size(dataset: Dataset) -> int:
    """Tokens of context if the user names none: a whole line up to 256, or 64 of a text."""
    return min(longest(dataset) + 1, 256) if dataset.kind == "lines" else 64
