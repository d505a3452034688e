"""Files in and out: sets of texts, tokenizers, batches, run folders.

    dataset = load("names")
    tokenizer = CharTokenizer.train(text for split in dataset.splits.values() for text in split)
    tokens, targets = batches(dataset, tokenizer, block_size=16, batch_size=32)(seed=1, step=0)

`python -m data SOURCE` shows what a text holds. NumPy only, but for the checkpoints in runs.py,
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
    longest,
    order,
    split_ids,
)
from .sets import SETS, Dataset, load, names_with_origins, tales
from .tokenizer import (
    ASSISTANT,
    END,
    SPECIALS,
    TURN,
    USER,
    BytePairTokenizer,
    CharTokenizer,
    Decoder,
    GPT2Tokenizer,
    Tokenizer,
    tokenizer_from_dict,
)

__all__ = [
    "ASSISTANT", "END", "SETS", "SPECIALS", "TURN", "USER", "BytePairTokenizer", "CharTokenizer",
    "Dataset", "Decoder", "GPT2Tokenizer", "LineBatches", "TextBatches", "Tokenizer", "batches",
    "characters", "default_block_size", "evaluation_batches", "load", "longest",
    "names_with_origins", "order", "split_ids", "tales", "tokenizer_from_dict",
]
