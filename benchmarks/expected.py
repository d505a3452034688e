"""The losses that recipes come to, for python train.py --check=RUN.

    python -m benchmarks.expected [--seeds 3] [--runs="--model=mlp,--recipe=quick-mlp"]

Every stage by its bare command, gpt by its recipes for the sets that ship, and the named recipes
that take seconds. What is in nanogpt/expected.json already, for the same settings and data, is not
measured again. Between are evaluations at each share of the steps, which change no loss; where one
run would have to evaluate too often for that, there is a run for each share.
"""

import datetime
import json
import math
import shlex
import tempfile
from pathlib import Path

import data
from benchmarks.ladder import SCRIPT, timed
from data import cli, runs
from nanogpt import STAGES, check
from nanogpt.recipes import RECIPES
from nanogpt.settings import make_parser, settle

OFTEN = 20  # evaluations of a run
QUICK = [name for name in RECIPES if name.startswith("quick-")]
RUNS = [
    *(f"--model={stage}" for stage in STAGES), "--model=gpt --data=names",
    *(f"--recipe={name}" for name in (*QUICK, "shakespeare-nano")),
]


def asked(command: str, seeds: int) -> dict:
    """What a recipe is measured under, given its flags; as it is read back from a file.

    ValueError: flags that name no recipe that others could repeat.
    """
    args = make_parser().parse_args(shlex.split(command))
    if not command or args.lines or args.config or args.data not in (None, *data.SETS):
        raise ValueError(f"--runs takes flags such as --model=mlp on {', '.join(data.SETS)}, and "
                         f"not {command!r}.")
    recipe = RECIPES.get(args.recipe, {})
    source = args.data or recipe.get("data") or ("tales" if args.model == "gpt" else "names")
    dataset = data.load(source)
    settings = json.loads(json.dumps(check.key(settle(args, source, dataset, {}))))
    return {"command": command, "settings": settings, "seeds": seeds,
            "fingerprint": runs.fingerprint(dataset.splits)}


def measured(what: dict) -> dict[str, list[float]]:
    """The losses at the shares of the steps, a value a seed."""
    most = what["settings"]["steps"]
    steps = [round(share * most) for share in check.SHARES]
    once = math.gcd(*steps)
    losses: dict[str, list[float]] = {str(step): [] for step in steps}
    for seed in range(what["seeds"]):
        reached: dict[int, float] = {}
        for every in [once] if most // once <= OFTEN else steps[:-1]:  # the last step always is
            with tempfile.TemporaryDirectory() as folder:
                run = Path(folder, "run")
                timed([*SCRIPT, *shlex.split(what["command"]), f"--seed={seed}", "--patience=0",
                       f"--eval-every={every}", f"--out={run}"])
                reached |= {line["step"]: line["val_loss"] for line in runs.read_metrics(run)}
        for step in steps:
            losses[str(step)].append(reached[step])
        print(f"{what['command']}, seed {seed}: {reached[most]:.4f}", flush=True)
    return losses


def main() -> None:
    parser = cli.Parser(prog="python -m benchmarks.expected", description=__doc__)
    cli.add(parser, "seeds", "of each recipe (default 3)")
    cli.add(parser, "runs", "flags of train.py, with commas between the runs (default all)", str)
    cli.add(parser, "out", "(default nanogpt/expected.json)", Path)
    args = parser.parse_args()
    seeds = 3 if args.seeds is None else args.seeds
    if seeds < 1:
        raise ValueError(f"--seeds must be at least 1, not {seeds}.")
    out = args.out or check.PATH
    recipes = check.load(out)
    for command in args.runs.split(",") if args.runs else RUNS:
        what = asked(command.strip(), seeds)
        if any(all(r[name] == what[name] for name in what) for r in recipes):
            continue
        recipes = [r for r in recipes if r["command"] != what["command"]]
        recipes.append(what | {"losses": measured(what)})
        recipes.sort(key=place)
        runs.write_json(out, {"date": datetime.date.today().isoformat(),
                              "environment": runs.environment(), "recipes": recipes})


def place(recipe: dict) -> int:
    """Where a recipe stands in the file."""
    return RUNS.index(recipe["command"]) if recipe["command"] in RUNS else len(RUNS)


if __name__ == "__main__":
    cli.run(main)
