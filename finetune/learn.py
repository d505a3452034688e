"""A network learns to sort texts, as well as it can, and stands beside its baselines."""

import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

import train
from data import runs
from nanogpt.evaluate import mean_loss
from nanogpt.machine import Machine
from nanogpt.settings import Config

from . import baselines, measures, settings, tasks, usual
from .adapt import Tuning, adapt, count, lr_shares
from .both import NGRAMS, Both
from .labelled import (
    Classifier,
    Encoded,
    LabelBatches,
    by_length,
    class_weights,
    ending,
    probabilities,
)
from .pretrained import Pretrained, Replay, place
from .probe import fit_head
from .resumed import as_tuning, pool_of, settle

TOGETHER = "finetuned, with n-grams"


def fit(
    pretrained: Pretrained, splits: dict[str, Encoded], config: Config, run: Path, about: dict,
    machine: Machine, resume: dict | None = None, random: bool = False,
) -> tuple[Classifier, train.Progress]:
    """Train a classifier to its best, in eval and merged; best.pt is such a one too.

    random: from random weights, all of which learn. Errors as of train.train.
    """
    saved = about["config"]["finetune"]
    tuning = Tuning() if random else Tuning(**as_tuning(saved["tuning"]))
    model = pretrained.build(pretrained=not random and not resume, seed=config.seed)
    classes = len(saved["labels"])
    weights = class_weights(splits["train"].labels, classes, saved["balance"])
    classifier = Classifier(model, classes, weights, pool_of(saved))
    classifier.early = saved["early"]
    classifier.replay = 0.0 if random else saved["replay"]
    replay = replay_of(pretrained, config, classifier.replay)
    adapt(model, tuning, speaks_too(tuning, classifier.replay), bool(ending(config.model)))
    if resume:
        classifier.load_state_dict(resume["model"])
    place(model, config.model, machine)
    classifier.to(machine.device)
    model.checkpointing = config.checkpointing
    trained, every = count(classifier)
    fitted = not classifier.early  # which asks for labels at places of another kind too
    if fitted and not resume:
        began = time.monotonic()
        fit_head(classifier, splits["train"], splits["val"], machine)
        saved["head_seconds"] = round(time.monotonic() - began, 1)
    if not random:
        saved["trained_parameters"] = trained
        print(f"{config.model}: {trained:,} of {every:,} parameters learn, block size "
              f"{config.block_size}")
        runs.write_json(run / "config.json", about["config"] | {"environment": runs.environment()})
    batches = LabelBatches(splits["train"], config.batch_size, replay)
    val = splits["val"]
    lengths = [len(val.sequences[i]) for i, _ in val.pairs]
    val_batches = LabelBatches(val, 1)
    groups = [val_batches.batch([val.pairs[i] for i in group]) for group in by_length(lengths)]

    def evaluate() -> float:
        return mean_loss(classifier, groups, machine)[0]

    shares = lr_shares(classifier, len(model.layers), tuning.lr_decay)
    if fitted:
        shares |= {name: usual.FITTED for name in ("head.weight", "head.bias")}
    progress = train.train(
        classifier, batches, classifier.loss, config, evaluate=evaluate, machine=machine, run=run,
        about=about, resume=resume, lr_shares=shares, unit="texts",
    )
    settle(classifier, run)
    progress.seconds += saved.get("head_seconds", 0.0)
    return classifier.eval(), progress


def replay_of(pretrained: Pretrained, config: Config, share: float) -> Replay | None:
    """The pretraining text of so large a share of a batch. ValueError: it is not to be had."""
    if not share:
        return None
    rows = max(1, round(config.batch_size * share / (1 - share)))
    return Replay(pretrained, rows, pretrained.block_size)


def speaks_too(tuning: Tuning, share: float) -> bool:
    """Whether the head of the language model learns as well: where all learns, from replay."""
    return tuning.tune == "all" and share > 0


