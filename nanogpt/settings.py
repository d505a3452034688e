"""What a run is told: its settings, the flags that set them, and the defaults of each stage."""

import json
import math
from argparse import Namespace
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import get_origin

import data
from data import cli
from data.cli import add, flag
from makemore import BACKENDS
from makemore.recipes import IN_NUMPY, RECIPES
from makemore.without_torch.activations import ACTIVATIONS
from makemore.without_torch.initialisation import INITS
from makemore.without_torch.norms import NORMS
from makemore.without_torch.optimizers import OPTIMIZERS as BY_HAND
from makemore.without_torch.schedules import SCHEDULES

from . import STAGES, sizes
from .attention import CHOICES as CHOICES_OF_ATTENTION
from .attention import STAGES as ATTENTIVE
from .gpt import ARCHS, CHOICES, SIZES
from .machine import DEVICES, DTYPES
from .optim import MOMENTUM, OPTIMIZERS
from .recipes import RECIPES as NAMED

PLAIN = ("cpu", "float32", False)  # device, dtype and compile of the NumPy backend


@dataclass
class Config:
    """Every setting of a run. A step is a step of the optimizer."""

    model: str
    data: str
    lines: bool
    sizes: dict[str, int | float | str | bool]  # of the model, under the names of its __init__
    block_size: int
    steps: int
    batch_size: int
    lr: float  # at its peak, after the warm-up
    warmup: int
    optimizer: str
    weight_decay: float
    clip: float  # the largest norm of the gradient; 0 is off
    eval_every: int
    patience: int  # end after so many evaluations without a better one; 0 is off
    seed: int
    device: str
    dtype: str
    compile: bool
    schedule: str = "cosine"
    backend: str = "torch"
    count: bool = False  # the pairs, for the first weights of a bigram
    tokenizer: str = "char"
    vocab_size: int = 0  # at most, of byte pairs that are learned here
    accumulate: int = 1  # parts of a batch, one after the other, where it does not fit at once
    average: float = 0.0  # how much of the averaged weights stays at each step; 0 is off
    checkpointing: bool = False
    shard: bool = False
    momentum: float = MOMENTUM  # of Muon
    embedding_lr: float = 1.0  # times lr, of the embedding
    attention: str = "auto"  # of gpt and, but for the formula, of the transformer

    def check(self) -> None:
        """ValueError for a setting that cannot work."""
        for field in fields(self):
            kind, value = get_origin(field.type) or field.type, getattr(self, field.name)
            if not isinstance(value, (int, float) if kind is float else kind):
                raise ValueError(f"{flag(field.name)} must be of {kind.__name__}, not {value!r}.")
        for name in ("steps", "batch_size", "block_size", "eval_every"):
            if getattr(self, name) < 1 and not (name == "steps" and self.count):
                raise ValueError(f"{flag(name)} must be at least 1, not {getattr(self, name)}.")
        for name in ("warmup", "weight_decay", "clip", "patience", "seed"):
            if not 0 <= getattr(self, name) < 2**63:
                value = getattr(self, name)
                raise ValueError(f"{flag(name)} must be at least 0 and below 2**63, not {value}.")
        optimizers = OPTIMIZERS if self.backend == "torch" else BY_HAND
        known = dict(optimizer=optimizers, dtype=DTYPES, schedule=SCHEDULES, backend=BACKENDS,
                     tokenizer=data.TOKENIZERS)
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                here = f" with --backend={self.backend}" if name == "optimizer" else ""
                raise ValueError(f"{flag(name)} must be one of {', '.join(choices)}{here}.")
        if self.backend == "numpy" and (self.device, self.dtype, self.compile) != PLAIN:
            raise ValueError("NumPy computes on the CPU, in float32 and as written: "
                             "leave out --device, --dtype and --compile, or --backend=numpy.")
        if self.count and (self.model, self.backend) != ("bigram", "numpy"):
            raise ValueError("--count is for --model=bigram --backend=numpy.")
        if self.vocab_size and self.tokenizer != "bpe":
            raise ValueError("--vocab-size is for --tokenizer=bpe; the others have their own.")
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ValueError(f"--accumulate must divide the batch of {self.batch_size} rows into "
                             f"equal parts, not into {self.accumulate}.")
        if not 0 <= self.average < 1:
            raise ValueError(f"--average must be at least 0 and below 1, not {self.average}.")
        if self.shard and (self.dtype == "float16" or self.backend == "numpy"):
            raise ValueError("--shard is for --dtype=bfloat16 or float32, and not for NumPy.")
        if self.checkpointing and self.model != "gpt":
            raise ValueError("--checkpointing is for --model=gpt.")
        if self.attention not in CHOICES_OF_ATTENTION:
            raise ValueError(f"--attention must be one of {', '.join(CHOICES_OF_ATTENTION)}.")
        if self.weight_decay and self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"{self.optimizer} has no --weight-decay; adamw and muon have.")
        for name in ("lr", "embedding_lr"):
            if not 0 < getattr(self, name) < math.inf:
                value = getattr(self, name)
                raise ValueError(f"{flag(name)} must be a number above 0, not {value}.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"--momentum must be at least 0 and below 1, not {self.momentum}.")


def make_parser() -> cli.Parser:
    description = "Train a language model of the ladder."
    parser = cli.Parser(prog="train.py", description=description)
    group = parser.add_argument_group("what to train, and on what")
    add(group, "model", "the stage (default transformer)", str, choices=STAGES)
    text = f"settings with a name, which other flags override: {', '.join(NAMED)}"
    add(group, "recipe", text, str, choices=list(NAMED))
    sets = ", ".join(data.SETS)
    text = f"{sets}, a .txt or .jsonl, or a folder of them (default names; of gpt tales)"
    add(group, "data", text, str, metavar="DATA")
    add(group, "lines", "every line is an item of its own", bool)
    text = "a token a character, byte pairs learned from the text, or GPT-2's (default char)"
    add(group, "tokenizer", text, str, choices=list(data.TOKENIZERS))
    add(group, "vocab_size", "tokens of --tokenizer=bpe at most (default 1024)")
    text = "numpy: bigram and mlp without PyTorch, every gradient by hand (default torch)"
    add(group, "backend", text, str, choices=list(BACKENDS))
    text = "begin with the shares of the pairs, counted; with --backend=numpy, and 0 steps then"
    add(group, "count", text, bool)
    group = parser.add_argument_group("size of the model (default: the stage's, or its recipe's)")
    add(group, "layers", "layers, one on the other")
    add(group, "heads", "attention heads; they must divide the width")
    add(group, "width", "features of a token between the layers")
    add(group, "context", "tokens that the mlp sees, the current one included")
    add(group, "embed", "features of a token before the mlp's layer")
    add(group, "dropout", "share of the features that training leaves out", float)
    add(group, "block_size", "tokens of context (default: the longest line, or 64 of a text)")
    norms = list(dict.fromkeys(["none", *NORMS, *CHOICES["norm"]]))
    add(group, "norm", "of gpt rms or layer; of the mlp in NumPy any (default rms, none)", str,
        choices=norms)
    group = parser.add_argument_group("the pieces of gpt")
    add(group, "arch", "all pieces as in GPT-2, or as is best now (default modern)", str,
        choices=list(ARCHS))
    add(group, "size", "layers, heads, width and block size by one dial (default nano)", str,
        choices=list(SIZES))
    add(group, "position", "how a token knows its place", str, choices=CHOICES["position"])
    add(group, "mlp", "what each position computes by itself", str, choices=CHOICES["mlp"])
    text = "heads of keys and values, each for a group of heads; 0: as many as heads (default 0)"
    add(group, "kv_heads", text)
    text = ("tokens that a short convolution adds up into an embedding, the current one included, "
            "0: none (default 0)")
    add(group, "conv", text)
    add(group, "window", "tokens that attention looks back, 0: the block size (default 0)")
    add(group, "score_cap", "scores become c tanh(score / c); 0 is off", float)
    add(group, "logit_cap", "the same for logits", float)
    add(group, "qk_norm", "normalise queries and keys", bool, switch=True)
    add(group, "tied", "the head is the embedding", bool, switch=True)
    add(group, "bias", "of linear maps and norms", bool, switch=True)
    add(group, "zero_init", "begin with blocks that add nothing", bool, switch=True)
    group = parser.add_argument_group("the pieces of the mlp in NumPy (--backend=numpy)")
    add(group, "activation", "what bends the features (default tanh)", str,
        choices=list(ACTIVATIONS))
    add(group, "init", "how the first weights are drawn (default xavier)", str, choices=list(INITS))
    group = parser.add_argument_group("training (default: the stage's recipe)")
    add(group, "steps", "steps of the optimizer")
    add(group, "batch_size", "rows a step: lines, or windows of the block size")
    add(group, "accumulate", "parts of a batch, where all of it does not fit (default 1)")
    add(group, "lr", "learning rate at its peak", float)
    text = "times the learning rate, of the embedding, and of a head tied to it (default 1)"
    add(group, "embedding_lr", text, float)
    text = f"of Muon: less is better in few steps (default {MOMENTUM})"
    add(group, "momentum", text, float)
    text = "steps to the peak, of cosine and wsd (default 100, at most a tenth of the steps)"
    add(group, "warmup", text)
    text = "muon for the layers' matrices, or adamw for all; others in NumPy alone (default muon)"
    add(group, "optimizer", text, str, choices=list(BY_HAND))
    add(group, "schedule", "what becomes of the learning rate after the warm-up (default cosine)",
        str, choices=list(SCHEDULES))
    add(group, "weight_decay", "of matrices (default: the recipe's, else 0)", float)
    text = "evaluate averaged weights, of which this share stays at each step; 0 is off (default 0)"
    add(group, "average", text, float)
    add(group, "clip", "largest norm of the gradient, 0 is off (default 1)", float)
    add(group, "eval_every", "steps between evaluations (default a twentieth of the steps)")
    add(group, "patience", "evaluations without a better one before the end, 0: all (default 5)")
    add(group, "seed", "of first weights, order of the data and dropout (default 0)")
    group = parser.add_argument_group("machine")
    text = f"{', '.join(DEVICES)} or such as cuda:1 (default auto)"
    add(group, "device", text, str, metavar="DEVICE")
    add(group, "dtype", "of products; weights stay float32 (default float32)", str, choices=DTYPES)
    text = "of gpt: make activations again in the backward pass: slower, in less memory"
    add(group, "checkpointing", text, bool)
    text = "sdpa: PyTorch's kernels; triton: ours, on a GPU (default: gpt auto, transformer naive)"
    add(group, "attention", text, str, choices=list(CHOICES_OF_ATTENTION))
    text = "under torchrun: every process keeps a part of the weights, not all of them"
    add(group, "shard", text, bool)
    add(group, "compile", "torch.compile: slow to start, so measure whether it pays", bool)
    group = parser.add_argument_group("run")
    add(group, "out", "the run folder (default runs/STAGE-DATA, numbered if there is one)", Path)
    add(group, "resume", "go on with a run; only --steps may be changed", Path, metavar="RUN")
    add(group, "config", "repeat a run from its config.json; other flags override it", Path)
    text = "say whether the losses of a run are those to expect of its recipe, and do nothing else"
    add(group, "check", text, Path, metavar="RUN")
    return parser


def settle(args: Namespace, source: str, dataset: data.Dataset, repeated: dict) -> Config:
    """All settings: those given, else of the config.json to repeat, else of the stage's recipe.

    ValueError: a flag that the stage does not use, or a value that cannot work.
    """
    given = {name: value for name, value in vars(args).items() if value is not None}
    usual = NAMED[args.recipe]["model"] if args.recipe else "transformer"
    stage = given.get("model", repeated.get("model", usual))
    backend = given.get("backend", repeated.get("backend", "torch"))
    takes = sizes(stage, backend)
    refuse_sizes(given, stage, backend, takes)
    if stage not in ATTENTIVE:
        if "attention" in given:
            have = " and ".join(ATTENTIVE)
            raise ValueError(f"the stage {stage} has no --attention; {have} have.")
        repeated = repeated | {"attention": "naive"}
    if given.get("vocab_size"):
        given.setdefault("tokenizer", "bpe")
    recipe = recipe_of(stage, backend, dataset.kind, args.recipe)
    if given.get("count"):
        recipe["steps"] = 0
    if (stage, backend) != ("bigram", "numpy"):
        repeated = repeated | {"count": False}
    if stage != "gpt":
        repeated = repeated | {"checkpointing": False}
    if given.get("tokenizer", "bpe") != "bpe":
        repeated = repeated | {"vocab_size": 0}
    if repeated.get("model") == stage:
        repeated = repeated | repeated["sizes"]
    given = presets(given) | given
    chosen = recipe | repeated | given
    for name in useless(given, chosen.get("optimizer", "muon"), stage, backend):
        chosen.pop(name, None)
    steps, tokenizer = chosen["steps"], chosen.get("tokenizer", "char")
    defaults = dict(
        lines=False, block_size=data.default_block_size(dataset, tokenizer),
        warmup=min(100, steps // 10), optimizer="muon", weight_decay=0.0, clip=1.0,
        eval_every=max(1, steps // 20), patience=5, seed=0, device="auto", dtype="float32",
        compile=False, attention="auto" if stage == "gpt" else "naive",
    )
    settings = defaults | chosen | {"model": stage, "data": source}
    if backend == "numpy" and settings["device"] == "auto":
        settings["device"] = "cpu"
    if settings.get("tokenizer") == "bpe" and not settings.get("vocab_size"):
        settings["vocab_size"] = 1024
    settings["sizes"] = {name: settings.get(name, default) for name, default in takes.items()}
    known = {field.name for field in fields(Config)}
    config = Config(**{name: value for name, value in settings.items() if name in known})
    config.check()
    return config


def useless(given: dict, optimizer: str, stage: str, backend: str) -> list[str]:
    """Settings of the optimizer that a run has no use for. ValueError: one of them is given."""
    names = {}
    if stage == "bigram":
        names["momentum"] = "is of Muon, which finds no matrix inside of a bigram"
    elif optimizer != "muon":
        names["momentum"] = f"is of Muon, and this run has {optimizer}"
    if backend == "numpy":
        names |= dict.fromkeys(("momentum", "embedding_lr"), "is not for NumPy")
    for name, why in names.items():
        if name in given:
            raise ValueError(f"{flag(name)} {why}.")
    return list(names)


def refuse_sizes(given: dict, stage: str, backend: str, takes: dict) -> None:
    """ValueError for a given size that the stage does not take."""
    every = [sizes(s, b) for b, stages in BACKENDS.items() for s in stages] + [sizes("gpt")]
    known = set().union(*every, ("arch", "size") if stage != "gpt" else ())
    for name in given.keys() & (known - takes.keys()):
        ours = ", ".join(map(flag, takes)) or "no sizes"
        where = " in NumPy" if backend == "numpy" else ""
        raise ValueError(f"the stage {stage}{where} has no {flag(name)}; it takes {ours}.")


def recipe_of(stage: str, backend: str, kind: str, name: str | None) -> dict:
    """The settings that a stage begins with, on "lines" or "text", or those of a named recipe."""
    if name and NAMED[name]["model"] != stage:
        raise ValueError(f"--recipe={name} is for --model={NAMED[name]['model']}.")
    if stage == "gpt":
        recipe = NAMED[name or ("names" if kind == "lines" else "tales")]
        return presets(recipe) | recipe
    usual = RECIPES[kind][stage] | (IN_NUMPY[kind].get(stage, {}) if backend == "numpy" else {})
    return usual | (NAMED[name] if name else {})


def presets(chosen: dict) -> dict:
    """What the dials --arch and --size stand for."""
    return ARCHS.get(chosen.get("arch"), {}) | SIZES.get(chosen.get("size"), {})


def read_config(path: Path) -> dict:
    """The settings in a config.json. ValueError: it is none."""
    try:
        saved = json.loads(path.read_text("utf-8"))
        settings = asdict(restore_config(saved))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} is not the config.json of a run ({error}).") from None
    if "finetune" in saved:
        raise ValueError(f"{path} is of a finetuned run, which train.py does not repeat.")
    return settings | {"fingerprint": saved.get("fingerprint")}


def restore_config(saved: dict) -> Config:
    """The settings of a config.json or a checkpoint. ValueError: one is missing or cannot work."""
    needed = [field.name for field in fields(Config) if field.default is MISSING]
    if missing := [name for name in needed if name not in saved]:
        raise ValueError(f"the setting {missing[0]} is missing; was another version at work?")
    known = {field.name for field in fields(Config)}
    config = Config(**{name: value for name, value in saved.items() if name in known})
    config.check()
    sizes(config.model, config.backend)
    return config
