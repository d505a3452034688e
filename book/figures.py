"""Pictures of the inside of a trained model, one for each stage, as SVG.

    draw("lstm", *load_run("runs/lstm-names"), Path("lstm.svg"))
    gradients({"rnn": rnn, "lstm": lstm, "gru": gru}, tokenizer, Path("gradients.svg"))

The models are shown texts of the validation split, which none has learned from. The same weights
give the same file, byte for byte.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import data
from data import END, Tokenizer, runs
from makemore.model import LanguageModel

NAME = "christian"
SENTENCE = '"Is it a carrot yet?" asked Bo.'  # a tale begins so
VOWELS = "aeiou"
UNITS = 40  # of a summary, that are shown: those that change most
STYLE = {  # of matplotlib: letters as outlines, so that they look alike everywhere
    "svg.fonttype": "path", "svg.hashsalt": "rungs", "font.size": 9, "axes.titlesize": 9,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "axes.spines.top": False, "axes.spines.right": False,
}
BLUE, RED, GREY = "#1f5fa8", "#c0392b", "#8a8a8a"
HUES = BLUE, RED, "#2e8b57"


def draw(stage: str, model: LanguageModel, tokenizer: Tokenizer, path: Path) -> None:
    """The picture of a stage into an SVG file. ValueError: there is none of that stage."""
    if stage not in PICTURES:
        raise ValueError(f"there is no picture of {stage}, only of {', '.join(PICTURES)}.")
    with evaluating(model):
        PICTURES[stage](model, tokenizer, path)


def ladder(stages: dict[str, dict], path: Path) -> None:
    """The validation losses of stages (as in book/results/ladder.json) while they learned."""
    with figure(7.2, 3.6, path) as sheet:
        axes = sheet.subplots()
        for number, (stage, result) in enumerate(stages.items()):
            hue = f"C{number}"
            points = [(tokens, loss) for _, tokens, _, loss in result["curve"] if tokens]
            axes.plot(*zip(*points), color=hue, linewidth=1.3, label=stage)
        axes.set(xscale="log", xlabel="tokens seen", ylabel="validation loss, nats per token")
        axes.legend(frameon=False)


def bigram(model: LanguageModel, tokenizer: Tokenizer, path: Path) -> None:
    """The table as a heat map: a row for each token, a column for what may come next."""
    shown = texts_of(tokenizer)
    with torch.no_grad():
        chances = model.embedding.weight.softmax(1)[shown][:, shown]
    labels = [label(tokenizer, i) for i in shown]
    with figure(5.4, 4.9, path) as sheet:
        axes = sheet.subplots()
        image = heat(axes, chances.sqrt(), "Blues", 0, 0.8)  # so that small ones can be told apart
        axes.set_xticks(range(len(shown)), labels)
        axes.set_yticks(range(len(shown)), labels)
        axes.set_xlabel("next character (\u2022 the end)")
        axes.set_ylabel("this character (\u2022 the start)")
        marks = (0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6)
        bar = sheet.colorbar(image, label="probability", shrink=0.6, extend="max")
        bar.set_ticks([mark**0.5 for mark in marks], labels=[f"{mark:g}" for mark in marks])


def mlp(model: LanguageModel, tokenizer: Tokenizer, path: Path) -> None:
    """The embedding in the two directions in which it varies most (Pearson 1901).

    All embeddings are brought to one length, for those of rare letters are long.
    """
    shown = texts_of(tokenizer)
    places, shares = principal(F.normalize(model.embedding.weight.detach()[shown]))
    with figure(4.8, 4.4, path) as sheet:
        axes = sheet.subplots()
        axes.scatter(*places.T.tolist(), s=0)  # only for the limits
        for token, place in zip(shown, places.tolist()):
            text = label(tokenizer, token)
            hue = RED if text in VOWELS else GREY if token == END else BLUE
            axes.annotate(text, place, ha="center", va="center", color=hue, fontsize=12)
        for axis, share, number in zip("xy", shares.tolist(), ("first", "second")):
            axes.set(**{f"{axis}label": f"{number} direction, {share:.0%} of the variance"})
        axes.set_title("letters by their embedding: vowels red, \u2022 start and end")


def cnn(model: LanguageModel, tokenizer: Tokenizer, path: Path) -> None:
    """Which tokens the last prediction can hear, layer by layer, and which it does hear."""
    reaches = [layer.reach for layer in model.layers]
    heard = hearing(model, *beginnings(tokenizer, 12))
    with figure(6.4, 4.0, path) as sheet:
        top, bottom = sheet.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        fields = receptive_fields(reaches)
        for height, (reach, field) in enumerate(zip(reaches, fields[1:]), start=1):
            for age in field:
                for below in (age, age + reach):
                    top.plot([-age, -below], [height, height - 1], color=BLUE, linewidth=0.8)
        for height, field in enumerate(fields):
            hue = GREY if height == 0 else BLUE
            top.plot([-age for age in field], [height] * len(field), "o", color=hue, markersize=4)
        names = ["embedding", *(f"layer {number}" for number in range(1, len(fields)))]
        top.set_yticks(range(len(fields)), names)
        top.set_title("what the last prediction can hear, through which positions of which layer")
        shares = (heard / heard.sum()).tolist()
        bottom.bar([-age for age in range(len(shares))], shares, 0.6, color=BLUE)
        bottom.set_title("what it does hear: share of the gradient, names of 11 letters or more")
        bottom.set(xlabel="tokens back", ylabel="share")
        ages = range(0, len(fields[0]), 1 + len(fields[0]) // 16)
        bottom.set_xticks([-age for age in ages], [str(age) for age in ages])


def rnn(model: LanguageModel, tokenizer: Tokenizer, path: Path) -> None:
    """The summary h of every layer, rewritten at every token of a name."""
    tokens = tokens_of(tokenizer, NAME)
    summaries = outputs(model, tokens, model.layers)
    with figure(6.4, 4.2, path) as sheet:
        grid = sheet.subplots(
            2, len(summaries), sharex="col", height_ratios=(1, 3), squeeze=False)
        for number, ((above, below), h) in enumerate(zip(grid.T, summaries), start=1):
            alike = F.cosine_similarity(h[1:], h[:-1]).tolist()
            above.plot(range(1, len(h)), alike, "o-", color=BLUE, markersize=3)
            above.axhline(0, color=GREY, linewidth=0.6)
            above.set(title=f"layer {number}", ylim=(-1, 1), yticks=(-1, 0, 1))
            varied = h.var(0).argsort(descending=True, stable=True)[:UNITS]
            image = heat(below, h[:, varied].T, "RdBu_r", -1, 1)
            name_below(below, tokenizer, tokens)
            below.set_yticks([])
        grid[0][0].set_ylabel("cosine of\nh[t], h[t-1]")
        grid[1][0].set_ylabel(f"h, {UNITS} units")
        sheet.colorbar(image, ax=list(grid[1]), label="h", shrink=0.7)


def lstm(model: LanguageModel, tokenizer: Tokenizer, path: Path) -> None:
    """The three gates of the last layer opening and closing over a name."""
    tokens = tokens_of(tokenizer, NAME)
    _, i, f, o = activations(model, tokens).chunk(4, 1)
    titles = "forget gate f: keep", "input gate i: write", "output gate o: show"
    gates(dict(zip(titles, map(torch.sigmoid, (f, i, o)))), tokenizer, tokens, path)


def gru(model: LanguageModel, tokenizer: Tokenizer, path: Path) -> None:
    """The two gates of the last layer opening and closing over a name."""
    tokens = tokens_of(tokenizer, NAME)
    _, r, z = activations(model, tokens).chunk(3, 1)
    titles = "update gate z: keep", "reset gate r: let h into what is new"
    gates(dict(zip(titles, map(torch.sigmoid, (z, r)))), tokenizer, tokens, path)


def transformer(model: LanguageModel, tokenizer: Tokenizer, path: Path) -> None:
    """The attention of all heads over a name."""
    tokens = tokens_of(tokenizer, NAME)
    maps = attention_maps(model, tokens)
    with figure(7.6, 1.95 * len(maps) + 0.2, path) as sheet:
        grid = sheet.subplots(len(maps), len(maps[0]), squeeze=False)
        for layer, (row, heads) in enumerate(zip(grid, maps), start=1):
            for head, (axes, weights) in enumerate(zip(row, heads), start=1):
                image = attention(axes, weights, tokenizer, tokens, 1.0)
                axes.set_title(f"layer {layer}, head {head}")
        sheet.colorbar(image, ax=grid, label="weight", shrink=0.5)
        sheet.supxlabel("looked at", fontsize=9)
        sheet.supylabel("looks from", fontsize=9)


def gpt(model: LanguageModel, tokenizer: Tokenizer, path: Path) -> None:
    """The attention of four heads over a sentence: of each layer the one that looks furthest back,
    of the last four layers."""
    tokens = tokens_of(tokenizer, SENTENCE)
    maps = attention_maps(model, tokens)[-4:]
    first = len(model.layers) - len(maps)
    with figure(7.6, 7.0, path) as sheet:
        grid = sheet.subplots(2, 2).flatten()
        for layer, (axes, heads) in enumerate(zip(grid, maps), start=first + 1):
            head = int(distances(heads).argmax())
            image = attention(axes, heads[head], tokenizer, tokens, 0.5, fontsize=6.5)
            axes.set_title(f"layer {layer}, head {head + 1}")
        sheet.colorbar(image, ax=grid, label="weight", shrink=0.3, extend="max")
        for axes in grid[len(maps):]:
            axes.set_axis_off()
        sheet.supxlabel("looked at", fontsize=9)
        sheet.supylabel("looks from", fontsize=9)


PICTURES = {
    "bigram": bigram, "mlp": mlp, "cnn": cnn, "rnn": rnn, "lstm": lstm, "gru": gru,
    "transformer": transformer, "gpt": gpt,
}


def gradients(
    models: dict[str, LanguageModel], tokenizer: Tokenizer, path: Path, length: int = 10
) -> None:
    """What the last prediction hears of each token before it: a line for each of the models, and a
    broken one for the same with weights at random.

    length: of the beginnings of names that they are shown, the start token included.
    """
    texts = beginnings(tokenizer, length)
    with figure(6.4, 3.6, path) as sheet:
        axes = sheet.subplots()
        for number, (stage, model) in enumerate(models.items()):
            for one, line, about in ((model, "o-", ""), (untrained(model), "o--", ", untrained")):
                with evaluating(one):
                    heard = hearing(one, *texts)
                heard = (heard / heard[0]).tolist()
                full = line == "o-"
                axes.plot(heard, line, color=HUES[number % len(HUES)], label=stage + about,
                          markersize=4 if full else 2, linewidth=1.5 if full else 1)
        axes.set(yscale="log", xlabel="tokens back", ylabel="norm of the gradient, now = 1")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xticks(range(length))
        axes.grid(alpha=0.3)
        sheet.legend(loc="outside right upper")


# ----- what is computed of a model


def hearing(model: LanguageModel, tokens: Tensor, targets: Tensor) -> Tensor:
    """How much the last prediction would change with each token before it, the newest first (T,).

    The norm of the gradient of the loss of targets (N,), each after a row of tokens (N, T), with
    respect to the embeddings of the row; mean over the rows.
    """
    embedded = []

    def begin(module, arguments, output):
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    hook = model.embedding.register_forward_hook(begin)
    try:
        with torch.enable_grad():
            logits, _ = model(tokens)
            loss = F.cross_entropy(logits[:, -1], targets, reduction="sum")
            (slope,) = torch.autograd.grad(loss, embedded)
    finally:
        hook.remove()
    return slope.norm(dim=2).mean(0).flip(0)


def untrained(model: LanguageModel, seed: int = 0) -> LanguageModel:
    """A copy with every layer's weights at random, as PyTorch begins them."""
    copy = deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in copy.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return copy


