"""LSTM: position t knows a summary of all tokens before it, with a memory that gates protect.

Hochreiter & Schmidhuber (1997), with the forget gate of Gers et al. (2000); for text Graves (2013).
The state is the memory c and what it shows of it, h. With * by elements, and a W, U and b for each
of the gates i, f, o and for what is new, n:

    i[t], f[t], o[t] = sigmoid(W x[t] + b + U h[t-1])       what to write, to keep, to show
    n[t] = tanh(W x[t] + b + U h[t-1])
    c[t] = f[t] * c[t-1] + i[t] * n[t]
    h[t] = o[t] * tanh(c[t])
"""

import torch
from torch import nn

from .model import LanguageModel


class Cell(nn.Module):
    """One recurrent layer: x (B, T, C) -> h at every step (B, T, C)."""

    def __init__(self, width: int):
        super().__init__()
        self.from_input = nn.Linear(width, 4 * width)
        self.from_state = nn.Linear(width, 4 * width, bias=False)

    def forward(self, x, positions, memory):
        B, T, C = x.shape
        zeros = x.new_zeros(B, C)
        h, c = memory or (zeros, zeros)
        keep = (positions > 0)[..., None].to(x.dtype).unbind(1)  # 0 where a document begins
        outputs = []
        for a, kept in zip(self.from_input(x).unbind(1), keep):  # the inputs' share, all at once
            h, c = h * kept, c * kept
            new, gates = (a + self.from_state(h)).split([C, 3 * C], 1)
            i, f, o = torch.sigmoid(gates).chunk(3, 1)
            c = f * c + i * torch.tanh(new)
            h = o * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs, 1), (h, c)


class LSTM(LanguageModel):
    """Recurrent layers, one on the other."""

    def __init__(self, vocab_size, block_size, layers=1, width=176, dropout=0.2):
        super().__init__(vocab_size, block_size, width, dropout=dropout)
        self.layers.extend(Cell(width) for _ in range(layers))
