"""The optimizers: Muon for the matrices inside the layers, AdamW for everything else."""

from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from makemore.bridge import FromNumpy, NumpyOptimizer

from .processes import own, whole

OPTIMIZERS = ("muon", "adamw")
STACK = 2**23  # elements that are orthogonalised at once: 32 MiB, and a few times that in passing
BETAS, EPS = (0.9, 0.99), 1e-8  # of AdamW
MOMENTUM = 0.95  # of Muon


def make_optimizers(
    model: nn.Module, kind: str, lr: float, weight_decay: float = 0.0,
    lr_shares: dict[str, float] | None = None, products: torch.dtype | None = None,
    momentum: float = MOMENTUM, embedding_lr: float = 1.0,
) -> list["Optimizer"] | list[NumpyOptimizer]:
    """kind "adamw": AdamW alone. "muon": Muon for the matrices of model.layers, AdamW for the rest.

    Embeddings, head, norms and biases are no maps between features, so Muon's reasoning does not
    hold for them. Weight decay is for matrices alone, not the gains of a convolution. Both take
    the same learning rate, the embedding (with its convolution, and a head tied to it) embedding_lr
    times as much. A model in NumPy gets the optimizers of makemore/without_torch, and may have any
    kind of these. lr_shares: parameters, by name, that take another share of the rate than 1; it
    stands in their group as "lr_share". products: of Muon, the dtype of its products, if not that
    of the weights.
    """
    decayed, muon, rest = [], [], []
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in weights.items():
        if parameter.ndim < 2 or "conv" in name.split("."):
            rest.append(name)
        elif kind == "muon" and "layers." in name and parameter.ndim == 2:
            muon.append(name)
        else:
            decayed.append(name)
    if isinstance(model, FromNumpy):
        by_hand = NumpyOptimizer(weights, lr)
        betas = dict(zip(("keep_mean", "keep"), BETAS))
        if kind in OPTIMIZERS:
            by_hand.use("muon", muon, decay=weight_decay)
            by_hand.use("adamw", decayed, **betas, decay=weight_decay)
            by_hand.use("adamw", rest, **betas, decay=0.0)
        else:
            by_hand.use(kind, list(weights))
        return [by_hand]
    assert kind in OPTIMIZERS
    shares = {name: (lr_shares or {}).get(name, 1.0)
              * (embedding_lr if {"embedding", "conv"} & {*name.split(".")} else 1.0)
              for name in weights}

    def groups(names: list[str], decay: float) -> list[dict]:
        return [
            dict(params=[weights[name] for name in names if shares[name] == share],
                 weight_decay=decay, lr_share=share)
            for share in sorted({shares[name] for name in names}, reverse=True)
        ]

    optimizers: list[Optimizer] = []
    if decayed or rest:
        optimizers.append(AdamW(groups(decayed, weight_decay) + groups(rest, 0.0), lr))
    if muon:
        optimizers.append(Muon(groups(muon, weight_decay), lr, momentum, products=products))
    return optimizers


