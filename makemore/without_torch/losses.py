"""Losses: one number for how far the outputs are from the targets, and where downhill is.

    loss = forward(outputs, targets)          the mean, a number
    d_outputs = backward(outputs, targets)    dL/d_outputs, of the shape of the outputs

ValueError: shapes that do not fit, labels out of range, outputs that are not numbers.
"""

import numpy as np

from .activations import Sigmoid, Softmax


class MeanSquaredError:
    """The mean of (output - target)^2. For targets that are quantities (any shape), with errors
    that are about normal; for classes its slope fades just where the answer is most wrong."""

    def forward(self, outputs, targets):
        check_shapes(outputs, targets)
        return np.mean((outputs - targets) ** 2)

    def backward(self, outputs, targets):
        check_shapes(outputs, targets)
        return 2 * (outputs - targets) / outputs.size


class BinaryCrossEntropy:
    """-t ln p - (1 - t) ln(1 - p) with p = sigmoid(logit), in nats. For yes-or-no questions, any
    number of them at once: logits and targets in [0, 1] of any shape."""

    def forward(self, outputs, targets):
        check_shares(outputs, targets)
        fits = np.maximum(outputs, 0) - outputs * targets  # ln(1 + e^x) without overflow:
        return np.mean(fits + np.log1p(np.exp(-np.abs(outputs))))

    def backward(self, outputs, targets):
        check_shares(outputs, targets)
        return (Sigmoid.forward(outputs) - targets) / outputs.size


class CrossEntropy:
    """-ln of the probability that the softmax gives the right class, in nats. For one class out of
    many, such as the next token: logits (N, V), targets (N,) from 0 to V - 1.

    smoothing (Szegedy et al. 2016): that share of every target is spread over all V classes, so
    that no logit is driven without end.
    """

    def __init__(self, smoothing: float = 0.0):
        if not 0 <= smoothing < 1:
            raise ValueError(f"the label smoothing must be at least 0 and below 1, not {smoothing}")
        self.smoothing = smoothing

    def forward(self, outputs, targets):
        check_labels(outputs, targets)
        highest = outputs.max(1, keepdims=True)
        log_sum = highest + np.log(np.exp(outputs - highest).sum(1, keepdims=True))
        nats = log_sum - outputs  # of every class
        right = np.take_along_axis(nats, targets[:, None], 1)
        return (1 - self.smoothing) * np.mean(right) + self.smoothing * np.mean(nats)

    def backward(self, outputs, targets):
        check_labels(outputs, targets)
        N, V = outputs.shape
        d = Softmax.forward(outputs)  # what is, less what should be:
        d -= self.smoothing / V
        d[np.arange(N), targets] -= 1 - self.smoothing
        return d / N


class Hinge:
    """Sum of max(0, 1 + a wrong output - the right one) over the wrong ones, over V (Weston &
    Watkins 1999). For a decision with a margin, without probabilities: outputs (N, V)."""

    def forward(self, outputs, targets):
        check_labels(outputs, targets)
        return np.maximum(self.short(outputs, targets), 0).sum() / outputs.size

    def backward(self, outputs, targets):
        check_labels(outputs, targets)
        d = (self.short(outputs, targets) > 0).astype(outputs.dtype)
        d[np.arange(len(targets)), targets] = -d.sum(1)
        return d / outputs.size

    def short(self, outputs, targets):
        """By how much each wrong output comes too near to the right one, (N, V)."""
        rows = np.arange(len(targets))
        short = 1 + outputs - outputs[rows, targets][:, None]
        short[rows, targets] = 0
        return short


class NotNumbers(ValueError):
    """Outputs of a model that has diverged."""


def check_shapes(outputs, targets) -> None:
    """ValueError unless they are of one shape, NotNumbers unless the outputs are numbers."""
    if outputs.shape != targets.shape:
        raise ValueError(f"outputs of shape {outputs.shape} need targets of the same shape, "
                         f"not {targets.shape}")
    if np.isnan(outputs).any():
        raise NotNumbers(f"{np.isnan(outputs).sum()} of the {outputs.size} outputs are NaN; "
                         "is the learning rate too high?")


def check_shares(outputs, targets) -> None:
    """check_shapes, and ValueError unless the targets are in [0, 1]."""
    check_shapes(outputs, targets)
    if not np.all((targets >= 0) & (targets <= 1)):
        raise ValueError("targets must be from 0 to 1, a share of yes")


def check_labels(outputs, targets) -> None:
    """ValueError unless outputs (N, V) are numbers and targets (N,) whole ones in 0..V-1."""
    if outputs.ndim != 2 or 0 in outputs.shape:
        raise ValueError(f"outputs must be of shape (N, V), none of them 0, not {outputs.shape}")
    N, V = outputs.shape
    if targets.shape != (N,):
        raise ValueError(f"outputs of shape {(N, V)} need targets of shape {(N,)}, "
                         f"not {targets.shape}")
    if not np.issubdtype(targets.dtype, np.integer):
        raise ValueError(f"targets must be whole numbers, not of type {targets.dtype}")
    if targets.min() < 0 or targets.max() >= V:
        wrong = targets[(targets < 0) | (targets >= V)][0]
        raise ValueError(f"the target {wrong} is out of range: there are {V} classes, 0 to {V - 1}")
    check_shapes(outputs, outputs)


LOSSES = {
    "mean-squared-error": MeanSquaredError, "binary-cross-entropy": BinaryCrossEntropy,
    "cross-entropy": CrossEntropy, "hinge": Hinge,
}
