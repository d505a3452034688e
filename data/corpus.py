"""Texts too large for memory: counted in one pass, parted into splits, read in pieces.

What is held in memory of a corpus is a few megabytes, and two bytes a document.
"""

import hashlib
import re
from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from . import files
from .documents import Chunks, Corpus

LARGE = 32 * 2**20  # bytes of all files; larger ones are streamed
HELD_OUT = 2_000_000  # characters that val, and test, hold at most of what is large
BINS = 2**16  # that documents fall into by the first two bytes of their hash
# No tokenizer joins a character to the space or line end after it, and none looks back past one.
CUT = re.compile(r"\S(?=[ \n])")


class Scan:
    """What one pass over a corpus finds: counts, a digest of the content, a bin a document.

    digest: of the documents in order, not of how they lie in files. blank: documents that are left
    out, though they have a bin. by_bin: documents, characters and bytes (in UTF-8) of every bin.
    Documents larger than HELD_OUT are in bin 0, equal ones in one bin. tail: the chunks at the end,
    with HELD_OUT characters or somewhat more.
    """

    def __init__(self, corpus: Corpus):
        """ValueError as of `Corpus.chunks`, or if all documents are blank."""
        from tqdm import tqdm  # here, for small texts do without

        self.corpus = corpus
        self.blank = self.longest = 0
        self.bins = array("H")
        self.by_bin = [[0] * BINS for _ in range(3)]
        self.tail: deque[tuple[bool, str]] = deque()
        digest, document, size, tail = hashlib.sha256(), None, [0, 0], 0

        def close() -> None:
            if document:
                digest.update(document.digest())
                small = size[0] <= HELD_OUT
                number = int.from_bytes(document.digest()[:2], "big") if small else 0
                self.bins.append(number)
                for row, n in zip(self.by_bin, (1, *size)):
                    row[number] += n
                self.longest = max(self.longest, size[0])

        with tqdm(total=corpus.size, desc=f"reading {corpus.where}", unit="B", unit_scale=True,
                  disable=None, leave=False, delay=2) as bar:
            for new, chunk in corpus.chunks(bar.update):
                if new:
                    close()
                    document, size = hashlib.sha256() if chunk else None, [0, 0]
                if not chunk:
                    self.blank += 1
                    self.bins.append(0)
                    continue
                raw = chunk.encode("utf-8")
                document.update(raw)
                size[0] += len(chunk)
                size[1] += len(raw)
                self.tail.append((new, chunk))
                tail += len(chunk)
                while tail - len(self.tail[0][1]) >= HELD_OUT:
                    tail -= len(self.tail.popleft()[1])
            close()
        self.digest = digest.hexdigest()
        self.documents, self.characters, self.bytes = map(sum, self.by_bin)
        if not self.documents:
            raise files.empty(corpus.where)


@dataclass(frozen=True, eq=False)
class Streamed:
    """A split of a corpus: its texts one after the other, read anew every time.

    rule: ("all",), ("characters", from, to) in the whole corpus, or ("bins", from, to, HELD_OUT).
    bytes: in UTF-8. Iterating gives the texts in pieces, cut only where no tokenizer can tell.
    """

    scan: Scan
    rule: tuple
    documents: int
    characters: int
    bytes: int

    @property
    def digest(self) -> str:
        """What tells whether the content is still the same."""
        return hashlib.sha256(f"{self.scan.digest} {self.rule}".encode()).hexdigest()

    def __iter__(self) -> Iterator[str]:
        return (text for _, text in self.pieces())

    def pieces(self) -> Chunks:
        """The texts, and whether a document begins there: about files.BLOCK characters at most.

        A text without a space or a line end is a piece, however long. ValueError: a file has
        changed.
        """
        begins, held = True, []
        for new, chunk in self.chosen():
            if new:
                if held:
                    yield begins, "".join(held)
                begins, held = True, [chunk]
            elif place := CUT.search(held[-1][-1] + chunk):
                end = place.end() - 1
                yield begins, "".join(held) + chunk[:end]
                begins, held = False, [chunk[end:]]
            else:
                held.append(chunk)
        if held:
            yield begins, "".join(held)

    def chosen(self) -> Chunks:
        """The chunks of this split."""
        kind, *bounds = self.rule
        corpus, bins = self.scan.corpus, self.scan.bins
        if kind == "bins":
            first, after, _ = bounds
            chunks = corpus.chunks(wanted=lambda number: first <= bins[number] < after)
        else:
            chunks = corpus.chunks()
        low, high = bounds if kind == "characters" else (0, self.scan.characters)
        at, begun = 0, False
        for new, chunk in chunks:
            if part := chunk[max(low - at, 0):max(high - at, 0)]:
                yield new or not begun, part
                begun = True
            at += len(chunk)
            if at >= high:
                return


def whole(scan: Scan) -> Streamed:
    """The whole corpus as one split."""
    return Streamed(scan, ("all",), scan.documents, scan.characters, scan.bytes)


def part(scan: Scan, shares: dict[str, float], share: float) -> dict[str, Streamed]:
    """The splits of a corpus, by its content alone; those that would be empty are not there.

    Documents are parted by their hash: shares are the bounds of the splits between 0 and 1, of
    which all but the first hold no more than HELD_OUT characters. A single document, and few large
    ones, are parted by position: the first `share` is train, the rest, or the last HELD_OUT
    characters of it, val. ValueError: two characters each cannot be had.
    """
    names = list(shares)
    found, high = {}, BINS
    for before, name in reversed(list(zip(names, names[1:]))):
        least = round(shares[before] * BINS)
        sums = list(accumulate(reversed(scan.by_bin[1][least:high])))
        low = high - sum(total <= HELD_OUT for total in sums)
        found[name] = in_bins(scan, low, high)
        high = low
    if scan.documents > 1 and found["val"].characters >= HELD_OUT // 10:
        found["train"] = in_bins(scan, 0, high)
        return {name: found[name] for name in names if found[name].documents}

    end = scan.characters
    middle = max(int(share * end), end - HELD_OUT)
    if min(middle, end - middle) < 2:
        raise ValueError(f"{scan.corpus.where} has {end} characters, too few to split; "
                         "give a longer text")
    at = end - sum(len(chunk) for _, chunk in scan.tail)
    starts, size = [], 0  # where documents begin in val, and its bytes
    for new, chunk in scan.tail:
        if new and at >= middle:
            starts.append(at)
        size += len(chunk[max(middle - at, 0):].encode("utf-8"))
        at += len(chunk)
    before, rest = scan.documents - len(starts), len(set(starts) | {middle})
    return {
        "train": Streamed(scan, ("characters", 0, middle), before, middle, scan.bytes - size),
        "val": Streamed(scan, ("characters", middle, end), rest, end - middle, size),
    }


def in_bins(scan: Scan, low: int, high: int) -> Streamed:
    """The documents in the bins from low to below high."""
    rule = ("bins", low, high, HELD_OUT)  # with the last it is decided what bin 0 holds
    return Streamed(scan, rule, *(sum(row[low:high]) for row in scan.by_bin))
