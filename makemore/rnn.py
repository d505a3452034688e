"""RNN: position t knows a summary of all tokens before it, which is rewritten at every step.

Elman (1990); for language Mikolov et al. (2010). The state is the summary h:

    h[t] = tanh(W x[t] + b + U h[t-1])
"""

import torch
from torch import nn

from .model import LanguageModel


class Cell(nn.Module):
    """One recurrent layer: x (B, T, C) -> h at every step (B, T, C)."""

    def __init__(self, width: int):
        super().__init__()
        self.from_input = nn.Linear(width, width)
        self.from_state = nn.Linear(width, width, bias=False)

    def forward(self, x, positions, memory):
        B, T, C = x.shape
        zeros = x.new_zeros(B, C)
        (h,) = memory or (zeros,)
        keep = (positions > 0)[..., None].to(x.dtype).unbind(1)  # 0 where a document begins
        outputs = []
        for a, kept in zip(self.from_input(x).unbind(1), keep):  # the inputs' share, all at once
            h = h * kept
            h = torch.tanh(a + self.from_state(h))
            outputs.append(h)
        return torch.stack(outputs, 1), (h,)


class RNN(LanguageModel):
    """Recurrent layers, one on the other."""

    def __init__(self, vocab_size, block_size, layers=2, width=176, dropout=0.2):
        super().__init__(vocab_size, block_size, width, dropout=dropout)
        self.layers.extend(Cell(width) for _ in range(layers))
