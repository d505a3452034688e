"""Files in and out: sets of texts, tokenizers, batches, run folders.

    dataset = load("names")
    tokenizer = CharTokenizer.train(text for split in dataset.splits.values() for text in split)
    tokens, targets = batches(dataset, tokenizer, block_size=16, batch_size=32)(seed=1, step=0)

`python -m data SOURCE` shows what a text holds. Texts too large for memory are streamed, and their
tokens kept in a cache: see corpus.py and cache.py. NumPy only, but for the checkpoints in runs.py,
which need PyTorch and are imported from there; tiktoken and regex are imported where byte pairs
are first used.
"""

from .batches import (
    LineBatches,
    TextBatches,
    batches,
    characters,
    default_block_size,
    evaluation_batches,
    extent,
    longest,
    order,
    split_ids,
)
from .cache import tokens_of
from .corpus import Streamed
from .sets import SETS, Dataset, load, names_with_origins, size, tales
from .tokenizer import (
    ASSISTANT,
    END,
    SPECIALS,
    TOKENIZERS,
    TURN,
    USER,
    BytePairTokenizer,
    CharTokenizer,
    Decoder,
    GPT2Tokenizer,
    Tokenizer,
    make_tokenizer,
    tokenizer_from_dict,
)

__all__ = [
    "ASSISTANT", "END", "SETS", "SPECIALS", "TOKENIZERS", "TURN", "USER", "BytePairTokenizer",
    "CharTokenizer", "Dataset", "Decoder", "GPT2Tokenizer", "LineBatches", "Streamed",
    "TextBatches", "Tokenizer", "batches", "characters", "default_block_size", "evaluation_batches",
    "extent", "load", "longest", "make_tokenizer", "names_with_origins", "order", "size",
    "split_ids", "tales", "tokenizer_from_dict", "tokens_of",
]
