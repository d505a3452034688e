"""Score a finetuned run on any file: python -m finetune.evaluate --run=RUN --test=FILE

A run that sorts takes a CSV or JSONL with a text and a label, or a JSONL of tales. A run that
follows instructions takes a JSONL of tales, or of prompts and responses (or messages). What is
reported does not flatter: an answer must be the right one, a tale must end by itself, what it
copies from the tales that were trained on is counted, and so are the texts of the file that the run
has learned from.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import data
import sample
from data import ASSISTANT, cli, runs
from data.cli import add
from makemore.model import IGNORED, LanguageModel
from nanogpt.evaluate import to_device
from nanogpt.machine import DEVICES, Machine, choose

from . import baselines, chat, classify, labelled, measures, report, seen, strings, tasks
from .chat import Conversation, question
from .curriculum import about
from .pretrained import check_format, place, pretraining_text

SAMPLED = 0.8  # the temperature of what is drawn, beside the likeliest
ANSWER = 0.25  # of a block: what an answer to a question, or a word, may take at most
HOWS = {"greedy": 0.0, "sampled": SAMPLED}


@dataclass
class Items:
    """What a run that follows instructions is judged on; any may be empty.

    tales: as in data.tales(). strings: phrasing kind ("seen", "unseen") to prompts, answers and
    tasks. own: the user's conversations, of which the last answer is judged.
    """

    tales: list[dict] = field(default_factory=list)
    strings: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)
    own: list[Conversation] = field(default_factory=list)


def texts_of(found: Items) -> list[seen.Text]:
    """The tales, and what is asked in the conversations."""
    tales = [(tale["text"],) for tale in found.tales]
    return tales + [tuple(talk.messages[:-1]) for talk in found.own]


def string_items(number: int, split: str = "test") -> dict[str, list[tuple[str, str, str]]]:
    """So many prompts of every string task, in phrasings that are trained on and in others."""
    return {kind: strings.examples(number, split, unseen)
            for kind, unseen in (("seen", False), ("unseen", True))}


@dataclass
class Judge:
    """Who assigns topics, trained apart, the 8-grams of the tales that were trained on, and what
    answers questions by the words that they share with the tale.

    accuracy: of the assigned topics on the held-out tales themselves.
    """

    topic: Callable[[str], str]
    name: str
    accuracy: float
    grams: set[tuple[str, ...]]
    overlap: baselines.Overlap


def make_judge(run: Path | None, machine: Machine) -> Judge:
    """run: one that sorts by topic, or None: an n-gram regression learns it here.

    ValueError: a run that does not sort by topic.
    """
    if run:
        classifier, tokenizer, saved = classify.load_classifier(run)
        if saved["finetune"].get("task") != "topic":
            raise ValueError(f"{run} sorts by {saved['finetune']['name']}, not by the topics of "
                             "the tales; make a run that does: python -m finetune.classify "
                             "--task=topic")
    task = tasks.load("topic")
    grams = {gram for e in task.splits["train"] for gram in measures.word_grams(e.text)}
    if run:
        place(classifier.model, saved["model"], machine)
        classifier.to(machine.device)

        def topic(text: str) -> str:
            try:
                return classify.assign(classifier, tokenizer, saved, text, machine)[0][0][0]
            except ValueError:  # an empty text has no topic
                return ""
    else:
        number = {label: i for i, label in enumerate(task.labels)}
        texts = {s: [(e.text, (number[e.labels[0]],)) for e in part]
                 for s, part in task.splits.items()}
        regression, _ = baselines.fit(texts["train"], texts["val"], len(number), kinds=("words",))

        def topic(text: str) -> str:
            return task.labels[int(regression.probabilities([text]).argmax())] if text else ""

    tested = tqdm(task.splits["test"], "topics of true tales", leave=False, delay=2, disable=None)
    right = [topic(e.text) in e.labels for e in tested]
    overlap = baselines.Overlap([e.text for e in task.splits["train"]])
    return Judge(topic, str(run or "n-gram regression"), float(np.mean(right)), grams, overlap)


def judge_chat(
    model: LanguageModel, tokenizer: data.Tokenizer, block_size: int, found: Items, judge: Judge,
    machine: Machine, seed: int = 0,
) -> tuple[dict, list[dict]]:
    """All measures on the items, and every answer: {"kind", "prompt", "expected", and by each of
    HOWS what came}."""
    was_training = model.training
    model.eval()
    result: dict = {"temperature_of_sampled": SAMPLED}
    every: list[dict] = []
    short = max(16, int(ANSWER * block_size))
    if found.tales:
        talks = [Conversation([tale["prompt"], tale["text"]]) for tale in found.tales]
        result["tale_loss"] = answer_loss(model, tokenizer, talks, block_size, machine)
        result["topics_of_true_tales"] = judge.accuracy
        result["topics_by"] = judge.name
        result["tales"] = {}
    asked = [(tale, n) for tale in found.tales for n in range(len(tale.get("questions", ())))]
    if found.own:
        result["own_loss"] = answer_loss(model, tokenizer, found.own, block_size, machine)
    shortened: dict[str, int] = {}

    def ask(messages: list[list[str]], length: int, how: str, what: str):
        prompts = [question(several, tokenizer, block_size - 1) for several in messages]
        shortened[what] = sum(excess > 0 for _, excess in prompts)
        return chat.answers(model, tokenizer, [ids for ids, _ in prompts], length, HOWS[how], seed,
                            f"{what}, {how}")

    by_words = [(judge.overlap(tale["text"], tale["questions"][n]["question"]), True)
                for tale, n in asked]
    for how in HOWS:
        if found.tales:
            told = ask([[tale["prompt"]] for tale in found.tales], block_size, how, "tales")
            result["tales"][how] = judge_tales(found.tales, told, judge)
            log(every, how, "tale", [tale["prompt"] for tale in found.tales],
                [tale["text"] for tale in found.tales], told)
        if asked:
            right = [tale["questions"][n]["answer"] for tale, n in asked]
            said = ask([[about(tale["text"], tale["questions"][n]["question"])]
                        for tale, n in asked], short, how, "questions")
            result.setdefault("questions", {})[how] = judge_answers(right, said) | {
                "word_overlap": judge_answers(right, by_words),
                "ahead": ahead(right, said, by_words)}
            log(every, how, "question", [t["questions"][n]["question"] for t, n in asked], right,
                said)
        for kind, several in found.strings.items():
            said = ask([[prompt] for prompt, _, _ in several], short, how,
                       f"string tasks, {kind}")
            scores = result.setdefault("strings", {}).setdefault(how, {})
            scores[kind] = judge_strings(several, said)
            log(every, how, f"string, phrasing {kind}", [prompt for prompt, _, _ in several],
                [answer for _, answer, _ in several], said)
        if found.own:
            said = ask([talk.messages[:-1] for talk in found.own], block_size, how,
                       "own prompts")
            right = [talk.messages[-1] for talk in found.own]
            result.setdefault("own", {})[how] = judge_answers(right, said)
            log(every, how, "own", [talk.messages[-2] for talk in found.own], right, said)
    model.train(was_training)
    return result | {"prompts_cut": {what: n for what, n in shortened.items() if n}}, every


def log(every: list[dict], how: str, kind: str, prompts, expected, said) -> None:
    """Add answers to the record of all: the first of HOWS makes the entries of a kind."""
    if how == next(iter(HOWS)):
        every += [{"kind": kind, "prompt": prompt, "expected": right}
                  for prompt, right in zip(prompts, expected)]
    for entry, (text, _) in zip([e for e in every if e["kind"] == kind], said, strict=True):
        entry[how] = text


def judge_tales(tales: list[dict], told: list[tuple[str, bool]], judge: Judge) -> dict:
    """ended: the share that ended by themselves. copied: of their 8-grams of words, how many stand
    in the tales that were trained on. topic: the share that is assigned the topic asked for."""
    texts = [text for text, _ in told]
    scores = {
        "ended": [ended for _, ended in told],
        "copied": [measures.copied(text, judge.grams) for text in texts],
        "characters": [len(text) for text in texts],
    }
    if all("topic" in tale for tale in tales):
        told = tqdm(texts, "topics", leave=False, delay=2, disable=None)
        scores["topic"] = [judge.topic(t) == tale["topic"] for t, tale in zip(told, tales)]
    return {"n": len(told)} | {name: mean(values) for name, values in scores.items()}


def judge_answers(expected: list[str], said: list[tuple[str, bool]]) -> dict:
    """exact: the share that is right, but for case, signs and articles. word_f1, ended."""
    both = [(text, right) for (text, _), right in zip(said, expected)]
    return {
        "n": len(both),
        "exact": mean([measures.exact(*pair) for pair in both]),
        "word_f1": mean([measures.word_f1(*pair) for pair in both]),
        "ended": mean([ended for _, ended in said]),
    }


def ahead(
    expected: list[str], said: list[tuple[str, bool]], others: list[tuple[str, bool]]
) -> dict:
    """By how much the share of exact answers exceeds that of others, with a paired interval."""
    right, theirs = (np.array([measures.exact(text, true) for (text, _), true in
                               zip(answers, expected)]) for answers in (said, others))
    mean, interval = measures.paired(right, theirs)
    return {"mean": mean, "interval": interval}


def judge_strings(several: list[tuple[str, str, str]], said: list[tuple[str, bool]]) -> dict:
    """The share that is right to the letter, of all and by task."""
    right = [text == answer for (_, answer, _), (text, _) in zip(several, said)]
    names = list(dict.fromkeys(name for _, _, name in several))
    by_task = {name: float(np.mean([r for r, (_, _, other) in zip(right, several)
                                    if other == name])) for name in names}
    return {"n": len(right), "exact": mean(right), "by_task": by_task}


def mean(values: list) -> dict:
    """The mean of values with its 95% interval."""
    values = np.array(values, dtype=float)
    return {"mean": float(values.mean()), "interval": measures.mean_interval(values)}


@torch.inference_mode()
def answer_loss(
    model: LanguageModel, tokenizer: data.Tokenizer, talks: list[Conversation], block_size: int,
    machine: Machine,
) -> dict:
    """The loss of the true answers: nats per token, and bits per character, which compares across
    tokenizers."""
    nats = tokens = characters = 0.0
    chunks = [chat.encode(talk, tokenizer, block_size) for talk in talks]
    groups = labelled.by_length([len(chunk.inputs) for chunk in chunks])
    for group in tqdm(groups, "loss of true answers", leave=False, delay=2, disable=None):
        longest = max(len(chunks[i].inputs) for i in group)
        batch = chat.arrays([[chunks[i]] for i in group], longest)
        counted = int((batch[1] != IGNORED).sum())
        with machine.autocast():
            nats += counted * float(model.loss(*to_device(batch, machine.device)))
        tokens += counted
    for talk, chunk in zip(talks, chunks):
        learned = [token for token in chunk.targets if token != IGNORED]
        begun = min(len(talk.messages) // 2, chunk.inputs.count(ASSISTANT))
        added = begun * len(chat.prefix(tokenizer))
        characters += len(tokenizer.decode(learned)) - added + len(talk.messages) // 2  # and ends
    return {
        "nats_per_token": nats / tokens, "bits_per_char": nats / np.log(2) / characters,
        "cut": sum(chunk.cut > 0 for chunk in chunks),
    }


def summary(result: dict) -> list[str]:
    """The measures of `judge_chat` in a few lines."""
    def said(value: dict, form: str = ".3f") -> str:
        low, high = value["interval"]
        return f"{value['mean']:{form}} ({low:{form}} to {high:{form}})"

    lines = [f"{what}: {n} prompts are longer than the block, and lose their beginning"
             for what, n in result["prompts_cut"].items()]
    for name, what in (("tale_loss", "true tales"), ("own_loss", "true responses")):
        if name in result:
            loss = result[name]
            lines.append(f"loss of the {what}: {loss['nats_per_token']:.4f} nats per token, "
                         f"{loss['bits_per_char']:.4f} bits per character")
    for how in HOWS:
        if "tales" in result:
            row = result["tales"][how]
            lines.append(f"{how}: {row['n']} tales, of {row['characters']['mean']:.0f} characters; "
                         f"ended by itself {said(row['ended'])}, 8-grams copied "
                         f"{said(row['copied'])}")
            if "topic" in row:
                lines.append(f"{how}: the topic asked for {said(row['topic'])}; of the true tales "
                             f"{result['topics_of_true_tales']:.3f} (by {result['topics_by']})")
        for name in ("questions", "own"):
            if name in result:
                row = result[name][how]
                lines.append(f"{how}: {row['n']} {name}: exact {said(row['exact'])}, word F1 "
                             f"{said(row['word_f1'])}")
            if "ahead" in result.get(name, {}).get(how, {}):
                lines.append(f"{how}: questions, by shared words alone: exact "
                             f"{said(row['word_overlap']['exact'])}; ahead of that by "
                             f"{said(row['ahead'], '+.3f')}")
        for kind, row in result.get("strings", {}).get(how, {}).items():
            each = ", ".join(f"{task} {share:.2f}" for task, share in row["by_task"].items())
            lines.append(f"{how}: {row['n']} string tasks, phrasings {kind}: exact "
                         f"{said(row['exact'])}; {each}")
    return lines


# A file


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
    path = args.out or folder / f"evaluation-{args.test.stem}.json"
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} for --out.")
    machine = choose(args.device)
    if sorts:
        result, lines, texts = score_labels(args, machine)
    else:
        result, lines, texts = score_chat(args, machine)
    learned_from, notes = flattery(checkpoint, texts, args.test)
    result["learned_from"], lines = learned_from, notes + lines
    print("\n".join(lines))
    runs.write_json(path, {"run": str(args.run), "test": str(args.test), **result})
    print(f"In {path}: all of it.")


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
    classifier, tokenizer, saved = classify.load_classifier(args.run)
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
    common = baselines.majority(encoded.labels, len(examples))
    rows["commonest label here"] = measures.judge(common, encoded.labels, len(labels))
    true = measures.truth(found.argmax(1), encoded.labels)
    matrix = measures.confusion(true, found.argmax(1), len(labels))
    task = tasks.Task(finetune["name"], labels, {"test": examples})
    notes = labelled.notes_of(encoded, args.test.name, saved["block_size"])
    notes += labelled.note_of_capitals(encoded.lowered, "texts")
    result = {"kind": "classify", "texts": len(examples), "cut": encoded.cut,
              "unseen": encoded.unseen, **rows["finetuned"], "labels": labels,
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
