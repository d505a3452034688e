"""The losses that recipes come to, for python train.py --check=RUN.

    python -m benchmarks.expected [--seeds 3] [--stages mlp gru ...] [--data names]

Every stage by its bare command, gpt by its recipes for the sets that ship. What is in
nanogpt/expected.json already, for the same settings and data, is not measured again.
"""

import datetime
import json
import tempfile
from pathlib import Path

import data
from benchmarks.ladder import SCRIPT, timed
from data import cli, runs
from nanogpt import STAGES, check
from nanogpt.settings import make_parser, settle


def asked(stage: str, source: str, seeds: int) -> dict:
    """What a recipe is measured under; as it is read back from a file."""
    dataset = data.load(source)
    config = settle(make_parser().parse_args([f"--model={stage}"]), source, dataset, {})
    settings = json.loads(json.dumps(check.key(config)))
    return {"settings": settings, "seeds": seeds, "fingerprint": runs.fingerprint(dataset.splits)}


def measured(what: dict) -> dict[str, list[float]]:
    """The losses at the shares of the steps that all seeds reach, a value a seed."""
    stage, source, most = (what["settings"][name] for name in ("model", "data", "steps"))
    losses: dict[str, list[float]] = {}
    for seed in range(what["seeds"]):
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder, "run")
            timed([*SCRIPT, f"--model={stage}", f"--data={source}", f"--seed={seed}",
                   f"--out={run}"])
            reached = {line["step"]: line["val_loss"] for line in runs.read_metrics(run)}
        for share in check.SHARES:
            if (step := round(share * most)) in reached:
                losses.setdefault(str(step), []).append(reached[step])
        print(f"{stage} on {source}, seed {seed}: {min(reached.values()):.4f} at best", flush=True)
    return {step: values for step, values in losses.items() if len(values) == what["seeds"]}


def main() -> None:
    parser = cli.Parser(prog="python -m benchmarks.expected", description=__doc__)
    cli.add(parser, "seeds", "of each recipe (default 3)")
    cli.add(parser, "stages", f"with blanks between: {' '.join(STAGES)} (default all)", str)
    cli.add(parser, "data", "with blanks between (default: names tales)", str)
    cli.add(parser, "out", "(default nanogpt/expected.json)", Path)
    args = parser.parse_args()
    out = args.out or check.PATH
    stages = args.stages.split() if args.stages else list(STAGES)
    recipes = check.load(out)
    for source in (args.data or "names tales").split():
        for stage in stages:
            what = asked(stage, source, args.seeds or 3)
            if any(all(r[name] == what[name] for name in what) for r in recipes):
                continue
            recipes = [r for r in recipes if not same_task(r, what)]
            recipes.append(what | {"losses": measured(what)})
            runs.write_json(out, {"date": datetime.date.today().isoformat(),
                                  "environment": runs.environment(), "recipes": recipes})


def same_task(one: dict, other: dict) -> bool:
    return all(one["settings"][name] == other["settings"][name] for name in ("model", "data"))


if __name__ == "__main__":
    cli.run(main)
