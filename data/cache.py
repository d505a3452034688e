"""Tokens of large texts, made once and kept in files: $RUNGS_CACHE/tokens, else the user's cache.

An entry is a folder with tokens.bin, the ids in a row as plain numbers, and meta.json. Its name is
a digest of the content and the tokenizer, so that the same text under another name is not prepared
again. It is made under another name and renamed at the end, so that whatever is under the final
name is whole. Any of it can be deleted at any time.
"""

import hashlib
import json
import os
import platform
import shutil
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import numpy as np

from . import files
from .corpus import Streamed
from .sets import Dataset
from .tokenizer import END, Tokenizer

FORMAT = 1  # raised by every change of what an entry holds, or of the ids that a tokenizer gives
ABANDONED = 24 * 3600  # seconds without a write, for what a process on another machine left behind
MOST_WORKERS = 16  # more would wait for the one thread that reads

Pieces = list[tuple[bool, str]]  # texts, and whether a document begins there


def tokens_of(dataset: Dataset, tokenizer: Tokenizer, split: str) -> np.ndarray:
    """All tokens of a split in a row, of tokenizer.dtype; END before each document if separated.

    Of a streamed split a read-only memory map of a file in the cache, which is made if it is not
    there. ValueError: the cache cannot be written, or a text has changed since it was loaded.
    """
    part = dataset.splits[split]
    if not isinstance(part, Streamed):
        return encoded([(True, text) for text in part], tokenizer, dataset.separated)
    entry = files.cache_folder() / "tokens" / key(part, tokenizer, dataset.separated)
    expected = {
        "format": FORMAT,
        "dtype": tokenizer.dtype.name,
        "vocab_size": tokenizer.vocab_size,
        "characters": part.characters,
        "bytes": part.bytes,
    }
    tokens, fault = read(entry, expected)
    if tokens is None:
        if fault:
            print(f"note: the prepared tokens of {dataset.name} {fault}; making them again.",
                  file=sys.stderr)
        about = expected | {
            "source": part.scan.corpus.where,
            "split": split,
            "tokenizer": tokenizer.kind,
            "documents": part.documents,
        }
        prepare(part, tokenizer, dataset.separated, entry, about, bool(fault))
        tokens, fault = read(entry, expected)
        if tokens is None:
            raise ValueError(f"{entry} {fault or 'is gone'} just after it was made; is another "
                             "program at work there?")
    return tokens


def key(part: Streamed, tokenizer: Tokenizer, separated: bool) -> str:
    """The name of an entry. Not the format: an entry of an old one is to be found, and replaced."""
    content = json.dumps([part.digest, tokenizer.to_dict(), separated])
    return hashlib.sha256(content.encode("utf-8")).hexdigest()[:32]


def encoded(pieces: Pieces, tokenizer: Tokenizer, separated: bool) -> np.ndarray:
    """The tokens of texts in a row."""
    end = np.array([END], dtype=tokenizer.dtype)
    rows = [np.empty(0, dtype=tokenizer.dtype)]
    for begins, text in pieces:
        if begins and separated:
            rows.append(end)
        rows.append(tokenizer.encode_array(text))
    return np.concatenate(rows)


def read(entry: Path, expected: dict) -> tuple[np.ndarray | None, str]:
    """The tokens of an entry, or None and what is wrong with it; nothing, if there is none."""
    if not os.path.lexists(entry):
        return None, ""
    path = entry / "tokens.bin"
    try:
        meta = json.loads((entry / "meta.json").read_text("utf-8"))
        if meta["format"] != FORMAT:
            return None, f"are of another version of this project, in format {meta['format']}"
        if {name: meta[name] for name in expected} != expected:
            return None, "are damaged"
        count, dtype = meta["tokens"], np.dtype(meta["dtype"])
        if path.stat().st_size != count * dtype.itemsize:
            return None, "are damaged"
        return np.memmap(path, dtype, mode="r", shape=(count,)), ""
    except (OSError, ValueError, KeyError, TypeError):
        return None, "are damaged"


