"""Text to token ids and back. The first ids of every tokenizer are the special tokens."""

from collections.abc import Iterable

SPECIALS = ("<|end|>", "<|user|>", "<|assistant|>", "<|turn|>")
# <|end|> is start and end of a document in one: what comes after one end is the next start.
END, USER, ASSISTANT, TURN = range(len(SPECIALS))


class CharTokenizer:
    """One token a character, after the special tokens.

    A special token is never read out of a text: "<|end|>" in a text is seven plain characters.
    """

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
        """The text of `ids`; special tokens and ids outside the vocabulary give no text.

        A model's vocabulary may be padded to a round size, so it can produce unused ids.
        """
        first, size = len(SPECIALS), self.vocab_size
        return "".join(self.characters[i - first] for i in ids if first <= i < size)

    def to_dict(self) -> dict:
        """Plain values for a checkpoint, read back by `tokenizer_from_dict`."""
        return {"kind": "char", "characters": self.characters}

    @classmethod
    def from_dict(cls, d: dict) -> "CharTokenizer":
        """The tokenizer that `to_dict` described. ValueError if it was of another kind."""
        if d.get("kind") != "char":
            raise ValueError(f"expected a tokenizer of kind 'char' but found {d.get('kind')!r}; "
                             "read it with tokenizer_from_dict")
        return cls(d["characters"])


def tokenizer_from_dict(d: dict) -> CharTokenizer:
    """The tokenizer that some `to_dict` described. ValueError if its kind is unknown."""
    kind = d.get("kind")
    if kind == "char":
        return CharTokenizer.from_dict(d)
    raise ValueError(f"unknown kind of tokenizer {kind!r}; this version knows 'char', "
                     "so a newer version may have written it")
