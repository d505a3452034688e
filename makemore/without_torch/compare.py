"""One choice varied, all else held: what an activation, an optimizer, a first weight is worth.

Trains the NumPy MLP, four layers deep, once for each variant and each of a few learning rates, from
one seed, on one budget of lines; keeps each variant at its own best rate (by the validation loss),
and looks inside before and after. The plots and the table go into a folder.
"""

import copy
import math
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

import data
from data import runs
from data.cli import nearest

from .activations import ACTIVATIONS
from .initialisation import INITS
from .losses import NotNumbers
from .mlp import MLP
from .norms import NORMS
from .optimizers import OPTIMIZERS
from .schedules import SCHEDULES

SIZES = dict(context=8, embed=16, width=64, layers=4, dropout=0.0)
BASE = {
    "activation": "tanh", "norm": "none", "init": "xavier",
    "optimizer": "adam", "schedule": "cosine", "batch-size": "64",
}
VARIANTS = {
    "activation": [name for name in ACTIVATIONS if name != "softmax"],  # no softmax between layers
    "optimizer": list(OPTIMIZERS),
    "init": list(INITS),
    "norm": ["none", *NORMS],
    "schedule": list(SCHEDULES),
    "batch-size": ["8", "32", "128", "512"],
}
RATES = {  # a few for each optimizer, about the one that is usually best
    "sgd": (1.0, 3.0, 10.0), "momentum": (0.1, 0.3, 1.0), "nesterov": (0.1, 0.3, 1.0),
    "adagrad": (0.03, 0.1, 0.3), "rmsprop": (0.003, 0.01, 0.03),
    "adam": (0.001, 0.003, 0.01, 0.03), "adamw": (0.001, 0.003, 0.01, 0.03),
    "muon": (0.003, 0.01, 0.03),
}
BUDGET = 72_000  # lines: about four epochs of the names
EVALUATIONS = 12  # points of a curve
FLAT = 0.05  # a slope below this passes on next to nothing
LOOK = 256  # validation lines to look inside with


@dataclass
class Inside:
    """What happens in each hidden layer, over the positions of a few lines."""

    flat: list[float]  # share of (position, unit) where the slope of the activation is below FLAT
    dead: list[float]  # share of units where it is so at every position
    spread: list[float]  # standard deviation of the activations
    gradient: list[float]  # and of the gradient of the layer's weights


@dataclass
class Outcome:
    """A training run. Losses in nats per token, over the whole validation split."""

    variant: str
    rate: float
    lines: list[int]  # seen at each evaluation
    losses: list[float]
    before: Inside
    after: Inside | None = None  # None: it diverged

    @property
    def loss(self) -> float:
        """At the end; infinite where it is not a number any more."""
        return self.losses[-1] if math.isfinite(self.losses[-1]) else math.inf


def look_inside(model: MLP, batch: tuple) -> Inside:
    """On one batch, as in training but with nothing learned from it."""
    model = copy.deepcopy(model)  # batch normalisation would move its averages
    windows, targets = model.counted(*batch, None)
    _, (_, *hidden, _) = model.forward(windows, np.random.default_rng(0))
    _, gradients = model.gradients(*batch, None, np.random.default_rng(0))
    flat = [np.abs(model.activation.backward(n, y, np.ones_like(y))) < FLAT
            for _, _, n, y in hidden]
    weights = [gradients[f"layers.{i}.hidden.weight"] for i in range(model.layers)]
    return Inside(
        flat=[float(f.mean()) for f in flat],
        dead=[float(f.all(0).mean()) for f in flat],
        spread=[float(y.std()) for _, _, _, y in hidden],
        gradient=[float(g.std()) for g in weights],
    )


def settle(vary: str, variant: str) -> dict[str, str]:
    """All choices of a variant. ValueError: no such thing to vary."""
    if vary not in VARIANTS:
        guess = nearest(vary, VARIANTS)
        raise ValueError(f"there is no {vary} to vary.{guess} There are {', '.join(VARIANTS)}.")
    return BASE | {vary: variant}