class Average:
    """An exponential average of the weights, which is often better than the last of them.

    (Polyak & Juditsky 1992.) keep: the share of the old average that stays at each step, lower in
    the first steps; 0: there is no average, and nothing is done.
    """

    def __init__(self, model: nn.Module, keep: float):
        self.keep = keep
        self.weights = dict(model.named_parameters()) if keep else {}
        names = model.named_parameters(remove_duplicate=False)  # a tied weight has two
        first = {weight: name for name, weight in self.weights.items()}
        self.names = {name: first[weight] for name, weight in names} if keep else {}
        self.average = {name: weight.detach().clone() for name, weight in self.weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after that step into the average."""
        if self.average:
            share = 1 - min(self.keep, (1 + step) / (10 + step))
            weights = [weight.detach() for weight in self.weights.values()]
            torch._foreach_lerp_(list(self.average.values()), weights, share)

    @contextmanager
    def in_place(self):
        """Within it, the model has the averaged weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        for name, weight in self.weights.items():
            mine = self.average[name]
            kept = weight.clone()
            weight.copy_(mine)
            mine.copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """By all names that the weights have in the model's own state."""
        return {name: self.average[first] for name, first in self.names.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, weight in self.average.items():
            weight.copy_(state[name])


class Optimizer:
    """Groups of parameters, each with settings of its own, and what is remembered of a parameter.

    Used and saved as one of torch.optim, the first of which to be made loads TorchDynamo: a second
    or two, for nothing that is needed here.
    """

    def __init__(self, groups: list[dict] | list[nn.Parameter], **usual):
        if not all(isinstance(group, dict) for group in groups):
            groups = [{"params": groups}]
        self.param_groups = [usual | group for group in groups]
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {p: {} for p in self.parameters()}

    def parameters(self) -> list[nn.Parameter]:
        """Of all groups."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def step(self) -> None:
        """Change the parameters that have a gradient."""
        with torch.no_grad():
            for group in self.param_groups:
                if known := [p for p in group["params"] if p.grad is not None]:
                    self.change(known, group)

    def change(self, parameters: list[nn.Parameter], group: dict) -> None:
        """These parameters, by their gradients and the settings of their group."""
        raise NotImplementedError

    def zero_grad(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None

    def state_dict(self) -> dict:
        """Parameters are numbered through all groups."""
        numbers = {parameter: number for number, parameter in enumerate(self.parameters())}
        return {
            "state": {numbers[p]: dict(items) for p, items in self.state.items() if items},
            "param_groups": [group | {"params": [numbers[p] for p in group["params"]]}
                             for group in self.param_groups],
        }

    def load_state_dict(self, state: dict) -> None:
        for group, saved in zip(self.param_groups, state["param_groups"], strict=True):
            group.update({name: saved[name] for name in group.keys() & saved if name != "params"})
        parameters = self.parameters()
        for number, items in state["state"].items():
            p = parameters[number]
            self.state[p] = {name: item.to(clock(p) if name == "step" else p.device)
                             for name, item in items.items()}


class AdamW(Optimizer):
    """Each weight by its mean gradient over the root of its mean square (Loshchilov & Hutter 2019).

    The arithmetic is PyTorch's, in one kernel where it has one.
    """

    def __init__(self, groups, lr: float, weight_decay: float = 0.0):
        super().__init__(groups, lr=lr, weight_decay=weight_decay)

    def change(self, parameters, group):
        for parameter in parameters:
            if not (state := self.state[parameter]):
                state["step"] = torch.zeros((), device=clock(parameter))
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        names = ("exp_avg", "exp_avg_sq", "step")
        means, squares, steps = ([self.state[p][name] for p in parameters] for name in names)
        adamw(
            parameters, [p.grad for p in parameters], means, squares, [], steps,
            fused=has_kernel(parameters[0]), amsgrad=False, maximize=False,
            beta1=BETAS[0], beta2=BETAS[1], eps=EPS,
            lr=group["lr"], weight_decay=group["weight_decay"],
        )


def has_kernel(parameter: nn.Parameter) -> bool:
    """Whether PyTorch has AdamW in one kernel for its device."""
    return parameter.device.type in ("cpu", "cuda")


def clock(parameter: nn.Parameter) -> torch.device:
    """Where a number of steps belongs: with the parameter for the kernel, else with Python."""
    return parameter.device if has_kernel(parameter) else torch.device("cpu")


class Muon(Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024): as large a step in all directions of a matrix.

    Gradients of matrices are dominated by a few directions; the nearest orthogonal matrix to the
    momentum moves the others as far. The update is scaled to the size of an Adam update (Liu et al.
    2025), so that both take the same learning rate. A matrix with one side a multiple of the other,
    such as the stacked gates of a cell or queries, keys and values, is taken as square blocks, and
    blocks of one shape share a batched product, up to STACK of their elements: torch.optim.Muon
    goes one by one. products: their dtype, if not that of the weights: bfloat16 will do (Jordan).
    """

    def __init__(
        self, groups, lr: float, momentum: float = MOMENTUM, weight_decay: float = 0.0,
        products: torch.dtype | None = None,
    ):
        self.products = products  # how it is computed: of this a checkpoint says nothing
        super().__init__(groups, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def change(self, parameters, group):
        stacks: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            update = parameter.grad.lerp(state["momentum"], group["momentum"])  # Nesterov's
            blocks = to_blocks(whole(update))  # directions are those of the whole matrix
            stack = stacks.setdefault(blocks.shape[1:], [])
            stack.append((parameter, blocks))
            if sum(blocks.numel() for _, blocks in stack) >= STACK:
                self.move(stacks.pop(blocks.shape[1:]), group["lr"], group["weight_decay"])
        for stack in stacks.values():
            self.move(stack, group["lr"], group["weight_decay"])

    def move(self, stack: list[tuple[Tensor, Tensor]], lr: float, weight_decay: float) -> None:
        """Change these parameters by their blocks, which are of one shape."""
        blocks = [blocks for _, blocks in stack]
        whole_stack = orthogonalise(torch.cat(blocks), products=self.products)
        updates = whole_stack.split([len(part) for part in blocks])
        scale = 0.2 * max(blocks[0].shape[1:]) ** 0.5
        for (parameter, _), update in zip(stack, updates, strict=True):
            parameter.mul_(1 - lr * weight_decay)
            update = own(from_blocks(update, parameter.shape), parameter)
            parameter.add_(update, alpha=-lr * scale)


def to_blocks(matrix: Tensor) -> Tensor:
    """(R, C) -> (N, r, c), r <= c: square blocks if the longer side is a multiple of the other."""
    rows, columns = matrix.shape
    if rows > columns:
        return to_blocks(matrix.T)
    if columns % rows == 0:
        return matrix.reshape(rows, -1, rows).transpose(0, 1)
    return matrix[None]


def from_blocks(blocks: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of to_blocks: (N, r, c) -> (R, C)."""
    rows, columns = shape
    if rows > columns:
        return from_blocks(blocks, (columns, rows)).T
    return blocks.transpose(0, 1).reshape(rows, columns)


def orthogonalise(
    matrices: Tensor, steps: int = 5, products: torch.dtype | None = None
) -> Tensor:
    """(N, r, c) -> nearly the nearest matrices with orthonormal rows, r <= c.

    Newton and Schulz's iteration with Jordan's coefficients, which bring every singular value
    near 1, not to it, in five steps. products: their dtype, if not that of the matrices.
    """
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x.to(products or x.dtype)
    for _ in range(steps):
        a = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.to(matrices.dtype)
