"""Byte-pair encoding: how its merges are learned, and how they are applied, in plain Python.

A token is a string of bytes, and its rank is its place: the bytes are 0 to 255, the merges follow
from 256 in the order in which they were learned. A tokenizer's id is the rank + 4, for its first
ids are the special tokens.

Gage 1994, "A new algorithm for data compression"; Sennrich et al. 2016, "Neural machine translation
of rare words with subword units"; on bytes: Radford et al. 2019, "Language models are unsupervised
multitask learners" (GPT-2).
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable

from .files import fetch

# Merges stay within a word: a space belongs to the word after it. This is GPT-2's pattern and one
# alternative more, `\s+$`: it changes no result, but gets tiktoken through long runs of blanks.
SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+$|\s+(?!\S)|\s+"
GAP = -1


def well_formed(text: str) -> str:
    """The text with U+FFFD for each surrogate that stands alone, which UTF-8 cannot write."""
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def split(text: str) -> list[str]:
    """The words of a text, in which nothing is lost: joined again they are the text.

    What is a letter follows from the Unicode version of the package regex; tiktoken has one of its
    own, so that a word with letters too new for one of the two may be split in another place.
    """
    import regex  # here, so that whoever works on characters does without

    return regex.findall(SPLIT, well_formed(text))


def train_bpe(
    texts: Iterable[str], merges: int, progress: bool = False
) -> list[tuple[int, int]]:
    """The first `merges` merges of `texts`, each a pair of ranks; fewer if nothing is left to join.

    Each step joins the pair of neighbours that occurs most often, and of several the one with the
    lowest ranks, the left one first. progress: show a bar if it takes longer than two seconds.
    """
    from tqdm import tqdm

    words = Counter()
    for text in texts:
        words.update(split(text))
    # All distinct words in one row of slots, a byte each, with a gap around every word. A merge
    # puts its token into the left slot and empties the right one; before and after skip that.
    token, weight = [GAP], [0]
    for word, n in words.items():
        chunk = word.encode("utf-8")
        token += [*chunk, GAP]
        weight += [n] * (len(chunk) + 1)
    before, after = list(range(-1, len(token) - 1)), list(range(1, len(token) + 1))

    # How often each pair occurs in the texts, and in which slots its left half has stood.
    counts, places = defaultdict(int), defaultdict(list)
    for i, pair in enumerate(zip(token, token[1:])):
        if GAP not in pair:
            counts[pair] += weight[i]
            places[pair].append(i)
    heap = [(-n, pair) for pair, n in counts.items()]
    heapq.heapify(heap)

    learned = []
    with tqdm(total=merges, desc="merges", delay=2, disable=not progress) as bar:
        while heap and len(learned) < merges:
            n, pair = heapq.heappop(heap)
            if -n != counts[pair]:
                # Once made, a pair only gets rarer. The heap held an old count: back with the new.
                if counts[pair]:
                    heapq.heappush(heap, (-counts[pair], pair))
                continue
            new = 256 + len(learned)
            learned.append(pair)
            bar.update()
            made = set()
            for i in sorted(places.pop(pair)):  # from the left: "aaa" becomes "aa" and "a"
                j = after[i]
                if (token[i], token[j]) != pair:
                    continue  # another merge, or this one a slot before, took a half of it
                token[i], token[j] = new, GAP
                left, right = before[i], after[j]
                after[i], before[right] = right, i
                for old, fresh, place in (
                    ((token[left], pair[0]), (token[left], new), left),
                    ((pair[1], token[right]), (new, token[right]), i),
                ):
                    if GAP not in old:
                        counts[old] -= weight[i]
                        counts[fresh] += weight[i]
                        places[fresh].append(place)
                        made.add(fresh)
            del counts[pair]
            for fresh in made:
                if counts[fresh]:
                    heapq.heappush(heap, (-counts[fresh], fresh))
    return learned


def vocabulary(merges: list[tuple[int, int]]) -> list[bytes]:
    """The bytes of every token by rank. ValueError if no training can have made these merges."""
    if not isinstance(merges, list | tuple):
        raise ValueError(f"expected a list of merges but found {type(merges).__name__}; "
                         "the tokenizer is damaged")
    tokens = [bytes([value]) for value in range(256)]
    known = set(tokens)
    for pair in merges:
        if not (isinstance(pair, list | tuple) and len(pair) == 2
                and all(type(rank) is int and 0 <= rank < len(tokens) for rank in pair)):
            raise ValueError(f"merge {len(tokens)} joins {str(pair)[:40]}, which is no pair of "
                             f"ranks from 0 to {len(tokens) - 1}; the tokenizer is damaged")
        token = tokens[pair[0]] + tokens[pair[1]]
        if token in known:
            raise ValueError(f"merge {len(tokens)} makes a token that another merge has made; "
                             "the tokenizer is damaged")
        tokens.append(token)
        known.add(token)
    return tokens


def gpt2_vocabulary() -> list[bytes]:
    """The 50,256 tokens of GPT-2 by rank: its 256 bytes in an order of its own, its 50,000 merges.

    Read from vocab.bpe, whose every line is a merge: its halves in printable characters, one for
    each byte. ValueError, with the ways to get the file, if it is nowhere to be had.
    """
    lines = fetch("gpt2/vocab.bpe").decode("utf-8").splitlines()[1:]
    # Bytes that Latin-1 can print stand for themselves and come first; the other 68 (controls,
    # blanks, the soft hyphen) follow, written as the characters from U+0100 on.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    value = {chr(byte): byte for byte in printable}
    value |= {chr(0x100 + n): byte for n, byte in enumerate(others)}
    return [bytes([byte]) for byte in printable + others] + [
        bytes(value[character] for character in line.replace(" ", "")) for line in lines
    ]


def encode_chunk(chunk: bytes, ids: dict[bytes, int]) -> list[int]:
    """The ids of one word, or of any bytes: the two neighbours of the lowest id are joined first.

    ids: every token to its id, in which all single bytes and then the merges in order are found.
    The time grows with the square of the length: this is to be read, and to test the fast way by.
    """
    if chunk in ids:
        return [ids[chunk]]
    parts = [bytes([value]) for value in chunk]
    none = float("inf")
    while len(parts) > 1:
        joined = [ids.get(left + right, none) for left, right in zip(parts, parts[1:])]
        lowest = min(joined)
        if lowest == none:
            break
        i = joined.index(lowest)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return [ids[part] for part in parts]


def encode(text: str, ids: dict[bytes, int]) -> list[int]:
    """The ids of a text, word by word."""
    return [i for word in split(text) for i in encode_chunk(word.encode("utf-8"), ids)]
