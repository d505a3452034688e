"""Files of documents, read in chunks: a .jsonl has a document a line, any other file is one."""

import codecs
import json
import os
import stat
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path

from . import files
from .bpe import well_formed

SUFFIXES = (".txt", ".jsonl")

Chunks = Iterator[tuple[bool, str]]  # pieces of text in order, and whether a document begins there


class Corpus:
    """Files of documents: a .jsonl has one a line, the "text" of its object; any other is one."""

    def __init__(self, where: str, paths: Iterable[Path]):
        """where: what messages call it. ValueError: a file cannot be read."""
        self.where, self.paths = where, tuple(paths)
        self.stamps = [stamp(path) for path in self.paths]
        self.size = sum(size for size, _ in self.stamps)  # bytes

    def chunks(
        self,
        count: Callable[[int], object] = lambda size: None,
        wanted: Callable[[int], bool] = lambda number: True,
    ) -> Chunks:
        """Every document in chunks of at most about files.BLOCK characters; "" if it is blank.

        count: is told the bytes that were read. wanted: whether to read document 0, 1, ...
        ValueError: a file is not what its name says, or has changed since the corpus was made.
        """
        number = 0
        for path, known in zip(self.paths, self.stamps):
            self.check(path, known)
            try:
                if is_jsonl(path):
                    number = yield from from_jsonl(path, count, wanted, number)
                else:
                    yield from from_txt(path, count) if wanted(number) else ()
                    number += 1
            except OSError as error:
                raise files.unreadable(path, error) from None
            self.check(path, known)

    def check(self, path: Path, known: tuple[int, int]) -> None:
        """ValueError if a file is another than it was."""
        if stamp(path) != known:
            raise ValueError(f"{path} has changed while it was being read; start again")

    def documents(self) -> tuple[list[str], int]:
        """All documents in memory, and how many blank ones are not among them; else as `Scan`."""
        found: list[list[str]] = []
        for new, chunk in self.chunks():
            if new:
                found.append([])
            found[-1].append(chunk)
        texts = [text for text in map("".join, found) if text]
        if not texts:
            raise files.empty(self.where)
        return texts, len(found) - len(texts)


def texts_below(folder: Path) -> list[Path]:
    """All .txt and .jsonl files below a folder, by their path; hidden ones do not count."""
    def fail(error: OSError):
        raise files.unreadable(Path(error.filename), error)

    found = []
    for at, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(at, name) for name in names if not name.startswith(".")]
    texts = [path for path in found if path.suffix.lower() in SUFFIXES]
    return sorted(texts, key=lambda path: path.relative_to(folder).as_posix())


def is_jsonl(path: Path) -> bool:
    return path.suffix.lower() == ".jsonl"


def stamp(path: Path) -> tuple[int, int]:
    """Size and time of change of a file; of a pipe nothing is known."""
    try:
        known = path.stat()
    except OSError as error:
        raise files.unreadable(path, error) from None
    return (known.st_size, known.st_mtime_ns) if stat.S_ISREG(known.st_mode) else (0, 0)


def from_txt(path: Path, count: Callable[[int], object]) -> Chunks:
    """The chunks of a text file, a single document."""
    blank: list[str] | None = []
    for chunk in files.decoded(files.blocks(path, count), str(path)):
        if blank is None:
            yield False, chunk
        elif chunk.isspace():
            blank.append(chunk)
        else:
            yield True, "".join(blank) + chunk
            blank = None
    if blank is not None:
        yield True, ""


def from_jsonl(
    path: Path, count: Callable[[int], object], wanted: Callable[[int], bool], first: int
) -> Generator[tuple[bool, str], None, int]:
    """The chunks of a file with a JSON object a line, each with its document as "text".

    Lines of white space do not count; CRLF in a text becomes LF as in a text file, and a surrogate
    that stands alone U+FFFD. first: the number of its first document; the one after its last comes
    back. ValueError names the line.
    """
    number = first
    with open(path, "rb") as file:
        for row, line in enumerate(file, start=1):
            count(len(line))
            if row == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.isspace():
                continue
            number += 1
            if not wanted(number - 1):
                continue
            text = json_text(line, f"line {row} of {path}").replace("\r\n", "\n")
            text = "" if text.isspace() else well_formed(text)
            yield True, text[:files.BLOCK]
            for i in range(files.BLOCK, len(text), files.BLOCK):
                yield False, text[i:i + files.BLOCK]
    return number


def json_text(line: bytes, where: str) -> str:
    """The field "text" of an object in JSON. ValueError names `where`."""
    wanted = 'every line must be an object such as {"text": "a document"}'
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 text (byte 0x{line[error.start]:02x} at offset "
                         f"{error.start} of the line); {files.ADVICE}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        said = getattr(error, "msg", "nested too deeply")
        raise ValueError(f"{where} is not JSON ({said}); {wanted}") from None
    if not isinstance(record, dict) or "text" not in record:
        raise ValueError(f'{where} has no field "text"; {wanted}')
    if not isinstance(record["text"], str):
        raise ValueError(f'the "text" in {where} is not a string; {wanted}')
    return record["text"]
