"""Initialisation: the first weights of a linear map, W (out, in), so that signals neither fade nor
blow up on their way through many layers, forward or backward.

A sum of `in` products has a variance of in * var(W) * mean(x^2): so var(W) about 1 / in keeps it.
"""

import numpy as np


def zeros(rng, rows, columns):
    """All 0, to show why not: where nothing differs, every unit gets the same gradient, so all stay
    alike; and where what comes after is 0 too, that gradient is 0. For biases it is right."""
    return np.zeros((rows, columns))


def xavier(rng, rows, columns):
    """Variance 2 / (in + out), between what forward and what backward ask for (Glorot & Bengio
    2010). For tanh and sigmoid, and for anything without a bend, such as the head."""
    return rng.normal(0, (2 / (rows + columns)) ** 0.5, (rows, columns))


def he(rng, rows, columns):
    """Variance 2 / in (He et al. 2015). For ReLU and its like: twice as much, as they let through
    only half."""
    return rng.normal(0, (2 / columns) ** 0.5, (rows, columns))


def orthogonal(rng, rows, columns):
    """Rows (or columns, the fewer) at right angles and of length 1 (Saxe et al. 2014): lengths are
    kept exactly, not on average. For recurrent maps and very deep networks."""
    q, r = np.linalg.qr(rng.normal(size=(max(rows, columns), min(rows, columns))))
    q = q * np.sign(np.diag(r))  # makes every such matrix as likely as any other (Mezzadri 2007)
    return q if rows >= columns else q.T


INITS = {"zeros": zeros, "xavier": xavier, "he": he, "orthogonal": orthogonal}
