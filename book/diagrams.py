"""Pictures of ideas, for which nothing has to be trained: the same file, byte for byte, each time.

    draw_all(Path("book/results"))
"""

from pathlib import Path

import numpy as np

import data
from makemore.without_torch.activations import ACTIVATIONS
from makemore.without_torch.initialisation import INITS
from makemore.without_torch.optimizers import SGD, Adam, Momentum, Nesterov
from makemore.without_torch.schedules import SCHEDULES

from .figures import BLUE, GREY, RED, figure

SENTENCE = "Once there was a hedgehog who would not share."
SIZES = (300, 1024)  # vocabularies of byte pairs
BEGINNING = "ma"  # of names, to see how they go on


def draw_all(folder: Path) -> None:
    """Every picture as folder/NAME.svg."""
    for name, draw in DIAGRAMS.items():
        draw(folder / f"{name}.svg")


def activations(path: Path) -> None:
    """Each activation and, below, its slope."""
    x = np.linspace(-4, 4, 401)
    shown = {name: piece for name, piece in ACTIVATIONS.items() if name != "softmax"}
    with figure(7.2, 3.6, path) as sheet:
        grid = sheet.subplots(2, 4, sharex=True, sharey="row")
        for number, (name, piece) in enumerate(shown.items()):
            axes = grid.flat[number]
            y = piece.forward(x)
            axes.plot(x, y, color=BLUE, label="activation")
            axes.plot(x, piece.backward(x, y, np.ones_like(x)), color=RED, label="slope")
            axes.set(title=name, ylim=(-1.3, 2.2))
            axes.grid(alpha=0.3)
        grid.flat[-1].set_axis_off()
        grid.flat[-1].legend(*grid.flat[0].get_legend_handles_labels(), loc="center")


def tiles(path: Path, blocks: int = 6, window: int = 3) -> None:
    """Which blocks of scores a causal pass with a window reads, and which of them it masks."""
    hues = {"full: no mask is made": "#9dbde0", "cut by the diagonal": "#e3a39b",
            "cut by the window": "#f0d9a8", "not read": "#f4f4f4"}
    full, diagonal, cut, blank = hues
    with figure(5.6, 3.4, path) as sheet:
        axes = sheet.subplots()
        for query in range(blocks):
            for key in range(blocks):
                back = query - key
                kind = (diagonal if back == 0 else full if 0 < back < window
                        else cut if back == window else blank)
                axes.fill([key, key + 1, key + 1, key], [query, query, query + 1, query + 1],
                          facecolor=hues[kind], edgecolor="white", linewidth=2)
                if kind in (diagonal, cut):
                    axes.plot([key, key + 1], [query, query + 1], color=GREY, linewidth=1)
        for kind, hue in hues.items():
            axes.fill([], [], facecolor=hue, label=kind)
        places = [n + 0.5 for n in range(blocks)]
        axes.set_xticks(places, range(blocks))
        axes.set_yticks(places, range(blocks))
        axes.set(xlabel="block of keys", ylabel="block of queries", aspect="equal",
                 ylim=(blocks, 0), xlim=(0, blocks))
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)


def schedules(path: Path) -> None:
    """The share of the peak rate at every step of a run of 1,000."""
    steps = np.arange(1000)
    with figure(6.4, 2.6, path) as sheet:
        axes = sheet.subplots()
        for name, schedule in SCHEDULES.items():
            axes.plot(steps, [schedule(step, 1000, warmup=100) for step in steps], label=name)
        axes.set(xlabel="step", ylabel="share of the peak rate", ylim=(0, 1.1))
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def optimizers(path: Path, steps: int = 40) -> None:
    """The ways of four optimizers down a valley that is thirty times as steep across as along."""
    steep = np.array([1.0, 30.0])
    kinds = [("sgd", SGD, 0.06), ("momentum", Momentum, 0.015), ("nesterov", Nesterov, 0.015),
             ("adam", Adam, 0.4)]
    along, across = np.meshgrid(np.linspace(-10, 4, 141), np.linspace(-2.5, 2.5, 101))
    with figure(7.2, 3.8, path) as sheet:
        grid = sheet.subplots(2, 2, sharex=True, sharey=True)
        for axes, (name, kind, lr) in zip(grid.flat, kinds):
            w = np.array([-9.0, 2.0])
            optimizer, way = kind({"w": w}), [w.copy()]
            for _ in range(steps):
                optimizer.step({"w": steep * w}, lr)
                way.append(w.copy())
            axes.contour(along, across, (along**2 + 30 * across**2) / 2, np.geomspace(1, 100, 7),
                         colors=GREY, linewidths=0.4)
            axes.plot(*np.array(way).T, "o-", color=BLUE, markersize=2, linewidth=0.8)
            axes.plot(0, 0, "+", color=RED, markersize=9)
            axes.set(title=f"{name}, rate {lr:g}", xlim=(-10, 4), ylim=(-2.5, 2.5))


