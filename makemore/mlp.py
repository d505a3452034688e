"""MLP: position t knows the last few tokens, each in a place of its own.

Bengio et al. (2003). The embeddings e of the last k tokens side by side, then a hidden layer:

    y[t] = tanh(W [e[t-k+1], ..., e[t]] + b)

What lies before the beginning is zeros. The state is the last k - 1 embeddings.
"""

import torch
from torch import nn

from .model import LanguageModel


class Window(nn.Module):
    """A hidden layer over the last `context` positions: (B, T, embed) -> (B, T, width)."""

    def __init__(self, embed: int, context: int, width: int):
        super().__init__()
        self.reach = context - 1  # how far it looks back
        self.hidden = nn.Linear(context * embed, width)

    def forward(self, x, positions, memory):
        B, T, C = x.shape
        (before,) = memory or (x.new_zeros(B, self.reach, C),)
        seen = torch.cat([before, x], 1)  # (B, reach + T, C)
        windows = seen.unfold(1, self.reach + 1, 1).transpose(2, 3)  # (B, T, context, C)
        ages = torch.arange(self.reach, -1, -1, device=x.device)  # the oldest comes first
        known = ages <= positions[..., None]  # (B, T, context): not those of another document
        windows = windows * known[..., None]
        return torch.tanh(self.hidden(windows.flatten(2))), (seen[:, T:],)


class MLP(LanguageModel):
    """One window over the embeddings."""

    def __init__(self, vocab_size, block_size, context=8, embed=32, width=512, dropout=0.2):
        super().__init__(vocab_size, block_size, embed, width, dropout=dropout)
        self.layers.append(Window(embed, context, width))
