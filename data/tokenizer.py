"""Text to token ids and back. The first ids of every tokenizer are the special tokens.

A special token is never read out of a text: "<|end|>" in a text is seven plain characters. Nor does
it give text, nor does an id outside the vocabulary: a model's may be padded to a round size.
"""

import codecs
import sys
from collections.abc import Iterable, Iterator
from copy import copy
from functools import cached_property

import numpy as np

from .bpe import gpt2_vocabulary, split, train_bpe, vocabulary, well_formed

SPECIALS = ("<|end|>", "<|user|>", "<|assistant|>", "<|turn|>")
# <|end|> is start and end of a document in one: what comes after one end is the next start.
END, USER, ASSISTANT, TURN = range(len(SPECIALS))
# bpe.SPLIT as tiktoken writes it: the same words, found with fewer ways to go back; a sixth faster.
FAST_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


class Decoder:
    """Tokens to text one by one. A character whose bytes are not all there yet is held back."""

    def __init__(self, tokenizer: "Tokenizer"):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that is complete with this token, perhaps none; U+FFFD for broken UTF-8."""
        return self._utf8.decode(self._tokenizer.decode_bytes([token]))

    def flush(self) -> str:
        """What was held back, as U+FFFD, for the rest of it never came."""
        return self._utf8.decode(b"", final=True)


class Tokenizer:
    """What all have: a kind, vocab_size, to_dict, encode, decode, decode_bytes, and these.

    silent: tokens that no text holds, which a sample of plain text should not either, but for END.

    encode_array(text), too: the ids of encode(text) as an array of self.dtype, far faster.
    """

    kind: str
    silent: tuple[int, ...] = (USER, ASSISTANT, TURN)

    @property
    def dtype(self) -> np.dtype:
        """The smallest of uint16 and uint32 that holds every id."""
        return np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)

    def decoder(self) -> Decoder:
        """For tokens that come one by one."""
        return Decoder(self)

    def twin(self) -> "Tokenizer":
        """The same for another thread, where that is faster than to share this one."""
        return self

    def token_bytes(self) -> np.ndarray:
        """How many bytes each id stands for, (vocab_size,) int64; the special tokens 0."""
        sizes = [len(self.decode_bytes([i])) for i in range(self.vocab_size)]
        return np.array(sizes, dtype=np.int64)

    @classmethod
    def check(cls, d: dict) -> dict:
        """`d` itself. ValueError if it does not describe a tokenizer of this kind."""
        kind = d.get("kind") if isinstance(d, dict) else None
        if kind != cls.kind:
            raise ValueError(f"expected a tokenizer of kind {cls.kind!r} but found {kind!r}; "
                             "read it with tokenizer_from_dict")
        return d


def code_points(text: str) -> np.ndarray:
    """The number of each character of a text in Unicode, uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