def prepare(
    part: Streamed, tokenizer: Tokenizer, separated: bool, entry: Path, about: dict, replace: bool
) -> None:
    """Make an entry whole or not at all. replace: in the place of the one that is there."""
    def fresh() -> Path:
        owner = f"{os.getpid()}.{uuid.uuid4().hex[:8]}.{platform.node()}"
        return entry.with_name(f".{entry.name}.{owner}.part")

    temporary, old = fresh(), fresh()
    try:
        temporary.mkdir(parents=True)
        sweep(entry.parent)
        with open(temporary / "tokens.bin", "wb") as file:
            count = 0
            with closing(in_parallel(part, tokenizer, separated, about["source"])) as rows:
                for tokens in rows:
                    file.write(tokens.data)
                    count += len(tokens)
            flush(file)
        with open(temporary / "meta.json", "w", encoding="utf-8") as file:
            json.dump(about | {"tokens": count}, file, indent=2)
            flush(file)
        if replace:
            with suppress(FileNotFoundError):  # another process does the same
                os.rename(entry, old)
        try:
            os.rename(temporary, entry)
        except OSError:
            if not entry.is_dir():  # or else another process was faster, with the same tokens
                raise
    except OSError as error:
        most = part.bytes * tokenizer.dtype.itemsize / 1e6
        raise ValueError(f"the prepared tokens cannot be written to {entry.parent} "
                         f"({error.strerror or error}); set RUNGS_CACHE to a folder with room "
                         f"for them, {most:,.0f} MB at most") from None
    finally:
        remove(temporary)
        remove(old)


def in_parallel(
    part: Streamed, tokenizer: Tokenizer, separated: bool, source: str
) -> Iterator[np.ndarray]:
    """The tokens of a split in order, encoded by a thread for each core, with a progress bar.

    Threads, for the time goes to tiktoken and NumPy, which let each other run. Each has a tokenizer
    of its own, as in the regular expressions of one they would wait for each other. ValueError: a
    text is not what it was.
    """
    from tqdm import tqdm

    workers, own = cores(), threading.local()

    def begin() -> None:
        own.tokenizer = tokenizer.twin()

    waiting: deque = deque()
    done = 0  # bytes
    bar = tqdm(total=part.bytes, desc=f"preparing {source}", unit="B", unit_scale=True,
               disable=None, leave=False, delay=2)

    def work(pieces: Pieces) -> tuple[np.ndarray, int]:
        size = sum(len(text.encode("utf-8")) for _, text in pieces)
        return encoded(pieces, own.tokenizer, separated), size

    def first() -> np.ndarray:
        nonlocal done
        tokens, size = waiting.popleft().result()
        done += size
        bar.update(size)
        return tokens

    with bar, ThreadPoolExecutor(workers, initializer=begin) as pool:
        try:
            for pieces in grouped(part.pieces()):
                waiting.append(pool.submit(work, pieces))
                if len(waiting) > 2 * workers:
                    yield first()
            while waiting:
                yield first()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    if done != part.bytes:
        raise ValueError(f"{source} has changed while it was being read; start again")


def grouped(pieces: Iterable[tuple[bool, str]]) -> Iterator[Pieces]:
    """Pieces in groups of about half a files.BLOCK or more: short documents are many a group."""
    group, size = [], 0
    for piece in pieces:
        group.append(piece)
        size += len(piece[1])
        if size >= files.BLOCK // 2:
            yield group
            group, size = [], 0
    if group:
        yield group


def cores() -> int:
    """How many threads encode."""
    try:
        return min(len(os.sched_getaffinity(0)), MOST_WORKERS)
    except AttributeError:  # not on this platform
        return min(os.cpu_count() or 1, MOST_WORKERS)


def flush(file) -> None:
    """Have what was written on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sweep(folder: Path) -> None:
    """Remove what processes that have ended left behind, as far as it can be removed."""
    for temporary in folder.glob(".*.part"):
        _, _, pid, _, node = temporary.name.removesuffix(".part").split(".", 4)
        with suppress(OSError):
            last = max(path.stat().st_mtime for path in [temporary, *temporary.glob("*")])
            here = node == platform.node() and os.name != "nt"  # where os.kill would end it
            if time.time() - last > ABANDONED or here and not running(int(pid)):
                remove(temporary)


def remove(path: Path) -> None:
    """Remove a folder with all that is in it, or a file, if it is there and can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def running(pid: int) -> bool:
    """Whether there is a process of that number on this machine; not for Windows."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return True
