"""Score a finetuned run on any file: python -m finetune.evaluate --run=RUN --test=FILE

A run that sorts takes a CSV or JSONL with a text and a label, or a JSONL of tales. A run that
follows instructions takes a JSONL of tales, or of prompts and responses (or messages). The texts of
the file that the run has learned from are counted.
"""

import json
from itertools import count
from pathlib import Path

import data
import sample
from data import cli, runs
from data.cli import add
from nanogpt.machine import DEVICES, Machine, choose

from . import baselines, chat, labelled, measures, report, seen, sorting, tasks
from .chat import Conversation
from .judge import Items, judge_chat, make_judge, string_items, summary, texts_of
from .learn import TOGETHER
from .pretrained import check_format, place, pretraining_text


def make_parser() -> cli.Parser:
    parser = cli.Parser(prog="python -m finetune.evaluate", description=__doc__)
    group = parser.add_argument_group("what to score")
    add(group, "run", "a finetuned run, or a checkpoint in it", Path)
    text = "a CSV, whose first line names its columns, or a JSONL"
    add(group, "test", text, Path, metavar="FILE")
    text = "of a run that sorts: the column with the texts (default: that of the run, or text)"
    add(group, "text", text, str, metavar="COLUMN")
    text = "of a run that sorts: that with the labels (default: that of the run, or label)"
    add(group, "label", text, str, metavar="COLUMN")
    add(group, "strings", "else: also so many prompts of every string task (default 0)")
    text = "else: a run that sorts by topic, to judge tales (default: n-grams)"
    add(group, "topics", text, Path, metavar="RUN")
    add(group, "seed", "of what is drawn (default 0)")
    add(group, "device", f"{', '.join(DEVICES)} (default auto)", str, metavar="DEVICE")
    add(group, "out", "where to write the result (default: in the run folder)", Path)
    parser.set_defaults(seed=0, device="auto")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    if not args.run or not args.test:
        raise ValueError("name the run and the file: --run=RUN --test=FILE.")
    if (args.strings or 0) < 0 or args.seed < 0:
        raise ValueError("--strings and --seed must be at least 0.")
    loaded = runs.load_checkpoint(args.run)
    checkpoint = {name: loaded.get(name) for name in ("config", "tokenizer", "learned")}
    del loaded  # its weights are read where they are used
    saved = checkpoint["config"].get("finetune")
    sorts = bool(saved) and saved["kind"] == "classify"
    for name in ("strings", "topics") if sorts else ("text", "label"):
        if getattr(args, name) is not None:
            kind = "does not sort texts" if sorts else "sorts texts"
            raise ValueError(f"{cli.flag(name)} is for a run that {kind}, other than {args.run}.")
    folder = args.run if args.run.is_dir() else args.run.parent
    path = args.out or usual_out(folder, args.test)
    check_out(path)
    machine = choose(args.device)
    if sorts:
        result, lines, texts = score_labels(args, machine)
    else:
        result, lines, texts = score_chat(args, machine)
    learned_from, notes = flattery(checkpoint, texts, args.test)
    result["learned_from"], lines = learned_from, notes + lines
    print("\n".join(lines))
    runs.write_json(path, {"run": str(args.run), "test": str(args.test.resolve()), **result})
    print(f"In {path}: all of it.")


def usual_out(folder: Path, test: Path) -> Path:
    """A file for the scores of a test file, which those of another of its name do not have."""
    for number in count(1):
        path = folder / f"evaluation-{test.stem}{f'-{number}' * (number > 1)}.json"
        if not path.exists() or is_scores(path) and same(test, path):
            return path


def same(test: Path, path: Path) -> bool:
    """Whether these are scores of the test file."""
    return Path(json.loads(path.read_text("utf-8"))["test"]).resolve() == test.resolve()


def check_out(path: Path) -> None:
    """ValueError: what is at the path, or would be missing there."""
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} for --out.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; --out is a file, such as {path / 'scores.json'}.")
    if path.exists() and not is_scores(path):
        raise ValueError(f"--out={path} exists and is no result of this command, so it is not "
                         "overwritten; name another file.")


def is_scores(path: Path) -> bool:
    """Whether a file is what this command wrote."""
    try:
        return {"run", "test", "learned_from"} <= json.loads(path.read_text("utf-8")).keys()
    except (ValueError, OSError, AttributeError):
        return False


def flattery(checkpoint: dict, texts: list[seen.Text], path: Path) -> tuple[dict, list[str]]:
    """How many of the texts of a file the run has learned from, and what the user should be told.
    """
    saved, finetuned = checkpoint["config"], checkpoint["config"].get("finetune")
    tokenizer = data.tokenizer_from_dict(checkpoint["tokenizer"])
    try:
        text, note = pretraining_text(saved, finetuned and finetuned.get("replay_data"))
    except (ValueError, OSError):
        text, note = None, ""
    learned = checkpoint["learned"] if finetuned else {}
    found = seen.look(seen.readable(texts, tokenizer), learned, text)
    notes = seen.notes(found, len(texts), str(path))
    if text and note:
        notes.append(note)
    if found["pretraining"] is None:
        why = "is too large to be looked through" if text else "is not here"
        notes.append(f"the pretraining text {why}, so whether these texts stand in it is not known")
    if found["train"] is None:
        notes.append("the run does not say what it was finetuned on, so whether it was on these "
                     "texts is not known")
    return found, [f"note: {note}" for note in notes]


