"""Questions made from the tales themselves, without end, by rules.

780 tales with two questions each are few to learn from where to look. So a clause of a tale is
turned into a question about one of its phrases (Heilman & Smith 2010; Lewis et al. 2019 learned to
answer from such questions alone), and names are exchanged for others, so that an answer must be
read and cannot be remembered. Grammar is only roughly right: what matters is that the words of the
question lead to the place where the answer stands.
"""

import re
from functools import lru_cache

import numpy as np

from . import strings, tasks

NUMBERS = set("two three four five six seven eight nine ten eleven twelve twenty thirty forty "
              "fifty hundred".split())
COLORS = set("red blue green yellow white black brown gray grey orange purple pink silver golden "
             "gold".split())
PLACES = set("in on under behind beside into onto over near above below inside through across "
             "around between toward from at to by along against".split())
PRONOUNS = set("he she they it i you we".split())
OPENERS = set("the a an his her their its my our your this that every each one some no".split())
SMALL = OPENERS | PLACES | PRONOUNS | set(
    "and but or so then when where who what which that because if while as for with of not him "
    "them me us there here very too all only just up down out off back again until before after "
    "than more most still never always now once had has have is are be been being can could would "
    "will should did do does".split())
STARTS = OPENERS | PRONOUNS | NUMBERS | {"there"}  # of what a clause is about
NEVER = SMALL - OPENERS - PRONOUNS - {"and", "of", "there"}  # in what it is about
PAST = {  # of verbs that follow no rule
    past: base for base, pasts in (pair.split(":") for pair in (
        "be:was,were begin:began bend:bent bite:bit blow:blew break:broke bring:brought "
        "build:built buy:bought catch:caught choose:chose climb:climbed come:came cut:cut "
        "dig:dug do:did draw:drew drink:drank drive:drove eat:ate fall:fell feed:fed feel:felt "
        "fight:fought find:found fly:flew forget:forgot freeze:froze get:got give:gave go:went "
        "grow:grew hang:hung have:had hear:heard hide:hid hit:hit hold:held hurt:hurt keep:kept "
        "know:knew lay:laid lead:led leave:left lend:lent let:let lie:lay light:lit lose:lost "
        "make:made mean:meant meet:met pay:paid put:put read:read ride:rode ring:rang rise:rose "
        "run:ran say:said see:saw sell:sold send:sent set:set shake:shook shine:shone "
        "shoot:shot shut:shut sing:sang sink:sank sit:sat sleep:slept slide:slid speak:spoke "
        "spend:spent spin:spun spread:spread spring:sprang stand:stood steal:stole stick:stuck "
        "sting:stung strike:struck sweep:swept swim:swam swing:swung take:took teach:taught "
        "tear:tore tell:told think:thought throw:threw tie:tied understand:understood wake:woke "
        "wear:wore weave:wove win:won wind:wound write:wrote"
    ).split()) for past in pasts.split(",")
}
WORDS = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*")
NAMED, RESOLVED, SHORTENED = 0.3, 0.7, 0.5  # how often a rule is used where it could be
CLAUSES = re.compile(r"[.!?;:,\"\n]+|\b(?:and|but|because|so|while|until|when|who|which)\b")


def words_of(text: str) -> list[str]:
    return WORDS.findall(text)


@lru_cache(maxsize=1)  # memory only: the result follows from the data that ships
def small_letters() -> frozenset[str]:
    """The words that stand in small letters in the tales that are trained on."""
    return frozenset(word for tale in tasks.tales()["train"] for word in words_of(tale["text"])
                     if word.islower())


def is_name(word: str) -> bool:
    """Whether it has a capital that is not due to its place alone."""
    return word[0].isupper() and word != "I" and word.lower() not in small_letters()


def base_of(word: str) -> str | None:
    """The plain form of a verb in the past: stopped, carried, went -> stop, carry, go; or None."""
    low = word.lower()
    if low in PAST or not low.endswith("ed") or len(low) < 5:
        return PAST.get(low)
    forms = [low[:-3] + "y"] if low.endswith("ied") else [low[:-1], low[:-2], low[:-3]]
    plain = low[:-3] if low[-3] == low[-4] not in "ls" else low[:-2]
    return next((form for form in forms if form in small_letters()), plain)


def clauses(text: str) -> list[list[str]]:
    """The clauses of a text, each as its words, from three to fourteen of them."""
    found = [words_of(part) for part in CLAUSES.split(text)]
    return [words for words in found if 3 <= len(words) <= 14]


def subjects_first(text: str, generator: np.random.Generator) -> list[list[str]]:
    """The clauses of a text, each from its subject on; for he or she often the name before."""
    found, name = [], ""
    for words in clauses(text):
        begins = (i for i, word in enumerate(words) if is_name(word) or word.lower() in STARTS)
        found.append(words[next(begins, 0):])
        if name and found[-1][0].lower() in ("he", "she") and generator.random() < RESOLVED:
            found[-1][0] = name
        name = next((word.partition("'")[0] for word in words if is_name(word)), name)
    return found


