"""python -m data SOURCE: what a text holds, before a model is trained on it."""

import math
import sys
from itertools import islice
from statistics import mean, median

import numpy as np

from .batches import characters, default_block_size, longest
from .cache import grouped
from .cli import Parser, run
from .corpus import Streamed
from .sets import SETS, Dataset, as_lines, load, size
from .tokenizer import END, CharTokenizer


def clip(text: str, width: int = 70) -> str:
    """The text quoted, with escapes for line ends, cut to about `width` characters."""
    return repr(text[:width]) + ("..." if len(text) > width else "")


def lengths(items: list[str]) -> str:
    """The spread of the lengths in characters."""
    sizes = [len(item) for item in items]
    return (f"min {min(sizes)}, median {median(sizes):g}, mean {mean(sizes):.1f}, "
            f"max {max(sizes)} characters")


def baselines(dataset: Dataset, tokenizer: CharTokenizer) -> list[tuple[str, str]]:
    """The losses of guessing: every token alike, and each as often as it occurs in train."""
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for pieces in grouped((True, text) for text in dataset.splits["train"]):
        ids = tokenizer.encode_array("".join(text for _, text in pieces))
        counts += np.bincount(ids, minlength=len(counts))
    if dataset.separated:
        counts[END] = size(dataset.splits["train"])[0]
    shares = counts[counts > 0] / counts.sum()
    unigram = -float(shares @ np.log(shares))
    uniform = math.log(tokenizer.vocab_size)
    return [("uniform", nats_and_bits(uniform) + ": the log of the vocabulary's size"),
            ("unigram", nats_and_bits(unigram) + ": the entropy of train's frequencies")]


def nats_and_bits(nats: float) -> str:
    """A loss a character in both units."""
    return f"{nats:.4f} nats, {nats / math.log(2):.4f} bits a character"


def inner_lines(dataset: Dataset, items: list[str]) -> list[str]:
    """The lines of a text that are not empty."""
    documents = items if dataset.separated else ["".join(items)]
    return [line for document in documents for line in as_lines(document)]


def first_items(dataset: Dataset, split: str, num: int) -> list[str]:
    """The first `num` items of a split, or lines of a text that was never parted."""
    part = dataset.splits[split]
    if isinstance(part, Streamed):
        starts = (text for begins, text in part.pieces() if begins)
        part = list(islice(starts, min(num, part.documents)))  # none is looked for in vain
    return part[:num] if dataset.separated or not part else as_lines(part[0])[:num]


def describe(dataset: Dataset, num: int) -> str:
    """The report: a line a fact, then the first `num` items of each split.

    Of a large text without what would need all of it in memory.
    """
    tokenizer = CharTokenizer.train(text for part in dataset.splits.values() for text in part)
    sizes = {split: size(part) for split, part in dataset.splits.items()}
    documents, total, raw = map(sum, zip(*sizes.values()))
    known = tokenizer.characters
    rows = [
        ("kind", dataset.kind),
        ("size", f"{raw:,} bytes in UTF-8, {total:,} characters"),
        ("characters", f"{len(known)} distinct: {clip(known, 200)}"),
    ]
    large = isinstance(dataset.splits["train"], Streamed)
    items = [] if large else [item for part in dataset.splits.values() for item in part]
    inner = inner_lines(dataset, items) if dataset.kind == "text" and not large else []
    unit = "lines" if dataset.kind == "lines" else "documents"
    if dataset.separated:
        spread = f"mean {total / documents:.1f}, max {longest(dataset)} characters"
        spread = spread if large else f"{len(set(items)):,} distinct: {lengths(items)}"
        rows.append((unit, f"{documents:,}, {spread}"))
    if inner:
        rows.append(("lines", f"{len(inner):,} that are not empty: {lengths(inner)}"))
    for split, (count, length, _) in sizes.items():
        shown = f"{count:,} {unit}, " if dataset.separated else ""
        predicted = f"{length:,} characters, {characters(dataset, split):,} predicted"
        rows.append((split, shown + predicted if count else "none"))
    rows += baselines(dataset, tokenizer)
    block_size = default_block_size(dataset)
    cut = sum(len(item) + 1 > block_size for item in items) if dataset.kind == "lines" else 0
    longer = f"; {cut:,} longer lines are cut there" if cut else ""
    rows.append(("block size", f"{block_size} if you name none{longer}"))
    rows += [("note", note) for note in dataset.notes]
    if len(inner) >= 20 and median(map(len, inner)) < 20:
        rows.append(("hint", "most lines are short; if each is an item of its own, say --lines"))
    for split in dataset.splits:
        shown = first_items(dataset, split, num)
        rows += [(f"{split} {i}", clip(item)) for i, item in enumerate(shown, start=1)]
    return "\n".join([dataset.name] + [f"  {label:<11} {fact}" for label, fact in rows])


def main() -> None:
    """The command line."""
    parser = Parser(prog="python -m data", description="Show what a text holds: its characters, "
                    "lengths, splits and simple baselines.")
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="a set "
                        f"({', '.join(SETS)}) or a path to a text file, a .jsonl or a folder of "
                        "such files; without it the sets are listed")
    parser.add_argument("--lines", action="store_true", help="each line is an item of its own")
    parser.add_argument("--num", type=int, default=5, metavar="N",
                        help="how many items of each split to show (default 5)")
    args = parser.parse_args()
    if args.num < 0:
        parser.error("--num must be 0 or more")
    # A terminal that cannot show a character gets its escape, never a traceback.
    sys.stdout.reconfigure(errors="backslashreplace")
    if args.source is None:
        print("\n".join(f"{name:<12} {what}" for name, what in SETS.items()))
    else:
        print(describe(load(args.source, args.lines), args.num))


if __name__ == "__main__":
    run(main)
