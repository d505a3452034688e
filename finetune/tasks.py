"""Texts and their labels: the tasks that ship, and the user's own files.

The splits are those of data/: a tale by the hash of its title, a name by its own. So what a model
is tested on was in no text that it was pretrained on.
"""

import csv
import io
import json
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import data
from data.bpe import well_formed
from data.cli import nearest
from data.files import read_text
from data.sets import fraction, split_by_hash

TASKS = {
    "topic": "the 8 topics of the tales",
    "lesson": "the 6 lessons of the tales",
    "origin": "the 22 origins of the names",
}


@dataclass(frozen=True)
class Example:
    """A text and its labels. Where there are several, any of them is right.

    where: the file and line that it stands in, if there is one.
    """

    text: str
    labels: tuple[str, ...]
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Task:
    """labels: all that training has, sorted. splits: "train", "val" and "test" to their examples.

    notes: what the user should be told.
    """

    name: str
    labels: list[str]
    splits: dict[str, list[Example]]
    notes: tuple[str, ...] = ()


def load(name: str) -> Task:
    """A task that ships. ValueError: there is none of that name."""
    if name not in TASKS:
        known = ", ".join(TASKS)
        raise ValueError(f"there is no task {name}; the tasks are {known}.{nearest(name, TASKS)}")
    if name == "origin":
        names = data.names_with_origins()
        examples = [Example(text, origins) for text, origins in names]
        splits = split_by_hash(examples, [text for text, _ in names])
        several = sum(len(origins) > 1 for _, origins in names)
        notes = (f"{several:,} of the {len(names):,} names have several origins, and count as "
                 "right for any of them",)
        return make(name, splits, notes)
    return make(name, {s: [as_example(tale, name) for tale in part] for s, part in tales().items()})


@lru_cache(maxsize=1)  # memory only: the result follows from the data that ships
def tales() -> dict[str, list[dict]]:
    """The tales in their splits, each with all that it has."""
    every = data.tales()
    return split_by_hash(every, [tale["title"] for tale in every])


def as_example(tale: dict, field: str) -> Example:
    return Example(tale["text"], (tale[field],))


def make(name: str, splits: dict[str, list[Example]], notes: tuple[str, ...] = ()) -> Task:
    """A task of these splits. ValueError: labels that training lacks, or fewer than two."""
    labels = sorted({label for example in splits["train"] for label in example.labels})
    if len(labels) < 2:
        raise ValueError(f"{name} has only the label {', '.join(labels)}; sorting needs two.")
    task = Task(name, labels, splits, notes)
    for split in ("val", "test"):
        check_labels(task.labels, splits[split], f"the {split} split of {name}")
    return task


def check_labels(labels: list[str], examples: list[Example], where: str) -> None:
    """ValueError if examples have a label that is not among these."""
    seen = Counter(label for example in examples for label in example.labels)
    if unknown := sorted(seen.keys() - set(labels)):
        said = ", ".join(f"{label!r} ({seen[label]} times)" for label in unknown[:5])
        raise ValueError(f"{where} has labels that training has never seen: {said}; "
                         f"the known ones are {', '.join(labels[:30])}.")


def from_files(train: Path, test: Path | None, text: str, label: str) -> Task:
    """The task of the user's own CSV or JSONL: 80/10/10 by the hash of the text, or test apart.

    Equal texts stay together, and a label that would be missing from training goes there.
    ValueError: a file that cannot be used, or labels in test that are not in train.
    """
    examples = read_examples(train, text, label)
    texts = [example.text for example in examples]
    splits = split_by_hash(examples, texts, where=str(train), item="text")
    if test:
        splits["train"] += splits["test"]
        splits["test"] = read_examples(test, text, label)
    known = {label for example in splits["train"] for label in example.labels}
    moved, own = set(), ("val",) if test else ("val", "test")  # what test apart holds stays there
    for name in own:
        for example in sorted(splits[name], key=lambda example: fraction(example.text)):
            if not known >= set(example.labels):
                known |= set(example.labels)
                moved.add(example.text)
    for name in own if moved else ():
        splits["train"] += [example for example in splits[name] if example.text in moved]
        splits[name] = [example for example in splits[name] if example.text not in moved]
    for name in ("val", "test"):
        if not splits[name]:
            why = f"{train} has {len(examples)} texts, too few for a {name} split"
            if moved:
                why += (f" beside those that training needs for its {len(known)} labels ({label!r} "
                        "names them: is that the right column?)")
            raise ValueError(f"{why}; give more of them.")
    if test:
        check_labels(sorted(known), splits["test"], str(test))
    return make(Path(train).stem, splits)


