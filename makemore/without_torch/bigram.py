"""Bigram: position t knows the token at t, and nothing of those before it.

Shannon (1948), after Markov (1913). A table with a row for each token a: the logits of every
token b that may follow. There are two ways to fill it:

    by counting           table[a, b] = ln (how often b follows a)
    by gradient descent   d loss / d table[a] = sum of (softmax - one-hot) where a stands, over N

Both end in the same table, but for a constant in each row, which the softmax takes away again: the
second gradient is 0 just where the softmax is the share that was counted.
"""

import numpy as np

from .model import Model


class Bigram(Model):
    """The embedding is the table: a look-up, and nothing else to learn."""

    def __init__(self, vocab_size, block_size, *, rng=None):
        super().__init__(vocab_size, block_size, context=1)
        rng = rng or np.random.default_rng(0)
        table = rng.normal(0, 0.1, (vocab_size, vocab_size)).astype(np.float32)
        self.parameters["embedding.weight"] = table

    def forward(self, windows, rng=None):
        """windows (N, 1) -> logits (N, V), and what backward needs."""
        tokens = windows[:, 0]
        return self.parameters["embedding.weight"][tokens], tokens

    def backward(self, d, tokens):
        """d (N, V), by the logits -> by the table: every row gets what came of its look-ups."""
        one_hot = tokens[:, None] == np.arange(self.vocab_size)  # (N, V)
        return {"embedding.weight": one_hot.T.astype(d.dtype) @ d}

    def count(self, batches, smoothing: float = 0.5) -> None:
        """Fill the table from batches of (tokens, targets, ...), each pair counted once.

        smoothing is added to every count, so that what was never seen is only unlikely; a half is
        what Krichevsky & Trofimov (1981) add.
        """
        V = self.vocab_size
        counts = np.full(V * V, max(smoothing, 1e-9))
        for tokens, targets, *segments in batches:
            windows, targets = self.counted(tokens, targets, *(segments or [None]))
            counts += np.bincount(windows[:, 0] * V + targets, minlength=V * V)
        counts = counts.reshape(V, V)
        self.parameters["embedding.weight"][:] = np.log(counts / counts.sum(1, keepdims=True))
