"""Any text into a Dataset: the sets that ship, the two that are downloaded, files and folders.

The splits depend on the data alone, never on a run's seed.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from . import corpus
from .cli import nearest
from .corpus import Scan, Streamed
from .documents import SUFFIXES, Corpus, texts_below
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
    splits: "train", "val" and "test" to their items; test may be empty. The splits of a large text
    are `Streamed`: to iterate over one gives pieces of it, and there are no items.
    notes: what the user should be told about how the splits were made.
    """

    name: str
    kind: str
    splits: dict[str, list[str] | Streamed]
    notes: tuple[str, ...] = ()

    @property
    def separated(self) -> bool:
        """Whether every document begins with the END token; a single text has none."""
        many = (split.documents if isinstance(split, Streamed) else len(split)
                for split in self.splits.values())
        return self.kind == "lines" or any(n > 1 for n in many)


def size(split: list[str] | Streamed) -> tuple[int, int, int]:
    """The documents (or lines), characters and bytes in UTF-8 of a split."""
    if isinstance(split, Streamed):
        return split.documents, split.characters, split.bytes
    raw = sum(len(item.encode("utf-8", "surrogatepass")) for item in split)
    return len(split), sum(map(len, split)), raw


def load(source: str, lines: bool = False) -> Dataset:
    """The dataset of a set's name or of a path to a file or folder.

    A file is a text, or of documents if it is a .jsonl; a folder has a train.txt or train.jsonl, or
    its documents are in all .txt and .jsonl files below it.
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
    if lines:
        return from_text(path.stem, read_text(path), lines, str(path))
    return from_corpus(path.stem, Corpus(str(path), [path]))


def from_text(name: str, text: str, lines: bool, where: str, notes: tuple = ()) -> Dataset:
    """One text in splits: lines by hash 80/10/10, else the first 90% train and the rest val."""
    if lines:
        items = as_lines(text)
        return Dataset(name, "lines", split_by_hash(items, items, where=where), notes)
    train, val = cut(text, 0.9, where)
    return Dataset(name, "text", {"train": [train], "val": [val], "test": []}, notes)


def from_corpus(name: str, source: Corpus) -> Dataset:
    """Documents in splits: a single one as a text, several by hash 80/10/10.

    Of a large corpus val, and test, hold no more than corpus.HELD_OUT characters; and if its
    documents are too large for that, it is split as a single one is.
    """
    if source.size > corpus.LARGE:
        scan = Scan(source)
        parts = corpus.part(scan, TRAIN_VAL_TEST, 0.9)
        splits = {"train": [], "val": [], "test": []} | parts
        return Dataset(name, "text", splits, left_out(scan.blank) + held_out(parts))
    documents, blank = source.documents()
    if len(documents) == 1:
        return from_text(name, documents[0], False, source.where, left_out(blank))
    splits = split_by_hash(documents, documents, where=source.where, item="document")
    return Dataset(name, "text", splits, left_out(blank))


def left_out(blank: int) -> tuple[str, ...]:
    """What is to be said of blank documents."""
    return (f"documents without any text are left out: {blank:,}",) if blank else ()


def held_out(splits: dict[str, Streamed]) -> tuple[str, ...]:
    """What is to be said of how a large corpus was split."""
    names = [name for name in splits if name != "train"]
    how = "by the hash of the documents" if splits["val"].rule[0] == "bins" else "from the end"
    sizes = " and ".join(f"{splits[name].characters:,}" for name in names)
    hold = "hold" if len(names) > 1 else "holds"
    return (f"{' and '.join(names)} {hold} {sizes} characters, taken {how}: of a large text no "
            f"more than {corpus.HELD_OUT:,} each",)


def from_folder(folder: Path, lines: bool) -> Dataset:
    """A folder's train, val and test, each a .txt or .jsonl; or else all such files below it."""
    files: dict[str, Path] = {}
    for split in TRAIN_VAL_TEST:
        names = [split + suffix for suffix in (SUFFIXES[:1] if lines else SUFFIXES)]
        there = [name for name in names if os.path.exists(folder / name)]
        if len(there) > 1:
            raise ValueError(f"the folder {folder} has both {' and '.join(there)}; keep one")
        if there:
            files[split] = folder / there[0]
    if "train" in files:
        return from_splits(folder.resolve().name, files, lines)
    below = [] if lines or files else texts_below(folder)
    if not below:
        other = "" if lines or files else ", nor any other .txt or .jsonl below it"
        raise ValueError(f"the folder {folder} has no train.txt{other}; "
                         "put one there, or give the path of a single file")
    return from_corpus(folder.resolve().name, Corpus(str(folder), below))


def from_splits(name: str, files: dict[str, Path], lines: bool) -> Dataset:
    """The splits that have a file each; a slice of train serves as val if that has none."""
    splits: dict[str, list[str] | Streamed] = {"train": [], "val": [], "test": []}
    notes: tuple[str, ...] = ()
    sources = {split: Corpus(str(path), [path]) for split, path in files.items()}
    large = not lines and sum(source.size for source in sources.values()) > corpus.LARGE
    for split, source in sources.items():
        if lines:
            splits[split] = as_lines(read_text(files[split]))
            continue
        if large:
            splits[split] = corpus.whole(Scan(source))
            blank = splits[split].scan.blank
        else:
            splits[split], blank = source.documents()
        notes += left_out(blank)
        if size(splits[split])[1] < 2:
            raise ValueError(f"{source.where} has one character; give at least two, for the "
                             "second to be predicted from the first")
    train, where, first = splits["train"], sources["train"].where, files["train"].name
    if not splits["val"]:
        if large:
            parts = corpus.part(train.scan, TRAIN_VAL, 0.95)
            splits |= parts
            notes += held_out(parts)
        elif lines or len(train) > 1:
            splits |= split_by_hash(train, train, TRAIN_VAL, where, "line" if lines else "document")
        else:
            splits |= {s: [part] for s, part in zip(TRAIN_VAL, cut(train[0], 0.95, where))}
        share, absent = "" if large else "5% ", first.replace("train", "val")
        notes += (f"val is a {share}slice of {first}, for there is no {absent}",)
    for split in ("val", "test"):
        distinct = set() if large else set(splits[split])
        if shared := len(distinct & set(splits["train"] if distinct else ())):
            notes += (f"{shared:,} of the {len(distinct):,} distinct items of {split} stand "
                      "in train too, which flatters the loss",)
    return Dataset(name, "lines" if lines else "text", splits, notes)


def fraction(key: str) -> float:
    """A number in [0, 1) that is fixed by the key's UTF-8 bytes, on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:6], "big") / 2**48


def split_by_hash(
    items, keys, bounds=TRAIN_VAL_TEST, where: str = "it", item: str = "line"
) -> dict[str, list[str]]:
    """Items in splits by the hash of their keys, in their order; equal keys stay together.

    An empty split gets the key of the smallest hash that another can spare. With only two keys
    a third split stays empty; with fewer there is a ValueError that names `where`.
    """
    distinct = sorted(set(keys), key=fraction)
    if len(distinct) < 2:
        raise ValueError(f"{where} has only one distinct {item}; give at least two different "
                         f"{item}s, one to train on and one to validate on")
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
