"""The flags that classify and instruct share, and what they become."""

import os
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import data
import train
from data import cli
from data.cli import add, flag
from makemore.without_torch.schedules import SCHEDULES
from nanogpt.machine import DEVICES, DTYPES, Machine, choose
from nanogpt.optim import MOMENTUM, OPTIMIZERS
from nanogpt.settings import Config

from .adapt import TUNES, Tuning

MOST_REPLAY = 0.9  # nine rows of pretraining text for one of what is learned
CHANGEABLE = {"resume", "steps"}  # flags of a run that is resumed


def add_flags(
    parser: cli.Parser, steps: str, rows: str, evaluations: str, muon: str,
    dropout: str = "that of pretraining", average: str = "0", embedding_lr: str = "1",
    patience: str = "5", matrices: str = "",
) -> None:
    """How to finetune, on which machine, and where to: of both commands.

    Each but the parser: what is the default there; muon: its learning rate.
    """
    group = parser.add_argument_group("which weights learn")
    text = "all, the head alone, the last layers, or LoRA's additions (default all)"
    add(group, "tune", text, str, choices=TUNES)
    add(group, "last", "so many layers of --tune=last (default 1)")
    add(group, "rank", "of LoRA's additions (default 8)")
    add(group, "alpha", "LoRA adds alpha / rank times its product (default 16)", float)
    text = ("what gets LoRA, such as qkv,out,embedding:16, with a rank of its own behind the colon "
            f"(default: all matrices in the layers{matrices})")
    add(group, "matrices", text, str, metavar="NAMES")
    text = "what a layer's learning rate is times that of the layer above (default 1)"
    add(group, "lr_decay", text, float)
    text = "share of the loss that is of pretraining text, against forgetting (default 0)"
    add(group, "replay", text, float)
    text = "where the pretraining text is, if not where the run says"
    add(group, "replay_data", text, str, metavar="DATA")
    group = parser.add_argument_group("training")
    add(group, "steps", f"steps of the optimizer (default {steps})")
    add(group, "batch_size", f"rows a step (default {rows})")
    text = "tokens of a row (default: that of pretraining, or what fits the texts if that is more"
    add(group, "block_size", f"{text}; where positions are learned it cannot change)")
    text = f"learning rate at its peak (default {muon} with muon, else by --tune and width)"
    add(group, "lr", text, float)
    text = f"times that, of the embedding (default {embedding_lr})"
    add(group, "embedding_lr", text, float)
    add(group, "warmup", "steps to the peak (default 100, at most a tenth of the steps)")
    text = "(default: that of pretraining; adamw for --tune=head and lora)"
    add(group, "optimizer", text, str, choices=list(OPTIMIZERS))
    add(group, "schedule", "(default cosine)", str, choices=list(SCHEDULES))
    add(group, "weight_decay", "of matrices (default: that of pretraining, at least 0.1)", float)
    add(group, "dropout", f"(default: {dropout})", float)
    add(group, "average", f"evaluate averaged weights; 0 is off (default {average})", float)
    add(group, "clip", "largest norm of the gradient, 0 is off (default 1)", float)
    add(group, "eval_every", f"steps between evaluations (default {evaluations})")
    text = f"evaluations without a better one before the end, 0: all (default {patience})"
    add(group, "patience", text)
    add(group, "seed", "of new weights, order of the data and dropout (default 0)")
    group = parser.add_argument_group("machine")
    text = f"{', '.join(DEVICES)} or such as cuda:1 (default auto)"
    add(group, "device", text, str, metavar="DEVICE")
    add(group, "dtype", "of products; weights stay float32 (default float32)", str, choices=DTYPES)
    text = "of gpt: make activations again in the backward pass: slower, in less memory"
    add(group, "checkpointing", text, bool)
    group = parser.add_argument_group("run")
    add(group, "out", "the run folder (default: in runs/, numbered if there is one)", Path)
    add(group, "resume", "go on with a run; only --steps may be changed", Path, metavar="RUN")


def given(args: Namespace) -> dict:
    """The flags that were given."""
    return {name: value for name, value in vars(args).items() if value is not None}


