"""Finetune a run to follow instructions: python -m finetune.instruct --from=runs/gpt-tales

It learns to tell the tale that is asked for, to answer questions about one, and small tasks over
words (strings.py); or, with --train=FILE, your own prompts and responses. The loss is on the
answers alone. Whichever weights learn, those of the special tokens do. What it is tested on, before
and after, are tales, words and phrasings that it has never been trained on; where you give a test
file that does overlap, that is said.
"""

import json
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

import data
import train
from data import cli, runs
from data.cli import add
from data.sets import split_by_hash
from makemore.model import LanguageModel
from nanogpt.evaluate import mean_loss
from nanogpt.machine import Machine
from nanogpt.settings import Config, restore_config

from . import chat, curriculum, evaluate, labelled, resumed, seen, settings, strings, tasks
from . import judge as judging
from .adapt import Tuning, adapt, count, lr_shares
from .chat import Chunk, Conversation
from .pretrained import (
    LONGEST,
    Pretrained,
    Replay,
    load,
    place,
    pretraining_loss,
)
from .report import forgetting

LEAST = 512  # tokens of a row: room for a tale
STEPS = 3200  # at most, if the user says nothing
LR = 0.015  # of Muon
UNSEEN = 0.01  # of the characters may be unseen; beyond that the run is of another script


def make_parser() -> cli.Parser:
    parser = cli.Parser(prog="python -m finetune.instruct", description=__doc__)
    group = parser.add_argument_group("what to learn")
    add(group, "from", "the pretrained run, or a checkpoint in it", Path, metavar="RUN")
    text = 'your own JSONL of {"prompt", "response"} or {"messages": [{"role", "content"}, ...]}'
    add(group, "train", text, Path, metavar="FILE")
    add(group, "test", "what to test on (default: a tenth of --train)", Path, metavar="FILE")
    text = "tales, and prompts of each string task, to judge by (default 100, 20; your own: all)"
    add(group, "judged", text)
    text = "a run that sorts by topic, to judge tales (default: n-grams)"
    add(group, "topics", text, Path, metavar="RUN")
    steps = "3,200; of your own 6 times through them, from 100 to 3,200"
    settings.add_flags(parser, steps, "8", "a tenth of the steps", f"{LR}")
    return parser


def conversations(asked: dict) -> tuple[dict[str, list[Conversation]], judging.Items]:
    """The conversations of train and val, and what to judge by.

    ValueError: files that cannot be used.
    """
    judged = asked.get("judged")
    if judged is not None and judged < 1:
        raise ValueError(f"--judged must be at least 1, not {judged}.")
    if asked.get("train") and asked.get("topics"):
        raise ValueError("--topics is for tales; leave it out with --train=FILE.")
    if not asked.get("train"):
        if asked.get("test"):
            raise ValueError("--test is for --train=FILE, your own conversations.")
        parts = tasks.tales()
        found = {s: [curriculum.told(tale) for tale in parts[s]] for s in ("train", "val")}
        found["val"] += [curriculum.asked(tale) for tale in parts["val"]]
        found["val"] += [Conversation([prompt, answer], "string", spelled=True)
                         for prompt, answer, _ in strings.examples(20, "val", False)]
        items = judging.Items(parts["test"][:judged or 100], judging.string_items(judged or 20))
        return found, items
    path = Path(asked["train"])
    every = chat.read(path)
    splits = split_by_hash(every, [talk.messages[0] for talk in every], where=str(path),
                           item="prompt")
    if asked.get("test"):
        splits["train"] += splits["test"]
        splits["test"] = chat.read(Path(asked["test"]))
    if not all(splits.values()):
        raise ValueError(f"{path} has {len(every)} conversations, too few to hold some out; give "
                         "more of them.")
    return splits, judging.Items(own=splits["test"][:judged])