def compare(
    classifier: Classifier, pretrained: Pretrained, task: tasks.Task, splits: dict[str, Encoded],
    config: Config, run: Path, about: dict, machine: Machine,
) -> tuple[dict[str, dict], np.ndarray]:
    """accuracy and macro F1 on test of the network, of it and n-grams together, and of the
    baselines; the network's probabilities. The n-grams go into the run folder.
    """
    test, classes = splits["test"], len(task.labels)
    found = probabilities(classifier, test.sequences, machine)
    rows = {"finetuned": measures.judge(found.argmax(1), test.labels, classes)}
    saved = about["config"]["finetune"]
    if saved["baselines"]:
        random, progress = from_random(pretrained, splits, config, run / "random", about, machine)
        scores = probabilities(random, test.sequences, machine)
        rows["random first weights"] = measures.judge(scores.argmax(1), test.labels, classes) | {
            "trained_parameters": count(random)[0], "steps": progress.step,
            "best_step": progress.best_step}
        both, chosen = fit_ngrams(classifier, task, splits, saved["balance"], machine)
        tested = [example.text for example in task.splits["test"]]
        scores = both.regression.probabilities(tested)
        rows["n-gram regression"] = measures.judge(scores.argmax(1), test.labels, classes) | chosen
        scores = both.probabilities(found, tested)
        rows[TOGETHER] = measures.judge(scores.argmax(1), test.labels, classes) | {
            "powers": both.powers}
        runs.save_checkpoint(run / NGRAMS, both.to_dict())
    common = baselines.majority(splits["train"].labels, len(test.labels))
    rows["commonest label"] = measures.judge(common, test.labels, classes)
    return rows, found


def fit_ngrams(
    classifier: Classifier, task: tasks.Task, splits: dict[str, Encoded], balance: float,
    machine: Machine,
) -> tuple[Both, dict]:
    """The regression on n-grams, how much it counts beside the network, and what was chosen for it.
    """
    texts = {s: list(zip((e.text for e in task.splits[s]), splits[s].labels))
             for s in ("train", "val")}
    classes = len(task.labels)
    weights = class_weights(splits["train"].labels, classes, balance)
    regression, chosen = baselines.fit(texts["train"], texts["val"], classes, weights)
    unseen = baselines.fit_one(texts["train"], classes, chosen, weights)
    judged = probabilities(classifier, splits["val"].sequences, machine)
    return Both.fit(regression, unseen, judged, texts["val"]), chosen


def from_random(
    pretrained: Pretrained, splits: dict[str, Encoded], config: Config, run: Path, about: dict,
    machine: Machine,
) -> tuple[Classifier, train.Progress]:
    """The same network from random weights, all learning; gone on with where it was stopped."""
    print("the same network from random weights:")
    run.mkdir(exist_ok=True)
    resume = None
    if (run / "last.pt").exists():
        try:
            resume = runs.load_checkpoint(run / "last.pt")
        except ValueError:
            print(f"note: {run / 'last.pt'} is damaged, so this baseline begins anew.")
            shutil.rmtree(run)
            run.mkdir()
    if resume:
        resume["progress"] = runs.mend(run, run / "last.pt", resume)
        if resume["config"]["steps"] != config.steps:
            resume["progress"]["since_best"] = 0  # new steps, new patience
    if about["config"]["finetune"]["tuning"]["tune"] != "all":
        # here all weights must learn, in as many steps
        optimizer, width = pretrained.optimizer, config.sizes.get("width", 128)
        rate = settings.default_lr(optimizer, "all", width, usual.lr(splits["train"]))
        sizes = config.sizes | ({"dropout": usual.DROPOUT} if "dropout" in config.sizes else {})
        embedding_lr = usual.embedding_lr(splits["train"], optimizer)
        config = replace(config, optimizer=optimizer, lr=rate, embedding_lr=embedding_lr,
                         sizes=sizes)
        pretrained = replace(pretrained, config=replace(pretrained.config, sizes=sizes))
    return fit(pretrained, splits, config, run, about, machine, resume, random=True)
