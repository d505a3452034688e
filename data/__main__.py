"""python -m data SOURCE: what a text holds, before a model is trained on it."""

import math
import sys
from collections import Counter
from statistics import mean, median

from .batches import characters, default_block_size
from .cli import Parser, run
from .sets import SETS, Dataset, as_lines, load
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
    counts = Counter()
    for item in dataset.splits["train"]:
        counts.update(item)
        if dataset.separated:
            counts[END] += 1
    total = counts.total()
    unigram = -sum(n / total * math.log(n / total) for n in counts.values())
    uniform = math.log(tokenizer.vocab_size)
    return [("uniform", nats_and_bits(uniform) + ": the log of the vocabulary's size"),
            ("unigram", nats_and_bits(unigram) + ": the entropy of train's frequencies")]


def nats_and_bits(nats: float) -> str:
    """A loss a character in both units."""
    return f"{nats:.4f} nats, {nats / math.log(2):.4f} bits a character"


def describe(dataset: Dataset, num: int) -> str:
    """The report: a line a fact, then the first `num` items of each split."""
    items = [item for split in dataset.splits.values() for item in split]
    tokenizer = CharTokenizer.train(items)
    unit = "lines" if dataset.kind == "lines" else "documents"
    documents = items if dataset.separated else ["".join(items)]
    inner = [line for document in documents for line in as_lines(document)]
    size = sum(len(item.encode("utf-8")) for item in items)
    known = tokenizer.characters
    rows = [
        ("kind", dataset.kind),
        ("size", f"{size:,} bytes in UTF-8, {sum(map(len, items)):,} characters"),
        ("characters", f"{len(known)} distinct: {clip(known, 200)}"),
    ]
    if dataset.separated:
        rows.append((unit, f"{len(items):,}, {len(set(items)):,} distinct: {lengths(items)}"))
    if dataset.kind == "text":
        rows.append(("lines", f"{len(inner):,} that are not empty: {lengths(inner)}"))
    for split, part in dataset.splits.items():
        count = f"{len(part):,} {unit}, " if dataset.separated else ""
        sizes = f"{sum(map(len, part)):,} characters, {characters(dataset, split):,} predicted"
        rows.append((split, count + sizes if part else "none"))
    rows += baselines(dataset, tokenizer)
    block_size = default_block_size(dataset)
    cut = sum(len(item) + 1 > block_size for item in items) if dataset.kind == "lines" else 0
    longer = f"; {cut:,} longer lines are cut there" if cut else ""
    rows.append(("block size", f"{block_size} if you name none{longer}"))
    rows += [("note", note) for note in dataset.notes]
    if dataset.kind == "text" and len(inner) >= 20 and median(map(len, inner)) < 20:
        rows.append(("hint", "most lines are short; if each is an item of its own, say --lines"))
    for split, part in dataset.splits.items():
        shown = part if dataset.separated or not part else as_lines(part[0])
        rows += [(f"{split} {i}", clip(item)) for i, item in enumerate(shown[:num], start=1)]
    return "\n".join([dataset.name] + [f"  {label:<11} {fact}" for label, fact in rows])


def main() -> None:
    """The command line."""
    parser = Parser(prog="python -m data", description="Show what a text holds: its characters, "
                    "lengths, splits and simple baselines.")
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="a set "
                        f"({', '.join(SETS)}) or a path to a text file or a folder with "
                        "train.txt; without it the sets are listed")
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
