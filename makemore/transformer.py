"""Transformer: position t knows every token before it, and looks up those that matter to it.

Vaswani et al. (2017), with norms in front (Xiong et al. 2020), rotary positions (Su et al. 2021)
and squared ReLUs (So et al. 2021). Every position asks (a query q), and every earlier one offers
(a key k, a value v). With D the width of a head, for each head

    weights[t] = softmax over s of q[t] . k[s] / sqrt(D)        with t - block_size < s <= t
    y[t] = sum over s of weights[t, s] v[s]

The state holds the keys and values of the positions before.
"""

import torch
from torch import nn

from .model import LanguageModel


def rotary_frequencies(features):
    """How fast each of a head's features turns with the position (D,): `rotate` takes the angles.

    Feature i and feature i + D/2 are a pair, whose plane turns by 10000 ** (-2i/D) a position.
    """
    speeds = 10000.0 ** -(torch.arange(features // 2) / (features // 2))
    return torch.cat([-speeds, speeds])  # so that the sine has the signs that rotate needs


def rotate(x, cos, sin):
    """x (B, H, T, D) turned by its position: then q . k depends on their distance alone."""
    return (x * cos + x.roll(x.shape[3] // 2, 3) * sin).to(x.dtype)


def mask_of(positions, past, block_size):
    """(B, 1, T, past + T): which of the past positions and these each of these may not see."""
    steps = torch.arange(past + positions.shape[1], device=positions.device)
    ages = steps[past:, None] - steps
    return ((ages < 0) | (ages > positions.clamp(max=block_size - 1)[..., None]))[:, None]


def attend(q, k, v, mask):
    """softmax(q k' / sqrt(D)) v: (B, H, T, D)."""
    scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5  # (B, H, T, S)
    return scores.masked_fill(mask, -torch.inf).softmax(3) @ v


class Attention(nn.Module):
    """Attention with several heads to the last block_size positions: (B, T, C) -> (B, T, C)."""

    attend = staticmethod(attend)

    def __init__(self, width: int, heads: int, block_size: int):
        super().__init__()
        self.heads, self.block_size = heads, block_size
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.out.weight)  # a block begins as the identity

    def forward(self, x, view, memory):
        B, T, C = x.shape
        cos, sin, mask = view
        qkv = self.qkv(x).view(B, T, 3 * self.heads, -1).transpose(1, 2)
        qk, v = qkv.split([2 * self.heads, self.heads], 1)
        q, k = rotate(qk, cos, sin).chunk(2, 1)  # (B, H, T, D)
        if memory:
            k, v = torch.cat([memory[0], k], 2), torch.cat([memory[1], v], 2)  # (B, H, S, D)
        y = self.out(self.attend(q, k, v, mask).transpose(1, 2).reshape(B, T, C))
        if (excess := k.shape[2] - self.block_size + 1) > 0:  # which no later position sees
            k, v = k[:, :, excess:], v[:, :, excess:]
        return y, (k, v)


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

    def forward(self, x, view, memory):
        y, memory = self.attention(self.norm1(x), view, memory)
        x = x + y
        y = self.down(torch.relu(self.up(self.norm2(x))).square())
        return x + y, memory


class Transformer(LanguageModel):
    """Blocks, one on the other, and a norm before the head."""

    mask_of = staticmethod(mask_of)

    def __init__(self, vocab_size, block_size, layers=2, heads=4, width=96, dropout=0.1):
        super().__init__(vocab_size, block_size, width, dropout=dropout)
        if width % (2 * heads):
            least = f"{heads} heads of an even width need a multiple of {2 * heads}"
            raise ValueError(f"{least} as the width, not {width}.")
        self.register_buffer("speeds", rotary_frequencies(width // heads), persistent=False)
        self.layers.extend(Block(width, heads, block_size) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def mix(self, x, positions, memories):
        past = memories[0][0].shape[2] if memories[0] else 0
        angles = positions[:, None, :, None] * self.speeds  # (B, 1, T, D)
        view = angles.cos(), angles.sin(), self.mask_of(positions, past, self.block_size)
        x, memories = super().mix(x, view, memories)  # one view for all blocks
        return self.norm(x), memories
