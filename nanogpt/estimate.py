"""What a run will need, told before it begins: parameters, memory and operations.

One step of training is gone through beforehand: a small one as it is, any other with tensors that
have shapes but no elements, for which PyTorch first loads a second or two of its parts. The bytes
that live at once in it are those that the real step needs.
"""

import os
import re
import sys
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data.batches import EVALUATED
from data.cli import flag

from . import attention, build, sizes
from .gpt import CHUNK
from .machine import Machine
from .optim import OPTIMIZERS, make_optimizers
from .processes import Processes
from .settings import Config

SLACK = {"cpu": 1.35, "cuda": 1.15, "mps": 1.35}  # pieces that were freed and fit nothing add up
CONTEXT = {"cpu": 0, "cuda": 500_000_000, "mps": 200_000_000}  # what a GPU keeps for itself
GPUS = {  # dense 16-bit products a second with sums in float32, as NVIDIA states them
    "V100-PCIE": 112e12, "V100": 125e12, "T4": 65e12, "A100": 312e12, "A10": 125e12, "L4": 121e12,
    "L40S": 362e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12,
    "B200": 2250e12, "RTX 3090": 71e12, "RTX 4090": 165e12,
}
ENOUGH, LONG = 2**20, 256  # tokens of a step, and of a row but for attention, that tell of more
SMALL = 2**23, 2**24  # weights, and elements of a step, about: a moment's work
FEW = 4  # times fewer rows than an evaluation has at once tell of a small one
MOST_PARTS = 1024  # of a batch, that are ever advised
BEYOND = 2  # times the memory that there is: such a run is not begun
aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm}


@dataclass(frozen=True)
class Estimate:
    """Of one process of a run.

    memory: the most bytes at once. kept: those of them, whatever the batch, that hold weights,
    gradients and what the optimizer remembers. flops: the operations of a token of training, a
    product and its sum counted as two, a backward pass as two forward ones. mfu: the model's FLOP
    utilisation at one token a second, as a share of what the devices of all processes can do.
    """

    parameters: int
    memory: int
    kept: int
    flops: float
    mfu: float