def score_labels(args, machine: Machine) -> tuple[dict, list[str], list[seen.Text]]:
    """A run that sorts, on texts with labels: the measures, what to say, and the texts.

    ValueError: labels that it does not know.
    """
    classifier, tokenizer, saved = sorting.load_classifier(args.run)
    place(classifier.model, saved["model"], machine)
    classifier.to(machine.device)
    finetune = saved["finetune"]
    rows = tasks.read_rows(args.test)[0][1]
    tale = finetune["task"] in ("topic", "lesson") and finetune["task"] in rows
    text = args.text or (finetune["text"] if finetune["text"] in rows else None) or "text"
    label = args.label or (finetune["label"] if finetune["label"] in rows else None)
    label = label or (finetune["task"] if tale else "label")
    examples = tasks.read_examples(args.test, text, label, parted=finetune["task"] == "origin")
    labels = finetune["labels"]
    tasks.check_labels(labels, examples, str(args.test))
    encoded = labelled.encode(
        examples, labels, tokenizer, saved["block_size"], saved["model"])
    found = labelled.probabilities(classifier, encoded.sequences, machine)
    rows = {"finetuned": measures.judge(found.argmax(1), encoded.labels, len(labels))}
    if ngrams := sorting.load_ngrams(args.run, saved):
        together = ngrams.probabilities(found, [example.text for example in examples]).argmax(1)
        rows[TOGETHER] = measures.judge(together, encoded.labels, len(labels))
    common = baselines.majority(encoded.labels, len(examples))
    rows["commonest label here"] = measures.judge(common, encoded.labels, len(labels))
    true = measures.truth(found.argmax(1), encoded.labels)
    matrix = measures.confusion(true, found.argmax(1), len(labels))
    task = tasks.Task(finetune["name"], labels, {"test": examples})
    notes = labelled.notes_of(encoded, args.test.name, saved["block_size"])
    notes += labelled.note_of_capitals(encoded.lowered, "texts")
    result = {"kind": "classify", "texts": len(examples), "cut": encoded.cut,
              "unseen": encoded.unseen, **rows["finetuned"], "labels": labels,
              "with_ngrams": rows.get(TOGETHER),
              "confusion": matrix.tolist()}
    lines = [*(f"note: {note}" for note in notes), report.table(rows), "",
             report.confused(matrix, task)]
    return result, lines, [(example.text,) for example in examples]


def score_chat(args, machine: Machine) -> tuple[dict, list[str], list[seen.Text]]:
    """A run that follows instructions (or one that never learned to), on tales or conversations:
    the measures, what to say, and the texts."""
    checkpoint = runs.load_checkpoint(args.run)
    model, tokenizer = sample.restore(checkpoint)
    if checkpoint["config"].get("finetune"):
        check_format(checkpoint["config"])
    place(model, checkpoint["config"]["model"], machine)
    found = read_items(args.test)
    if args.topics and not found.tales:
        raise ValueError(f"--topics is to judge tales, and {args.test} has none.")
    if args.strings:
        found.strings = string_items(args.strings)
    judge = make_judge(args.topics, machine) if found.tales else None
    size = checkpoint["config"]["block_size"]
    notes = notes_of_items(found, tokenizer, size)
    result, every = judge_chat(model, tokenizer, size, found, judge, machine, args.seed)
    lines = [f"note: {note}" for note in notes] + summary(result)
    return {"kind": "instruct", **result, "answers": every}, lines, texts_of(found)


def read_items(path: Path) -> Items:
    """A JSONL of tales, or of conversations. ValueError: a line that is none, with its number."""
    rows = tasks.read_rows(path)
    if not {"prompt", "text"} <= rows[0][1].keys() or "response" in rows[0][1]:
        return Items(own=chat.read(path))
    for where, row in rows:
        texts = [row.get("prompt"), row.get("text")]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(f'{where}: expected a tale with "prompt" and "text", as in the first '
                             "line.")
        questions = row.get("questions", [])
        if not isinstance(questions, list) or not all(
            isinstance(q, dict) and isinstance(q.get("question"), str)
            and isinstance(q.get("answer"), str) for q in questions
        ):
            raise ValueError(f'{where}: expected "questions" as a list of '
                             '{"question": text, "answer": text}.')
    return Items(tales=[row for _, row in rows])


def notes_of_items(found: Items, tokenizer: data.Tokenizer, size: int) -> list[str]:
    """What the user should be told of the items: what is cut, what is left out."""
    talks = [Conversation([tale["prompt"], tale["text"]]) for tale in found.tales] + found.own
    chunks = [chat.encode(talk, tokenizer, size) for talk in talks]
    notes = []
    if n := sum(chunk.cut > 0 for chunk in chunks):
        notes.append(f"{n:,} of the {len(chunks):,} conversations to judge by are longer than the "
                     f"block of {size} tokens, and cut")
    if n := sum(chunk.unseen > 0 for chunk in chunks):
        notes.append(f"{n:,} of the {len(chunks):,} conversations to judge by have characters that "
                     "the run has never seen; these are left out")
    lowered = sum(chunk.lowered > 0 for chunk in chunks)
    return notes + labelled.note_of_capitals(lowered, "conversations to judge by")


if __name__ == "__main__":
    cli.run(main)
