"""MLP: position t knows the last few tokens, each in a place of its own.

Bengio et al. (2003). The embeddings e of the last k tokens side by side, then a hidden layer
(and more of them, normalised, if asked for), then the logits:

    x = [e[t-k+1], ..., e[t]]        a = W x + b        y = tanh(a)        logits = U y + c

What lies before the beginning is zeros. Backward, with d for dL/d(logits) = (softmax - one-hot) / N
and every row a position, so that y (N, width) and d (N, V):

    dU = d' y        dc = sum of d        dy = d U        da = dy * (1 - y^2)
    dW = da' x       db = sum of da       dx = da W       de = sum of dx where that token stood
"""

import numpy as np

from data.cli import nearest

from .activations import ACTIVATIONS
from .initialisation import INITS
from .model import Model
from .norms import NORMS, BatchNorm, Dropout


class MLP(Model):
    """Embeddings, hidden layers, head: each forward line has its backward line below."""

    def __init__(
        self, vocab_size, block_size, context=8, embed=32, width=512, dropout=0.2, layers=1,
        activation="tanh", norm="none", init="xavier", *, rng=None,
    ):
        """ValueError: no such activation, norm or init."""
        super().__init__(vocab_size, block_size, context)
        self.layers, self.dropout = layers, dropout
        self.activation = choose("activation", ACTIVATIONS, activation)
        self.norm = choose("norm", {"none": None} | NORMS, norm)
        init = choose("init", INITS, init)
        rng = rng or np.random.default_rng(0)
        p = {"embedding.weight": rng.normal(size=(vocab_size, embed))}
        sizes = [context * embed] + [width] * layers
        for i in range(layers):
            p[f"layers.{i}.hidden.weight"] = init(rng, sizes[i + 1], sizes[i])
            p[f"layers.{i}.hidden.bias"] = np.zeros(width)
            for name in self.norm.WEIGHTS if self.norm else ():
                p[f"layers.{i}.{name}"] = np.full(width, float(name == "gain"))
            if self.norm is BatchNorm:
                self.averages[f"layers.{i}.mean"] = np.zeros(width, np.float32)
                self.averages[f"layers.{i}.variance"] = np.ones(width, np.float32)
        p["head.weight"] = 0.1 * init(rng, vocab_size, width)  # at first the loss is about ln V
        p["head.bias"] = np.zeros(vocab_size)
        self.parameters = {name: w.astype(np.float32) for name, w in p.items()}

    def forward(self, windows, rng=None):
        """windows (N, context) -> logits (N, V), and what backward needs of each line."""
        p = self.parameters
        table = np.concatenate([p["embedding.weight"], 0 * p["embedding.weight"][:1]])  # V: zeros
        x = table[windows].reshape(len(windows), -1)  # (N, context * embed)
        x, mask = Dropout.forward(x, self.dropout, rng)
        kept = [(windows, mask)]
        for i in range(self.layers):
            a = x @ p[f"layers.{i}.hidden.weight"].T + p[f"layers.{i}.hidden.bias"]
            n, norm = self.normalise(i, a, rng)
            y = self.activation.forward(n)  # (N, width)
            kept.append((x, norm, n, y))
            x = y
        x, mask = Dropout.forward(x, self.dropout, rng)
        kept.append((x, mask))
        return x @ p["head.weight"].T + p["head.bias"], kept

    def backward(self, d, kept):
        """d (N, V), by the logits -> by every parameter; the lines of forward from the last up."""
        p, g = self.parameters, {}
        (windows, first), *hidden, (x, last) = kept
        g["head.weight"], g["head.bias"] = d.T @ x, d.sum(0)
        d = Dropout.backward(d @ p["head.weight"], last)
        for i in reversed(range(self.layers)):
            x, norm, n, y = hidden[i]
            d = self.activation.backward(n, y, d)
            if self.norm:
                weights = [f"layers.{i}.{name}" for name in self.norm.WEIGHTS]
                d, *by_weights = self.norm.backward(d, p[f"layers.{i}.gain"], norm)
                g.update(zip(weights, by_weights))
            g[f"layers.{i}.hidden.weight"], g[f"layers.{i}.hidden.bias"] = d.T @ x, d.sum(0)
            d = d @ p[f"layers.{i}.hidden.weight"]
        d = Dropout.backward(d, first).reshape(windows.size, -1)  # (N * context, embed)
        one_hot = (windows.reshape(-1, 1) == np.arange(self.vocab_size)).astype(d.dtype)
        g["embedding.weight"] = one_hot.T @ d  # what every token's look-ups gave, added up
        return g

    def normalise(self, i, a, rng):
        """a (N, width) as layer i normalises it, and what backward needs."""
        if not self.norm:
            return a, None
        weights = [self.parameters[f"layers.{i}.{name}"] for name in self.norm.WEIGHTS]
        if self.norm is BatchNorm:
            averages = self.averages[f"layers.{i}.mean"], self.averages[f"layers.{i}.variance"]
            if rng is None:
                return BatchNorm.forward_averages(a, *weights, *averages), None
            BatchNorm.average(a, *averages)
        return self.norm.forward(a, *weights)


def choose(what: str, known: dict, name: str):
    """The variant of that name. ValueError with the nearest: there is none."""
    if name not in known:
        guess = nearest(str(name), known)
        raise ValueError(f"there is no {what} {name}.{guess} There are {', '.join(known)}.")
    return known[name]
