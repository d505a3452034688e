"""What keeps features and weights in bounds: normalisation, dropout, penalties.

    y, kept = forward(x, gain, shift)              x, y (N, C); gain, shift (C,)
    dx, d_gain, d_shift = backward(dy, gain, kept)

A norm's scale hangs on every number it is taken over, so its backward subtracts from each gradient
what all of them have in common, and what lies along the normalised features.
"""

import numpy as np

EPSILON = 1e-5  # keeps a constant feature from being divided by 0


class BatchNorm:
    """Every feature to mean 0 and variance 1 over the batch (Ioffe & Szegedy 2015). For
    convolutions and plain networks with large batches; in use it needs averages from training."""

    WEIGHTS = ("gain", "shift")

    @staticmethod
    def forward(x, gain, shift):
        centred = x - x.mean(0)
        spread = np.sqrt(np.square(centred).mean(0) + EPSILON)
        normal = centred / spread
        return normal * gain + shift, (normal, spread)

    @staticmethod
    def backward(dy, gain, kept):
        normal, spread = kept
        d = dy * gain
        dx = (d - d.mean(0) - normal * (d * normal).mean(0)) / spread
        return dx, (dy * normal).sum(0), dy.sum(0)

    @staticmethod
    def forward_averages(x, gain, shift, mean, variance):
        """In use, where an answer must not hang on what else is in the batch."""
        return (x - mean) / np.sqrt(variance + EPSILON) * gain + shift

    @staticmethod
    def average(x, mean, variance, share=0.1):
        """Move the averages (C,), in place, a share of the way to those of this batch."""
        mean += share * (x.mean(0) - mean)
        variance += share * (x.var(0, ddof=1 if len(x) > 1 else 0) - variance)


class LayerNorm:
    """Every position to mean 0 and variance 1 over its features (Ba et al. 2016). For recurrent
    networks and transformers: the same in training and in use, whatever the batch."""

    WEIGHTS = ("gain", "shift")

    @staticmethod
    def forward(x, gain, shift):
        centred = x - x.mean(1, keepdims=True)
        spread = np.sqrt(np.square(centred).mean(1, keepdims=True) + EPSILON)
        normal = centred / spread
        return normal * gain + shift, (normal, spread)

    @staticmethod
    def backward(dy, gain, kept):
        normal, spread = kept
        d = dy * gain
        along = normal * (d * normal).mean(1, keepdims=True)
        dx = (d - d.mean(1, keepdims=True) - along) / spread
        return dx, (dy * normal).sum(0), dy.sum(0)


class RMSNorm:
    """Every position to a mean square of 1 (Zhang & Sennrich 2019): a LayerNorm without the mean
    and the shift, which are seldom missed. For newer transformers."""

    WEIGHTS = ("gain",)

    @staticmethod
    def forward(x, gain):
        spread = np.sqrt(np.square(x).mean(1, keepdims=True) + EPSILON)
        normal = x / spread
        return normal * gain, (normal, spread)

    @staticmethod
    def backward(dy, gain, kept):
        normal, spread = kept
        d = dy * gain
        dx = (d - normal * (d * normal).mean(1, keepdims=True)) / spread
        return dx, (dy * normal).sum(0)


class Dropout:
    """Leaves out a random share of the features in training (Srivastava et al. 2014). For networks
    that learn their training data by heart; the rest is scaled up, so in use there is nothing."""

    @staticmethod
    def forward(x, share, rng):
        """rng: a numpy Generator, or None in use. y and the mask for backward."""
        if rng is None or share == 0:
            return x, None
        mask = (rng.random(x.shape, dtype=np.float32) >= share) * x.dtype.type(1 / (1 - share))
        return x * mask, mask

    @staticmethod
    def backward(dy, mask):
        return dy if mask is None else dy * mask


class L1:
    """strength * sum of |w| (Tibshirani 1996), added to the loss. Where most weights should be
    exactly 0: it pulls at all of them alike, however small."""

    @staticmethod
    def forward(w, strength):
        return strength * np.abs(w).sum()

    @staticmethod
    def backward(w, strength):
        return strength * np.sign(w)


class L2:
    """strength / 2 * sum of w^2, added to the loss. Against large weights: it pulls in proportion.
    With SGD the same as weight decay; with Adam not, hence AdamW."""

    @staticmethod
    def forward(w, strength):
        return strength / 2 * np.square(w).sum()

    @staticmethod
    def backward(w, strength):
        return strength * w


NORMS = {"batch": BatchNorm, "layer": LayerNorm, "rms": RMSNorm}
PENALTIES = {"dropout": Dropout, "l1": L1, "l2": L2}
