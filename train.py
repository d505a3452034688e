"""Train a language model of the ladder: python train.py --model=lstm

One loop in plain sight, `train`. What a step learns from and what its dropout drops are functions
of (seed, step) alone, so a run that is stopped at any moment and resumed ends bit for bit where the
run that never stopped ends.
"""

import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import data
import nanogpt
import sample
from data import cli, runs
from data.cli import flag
from makemore.model import IGNORED
from makemore.without_torch.schedules import SCHEDULES
from nanogpt import attention
from nanogpt.check import check
from nanogpt.estimate import Estimate, estimate, in_words, warning
from nanogpt.evaluate import mean_loss, to_device
from nanogpt.finish import finish
from nanogpt.machine import Machine, choose, give_freed_memory_back, keep_freed_memory
from nanogpt.optim import Average, make_optimizers
from nanogpt.processes import (
    Processes,
    Shared,
    load_optimizer,
    mine,
    shard,
    together,
    whole,
)
from nanogpt.recipes import RECIPES
from nanogpt.settings import Config, make_parser, read_config, restore_config, settle

ALONE = Processes()
SAVE_SECONDS = 60  # a crash costs at most this much of a run
BEGIN = 16384  # targets of a text that are judged before the first step


@dataclass
class Progress:
    """How far a run is. Losses in nats per token."""

    step: int = 0
    tokens: int = 0  # targets learned from
    seconds: float = 0.0
    training_seconds: float = 0.0  # without evaluating and saving
    val_loss: float = math.inf  # the latest
    best_loss: float = math.inf
    best_step: int = 0
    since_best: int = 0  # evaluations
    loss_sum: float = 0.0  # over the steps since the last evaluation
    loss_steps: int = 0

    @property
    def tokens_per_second(self) -> int:
        """Of training."""
        return round(self.tokens / max(self.training_seconds, 1e-9))


class Diverged(Exception):
    """The loss or its gradient is not a finite number any more."""


class Stopped(Exception):
    """The user asked to stop, and all is saved."""


def lr_factor(step: int, config: Config) -> float:
    """The share of the peak rate at step 0, 1, ...: never 0, and at most 1."""
    return SCHEDULES[config.schedule](step, config.steps, config.warmup)