class CharTokenizer(Tokenizer):
    """One token a character, after the special tokens."""

    kind = "char"

    def __init__(self, characters: str):
        """characters: the known ones, each once; their ids are 4, 5, ... in this order."""
        assert len(set(characters)) == len(characters), "a character stands twice"
        self.characters = characters
        self._ids = {c: i for i, c in enumerate(characters, start=len(SPECIALS))}

    @classmethod
    def train(cls, texts: Iterable[str]) -> "CharTokenizer":
        """The tokenizer of all distinct characters of `texts`, sorted by code point."""
        found = np.zeros(sys.maxunicode + 1, dtype=bool)
        held, size = [], 0
        for text in texts:
            held.append(text)
            size += len(text)
            if size > 2**20:  # many at once, but of a large text never all
                found[code_points("".join(held))] = True
                held, size = [], 0
        found[code_points("".join(held))] = True
        return cls("".join(map(chr, np.flatnonzero(found))))

    @property
    def vocab_size(self) -> int:
        """Number of token ids, special tokens included."""
        return len(SPECIALS) + len(self.characters)

    def encode(self, text: str) -> list[int]:
        """The ids of the characters of `text`. ValueError if it has unseen characters."""
        try:
            return list(map(self._ids.__getitem__, text))
        except KeyError:
            unseen = ", ".join(map(repr, sorted(set(text) - self._ids.keys())[:10]))
            known = repr(self.characters[:200])[1:-1] + "..." * (len(self.characters) > 200)
            raise ValueError(
                f"the tokenizer has never seen {unseen}; leave it out, or train on text that "
                f"has it (the {len(self.characters)} known characters: {known})"
            ) from None

    @cached_property
    def _table(self) -> np.ndarray:
        """The id of every code point; 0, which is no character's, for the unknown ones."""
        known = code_points(self.characters)
        table = np.zeros(int(known.max(initial=0)) + 2, dtype=self.dtype)
        table[known] = np.arange(len(SPECIALS), self.vocab_size)
        return table

    def encode_array(self, text: str) -> np.ndarray:
        """The ids of the characters of `text`. ValueError if it has unseen characters."""
        ids = self._table.take(code_points(text), mode="clip")  # what is too high: the last, 0
        if not ids.all():
            self.encode(text)  # says which
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens and ids outside the vocabulary give no text."""
        first, size = len(SPECIALS), self.vocab_size
        return "".join(self.characters[i - first] for i in ids if first <= i < size)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The text of `ids` in UTF-8."""
        return well_formed(self.decode(ids)).encode("utf-8")

    def to_dict(self) -> dict:
        """Plain values for a checkpoint, read back by `tokenizer_from_dict`."""
        return {"kind": self.kind, "characters": self.characters}

    @classmethod
    def from_dict(cls, d: dict) -> "CharTokenizer":
        """The tokenizer that `to_dict` described. ValueError if it was of another kind."""
        characters = cls.check(d).get("characters")
        if not isinstance(characters, str) or len(set(characters)) < len(characters):
            raise ValueError("expected a text of distinct characters; the tokenizer is damaged")
        return cls(characters)


def too_blank(text: str, block: int = 200_000) -> bool:
    """Whether tiktoken must get a text word by word.

    It fails at about a million blanks in a row, unless they are all that it is given. So many fill
    at least one of the blocks that are looked at here.
    """
    last = len(text) - block
    return any(text[i:i + block].isspace() for i in range(0, last + 1, block))


class Subwords(Tokenizer):
    """What the tokenizers of byte pairs share: a token is a byte, or several that were merged.

    Every text can be encoded and comes back as it was; only a surrogate that stands alone, which
    is no character, comes back as U+FFFD.
    """

    def __init__(self, tokens: list[bytes]):
        """tokens: the bytes of the ids 4, 5, ..., where those joined first come first."""
        self.tokens = [b""] * len(SPECIALS) + tokens

    @property
    def vocab_size(self) -> int:
        """Number of token ids, special tokens included."""
        return len(self.tokens)

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """The id of each token, as `bpe.encode` wants it."""
        return {token: i for i, token in enumerate(self.tokens) if token}

    @cached_property
    def _encoding(self):
        import tiktoken  # here, so that whoever works on characters does without

        # Without a special token encode_to_numpy would look for an empty one before every byte.
        return tiktoken.Encoding("rungs", pat_str=FAST_SPLIT, mergeable_ranks=self.ids,
                                 special_tokens={SPECIALS[END]: END})

    def encode(self, text: str) -> list[int]:
        """The ids of `text`: those of the plain `bpe.encode`, by tiktoken, much faster."""
        if too_blank(text):
            return [i for word in split(text) for i in self._encoding.encode_ordinary(word)]
        return self._encoding.encode_ordinary(text)

    def twin(self) -> "Subwords":
        """The same with regular expressions of its own, which threads can take only in turn."""
        other = copy(self)
        other.__dict__.pop("_encoding", None)
        return other

    def encode_array(self, text: str) -> np.ndarray:
        """The ids of `text` as an array. Threads that call it run side by side: see `twin`."""
        if too_blank(text):
            return np.array(self.encode(text), dtype=self.dtype)
        text = well_formed(text)
        return self._encoding.encode_to_numpy(text, disallowed_special=()).astype(self.dtype)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, with U+FFFD where their bytes are not UTF-8."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`, which need not be UTF-8."""
        size = self.vocab_size
        return b"".join(self.tokens[i] for i in ids if 0 <= i < size)