def optimizers_of(model: MLP, kind: str) -> list:
    """Muon for the matrices between features and Adam for the rest, or the one kind for all."""
    parameters = model.parameters
    if kind != "muon":
        return [OPTIMIZERS[kind](parameters)]
    inner = {n: w for n, w in parameters.items() if n.startswith("layers.") and w.ndim == 2}
    rest = {n: w for n, w in parameters.items() if n not in inner}
    return [OPTIMIZERS["muon"](inner), OPTIMIZERS["adam"](rest)]


@np.errstate(all="ignore")  # what a rate too high leads to is part of the comparison
def train(dataset: data.Dataset, vary: str, variant: str, rate: float, budget: int, seed: int):
    """One run of a variant at a learning rate, over `budget` lines: an Outcome."""
    chosen = settle(vary, variant)
    tokenizer = data.CharTokenizer.train(t for part in dataset.splits.values() for t in part)
    block = data.default_block_size(dataset)
    names = {name: chosen[name] for name in ("activation", "norm", "init")}
    rng = np.random.default_rng(seed)
    model = MLP(tokenizer.vocab_size, block, **SIZES, **names, rng=rng)
    batch_size = int(chosen["batch-size"])
    batches = data.batches(dataset, tokenizer, block, batch_size)
    groups = data.evaluation_batches(dataset, tokenizer, "val", block)
    look = data.batches(dataset, tokenizer, block, LOOK, "val")(0, 0)
    optimizers = optimizers_of(model, chosen["optimizer"])
    schedule, steps = SCHEDULES[chosen["schedule"]], max(1, budget // batch_size)
    points = {round(steps * k / EVALUATIONS) for k in range(EVALUATIONS + 1)}
    outcome = Outcome(variant, rate, [], [], look_inside(model, look))
    try:
        for step in range(steps + 1):
            if step in points:
                outcome.lines.append(step * batch_size)
                outcome.losses.append(mean_loss(model, groups))
            if step < steps:
                _, gradients = model.gradients(*batches(seed, step), None, rng)
                for optimizer in optimizers:
                    optimizer.step(gradients, rate * schedule(step, steps, warmup=steps // 20))
        outcome.after = look_inside(model, look)
    except NotNumbers:
        outcome.lines.append(step * batch_size)
        outcome.losses.append(math.inf)
    return outcome


def mean_loss(model: MLP, groups: list) -> float:
    """Mean nats per token over a list of batches."""
    counts = [int((targets >= 0).sum()) for _, targets in groups]
    return sum(n * float(model.loss(*b)) for n, b in zip(counts, groups)) / sum(counts)


def compare(dataset: data.Dataset, vary: str, budget: int, seed: int) -> list[Outcome]:
    """Every variant at every rate, in as many processes as there are cores.

    Each computes in one thread, so the figures do not hang on the number of cores.
    """
    jobs = []
    for variant in VARIANTS[vary]:
        for rate in RATES[settle(vary, variant)["optimizer"]]:
            jobs.append((dataset, vary, variant, rate, budget, seed))
    with one_thread_each(), ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(train, *job) for job in jobs]
        try:
            for _ in tqdm(as_completed(futures), vary, len(futures), unit="run", disable=None):
                pass
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]


@contextmanager
def one_thread_each():
    """Processes that are started in here multiply matrices in one thread."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def best(outcomes: list[Outcome]) -> list[Outcome]:
    """Each variant at its own best rate."""
    variants = dict.fromkeys(outcome.variant for outcome in outcomes)
    return [min((o for o in outcomes if o.variant == v), key=lambda o: o.loss) for v in variants]


def table(vary: str, outcomes: list[Outcome]) -> str:
    """A row a variant, as Markdown, and what its columns are."""
    lines = [
        f"| {vary} | best of the rates | val loss | flat, before | flat, after | dead, after "
        "| spread, before | spread, after |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for o in best(outcomes):
        rates = [other.rate for other in outcomes if other.variant == o.variant]
        edge = " (at the edge)" if o.rate in (min(rates), max(rates)) else ""
        loss = f"{o.loss:.4f}" if o.after else "diverged"
        after = o.after or o.before
        shares = [f"{np.mean(x):.0%}" for x in (o.before.flat, after.flat, after.dead)]
        spreads = [f"{x[-1]:.3f}" for x in (o.before.spread, after.spread)]
        cells = [o.variant, f"{o.rate:g} of {', '.join(f'{r:g}' for r in rates)}{edge}", loss]
        lines.append(f"| {' | '.join([*cells, *shares, *spreads])} |")
    lines += [
        "",
        f"flat: where the slope of the activation is below {FLAT}, over all units, positions and "
        "layers; dead:",
        "units that are flat at every position; spread: the standard deviation of the last layer's "
        "activations.",
    ]
    return "\n".join(lines)


def plot_losses(vary: str, outcomes: list[Outcome], path: Path) -> None:
    """The validation loss of each variant at its best rate, against the lines seen."""
    figure = runs.new_figure(7, 4.2)
    axes = figure.subplots()
    for o in best(outcomes):
        axes.plot(o.lines, o.losses, label=f"{o.variant}: {o.loss:.3f} at rate {o.rate:g}")
    axes.set(xlabel="lines seen", ylabel="validation loss (nats per token)")
    ends = [loss for o in best(outcomes) for loss in o.losses[1:] if math.isfinite(loss)]
    if ends:
        room = 0.05 * (max(ends) - min(ends)) + 0.01
        axes.set_ylim(min(ends) - room, max(ends) + room)
    axes.set_title(f"one {vary} or another, each at its best of a few rates")
    axes.grid(alpha=0.3)
    axes.legend()
    runs.save_figure(figure, path)


def plot_inside(vary: str, outcomes: list[Outcome], path: Path) -> None:
    """Each measure of Inside by hidden layer, at first (left) and when trained (right)."""
    rows = {
        "flat": f"share where the slope\nis below {FLAT}",
        "dead": "share of units that are\nflat at every position",
        "spread": "spread of the\nactivations",
        "gradient": "spread of the\nweights' gradient",
    }
    figure = runs.new_figure(9, 10)
    grid = figure.subplots(len(rows), 2, sharex=True, sharey="row")
    for axes, (name, label) in zip(grid, rows.items()):
        for o in best(outcomes):
            for side, inside in zip(axes, (o.before, o.after)):
                values = getattr(inside, name) if inside else []
                side.plot(range(1, len(values) + 1), values, "o-", label=o.variant, alpha=0.8)
        axes[0].set_ylabel(label)
        if name in ("flat", "dead"):
            axes[0].set_ylim(-0.05, 1.05)
        else:
            axes[0].set_yscale("symlog", linthresh=1e-6 if name == "gradient" else 1e-3)
        for side in axes:
            side.grid(alpha=0.3)
    grid[0, 0].set_title("at first")
    grid[0, 1].set_title("trained")
    for side in grid[-1]:
        side.set_xlabel("hidden layer")
        side.set_xticks(range(1, SIZES["layers"] + 1))
    lines, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(lines, labels, title=vary, loc="outside lower center", ncols=4)
    runs.save_figure(figure, path)


def main(vary: str, source: str, budget: int, seed: int, out: Path | None) -> None:
    """The command: compare, and put losses.png, inside.png, table.md and comparison.json in out."""
    settle(vary, "")
    if budget < 1 or seed < 0:
        raise ValueError("--budget must be at least 1, and --seed at least 0.")
    dataset = data.load(source, lines=source not in data.SETS)
    if dataset.kind != "lines":
        raise ValueError(f"{source} is running text; compare takes a list, such as names.")
    folder = runs.make_run(out or Path("runs") / f"compare-{vary}", exactly=out is not None)
    held = [f"{name} {value}" for name, value in BASE.items() if name != vary]
    print(f"the MLP in NumPy on {dataset.name}, {SIZES['layers']} hidden layers of "
          f"{SIZES['width']}, {budget:,} lines; held: {', '.join(held)}")
    outcomes = compare(dataset, vary, budget, seed)
    settings = dict(vary=vary, data=source, budget=budget, seed=seed, sizes=SIZES, base=BASE)
    text = table(vary, outcomes)
    runs.write(folder / "table.md", text + "\n")
    content = settings | {"outcomes": [asdict(outcome) for outcome in outcomes]}
    runs.write_json(folder / "comparison.json", content)
    plot_losses(vary, outcomes, folder / "losses.png")
    plot_inside(vary, outcomes, folder / "inside.png")
    print(f"\n{text}\n\nIn {folder}: losses.png, inside.png, table.md, comparison.json")