def train(
    model: nn.Module,
    batches: Callable[[int, int], tuple[np.ndarray, ...]],
    loss: Callable[..., Tensor],
    config: Config,
    *,
    evaluate: Callable[[], float],
    begin: Callable[[], float] | None = None,
    machine: Machine,
    mfu: float = 0.0,
    processes: Processes = ALONE,
    run: Path,
    about: dict,
    resume: dict | None = None,
    lr_shares: dict[str, float] | None = None,
    unit: str = "tokens",
) -> Progress:
    """Train the model in place until config.steps, or until patience runs out.

    batches(seed, step): the arrays of that step's batch, the targets second. loss(*batch): the mean
    nats, a scalar. evaluate(): the validation loss. begin(): that of step 0, where a part of the
    validation split will do. mfu: the model's FLOP utilisation at one token a second, or 0 if that
    is unknown. about: plain values that go into every checkpoint. resume: a checkpoint to go on
    from. lr_shares: as of make_optimizers. unit: what the targets are. Into run go metrics.jsonl,
    last.pt and best.pt.
    Errors: Diverged (the last good checkpoint stays), Stopped (all is saved).
    """
    if machine.kind == "cpu":
        keep_freed_memory(largest=max(p.nbytes for p in model.parameters()))
    optimizers = make_optimizers(
        model, config.optimizer, config.lr, config.weight_decay, lr_shares, machine.products,
        config.momentum, config.embedding_lr,
    )
    scaler = machine.scaler()
    average = Average(model, config.average)
    progress = Progress()
    if resume:
        average.load_state_dict(resume.get("average", {}))
        progress = Progress(**resume["progress"])
        for optimizer, state in zip(optimizers, resume["optimizers"], strict=True):
            load_optimizer(optimizer, state)
        scaler.load_state_dict(resume["scaler"])
    shared = Shared(model, machine.compile(loss), processes)
    began = time.monotonic() - progress.seconds
    saved = time.monotonic()

    def save(*names: str) -> None:
        broken = not all(mine(parameter).isfinite().all() for parameter in model.parameters())
        if any(processes.total(broken)):
            raise Diverged(diverged_message("a weight is not finite", progress.step, config, run))
        progress.seconds = time.monotonic() - began
        state = {
            "model": whole(model.state_dict()),
            "average": whole(average.state_dict()),
            "optimizers": [whole(optimizer.state_dict()) for optimizer in optimizers],
            "scaler": scaler.state_dict(),
            "progress": asdict(progress),
        }
        for name in names if processes.first else ():
            runs.save_checkpoint(run / name, about | state)

    def validate(evaluate: Callable[[], float]) -> None:
        model.eval()
        with average.in_place():
            val_loss = evaluate()
        model.train()
        if not math.isfinite(val_loss):
            what = f"the validation loss is {val_loss}"
            raise Diverged(diverged_message(what, progress.step, config, run))
        progress.val_loss = val_loss
        progress.since_best += 1
        if val_loss < progress.best_loss:
            progress.best_loss, progress.best_step, progress.since_best = val_loss, progress.step, 0
        line = {
            "step": progress.step,
            "train_loss": progress.loss_sum / progress.loss_steps if progress.loss_steps else None,
            "val_loss": val_loss,
            "lr": config.lr * lr_factor(progress.step, config),
            "tokens": progress.tokens,
            "seconds": round(time.monotonic() - began, 3),
            "tokens_per_second": progress.tokens_per_second,
            "mfu": round(progress.tokens_per_second * mfu, 4),
        }
        progress.loss_sum, progress.loss_steps = 0.0, 0
        if processes.first:
            runs.append_metrics(run, line)
        save(*(["best.pt", "last.pt"] if progress.since_best == 0 else ["last.pt"]))
        bar.write(evaluation_line(line, config, unit))

    world = processes.world

    def prepare(step: int) -> tuple[int, list[tuple[int, list[Tensor]]]]:
        """The targets of a step's batch, and this process's parts: the targets of each, itself."""
        batch = batches(config.seed, step)
        own = parts(batch, config.accumulate * world)[processes.rank::world]
        return count(batch), [(count(part), to_device(part, machine.device)) for part in own]

    hidden = None if processes.first else True
    bar = tqdm(total=config.steps, initial=progress.step, unit="step", disable=hidden, leave=False)
    with bar, cli.Interrupts() as interrupts:
        if not resume:
            validate(begin if begin and config.steps else evaluate)
        model.train()
        ahead = None
        while progress.step < config.steps and not out_of_patience(progress, config):
            started = time.monotonic()
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    share = group.get("lr_share", 1.0)
                    group["lr"] = config.lr * lr_factor(progress.step, config) * share
            tokens, own = ahead or prepare(progress.step)
            nats = 0.0
            for number, (targets, part) in enumerate(own):
                torch.manual_seed(dropout_seed(config.seed, progress.step, number, processes.rank))
                with shared.part(last=number == len(own) - 1):
                    with machine.autocast():
                        # parts count by their targets, so that they add up to the batch's loss
                        share = shared(*part) * (targets / tokens)
                    # what the processes' gradients come to is their mean
                    scaler.scale(share * world).backward()
                nats += share.detach()
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
            norm = whole(nn.utils.clip_grad_norm_(model.parameters(), config.clip or math.inf))
            # under float16 a gradient may overflow: that step is left out, and the scale halved
            overflow = scaler.is_enabled() and scaler.get_scale() >= 1
            for optimizer in optimizers:
                if not scaler.is_enabled() or math.isfinite(norm):
                    scaler.step(optimizer)
                optimizer.zero_grad()
            scaler.update()
            average.update(progress.step)

            # A GPU works on all this while the next batch is made. To read the loss is to wait for
            # it: so that comes last, and a step that was not sound is found after it was made.
            more = machine.kind != "cpu" and progress.step + 1 < config.steps
            ahead = prepare(progress.step + 1) if more else None
            late = processes.first and time.monotonic() - saved > SAVE_SECONDS
            value, asked, late = processes.total(nats, interrupts.asked, late)
            if not math.isfinite(value) or not (math.isfinite(norm) or overflow):
                what = f"the loss is {value}, the norm of its gradient {norm.item()},"
                raise Diverged(diverged_message(what, progress.step + 1, config, run))
            progress.step += 1
            progress.tokens += tokens
            progress.loss_sum += value
            progress.loss_steps += 1
            progress.training_seconds += time.monotonic() - started
            bar.update()
            pace = f"{progress.tokens_per_second:,} {unit}/s" + (
                f", {progress.tokens_per_second * mfu:.0%} MFU" if mfu else "")
            bar.set_postfix_str(f"loss {value:.3f}, {pace}", refresh=False)
            if progress.step % config.eval_every == 0 or progress.step == config.steps:
                validate(evaluate)
                saved = time.monotonic()
            elif asked or late:
                save("last.pt")
                saved = time.monotonic()
            if asked and progress.step < config.steps:
                raise Stopped(f"stopped at step {progress.step} and saved.")
    progress.seconds = time.monotonic() - began
    if machine.kind == "cpu":
        give_freed_memory_back()
    return progress


