"""Activations: what bends the features between two linear maps, and the slope that comes back.

    y = forward(x)                 of any shape, one number at a time (softmax: a row at a time)
    dx = backward(x, y, dy)        dy = dL/dy, dx = dL/dx = dy * the slope at x

Without one, two linear maps in a row are one linear map, and depth is worth nothing.
"""

import numpy as np


class Sigmoid:
    """1 / (1 + e^-x), from 0 to 1. For gates and yes-or-no; inside a network its slope, at most
    1/4, makes gradients fade with depth."""

    @staticmethod
    def forward(x):
        e = np.exp(-np.abs(x))  # of what is at most 0, so that nothing overflows
        return np.where(x >= 0, 1, e) / (1 + e)

    @staticmethod
    def backward(x, y, dy):
        return dy * y * (1 - y)


class Tanh:
    """A sigmoid from -1 to 1, centred. For the state of a recurrent network, which it keeps in
    bounds, and for shallow ones; saturates at both ends."""

    @staticmethod
    def forward(x):
        return np.tanh(x)

    @staticmethod
    def backward(x, y, dy):
        return dy * (1 - y * y)


class ReLU:
    """max(0, x) (Nair & Hinton 2010). The plain choice for depth: slope 1 wherever it is on; a unit
    that is off for every input is dead and learns no more."""

    @staticmethod
    def forward(x):
        return np.maximum(x, 0)

    @staticmethod
    def backward(x, y, dy):
        return dy * (x > 0)


class LeakyReLU:
    """x above 0, a little of it below (Maas et al. 2013). Where units of a ReLU die."""

    SLOPE = 0.01

    @classmethod
    def forward(cls, x):
        return np.where(x > 0, x, cls.SLOPE * x)

    @classmethod
    def backward(cls, x, y, dy):
        return dy * np.where(x > 0, 1, cls.SLOPE).astype(dy.dtype)


class ELU:
    """x above 0, e^x - 1 below (Clevert et al. 2016). A ReLU whose mean is nearer to 0, for
    networks without normalisation."""

    @staticmethod
    def forward(x):
        return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))

    @staticmethod
    def backward(x, y, dy):
        return dy * np.where(x > 0, 1, y + 1)  # below 0 the slope is e^x


class GELU:
    """x times the chance that a normal number is below x (Hendrycks & Gimpel 2016), in the tanh
    form that GPT-2 uses. For transformers: smooth, and a little below 0 where a ReLU is flat."""

    RATE, CUBE = (2 / np.pi) ** 0.5, 0.044715

    @classmethod
    def forward(cls, x):
        return 0.5 * x * (1 + np.tanh(cls.RATE * (x + cls.CUBE * x * x * x)))

    @classmethod
    def backward(cls, x, y, dy):
        t = np.tanh(cls.RATE * (x + cls.CUBE * x * x * x))
        inner = cls.RATE * (1 + 3 * cls.CUBE * x * x)  # the slope of what is in the tanh
        return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner)


class SiLU:
    """x times its sigmoid, or swish (Elfwing et al. 2018; Ramachandran et al. 2017). Much like
    GELU at a lower price; in the gated layers of newer transformers (SwiGLU)."""

    @staticmethod
    def forward(x):
        return x * Sigmoid.forward(x)

    @staticmethod
    def backward(x, y, dy):
        s = Sigmoid.forward(x)
        return dy * (s + y * (1 - s))


class Softmax:
    """e^x over the sum of its row: numbers to probabilities. For the output, and for the weights of
    attention; not between layers, where every unit would hold the others down."""

    @staticmethod
    def forward(x):
        e = np.exp(x - x.max(-1, keepdims=True))  # the largest is 1: nothing overflows
        return e / e.sum(-1, keepdims=True)

    @staticmethod
    def backward(x, y, dy):
        return y * (dy - (dy * y).sum(-1, keepdims=True))  # all of a row share what is to give


ACTIVATIONS = {
    "sigmoid": Sigmoid, "tanh": Tanh, "relu": ReLU, "leaky-relu": LeakyReLU, "elu": ELU,
    "gelu": GELU, "silu": SiLU, "softmax": Softmax,
}