def phrases(words: list[str]) -> list[tuple[int, int, str]]:
    """What could be asked about in some words: begin, end and kind of each phrase."""
    found, i = [], 0
    while i < len(words):
        low, j = words[i].lower(), i + 1
        noun = j < len(words) and words[j].lower() not in SMALL
        if low in NUMBERS and noun:
            found.append((i, j, "number"))
        elif low in COLORS and noun:
            found.append((i, j, "color"))
        elif is_name(words[i]):
            while j < len(words) and is_name(words[j]):
                j += 1
            found.append((i, j, "name"))
        elif low in OPENERS:
            ends = SMALL | NUMBERS | PAST.keys()
            while j < min(len(words), i + 4) and words[j].lower() not in ends:
                j += 1
            if j > i + 1:
                found.append((i, j, "thing"))
                found += [(k, k + 1, "color") for k in range(i, j - 1) if words[k] in COLORS]
                if i and words[i - 1].lower() in PLACES:
                    found.append((i - 1, j, "place"))
        elif j == len(words) > 1 and low not in SMALL and not base_of(low):
            found.append((i, j, "thing"))
        i = j
    return found


def ask(words: list[str], begin: int, end: int, kind: str) -> str | None:
    """The question that a phrase of a clause answers, or None where the rules know none."""
    verb = next((i for i, word in enumerate(words) if base_of(word)), 0)
    rest = words[:begin] + words[end:]
    if words[verb + 1:verb + 2] == ["not"] or NEVER & {word.lower() for word in words[:verb]}:
        return None
    if kind in ("number", "color"):
        opener = f"How many {words[end]}" if kind == "number" else f"What color {words[end]}"
        before = words[:begin - (words[begin - 1].lower() in OPENERS)]
        return turned(opener, before + words[end + 1:], verb) if 0 < verb < begin else None
    owner = words[verb - 1].endswith("'s")  # of something that the rules took for a verb
    if begin == 0 and end == verb and len(rest) > 2 and not owner:
        return sentence("Who" if kind == "name" else "What", rest)
    if 0 < verb < begin and not owner:
        return turned({"name": "Who", "place": "Where"}.get(kind, "What"), rest, verb)
    return None


def turned(opener: str, words: list[str], verb: int) -> str:
    """Opener, auxiliary, subject, verb and what comes after: What did Anjali bring him?"""
    subject, past, after = words[:verb], words[verb].lower(), words[verb + 1:]
    subject[0] = subject[0] if is_name(subject[0]) or subject[0] == "I" else subject[0].lower()
    if past in ("was", "were") or past == "had" and after and is_past(after[0]):
        return sentence(opener, [past, *subject, *after])
    return sentence(opener, ["did", *subject, base_of(past), *after])


def is_past(word: str) -> bool:
    """Whether it looks like a participle, as in: had brought, had hidden."""
    return bool(base_of(word)) or word.endswith("en")


def named(text: str) -> list[tuple[str, str]]:
    """What the one who is named in a text could be called if it were not known: name and noun."""
    words = words_of(text)
    names = {word.partition("'")[0] for word in words if is_name(word)}
    she, he = (sum(word.lower() in said for word in words)
               for said in (("she", "her"), ("he", "his", "him")))
    if len(names) != 1 or she == he:
        return []
    nouns = ("girl", "woman") if she > he else ("boy", "man")
    return [(name, noun) for name in names for noun in nouns]


def sentence(opener: str, words: list[str]) -> str:
    return f"{' '.join([opener, *words])}?"


def questions(text: str, generator: np.random.Generator, most: int) -> list[tuple[str, str]]:
    """Up to `most` questions about a text, each with the phrase of it that is the answer."""
    found: dict[str, str] = {}
    for name, noun in named(text):
        if generator.random() < NAMED:
            forms = (f"What was the name of the {noun}?", f"What was the {noun}'s name?",
                     f"What was the {noun} called?")
            found[forms[generator.integers(len(forms))]] = name
    parts = subjects_first(text, generator)
    for i in generator.permutation(len(parts)):
        if len(found) >= most:
            break
        words, options = parts[i], phrases(parts[i])
        for number in generator.permutation(len(options)):
            begin, end, kind = options[number]
            kept = words[:max(end + 1, shorter(words, end, generator))]
            asked, answer = ask(kept, begin, end, kind), " ".join(words[begin:end])
            if asked and answer in text and asked not in found:
                found[asked] = answer
                break
    return list(found.items())[:most]


def recalled(text: str, generator: np.random.Generator, most: int) -> list[tuple[str, str]]:
    """Up to `most` questions for what stands after some words of a text."""
    found, parts = [], [words for words in clauses(text) if len(words) > 4]
    for i in generator.permutation(len(parts))[:most]:
        words = parts[i]
        begin = generator.integers(2, min(5, len(words) - 1))
        first, answer = (" ".join(some) for some in (
            words[:begin], words[begin:begin + generator.integers(2, 5)]))
        if f"{first} {answer}" in text:  # and no figure or dash between them
            found.append((f"What comes after {first}?", answer))
    return found


def shorter(words: list[str], end: int, generator: np.random.Generator) -> int:
    """Where a clause may as well end: before one of the words that begin a phrase, or nowhere."""
    places = [i for i in range(end, len(words)) if words[i].lower() in PLACES]
    if places and generator.random() < SHORTENED:
        return places[generator.integers(len(places))]
    return len(words)


def exchanged(texts: list[str], generator: np.random.Generator) -> list[str]:
    """The same texts with other names in all of them."""
    every = words_of("\n".join(texts))
    names = sorted({word.partition("'")[0] for word in every if is_name(word)})
    known = [word for word in strings.words()["train"] if word[0].isupper()]
    chosen = generator.integers(len(known), size=len(names))
    new = {name: known[i] for name, i in zip(names, chosen)}

    def renamed(match: re.Match) -> str:
        name, mark, end = match[0].partition("'")
        return new.get(name, name) + mark + end

    return [WORDS.sub(renamed, text) for text in texts]
