"""The contract that every stage of the ladder keeps, and all that the stages share.

A language model answers one question: what may position t know of the tokens before it?
The answer of a stage is its layers. The rest stands here, once:

    tokens (B, T) -> embedding (B, T, C) -> mix: the layers (B, T, F) -> head: logits (B, T, V)

B rows, T tokens of a row, C and F the widths of embedding and features, V tokens to choose from.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORED = -1  # a target that does not count, as in padding


@dataclass
class State:
    """All that a model remembers of the tokens it has seen. Every tensor has a line for each row.

    position (B,): how many tokens of its document a row has seen. segment (B,): which document.
    memories: for each layer the tensors that it remembers, (B, ...) each.
    """

    position: Tensor
    segment: Tensor
    memories: list[tuple[Tensor, ...]]

    def rows(self, index: Tensor) -> "State":
        """The state of the rows in index (N,), which may select, reorder and repeat them."""
        memories = [tuple(tensor[index] for tensor in memory) for memory in self.memories]
        return State(self.position[index], self.segment[index], memories)


class LanguageModel(nn.Module):
    """Embedding, layers, head. A stage defines the layers (and, where it must, another head).

    A layer is a module: layer(x, positions, memory) -> (x, memory after them), with x (B, T, C),
    positions (B, T) int64, and memory a tuple of tensors (B, ...) or None at the start.
    Position p of its document means: exactly p tokens of that document came before. So a layer may
    look at most p tokens back, and this alone keeps the documents of a packed row apart.
    """

    limit: int | None = None  # a document may not have more tokens, or there is no limit

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        width: int,
        features: int | None = None,
        dropout: float = 0.0,
    ):
        """width: of the embedding. features: width after the layers, if another; 0: no head.

        dropout: of the embedding and of the features (Srivastava et al. 2014).
        """
        super().__init__()
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.embedding = nn.Embedding(vocab_size, width)
        self.layers = nn.ModuleList()
        self.dropout = nn.Dropout(dropout)
        if features == 0:  # what comes out of the layers are the logits
            self.head = nn.Identity()
            return
        self.head = nn.Linear(features or width, vocab_size)
        # logits near 0: at first all tokens are about as likely, and the loss is about ln V
        nn.init.normal_(self.head.weight, std=0.1 * self.head.in_features**-0.5)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, tokens: Tensor, state: State | None = None, segments: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """tokens (B, T) int64 -> logits (B, T, V) and the state after them.

        state: all that the model remembers of the tokens before these; None means there were none.
        It is never changed. segments (B, T): which document of a packed row a token belongs to;
        nothing passes between documents; None means that the row goes on in the document it is in.
        """
        x, state = self.features(tokens, state, segments)
        return self.logits(x), state

    def features(
        self, tokens: Tensor, state: State | None = None, segments: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """As forward, but stops before the head: (B, T, F)."""
        positions = document_positions(tokens, state, segments)
        memories = [None] * len(self.layers) if state is None else state.memories
        x, memories = self.mix(self.dropout(self.embedding(tokens)), positions, memories)
        if segments is not None:
            segment = segments[:, -1]
        else:
            segment = torch.zeros_like(tokens[:, -1]) if state is None else state.segment
        return self.dropout(x), State(positions[:, -1] + 1, segment, memories)

    def logits(self, x: Tensor) -> Tensor:
        """Features (..., F) -> logits (..., V)."""
        return self.head(x)

    def mix(
        self, x: Tensor, positions: Tensor, memories: list
    ) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """x (B, T, C) through every layer, each with its own memory: (B, T, F).

        A stage may make of the positions, once for all layers, what these need of them.
        """
        after = []
        for layer, memory in zip(self.layers, memories, strict=True):
            x, memory = layer(x, positions, memory)
            after.append(memory)
        return x, after

    def loss(self, tokens: Tensor, targets: Tensor, segments: Tensor | None = None) -> Tensor:
        """Mean nats over the targets (B, T) that are not -1. Keeps no state."""
        logits, _ = self(tokens, segments=segments)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def document_positions(tokens: Tensor, state: State | None, segments: Tensor | None) -> Tensor:
    """For tokens (B, T): how many tokens of its own document came before each, (B, T) int64."""
    B, T = tokens.shape
    steps = torch.arange(T, device=tokens.device).expand(B, T)
    if segments is None:
        return steps if state is None else state.position[:, None] + steps
    starts = torch.ones_like(tokens, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    before = torch.zeros_like(steps[:, 0])
    if state is not None:
        starts[:, 0] = segments[:, 0] != state.segment
        before = state.position
    begun = torch.where(starts, steps, -before[:, None]).cummax(1).values  # where it began
    return steps - begun
