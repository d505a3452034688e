"""What a run learns that is to follow instructions, if the user brings nothing of his own.

A batch has rows of three kinds: tales that are told as asked for, tales that are given and asked
about, and string tasks. There are few tales, and a question about one is a few tokens to learn for
some 400 to read: so most of what is asked is made afresh for every batch, about a whole tale or a
few sentences of one, with other names in it than the tale has (questions.py), or out of words
(strings.py).

What is easy comes first (Bengio et al. 2009). Who cannot copy cannot take an answer from a text,
and the heads that copy (Olsson et al. 2022) form where every token tells whether one did: so at
first a passage is only to be said again, then to be gone on with from some words of it, and then
asked about. Passages grow to whole tales.
"""

import re

import numpy as np

from . import questions, strings, tasks
from .chat import Conversation

QUESTIONS, STRINGS = 0.5, 0.375  # of the rows of a batch; the rest are tales
TURNS = (1, 1, 1, 2, 3)  # of a conversation of string tasks: one of these
MOST = 8  # questions about a text
# at the beginning of training, and at its end
AGAIN = (0.8, 0.0)  # share of passages that are only to be said again, word for word
RECALLED = (1.0, 0.0)  # of other texts: how often is asked what stands after some words of it
WHOLE = (0.0, 0.8)  # share of whole tales among these
SENTENCES = (2, 6)  # of a passage, on average: to look is learned where there is little to see

SAY_AGAIN = ("Say it again.", "Repeat this.", "What does it say?", "Read it to me.")
ASKED = 0.9  # how often the tale's own questions are asked again, where the answer is in sight
EXCHANGED = 0.7  # how often the names are others


def told(tale: dict) -> Conversation:
    """A tale as it is asked for, and then asked about."""
    said = [text for q in tale["questions"] for text in (q["question"], q["answer"])]
    return Conversation([tale["prompt"], tale["text"], *said], "tale")


def asked(tale: dict) -> Conversation:
    """A tale as the user gives it and asks about it."""
    said = [text for q in tale["questions"] for text in (q["question"], q["answer"])]
    return Conversation([about(tale["text"], said[0]), *said[1:]], "question")


def about(text: str, question: str) -> str:
    """What the user says to ask about a text."""
    return f"{text}\n\n{question}"


def between(ends: tuple[float, float], way: float) -> float:
    """From the first to the second, as far as training has come on its way, 0 to 1."""
    return ends[0] + way * (ends[1] - ends[0])


def question_talk(generator: np.random.Generator, way: float) -> Conversation:
    """Questions about a tale that is trained on, or about a passage of it, longer on the way."""
    if generator.random() < between(AGAIN, way):
        return again(generator)
    tales = tasks.tales()["train"]
    while True:
        tale = tales[generator.integers(len(tales))]
        whole = generator.random() < between(WHOLE, way)
        length = between(SENTENCES, way)
        text = tale["text"] if whole else passage(tale["text"], generator, length)
        pairs = [(q["question"], q["answer"]) for q in tale["questions"]
                 if q["answer"] in text and generator.random() < ASKED]
        most = generator.integers(2, MOST + 1)
        if generator.random() < between(RECALLED, way):
            pairs += questions.recalled(text, generator, most - len(pairs))
        pairs += questions.questions(text, generator, most - len(pairs))
        if pairs:
            break
    said = [part for i in generator.permutation(len(pairs)) for part in pairs[i]]
    if generator.random() < EXCHANGED:
        text, *said = questions.exchanged([text, *said], generator)
    return Conversation([about(text, said[0]), *said[1:]], "question")


def again(generator: np.random.Generator) -> Conversation:
    """A passage that is to be said again."""
    tales = tasks.tales()["train"]
    text = passage(tales[generator.integers(len(tales))]["text"], generator, SENTENCES[0])
    if generator.random() < EXCHANGED:
        text, = questions.exchanged([text], generator)
    asked = SAY_AGAIN[generator.integers(len(SAY_AGAIN))]
    return Conversation([about(text, asked), text], "question")


def passage(text: str, generator: np.random.Generator, length: float) -> str:
    """A few sentences in a row; so many on average, if the text has them."""
    begins = [0, *(blank.end() for blank in re.finditer(r"(?<=[.!?\"])\s+", text)), len(text)]
    number = min(generator.geometric(1 / length), len(begins) - 1)
    first = generator.integers(len(begins) - number)
    return text[begins[first]:begins[first + number]].strip()


def string_talk(generator: np.random.Generator, way: float) -> Conversation:
    """String tasks over words that are trained on, the same all the way."""
    number = TURNS[generator.integers(len(TURNS))]
    return Conversation([text for _ in range(number) for text in strings.make(generator)[:2]],
                        "string", spelled=True)
