"""Finetuning beside its baselines: origins of names, topics and lessons of tales.

    python -m benchmarks.finetune [--tasks origin,topic,lesson] [--shares 1,0.1,0.01] [--seeds 3]
                                  [--folds 5] [--bases FOLDER] [--toy]

Origin: on the names that were held out. Topic and lesson: cross-validated over the tales, where
each fold pretrains on its own training tales, so that no tale was read before it is tested on.
Every row is judged on the same items, and how far finetuning is ahead of it, alone and with n-grams
beside it (both.py), is given with a paired bootstrap interval; a network's right answers are
averaged over the seeds first. The learning curve has 1%, 10% and 100% of the labels, to train and
to validate on (of the tales 10% and 100%); LoRA goes beside full finetuning on names and lessons.
Each fold has seeds of its own, so that one seed a fold is several over all tales. Rows of tasks
that are not asked for stay in the results.
--bases: a folder where pretrained runs stay, and what each network found, for the next command:
it goes on where this one was stopped. What another version of the code found does not count.
--toy: everything, as small as can be, to see that it runs.
"""

import datetime
import json
import shutil
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

import data
from benchmarks.ladder import ROOT, SCRIPT, timed
from data import cli, runs
from finetune import (
    baselines,
    classify,
    labelled,
    learn,
    measures,
    pretrained,
    resumed,
    settings,
    tasks,
    usual,
)
from finetune.adapt import count
from finetune.both import Both
from nanogpt.machine import choose

SHARES = {"origin": (1.0, 0.1, 0.01), "topic": (1.0, 0.1), "lesson": (1.0, 0.1)}
LORA = "finetuned, LoRA"
RANDOM = "random first weights"
NETWORKS = {"finetuned": [], RANDOM: [], LORA: ["--tune=lora"]}  # and their flags
TOGETHER = {"finetuned": learn.TOGETHER, RANDOM: f"{RANDOM}, with n-grams"}
REGRESSION = "n-gram regression"
LORA_FLAGS = {  # within a twentieth of the parameters; by short trials on validation data
    "transformer": ["--rank=2", "--lr=0.01"],
    "gpt": [],  # of long texts in byte pairs it is
}
AHEAD = {"finetuned": "finetuned", learn.TOGETHER: "together"}  # of the other rows
TALES = ("--model=gpt", "--tokenizer=bpe", "--vocab-size=1024", "--block-size=512",
         "--batch-size=8", "--steps=400")
NAMES = ("--model=transformer",)
TOY = ("--steps=2", "--eval-every=2", "--batch-size=4")


def pretrain(flags: tuple[str, ...], source: str, bases: Path, toy: bool) -> Path:
    """A pretrained run on a set or a folder, where the same was not asked for before."""
    more = (*TOY, "--block-size=32") if toy else ()
    what = {"flags": [*flags, *more], "data": runs.fingerprint(data.load(source).splits)}
    run = bases / f"base-{runs.fingerprint(what)[:12]}"
    if (run / "result.json").exists():
        return run
    if (run / "last.pt").exists():  # it was stopped
        timed([*SCRIPT, f"--resume={run}"])
        return run
    shutil.rmtree(run, ignore_errors=True)
    timed([*SCRIPT, *flags, f"--data={source}", "--device=cpu", *more, f"--out={run}"])
    return run


def code() -> str:
    """What tells whether the code that trains and judges is still the same."""
    parts = ("train.py", "data/*.py", "makemore/*.py", "nanogpt/*.py", "finetune/*.py")
    files = sorted(path for part in parts for path in ROOT.glob(part))
    return runs.fingerprint({str(path.relative_to(ROOT)): path.read_text("utf-8")
                             for path in files})


