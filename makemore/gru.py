"""GRU: position t knows a summary of all tokens before it, which two gates rewrite in part.

Cho et al. (2014), with the reset gate applied after the product, so that one product serves all.
The state is the summary h. With * by elements, and a W, U and b for each of the gates r, z and for
what is new, n:

    r[t], z[t] = sigmoid(W x[t] + b + U h[t-1])             what to forget for now, what to keep
    n[t] = tanh(W x[t] + b + r[t] * U h[t-1])
    h[t] = z[t] * h[t-1] + (1 - z[t]) * n[t]
"""

import torch
from torch import nn

from .model import LanguageModel


class Cell(nn.Module):
    """One recurrent layer: x (B, T, C) -> h at every step (B, T, C)."""

    def __init__(self, width: int):
        super().__init__()
        self.from_input = nn.Linear(width, 3 * width)
        self.from_state = nn.Linear(width, 3 * width, bias=False)

    def forward(self, x, positions, memory):
        B, T, C = x.shape
        zeros = x.new_zeros(B, C)
        (h,) = memory or (zeros,)
        keep = (positions > 0)[..., None].to(x.dtype).unbind(1)  # 0 where a document begins
        outputs = []
        for a, kept in zip(self.from_input(x).unbind(1), keep):  # the inputs' share, all at once
            h = h * kept
            new, gates = a.split([C, 2 * C], 1)
            from_new, from_gates = self.from_state(h).split([C, 2 * C], 1)
            r, z = torch.sigmoid(gates + from_gates).chunk(2, 1)
            n = torch.tanh(new + r * from_new)
            h = n + z * (h - n)  # z * h + (1 - z) * n
            outputs.append(h)
        return torch.stack(outputs, 1), (h,)


class GRU(LanguageModel):
    """Recurrent layers, one on the other."""

    def __init__(self, vocab_size, block_size, layers=1, width=208, dropout=0.2):
        super().__init__(vocab_size, block_size, width, dropout=dropout)
        self.layers.extend(Cell(width) for _ in range(layers))