def new_run(args: Namespace) -> Path:
    """Finetune from the start; the run folder."""
    asked = settings.given(args)
    if "from" not in asked:
        raise ValueError("name the pretrained run: --from=RUN.")
    tuning, share = settings.tuning_of(args), settings.replay_of(args)
    found, items = conversations(asked)
    path = asked["from"]
    tokenizer = data.tokenizer_from_dict(runs.load_checkpoint(path)["tokenizer"])
    longest = max(len(chat.encode(talk, tokenizer, 10**9).inputs)
                  for part in found.values() for talk in part)
    fits = max(LEAST, min(longest, LONGEST))
    pretrained = load(path, args.block_size, fits, args.dropout, args.replay_data)
    rows, said = encode(found, pretrained)
    batch = args.batch_size or 8
    steps = STEPS
    if args.train:
        steps = min(STEPS, max(100, 6 * -(-len(rows["train"]) // max(batch, 1))))
    every = max(1, (args.steps or steps) // 10)  # seldom, for there is much to go through
    defaults = dict(steps=steps, batch_size=batch, eval_every=every)
    config = settings.config_of(pretrained.config, args, defaults, LR)
    machine = settings.machine_of(config)  # this and the next lines say what is not to be had
    replay = replay_of(pretrained, config, share)
    rows_of_kinds(config.batch_size - (replay.rows if replay else 0), bool(args.train))
    adapt(pretrained.build(), tuning)
    judge = judge_of(asked, items, machine)
    said += evaluate.notes_of_items(items, pretrained.tokenizer, config.block_size)
    for note in [*said, *([pretrained.note] if pretrained.note else [])]:
        print(f"note: {note}")
    name = f"{(path.parent if path.is_file() else path).resolve().name}-instruct"
    run = runs.make_run(args.out or Path("runs") / name, exactly=args.out is not None)
    files = {n: str(asked[n].expanduser().resolve()) for n in ("train", "test", "topics")
             if n in asked}
    about = resumed.about_of(pretrained, config, {
        "kind": "instruct", "from": str(path), **files, "judged": args.judged,
        "tuning": asdict(tuning), "replay": share, "replay_data": settings.source_of(args),
        "examples": fingerprint(found),
    }, seen.remember(texts_of(found, pretrained), pretrained.learned))
    carry_out(pretrained, rows, items, judge, config, run, about)
    return run


def judge_of(asked: dict, items: judging.Items, machine: Machine) -> judging.Judge | None:
    """Who judges tales; None if there are none. ValueError: a run that does not sort by topic."""
    topics = Path(asked["topics"]) if asked.get("topics") else None
    return judging.make_judge(topics, machine) if items.tales else None


def fingerprint(found: dict[str, list[Conversation]]) -> str:
    return runs.fingerprint({s: [talk.messages for talk in part] for s, part in found.items()})


def texts_of(
    found: dict[str, list[Conversation]], pretrained: Pretrained
) -> dict[str, list[seen.Text]]:
    """All that is answered in these splits, and the tales, as the run reads them."""
    texts = {s: [tuple(talk.messages[:n]) for talk in part
                 for n in range(1, len(talk.messages), 2)] for s, part in found.items()}
    for split, part in found.items():
        for _, tale, *asked in (talk.messages for talk in part if talk.kind == "tale"):
            texts[split] += [(tale,), *((curriculum.about(tale, q),) for q in asked[::2])]
    return {s: seen.readable(part, pretrained.tokenizer) for s, part in texts.items()}


def encode(
    found: dict[str, list[Conversation]], pretrained: Pretrained
) -> tuple[dict[str, list[list[Chunk]]], list[str]]:
    """The rows of train and val, each of one kind of conversations, and what the user should be
    told. ValueError: a tokenizer that has not seen these characters, or nothing that could be
    learned."""
    size, rows, notes, lowered = pretrained.config.block_size, {}, [], 0
    for split in ("train", "val"):
        chunks = [chat.encode(talk, pretrained.tokenizer, size) for talk in found[split]]
        characters = sum(len(text) for talk in found[split] for text in talk.messages)
        unseen = sum(chunk.unseen for chunk in chunks)
        lowered += sum(chunk.lowered > 0 for chunk in chunks)
        if unseen > UNSEEN * characters:
            raise ValueError(f"the tokenizer of {pretrained.path} has never seen {unseen:,} of the "
                             f"{characters:,} characters to learn from; begin with a run that was "
                             "pretrained on such texts.")
        learned = [chunk for chunk in chunks if max(chunk.targets, default=-1) >= 0]
        for number, what in (
            (sum(chunk.cut > 0 for chunk in chunks), f"are longer than the block of {size} tokens; "
             "their first message loses its beginning"),
            (sum(chunk.unseen > 0 for chunk in chunks), "have characters that the tokenizer of the "
             "run has never seen; these are left out"),
            (len(chunks) - len(learned), "have no answer within the block, and are left out"),
        ):
            if number:
                notes.append(f"{number:,} of the {len(chunks):,} conversations of {split} {what}")
        if not learned:
            raise ValueError(f"no conversation of {split} has an answer within {size} tokens; give "
                             "a larger --block-size.")
        kinds = dict.fromkeys(chunk.kind for chunk in learned)
        rows[split] = [row for kind in kinds
                       for row in chat.pack([c for c in learned if c.kind == kind], size)]
    return rows, notes + labelled.note_of_capitals(lowered, "conversations")


def resume_run(args: Namespace) -> Path:
    """Go on with a run that was stopped; its folder."""
    settings.check_resume(args)
    run, source, checkpoint = resumed.open_run(args.resume, args.steps, "instruct")
    saved = checkpoint["config"]["finetune"]
    found, items = conversations(saved)
    if fingerprint(found) != saved["examples"]:
        raise ValueError(f"the texts have changed since {run} began; restore them or start anew.")
    config = restore_config(checkpoint["config"])
    pretrained = resumed.pretrained_of(checkpoint, config)
    rows, _ = encode(found, pretrained)
    about = {name: checkpoint.get(name) for name in ("config", "tokenizer", "learned")}
    judge = judge_of(saved, items, settings.machine_of(config))
    read_judged(run / "before.json")  # or says that it is gone
    resumed.mend(run, source, checkpoint)
    carry_out(pretrained, rows, items, judge, config, run, about, checkpoint)
    return run


def carry_out(
    pretrained: Pretrained, rows: dict[str, list[list[Chunk]]], items: judging.Items,
    judge: judging.Judge | None, config: Config, run: Path, about: dict,
    resume: dict | None = None,
) -> None:
    """Judge, train, judge again, and write all into the run folder."""
    machine = settings.machine_of(config)
    saved = about["config"]["finetune"]
    tokenizer, size = pretrained.tokenizer, config.block_size
    counts = ", ".join(f"{sum(map(len, part)):,} {s} in {len(part):,}" for s, part in rows.items())
    print(f"conversations: {counts} rows of {size} tokens")
    print(f"{machine.describe()}; run folder {run}")
    asked = seen.readable(judging.texts_of(items), tokenizer)
    learned_from = seen.look(asked, about["learned"], pretrained.text)
    flattering = seen.notes(learned_from, len(asked), saved.get("test") or "test")
    for note in flattering:
        print(f"note: {note}")
    try:
        if not resume:
            model = place(pretrained.build(), config.model, machine)
            saved["pretraining_loss_before"] = pretraining_loss(model, pretrained, machine)
            before = judging.judge_chat(model, tokenizer, size, items, judge, machine, config.seed)
            write_judged(run / "before.json", *before)
        before = read_judged(run / "before.json")
        model, progress = fit(pretrained, rows, config, run, about, machine, resume)
        after = judging.judge_chat(model, tokenizer, size, items, judge, machine, config.seed)
        lm_loss = pretraining_loss(model, pretrained, machine)
    except (train.Stopped, train.Diverged, KeyboardInterrupt) as error:
        with suppress(OSError):
            runs.plot(run)
        raise resumed.stopped(error, run, "instruct") from None
    write_judged(run / "after.json", *after)
    result = {
        "kind": "instruct", "from": str(pretrained.path), "model": config.model,
        "data": config.data, "steps": progress.step, "best_step": progress.best_step,
        "tokens": progress.tokens, "seconds": round(progress.seconds, 1),
        "val_loss": progress.best_loss, "parameters": count(model)[1],
        "trained_parameters": saved["trained_parameters"],
        "pretraining_loss_before": saved["pretraining_loss_before"],
        "pretraining_loss_after": lm_loss, "test_texts_learned_from": learned_from,
        "before": before[0], "after": after[0],
        "seed": config.seed, "device": machine.device, "dtype": machine.dtype,
    }
    report = [*(f"note: {note}" for note in flattering), "before finetuning:",
              *judging.summary(before[0]), "", "after:", *judging.summary(after[0]), "",
              forgetting(result["pretraining_loss_before"], lm_loss)]
    runs.write_json(run / "result.json", result)
    runs.write(run / "report.txt", "\n".join(report) + "\n")
    runs.write(run / "samples.txt", side_by_side(before[1], after[1]))
    runs.plot(run)
    print("\n".join(["", *report]))
    print(f"\nIn {run}: result.json, report.txt, samples.txt, before.json and after.json, "
          f"loss.png. Talk to it: python sample.py --run={run} --chat")


def write_judged(path: Path, result: dict, every: list[dict]) -> None:
    runs.write_json(path, {"result": result, "answers": every})


def read_judged(path: Path) -> tuple[dict, list[dict]]:
    """What write_judged wrote. ValueError: it is gone or damaged."""
    try:
        judged = json.loads(path.read_text("utf-8"))
        return judged["result"], judged["answers"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is missing or damaged ({error}); start anew.") from None


def fit(
    pretrained: Pretrained, rows: dict[str, list[list[Chunk]]], config: Config, run: Path,
    about: dict, machine: Machine, resume: dict | None = None,
) -> tuple[LanguageModel, train.Progress]:
    """Train the model to its best, in eval and merged; best.pt is such a one too.

    Errors as of train.train.
    """
    saved = about["config"]["finetune"]
    tuning = Tuning(**resumed.as_tuning(saved["tuning"]))
    model = pretrained.build(pretrained=not resume, seed=config.seed)
    adapt(model, tuning)
    if resume:
        model.load_state_dict(resume["model"])
    place(model, config.model, machine)
    model.checkpointing = config.checkpointing
    trained, every = count(model)
    saved["trained_parameters"] = trained
    print(f"{config.model}: {trained:,} of {every:,} parameters learn, block size "
          f"{config.block_size}")
    runs.write_json(run / "config.json", about["config"] | {"environment": runs.environment()})
    replay = replay_of(pretrained, config, saved["replay"])
    replayed = replay.rows if replay else 0

    def encoded(talk: Callable[[np.random.Generator, float], Conversation]) -> chat.Make:
        return lambda generator, way: chat.encode(
            talk(generator, way), pretrained.tokenizer, config.block_size)

    rest, questions, tasks_of_words = rows_of_kinds(
        config.batch_size - replayed, bool(saved.get("train")))
    fresh = ()
    if questions:
        fresh = ((encoded(curriculum.question_talk), questions),
                 (encoded(curriculum.string_talk), tasks_of_words))
    batches = chat.ChatBatches(
        rows["train"], config.block_size, rest, fresh, replay, config.steps)
    at_once = max(1, labelled.TOKENS // config.block_size)
    kinds: dict[str, list] = {}
    for row in rows["val"]:
        kinds.setdefault(row[0].kind, []).append(row)
    groups = [[chat.arrays(several[i:i + at_once], config.block_size)
               for i in range(0, len(several), at_once)] for several in kinds.values()]

    def evaluated() -> float:
        """Each kind counts the same: there are a hundred tokens in a tale for one in an answer."""
        return sum(mean_loss(model, several, machine)[0] for several in groups) / len(groups)

    progress = train.train(
        model, batches, partial(chat.loss_of_answers, model), config, evaluate=evaluated,
        machine=machine, run=run, about=about, resume=resume,
        lr_shares=lr_shares(model, len(model.layers), tuning.lr_decay),
    )
    resumed.settle(model, run)
    return model.eval(), progress


def rows_of_kinds(rows: int, own: bool) -> tuple[int, int, int]:
    """How many rows of a batch are of what was read, of questions and of string tasks; own: all of
    what was read. ValueError: too few for each to have one."""
    if own:
        return rows, 0, 0
    if rows < 3:
        raise ValueError("a batch needs a row each of tales, of questions and of string tasks, and "
                         f"has {rows}; give more by --batch-size.")
    fresh = [max(1, int(rows * share)) for share in (curriculum.QUESTIONS, curriculum.STRINGS)]
    return rows - sum(fresh), *fresh


def replay_of(pretrained: Pretrained, config: Config, share: float) -> Replay | None:
    """Rows of the pretraining text, so large a share of a batch.

    ValueError: the text is not to be had, or the share is not one row.
    """
    if not share:
        return None
    rows = min(config.batch_size - 1, round(config.batch_size * share))
    if not rows:
        raise ValueError(f"--replay={share} of {config.batch_size} rows is none; give more rows by "
                         "--batch-size.")
    return Replay(pretrained, rows, config.block_size)


def side_by_side(before: list[dict], after: list[dict], each: int = 8) -> str:
    """Some answers of every kind, from all over, before and after, with what is right."""
    shown: dict[str, int] = {}
    lines = []
    every = Counter(entry["kind"] for entry in after)
    for old, new in zip(before, after, strict=True):
        kind = new["kind"]
        number, shown[kind] = shown.get(kind, 0), shown.get(kind, 0) + 1
        if number % -(-every[kind] // each):
            continue
        lines += [f"[{new['kind']}] {new['prompt']}", f"right: {new['expected']}"]
        for what, entry in (("before", old), ("after", new)):
            lines += [f"{what}, {how}: {entry[how]}" for how in judging.HOWS]
        lines += ["", "-" * 40, ""]
    return "\n".join(lines)


def main() -> int:
    args = make_parser().parse_args()
    return settings.carefully(lambda: (resume_run if args.resume else new_run)(args))


if __name__ == "__main__":
    cli.run(main)
