"""GPT: position t knows every token before it, by attention, at any size.

Two forms of one network, and every piece between them can be turned by itself:

    gpt2     Radford et al. (2019): learned positions, LayerNorm, GELU, biases, the head tied to the
             embedding. Takes and gives the weights that OpenAI published (weights.py).
    modern   what has paid since: rotary positions (Su et al. 2021), RMSNorm (Zhang & Sennrich
             2019), normalised queries and keys with a learned gain for each head (Henry et al.
             2020), squared ReLUs (So et al. 2021), no biases, projections that begin at zero,
             capped logits (Gemma 2, 2024).

To the Transformer of the ladder (makemore/transformer.py) it adds these choices, a short
convolution of the embeddings (`conv`, in neither form), keys and values shared by groups of heads,
fused attention, and a loss that need not hold all logits.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from makemore.model import IGNORED, LanguageModel, State, document_positions
from makemore.transformer import rotary_frequencies, rotate

from .attention import Attend, attention_of, attention_of_one
from .cache import Cache
from .dropout import Dropout
from .lean import RMSNorm, rms_norm, squared_relu

ARCHS = {
    "modern": dict(
        position="rotary", norm="rms", mlp="relu2", qk_norm=True, tied=False, bias=False,
        score_cap=0.0, logit_cap=15.0, zero_init=True, conv=0,
    ),
    "gpt2": dict(
        position="learned", norm="layer", mlp="gelu", qk_norm=False, tied=True, bias=True,
        score_cap=0.0, logit_cap=0.0, zero_init=False, conv=0,
    ),
}
SIZES = {
    "nano": dict(layers=4, heads=4, width=128, block_size=64),
    "baby": dict(layers=6, heads=6, width=384, block_size=256),
    "gpt2": dict(layers=12, heads=12, width=768, block_size=1024),
    "gpt2-medium": dict(layers=24, heads=16, width=1024, block_size=1024),
    "gpt2-large": dict(layers=36, heads=20, width=1280, block_size=1024),
    "gpt2-xl": dict(layers=48, heads=25, width=1600, block_size=1024),
}
CHOICES = {
    "position": ("rotary", "learned", "sinusoidal"),
    "norm": ("rms", "layer"),
    "mlp": ("relu2", "gelu", "gelu-exact", "swiglu"),
}
FADING = 0.7  # by age: the deviation of a convolution's first weights
CHUNK = 2**25  # logits that `loss` holds at a time: 128 MiB of float32


@dataclass
class View:
    """What attention needs of the positions, made once for all layers.

    cos, sin (B, 1, T, D) or None: how far rotary positions turn. attend: from q, k and v of the
    heads to what they attend to (attention.py). Of a Cache: slot (1,), the place of the one token,
    and how many places are filled with it.
    """

    cos: Tensor | None
    sin: Tensor | None
    attend: Attend | None
    slot: Tensor | None = None
    filled: int = 0


class ShortConv(nn.Module):
    """Adds the embeddings of the few tokens before: (B, T, C) -> (B, T, C).

        y[t] = x[t] + g[1] x[t-1] + ... + g[k-1] x[t-k+1]      each g[.] a gain for each feature

    So et al. (2021) have such a convolution in every layer, of queries, keys and values. The gains
    begin at random, the older the smaller, so that every age leaves a pattern of its own; what a
    layer of attention would first have to find, the token before, is there from the first step.
    """

    def __init__(self, ages: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(ages, width))

    def forward(self, x: Tensor, before: Tensor | None, positions: Tensor) -> Tensor:
        """before (B, ages, C): of the tokens before these, whatever is not of the same document."""
        ages, T = len(self.weight), x.shape[1]
        seen = F.pad(x, (0, 0, ages, 0)) if before is None else torch.cat([before, x], 1)
        for age, gain in enumerate(self.weight, 1):
            known = (positions >= age)[..., None]  # (B, T, 1)
            x = x + gain * known * seen[:, ages - age:ages - age + T]
        return x


class Attention(nn.Module):
    """Attention to the last `reach` positions: (B, T, C) -> (B, T, C)."""

    def __init__(self, width, heads, kv_heads, reach, qk_norm, bias, rotary):
        super().__init__()
        self.heads, self.kv_heads, self.reach = heads, kv_heads, reach
        self.qk_norm, self.rotary = qk_norm, rotary
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * (width // heads), bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        if qk_norm:  # without it no score exceeds the root of D, and narrow heads stay undecided
            self.gain = nn.Parameter(torch.ones(heads))

    def forward(self, x, view: View, memory):
        B, T, C = x.shape
        D = C // self.heads
        qkv = self.qkv(x).view(B, T, -1, D).transpose(1, 2)
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], 1)  # (B, H, T, D)
        if self.qk_norm:
            qk = rms_norm(qk)
        if self.rotary:
            qk = rotate(qk, view.cos, view.sin)
        q, k = qk.split([self.heads, self.kv_heads], 1)
        if self.qk_norm:
            q = q * self.gain[:, None, None].to(q.dtype)
        if view.slot is not None:
            k, v = (ring.index_copy_(2, view.slot, new) for ring, new in zip(memory, (k, v)))
            k, v = k[:, :, :view.filled], v[:, :, :view.filled]
        elif memory:
            k, v = torch.cat([memory[0], k], 2), torch.cat([memory[1], v], 2)  # (B, H, S, D)
        y = view.attend(q, k, v)
        if view.slot is None:
            excess = max(0, k.shape[2] - self.reach + 1)  # which no later position sees
            memory = k[:, :, excess:], v[:, :, excess:]
        return self.out(y.transpose(1, 2).reshape(B, T, C)), memory


class MLP(nn.Module):
    """A hidden layer of four times the width, for each position by itself."""

    def __init__(self, width, kind, bias):
        super().__init__()
        self.kind = kind
        # a gate is a third matrix, so the hidden layer is narrower by a third
        hidden = 4 * width if kind != "swiglu" else -(-8 * width // 3 // 16) * 16
        self.up = nn.Linear(width, hidden * (1 + (kind == "swiglu")), bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x):
        x = self.up(x)
        if self.kind in ("gelu", "gelu-exact"):  # GPT-2's is the one that tanh approximates
            x = F.gelu(x, approximate="tanh" if self.kind == "gelu" else "none")
        elif self.kind == "relu2":
            x = squared_relu(x)
        else:  # Shazeer (2020)
            x, gate = x.chunk(2, 2)
            x = x * F.silu(gate)
        return self.down(x)


class Block(nn.Module):
    """Attention, then an MLP; each adds to what is there."""

    def __init__(self, norm, attention, mlp, dropout):
        super().__init__()
        self.norm1, self.attention = norm(), attention
        self.norm2, self.mlp = norm(), mlp
        self.dropout = Dropout(dropout)

    def forward(self, x, view, memory):
        y, memory = self.attention(self.norm1(x), view, memory)
        x = x + self.dropout(y)
        return x + self.dropout(self.mlp(self.norm2(x))), memory


class GPT(LanguageModel):
    """Embedding and positions, blocks, a norm, the head."""

    def __init__(
        self, vocab_size, block_size, layers=4, heads=4, width=128, kv_heads=0, window=0,
        position="rotary", norm="rms", mlp="relu2", qk_norm=True, tied=False, bias=False,
        score_cap=0.0, logit_cap=15.0, zero_init=True, conv=0, dropout=0.0,
    ):
        """kv_heads 0: as many as heads. window 0: the whole block. A cap of 0 is none.
        conv: how many tokens the convolution of the embeddings adds up; 0 is none.

        ValueError: sizes that do not go together.
        """
        super().__init__(vocab_size, block_size, width)
        kv_heads = kv_heads or heads
        check(width, heads, kv_heads, position=position, norm=norm, mlp=mlp)
        if conv > min(window or block_size, block_size):
            raise ValueError(f"a convolution of {conv} tokens is longer than the block or window.")
        self.position, self.score_cap, self.logit_cap = position, score_cap, logit_cap
        # how it is computed, not what
        self.attention, self.fused_loss, self.checkpointing = "sdpa", False, False
        self.limit = block_size if position == "learned" else None
        self.reach = min(window or block_size, block_size)  # a position sees this many, and itself
        self.drop = Dropout(dropout)
        self.conv = ShortConv(conv - 1, width) if conv > 1 else None
        if position == "learned":
            self.positions = nn.Embedding(block_size, width)
        if position != "learned":
            features = width // heads if position == "rotary" else width
            self.register_buffer("speeds", rotary_frequencies(features), persistent=False)

        def make_norm():
            return RMSNorm(width) if norm == "rms" else nn.LayerNorm(width, bias=bias)

        for _ in range(layers):
            rotary = position == "rotary"
            shape = (width, heads, kv_heads, self.reach, qk_norm, bias, rotary)
            block = Block(make_norm, Attention(*shape), MLP(width, mlp, bias), dropout)
            self.layers.append(block)
        self.norm = make_norm()
        self.head = nn.Linear(width, vocab_size, bias=False)
        self.start(zero_init)
        if tied:
            self.head.weight = self.embedding.weight
            if zero_init:  # else every token predicts itself, for nothing else is there yet
                with torch.no_grad():
                    self.embedding.weight *= min(1.0, 50 / width)

    def start(self, zero_init: bool) -> None:
        """The first weights, as in GPT-2: small, what adds to the residual stream smaller still."""
        for name, p in self.named_parameters():
            residual = name.endswith(("out.weight", "down.weight"))
            if name.endswith("bias") or residual and zero_init:  # a block begins as the identity
                nn.init.zeros_(p)
            elif p.ndim == 1:
                continue  # norms begin at 1
            elif name == "conv.weight":
                ages = torch.arange(1, len(p) + 1)[:, None]
                with torch.no_grad():
                    p.normal_().mul_(FADING**ages)
            elif name == "positions.weight":
                nn.init.normal_(p, std=0.01)
            else:
                nn.init.normal_(p, std=0.02 / ((2 * len(self.layers)) ** 0.5 if residual else 1))

    def features(self, tokens, state=None, segments=None):
        """tokens (B, T) -> what the head takes (B, T, C), and the state after: as LanguageModel."""
        positions = document_positions(tokens, state, segments)
        memories = [None] * len(self.layers) if state is None else state.memories
        x = self.embedding(tokens)
        if self.conv:
            before = None if state is None else self.embedding(self.last(state))
            x = self.conv(x, before, positions)
        if self.position == "learned":
            x = x + self.positions(positions)
        elif self.position == "sinusoidal":
            angles = positions[..., None] * self.speeds  # one half sines, the other cosines
            x = x + torch.where(self.speeds < 0, -angles.sin(), angles.cos()).to(x.dtype)
        x = self.drop(x)
        if cached := isinstance(state, Cache):
            assert tokens.shape[1] == 1 and segments is None, "a Cache takes one token at a time"
            view = self.next_view(positions, state)
        else:
            past = 0 if state is None else state.memories[0][0].shape[2]
            begins = state is None and segments is None and tokens.shape[1] <= self.reach
            seen = (positions, past, self.reach, begins, self.score_cap)
            view = self.view(positions, attention_of(self.attention, *seen))
        after = []
        for layer, memory in zip(self.layers, memories[:len(self.layers)], strict=True):
            if self.checkpointing and self.training:
                x, memory = checkpoint(layer, x, view, memory, use_reentrant=False)
            else:
                x, memory = layer(x, view, memory)
            after.append(memory)
        if self.conv:
            after.append(self.remember(tokens, state, view.slot))
        position = positions[:, -1] + 1
        if segments is not None:
            segment = segments[:, -1]
        else:
            segment = torch.zeros_like(tokens[:, -1]) if state is None else state.segment
        if cached:
            return self.norm(x), replace(state, position=position, used=state.used + 1)
        return self.norm(x), State(position, segment, after)

    def last(self, state: State) -> Tensor:
        """The tokens that the convolution needs of those before, (B, ages); any where none were."""
        seen, ages = state.memories[-1][0].flatten(1), len(self.conv.weight)  # (B, S)
        if isinstance(state, Cache):
            places = torch.arange(-ages, 0, device=seen.device) + state.used
            return seen.index_select(1, places % state.room)
        return F.pad(seen, (ages, 0))[:, seen.shape[1]:]

    def remember(self, tokens, state: State | None, slot: Tensor | None) -> tuple[Tensor]:
        """The tokens (B, T) among those that the convolution may need: a memory as the layers have
        them, (B, 1, S, 1)."""
        tokens = tokens[:, None, :, None]
        if slot is not None:
            return (state.memories[-1][0].index_copy_(2, slot, tokens),)
        if state is not None:
            tokens = torch.cat([state.memories[-1][0], tokens], 2)
        return (tokens[:, :, max(0, tokens.shape[2] - self.reach + 1):],)

    def view(self, positions, attend) -> View:
        """What attention needs of positions (B, T)."""
        cos = sin = None
        if self.position == "rotary":
            angles = positions[:, None, :, None] * self.speeds  # (B, 1, T, D)
            cos, sin = angles.cos(), angles.sin()
        return View(cos, sin, attend)

    def next_view(self, positions, cache: Cache) -> View:
        """What attention needs of the next token of a Cache, at positions (B, 1)."""
        view, mask = self.view(positions, None), None
        slot = cache.used % cache.room
        if isinstance(slot, Tensor):
            view.slot, view.filled = slot[None], cache.room
        else:
            assert not cache.full
            view.slot = torch.full((1,), slot, device=positions.device)
            view.filled = min(cache.used + 1, cache.room)
        if isinstance(slot, Tensor) or not cache.plain:
            ages = (view.slot - torch.arange(view.filled, device=positions.device)) % cache.room
            mask = (ages <= positions)[:, None, None]  # a place that is empty is too old
        view.attend = attention_of_one(self.attention, mask, self.score_cap)
        return view

    def forward(self, tokens, state=None, segments=None):
        x, state = self.features(tokens, state, segments)
        return self.logits(x), state

    def logits(self, x: Tensor) -> Tensor:
        """Features (..., C) -> logits (..., V)."""
        logits = self.head(x)
        if self.logit_cap:
            logits = self.logit_cap * torch.tanh(full(logits) / self.logit_cap)
        return logits

    def loss(self, tokens, targets, segments=None):
        """Mean nats over the targets (B, T) that are not -1; a chunk of the logits at a time."""
        x, _ = self.features(tokens, segments=segments)
        x, targets = x.flatten(0, 1), targets.flatten()
        chunks = -(-len(targets) * self.vocab_size // CHUNK)
        if chunks == 1:
            return F.cross_entropy(full(self.logits(x)), targets, ignore_index=IGNORED)
        if self.fused_loss and isinstance(self.head, nn.Linear):  # finetuning may have replaced it
            from kernels.cross_entropy import linear_cross_entropy

            return linear_cross_entropy(x, self.head.weight, targets, cap=self.logit_cap)

        def part(x, targets):
            logits = full(self.logits(x))
            return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")

        total = x.new_zeros((), dtype=torch.float32)
        for xs, ts in zip(x.chunk(chunks), targets.chunk(chunks)):
            # what is forgotten here is made again for the gradient
            total = total + checkpoint(part, xs, ts, use_reentrant=False)
        return total / (targets != IGNORED).sum()

    def preallocate(self, state: State, length: int, plain: bool = False) -> Cache:
        """The state as a Cache with room for `length` tokens more. plain: as in Cache."""
        return Cache.of(state, self.reach, length, plain)


def full(x: Tensor) -> Tensor:
    """At least float32, as probabilities want it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check(width: int, heads: int, kv_heads: int, *, position: str, norm: str, mlp: str) -> None:
    """ValueError for sizes that do not go together."""
    for name, value in dict(position=position, norm=norm, mlp=mlp).items():
        if value not in CHOICES[name]:
            raise ValueError(f"{name} must be one of {', '.join(CHOICES[name])}, not {value}.")
    if width % heads:
        raise ValueError(f"{heads} heads must divide the width, {width}.")
    if heads % kv_heads:
        raise ValueError(f"{kv_heads} key/value heads must divide the {heads} heads.")
    if position == "rotary" and width // heads % 2:
        raise ValueError(f"rotary positions turn pairs of features: not {width // heads} a head.")
    if position == "sinusoidal" and width % 2:
        raise ValueError(f"sinusoidal positions need an even width, not {width}.")
