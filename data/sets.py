"""Any text into a Dataset: the sets that ship, the two that are downloaded, files and folders.

The splits depend on the data alone, never on a run's seed.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from .cli import nearest
from .files import decode, fetch, read_text

HERE = Path(__file__).parent
SETS = {
    "names": "lines: 22,829 given names of 22 origins; ships with the project",
    "tales": "text: 972 short tales in simple words; ships with the project",
    "usnames": "lines: makemore's 32,033 US names; downloaded once",
    "shakespeare": "text: tiny shakespeare, 1,115,394 characters; downloaded once",
}
# A line whose hash fraction is below the first bound goes to the first split, and so on.
TRAIN_VAL_TEST = {"train": 0.8, "val": 0.9, "test": 1.0}
TRAIN_VAL = {"train": 0.95, "val": 1.0}


@dataclass(frozen=True)
class Dataset:
    """Texts in splits.

    kind: "lines" (every item is a document of one line) or "text" (long documents).
    splits: "train", "val" and "test" to their items; test may be empty.
    notes: what the user should be told about how the splits were made.
    """

    name: str
    kind: str
    splits: dict[str, list[str]]
    notes: tuple[str, ...] = ()

    @property
    def separated(self) -> bool:
        """Whether every document begins with the END token; a single text has none."""
        return self.kind == "lines" or any(len(items) > 1 for items in self.splits.values())


def load(source: str, lines: bool = False) -> Dataset:
    """The dataset of a set's name or of a path to a file or folder.

    lines: take each line of the text as an item of its own.
    Raises ValueError, with what to do next, for whatever cannot be used.
    """
    if source in SETS:
        taken = f"{source} is the set of that name; say ./{source} for the file or folder"
        notes = (taken,) if os.path.exists(source) else ()
        if source == "names":
            names = [name for name, _ in names_with_origins()]
            return Dataset(source, "lines", split_by_hash(names, names), notes)
        if source == "tales":
            if lines:
                raise ValueError("the tales are whole texts; leave out --lines")
            texts, titles = zip(*((tale["text"], tale["title"]) for tale in tales()))
            return Dataset(source, "text", split_by_hash(texts, titles), notes)
        text = decode(fetch(source), source)
        return from_text(source, text, lines or source == "usnames", source, notes)

    path = Path(os.path.expanduser(source))
    if not source or not os.path.exists(path):
        raise ValueError(f"there is no set, file or folder {source!r}; give a path or one of the "
                         f"sets {', '.join(SETS)}.{nearest(source, SETS)}")
    if os.path.isdir(path):
        return from_folder(path, lines)
    return from_text(path.stem, read_text(path), lines, str(path))


def from_text(name: str, text: str, lines: bool, where: str, notes: tuple = ()) -> Dataset:
    """One text in splits: lines by hash 80/10/10, else the first 90% train and the rest val."""
    if lines:
        items = as_lines(text)
        return Dataset(name, "lines", split_by_hash(items, items, where=where), notes)
    train, val = cut(text, 0.9, where)
    return Dataset(name, "text", {"train": [train], "val": [val], "test": []}, notes)


def from_folder(folder: Path, lines: bool) -> Dataset:
    """The splits of a folder's train.txt, val.txt and test.txt; a slice of train serves as val."""
    if not os.path.exists(folder / "train.txt"):
        raise ValueError(f"the folder {folder} has no train.txt; "
                         "put one there, or give the path of a single file")
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    notes = []
    for split in splits:
        path = folder / f"{split}.txt"
        if os.path.exists(path):
            text = read_text(path)
            splits[split] = as_lines(text) if lines else [text]
            if not lines and len(text) < 2:
                raise ValueError(f"{path} has one character; give at least two, for the second "
                                 "to be predicted from the first")
    train = splits["train"]
    if not splits["val"]:
        where = str(folder / "train.txt")
        if lines:
            splits |= split_by_hash(train, train, TRAIN_VAL, where)
        else:
            splits |= {s: [part] for s, part in zip(TRAIN_VAL, cut(train[0], 0.95, where))}
        notes.append("val is a 5% slice of train.txt, for there is no val.txt")
    for split in ("val", "test"):
        distinct = set(splits[split])
        if shared := len(distinct & set(splits["train"])):
            notes.append(f"{shared:,} of the {len(distinct):,} distinct items of {split} stand "
                         "in train too, which flatters the loss")
    return Dataset(folder.resolve().name, "lines" if lines else "text", splits, tuple(notes))


def fraction(key: str) -> float:
    """A number in [0, 1) that is fixed by the key's UTF-8 bytes, on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:6], "big") / 2**48


def split_by_hash(items, keys, bounds=TRAIN_VAL_TEST, where: str = "it") -> dict[str, list[str]]:
    """Items in splits by the hash of their keys, in their order; equal keys stay together.

    An empty split gets the key of the smallest hash that another can spare. With only two keys
    a third split stays empty; with fewer there is a ValueError that names `where`.
    """
    distinct = sorted(set(keys), key=fraction)
    if len(distinct) < 2:
        raise ValueError(f"{where} has only one distinct line; give at least two different "
                         "lines, one to train on and one to validate on")
    groups: dict[str, list[str]] = {split: [] for split in bounds}
    for key in distinct:
        groups[next(s for s, bound in bounds.items() if fraction(key) < bound)].append(key)
    for i, split in enumerate(groups):
        if not groups[split]:
            # Where nobody can spare one, an earlier split goes before a later one.
            later = [s for s in list(groups)[i + 1:] if groups[s]]
            if donors := [s for s in groups if len(groups[s]) > 1] or later:
                donor = min(donors, key=lambda s: fraction(groups[s][0]))
                groups[split].append(groups[donor].pop(0))
    home = {key: split for split, group in groups.items() for key in group}
    splits: dict[str, list[str]] = {split: [] for split in bounds}
    for item, key in zip(items, keys, strict=True):
        splits[home[key]].append(item)
    return splits


def cut(text: str, share: float, where: str) -> tuple[str, str]:
    """The first `share` of a text and the rest, both at least two characters, or ValueError."""
    middle = int(share * len(text))
    if min(middle, len(text) - middle) < 2:
        raise ValueError(f"{where} has {len(text)} characters, too few to split; "
                         "give a longer text, or --lines if it is a list")
    return text[:middle], text[middle:]


def as_lines(text: str) -> list[str]:
    """The lines without surrounding whitespace; empty ones are dropped."""
    return [line for line in map(str.strip, text.split("\n")) if line]


def names_with_origins() -> list[tuple[str, tuple[str, ...]]]:
    """The embedded names, sorted, each with the origins where it is at home."""
    rows = (line.split("\t") for line in as_lines(read_text(HERE / "names.tsv")))
    return [(name, tuple(origins.split(","))) for name, origins in rows]


def tales() -> list[dict]:
    """The embedded tales: topic, lesson, title, prompt, text and two questions with answers.

    questions: [{"question", "answer"}, ...]; the answer stands in the text, but for the case
    of its first letter.
    """
    return [json.loads(line) for line in as_lines(read_text(HERE / "tales.jsonl"))]
