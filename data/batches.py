"""Texts to batches of token ids: pure functions of (seed, step), so that a run can be resumed.

A batch is (tokens, targets), or (tokens, targets, segments) where a row may hold several documents,
each (B, T) int64: the inputs, the tokens that follow them, and which document an input belongs
to. A target of -1 is not counted.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from .cache import tokens_of
from .corpus import Streamed
from .sets import Dataset, size
from .tokenizer import END, Tokenizer

EVALUATED = 8192  # tokens at once, where nothing is learned from them


@lru_cache(maxsize=2)  # memory only: the result follows from the arguments
def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order (n,) in which an epoch visits n items; read-only."""
    permutation = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n)
    if n < 2**31:
        permutation = permutation.astype(np.int32)  # a large text has many millions of windows
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


def split_ids(dataset: Dataset, tokenizer: Tokenizer, split: str) -> np.ndarray:
    """All tokens of a split in a row, uint16 or uint32; END before each document if separated.

    Of a large text they are a read-only memory map, prepared once: see cache.py.
    """
    return tokens_of(dataset, tokenizer, split)


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


class Windows(Sequence):
    """The batches of all windows of a text, cut from its start, each made when it is asked for."""

    def __init__(self, ids: np.ndarray, block_size: int, rows: int, separated: bool):
        """rows: windows in a batch. The last window may be shorter, in a batch of its own."""
        self.ids, self.block_size, self.rows, self.separated = ids, block_size, rows, separated
        self.full, self.rest = divmod(max(len(ids) - 1, 0), block_size)

    def __len__(self) -> int:
        return -(-self.full // self.rows) + bool(self.rest)

    def __getitem__(self, i: int) -> tuple[np.ndarray, ...]:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        first = i % len(self) * self.rows
        if first >= self.full:
            starts, length = np.array([self.full * self.block_size]), self.rest
        else:
            starts = np.arange(first, min(first + self.rows, self.full)) * self.block_size
            length = self.block_size
        return windows(self.ids, starts, length, self.separated)

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        return (self[i] for i in range(len(self)))


def evaluation_batches(
    dataset: Dataset,
    tokenizer: Tokenizer,
    split: str,
    block_size: int,
    tokens_per_batch: int = EVALUATED,
    most: int | None = None,
) -> Sequence[tuple[np.ndarray, ...]]:
    """Batches that cover a split once, to be gone through as often as wanted; none if it is empty.

    Lines are cut at block_size and batched by length, so that little is padding. Text is cut
    into windows of block_size from its start, the last one shorter in a batch of its own.
    most: of a text no more than its first so many targets; of lines always all.
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
    rows = max(1, tokens_per_batch // block_size)
    return Windows(ids if most is None else ids[:most + 1], block_size, rows, dataset.separated)


def extent(
    dataset: Dataset,
    tokenizer: Tokenizer,
    split: str,
    block_size: int | None = None,
    most: int | None = None,
) -> tuple[int, int]:
    """How many characters and bytes the targets of evaluation_batches stand for.

    Total nats / ln 2 / one of them are bits per character and per byte, which can be compared
    across tokenizers. The end of a line or document counts as one of each. A character of several
    tokens counts with the first. block_size and most: as of evaluation_batches.
    """
    if dataset.kind == "lines":
        lines = ([*tokenizer.encode(line), END][:block_size] for line in dataset.splits[split])
        targets = np.array([i for line in lines for i in line], dtype=tokenizer.dtype)
    else:
        targets = split_ids(dataset, tokenizer, split)[1:][:most]
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for i in range(0, len(targets), 2**20):  # of a memory map never all at once
        counts += np.bincount(targets[i:i + 2**20], minlength=len(counts))
    texts = [tokenizer.decode_bytes([i]) if n else b"" for i, n in enumerate(counts)]
    # In UTF-8 every character has one byte that is not of the form 10xxxxxx: its first.
    begun = [sum(byte & 0xC0 != 0x80 for byte in text) for text in texts]
    ends = int(counts[END])
    return int(counts @ begun) + ends, int(counts @ list(map(len, texts))) + ends


def characters(dataset: Dataset, split: str, block_size: int | None = None) -> int:
    """How many characters the targets of evaluation_batches stand for.

    Bits per character are the total nats / ln 2 / this. The end of a line or document counts as
    one. block_size: that of a model on characters, for lines that are cut there.
    """
    if dataset.kind == "lines":
        counts = [len(item) + 1 for item in dataset.splits[split]]
        return sum(min(count, block_size or count) for count in counts)
    # Of a text the first token is not predicted: the first END, or else the first character.
    documents, number, _ = size(dataset.splits[split])
    return max(0, number + documents - 1 - (not dataset.separated))


def longest(dataset: Dataset) -> int:
    """Characters of the longest line (or document) of all splits; of a large text before it is cut.
    """
    return max(part.scan.longest if isinstance(part, Streamed) else max(map(len, part), default=0)
               for part in dataset.splits.values())


def default_block_size(dataset: Dataset, tokenizer: str = "char") -> int:
    """Tokens of context if the user names none: a whole line up to 256, or 64 of a text.

    tokenizer: its kind. Of byte pairs, at worst every byte of a line is a token.
    """
    if dataset.kind != "lines":
        return 64
    size = len if tokenizer == "char" else lambda line: len(line.encode("utf-8", "replace"))
    return min(max(size(line) for part in dataset.splits.values() for line in part) + 1, 256)
