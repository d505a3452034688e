"""CNN: position t knows a window of 2**layers tokens, which doubles with every layer.

WaveNet, van den Oord et al. (2016): causal convolutions of two taps, t and t - d, with the
dilation d = 1, 2, 4, ... from layer to layer; each adds to its input. With * by elements:

    n[t], g[t] = tanh(W_n [x[t-d], x[t]] + b_n), sigmoid(W_g [x[t-d], x[t]] + b_g)
    y[t] = x[t] + W_out (n[t] * g[t]) + b_out

What lies before the beginning is zeros. The state is the last d inputs of every layer.
"""

import torch
from torch import nn

from .model import LanguageModel


class Convolution(nn.Module):
    """A gated, dilated convolution: x (B, T, C) -> (B, T, C)."""

    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.reach = dilation  # how far it looks back
        self.taps = nn.Linear(2 * width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x, positions, memory):
        B, T, C = x.shape
        (before,) = memory or (x.new_zeros(B, self.reach, C),)
        seen = torch.cat([before, x], 1)  # (B, reach + T, C)
        known = positions >= self.reach  # (B, T): not that of another document
        earlier = seen[:, :T] * known[..., None]
        new, gate = self.taps(torch.cat([earlier, x], 2)).chunk(2, 2)
        return x + self.out(torch.tanh(new) * torch.sigmoid(gate)), (seen[:, T:],)


class CNN(LanguageModel):
    """Convolutions, one on the other, each twice as far apart as the one before."""

    def __init__(self, vocab_size, block_size, layers=4, width=96, dropout=0.1):
        super().__init__(vocab_size, block_size, width, dropout=dropout)
        self.layers.extend(Convolution(width, 2**i) for i in range(layers))
