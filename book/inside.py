"""What a model makes of a beginning, as plain numbers: what the page (play.py) draws.

A picture has a caption and maps, and a map is a table of numbers:

    title, rows and columns (a text each, or a token as in `label`), values (a list a row),
    signed: whether they lie around 0, mark: the row that matters, or None

Which pictures there are follows from what a stage keeps: its table, its state, or its attention.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

import data
import sample
from makemore.bridge import FromNumpy
from makemore.model import LanguageModel
from nanogpt import attention
from nanogpt.generate import Reader, chances

SHOWN = 64  # tokens at the end of a beginning that are drawn
LISTED = 40  # of the tokens that may come next, the likeliest
TALL = 256  # rows of a map
WORK = 5e9  # products for a picture: about a tenth of a second
RECURRENT = {"rnn": "h", "gru": "h", "lstm": "hc"}  # and the names of what they remember


class Reading:
    """A beginning as the model has read it.

    tokens: what it still knows: where positions are learned, not more than a block. shown (1, T):
    the last of them; state: after those before; before (1, 1, V): the logits then, None if there
    were none; logits (1, T, V): after each that is shown; next (V,): after them all, as the sampler
    finds them.
    """

    def __init__(self, model: LanguageModel, tokens: list[int]):
        self.model = model
        self.reader = Reader(model, [tokens], 1)
        self.tokens = self.reader.texts[0] if self.reader.limit else tokens
        self.next = self.reader.logits[0].float().cpu()
        self.shown, self.state, self.before = self.split(SHOWN)
        self.logits, _ = model(self.shown, self.state)

    def split(self, count: int) -> tuple[Tensor, object, Tensor | None]:
        """The last tokens (1, count), the state before them, and the logits (1, 1, V) then."""
        tokens = torch.tensor([self.tokens], device=self.reader.device)
        if len(self.tokens) <= count:
            return tokens, None, None
        logits, state = self.reader.read(tokens[:, :-count], None)
        return tokens[:, -count:], state, logits[:, -1:]

    def surprise(self) -> list[float | None]:
        """What each token that is shown cost, in nats; None: nothing stood before it."""
        first = self.before is None
        logits = self.logits[:, :-1] if first else torch.cat([self.before, self.logits[:, :-1]], 1)
        targets = self.shown[0, 1:] if first else self.shown[0]
        costs = F.cross_entropy(logits[0].double(), targets, reduction="none").tolist()
        return [None] * first + costs


@torch.inference_mode()
def look(
    model: LanguageModel, tokenizer: data.Tokenizer, stage: str, separated: bool, prompt: str,
    picture: str = "", temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
) -> dict:
    """What may come after a prompt, what each of its tokens cost, and a picture, all for JSON.

    picture: one of those offered; of another name the first. ValueError: an unseen character.
    """
    reading = Reading(model, sample.starts(prompt, tokenizer, separated))
    offered = pictures(model, stage)
    if not reading.next.isfinite().all():
        raise ValueError("what this run expects are no numbers; it went wrong in training.")
    picture = picture if picture in offered else next(iter(offered))
    probabilities = reading.next.double().softmax(0)
    never = sample.never_drawn(tokenizer, separated)
    logits = reading.next.index_fill(0, torch.tensor(never), -torch.inf)
    drawn = chances(logits[None], temperature, top_k, top_p)[0]
    drawn = drawn / drawn.sum()
    order = probabilities.argsort(descending=True, stable=True)[:LISTED].tolist()
    shown = labels(reading, tokenizer)
    return {
        "tokens": [token | {"nats": nats} for token, nats in zip(shown, reading.surprise())],
        "earlier": len(reading.tokens) - len(shown),
        "next": [
            label(tokenizer, token)
            | {"token": token, "probability": float(probabilities[token]),
               "chance": float(drawn[token])}
            for token in order
        ],
        "others": model.vocab_size - len(order),
        "pictures": list(offered),
        "picture": picture,
    } | offered[picture](reading, tokenizer)


def label(tokenizer: data.Tokenizer, token: int) -> dict:
    """How to show a token: its text, or the name of a special one, or its bytes."""
    if token < len(data.SPECIALS):
        return {"text": "", "name": data.SPECIALS[token].strip("<|>")}
    content = tokenizer.decode_bytes([token])
    try:
        return {"text": content.decode("utf-8"), "name": "" if content else "nothing"}
    except UnicodeDecodeError:
        return {"text": "", "name": content.hex(" ")}


def pictures(model: LanguageModel, stage: str) -> dict[str, Callable]:
    """The pictures of a model, the most telling first: (reading, tokenizer) -> caption and maps."""
    offered = {}
    if stage == "bigram":
        offered["the table"] = table
    for place, name in enumerate(RECURRENT.get(stage, "")):
        offered[f"the state {name}"] = partial(state, place=place, name=name)
    if stage in attention.STAGES:
        offered["attention of the last token"] = attention_of_last
        for layer in range(len(model.layers)):
            offered[f"attention in layer {layer + 1}"] = partial(attention_in, layer=layer)
    if not (stage == "bigram" and isinstance(model, FromNumpy)):  # whose table has no empty row
        offered["what each token matters"] = influence
    return offered


def map_of(title: str, rows: list, columns: list, values: Tensor, signed=False, mark=None) -> dict:
    """A map of values (rows, columns); to three digits, which is more than a colour shows."""
    rounded = [[round(x, 3) for x in row] for row in values.tolist()]
    return dict(title=title, rows=rows, columns=columns, values=rounded, signed=signed, mark=mark)


def labels(reading: Reading, tokenizer: data.Tokenizer) -> list[dict]:
    """Of the tokens that are shown. An END among them is where the document starts."""
    tokens = reading.shown[0].tolist()
    return [{"text": "", "name": "start"} if token == data.END else label(tokenizer, token)
            for token in tokens]


def table(reading: Reading, tokenizer: data.Tokenizer) -> dict:
    """A bigram's: how likely each token is (column) after each (row). Of a large one, a row."""
    last = reading.tokens[-1]
    tokens = [t for t in range(reading.model.vocab_size) if t not in tokenizer.silent]
    rows, caption = tokens, "How likely each token is (across) after each (down)."
    if len(tokens) > TALL:
        tokens = sorted(reading.next.topk(SHOWN).indices.tolist())
        rows, caption = [last], "The row of the last token: the likeliest after it."
    column = torch.tensor(rows, device=reading.reader.device)[:, None]
    values = reading.model(column)[0][:, 0].double().softmax(1)[:, tokens]
    names = [label(tokenizer, t) for t in tokens]
    first = [label(tokenizer, t) for t in rows]
    return dict(caption=caption, maps=[map_of("", first, names, values, mark=rows.index(last))])