def fold_folder(splits: dict, folder: Path) -> Path:
    """The texts of a fold as a folder that train.py splits in the same way."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, part in splits.items():
        lines = "".join(json.dumps({"text": example.text}) + "\n" for example in part)
        runs.write(folder / f"{split}.jsonl", lines)
    return folder


def network(
    base: Path, task: tasks.Task, name: str, seed: int, toy: bool
) -> tuple[dict[str, np.ndarray], dict]:
    """A network's probabilities (N, K) of the labels of val and test; how many of its parameters
    learned that, and in how many seconds."""
    checkpoint = runs.load_checkpoint(base)
    flags = [*NETWORKS[name], *(TOY if toy else ()), f"--seed={seed}", "--device=cpu"]
    flags += LORA_FLAGS[checkpoint["config"]["model"]] if name == LORA else []
    what = {"base": base.name, "task": [task.name, classify.fingerprint(task)],
            "network": [name, *flags], "code": code()}
    known = base.parent / f"found-{runs.fingerprint(what)[:12]}.json"
    if not known.exists():
        found, cost = trained(base, checkpoint, task, name == RANDOM, flags, toy)
        lists = {split: array.tolist() for split, array in found.items()}
        runs.write_json(known, what | {"found": lists, "cost": cost})
    saved = json.loads(known.read_text("utf-8"))
    return {split: np.array(rows) for split, rows in saved["found"].items()}, saved["cost"]


def trained(
    base: Path, checkpoint: dict, task: tasks.Task, random: bool, flags: list[str], toy: bool
) -> tuple[dict[str, np.ndarray], dict]:
    """The same, of a network that is trained for it."""
    args = classify.make_parser().parse_args(flags)
    tokenizer = data.tokenizer_from_dict(checkpoint["tokenizer"])
    fits = 32 if toy else classify.fitting(task, tokenizer)
    begun = pretrained.load(base, fits=fits, dropout=args.dropout,
                            usual_dropout=usual.dropout(args.tune))
    splits = classify.encode_splits(task, begun)
    config, balance = classify.config_for(begun, splits, args)
    pool = usual.pool(splits["train"])
    about = resumed.about_of(begun, config, {
        "kind": "classify", "from": str(base), "name": task.name, "task": task.name,
        "labels": task.labels, "replay": 0.0,
        "tuning": vars(settings.tuning_of(
            args, usual.lora(splits["train"], args, config.tokenizer))),
        "early": usual.early(args.early, pool), "balance": balance, "pool": pool,
    })
    machine = choose("cpu")
    with tempfile.TemporaryDirectory() as folder:
        run = runs.make_run(Path(folder, "run"))
        classifier, progress = learn.fit(begun, splits, config, run, about, machine,
                                          random=random)
    found = {split: labelled.probabilities(classifier, splits[split].sequences, machine)
             for split in ("val", "test")}
    learned = about["config"]["finetune"].get("trained_parameters", count(classifier)[0])
    return found, {"trained_parameters": learned, "seconds": progress.seconds}


def right_of(
    task: tasks.Task, networks: dict[str, list[dict[str, np.ndarray]]], toy: bool
) -> dict[str, np.ndarray]:
    """Which test items (N,) each row gets right. networks: by name, for each seed, their
    probabilities of val and test; over seeds it is a mean."""
    number = {label: i for i, label in enumerate(task.labels)}
    texts = {s: [(e.text, tuple(number[label] for label in e.labels)) for e in part]
             for s, part in task.splits.items()}
    tested, labels = zip(*texts["test"])

    def right(predicted: np.ndarray) -> np.ndarray:
        return (measures.truth(predicted, labels) == predicted).astype(float)

    rows = {name: np.mean([right(found["test"].argmax(1)) for found in each], 0)
            for name, each in networks.items()}
    seen = [several for _, several in texts["train"]]
    weights = labelled.class_weights(seen, len(number), labelled.default_balance(seen))
    kinds = ("words",) if toy else baselines.FEATURES
    regression, chosen = baselines.fit(texts["train"], texts["val"], len(number), weights, kinds)
    rows[REGRESSION] = right(regression.probabilities(tested).argmax(1))
    unseen = baselines.fit_one(texts["train"], len(number), chosen, weights)
    for name in (name for name in TOGETHER if name in networks):
        each = [Both.fit(regression, unseen, found["val"], texts["val"]).probabilities(
            found["test"], tested) for found in networks[name]]
        rows[TOGETHER[name]] = np.mean([right(found.argmax(1)) for found in each], 0)
    rows["commonest label"] = right(baselines.majority(seen, len(labels)))
    return rows


def judged(
    task: str, right: dict[str, np.ndarray], costs: dict[str, list[dict]], **more
) -> list[dict]:
    """A row for each name: right (N,), averaged over seeds where there are some, how far
    finetuning is ahead of it, alone and with n-grams, and what each of its networks cost."""
    rows = []
    for name, values in right.items():
        row = {"task": task, "name": name, "accuracy": float(values.mean()),
               "interval": measures.mean_interval(values.astype(float)), "n": len(values), **more}
        for what in ("trained_parameters", "seconds") if name in costs else ():
            row[what] = statistics.median(cost[what] for cost in costs[name])
        for other, key in AHEAD.items():
            if name != other and other in right:
                row[f"behind_{key}"], row[f"behind_{key}_interval"] = measures.paired(
                    right[other], values)
        rows.append(row)
    return rows


def origin(seeds: int, bases: Path, toy: bool, share: float) -> list[dict]:
    """The names, with a share of the labels."""
    base = pretrain(NAMES, "names", bases, toy)
    task = fewer(tasks.load("origin"), share)
    found = scores([(base, task)], networks("origin", share), seeds, toy)
    return judged("origin", *found, share=share, seeds=seeds)


def networks(task: str, share: float) -> list[str]:
    """Those that are trained on a share of the labels."""
    lora = share == 1 and task in ("origin", "lesson")
    return [name for name in NETWORKS if name != LORA or lora]


def fewer(task: tasks.Task, share: float) -> tasks.Task:
    """A share of the examples of train and val, for whoever has few labels has few to validate on
    too; at least one to validate on, and to train on one of every label."""
    kept = {}
    for split in ("train", "val"):
        part = task.splits[split]
        chosen = data.order(0, 0, len(part))[:max(1, round(share * len(part)))]
        kept[split] = [part[i] for i in sorted(chosen)]
    few = {label for example in kept["train"] for label in example.labels}
    kept["train"] += [next(e for e in task.splits["train"] if label in e.labels)
                      for label in task.labels if label not in few]
    return replace(task, splits=task.splits | kept)


def tale_task(
    name: str, seeds: int, folds: int, bases: Path, toy: bool, share: float
) -> list[dict]:
    """Topic or lesson, cross-validated, with a share of the labels."""
    examples = [tasks.as_example(tale, name) for tale in data.tales()]
    pairs = []
    for number, splits in enumerate(tasks.folds(examples, folds)):
        # the folds of all tasks are of the same tales
        folder = fold_folder(splits, bases / f"fold-{number}-of-{folds}")
        base = pretrain(TALES, str(folder), bases, toy)
        pairs.append((base, fewer(tasks.make(name, splits), share)))
    found = scores(pairs, networks(name, share), seeds, toy)
    return judged(name, *found, share=share, seeds=seeds, folds=folds)


def scores(
    pairs: list[tuple[Path, tasks.Task]], names: list[str], seeds: int, toy: bool
) -> tuple[dict[str, np.ndarray], dict[str, list[dict]]]:
    """What each row gets right, over the test items of all pairs of a run and a task, in order;
    and what each training of a network cost."""
    right: dict[str, list[np.ndarray]] = {}
    costs: dict[str, list[dict]] = {name: [] for name in names}
    for number, (base, task) in enumerate(pairs):
        found: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in names}
        for name in names:
            for seed in range(number, seeds * len(pairs), len(pairs)):
                probabilities, cost = network(base, task, name, seed, toy)
                found[name].append(probabilities)
                costs[name].append(cost)
        for name, values in right_of(task, found, toy).items():
            right.setdefault(name, []).append(values)
    return {name: np.concatenate(parts) for name, parts in right.items()}, costs


def table(rows: list[dict]) -> str:
    """A row a model."""
    lines = ["| task | labels | model | learned parameters | seconds | accuracy | finetuning is "
             "ahead by | finetuning with n-grams by |", "| --- " * 8 + "|"]
    for row in rows:
        low, high = row["interval"]
        share = f"{row.get('share', 1):.0%}"
        cost = "- | -"
        if "seconds" in row:
            cost = f"{row['trained_parameters']:,.0f} | {row['seconds']:.0f}"
        lines.append(f"| {row['task']} | {share} | {row['name']} | {cost} | {row['accuracy']:.3f} "
                     f"({low:.3f} to {high:.3f}) | {ahead(row, 'finetuned')} | "
                     f"{ahead(row, 'together')} |")
    return "\n".join(lines)


def ahead(row: dict, key: str) -> str:
    """How far finetuning is ahead of a row, in words."""
    if f"behind_{key}_interval" not in row:
        return "-"
    low, high = row[f"behind_{key}_interval"]
    return f"{row[f'behind_{key}']:+.3f} ({low:+.3f} to {high:+.3f})"


def main() -> None:
    parser = cli.Parser(prog="python -m benchmarks.finetune", description=__doc__)
    text = f"some of {', '.join(SHARES)}, with commas between (default all)"
    cli.add(parser, "tasks", text, str, metavar="NAMES")
    cli.add(parser, "shares", "of the labels (default of tales 1,0.1; of names 0.01 too)", str)
    cli.add(parser, "seeds", "of each network (default 3)")
    cli.add(parser, "folds", "of the tales (default 5)")
    cli.add(parser, "bases", "for pretrained runs (default: a passing one)", Path, metavar="FOLDER")
    cli.add(parser, "toy", "as small as can be", bool)
    cli.add(parser, "out", "(default benchmarks/results/finetune.json)", Path)
    args = parser.parse_args()
    seeds, folds = args.seeds or 3, args.folds or 5
    if seeds < 1 or folds < 3:
        raise ValueError("--seeds must be at least 1 and --folds at least 3.")
    toy = bool(args.toy)
    if toy and not args.out:
        raise ValueError("--toy is not for the results: say where to, by --out=FILE.")
    names = args.tasks.split(",") if args.tasks else list(SHARES)
    if unknown := set(names) - set(SHARES):
        raise ValueError(f"--tasks knows {', '.join(SHARES)}, and not {', '.join(unknown)}.")
    shares = [float(share) for share in args.shares.split(",")] if args.shares else []
    if not all(0 < share <= 1 for share in shares):
        raise ValueError(f"--shares must be above 0 and at most 1, not {args.shares}.")
    out = args.out or ROOT / "benchmarks/results/finetune.json"
    rows = json.loads(out.read_text("utf-8"))["rows"] if out.exists() else []
    when = {"date": datetime.date.today().isoformat(), "environment": runs.environment(),
            "toy": toy}
    with tempfile.TemporaryDirectory() as passing:
        bases = (args.bases or Path(passing)).resolve()
        for name in names:
            for share in shares or SHARES[name]:
                if name == "origin":
                    new = origin(seeds, bases, toy, share)
                else:
                    new = tale_task(name, seeds, folds, bases, toy, share)
                rows = [row for row in rows if (row["task"], row["share"]) != (name, share)]
                rows += [row | when for row in new]
                runs.write_json(out, {"rows": sorted(rows, key=place)})
                print(table(new), flush=True)
    print(table(sorted(rows, key=place)))


def place(row: dict) -> tuple[int, float]:
    """Where a row stands: by its task, the most labels first."""
    return list(SHARES).index(row["task"]), -row["share"]


if __name__ == "__main__":
    cli.run(main)