def check_resume(args: Namespace) -> None:
    """ValueError for flags that a run which is resumed cannot change."""
    if fixed := sorted(given(args).keys() - CHANGEABLE):
        what = ", ".join(map(flag, fixed))
        raise ValueError(f"{what} cannot change in a run that is resumed; only --steps can.")


def tuning_of(args: Namespace, usual: dict | None = None) -> Tuning:
    """usual: flags that stand for those not given, where Tuning's own defaults shall not.

    ValueError: a flag that cannot work, or is of another --tune.
    """
    chosen = (usual or {}) | given(args)
    tune = chosen.get("tune", "all")
    for names, kind in ((("last",), "last"), (("rank", "alpha", "matrices"), "lora")):
        for name in names:
            if name in chosen and tune != kind:
                raise ValueError(f"{flag(name)} is for --tune={kind}.")
    names = {"tune", "last", "rank", "alpha", "lr_decay"}
    parts = {name: value for name, value in chosen.items() if name in names}
    matrices = tuple(filter(None, map(str.strip, chosen.get("matrices", "").split(","))))
    tuning = Tuning(**parts, matrices=matrices)
    tuning.check()
    return tuning


def replay_of(args: Namespace) -> float:
    """ValueError: a share that cannot be."""
    share = args.replay or 0.0
    if not 0 <= share <= MOST_REPLAY:
        raise ValueError(f"--replay must be at least 0 and at most {MOST_REPLAY}, not {share}.")
    return share


def source_of(args: Namespace) -> str | None:
    """Where the pretraining text is, if that was said, so that it is found from anywhere."""
    source = args.replay_data
    return source if source in (None, *data.SETS) else str(Path(source).expanduser().resolve())


def config_of(config: Config, args: Namespace, defaults: dict, muon: float) -> Config:
    """The settings of finetuning: those given, else the defaults, on the model of the run. muon:
    its learning rate.

    ValueError: one that cannot work.
    """
    chosen = given(args)
    steps, tune = chosen.get("steps", defaults["steps"]), chosen.get("tune", "all")
    optimizer = optimizer_of(config, args)
    plain = dict(
        warmup=min(100, steps // 10), optimizer=optimizer, clip=1.0,
        lr=default_lr(optimizer, tune, config.sizes.get("width", 128), muon),
        weight_decay=max(0.1, config.weight_decay),
        eval_every=max(min(10, steps), steps // 20), patience=5, seed=0, device="auto",
        dtype="float32", compile=False, schedule="cosine", count=False, accumulate=1, average=0.0,
        momentum=MOMENTUM, embedding_lr=1.0, checkpointing=False, shard=False, attention="auto",
    )
    chosen = plain | defaults | chosen | {"block_size": config.block_size}
    names = asdict(config).keys() - {"model", "data", "lines", "sizes", "tokenizer", "vocab_size"}
    config = replace(config, **{name: value for name, value in chosen.items() if name in names})
    config.check()
    return config


def machine_of(config: Config) -> Machine:
    """ValueError: a device that is not there."""
    return choose(config.device, config.dtype)


def optimizer_of(config: Config, args: Namespace) -> str:
    """The one asked for, or that of pretraining, which is one for all weights; small additions go
    with adamw."""
    usual = config.optimizer if args.tune in (None, "all", "last") else "adamw"
    return args.optimizer or usual


def default_lr(optimizer: str, tune: str, width: int, muon: float) -> float:
    """muon: of that optimizer. Of adamw larger where less of the network learns, and smaller for
    wider networks."""
    if optimizer == "muon":
        return muon
    rates = {"all": 1e-3, "last": 1e-3, "lora": 3e-3, "head": 1e-2}
    return rates[tune] * min(1.0, 128 / width)


def carefully(work: Callable[[], object]) -> int:
    """The exit code of a command that trains. ValueError: torchrun started several of it."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("finetuning is for one process; start it without torchrun.")
    try:
        work()
    except train.Stopped as stopped:
        print(stopped)
        return 130
    except train.Diverged as diverged:
        print(f"error: {diverged}", file=sys.stderr)
        return 1
    return 0
