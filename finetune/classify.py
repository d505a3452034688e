"""Finetune a run to sort texts: python -m finetune.classify --from=runs/gpt-tales --task=topic

A new head on the features of the last token of a text says which label it has. What fills up the
shorter rows of a batch comes after that token, so the model, which looks back only, never sees it.
Early stopping is on the validation loss; test is looked at once, beside the baselines.
"""

import csv
import io
from argparse import Namespace
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import data
import nanogpt
import sample
import train
from data import cli, runs
from data.batches import items
from data.cli import add
from makemore.model import IGNORED, LanguageModel
from nanogpt.evaluate import mean_loss, to_device
from nanogpt.machine import Machine
from nanogpt.settings import Config, restore_config

from . import baselines, measures, settings, tasks
from .adapt import Tuning, adapt, count, lr_shares, merge
from .pretrained import (
    LONGEST,
    Pretrained,
    Replay,
    known_ids,
    load,
    place,
    pretraining_loss,
    seen_in_pretraining,
)

TOKENS = 16384  # of a batch that is only judged
EPOCHS, MOST = 10, 3000  # of the texts, and steps, at most, if the user says nothing
SKEWED = 10  # times the rarest label: a commoner one is weighed less


class Classifier(nn.Module):
    """A language model with a head for labels on its features: tokens (B, T) -> logits (., K)."""

    def __init__(self, model: LanguageModel, classes: int, class_weights: Tensor | None = None):
        """class_weights (K,): how much an example of each label counts, 1 on average."""
        super().__init__()
        self.model, self.replay = model, 0.0
        device = next(model.parameters()).device
        with torch.inference_mode():
            width = model.features(torch.zeros(1, 1, dtype=torch.int64, device=device))[0].shape[2]
        self.head = nn.Linear(width, classes, device=device)
        nn.init.zeros_(self.head.weight)  # at first all labels are as likely
        nn.init.zeros_(self.head.bias)
        weights = torch.ones(classes) if class_weights is None else class_weights
        self.register_buffer("class_weights", weights.to(device))

    def forward(self, tokens: Tensor, at: Tensor) -> Tensor:
        """Logits (N, K) at the N places where `at` (B, T) is true."""
        x, _ = self.model.features(tokens)
        return self.head(x[at])

    def loss(self, tokens: Tensor, targets: Tensor, *replayed: Tensor) -> Tensor:
        """Mean nats of the labels, which stand in targets (B, T) where a text ends, else -1.

        replayed: a batch of the pretraining text; its loss has the share self.replay.
        """
        at = targets != IGNORED
        logits = self(tokens, at).float()
        labels = targets[at]
        nats = F.cross_entropy(logits, labels, self.class_weights, reduction="sum") / len(labels)
        if not replayed:
            return nats
        return (1 - self.replay) * nats + self.replay * self.model.loss(*replayed)