class Counter(TorchDispatchMode):
    """Counts the bytes of the tensors that live, the most there were at once, and operations.

    PyTorch has a counter of operations too, but loads Triton to define it.
    """

    def __init__(self):
        super().__init__()
        self.bytes = self.most = self.flops = 0
        self.known = weakref.WeakSet()

    def count(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.flops += flops_of(function.overloadpacket, args, made)
        for item in tree_leaves(made):
            if isinstance(item, Tensor) and (storage := item.untyped_storage()) not in self.known:
                self.known.add(storage)
                self.change(storage.nbytes())
                weakref.finalize(storage, self.change, -storage.nbytes())
        return made

    def change(self, size: int) -> None:
        self.bytes += size
        self.most = max(self.most, self.bytes)


Counter.__torch_dispatch__ = Counter.count  # if defined in the class, it would load TorchDynamo


def flops_of(function, args: tuple, made) -> int:
    """The operations of a product, or of attention, whose causal half is not left out."""
    if function in PRODUCTS:
        return 2 * made.numel() * args[-1].shape[-2]
    if function is aten.convolution:
        return 2 * made.numel() * args[1][0].numel()
    if function.__name__.startswith("_scaled_dot_product"):
        q, k, v = args[:3]
        return 2 * q.shape[:-1].numel() * k.shape[-2] * (k.shape[-1] + v.shape[-1])
    return 0


@dataclass(frozen=True)
class Step:
    """What a step was found to take, in bytes: states, of the optimizers; at the most, learning:
    forward and backward, stepping: of the optimizers, judging: a batch of an evaluation, each with
    all that stays alive beside it, but that the first knows no states yet. flops: of all tokens.
    """

    learning: int
    stepping: int
    judging: int
    states: int
    flops: int


def estimate(
    config: Config, vocab_size: int, separated: bool, machine: Machine, processes: Processes,
) -> Estimate:
    """What a run will need. separated: a row of its batches may hold several documents.

    ValueError: sizes that do not go together, or far more than this machine can hold.
    """
    rows = max(1, config.batch_size // (config.accumulate * processes.world))
    small = machine.kind == "cpu" and is_small(config, vocab_size, rows)
    parameters = count(config, vocab_size, small)
    weights = 4 * parameters
    holders = processes.world if config.shard else 1  # each of a part of the weights
    there = total(machine) // here(machine)
    if (least := 3 * weights // holders) > there:  # with gradients and a mean
        raise ValueError(f"{parameters:,} parameters take at least {in_words(least)} to train, and "
                         f"there are {in_words(there)}; {smaller(config)}.")
    length = config.block_size
    if config.model not in attention.STAGES:  # there all grows with the length as with the rows
        length = min(length, LONG)
    few = min(rows, max(1, ENOUGH // length))
    scale = rows * config.block_size / (few * length)
    with elements(small):
        own = psutil.Process().memory_info().rss  # on a CPU, PyTorch and the text count too
        share = FEW if small else 1
        step = go_through(config, vocab_size, few, length, separated, machine, share)
    copied = weights * (processes.world > 1 and not config.shard)  # what DDP sends
    averaged = weights * (config.average > 0)
    kept = (2 * weights + step.states + averaged) // holders + copied
    most = max(step.learning + step.states, step.stepping)
    passing = round((most - 2 * weights - step.states) * scale)
    passing = max(0, passing, step.judging - 2 * weights - step.states)
    memory = kept + round(SLACK[machine.kind] * passing) + CONTEXT[machine.kind]
    if machine.kind == "cpu":
        memory += own
    flops = step.flops / (few * length)
    mfu = flops / peak_flops(machine) / processes.world
    expected = Estimate(parameters, memory, kept, flops, mfu)
    if memory > BEYOND * there:
        raise ValueError(f"the run would take {in_words(memory)} of memory, and there are "
                         f"{in_words(there)}; {advice(expected, config, there, processes.world)}.")
    return expected


def is_small(config: Config, vocab_size: int, rows: int) -> bool:
    """Whether a step of so many rows is sure to take little memory and time."""
    given = sizes(config.model) | config.sizes
    layers, length = given.get("layers", 1), config.block_size
    widest = max(size for size in (1, *given.values()) if type(size) is int)
    if config.model == "bigram":  # its table has a row for every token
        widest = vocab_size
    window = length * given.get("embed", 0)  # of the mlp
    weights = widest * (2 * vocab_size + 16 * layers * widest + window)
    seen = length * given.get("heads", given.get("embed", 1))  # by a token, of all others
    token = vocab_size + layers * max(8 * widest, seen) + given.get("conv", 0) * widest
    if config.model == "cnn":  # what is before a row is filled up, too
        length = max(length, 2**layers)
    at_once = EVALUATED * vocab_size <= CHUNK  # else more rows are not as many times the memory
    few = max(rows * length, EVALUATED // FEW) * token <= SMALL[1]
    return weights <= SMALL[0] and few and at_once


def elements(small: bool):
    """Where tensors are as always; or unless small, have shapes and no elements, for which much is
    loaded first."""
    if small:
        return torch.random.fork_rng(devices=())
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


def go_through(
    config: Config, vocab_size: int, rows: int, length: int, separated: bool, machine: Machine,
    share: int = 1,
) -> Step:
    """A step of rows of that length, and a batch of an evaluation, or of that share of its rows
    what would be of all."""
    place = machine.kind.replace("mps", "cpu")  # which tensors without elements know
    machine = replace(machine, device=place)
    kind = config.optimizer if config.optimizer in OPTIMIZERS else "adamw"
    with Counter() as counter:
        with torch.device(place):
            model = shapes_of(config, vocab_size, config.sizes)
        model.checkpointing = config.checkpointing
        optimizers = make_optimizers(model, kind, config.lr)
        tokens = torch.zeros(rows, length, dtype=torch.long, device=place)
        batch = [tokens.clone() for _ in range(2 + separated)]
        for _ in range(min(2, config.accumulate)):  # the second part begins with gradients
            counter.flops = 0
            with machine.autocast():
                loss = model.loss(*batch)
            flops = 3 * counter.flops  # a backward pass is as two
            loss.backward()
            del loss
        learning, before, counter.most = counter.most, counter.bytes, counter.bytes
        for optimizer in optimizers:
            optimizer.step()
        stepping, states = counter.most, counter.bytes - before
        model.zero_grad(set_to_none=True)
        del batch, tokens
        kept = counter.most = counter.bytes
        judged = max(1, max(EVALUATED, config.block_size) // length)
        tokens = torch.zeros(max(1, judged // share), length, dtype=torch.long, device=place)
        with torch.no_grad(), machine.autocast():
            model.eval().loss(*[tokens] * (2 + separated))
    judging = kept + (counter.most - kept) * judged // len(tokens)
    return Step(learning, stepping, judging, states, flops)


def shapes_of(config: Config, vocab_size: int, given: dict) -> nn.Module:
    """A model of these sizes; that of PyTorch for one in NumPy, whose weights have its shapes."""
    known = sizes(config.model)
    given = {name: value for name, value in given.items() if name in known}
    model = build(config.model, vocab_size, config.block_size, **given)
    if config.model in attention.STAGES:  # fused is fused
        attention.use(model, "naive" if config.attention == "naive" else "sdpa")
    return model


def count(config: Config, vocab_size: int, small: bool = False) -> int:
    """The parameters of the model, none of which is made, unless small. ValueError: as estimate."""
    layers = config.sizes.get("layers", 1)

    def counted(**few) -> int:
        with elements(small):
            model = shapes_of(config, vocab_size, config.sizes | few)
        return sum(p.numel() for p in model.parameters())

    try:
        if layers <= 2:
            return counted()
        one, two = counted(layers=1), counted(layers=2)
        return one + (layers - 1) * (two - one)  # each layer has as many
    except (RuntimeError, TypeError):  # a number of bytes that has no 64 bits
        raise ValueError("a model of these sizes has more weights than any machine can hold; "
                         f"{smaller(config)}.") from None


def smaller(config: Config) -> str:
    """What to lower where the weights are too many."""
    names = [name for name in ("width", "layers", "embed") if name in config.sizes]
    if config.sizes.get("position") == "learned":
        names.append("block_size")
    if config.tokenizer == "bpe":
        names.append("vocab_size")
    return "lower " + " or ".join(map(flag, names)) if names else "take fewer tokens"


def here(machine: Machine) -> int:
    """How many processes of the run share this machine's memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if machine.kind == "cpu" else 1


def total(machine: Machine) -> int:
    """The bytes of memory that the device has."""
    if machine.kind == "cuda":
        return torch.cuda.get_device_properties(machine.device).total_memory
    there = psutil.virtual_memory().total + psutil.swap_memory().total
    with suppress(OSError, ValueError):  # a container that has a limit of its own; or "max"
        there = min(there, int(Path("/sys/fs/cgroup/memory.max").read_text("ascii")))
    return there


def available(machine: Machine) -> int:
    """The bytes of memory that this process may have in all, with what it has now."""
    if machine.kind == "cuda":
        taken = torch.cuda.memory_reserved(machine.device) + CONTEXT["cuda"]
        return torch.cuda.mem_get_info(machine.device)[0] + taken
    mine = psutil.Process().memory_info().rss
    return min(psutil.virtual_memory().available // here(machine) + mine, total(machine))


def most_used(machine: Machine) -> int:
    """The most bytes of memory that this process has had so far."""
    if machine.kind == "cuda":
        return torch.cuda.max_memory_reserved(machine.device) + CONTEXT["cuda"]
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return info.peak_wset
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def warning(expected: Estimate, config: Config, machine: Machine, world: int = 1) -> str:
    """That memory will be short, if so, and what to do; or nothing."""
    if expected.memory <= (there := available(machine)):
        return ""
    what = advice(expected, config, there, world)
    return f"this may not fit, as {in_words(there)} are free: {what}."


def advice(expected: Estimate, config: Config, there: int, world: int = 1) -> str:
    """What to lower, for a run to fit into so many bytes: that which takes the most of them."""
    if expected.kept > min(there, expected.memory / 2):
        muon = ", or take --optimizer=muon" * (config.optimizer == "adamw")
        return smaller(config) + muon
    rows = config.batch_size // world
    passing = (expected.memory - expected.kept) * config.accumulate
    least = passing / max(1, there - expected.kept)  # parts, for one of them to fit
    parts = next((n for n in range(config.accumulate + 1, min(rows, MOST_PARTS) + 1)
                  if rows % n == 0 and n >= least), 0)
    ways = [f"--accumulate={parts}"] * bool(parts)
    ways += ["--checkpointing"] * (config.model == "gpt" and not config.checkpointing)
    ways = [f"try {' or '.join(ways)}"] * bool(ways)
    return ", or ".join([*ways, "lower --batch-size or --block-size"])


def in_words(size: float) -> str:
    """Bytes as a person says them."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def peak_flops(machine: Machine) -> float:
    """The products and sums a second that the device reaches at best: as the maker states it for a
    GPU that is known here, else measured with large matrices."""
    if machine.kind == "cuda" and machine.dtype != "float32":
        name = torch.cuda.get_device_name(machine.device)
        words = [known for known in GPUS if re.search(rf"\b{known}\b", name)]
        if words and "Laptop" not in name:
            return GPUS[words[0]]
    n, dtype = 1024 if machine.kind == "cpu" else 4096, machine.dtype
    if machine.kind == "cpu" and dtype == "float16":  # few CPUs multiply it, and the others crawl
        dtype = "float32"
    a = torch.rand(n, n, device=machine.device, dtype=getattr(torch, dtype))
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the product
        seconds.append(time.perf_counter() - began)
    return 2 * n**3 / min(seconds)
