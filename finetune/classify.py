"""Finetune a run to sort texts: python -m finetune.classify --from=runs/gpt-tales --task=topic

A new head on the features of the last token says which label a text has; where there is attention
that token is one of its own, which ends every text. Of a long text the head reads the mean of each
quarter beside these, which know little there of how it began. What fills up the shorter rows of a
batch comes after, so the model, which looks back only, never sees that. A head that is asked at the
end of a text alone (--early=0) is fitted first, to what the network knows already (probe.py).
Early stopping is on the validation loss; test is looked at once, beside the baselines.
"""

from argparse import Namespace
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import data
import train
from data import cli, runs
from data.cli import add
from nanogpt.settings import Config, restore_config

from . import measures, report, seen, settings, tasks, usual
from .adapt import adapt, count
from .both import NGRAMS
from .labelled import (
    POOLS,
    Encoded,
    default_balance,
    encode,
    ending,
    note_of_capitals,
    notes_of,
)
from .learn import TOGETHER, compare, fit, replay_of, speaks_too
from .pretrained import (
    LONGEST,
    Pretrained,
    known_ids,
    load,
    place,
    pretraining_loss,
)
from .resumed import about_of, mend, open_run, pretrained_of, stopped


def make_parser() -> cli.Parser:
    parser = cli.Parser(prog="python -m finetune.classify", description=__doc__)
    group = parser.add_argument_group("what to sort")
    add(group, "from", "the pretrained run, or a checkpoint in it", Path, metavar="RUN")
    what = "; ".join(f"{name}: {text}" for name, text in tasks.TASKS.items())
    add(group, "task", what, str, metavar="TASK")
    text = "your own CSV, whose first line names its columns, or JSONL instead"
    add(group, "train", text, Path, metavar="FILE")
    add(group, "test", "what to test on (default: a tenth of --train)", Path, metavar="FILE")
    add(group, "text", "the column with the texts (default text)", str, metavar="COLUMN")
    add(group, "label", "the column with the labels (default label)", str, metavar="COLUMN")
    text = "a label counts with its number to the power -X (default 0.5 of skewed sets, else 0)"
    add(group, "balance", text, float)
    text = ("share of the loss that is of the label at the tokens before the last (default "
            f"{usual.EARLY}, where --pool has means 0); with 0 the head is fitted first, and then "
            f"takes {usual.FITTED} of the learning rate")
    add(group, "early", text, float)
    text = ("compare with n-grams and with random first weights, and keep the n-grams with the run "
            "for sample.py --ngrams (default on)")
    add(group, "baselines", text, bool, switch=True)
    steps = (f"{usual.EPOCHS} times through the texts, of long ones {usual.LONG_EPOCHS}, or "
             f"{usual.LONG_LITTLE_EPOCHS} with --tune=head and lora; from 100 to {usual.MOST:,}")
    every = "a twentieth of the steps, at least 10"
    text = ("what the head reads: the last token's features, or beside these the mean of all, or "
            f"of each quarter (default last, of texts of {usual.LONG} tokens and more "
            f"{usual.LONG_POOL})")
    add(group, "pool", text, str, choices=list(POOLS))
    dropout = (f"{usual.DROPOUT}, of --tune=head and lora {usual.LITTLE_DROPOUT}, where the stage "
               "has one")
    settings.add_flags(
        parser, steps, "16, of short texts 64", every, dropout=dropout,
        muon=f"{usual.LR}, of long texts {usual.LONG_LR}",
        average=f"0, of long texts {usual.LONG_AVERAGE}",
        embedding_lr=f"1, of long texts with muon {usual.LONG_EMBEDDING_LR:.0f}",
        patience=f"{usual.PATIENCE}, of long texts {usual.LONG_PATIENCE}",
        matrices="; of long texts in byte pairs, without --replay, the {} alone, of rank {} and "
        "alpha twice that".format(*usual.LONG_LORA))
    return parser


def load_task(asked: dict) -> tasks.Task:
    """The task that settings ask for. ValueError: none, or two."""
    if not asked.get("train"):
        for name in ("test", "text", "label"):
            if asked.get(name):
                raise ValueError(f"--{name} is for --train=FILE, your own texts.")
    if bool(asked.get("task")) == bool(asked.get("train")):
        known = ", ".join(tasks.TASKS)
        raise ValueError(f"say what to sort: --task, one of {known}, or --train=FILE.")
    if asked.get("task"):
        return tasks.load(asked["task"])
    paths = (Path(asked["train"]), Path(asked["test"]) if asked.get("test") else None)
    return tasks.from_files(*paths, asked.get("text") or "text", asked.get("label") or "label")


