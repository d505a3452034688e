"""NumPy models in the training loop: PyTorch carries their arrays, NumPy does the arithmetic.

Weights, gradients and what an optimizer remembers are NumPy arrays that tensors share. So the loop,
the checkpoints and the sampler take a NumPy model for any other; autograd is handed gradients that
were worked out by hand, and differentiates nothing itself.
"""

import numpy as np
import torch
from torch import Tensor, nn

from .model import IGNORED, State
from .without_torch import model as by_hand
from .without_torch.losses import NotNumbers
from .without_torch.optimizers import OPTIMIZERS, Optimizer

assert IGNORED == by_hand.IGNORED


class FromNumpy(nn.Module):
    """A model of without_torch/ under the contract of LanguageModel (model.py)."""

    def __init__(self, stage: type[by_hand.Model], vocab_size: int, block_size: int, **sizes):
        super().__init__()
        self.vocab_size, self.block_size = vocab_size, block_size
        self.model = stage(vocab_size, block_size, **sizes, rng=generator())
        for name, array in self.model.parameters.items():
            module, last = self.place(name)
            module.register_parameter(last, nn.Parameter(torch.from_numpy(array)))
        for name, array in self.model.averages.items():
            module, last = self.place(name)
            module.register_buffer(last, torch.from_numpy(array))

    def place(self, name: str) -> tuple[nn.Module, str]:
        """layers.0.hidden.weight -> the module at layers.0.hidden, made if need be, and weight."""
        *path, last = name.split(".")
        module = self
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]
        return module, last

    def forward(
        self, tokens: Tensor, state: State | None = None, segments: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """tokens (B, T) int64 -> logits (B, T, V) and the state after them. No gradient."""
        before = None
        if state is not None:
            (recent,) = state.memories[0]
            before = by_hand.State(state.position.numpy(), state.segment.numpy(), recent.numpy())
        logits, after = self.model(tokens.numpy(), before, to_numpy(segments))
        position, segment, recent = map(
            torch.from_numpy, (after.position, after.segment, after.recent)
        )
        return torch.from_numpy(logits), State(position, segment, [(recent,)])

    @np.errstate(all="ignore")  # the loop itself looks out for what is not finite
    def loss(self, tokens: Tensor, targets: Tensor, segments: Tensor | None = None) -> Tensor:
        """Mean nats over the targets (B, T) that are not -1."""
        batch = tokens.numpy(), targets.numpy(), to_numpy(segments)
        if torch.is_grad_enabled() and self.training:
            names, weights = zip(*self.named_parameters())
            return ByHand.apply(self.model, batch, names, *weights)
        try:
            return torch.tensor(float(self.model.loss(*batch)))
        except NotNumbers:
            return torch.tensor(torch.nan)


class ByHand(torch.autograd.Function):
    """The loss, and for its gradient what the model worked out."""

    @staticmethod
    def forward(ctx, model, batch, names, *weights):
        try:
            loss, gradients = model.gradients(*batch, generator())
        except NotNumbers:  # the loop knows what to say to that
            loss, gradients = torch.nan, {n: np.zeros_like(w) for n, w in model.parameters.items()}
        ctx.gradients = [torch.from_numpy(gradients[name]) for name in names]
        return torch.tensor(float(loss))

    @staticmethod
    def backward(ctx, d):
        return None, None, None, *(d * gradient for gradient in ctx.gradients)


class NumpyOptimizer:
    """Optimizers of without_torch/, each for some of the weights, as the loop expects one."""

    def __init__(self, weights: dict[str, nn.Parameter], lr: float):
        self.weights = weights
        self.param_groups = [{"lr": lr}]
        self.optimizers: list[Optimizer] = []

    def use(self, kind: str, names: list[str], **settings) -> None:
        """The kind of optimizer for the weights of these names."""
        arrays = [pieces(name, self.weights[name].detach(), kind) for name in names]
        merged = {name: array for pieces in arrays for name, array in pieces.items()}
        if merged:
            self.optimizers.append(OPTIMIZERS[kind](merged, **settings))

    @np.errstate(all="ignore")
    def step(self) -> None:
        gradients = {}
        for kind in ("adamw", "muon"):  # whole, and in the pieces that Muon takes
            for name, weight in self.weights.items():
                gradients |= pieces(name, weight.grad, kind)
        for optimizer in self.optimizers:
            optimizer.step(gradients, self.param_groups[0]["lr"])

    def zero_grad(self) -> None:
        for weight in self.weights.values():
            weight.grad = None

    def state_dict(self) -> dict:
        return {"optimizers": [
            {"steps": o.steps,
             "memory": {n: list(map(torch.from_numpy, m)) for n, m in o.memory.items()}}
            for o in self.optimizers
        ]}

    def load_state_dict(self, state: dict) -> None:
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.steps = saved["steps"]
            for name, memory in optimizer.memory.items():
                for array, tensor in zip(memory, saved["memory"][name], strict=True):
                    array[:] = tensor.numpy()


def pieces(name: str, tensor: Tensor, kind: str) -> dict[str, np.ndarray]:
    """The array of a tensor, with the tensor's memory; for Muon its square blocks, as in
    nanogpt/optim.py, if one side of the matrix is a multiple of the other."""
    array = tensor.numpy()
    if kind != "muon" or array.ndim != 2:
        return {name: array}
    rows, columns = array.shape
    if max(rows, columns) % min(rows, columns):
        return {f"{name} whole": array}
    parts = np.split(array, rows // columns) if rows > columns else \
        np.split(array, columns // rows, axis=1)
    return {f"{name} part {i}": part for i, part in enumerate(parts)}


def to_numpy(tensor: Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.numpy()


def generator() -> np.random.Generator:
    """A NumPy generator that follows from PyTorch's default one, which the loop seeds."""
    return np.random.default_rng(int(torch.randint(2**62, ())))