def count(batch: tuple[np.ndarray, ...]) -> int:
    """The targets of a batch."""
    return int((batch[1] != IGNORED).sum())


def parts(batch: tuple[np.ndarray, ...], number: int) -> list[tuple[np.ndarray, ...]]:
    """The rows of a batch in so many equal parts, but for those without a target."""
    cut = list(zip(*(np.split(array, number) for array in batch)))
    return [part for part in cut if count(part)]


def out_of_patience(progress: Progress, config: Config) -> bool:
    """Whether patience has run out."""
    return 0 < config.patience <= progress.since_best


def dropout_seed(seed: int, step: int, micro_batch: int = 0, process: int = 0) -> int:
    """All that the dropout of a step depends on, as one number."""
    return int(np.random.SeedSequence([seed, step, micro_batch, process]).generate_state(1)[0])


def diverged_message(what: str, step: int, config: Config, run: Path) -> str:
    kept = f" The last good checkpoint is kept: {run / 'last.pt'}." if runs.present(run) else ""
    again = f"python train.py --config={run / 'config.json'} --lr={config.lr / 3:.2g}"
    return f"{what} at step {step}.{kept} Try again with a lower --lr: {again}"


def evaluation_line(line: dict, config: Config, unit: str) -> str:
    trained = "     -" if line["train_loss"] is None else f"{line['train_loss']:.4f}"
    mfu = f"{line['mfu']:.0%} MFU, " if line["mfu"] else ""  # a finetuned run has none
    return (
        f"step {line['step']:>{len(str(config.steps))}} of {config.steps}: train {trained}, "
        f"val {line['val_loss']:.4f}, {line['tokens_per_second']:,} {unit}/s, "
        f"{mfu}{line['seconds']:.0f} s"
    )


def batches_of(dataset: data.Dataset, tokenizer, config: Config, machine: Machine):
    sizes = (config.block_size, config.batch_size)
    return data.batches(dataset, tokenizer, *sizes, one_shape=machine.compiled)


