"""Text to token ids and back. The first ids of every tokenizer are the special tokens.

A special token is never read out of a text: "<|end|>" in a text is seven plain characters. Nor does
it give text, nor does an id outside the vocabulary: a model's may be padded to a round size.
"""

import codecs
from collections.abc import Iterable
from functools import cached_property

import numpy as np

from .bpe import SPLIT, gpt2_vocabulary, split, train_bpe, vocabulary, well_formed

SPECIALS = ("<|end|>", "<|user|>", "<|assistant|>", "<|turn|>")
# <|end|> is start and end of a document in one: what comes after one end is the next start.
END, USER, ASSISTANT, TURN = range(len(SPECIALS))


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
    """What all have: a kind, vocab_size, encode, decode, decode_bytes, to_dict, and these."""

    kind: str

    def decoder(self) -> Decoder:
        """For tokens that come one by one."""
        return Decoder(self)

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
        found = set()
        for text in texts:
            found.update(text)
        return cls("".join(sorted(found)))

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

        return tiktoken.Encoding("rungs", pat_str=SPLIT, mergeable_ranks=self.ids,
                                 special_tokens={})

    def encode(self, text: str) -> list[int]:
        """The ids of `text`: those of the plain `bpe.encode`, by tiktoken, much faster."""
        # tiktoken fails at about a million blanks in a row, unless they are all that it is given.
        # So many fill at least one of these blocks: then it gets the text word by word.
        block = 200_000
        last = len(text) - block
        if any(text[i:i + block].isspace() for i in range(0, last + 1, block)):
            return [i for word in split(text) for i in self._encoding.encode_ordinary(word)]
        return self._encoding.encode_ordinary(text)

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


def tokenizer_from_dict(d: dict) -> Tokenizer:
    """The tokenizer that some `to_dict` described. ValueError if its kind is unknown."""
    kind = d.get("kind") if isinstance(d, dict) else None
    for tokenizer in (CharTokenizer, BytePairTokenizer, GPT2Tokenizer):
        if kind == tokenizer.kind:
            return tokenizer.from_dict(d)
    raise ValueError(f"unknown kind of tokenizer {kind!r}; this version knows 'char', 'bpe' and "
                     "'gpt2', so a newer version may have written it")