def state(reading: Reading, tokenizer: data.Tokenizer, place: int, name: str) -> dict:
    """What a recurrent stage remembers after each token: a map a layer, a row a unit."""
    now, after = reading.state, []
    for token in reading.shown[0]:
        _, now = reading.model(token.view(1, 1), now)
        after.append([memory[place][0] for memory in now.memories])
    maps = []
    for layer, columns in enumerate(zip(*after), start=1):
        values = torch.stack(columns, 1)[:TALL]  # (C, T)
        title = f"layer {layer}, {len(columns[0])} units"
        if len(columns[0]) > TALL:
            title += f", of which the first {TALL}"
        units = [f"unit {i + 1}" for i in range(len(values))]
        maps.append(map_of(title, units, labels(reading, tokenizer), values.float(), signed=True))
    return dict(caption=f"{name} after each token (across), a row for each unit.", maps=maps)


def influence(reading: Reading, tokenizer: data.Tokenizer) -> dict:
    """What the model would lose were the embedding of a token zero, as before a beginning.

    The place stays, and what a model knows of places. The divergence of what it then expects from
    what it expects now (Kullback & Leibler 1951), in nats: by so much the next token would cost
    more on average, if it is as the model expects.
    """
    size = sum(p.numel() for p in reading.model.parameters())
    count = max(1, min(SHOWN, int((WORK / size) ** 0.5)))
    shown, state, _ = reading.split(count)
    T = shown.shape[1]
    if state is not None:
        state = state.rows(torch.zeros(T, dtype=torch.int64, device=shown.device))
    with without(reading.model, torch.eye(T, dtype=torch.bool, device=shown.device)):
        logits, _ = reading.model(shown.expand(T, T), state)
    missing = logits[:, -1].float().cpu().double().log_softmax(1)  # (T, V)
    known = reading.next.double().log_softmax(0)
    nats = (known.exp() * (known - missing)).nan_to_num(0).sum(1).clamp(min=0)
    caption = "How many nats more the next token would cost, were the embedding of this one zero."
    maps = [map_of("", ["nats"], labels(reading, tokenizer)[-T:], nats[None])]
    return dict(caption=caption, maps=maps)


