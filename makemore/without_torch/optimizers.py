"""Optimizers: how a gradient becomes a step. Each is the one before it and one more idea.

    optimizer = Adam(parameters)            parameters: name -> array, changed in place
    optimizer.step(gradients, lr)           gradients: name -> array of the same shape
    python -m makemore diff rmsprop adam    what changes from one to the next
"""

import numpy as np


class Optimizer:
    """What all share: memory holds, for each parameter, arrays of its shape that begin at 0."""

    def __init__(self, parameters: dict[str, np.ndarray], arrays: int = 0):
        self.parameters, self.steps = parameters, 0
        self.memory = {n: [np.zeros_like(w) for _ in range(arrays)] for n, w in parameters.items()}

    def step(self, gradients: dict[str, np.ndarray], lr: float) -> None:
        """Change every parameter w, given its gradient g of the same shape."""
        self.steps += 1
        for name, w in self.parameters.items():
            g = gradients[name]
            if g.shape != w.shape:
                raise ValueError(f"{name} is of shape {w.shape}, its gradient of {g.shape}")
            self.update(w, g, lr, *self.memory[name])


class SGD(Optimizer):
    """Straight downhill (Robbins & Monro 1951). Where every direction is about equally steep."""

    def update(self, w, g, lr):
        w -= lr * g


class Momentum(Optimizer):
    """Downhill with inertia (Polyak 1964): along a ravine steps add up. For convolutional nets."""

    def __init__(self, parameters, momentum=0.9):
        super().__init__(parameters, arrays=1)
        self.momentum = momentum

    def update(self, w, g, lr, velocity):
        velocity *= self.momentum
        velocity += g
        w -= lr * velocity


class Nesterov(Optimizer):
    """Momentum that looks ahead (Nesterov 1983; Sutskever et al. 2013). Calmer at high rates."""

    def __init__(self, parameters, momentum=0.9):
        super().__init__(parameters, arrays=1)
        self.momentum = momentum

    def update(self, w, g, lr, velocity):
        velocity *= self.momentum
        velocity += g
        w -= lr * (g + self.momentum * velocity)


class AdaGrad(Optimizer):
    """A rate for every weight (Duchi et al. 2011). For sparse features; in time its steps fade."""

    def __init__(self, parameters, epsilon=1e-10):
        super().__init__(parameters, arrays=1)
        self.epsilon = epsilon

    def update(self, w, g, lr, squares):
        squares += g * g
        w -= lr * g / (np.sqrt(squares) + self.epsilon)


class RMSProp(Optimizer):
    """AdaGrad that forgets (Tieleman & Hinton 2012). For recurrent networks and goals that move."""

    def __init__(self, parameters, keep=0.99, epsilon=1e-8):
        super().__init__(parameters, arrays=1)
        self.keep, self.epsilon = keep, epsilon

    def update(self, w, g, lr, squares):
        squares *= self.keep
        squares += (1 - self.keep) * g * g
        w -= lr * g / (np.sqrt(squares) + self.epsilon)


class Adam(Optimizer):
    """RMSProp with momentum, corrected for beginning at 0 (Kingma & Ba 2015). A safe choice."""

    def __init__(self, parameters, keep_mean=0.9, keep=0.999, epsilon=1e-8):
        super().__init__(parameters, arrays=2)
        self.keep_mean, self.keep, self.epsilon = keep_mean, keep, epsilon

    def update(self, w, g, lr, squares, mean):
        squares *= self.keep
        squares += (1 - self.keep) * g * g
        mean *= self.keep_mean
        mean += (1 - self.keep_mean) * g
        m, s = mean / (1 - self.keep_mean**self.steps), squares / (1 - self.keep**self.steps)
        w -= lr * m / (np.sqrt(s) + self.epsilon)


class AdamW(Optimizer):
    """Adam with weight decay beside the gradient, not in it, where it would be divided by the root
    too (Loshchilov & Hutter 2019). The standard for transformers."""

    def __init__(self, parameters, keep_mean=0.9, keep=0.999, epsilon=1e-8, decay=0.01):
        super().__init__(parameters, arrays=2)
        self.keep_mean, self.keep, self.epsilon = keep_mean, keep, epsilon
        self.decay = decay

    def update(self, w, g, lr, squares, mean):
        w *= 1 - lr * self.decay
        squares *= self.keep
        squares += (1 - self.keep) * g * g
        mean *= self.keep_mean
        mean += (1 - self.keep_mean) * g
        m, s = mean / (1 - self.keep_mean**self.steps), squares / (1 - self.keep**self.steps)
        w -= lr * m / (np.sqrt(s) + self.epsilon)


class Muon(Optimizer):
    """Momentum made orthogonal: as large a step in all directions of a matrix (Jordan et al. 2024;
    of the size of Adam's, Liu et al. 2025). For matrices between features; AdamW for the rest."""

    def __init__(self, parameters, momentum=0.95, decay=0.0):
        super().__init__(parameters, arrays=1)
        self.momentum, self.decay = momentum, decay

    def update(self, w, g, lr, mean):
        w *= 1 - lr * self.decay
        mean *= self.momentum
        mean += (1 - self.momentum) * g
        ahead = self.momentum * mean + (1 - self.momentum) * g
        w -= lr * 0.2 * max(w.shape) ** 0.5 * orthogonalise(ahead)


def orthogonalise(g):
    """Brings every singular value of a matrix near 1: five times x <- a x + b x^3 + c x^5 (Newton
    and Schulz's iteration with Jordan's coefficients), which needs nothing but products."""
    x = g if len(g) <= len(g.T) else g.T
    x = x / (np.sqrt(np.square(x).sum()) + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x if len(g) <= len(g.T) else x.T


OPTIMIZERS = {"sgd": SGD, "momentum": Momentum, "nesterov": Nesterov, "adagrad": AdaGrad,
              "rmsprop": RMSProp, "adam": Adam, "adamw": AdamW, "muon": Muon}