@dataclass
class Encoded:
    """A split in tokens. sequences: END and the text's tokens. labels: the right ones of each.

    cut: how many texts were longer than the block, and lost their ends. unseen: how many have
    characters that the tokenizer has never seen, and lost them.
    """

    sequences: list[list[int]]
    labels: list[tuple[int, ...]]
    cut: int = 0
    unseen: int = 0

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Each text, by its number, with each of its labels."""
        return [(i, label) for i, several in enumerate(self.labels) for label in several]


def encode(
    examples: list[tasks.Example], labels: list[str], tokenizer: data.Tokenizer, block_size: int
) -> Encoded:
    """ValueError: a text of which nothing is left."""
    number = {label: i for i, label in enumerate(labels)}
    encoded = Encoded([], [])
    for example in examples:
        ids, unseen = sequence(example.text, tokenizer)
        encoded.cut += len(ids) > block_size
        encoded.unseen += unseen > 0
        encoded.sequences.append(ids[:block_size])
        encoded.labels.append(tuple(number[label] for label in example.labels))
    return encoded


def sequence(text: str, tokenizer: data.Tokenizer) -> tuple[list[int], int]:
    """END and the tokens of a text, and how many of its characters are unseen and left out.

    ValueError: nothing is left.
    """
    ids, unseen = known_ids(tokenizer, text)
    if not ids:
        why = "the tokenizer of this run has never seen its characters" if text else "it is empty"
        raise ValueError(f"the text {text[:40]!r} cannot be sorted: {why}.")
    return [data.END, *ids], unseen


def notes_of(encoded: Encoded, split: str, block_size: int) -> list[str]:
    """What the user should be told of a split."""
    notes, n = [], len(encoded.sequences)
    if encoded.cut:
        notes.append(f"{encoded.cut:,} of the {n:,} texts of {split} are longer than the block of "
                     f"{block_size} tokens; their ends are cut off")
    if encoded.unseen:
        notes.append(f"{encoded.unseen:,} of the {n:,} texts of {split} have characters that the "
                     "tokenizer of the run has never seen; these are left out")
    return notes


def padded(sequences: list[list[int]]) -> np.ndarray:
    """Rows of tokens (B, T), END after those that are shorter."""
    tokens = np.full((len(sequences), max(map(len, sequences))), data.END, dtype=np.int64)
    for row, ids in zip(tokens, sequences):
        row[:len(ids)] = ids
    return tokens


def batch_of(sequences: list[list[int]], labels: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """tokens, targets (B, T): the label stands at the last token of a text, else -1."""
    tokens = padded(sequences)
    targets = np.full_like(tokens, IGNORED)
    targets[np.arange(len(tokens)), [len(ids) - 1 for ids in sequences]] = labels
    return tokens, targets


class LabelBatches:
    """Batches of texts and labels, a function of (seed, step); perhaps with replayed text."""

    def __init__(self, encoded: Encoded, batch_size: int, replay: Replay | None = None):
        self.encoded, self.pairs = encoded, encoded.pairs
        self.batch_size, self.replay = batch_size, replay

    def __call__(self, seed: int, step: int) -> tuple[np.ndarray, ...]:
        _, chosen = items(seed, step, self.batch_size, len(self.pairs))
        batch = self.batch([self.pairs[i] for i in chosen])
        return batch + (self.replay(seed, step) if self.replay else ())

    def batch(self, pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        return batch_of([self.encoded.sequences[i] for i, _ in pairs], [n for _, n in pairs])


def by_length(lengths: list[int], most: int = TOKENS) -> list[list[int]]:
    """Items in groups of about one length, the longest first, each of at most so many tokens."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not groups or (len(groups[-1]) + 1) * lengths[groups[-1][0]] > most:
            groups.append([])
        groups[-1].append(i)
    return groups


@torch.inference_mode()
def probabilities(
    classifier: Classifier, sequences: list[list[int]], machine: Machine
) -> np.ndarray:
    """The probability of every label for each text, (N, K) float64. The classifier is in eval."""
    assert not classifier.training
    found = np.zeros((len(sequences), classifier.head.out_features))
    groups = by_length([len(ids) for ids in sequences])
    for group in tqdm(groups, "sorting", leave=False, delay=2, disable=None):
        batch = batch_of([sequences[i] for i in group], [0] * len(group))
        tokens, targets = to_device(batch, machine.device)
        with machine.autocast():
            logits = classifier(tokens, targets != IGNORED)
        found[group] = logits.double().softmax(1).cpu().numpy()
    return found


def class_weights(labels: list[tuple[int, ...]], classes: int, balance: float) -> Tensor:
    """(K,): a label's count to the power -balance, so that an example counts 1 on average."""
    counts = Counter(label for several in labels for label in several)
    numbers = torch.tensor([counts[label] for label in range(classes)], dtype=torch.float64)
    weights = numbers.clamp(min=1) ** -balance
    return (weights * numbers.sum() / (weights * numbers).sum()).float()


def default_balance(labels: list[tuple[int, ...]]) -> float:
    """0.5 for a skewed set, else 0."""
    counts = Counter(label for several in labels for label in several).values()
    return 0.5 if max(counts) > SKEWED * min(counts) else 0.0


# A run


