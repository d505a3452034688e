"""Transformer: position t knows every token before it, and looks up those that matter to it.

Vaswani et al. (2017); rotary positions from Su et al. (2021), norms in front from Xiong et al.
(2020). Every position asks (a query q), and every earlier one offers (a key k, a value v). With D
the width of a head, for each head

    weights[t] = softmax over s <= t of q[t] . k[s] / sqrt(D)
    y[t] = sum over s <= t of weights[t, s] v[s]

The state holds the keys and values of the positions before.
"""

import torch
from torch import nn

from .model import LanguageModel


def rotate(x, positions):
    """x (B, T, H, D) with its features, in pairs, turned by angles that grow with the position.

    The product of a turned query and a turned key depends on their distance alone.
    """
    half = x.shape[3] // 2
    speeds = 10000.0 ** -(torch.arange(half, device=x.device) / half)
    angles = positions[..., None, None] * speeds  # (B, T, 1, D/2)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.split(half, 3)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], 3)


class Attention(nn.Module):
    """Attention with several heads to the last block_size positions: (B, T, C) -> (B, T, C)."""

    def __init__(self, width: int, heads: int, block_size: int):
        super().__init__()
        self.heads, self.block_size = heads, block_size
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.out.weight)  # a block begins as the identity

    def forward(self, x, positions, memory):
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3 * self.heads, C // self.heads)
        qk, v = qkv.split([2 * self.heads, self.heads], 2)
        q, k = rotate(qk, positions).chunk(2, 2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, D)
        if memory:
            k, v = torch.cat([memory[0], k], 2), torch.cat([memory[1], v], 2)  # (B, H, S, D)
        S = k.shape[2]
        ages = torch.arange(S - T, S, device=x.device)[:, None] - torch.arange(S, device=x.device)
        known = (ages >= 0) & (ages < self.block_size) & (ages <= positions[..., None])  # (B, T, S)
        scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5  # (B, H, T, S)
        weights = scores.masked_fill(~known[:, None], -torch.inf).softmax(3)
        y = self.out((weights @ v).transpose(1, 2).reshape(B, T, C))
        oldest = max(0, S - self.block_size + 1)  # what the next position may still see
        return y, (k[:, :, oldest:], v[:, :, oldest:])


class Block(nn.Module):
    """Attention, then a hidden layer for each position by itself; each adds to what is there."""

    def __init__(self, width: int, heads: int, block_size: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, block_size)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        nn.init.zeros_(self.down.weight)

    def forward(self, x, positions, memory):
        y, memory = self.attention(self.norm1(x), positions, memory)
        x = x + y
        y = self.down(torch.relu(self.up(self.norm2(x))).square())
        return x + y, memory


class Transformer(LanguageModel):
    """Blocks, one on the other, and a norm before the head."""

    def __init__(self, vocab_size, block_size, layers=4, heads=4, width=64, dropout=0.1):
        super().__init__(vocab_size, block_size, width, dropout=dropout)
        self.layers.extend(Block(width, heads, block_size) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def mix(self, x, positions, memories):
        x, memories = super().mix(x, positions, memories)
        return self.norm(x), memories
