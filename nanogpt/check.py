"""Is a run where it should be? python train.py --check=runs/lstm-names

expected.json holds, for the bare command of every stage and for named recipes, the validation loss
after a tenth, a half and all of the steps, over a few seeds; `python -m benchmarks.expected` makes
it. A run of the same settings, whatever its seed and machine, is held against that where it was
evaluated at these steps: is it within what seeds make of it?
"""

import json
import math
from dataclasses import asdict
from pathlib import Path

from data import runs
from data.cli import flag

from . import sizes as sizes_of
from .settings import Config, read_config, restore_config

PATH = Path(__file__).with_name("expected.json")
SHARES = (0.1, 0.5, 1.0)  # of the steps
# What the loss of a step must not depend on by more than rounding: where and how it is computed;
# nor on when it is looked at.
MACHINE = {"seed", "device", "dtype", "compile", "accumulate", "checkpointing", "shard",
           "attention"}
LOOKS = {"eval_every", "patience"}
SPREADS = 3  # standard deviations that are still as expected
LEAST = 0.005  # nats: what another machine's rounding may come to in the end


def key(config: Config) -> dict:
    """The settings that a loss depends on."""
    return {name: value for name, value in asdict(config).items() if name not in MACHINE | LOOKS}


def load(path: Path | None = None) -> list[dict]:
    """The recipes that were measured: {"command", "settings", "fingerprint", "seeds", "losses":
    {step: those of each seed}}."""
    path = path or PATH
    return json.loads(path.read_text("utf-8"))["recipes"] if path.exists() else []


def nearest(settings: dict, recipes: list[dict]) -> dict:
    """The recipe with these settings. ValueError: there is none, and what the nearest differs in.
    """
    same = [r for r in recipes if all(r["settings"][n] == settings[n] for n in ("model", "data"))]
    if not same:
        known = "; ".join(recipe["command"] for recipe in recipes)
        what = f"{settings['model']} on {settings['data']}"
        known = f"only those of {known} are" if known else "none are"
        raise ValueError(f"the losses to expect of {what} are not measured yet ({known}): "
                         "python -m benchmarks.expected measures them.")
    best = min(same, key=lambda recipe: len(differences(settings, recipe["settings"])))
    if apart := differences(settings, best["settings"]):
        raise ValueError(f"the run is not of a recipe whose losses are known: from the nearest, "
                         f"{best['command']}, it differs in {', '.join(apart)}.")
    return best


def differences(settings: dict, recipe: dict) -> list[str]:
    """What two settings differ in: --lr (0.02, there 0.01)."""
    pairs = [(name, settings[name], recipe.get(name)) for name in settings if name != "sizes"]
    # what a run from before did not know, it had as it is by default
    usual = sizes_of(settings["model"], settings["backend"])
    sizes = [usual | each["sizes"] for each in (settings, recipe)]
    pairs += [(name, *(each.get(name) for each in sizes)) for name in sorted(set().union(*sizes))]
    return [f"{flag(name)} ({mine}, there {theirs})" for name, mine, theirs in pairs
            if mine != theirs]


def check(run: Path) -> tuple[list[str], bool]:
    """What there is to say of a run, line by line, and whether its losses are as expected.

    ValueError: no run, one that has not come far enough, or one of no known recipe.
    """
    folder = run if run.is_dir() else run.parent
    read_config(folder / "config.json")  # or says that it is none
    saved = json.loads((folder / "config.json").read_text("utf-8"))
    recipe = nearest(key(restore_config(saved)), load())
    if saved.get("fingerprint") != recipe["fingerprint"]:
        raise ValueError(f"{recipe['settings']['data']} is not what it was when the recipe was "
                         "measured, so its losses cannot be compared.")
    reached = {line["step"]: line["val_loss"] for line in runs.read_metrics(folder)}
    judged = [(int(step), losses) for step, losses in recipe["losses"].items()
              if int(step) in reached]
    if not judged:
        steps = ", ".join(recipe["losses"])
        raise ValueError(f"{folder} has no evaluation yet at a step whose loss is known: {steps}.")
    lines = [f"{'step':>8} {'val loss':>10} {'expected':>10} {'give or take':>13}"]
    good = True
    for step, losses in judged:
        mean, most = tolerance(losses)
        apart = reached[step] - mean
        said = "as expected" if abs(apart) <= most else "worse" if apart > 0 else "better"
        good = good and apart <= most
        lines.append(f"{step:>8,} {reached[step]:>10.4f} {mean:>10.4f} {most:>13.4f}  {said}")
    lines.append(f"over {recipe['seeds']} seeds; "
                 + ("the run is where it should be." if good else "the run is worse than it should "
                    "be: is the code changed, or the data?"))
    return lines, good


def tolerance(losses: list[float]) -> tuple[float, float]:
    """The mean of the seeds' losses, and how far from it one more seed may be."""
    mean, n = sum(losses) / len(losses), len(losses)
    deviation = math.sqrt(sum((loss - mean) ** 2 for loss in losses) / max(1, n - 1))
    return mean, max(LEAST, SPREADS * deviation * math.sqrt(1 + 1 / n))
