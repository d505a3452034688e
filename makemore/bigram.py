"""Bigram: position t knows the token at t, and nothing of those before it.

Shannon (1948), after Markov (1913). A table with a row for each token a: the logits of every
token b that may follow,

    logits[t] = table[tokens[t]]

which training takes to the logarithm of how often b follows a. The state is nothing.
"""

from torch import nn

from .model import LanguageModel


class Bigram(LanguageModel):
    """The embedding is the table, so there is nothing to mix and no head to apply."""

    def __init__(self, vocab_size, block_size):
        super().__init__(vocab_size, block_size, vocab_size, features=0)
        nn.init.normal_(self.embedding.weight, std=0.1)