def fitting(task: tasks.Task, tokenizer: data.Tokenizer) -> int:
    """The block size that the longest text needs, up to LONGEST."""
    every = (e.text for part in task.splits.values() for e in part)
    return min(max(len(known_ids(tokenizer, text)[0]) for text in every) + 2, LONGEST)


def new_run(args: Namespace) -> Path:
    """Finetune from the start; the run folder."""
    asked = settings.given(args)
    if "from" not in asked:
        raise ValueError("name the pretrained run: --from=RUN.")
    task, share = load_task(asked), settings.replay_of(args)
    settings.tuning_of(args)  # says at once what cannot work
    if share and args.tune == "head":
        raise ValueError("--replay is against forgetting, and with --tune=head nothing is "
                         "forgotten, for the network stays as it is; leave one of them out.")
    path = asked["from"]
    tokenizer = data.tokenizer_from_dict(runs.load_checkpoint(path)["tokenizer"])
    pretrained = load(path, args.block_size, fitting(task, tokenizer), args.dropout,
                      args.replay_data, usual_dropout=usual.dropout(args.tune))
    splits = encode_splits(task, pretrained)
    config, balance = config_for(pretrained, splits, args)
    tuning = settings.tuning_of(args, usual.lora(splits["train"], args, config.tokenizer))
    pool = args.pool or usual.pool(splits["train"])
    early = usual.early(args.early, pool)
    settings.machine_of(config)  # this and the next lines say what is not to be had
    replay_of(pretrained, config, share)
    adapt(pretrained.build(), tuning, speaks_too(tuning, share), bool(ending(config.model)))
    name = f"{(path.parent if path.is_file() else path).resolve().name}-{task.name}"
    run = runs.make_run(args.out or Path("runs") / name, exactly=args.out is not None)
    absolute = {n: str(asked[n].expanduser().resolve()) for n in ("train", "test") if n in asked}
    about = about_of(pretrained, config, {
        "kind": "classify", "from": str(path), "name": task.name, "task": args.task,
        "text": args.text, "label": args.label, **absolute, "labels": task.labels,
        "tuning": asdict(tuning), "replay": share, "replay_data": settings.source_of(args),
        "early": early, "balance": balance, "pool": pool, "baselines": args.baselines is not False,
        "examples": fingerprint(task),
    }, seen.remember(texts_of(task, pretrained), pretrained.learned))
    carry_out(pretrained, task, splits, config, run, about)
    return run


def config_for(
    pretrained: Pretrained, splits: dict[str, Encoded], args: Namespace
) -> tuple[Config, float]:
    """The settings for these texts, and the power that balances their labels.

    ValueError: one that cannot work.
    """
    train = splits["train"]
    balance = default_balance(train.labels) if args.balance is None else args.balance
    if not 0 <= balance <= 1:
        raise ValueError(f"--balance must be from 0 to 1, not {balance}.")
    optimizer = settings.optimizer_of(pretrained.config, args)
    defaults = usual.training(train, args.batch_size, optimizer, args.tune)
    return settings.config_of(pretrained.config, args, defaults, usual.lr(train)), balance


def texts_of(task: tasks.Task, pretrained: Pretrained) -> dict[str, list[seen.Text]]:
    """The texts of all splits, as the run reads them."""
    return {s: seen.readable([(e.text,) for e in part], pretrained.tokenizer)
            for s, part in task.splits.items()}


def fingerprint(task: tasks.Task) -> str:
    content = {s: [[e.text, *e.labels] for e in part] for s, part in task.splits.items()}
    return runs.fingerprint(content)


def encode_splits(task: tasks.Task, pretrained: Pretrained) -> dict[str, Encoded]:
    """All splits in tokens, and what the user should know of them said."""
    size = pretrained.config.block_size
    stage = pretrained.config.model
    splits = {s: encode(part, task.labels, pretrained.tokenizer, size, stage)
              for s, part in task.splits.items()}
    notes = [*task.notes, pretrained.note] if pretrained.note else list(task.notes)
    for split, encoded in splits.items():
        notes += notes_of(encoded, split, size)
    notes += note_of_capitals(sum(encoded.lowered for encoded in splits.values()), "texts")
    for note in notes:
        print(f"note: {note}")
    return splits


