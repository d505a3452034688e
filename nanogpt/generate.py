"""Tokens from a model, one step a token: the drawing and the loop, without a word of text.

The prompts are read first. A model that can `preallocate` then goes on in a Cache, which it writes
in place (gpt.py), so a token costs as much after ten thousand as after ten; the others go on with
the State that they hand out.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import data
from makemore.model import LanguageModel

from .cache import Cache

READ = 512  # tokens of a prompt that are read at a time: all at once would need its square
LARGE = 4096  # a vocabulary of which first the SHORT likeliest tokens are looked at
SHORT = 1024


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompts: list[list[int]],
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: int | None = data.END,
    never: Iterable[int] = (),
    over: Collection[int] = (),
    step: Callable | None = None,
) -> Iterator[tuple[int, int]]:
    """Yield (sample, token) as they are drawn: at most length for each prompt, until a stop token.

    The prompt is read first, then every token takes one step of one token with the state.
    What is drawn for sample i depends on its prompt, (seed, i) and the settings, not on the other
    samples. never: tokens that are never drawn. over: samples that the caller wants no more of;
    looked at again before every step. step: of `compile_step`. The model is left in the mode it
    was found in.
    """
    assert all(prompts) and length >= 0
    uniforms = np.stack([uniforms_of(seed, sample, length) for sample in range(len(prompts))])
    uniforms = torch.from_numpy(uniforms)
    banned = torch.zeros(model.vocab_size)
    if never := list(never):
        banned[never] = -torch.inf
    was_training = model.training
    if was_training:
        model.eval()
    try:
        reader = Reader(model, prompts, length, step)
        # drawn where float64 is to be had, with as little sent from a GPU as there can be
        place = reader.device if reader.device.type == "cuda" else "cpu"
        uniforms, banned = uniforms.to(place), banned.to(place)
        going = list(range(len(prompts)))
        for n in range(length):
            logits = reader.logits.float().to(place) + banned
            drawn = draw(logits, uniforms[:, n], temperature, top_k, top_p)
            tokens = drawn.tolist()
            yield from zip(going, tokens)
            rows = [row for row, sample in enumerate(going)
                    if tokens[row] != stop and sample not in over]
            if not rows or n + 1 == length:
                return
            if len(rows) < len(going):
                going = [going[row] for row in rows]
                drawn, uniforms = drawn[rows], uniforms[rows]
                reader.keep(rows)
            reader.push(drawn)
    finally:
        if was_training:
            model.train()


def uniforms_of(seed: int, sample: int, length: int) -> np.ndarray:
    """What decides each token of a sample, in [0, 1): (length,) float64."""
    return np.random.Generator(np.random.PCG64([seed, sample])).random(length)


def pack_prompts(prompts: list[list[int]], device="cpu") -> tuple[Tensor, Tensor | None]:
    """tokens and segments (B, T): prompts of different lengths end together.

    What fills up a shorter one on the left is a document of its own, which the model does not see.
    Prompts of one length need no segments: None.
    """
    longest = max(map(len, prompts))
    tokens = torch.tensor([[data.END] * (longest - len(p)) + p for p in prompts], device=device)
    if longest == min(map(len, prompts)):
        return tokens, None
    segments = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
    return tokens, torch.tensor(segments, device=device)


class Reader:
    """Reads the prompts, then a token of each row at a time, and says what may come next.

    logits (B, V): of the next token of each row that goes on.

    Learned positions end with the block (model.limit): a row that has filled it, or a prompt that
    is longer, is cut to its last half block of tokens, which the model reads anew.
    """

    def __init__(self, model: LanguageModel, prompts: list[list[int]], length: int, step=None):
        """length: how many tokens will be drawn. step: of `compile_step`."""
        self.model, self.step, self.count = model, step, len(prompts)
        self.device = next(model.parameters()).device
        self.limit = getattr(model, "limit", None)
        if self.limit:
            half = max(1, self.limit // 2)
            prompts = [p if len(p) <= self.limit else p[-half:] for p in prompts]
            self.texts = [list(prompt) for prompt in prompts]  # what each row has read
        logits, self.state = self.read(*pack_prompts(prompts, self.device))
        self.logits = logits[:, -1]
        if length > 1 and hasattr(model, "preallocate"):
            plain = len(set(map(len, prompts))) == 1
            self.state = model.preallocate(self.state, length - 1, plain)

    def read(self, tokens: Tensor, segments: Tensor | None):
        """The logits of the last tokens (B, T), and the state after them."""
        state = None
        for begin in range(0, tokens.shape[1], READ):
            part = slice(begin, begin + READ)
            documents = None if segments is None else segments[:, part]
            logits, state = self.model(tokens[:, part], state, documents)
        return logits, state

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows alone."""
        self.count = len(rows)
        if self.step:  # it is compiled for so many rows: others do again what the first does
            rows = rows + rows[:1] * (len(self.state.position) - len(rows))
        if self.limit:
            self.texts = [list(self.texts[row]) for row in rows]
        index = torch.tensor(rows, device=self.device)
        # ... and as a CUDA graph for these very rings
        self.state = self.state.arrange(index) if self.step else self.state.rows(index)

    def push(self, drawn: Tensor) -> None:
        """Read one more token of each row, drawn (B,)."""
        spare = len(self.state.position) - self.count
        tokens = torch.cat([drawn, drawn[:1].expand(spare)]) if spare else drawn
        if self.limit:
            self.renew()
            for text, token in zip(self.texts, tokens.tolist()):
                text.append(token)
        forward = self.step or self.model
        logits, self.state = forward(tokens[:, None].to(self.device), self.state)
        self.logits = logits[:self.count, -1]

    def renew(self) -> None:
        """Rows that have no position left begin again: their last half block, less what comes."""
        full = [row for row, text in enumerate(self.texts) if len(text) == self.limit]
        if not full:
            return
        kept = max(1, self.limit // 2) - 1
        for row in full:
            self.texts[row] = self.texts[row][self.limit - kept:]
        state = None
        if kept:
            tokens = torch.tensor([self.texts[row] for row in full], device=self.device)
            _, state = self.read(tokens, None)
        if state and len(full) == len(self.texts):
            self.state = self.model.preallocate(state, self.limit, plain=True)
        else:
            self.state.put(torch.tensor(full, device=self.device), state)


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """A token for each row of logits (B, V), (B,). uniform (B,) in [0, 1) decides which."""
    if temperature == 0:
        return logits.argmax(1)
    probabilities = chances(logits, temperature, top_k, top_p)
    reached = probabilities.cumsum(1)
    if reached.is_cuda:
        reached = growing(reached, probabilities)
    # the first token at which the sum passes the drawn share: never one of probability 0
    drawn = torch.searchsorted(reached, uniform[:, None] * reached[:, -1:], right=True)
    return drawn.clamp(max=logits.shape[1] - 1)[:, 0]


def growing(reached: Tensor, probabilities: Tensor) -> Tensor:
    """The sums (B, V) that probabilities reach, none less than one before it, none more by a 0.

    A GPU adds up in parallel, in another order for each sum: so one may differ from the one before
    it by a rounding, though nothing was added.
    """
    return reached.masked_fill(probabilities == 0, -1.0).cummax(1).values


def chances(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """What `draw` draws from: the probabilities of logits (B, V) that are kept, else 0, float64.

    temperature 0 keeps the likeliest alone. top_k > 0 keeps the k likeliest; top_p < 1 the smallest
    set of likeliest tokens whose probabilities reach it (Holtzman et al. 2020); both: what both
    keep. A row does not sum to 1 where something was left out.
    """
    if temperature == 0:
        return F.one_hot(logits.argmax(1), logits.shape[1]).double()
    if temperature != 1:  # the likeliest is 0 first, so that nothing overflows however cold
        logits = (logits - logits.max(1, keepdim=True).values).double() / temperature
    probabilities = logits.double().softmax(1)
    if 0 < top_k < logits.shape[1] or top_p < 1:
        tokens = shortlist(probabilities, top_k, top_p)
        ordered, order = probabilities[:, tokens].sort(dim=1, descending=True, stable=True)
        if top_p < 1:  # a token stays if those before it fall short of top_p
            ordered = ordered.masked_fill(ordered.cumsum(1) - ordered >= top_p, 0)
        if top_k > 0:
            ordered[:, top_k:] = 0
        probabilities = torch.zeros_like(probabilities).scatter(1, tokens[order], ordered)
    return probabilities


def shortlist(probabilities: Tensor, top_k: int, top_p: float) -> Tensor:
    """Tokens (N,), in order, among which are all of probabilities (B, V) that `chances` keeps.

    All V, or of a large vocabulary, which would take long to sort, few.
    """
    V = probabilities.shape[1]
    if V > LARGE and top_k < V:
        likeliest = probabilities.topk(top_k or SHORT).values
        if top_k or (likeliest.sum(1) > top_p).all():
            return (probabilities >= likeliest[:, -1:]).any(0).nonzero()[:, 0]
    return torch.arange(V, device=probabilities.device)


def compile_step(model: LanguageModel) -> Callable:
    """The model for one token of each row and a Cache, compiled: (tokens (B, 1), cache) as it is.

    It is compiled at the first call, and again for another number of rows or another room. On a
    GPU, where most of a step would be the launching of its kernels, it becomes a CUDA graph, which
    is recorded again for another cache.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    on_gpu = next(model.parameters()).device.type == "cuda"
    rings = None  # those that the graph knows

    def step(tokens, position, used, memories):
        with OneToken() if on_cpu else nullcontext():
            return model(tokens, Cache(position, position, memories, used))[0]

    options = {"size_asserts": False} | ({"triton.cudagraphs": True} if on_gpu else {})
    if on_cpu:  # what a sum reads again and again is worked out once, before it
        options["realize_opcount_threshold"] = 0
    compiled = torch.compile(step, dynamic=False, fullgraph=True, options=options)

    def of_cache(tokens: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        nonlocal rings
        if on_gpu and rings is not cache.memories:  # written in place, so never to be copied
            rings = cache.memories
            for ring in itertools.chain(*rings):
                torch._dynamo.mark_static_address(ring, guard=False)
        if on_gpu:  # what the last step gave out may be written over
            torch.compiler.cudagraph_mark_step_begin()
        used = torch.tensor(cache.used, device=tokens.device)
        logits = compiled(tokens, cache.position, used, cache.memories)
        return logits, replace(cache, position=cache.position + 1, used=cache.used + 1)

    return of_cache


class OneToken(TorchFunctionMode):
    """Writes the products of one token as sums, which a compiler fuses with all around them.

    So a matrix is read once, at the speed of memory, and hundreds of calls become a few. As they
    are, they call a library that is made for large matrices, and half as fast at this.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.linear and args[0].shape[:-1].numel() == 1:
            return linear(*args)
        if function is F.scaled_dot_product_attention:
            return attention(*args[:4])
        return function(*args, **(kwargs or {}))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (1, 1, C) through a linear map (F, C): (1, 1, F)."""
    y = (x.flatten() * weight).sum(1, dtype=torch.promote_types(x.dtype, torch.float32))
    return (y if bias is None else y + bias).to(x.dtype)[None, None]


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """What one query q (B, H, 1, D) finds among k and v (B, H, S, D) behind the mask."""
    scores = (q * k).sum(3, dtype=torch.promote_types(q.dtype, torch.float32)) * q.shape[3] ** -0.5
    weights = scores.masked_fill(~mask[:, :, 0], -torch.inf).softmax(2)
    return (weights[..., None] * v).sum(2, keepdim=True).to(q.dtype)
