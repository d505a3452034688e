"""What the two NumPy stages share: the ladder's contract, for models of the last few tokens.

    tokens (B, T) -> windows (N, context) of token ids -> logits (N, V)

A stage defines `forward` from windows to logits and `backward` from their gradient to that of every
parameter. Parameters have the names and shapes of the PyTorch stage's, so weights fit both.
"""

from dataclasses import dataclass

import numpy as np

from .losses import CrossEntropy

IGNORED = -1  # a target that does not count, as in padding


@dataclass
class State:
    """position (B,): tokens of its document that a row has seen. segment (B,): which document.
    recent (B, context - 1): the last tokens."""

    position: np.ndarray
    segment: np.ndarray
    recent: np.ndarray


class Model:
    """parameters, averages: name -> array; averages change in training without a gradient."""

    def __init__(self, vocab_size: int, block_size: int, context: int):
        """context: how many tokens position t knows, the one at t included."""
        self.vocab_size, self.block_size, self.context = vocab_size, block_size, context
        self.parameters: dict[str, np.ndarray] = {}
        self.averages: dict[str, np.ndarray] = {}

    def __call__(self, tokens, state=None, segments=None):
        """tokens (B, T) -> logits (B, T, V) and the State after them; see makemore/model.py."""
        windows, state = self.windows(tokens, state, segments)
        logits, _ = self.forward(windows.reshape(-1, self.context))
        return logits.reshape(*tokens.shape, -1), state

    def loss(self, tokens, targets, segments=None, rng=None) -> float:
        """Mean nats over the targets (B, T) that are not -1. rng: as in `gradients`; None: in use,
        with nothing dropped and the averages of training."""
        windows, targets = self.counted(tokens, targets, segments)
        return CrossEntropy().forward(self.forward(windows, rng)[0], targets)

    def gradients(self, tokens, targets, segments, rng):
        """The loss in training, and its gradient by every parameter: name -> array.

        rng: the numpy Generator that dropout draws from.
        """
        windows, targets = self.counted(tokens, targets, segments)
        logits, kept = self.forward(windows, rng)
        loss = CrossEntropy()
        return loss.forward(logits, targets), self.backward(loss.backward(logits, targets), kept)

    def counted(self, tokens, targets, segments):
        """windows (N, context) and targets (N,) of the positions that count: padding costs none."""
        if tokens.shape != targets.shape or tokens.ndim != 2:
            raise ValueError(f"tokens and targets must be of one shape (B, T), not {tokens.shape} "
                             f"and {targets.shape}")
        windows, _ = self.windows(tokens, None, segments)
        counts = targets != IGNORED
        return windows[counts], targets[counts]

    def windows(self, tokens, state, segments):
        """The last `context` tokens at every position, (B, T, context), and the state after.

        V stands for what is not there: before the beginning, and in another document.
        """
        if tokens.min() < 0 or tokens.max() >= self.vocab_size:
            wrong = tokens[(tokens < 0) | (tokens >= self.vocab_size)][0]
            raise ValueError(f"the token {wrong} is out of range: there are {self.vocab_size}, "
                             f"0 to {self.vocab_size - 1}")
        (B, T), reach = tokens.shape, self.context - 1
        zeros = np.zeros(B, tokens.dtype)
        before = state or State(zeros, zeros, np.zeros((B, reach), tokens.dtype))
        positions = document_positions(tokens, state, segments)
        seen = np.concatenate([before.recent, tokens], 1)  # (B, reach + T)
        windows = np.lib.stride_tricks.sliding_window_view(seen, self.context, axis=1)
        ages = np.arange(reach, -1, -1)  # the oldest comes first
        windows = np.where(ages <= positions[..., None], windows, self.vocab_size)
        segment = before.segment if segments is None else segments[:, -1]
        return windows, State(positions[:, -1] + 1, segment, seen[:, T:])


def document_positions(tokens, state, segments):
    """For tokens (B, T): how many tokens of its own document came before each, (B, T)."""
    B, T = tokens.shape
    steps = np.broadcast_to(np.arange(T), (B, T))
    if segments is None:
        return steps if state is None else state.position[:, None] + steps
    starts = np.ones((B, T), bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    before = np.zeros(B, int)
    if state is not None:
        starts[:, 0] = segments[:, 0] != state.segment
        before = state.position
    begun = np.maximum.accumulate(np.where(starts, steps, -before[:, None]), axis=1)
    return steps - begun