def make_parser() -> cli.Parser:
    parser = cli.Parser(prog="python -m finetune.classify", description=__doc__)
    group = parser.add_argument_group("what to sort")
    add(group, "from", "the pretrained run, or a checkpoint in it", Path, metavar="RUN")
    what = "; ".join(f"{name}: {text}" for name, text in tasks.TASKS.items())
    add(group, "task", what, str, metavar="TASK")
    add(group, "train", "your own CSV or JSONL instead", Path, metavar="FILE")
    add(group, "test", "what to test on (default: a tenth of --train)", Path, metavar="FILE")
    add(group, "text", "the column with the texts (default text)", str, metavar="COLUMN")
    add(group, "label", "the column with the labels (default label)", str, metavar="COLUMN")
    text = "a label counts with its number to the power -X (default 0.5 of skewed sets, else 0)"
    add(group, "balance", text, float)
    text = "compare with n-grams and with random first weights (default on)"
    add(group, "baselines", text, bool, switch=True)
    settings.add_flags(parser)
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
    return min(max(len(known_ids(tokenizer, text)[0]) for text in every) + 1, LONGEST)


def new_run(args: Namespace) -> Path:
    """Finetune from the start; the run folder."""
    asked = settings.given(args)
    if "from" not in asked:
        raise ValueError("name the pretrained run: --from=RUN.")
    task, tuning, share = load_task(asked), settings.tuning_of(args), settings.replay_of(args)
    path = asked["from"]
    tokenizer = data.tokenizer_from_dict(runs.load_checkpoint(path)["tokenizer"])
    pretrained = load(path, args.block_size, fitting(task, tokenizer), args.dropout,
                      args.replay_data)
    splits = encode_splits(task, pretrained)
    config, balance = config_for(pretrained, splits, args)
    name = f"{path.parent.name if path.is_file() else path.resolve().name}-{task.name}"
    run = runs.make_run(args.out or Path("runs") / name, exactly=args.out is not None)
    absolute = {n: str(asked[n].expanduser().resolve()) for n in ("train", "test") if n in asked}
    about = about_of(pretrained, config, {
        "kind": "classify", "from": str(path), "name": task.name, "task": args.task,
        "text": args.text, "label": args.label, **absolute, "labels": task.labels,
        "tuning": asdict(tuning), "replay": share, "replay_data": args.replay_data,
        "balance": balance, "baselines": args.baselines is not False,
        "examples": fingerprint(task),
    })
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
    lengths = sorted(map(len, train.sequences))
    rows = args.batch_size or (64 if lengths[len(lengths) // 2] < 64 else 16)
    steps = min(MOST, max(100, EPOCHS * -(-len(train.pairs) // max(rows, 1))))
    config = settings.config_of(pretrained.config, args, dict(steps=steps, batch_size=rows))
    return config, balance


def about_of(pretrained: Pretrained, config: Config, finetune: dict) -> dict:
    """What goes into every checkpoint of a finetuned run, beside the weights."""
    text = pretrained.text
    seen = {
        "kind": text.kind if text else "text", "separated": True,
        "fingerprint": runs.fingerprint(text.splits) if text else None,
    }
    before = {"pretrained_block_size": pretrained.block_size,
              "pretrained_optimizer": pretrained.optimizer}
    own = {"finetune": finetune | before}
    return {"config": asdict(config) | seen | own, "tokenizer": pretrained.tokenizer.to_dict()}


def fingerprint(task: tasks.Task) -> str:
    content = {s: [[e.text, *e.labels] for e in part] for s, part in task.splits.items()}
    return runs.fingerprint(content)


def encode_splits(task: tasks.Task, pretrained: Pretrained) -> dict[str, Encoded]:
    """All splits in tokens, and what the user should know of them said."""
    size = pretrained.config.block_size
    splits = {s: encode(part, task.labels, pretrained.tokenizer, size)
              for s, part in task.splits.items()}
    notes = [*task.notes, pretrained.note] if pretrained.note else list(task.notes)
    for split, encoded in splits.items():
        notes += notes_of(encoded, split, size)
    seen = seen_in_pretraining(pretrained, [e.text for e in task.splits["test"]])
    if seen:
        notes.append(f"{seen:,} of the {len(task.splits['test']):,} test texts stand in the text "
                     "that the run was pretrained on, which flatters")
    for note in notes:
        print(f"note: {note}")
    return splits


def resume_run(args: Namespace) -> Path:
    """Go on with a run that was stopped; its folder."""
    settings.check_resume(args)
    run, checkpoint = open_run(args.resume, args.steps, "classify")
    saved = checkpoint["config"]["finetune"]
    task = load_task(saved)
    if fingerprint(task) != saved["examples"]:
        raise ValueError(f"the texts have changed since {run} began; restore them or start anew.")
    config = restore_config(checkpoint["config"])
    pretrained = pretrained_of(checkpoint, config)
    about = {"config": checkpoint["config"], "tokenizer": checkpoint["tokenizer"]}
    splits = encode_splits(task, pretrained)
    carry_out(pretrained, task, splits, config, run, about, checkpoint)
    return run


def open_run(path: Path, steps: int | None, kind: str) -> tuple[Path, dict]:
    """The folder of a finetuned run and its last checkpoint, as it is to go on from.

    ValueError: no such run, or more steps made than asked for.
    """
    run = path if path.is_dir() else path.parent
    source = run / "last.pt" if path == run and (run / "last.pt").exists() else path
    checkpoint = runs.load_checkpoint(source)
    if checkpoint["config"].get("finetune", {}).get("kind") != kind:
        raise ValueError(f"{run} is no run of finetune.{kind}.")
    if checkpoint.get("merged"):
        raise ValueError(f"{source} is what a run that has ended is used by; to go on it takes the "
                         f"run's last.pt{', which is not there' * (path == run)}.")
    step = checkpoint["progress"]["step"]
    if steps is not None:
        if steps < step:
            raise ValueError(f"{run} has made {step} steps, so --steps={steps} is too few.")
        checkpoint["config"]["steps"] = steps
        checkpoint["progress"]["since_best"] = 0  # new steps, new patience
    checkpoint["progress"] = train.mend(run, source, checkpoint)
    print(f"going on at step {step}")
    return run, checkpoint


def pretrained_of(checkpoint: dict, config: Config) -> Pretrained:
    """What a finetuned run began with, from its own checkpoint; without the weights."""
    from .pretrained import pretraining_text

    saved = checkpoint["config"]
    text, note = pretraining_text(saved, saved["finetune"]["replay_data"])
    tokenizer = data.tokenizer_from_dict(checkpoint["tokenizer"])
    before = {name: saved["finetune"][f"pretrained_{name}"] for name in ("block_size", "optimizer")}
    return Pretrained(Path(saved["finetune"]["from"]), config, tokenizer, {}, text=text, note=note,
                      **before)


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
    try:
        classifier, progress = fit(pretrained, splits, config, run, about, machine, resume)
        after = pretraining_loss(classifier.model, pretrained, machine)
        rows, found = compare(classifier, pretrained, task, splits, config, run, about, machine)
    except (train.Stopped, train.Diverged, KeyboardInterrupt) as error:
        with suppress(OSError):
            runs.plot(run)
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
        **rows["finetuned"], "baselines": {n: row for n, row in rows.items() if n != "finetuned"},
        "seed": config.seed, "device": machine.device, "dtype": machine.dtype,
    }
    matrix = measures.confusion(
        measures.truth(found.argmax(1), splits["test"].labels), found.argmax(1), len(task.labels))
    report = "\n".join([table(rows), "", forgetting(before, after), "", confused(matrix, task)])
    runs.write_json(run / "result.json", result)
    runs.write(run / "report.txt", report + "\n")
    runs.write(run / "confusion.csv", as_csv(matrix, task.labels))
    runs.write(run / "samples.txt", samples(task, found))
    plot_confusion(matrix, task, run)
    runs.plot(run)
    print(f"\n{report}\n\nIn {run}: result.json, report.txt, confusion.png and .csv, samples.txt, "
          f"loss.png. Try it: python sample.py --run={run} --classify TEXT")


def stopped(error: BaseException, run: Path, command: str) -> Exception:
    """What to raise to the user where a training ended early."""
    if isinstance(error, train.Diverged):
        said = str(error).split(" Try again")[0]
        return train.Diverged(f"{said} Try again with a lower --lr.")
    if not runs.present(run):
        return train.Stopped("stopped before anything was saved.")
    said = str(error) or "stopped at once; what was saved before is kept."
    return train.Stopped(f"{said} Go on with: python -m finetune.{command} --resume={run}")


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
    classifier = Classifier(model, classes, weights)
    replay = None
    if saved["replay"] and not random:
        classifier.replay = saved["replay"]
        share = saved["replay"]
        rows = max(1, round(config.batch_size * share / (1 - share)))
        replay = Replay(pretrained, rows, pretrained.block_size)
    adapt(model, tuning, speaks=replay is not None and tuning.tune == "all")
    if resume:
        classifier.load_state_dict(resume["model"])
    place(model, config.model, machine)
    classifier.to(machine.device)
    model.checkpointing = config.checkpointing
    trained, every = count(classifier)
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
    progress = train.train(
        classifier, batches, classifier.loss, config, evaluate=evaluate, machine=machine, run=run,
        about=about, resume=resume, lr_shares=shares,
    )
    settle(classifier, run)
    return classifier.eval(), progress


def as_tuning(saved: dict) -> dict:
    return saved | {"matrices": tuple(saved["matrices"])}


def settle(model: nn.Module, run: Path) -> None:
    """The best weights of a run into its model, merged, and these into best.pt."""
    checkpoint = runs.load_checkpoint(run / "best.pt")
    weights = sample.weights_of(checkpoint)
    if checkpoint.get("merged"):
        merge(model)
        model.load_state_dict(weights)
        return
    model.load_state_dict(weights)
    merge(model)
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    runs.save_checkpoint(run / "best.pt", checkpoint | {"merged": True, "model": state,
                                                        "average": {}})


def load_classifier(path: Path) -> tuple[Classifier, data.Tokenizer, dict]:
    """The classifier of a run, in eval, its tokenizer and its settings. ValueError: no such run."""
    checkpoint = runs.load_checkpoint(Path(path))
    saved = checkpoint["config"]
    if saved.get("finetune", {}).get("kind") != "classify":
        raise ValueError(f"{path} does not sort texts; finetune it to: "
                         f"python -m finetune.classify --from={path} --task=topic")
    config = restore_config(saved)
    tokenizer = data.tokenizer_from_dict(checkpoint["tokenizer"])
    model = nanogpt.build(config.model, tokenizer.vocab_size, config.block_size, **config.sizes)
    classifier = Classifier(model, len(saved["finetune"]["labels"]))
    if not checkpoint.get("merged"):
        adapt(model, Tuning(**as_tuning(saved["finetune"]["tuning"])), speaks=False)
    classifier.load_state_dict(sample.weights_of(checkpoint))
    merge(classifier)
    return classifier.eval(), tokenizer, saved


def assign(
    classifier: Classifier, tokenizer: data.Tokenizer, saved: dict, text: str, machine: Machine
) -> tuple[list[tuple[str, float]], list[str]]:
    """Every label with its probability, the likeliest first, and what the user should know."""
    labels, size = saved["finetune"]["labels"], saved["block_size"]
    ids, unseen = sequence(text.strip(), tokenizer)
    notes = []
    if unseen:
        notes.append(f"{unseen} characters that the run has never seen are left out")
    if len(ids) > size:
        notes.append(f"the text has {len(ids) - size} tokens more than the block of {size}; they "
                     "are cut off at its end")
    found = probabilities(classifier, [ids[:size]], machine)[0]
    return [(labels[i], float(found[i])) for i in np.argsort(-found, kind="stable")], notes


# Judging


def compare(
    classifier: Classifier, pretrained: Pretrained, task: tasks.Task, splits: dict[str, Encoded],
    config: Config, run: Path, about: dict, machine: Machine,
) -> tuple[dict[str, dict], np.ndarray]:
    """accuracy and macro F1 on test of the network and the baselines; the network's probabilities.
    """
    test, classes = splits["test"], len(task.labels)
    found = probabilities(classifier, test.sequences, machine)
    rows = {"finetuned": measures.judge(found.argmax(1), test.labels, classes)}
    saved = about["config"]["finetune"]
    if saved["baselines"]:
        random, _ = from_random(pretrained, splits, config, run / "random", about, machine)
        scores = probabilities(random, test.sequences, machine)
        rows["random first weights"] = measures.judge(scores.argmax(1), test.labels, classes)
        texts = {s: list(zip((e.text for e in part), splits[s].labels))
                 for s, part in task.splits.items()}
        weights = class_weights(splits["train"].labels, classes, saved["balance"])
        regression, chosen = baselines.fit(texts["train"], texts["val"], classes, weights)
        scores = regression.probabilities([text for text, _ in texts["test"]])
        rows["n-gram regression"] = measures.judge(scores.argmax(1), test.labels, classes) | chosen
    common = baselines.majority(splits["train"].labels, len(test.labels))
    rows["commonest label"] = measures.judge(common, test.labels, classes)
    return rows, found


def from_random(
    pretrained: Pretrained, splits: dict[str, Encoded], config: Config, run: Path, about: dict,
    machine: Machine,
) -> tuple[Classifier, train.Progress]:
    """The same network from random weights, all learning; gone on with where it was stopped."""
    print("the same network from random weights:")
    run.mkdir(exist_ok=True)
    resume = None
    if (run / "last.pt").exists():
        resume = runs.load_checkpoint(run / "last.pt")
        resume["progress"] = train.mend(run, run / "last.pt", resume)
    if about["config"]["finetune"]["tuning"]["tune"] != "all":  # all its weights must learn
        optimizer, width = pretrained.optimizer, config.sizes.get("width", 128)
        rate = settings.default_lr(optimizer, "all", width)
        config = replace(config, optimizer=optimizer, lr=rate)
    return fit(pretrained, splits, config, run, about, machine, resume, random=True)


def table(rows: dict[str, dict]) -> str:
    """accuracy and macro F1 of each row, in percent, with 95% intervals."""
    def cell(row: dict, name: str) -> str:
        low, high = row[f"{name}_interval"]
        return f"{row[name]:.3f} ({low:.3f} to {high:.3f})"

    width = max(map(len, rows))
    lines = [f"{'on test, 95% intervals':<{width}}  {'accuracy':<26}  macro F1"]
    for name, row in rows.items():
        lines.append(f"{name:<{width}}  {cell(row, 'accuracy'):<26}  {cell(row, 'macro_f1')}")
    return "\n".join(lines)


def forgetting(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "loss on the pretraining text: not to be had, for the text is not"
    return (f"loss on the pretraining text, nats per token: {before:.4f} before, {after:.4f} after "
            "finetuning")


def confused(matrix: np.ndarray, task: tasks.Task) -> str:
    """The confusion matrix as a table: a row for each true label."""
    width = max(map(len, task.labels))
    size = max(4, len(str(matrix.max())))
    head = " ".join(label[:size].rjust(size) for label in task.labels)
    lines = ["rows: the right label; columns: what it was taken for", " " * width + " " + head]
    for label, row in zip(task.labels, matrix):
        lines.append(f"{label:<{width}} " + " ".join(f"{n:>{size}}" if n else
                                                     "·".rjust(size) for n in row))
    return "\n".join(lines)


def as_csv(matrix: np.ndarray, labels: list[str]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["right \\ taken for", *labels])
    writer.writerows([label, *row] for label, row in zip(labels, matrix.tolist()))
    return buffer.getvalue()


def plot_confusion(matrix: np.ndarray, task: tasks.Task, run: Path) -> None:
    """confusion.png: each row in shares of its label."""
    side = max(4.5, 0.32 * len(task.labels) + 2)
    figure = runs.new_figure(side, side)
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(len(task.labels))
    shown = [label.replace("$", r"\$") for label in task.labels]
    axes.set_xticks(places, shown, rotation=90)
    axes.set_yticks(places, shown)
    axes.set(xlabel="taken for", ylabel="right label")
    for i, j in np.argwhere(matrix):
        color = "white" if shares[i, j] > 0.5 else "black"
        axes.text(j, i, matrix[i, j], ha="center", va="center", fontsize=7, color=color)
    axes.set_title(run.name, parse_math=False)
    runs.save_figure(figure, run / "confusion.png")


def samples(task: tasks.Task, found: np.ndarray, number: int = 20) -> str:
    """Some test texts, what they were taken for, and what is right."""
    lines = []
    for example, row in list(zip(task.splits["test"], found))[:number]:
        label = task.labels[int(row.argmax())]
        mark = "" if label in example.labels else f"  (right: {', '.join(example.labels)})"
        lines.append(f"{row.max():4.0%} {label}{mark}: {' '.join(example.text.split())[:60]}")
    return "\n".join(lines) + "\n"


def main() -> int:
    args = make_parser().parse_args()
    return settings.carefully(lambda: (resume_run if args.resume else new_run)(args))


if __name__ == "__main__":
    cli.run(main)
