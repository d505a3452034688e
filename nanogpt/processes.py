"""Several processes on one run, as torchrun starts them: each takes its rows of every batch.

    torchrun --standalone --nproc_per_node=2 train.py --model=gpt            each all the weights
    torchrun --standalone --nproc_per_node=2 train.py --model=gpt --shard    each a part of them

The first process speaks and writes; the others do what it does. A checkpoint holds whole tensors,
so a run can be resumed by another number of processes. DDP: Li et al. (2020); FSDP: Zhao et al.
(2023).
"""

import os
import re
import sys
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .machine import Machine

GONE = "(?i)connection|peer|broken pipe|nccl|gloo"  # what is said when a process is no more


@dataclass(frozen=True)
class Processes:
    """rank: which of the `world` processes this is. shard: each keeps a part of the weights."""

    rank: int = 0
    world: int = 1
    shard: bool = False

    @property
    def first(self) -> bool:
        return self.rank == 0

    def agree(self, value):
        """The first process's value, in all of them; any plain value."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def total(self, *values: float | Tensor) -> list[float]:
        """The sums over all processes."""
        numbers = [float(value) for value in values]
        if self.world == 1:
            return numbers
        sums = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(sums)
        return sums.tolist()

    def wait(self) -> None:
        """Until all have come here."""
        self.agree(None)

    @contextmanager
    def in_turn(self):
        """The first process alone, then all the others: for files that the first one makes."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def place(self, machine: Machine) -> Machine:
        """The machine with the device that is this process's own. ValueError: it cannot be shared.
        """
        if self.world == 1 or machine.kind == "cpu":
            return machine
        if machine.kind == "mps":
            raise ValueError("an MPS device cannot be shared by processes; try --device=cpu.")
        device = f"cuda:{os.environ.get('LOCAL_RANK', self.rank)}"
        torch.cuda.set_device(device)
        return replace(machine, device=device)


@contextmanager
def together():
    """The processes that torchrun started, if it did; within it they know of each other."""
    rank, world = (int(os.environ.get(name, n)) for name, n in (("RANK", 0), ("WORLD_SIZE", 1)))
    if world == 1:
        yield Processes()
        return
    # plain values go over the CPU, tensors over what they are on
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    try:
        yield Processes(rank, world)
    except ValueError:
        if rank == 0:
            raise
        raise SystemExit(2) from None  # the first process says what is wrong
    except RuntimeError as error:
        if not re.search(GONE, str(error)):
            raise
        raise OSError("another process of this run has ended, so this one ends too; the last "
                      "checkpoint is kept: go on with torchrun ... train.py --resume=RUN") from None
    finally:
        dist.destroy_process_group()


class Loss(nn.Module):
    """A model's loss as a module's forward, for what works on modules."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *batch: Tensor) -> Tensor:
        return self.loss(*batch)


class Shared:
    """The loss of a model that several processes train: backward leaves all with one gradient."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor], processes: Processes):
        self.model, self.loss, self.processes = model, loss, processes
        if processes.world > 1 and not processes.shard:
            self.loss = DistributedDataParallel(Loss(model, loss))

    def __call__(self, *batch: Tensor) -> Tensor:
        return self.loss(*batch)

    @contextmanager
    def part(self, last: bool):
        """Around forward and backward of a part of the batch; gradients meet after the last."""
        if self.processes.shard:
            self.model.set_requires_gradient_sync(last)
        apart = self.processes.world > 1 and not self.processes.shard and not last
        with self.loss.no_sync() if apart else nullcontext():
            yield


def shard(model: nn.Module, processes: Processes) -> None:
    """With shard: leave each process a part of every weight. The model is changed in place."""
    if processes.shard:
        # half a second, which is for those who need it
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        for layer in model.layers:
            fully_shard(layer)
        fully_shard(model)
        register_fsdp_forward_method(model, "loss")


def is_part(value) -> bool:
    """Whether it is a DTensor, a tensor that is parted among processes: told by what only these can
    do, for importing the class takes as long as FSDP itself."""
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


def whole(value):
    """A state, with each part of a tensor as the whole. All processes must ask at once."""
    if is_part(value):
        return value.full_tensor()
    if isinstance(value, dict):
        return {name: whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return value


def mine(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if is_part(tensor) else tensor


def own(tensor: Tensor, like: Tensor) -> Tensor:
    """The part of a whole tensor that this process keeps, as it keeps that of `like`."""
    if is_part(like) and tensor.shape == like.shape:
        from torch.distributed.tensor import distribute_tensor

        # every process has all of it, so nothing need be sent
        place = dict(device_mesh=like.device_mesh, placements=like.placements, src_data_rank=None)
        return distribute_tensor(tensor.to(like.device), **place)
    return tensor


def load_weights(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Whole weights into a model that may be split. Errors as load_state_dict."""
    mine = model.state_dict()
    model.load_state_dict({n: own(t, mine[n]) if n in mine else t for n, t in state.items()})


def load_optimizer(optimizer, state: dict) -> None:
    """A whole state into an optimizer whose weights may be split.

    ValueError: it is of one that parts the weights otherwise.
    """
    sizes = [[len(group.get("params", ())) for group in groups]
             for groups in (state.get("param_groups", ()), optimizer.param_groups)]
    if "param_groups" in state and sizes[0] != sizes[1]:
        raise ValueError("another version of this project began the run, whose optimizer parted "
                         "the weights otherwise; train it anew, by --config=RUN/config.json.")
    weights = [p for group in optimizer.param_groups for p in group.get("params", [])]
    if any(map(is_part, weights)):
        state = state | {"state": {
            number: {name: own(item, weights[number]) if isinstance(item, Tensor) else item
                     for name, item in items.items()}
            for number, items in state["state"].items()
        }}
    optimizer.load_state_dict(state)