def read_examples(path: Path, text: str, label: str, parted: bool = False) -> list[Example]:
    """Texts and labels from the columns of a CSV or the keys of a JSONL.

    parted: a label may name several, with commas between. ValueError: no such file or column, or an
    empty text or label, with its line.
    """
    examples = []
    for where, row in read_rows(path):
        for column in (text, label):
            if column not in row:
                raise ValueError(no_column(path, where, column, row))
        content, named = as_text(row[text]), as_text(row[label])
        for what, value in (("text", content), ("label", named)):
            if not value:
                raise ValueError(f"{where}: the {what} is empty; fill it in or leave the line out.")
        labels = tuple(filter(None, map(str.strip, named.split(",")))) if parted else (named,)
        if not labels:
            raise ValueError(f"{where}: the label is {named!r}, which names none; fill it in or "
                             "leave the line out.")
        examples.append(Example(content, labels, where))
    return examples


def no_column(path: Path, where: str, column: str, row: dict) -> str:
    """What to say where a row has no such column."""
    has = ", ".join(name[:40] for name in list(row)[:20])
    right = "name the right ones with --text and --label"
    if is_jsonl(path):
        return f"{where} has no key {column!r}; it has {has}: {right}."
    return (f"{path} has no column {column!r}; it has {has}, by its first line, which must name "
            f"the columns: {right}, or put such a line first.")


def is_jsonl(path: Path) -> bool:
    return Path(path).suffix.lower() in (".jsonl", ".json", ".ndjson")


def as_text(value) -> str:
    """A cell or a JSON value as text, without the blanks around it."""
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    return well_formed(text).strip()


def read_rows(path: Path) -> list[tuple[str, dict]]:
    """The rows of a CSV (or .tsv) or the objects of a JSONL, each with where it stands.

    ValueError: the file cannot be read, or a line of it is none, with its number.
    """
    content = read_text(Path(path))
    rows = from_jsonl(path, content) if is_jsonl(path) else from_csv(path, content)
    if not rows:
        raise ValueError(f"{path} has no line after its header; give it some.")
    return rows


def from_jsonl(path: Path, content: str) -> list[tuple[str, dict]]:
    rows = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: expected a JSON object on a line of its own, and it is no "
                             f"JSON ({error.msg} at column {error.colno}).") from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, say
            said = "nested too deeply" if isinstance(error, RecursionError) else error
            raise ValueError(f"{where}: this JSON cannot be read ({said}).") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected a JSON object, and it is {line.strip()[:40]}.")
        rows.append((where, row))
    return rows


def from_csv(path: Path, content: str) -> list[tuple[str, dict]]:
    header = content.split("\n", 1)[0]
    # a quoted name may hold a comma, so the commonest of them it is, and not the first
    delimiter = max(",;\t", key=header.count)
    csv.field_size_limit(2**30)
    reader = csv.reader(io.StringIO(content), delimiter=delimiter, strict=True)
    rows = []
    try:
        columns = [column.strip() for column in next(reader)]
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if not cells:
                continue
            if len(cells) != len(columns):
                raise ValueError(f"{where} has {len(cells)} cells, and the header {len(columns)}: "
                                 f"{', '.join(columns)}.")
            rows.append((where, dict(zip(columns, cells))))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num} is no CSV: {error}.") from None
    return rows


def folds(examples: list[Example], number: int, seed: int = 0) -> list[dict[str, list[Example]]]:
    """Splits for cross-validation: each example is tested in one fold; of the others as many as a
    tenth of all are to validate on, and all the rest to train on."""
    order = data.order(seed, 0, len(examples))
    parts = [[examples[i] for i in order[n::number]] for n in range(number)]
    few = max(1, len(examples) // 10)
    splits = []
    for n in range(number):
        others = [e for part in parts[n + 1:] + parts[:n] for e in part]
        splits.append({"train": others[few:], "val": others[:few], "test": parts[n]})
    return splits