def resume_run(args: Namespace) -> Path:
    """Go on with a run that was stopped; its folder."""
    settings.check_resume(args)
    run, source, checkpoint = open_run(args.resume, args.steps, "classify")
    saved = checkpoint["config"]["finetune"]
    task = load_task(saved)
    if fingerprint(task) != saved["examples"]:
        raise ValueError(f"the texts have changed since {run} began; restore them or start anew.")
    config = restore_config(checkpoint["config"])
    pretrained = pretrained_of(checkpoint, config)
    about = {name: checkpoint.get(name) for name in ("config", "tokenizer", "learned")}
    settings.machine_of(config)
    splits = encode_splits(task, pretrained)
    mend(run, source, checkpoint)
    (run / NGRAMS).unlink(missing_ok=True)  # their power is beside what the network was
    carry_out(pretrained, task, splits, config, run, about, checkpoint)
    return run


def carry_out(
    pretrained: Pretrained, task: tasks.Task, splits: dict[str, Encoded], config: Config,
    run: Path, about: dict, resume: dict | None = None,
) -> None:
    """Train, judge, and write all into the run folder."""
    machine = settings.machine_of(config)
    saved = about["config"]["finetune"]
    before = saved.get("pretraining_loss_before")
    if not resume:
        model = place(pretrained.build(), config.model, machine)
        before = pretraining_loss(model, pretrained, machine)
        saved["pretraining_loss_before"] = before
    sizes = ", ".join(f"{len(part.sequences):,} {split}" for split, part in splits.items())
    print(f"{task.name}: {len(task.labels)} labels, {sizes} texts")
    print(f"{machine.describe()}; run folder {run}")
    tested = texts_of(task, pretrained)["test"]
    learned_from = seen.look(tested, about["learned"], pretrained.text)
    flattering = seen.notes(learned_from, len(tested), saved.get("test") or "test")
    for note in flattering:
        print(f"note: {note}")
    try:
        classifier, progress = fit(pretrained, splits, config, run, about, machine, resume)
        after = pretraining_loss(classifier.model, pretrained, machine)
        rows, found = compare(classifier, pretrained, task, splits, config, run, about, machine)
    except (train.Stopped, train.Diverged, KeyboardInterrupt) as error:
        with suppress(OSError):
            runs.plot(run, per="text")
        raise stopped(error, run, "classify") from None
    result = {
        "kind": "classify", "task": task.name, "from": str(pretrained.path),
        "model": config.model, "data": config.data, "labels": len(task.labels),
        "test_texts": len(splits["test"].sequences),
        "cut": {split: encoded.cut for split, encoded in splits.items()},
        "steps": progress.step, "best_step": progress.best_step,
        "seconds": round(progress.seconds, 1), "val_loss": progress.best_loss,
        "parameters": count(classifier)[1], "trained_parameters": saved["trained_parameters"],
        "pretraining_loss_before": before, "pretraining_loss_after": after,
        **rows["finetuned"], "with_ngrams": rows.get(TOGETHER),
        "baselines": {n: row for n, row in rows.items() if n not in ("finetuned", TOGETHER)},
        "test_texts_learned_from": learned_from,
        "seed": config.seed, "device": machine.device, "dtype": machine.dtype,
    }
    matrix = measures.confusion(
        measures.truth(found.argmax(1), splits["test"].labels), found.argmax(1), len(task.labels))
    said = "\n".join([*(f"note: {note}" for note in flattering), report.table(rows), "",
                      report.forgetting(before, after), "",
                      report.confused(matrix, task)])
    runs.write_json(run / "result.json", result)
    runs.write(run / "report.txt", said + "\n")
    runs.write(run / "confusion.csv", report.as_csv(matrix, task.labels))
    runs.write(run / "samples.txt", report.samples(task, found))
    report.plot_confusion(matrix, task, run)
    runs.plot(run, per="text")
    print(f"\n{said}\n\nIn {run}: result.json, report.txt, confusion.png and .csv, samples.txt, "
          f"loss.png. Try it: python sample.py --run={run} --classify TEXT"
          f"{' --ngrams' * (TOGETHER in rows)}")


def main() -> int:
    args = make_parser().parse_args()
    return settings.carefully(lambda: (resume_run if args.resume else new_run)(args))


if __name__ == "__main__":
    cli.run(main)