def new_run(args: Namespace, processes: Processes = ALONE) -> None:
    """Train from the start."""
    repeated = read_config(args.config) if args.config else {}
    if args.recipe and args.config:
        raise ValueError("--recipe and --config both say what to begin with; give one of them.")
    if args.recipe and args.model not in (None, RECIPES[args.recipe]["model"]):
        raise ValueError(f"--recipe={args.recipe} is for --model={RECIPES[args.recipe]['model']}.")
    if args.data is None:
        usual = "tales" if args.model == "gpt" else "names"
        usual = RECIPES[args.recipe]["data"] if args.recipe else usual
        source, lines = repeated.get("data", usual), repeated.get("lines", False)
    else:
        source, lines = args.data, False
        repeated["lines"] = False
    dataset = data.load(source, args.lines or lines)
    if source not in data.SETS:
        source = str(Path(source).expanduser().resolve())  # so that it is found from anywhere
    config = settle(args, source, dataset, repeated)
    fingerprint = runs.fingerprint(dataset.splits)
    if args.data is None and repeated.get("fingerprint", fingerprint) != fingerprint:
        print(f"note: {source} has changed since {args.config} was written.")
    if config.shard and processes.world == 1:
        raise ValueError("--shard parts the weights among processes; start them with torchrun, "
                         "such as: torchrun --standalone --nproc_per_node=2 train.py --shard")
    if config.batch_size % (config.accumulate * processes.world):
        raise ValueError(f"--batch-size={config.batch_size} rows cannot be parted equally among "
                         f"{processes.world} processes and --accumulate={config.accumulate} parts.")
    machine = processes.place(choose(config.device, config.dtype, config.compile))
    attention.choose(config.attention, machine)  # or says here why it cannot
    tokenizer = None
    if processes.first:
        tokenizer = data.make_tokenizer(config.tokenizer, config.vocab_size, dataset.splits)
    tokenizer = data.tokenizer_from_dict(processes.agree(tokenizer and tokenizer.to_dict()))
    with processes.in_turn():
        batches = batches_of(dataset, tokenizer, config, machine)
    expected = estimate(config, tokenizer.vocab_size, dataset.separated, machine, processes)
    torch.manual_seed(config.seed)
    sizes = (tokenizer.vocab_size, config.block_size)
    model = nanogpt.build(config.model, *sizes, config.backend, **config.sizes)
    if config.count:
        model.model.count(data.evaluation_batches(dataset, tokenizer, "train", config.block_size))
    path = args.out or Path("runs") / f"{config.model}-{dataset.name}"
    run = runs.make_run(path, exactly=args.out is not None) if processes.first else None
    run = processes.agree(run)
    seen = {"kind": dataset.kind, "separated": dataset.separated}
    about = {
        "config": asdict(config) | seen | {"fingerprint": fingerprint},
        "tokenizer": tokenizer.to_dict(),
    }
    carry_out(
        model, tokenizer, dataset, batches, config, machine, processes, run, about, expected
    )


def resume_run(args: Namespace, processes: Processes = ALONE) -> None:
    """Train on from a checkpoint, perhaps with another number of processes."""
    given = {name for name, value in vars(args).items() if value is not None}
    if fixed := sorted(given - {"resume", "steps"}):
        what = ", ".join(map(flag, fixed))
        raise ValueError(f"{what} cannot change in a run that is resumed; only --steps can.")
    run = args.resume if args.resume.is_dir() else args.resume.parent
    path = run / "last.pt" if args.resume == run and (run / "last.pt").exists() else args.resume
    checkpoint = processes.agree(runs.load_checkpoint(path) if processes.first else None)
    about = {"config": checkpoint["config"], "tokenizer": checkpoint["tokenizer"]}
    if finetuned := about["config"].get("finetune"):
        raise ValueError(f"{run} is finetuned; go on with it by: "
                         f"python -m finetune.{finetuned['kind']} --resume={run}")
    if args.steps is not None:
        about["config"]["steps"] = args.steps
        checkpoint["progress"]["since_best"] = 0  # new steps, new patience
    config = restore_config(about["config"])
    step = checkpoint["progress"]["step"]
    if config.steps < step:
        raise ValueError(f"{run} has made {step} steps, so --steps={config.steps} is too few.")
    dataset = data.load(config.data, config.lines)
    if runs.fingerprint(dataset.splits) != about["config"]["fingerprint"]:
        raise ValueError(f"{config.data} has changed since {run} began; restore it or train anew.")
    machine = processes.place(choose(config.device, config.dtype, config.compile))
    attention.choose(config.attention, machine)  # or says here why it cannot
    tokenizer = data.tokenizer_from_dict(checkpoint["tokenizer"])
    expected = estimate(config, tokenizer.vocab_size, dataset.separated, machine, processes)
    model, tokenizer = sample.restore(checkpoint | {"average": {}})  # the weights that learn
    with processes.in_turn():
        batches = batches_of(dataset, tokenizer, config, machine)
    progress = runs.mend(run, path, checkpoint) if processes.first else None
    checkpoint["progress"] = processes.agree(progress)
    print(f"going on at step {step}")
    carry_out(
        model, tokenizer, dataset, batches, config, machine, processes, run, about, expected,
        checkpoint,
    )