class BytePairTokenizer(Subwords):
    """Byte pairs of your own: 4 special tokens, the 256 bytes (id 4 is byte 0), the merges."""

    kind = "bpe"

    def __init__(self, merges: list[tuple[int, int]]):
        """merges: pairs of ranks, see bpe.py. ValueError if no training can have made them."""
        super().__init__(vocabulary(merges))
        self.merges = [tuple(pair) for pair in merges]

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, progress: bool = False
    ) -> "BytePairTokenizer":
        """The tokenizer of `texts` with so many ids, or fewer if they have too few pairs to join.

        progress: show a bar if it takes longer. ValueError if the bytes alone need more ids.
        """
        merges = vocab_size - len(SPECIALS) - 256
        if merges < 0:
            raise ValueError(f"a vocabulary of {vocab_size} is too small: the 256 bytes and the "
                             f"{len(SPECIALS)} special tokens need {256 + len(SPECIALS)}")
        return cls(train_bpe(texts, merges, progress))

    def to_dict(self) -> dict:
        """Plain values for a checkpoint, read back by `tokenizer_from_dict`."""
        return {"kind": self.kind, "merges": [list(pair) for pair in self.merges]}

    @classmethod
    def from_dict(cls, d: dict) -> "BytePairTokenizer":
        """The tokenizer that `to_dict` described. ValueError: of another kind, or damaged."""
        return cls(cls.check(d).get("merges"))


class GPT2Tokenizer(Subwords):
    """GPT-2's vocabulary, each id 4 higher for the special tokens; the last is its <|endoftext|>.

    That one, 50256 + 4, gives no text and is never produced by `encode`: END is the end here.
    """

    kind = "gpt2"
    silent = (*Tokenizer.silent, 50256 + len(SPECIALS))

    def __init__(self):
        """ValueError, with the ways to get it, if the vocabulary is nowhere to be had."""
        super().__init__(gpt2_vocabulary() + [b""])

    def to_dict(self) -> dict:
        """Plain values for a checkpoint, read back by `tokenizer_from_dict`."""
        return {"kind": self.kind}

    @classmethod
    def from_dict(cls, d: dict) -> "GPT2Tokenizer":
        """The tokenizer. ValueError if `d` is of another kind, or the vocabulary not to be had."""
        cls.check(d)
        return cls()


TOKENIZERS = {kind.kind: kind for kind in (CharTokenizer, BytePairTokenizer, GPT2Tokenizer)}


def beginning(texts: Iterable[str], characters: int = 10**8) -> Iterator[str]:
    """The first of the texts, until so many characters are reached: enough to learn pairs from."""
    seen = 0
    for text in texts:
        yield text
        seen += len(text)
        if seen >= characters:
            return


def make_tokenizer(kind: str, vocab_size: int, splits: dict[str, Iterable[str]]) -> Tokenizer:
    """The tokenizer of that kind for the texts in splits: byte pairs are learned from train alone,
    and from no more of it than its first 100 million characters.

    vocab_size: at most so many byte pairs. ValueError as the kinds raise it.
    """
    if kind == "bpe":
        return BytePairTokenizer.train(beginning(splits["train"]), vocab_size, progress=True)
    if kind == "gpt2":
        return GPT2Tokenizer()
    return CharTokenizer.train(text for part in splits.values() for text in part)


def tokenizer_from_dict(d: dict) -> Tokenizer:
    """The tokenizer that some `to_dict` described. ValueError if its kind is unknown."""
    kind = d.get("kind") if isinstance(d, dict) else None
    if isinstance(kind, str) and kind in TOKENIZERS:
        return TOKENIZERS[kind].from_dict(d)
    raise ValueError(f"unknown kind of tokenizer {kind!r}; this version knows 'char', 'bpe' and "
                     "'gpt2', so a newer version may have written it")
