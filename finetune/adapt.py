"""Which weights learn: all, the head, the last layers, or low-rank additions to the matrices.

LoRA (Hu et al. 2021): a matrix W (out, in) stays as it is, and learns an addition of low rank,

    W x + alpha / rank * B A x          A (rank, in) at random, B (out, rank) zero at first

which `merge` adds to W in the end, so that the run is a plain one again. An embedding can have such
an addition too: a few numbers a token, and what each of them means. Layer-wise rates: the
lower a layer, the less it changes (Howard & Ruder 2018).
"""

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import data
from makemore.model import LanguageModel

TUNES = ("all", "head", "last", "lora")
EXTRA = len(data.SPECIALS)


@dataclass(frozen=True)
class Tuning:
    """tune: one of TUNES. last: so many layers of "last". rank, alpha, matrices: of "lora".

    matrices: names of linear maps in the layers, or "embedding", each with a rank of its own if one
    stands behind it ("embedding:16"); none means all in the layers. All additions count alpha /
    rank times. lr_decay: what a layer's learning rate is times that of the layer above it.
    """

    tune: str = "all"
    last: int = 1
    rank: int = 8
    alpha: float = 16.0
    matrices: tuple[str, ...] = ()
    lr_decay: float = 1.0

    def check(self) -> None:
        """ValueError for a setting that cannot work."""
        if self.tune not in TUNES:
            raise ValueError(f"--tune must be one of {', '.join(TUNES)}, not {self.tune}.")
        for name in ("last", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, not {getattr(self, name)}.")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"--alpha must be a number above 0, not {self.alpha}.")
        if not 0 < self.lr_decay <= 1:
            raise ValueError(f"--lr-decay must be above 0 and at most 1, not {self.lr_decay}.")
        for name in self.matrices:
            if not re.fullmatch(r"[^:]+(:0*[1-9][0-9]{0,8})?", name):
                raise ValueError(f"--matrices has {name}, where a name is expected, or a name and "
                                 "the rank of its addition, such as embedding:16.")
        if len(self.ranks) < len(self.matrices):
            raise ValueError(f"--matrices={','.join(self.matrices)} has a name twice.")

    @property
    def ranks(self) -> dict[str, int]:
        """Of the matrices that are named: the rank of each one's addition."""
        parts = (name.partition(":") for name in self.matrices)
        return {name: int(own or self.rank) for name, _, own in parts}


class LoRA(nn.Linear):
    """A linear map with an addition of low rank: (..., in) -> (..., out)."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        """linear: whose weights this takes over, and does not train."""
        bias = linear.bias is not None
        super().__init__(linear.in_features, linear.out_features, bias, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = alpha / rank
        like = dict(device=linear.weight.device, dtype=linear.weight.dtype)
        self.lora_a = nn.Parameter(torch.empty(rank, linear.in_features, **like))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank, **like))
        nn.init.normal_(self.lora_a, std=linear.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(F.linear(x, self.lora_a), self.lora_b)
        return super().forward(x) + self.scale * low

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The same map without an addition."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None,
                           device=self.weight.device, dtype=self.weight.dtype)
        linear.weight, linear.bias = self.weight, self.bias
        added = self.scale * (self.lora_b.double() @ self.lora_a.double())
        linear.weight.copy_((self.weight.double() + added).to(self.weight.dtype))
        return linear


class LoRAEmbedding(nn.Embedding):
    """An embedding with an addition of low rank: tokens (...) -> (..., C)."""

    def __init__(self, embedding: nn.Embedding, rank: int, alpha: float):
        """embedding: whose weights this takes over, and does not train."""
        super().__init__(embedding.num_embeddings, embedding.embedding_dim, device="meta")
        self.weight = embedding.weight
        self.scale = alpha / rank
        like = dict(device=self.weight.device, dtype=self.weight.dtype)
        # what is looked up is zero at first, so that every token finds its own way from there
        self.lora_a = nn.Parameter(torch.zeros(self.num_embeddings, rank, **like))
        self.lora_b = nn.Parameter(torch.empty(self.embedding_dim, rank, **like))
        nn.init.normal_(self.lora_b)

    def forward(self, tokens: Tensor) -> Tensor:
        low = F.embedding(tokens, self.lora_a)
        return super().forward(tokens) + self.scale * F.linear(low, self.lora_b)

    @torch.no_grad()
    def merged(self) -> nn.Embedding:
        """The same embedding without an addition."""
        embedding = nn.Embedding(self.num_embeddings, self.embedding_dim, device="meta")
        embedding.weight = self.weight
        added = self.scale * (self.lora_a.double() @ self.lora_b.double().T)
        embedding.weight.copy_((self.weight.double() + added).to(self.weight.dtype))
        return embedding


class SpecialRows(nn.Module):
    """An embedding, or a head, of which only the rows of the special tokens learn.

    Pretraining has never seen a turn of user or assistant, nor its end: where embedding or head
    stay as they are, these few rows must still come to mean something. rows (4, C): what is added
    to them.
    """

    def __init__(self, inner: nn.Embedding | nn.Linear, rows: nn.Parameter | None = None):
        super().__init__()
        self.inner = inner
        self.rows = nn.Parameter(torch.zeros_like(inner.weight[:EXTRA])) if rows is None else rows

    @property
    def weight(self) -> Tensor:
        """(V, C)"""
        return self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.inner, nn.Embedding):  # x (B, T) -> (B, T, C)
            special = (x < EXTRA)[..., None]
            return self.inner(x) + F.embedding(x.clamp(max=EXTRA - 1), self.rows) * special
        logits = self.inner(x)  # x (..., C) -> (..., V)
        added = F.linear(x, self.rows)
        return logits + F.pad(added, (0, logits.shape[-1] - EXTRA))


def adapt(
    model: LanguageModel, tuning: Tuning, speaks: bool = True, special: bool = False
) -> None:
    """Make the model ready to be tuned so, in place: what shall not learn needs no gradient.

    speaks: whether its own head is in use, or another one takes its place. special: whether there
    are special tokens in what it reads, even so. ValueError: what the tuning asks for the model has
    not.
    """
    tuning.check()
    own = isinstance(model.head, nn.Linear)
    tied = own and model.head.weight is model.embedding.weight
    if tuning.tune == "all":
        if own and not tied and not speaks:
            model.head.requires_grad_(False)
        return
    model.requires_grad_(False)
    if tuning.tune == "last":
        if tuning.last > len(model.layers):
            raise ValueError(f"--last={tuning.last} layers are more than the model has, "
                             f"{len(model.layers)}.")
        model.layers[-tuning.last:].requires_grad_(True)
        if isinstance(getattr(model, "norm", None), nn.Module):
            model.norm.requires_grad_(True)
    if tuning.tune == "lora":
        if tied and speaks and "embedding" in tuning.ranks:
            raise ValueError("this model's embedding is its head too, which an addition to the "
                             "embedding alone would part from it; leave it out of --matrices.")
        add_lora(model, tuning)
    if not speaks:
        if special:
            model.embedding = SpecialRows(model.embedding)
        return
    if not own:
        raise ValueError("this model has no head of its own, so only --tune=all can teach it to "
                         "speak.")
    if tuning.tune != "lora":
        model.head.requires_grad_(True)
        if not tied:
            model.embedding = SpecialRows(model.embedding)
        return
    model.embedding = SpecialRows(model.embedding)
    model.head = SpecialRows(model.head, model.embedding.rows if tied else None)


def add_lora(model: LanguageModel, tuning: Tuning) -> None:
    """Put LoRA into what the tuning names, in place."""
    linear = {name: module for name, module in model.layers.named_modules()
              if isinstance(module, nn.Linear)}
    names = {name.split(".")[-1] for name in linear}
    if isinstance(getattr(model, "embedding", None), nn.Embedding):
        names.add("embedding")
    ranks, scale = tuning.ranks, tuning.alpha / tuning.rank
    unknown = [name for name in ranks if name not in names]
    if unknown or not (linear or ranks):
        has = ", ".join(sorted(names)) or "none"
        raise ValueError(f"LoRA is for the matrices in the layers and the embedding, of which this "
                         f"model has {has}{', and not ' + unknown[0] if unknown else ''}.")
    for name, module in linear.items():
        rank = ranks.get(name.split(".")[-1], 0 if ranks else tuning.rank)
        if rank:
            put(model.layers, name, LoRA(module, rank, scale * rank))
    if rank := ranks.get("embedding"):
        model.embedding = LoRAEmbedding(model.embedding, rank, scale * rank)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Set the submodule of that dotted name."""
    *path, last = name.split(".")
    parent = model.get_submodule(".".join(path))
    setattr(parent, last, module)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Make plain weights of all that `adapt` added, in place: the same logits, the plain names."""
    for name, module in list(model.named_modules()):
        if isinstance(module, (LoRA, LoRAEmbedding)):
            put(model, name, module.merged())
    added: set[Tensor] = set()  # of a tied head the rows are those of the embedding
    for name, module in list(model.named_modules()):
        if isinstance(module, SpecialRows):
            if module.rows not in added:
                module.weight[:EXTRA] += module.rows
            added.add(module.rows)
            put(model, name, module.inner)


def is_adapted(state: dict[str, Tensor]) -> bool:
    """Whether weights, by name, still have what `merge` would take into the plain ones."""
    return any(name.endswith((".lora_a", ".rows")) for name in state)


def lr_shares(model: nn.Module, layers: int, decay: float) -> dict[str, float]:
    """The share of the learning rate of every parameter that has not all of it.

    Heads and the last norm have it all (but for a head that was fitted before, see classify.py),
    the last of the layers decay times it, and so on down to the embedding.
    """
    shares = {}
    for name, _ in model.named_parameters():
        number = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
        if number:
            shares[name] = decay ** (layers - int(number[1]))
        elif re.search(r"(?:^|\.)(embedding|conv|positions)\.", name):
            shares[name] = decay ** (layers + 1)
    return {} if decay == 1 else shares


def count(model: nn.Module) -> tuple[int, int]:
    """The parameters that learn, and all."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, learns in sizes if learns), sum(n for n, _ in sizes)
