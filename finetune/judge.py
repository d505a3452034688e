"""How well a run follows instructions: its tales, its answers to questions, its string tasks.

What is reported does not flatter: an answer must be the right one, a tale must end by itself, and
what it copies from the tales that were trained on is counted.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import data
from data import ASSISTANT
from makemore.model import IGNORED, LanguageModel
from nanogpt.evaluate import to_device
from nanogpt.machine import Machine

from . import baselines, chat, labelled, measures, seen, sorting, strings, tasks
from .chat import Conversation, question
from .curriculum import about
from .pretrained import place

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
        classifier, tokenizer, saved = sorting.load_classifier(run)
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
                return sorting.assign(classifier, tokenizer, saved, text, machine)[0][0][0]
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