@contextmanager
def without(model: LanguageModel, hidden: Tensor) -> Iterator[None]:
    """A model for which the embeddings of the tokens that are hidden (B, T) are zero."""
    if not isinstance(model, FromNumpy):
        with model.embedding.register_forward_hook(lambda _, __, x: x * ~hidden[..., None]):
            yield
        return
    windows_of, reach = model.model.windows, model.model.context - 1

    def windows(*seen):
        found, state = windows_of(*seen)
        over = F.pad(hidden, (reach, 0)).unfold(1, reach + 1, 1).numpy()  # (B, T, context)
        found[over] = model.vocab_size  # which stands for what is not there
        return found, state

    model.model.windows = windows
    try:
        yield
    finally:
        del model.model.windows


def attention_of_last(reading: Reading, tokenizer: data.Tokenizer) -> dict:
    """How much the last token takes from each, by every head: one map, a row a head."""
    layers = [weights[0, :, -1] for weights in weights_of(reading)]  # (H, S) each
    heads = [f"layer {i + 1}, head {j + 1}" for i, w in enumerate(layers) for j in range(len(w))]
    values, columns = lumped(torch.cat(layers), labels(reading, tokenizer))
    caption = "What the last token takes from each (across), a row for each head."
    return dict(caption=caption, maps=[map_of("", heads[:TALL], columns, values[:TALL])])


def attention_in(reading: Reading, tokenizer: data.Tokenizer, layer: int) -> dict:
    """How much each token takes from each before it: a map a head."""
    names = labels(reading, tokenizer)
    maps = []
    for head, weights in enumerate(weights_of(reading)[layer][0], start=1):
        values, columns = lumped(weights, names)
        maps.append(map_of(f"head {head}", names, columns, values))
    return dict(caption="What each token (down) takes from each before it (across).", maps=maps)


def lumped(weights: Tensor, names: list[dict]) -> tuple[Tensor, list]:
    """weights (N, S) of the tokens that are shown; in front, if there are, all those before."""
    earlier = weights.shape[1] - len(names)
    if not earlier:
        return weights, names
    shown = weights[:, earlier:]
    return torch.cat([weights[:, :earlier].sum(1, keepdim=True), shown], 1), ["earlier", *names]


def weights_of(reading: Reading) -> list[Tensor]:
    """The weights of attention of the tokens that are shown, (1, H, T, S) for each layer."""
    with watched(reading.model) as found:
        reading.model(reading.shown, reading.state)
    return [weights.float().cpu() for weights in found]


@contextmanager
def watched(model: LanguageModel) -> Iterator[list[Tensor]]:
    """A transformer or a gpt that adds to a list what every layer attends to."""
    found = []

    def watch(attend: Callable) -> Callable:
        def both(q, k, v, *mask):
            found.append(weights_by(attend, q, k, v, *mask))
            return attend(q, k, v, *mask)
        return both

    if hasattr(model, "view"):  # gpt: one for all layers
        view = model.view
        model.view = lambda positions, attend: view(positions, watch(attend))
        places = [(model, "view", None)]
    else:
        places = [(layer.attention, "attend", vars(layer.attention).get("attend"))
                  for layer in model.layers]
        for place, name, _ in places:
            setattr(place, name, watch(place.attend))
    try:
        yield found
    finally:
        for place, name, before in places:
            if before is None:
                delattr(place, name)
            else:
                setattr(place, name, before)


def weights_by(attend: Callable, q: Tensor, k: Tensor, v: Tensor, *mask) -> Tensor:
    """The weights (B, H, T, S) of any attention, fused too, which never shows them.

    It gives weights @ v; of values that are the rows of a unit matrix that is the weights. These
    are as wide as v (B, KV, S, D), so it is asked for D columns at a time.
    """
    (B, KV, S, D), columns = v.shape, []
    for begin in range(0, S, D):
        ones = torch.zeros(S, D, dtype=v.dtype, device=v.device)
        ones[begin:begin + D].fill_diagonal_(1)
        columns.append(attend(q, k, ones.expand(B, KV, S, D).contiguous(), *mask))
    return torch.cat(columns, 3)[..., :S]
