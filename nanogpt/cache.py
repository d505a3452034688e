"""Keys and values that are written in place: what lets a sampler go on without copying the past."""

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from makemore.model import State


@dataclass
class Cache(State):
    """A State that `forward` writes in place, one token of each row at a time: for a sampler.

    memories: rings of keys and values (B, kv_heads, room, D) of each layer: token number n of those
    that came stands at place n % room. used: how many came; or a tensor () of it, for a step that
    is compiled once for all numbers, and so looks at every place. plain: all rows have seen all
    that is there. endless: there is room for all that a position sees.
    """

    used: int | Tensor = 0
    plain: bool = False
    endless: bool = False

    @classmethod
    def of(cls, state: State, reach: int, length: int, plain: bool) -> "Cache":
        """A state with room for `length` tokens more, and without end if a position sees no more,
        which are at most `reach`, itself included."""
        S = state.memories[0][0].shape[2]
        used = state.used if isinstance(state, Cache) else S
        kept = min(used, reach - 1)
        places = torch.arange(used - kept, used, device=state.position.device) % S
        room = min(reach, kept + length)
        memories = []
        for memory in state.memories:
            B, H, _, D = memory[0].shape
            rings = tuple(tensor.new_zeros(B, H, room, D) for tensor in memory)
            for ring, tensor in zip(rings, memory):
                ring[:, :, :kept] = tensor[:, :, places]
            memories.append(rings)
        return cls(state.position.clone(), state.segment, memories, kept, plain, room == reach)

    @property
    def room(self) -> int:
        return self.memories[0][0].shape[2]

    @property
    def full(self) -> bool:
        return not self.endless and self.used == self.room

    def rows(self, index: Tensor) -> "Cache":
        return replace(self, **vars(super().rows(index)))

    def arrange(self, index: Tensor) -> "Cache":
        """The rows in index, as many as there are: in the same rings, as put goes on in them."""
        assert len(index) == len(self.position)
        for ring in itertools.chain(*self.memories):
            ring.copy_(ring[index])
        return replace(self, position=self.position[index], segment=self.segment[index])

    def put(self, rows: Tensor, state: State | None) -> None:
        """These rows (N,) go on from a state of N rows instead, or from nothing: in place."""
        self.plain = False  # the other rows have seen more, or less
        self.position[rows] = 0 if state is None else state.position
        if state is None:
            return
        kept = state.memories[0][0].shape[2]
        places = (self.used - kept + torch.arange(kept, device=rows.device)) % self.room
        for rings, memory in zip(self.memories, state.memories):
            for ring, tensor in zip(rings, memory):
                ring[rows[:, None], :, places] = tensor.transpose(1, 2)