def carry_out(
    model, tokenizer, dataset, batches, config, machine, processes, run, about,
    expected: Estimate, checkpoint=None,
) -> None:
    """Say what is about to happen, train, judge."""
    settings = about["config"] | {"environment": runs.environment()}
    if processes.first:
        runs.write_json(run / "config.json", settings)
    lines = dataset.kind == "lines"
    size = {s: data.size(x)[0 if lines else 1] for s, x in dataset.splits.items()}
    backend = " in NumPy" if config.backend == "numpy" else ""
    print(f"{config.model}{backend}: {expected.parameters:,} parameters, block size "
          f"{config.block_size}, {expected.flops / 1e6:,.1f} million operations a token")
    print(
        f"{dataset.name}: {', '.join(f'{n:,} {split}' for split, n in size.items())} "
        f"{'lines' if lines else 'characters'}, {tokenizer.vocab_size} tokens in the vocabulary"
    )
    most = config.steps * config.batch_size * config.block_size
    print(f"{config.steps:,} steps of {config.batch_size} rows: {most:,} tokens"
          f"{' at most' if lines else ''}; {in_words(expected.memory)} of memory expected"
          f"{' in each process' if processes.world > 1 else ''}")
    several = f" in {processes.world} processes" if processes.world > 1 else ""
    print(f"{machine.describe()}{several}; run folder {run}")
    cut = 0
    if lines:
        every = (line for part in dataset.splits.values() for line in part)
        cut = sum(len(tokenizer.encode(line)) >= config.block_size for line in every)
    notes = (f"{cut:,} lines are cut to the block size.",) if cut else ()
    if short := warning(expected, config, machine, processes.world):
        notes += (short,)
    for note in dataset.notes + machine.notes + notes:
        print(f"note: {note}")
    model.to(machine.device)
    model.checkpointing = config.checkpointing
    if config.model in attention.STAGES:
        attention.use(model, attention.choose(config.attention, machine))
    processes = replace(processes, shard=config.shard and processes.world > 1)
    shard(model, processes)
    groups, few = (data.evaluation_batches(dataset, tokenizer, "val", config.block_size, most=n)
                   for n in (None, BEGIN))

    def evaluate() -> float:
        return mean_loss(model, groups, machine, processes)[0]

    def begin() -> float:
        return mean_loss(model, few, machine, processes)[0]

    try:
        progress = train(
            model, batches, model.loss, config, evaluate=evaluate, begin=begin, machine=machine,
            mfu=expected.mfu, processes=processes, run=run, about=about, resume=checkpoint,
        )
        finish(model, tokenizer, dataset, config, run, machine, processes, progress, expected)
    except (Stopped, KeyboardInterrupt, Diverged) as error:
        if processes.first:
            with suppress(OSError):
                runs.plot(run)
        if isinstance(error, Diverged):
            raise
        said = str(error) or "stopped at once; what was saved before is kept."
        if not runs.present(run):
            raise Stopped("stopped before anything was saved.") from None
        raise Stopped(f"{said} Go on with: python train.py --resume={run}") from None


def check_run(args: Namespace) -> int:
    """Say whether a run is where it should be: 0 if it is, else 1."""
    given = {name for name, value in vars(args).items() if value is not None}
    if more := sorted(given - {"check"}):
        raise ValueError(f"--check only looks at a run; leave out {', '.join(map(flag, more))}.")
    lines, good = check(args.check)
    print("\n".join(lines))
    return 0 if good else 1


def main() -> int:
    args = make_parser().parse_args()
    if args.check:
        return check_run(args)
    try:
        with together() as processes:
            (resume_run if args.resume else new_run)(args, processes)
    except Stopped as stopped:
        print(stopped)
        return 130
    except Diverged as diverged:
        print(f"error: {diverged}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    cli.run(main)