def initialisation(path: Path, layers: int = 12, width: int = 256) -> None:
    """How wide activations are spread, layer by layer, by how the first weights are drawn."""
    kinds = {name: init for name, init in INITS.items() if name != "zeros"}
    kinds["half of xavier"] = lambda *shape: 0.5 * INITS["xavier"](*shape)
    kinds["twice xavier"] = lambda *shape: 2 * INITS["xavier"](*shape)
    with figure(7.2, 2.9, path) as sheet:
        sides = sheet.subplots(1, 2, sharex=True)
        for axes, name in zip(sides, ("tanh", "relu")):
            for kind, init in kinds.items():
                rng = np.random.default_rng(0)
                x = rng.normal(size=(200, width))
                spreads = [1.0]
                for _ in range(layers):
                    x = ACTIVATIONS[name].forward(x @ init(rng, width, width).T)
                    spreads.append(float(np.sqrt(np.mean(x * x))))
                axes.plot(range(layers + 1), spreads, "o-", markersize=2.5, label=kind)
            axes.set(yscale="log", xlabel="layer", title=name)
            axes.grid(alpha=0.3)
        sides[0].set_ylabel("root mean square")
        sides[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))


def loss(path: Path) -> None:
    """Nats and bits against the probability that the right token was given."""
    p = np.linspace(0.005, 1, 400)
    with figure(4.8, 2.8, path) as sheet:
        axes = sheet.subplots()
        axes.plot(p, -np.log(p), color=BLUE)
        axes.set(xlabel="probability of the right token", ylabel="loss in nats", ylim=(0, 5))
        axes.grid(alpha=0.3)
        bits = lambda nats: nats / np.log(2), lambda bits: bits * np.log(2)  # and back
        axes.secondary_yaxis("right", functions=bits).set_ylabel("in bits")


def sampling(path: Path) -> None:
    """What temperature, top-k and top-p make of how the names that begin with BEGINNING go on."""
    names = data.load("names").splits["train"]
    tokenizer = data.CharTokenizer.train(names)
    counts = np.full(tokenizer.vocab_size, 1e-9)
    for name in names:
        if name.startswith(BEGINNING):
            counts[tokenizer.encode(name[2:3])[0] if len(name) > 2 else data.END] += 1
    order = np.argsort(-counts, kind="stable")[:16]
    labels = [tokenizer.decode([i]) or "\u00b7" for i in order]
    with figure(7.2, 3.8, path) as sheet:
        grid = sheet.subplots(2, 3, sharex=True, sharey=True)
        panels = [("temperature 0.5", 0.5, 0, 1), ("temperature 1", 1, 0, 1),
                  ("temperature 2", 2, 0, 1), ("top-k 4", 1, 4, 1), ("top-p 0.7", 1, 0, 0.7),
                  ("temperature 2, top-p 0.7", 2, 0, 0.7)]
        for axes, (title, temperature, top_k, top_p) in zip(grid.flat, panels):
            shares = kept(counts, temperature, top_k, top_p)[order]
            axes.bar(range(len(order)), shares, color=BLUE)
            axes.set_title(title)
            axes.set_xticks(range(len(order)), labels)
        for axes in grid[:, 0]:
            axes.set_ylabel("probability")


def kept(counts: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """The probabilities of tokens (V,) that are drawn from, as in nanogpt/generate.py."""
    logits = np.log(counts) / temperature
    p = np.exp(logits - logits.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    ordered = p[order]
    ordered[np.cumsum(ordered) - ordered >= top_p] = 0
    if top_k:
        ordered[top_k:] = 0
    p[order] = ordered
    return p / p.sum()


def tokens(path: Path) -> None:
    """A sentence in characters, and in byte pairs learned from the tales."""
    texts = data.load("tales").splits["train"]
    rows = {"characters": data.CharTokenizer.train([SENTENCE])}
    for size in SIZES:
        rows[f"byte pairs, {size:,}"] = data.BytePairTokenizer.train(texts, size)
    with figure(8, 1.9, path) as sheet:
        axes = sheet.subplots()
        for line, (name, tokenizer) in enumerate(rows.items()):
            at, ids = 0, tokenizer.encode(SENTENCE)
            for number, token in enumerate(ids):
                text = tokenizer.decode([token])
                hue = ("#cfe0f3", "#f6d5d0")[number % 2]
                axes.barh(-line, len(text), 0.62, left=at, color=hue)
                for place, character in enumerate(text):
                    axes.text(at + place + 0.5, -line, character, ha="center", va="center",
                              family="monospace", fontsize=10)
                at += len(text)
            axes.text(-0.7, -line, f"{name}: {len(ids)} tokens", ha="right", va="center")
        axes.set(xlim=(-15, len(SENTENCE)), ylim=(-len(rows) + 0.4, 0.6))
        axes.set_axis_off()


DIAGRAMS = {
    "activations": activations, "schedules": schedules, "optimizers": optimizers,
    "initialisation": initialisation, "loss": loss, "sampling": sampling, "tiles": tiles,
    "tokens": tokens,
}