def receptive_fields(reaches: list[int]) -> list[list[int]]:
    """The ages that count for the last prediction: in the embedding, and after each layer.

    reaches: how far each layer looks back; it looks at no position between.
    """
    fields = [[0]]
    for reach in reversed(reaches):
        fields.append(sorted({age + back for age in fields[-1] for back in (0, reach)}))
    return fields[::-1]


def principal(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (N, C) in the two directions in which it varies most (N, 2), and their share of all (2,).

    By the singular values of what is left after the mean. Of a direction and its opposite that one
    is taken in which the point that is furthest out comes to lie on the positive side.
    """
    centred = x.double() - x.double().mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    places = u[:, :2] * s[:2]
    furthest = places.gather(0, places.abs().argmax(0)[None])
    return places * furthest.sign(), s[:2] ** 2 / (s**2).sum()


def outputs(model: LanguageModel, tokens: Tensor, modules) -> list[Tensor]:
    """What each of the modules gives for tokens (1, T): (T, ...), its calls one after the other."""
    given: dict[nn.Module, list[Tensor]] = {module: [] for module in modules}

    def keep(module, arguments, output):
        given[module].append(output[0] if isinstance(output, tuple) else output)

    hooks = [module.register_forward_hook(keep) for module in given]
    try:
        with torch.no_grad():
            model(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat([out.flatten(0, -2) for out in outs]) for outs in given.values()]


def activations(model: LanguageModel, tokens: Tensor) -> Tensor:
    """In the last recurrent layer, for tokens (1, T): W x[t] + b + U h[t-1], all of them (T, ...).

    Of a gru's new values the share of h is in it without its gate.
    """
    cell = model.layers[-1]
    return sum(outputs(model, tokens, [cell.from_input, cell.from_state]))


def attention_maps(model: LanguageModel, tokens: Tensor) -> list[Tensor]:
    """The attention of every layer of a transformer or a gpt over tokens (1, T): (H, T, T) each.

    Attention mixes values by its weights, so of values that are unit vectors it makes the weights.
    """
    maps = []

    def attend(original, q, k, v, *mask):
        units = torch.eye(k.shape[2], dtype=v.dtype).expand(*k.shape[:2], -1, -1)
        maps.append(original(q, k, units, *mask)[0])
        return original(q, k, v, *mask)

    own = [model] if hasattr(model, "view") else [layer.attention for layer in model.layers]
    name = "view" if hasattr(model, "view") else "attend"
    before = [place.__dict__.get(name) for place in own]
    for place in own:
        original = getattr(place, name)
        if name == "attend":
            place.attend = partial(attend, original)
        else:  # a gpt's attention comes with the view of the positions
            place.view = lambda positions, how, original=original: replace(
                original(positions, how), attend=partial(attend, how))
    try:
        with torch.no_grad():
            model(tokens)
    finally:
        for place, was in zip(own, before):
            del place.__dict__[name]
            if was is not None:
                setattr(place, name, was)
    return maps


def distances(weights: Tensor) -> Tensor:
    """How far back the heads of weights (H, T, T) look, in the mean over all tokens: (H,)."""
    steps = torch.arange(weights.shape[1])
    return (weights * (steps[:, None] - steps)).sum(2).mean(1)


# ----- texts


def texts_of(tokenizer: Tokenizer) -> list[int]:
    """The tokens that a text can hold, its end among them."""
    return [i for i in range(tokenizer.vocab_size) if i not in tokenizer.silent]


def tokens_of(tokenizer: Tokenizer, text: str) -> Tensor:
    """A text with its start token, (1, T)."""
    return torch.tensor([[END, *tokenizer.encode(text)]])


def beginnings(tokenizer: Tokenizer, length: int) -> tuple[Tensor, Tensor]:
    """Of all names for validation that have so many: their first tokens (N, length), the start
    among them, and the one that comes next (N,)."""
    rows = [[END, *tokenizer.encode(name), END] for name in data.load("names").splits["val"]]
    rows = torch.tensor([row[:length + 1] for row in rows if len(row) > length])
    return rows[:, :-1], rows[:, -1]


def label(tokenizer: Tokenizer, token: int) -> str:
    """A token as it stands at an axis."""
    text = "\u2022" if token == END else tokenizer.decode([token])
    return text.replace(" ", "\u2423").replace("\n", "\u21b5")


# ----- drawing


def heat(axes, values: Tensor, colours: str, low: float, high: float):
    """A matrix as an image, a square or an oblong for each number."""
    return axes.imshow(
        values.tolist(), colours, vmin=low, vmax=high, aspect="auto", interpolation="none"
    )


def name_below(axes, tokenizer: Tokenizer, tokens: Tensor) -> None:
    """The tokens as the ticks of the x axis."""
    axes.set_xticks(range(tokens.shape[1]), [label(tokenizer, i) for i in tokens[0].tolist()])
    axes.tick_params(length=0)


def gates(shown: dict[str, Tensor], tokenizer: Tokenizer, tokens: Tensor, path: Path) -> None:
    """Gates over a text, (T, C) each: their mean, and below it every unit."""
    with figure(7.2, 4.2, path) as sheet:
        grid = sheet.subplots(2, len(shown), sharex="col", height_ratios=(1, 3), squeeze=False)
        for (above, below), (title, gate) in zip(grid.T, shown.items()):
            above.plot(gate.mean(1).tolist(), "o-", color=BLUE, markersize=3)
            above.set(title=title, ylim=(0, 1), yticks=(0, 0.5, 1))
            order = gate.mean(0).argsort(descending=True, stable=True)
            image = heat(below, gate[:, order].T, "Blues", 0, 1)
            name_below(below, tokenizer, tokens)
            below.set_yticks([])
        grid[0][0].set_ylabel("mean")
        grid[1][0].set_ylabel("units, the most open above")
        sheet.colorbar(image, ax=list(grid[1]), label="0 closed, 1 open", shrink=0.7)


def attention(
    axes, weights: Tensor, tokenizer: Tokenizer, tokens: Tensor, most: float, fontsize: float = 8
):
    """A map (T, T) of what each token looks at; a weight of `most` is darkest."""
    image = heat(axes, weights, "Blues", 0, most)
    axes.set_aspect("equal")
    name_below(axes, tokenizer, tokens)
    axes.set_yticks(range(tokens.shape[1]), [label(tokenizer, i) for i in tokens[0].tolist()])
    axes.tick_params(labelsize=fontsize, length=0, pad=2)
    return image


@contextmanager
def figure(width: float, height: float, path: Path) -> Iterator:
    """A sheet in inches to draw on, which is then written as an SVG. OSError as in runs.write."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        sheet = runs.new_figure(width, height)
        yield sheet
        buffer = io.BytesIO()
        sheet.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    runs.write(path, buffer.getvalue())


@contextmanager
def evaluating(model: LanguageModel) -> Iterator[None]:
    """The model without dropout, and afterwards as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
