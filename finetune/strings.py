"""Small tasks over words and names, without end: made by a generator with a seed.

Each task is asked for in several phrasings. Some are held out, and so are some of the words: what
is right there was not learned by heart.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

import data
from data.sets import TRAIN_VAL_TEST, fraction

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORD = re.compile(r"\b[a-z]{3,8}\b")


@dataclass(frozen=True)
class StringTask:
    """answer(words, letter): what is right. words: how many it takes. seen: phrasings that are
    trained on; unseen: those that never are. In them {0} and {1} are words, {c} is a letter."""

    words: int
    answer: Callable[[list[str], str], str]
    seen: tuple[str, ...]
    unseen: tuple[str, ...]


TASKS = {
    "backwards": StringTask(
        1, lambda words, c: words[0][::-1],
        ("Spell {0} backwards.", "Write {0} backwards.", "What is {0} backwards?",
         "Turn the word {0} around.", "Reverse the letters of {0}.", "Please reverse {0}.",
         "{0} backwards, please.", "How is {0} spelled backwards?", "Say {0} from the end to the "
         "beginning.", "Can you write {0} the other way round?", "Write the letters of {0} from "
         "last to first.", "Read the word {0} from its back."),
        ("How do you spell {0} from back to front?", "Give me {0} in reverse."),
    ),
    "count": StringTask(
        1, lambda words, c: NUMBERS[words[0].lower().count(c)],
        ("How many times is {c} in {0}?", "Count the letter {c} in {0}.",
         "How often does {c} stand in {0}?", "How many letters {c} has {0}?",
         "Tell me how many {c} are in the word {0}.", "How often do you find {c} in {0}?",
         "Please count every {c} in {0}.", "In {0}, how many letters are {c}?",
         "The word {0}: how often is there a {c}?", "What is the number of times {c} is in {0}?",
         "Count how often {0} has the letter {c}."),
        ("In the word {0}, how many times do you see {c}?", "Number of {c} in {0}?"),
    ),
    "first": StringTask(
        1, lambda words, c: words[0][0],
        ("What is the first letter of {0}?", "Give the first letter of {0}.",
         "Which letter does {0} begin with?", "Name the first letter in the word {0}.",
         "The first letter of {0}, please.", "Tell me the letter that {0} begins with.",
         "What does {0} start with?", "Which letter comes first in {0}?",
         "With what letter does the word {0} begin?", "{0} begins with which letter?",
         "Please give me the letter at the start of {0}."),
        ("What letter does the word {0} start with?", "{0}: first letter?"),
    ),
    "last": StringTask(
        1, lambda words, c: words[0][-1],
        ("What is the last letter of {0}?", "Give the last letter of {0}.",
         "Which letter does {0} end with?", "Name the last letter in the word {0}.",
         "The last letter of {0}, please.", "Tell me the letter that {0} ends with.",
         "What does {0} end with?", "Which letter comes last in {0}?",
         "With what letter does the word {0} end?", "{0} ends with which letter?",
         "Please give me the letter at the very end of {0}."),
        ("What letter is at the end of the word {0}?", "{0}: last letter?"),
    ),
    "upper": StringTask(
        1, lambda words, c: words[0].upper(),
        ("Write {0} in capital letters.", "Put {0} in upper case.", "Make {0} all capitals.",
         "Say {0} in big letters.", "{0} in capitals, please.", "Please make {0} upper case.",
         "How is {0} written in capitals?", "Change {0} to capital letters.",
         "Show me the word {0} in upper case.", "Can you write {0} in large letters?",
         "Print {0} with capitals only."),
        ("Turn {0} into capitals.", "What does {0} look like in upper case?"),
    ),
    "sort": StringTask(
        2, lambda words, c: " ".join(sorted(words, key=str.lower)),
        ("Sort {0} and {1}.", "Put {0} and {1} in order.", "Order the words {0} and {1}.",
         "Sort these words: {0}, {1}.", "Which comes first, {0} or {1}? Write both in order.",
         "Sort by the alphabet: {0} {1}", "Please put {0} and {1} in alphabetical order.",
         "In the order of the alphabet: {0}, {1}.", "Write {0} and {1} as the alphabet has them.",
         "{0} and {1}, sorted.", "Arrange {0} and {1} by their letters."),
        ("Bring {0} and {1} into the order of the alphabet.",
         "Alphabetical order, please: {0} {1}"),
    ),
    "repeat": StringTask(
        1, lambda words, c: " ".join(words * 2),
        ("Say {0} twice.", "Repeat {0} two times.", "Write {0} two times.",
         "Write the word {0} twice.", "{0} two times, please.", "Please repeat the word {0}.",
         "Can you say {0} two times?", "Give me {0} and then {0} again.", "Double the word {0}.",
         "Show {0} twice in a row.", "Let me hear {0} two times."),
        ("I want to see {0} twice.", "Two times {0}, please."),
    ),
    "join": StringTask(
        2, lambda words, c: "-".join(words),
        ("Join {0} and {1} with a dash.", "Put a dash between {0} and {1}.",
         "Make one word of {0} and {1}, with a dash.", "Link {0} and {1} by a dash.",
         "{0} and {1} with a dash between, please.", "Please join the words {0} and {1} by a dash.",
         "Write {0}, a dash and {1} as one word.", "Tie {0} to {1} with a dash.",
         "Can you put {0} and {1} together with a dash?", "A dash between {0} and {1}.",
         "Hang {1} on {0} by a dash."),
        ("Connect {0} to {1} with a dash.", "Glue {0} and {1} together, a dash between them."),
    ),
}


@lru_cache(maxsize=1)  # memory only: the result follows from the data that ships
def words() -> dict[str, list[str]]:
    """Words of the tales and names, in splits by their hash: no word is in two.

    A name begins with a capital, and is where the data splits put it; a word must stand in the
    tales that are trained on, wherever its hash puts it.
    """
    names = {name.capitalize(): name for name, _ in data.names_with_origins() if len(name) < 9}
    seen = {word for tale in data.load("tales").splits["train"] for word in WORD.findall(tale)}
    splits: dict[str, list[str]] = {split: [] for split in TRAIN_VAL_TEST}
    for word, key in sorted([*names.items(), *((word, word) for word in seen)]):
        split = next(s for s, bound in TRAIN_VAL_TEST.items() if fraction(key) < bound)
        splits[split].append(word)
    return splits


def make(
    generator: np.random.Generator, split: str = "train", unseen: bool = False,
    name: str | None = None,
) -> tuple[str, str, str]:
    """A prompt, its answer and the name of its task.

    split: whose words. unseen: in a phrasing that is never trained on. name: of the task, or any.
    """
    if name is None:
        name = list(TASKS)[generator.integers(len(TASKS))]
    task = TASKS[name]
    known = words()[split]
    chosen = [known[i] for i in generator.integers(len(known), size=task.words)]
    phrasings = task.unseen if unseen else task.seen
    phrasing = phrasings[generator.integers(len(phrasings))]
    letters = chosen[0].lower() if generator.random() < 0.75 else "abcdefghijklmnopqrstuvwxyz"
    letter = letters[generator.integers(len(letters))]
    return phrasing.format(*chosen, c=letter), task.answer(chosen, letter), name


def examples(number: int, split: str, unseen: bool, seed: int = 0) -> list[tuple[str, str, str]]:
    """So many different prompts of every task, in order, as `make` gives them."""
    found = []
    for place, name in enumerate(TASKS):
        generator = np.random.Generator(np.random.PCG64([seed, place, unseen]))
        made: dict[str, tuple[str, str, str]] = {}
        while len(made) < number:
            one = make(generator, split, unseen, name)
            made[one[0]] = one
        found += made.values()
    return found
