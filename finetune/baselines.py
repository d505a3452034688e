"""What a network must beat: the commonest label, a logistic regression on counts of n-grams, and
of questions the phrase that stands nearest to the words of the question."""

import math
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from . import questions
from .measures import truth
from .questions import words_of

DECAYS = (3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6)  # of the weights, for each example
FEATURES = ("characters", "words", "word pairs")
SENTENCES = re.compile(r"(?<=[.!?])[\"']?\s+|\n+|;\s+")


def pieces(text: str, kind: str) -> Counter:
    """The features of a text: its 1- to 4-grams of characters, ends marked, or its words, or these
    and each two in a row."""
    if kind != "characters":
        words = "".join(c if c.isalnum() or c == "'" else " " for c in text.lower()).split()
        pairs = map(" ".join, pairwise(words)) if kind == "word pairs" else ()
        return Counter([*words, *pairs])
    text = f"\n{text}\n"
    return Counter(text[i:i + n] for n in range(1, 5) for i in range(len(text) - n + 1))


class Counts:
    """Texts as sparse vectors of length 1: 1 + log of each count, the rarer the heavier (tf-idf,
    Spärck Jones 1972)."""

    def __init__(self, texts: list[str], kind: str, least: int = 2):
        """texts: those to learn from. least: in so many of them a feature must stand."""
        self.kind = kind
        found = Counter()
        for text in texts:
            found.update(pieces(text, kind).keys())
        kept = sorted(piece for piece, n in found.items() if n >= min(least, len(texts)))
        self.places = {piece: i for i, piece in enumerate(kept)}
        rarity = [1 + math.log((1 + len(texts)) / (1 + found[piece])) for piece in kept]
        self.rarity = np.array(rarity)

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """The features of all texts in a row, where each text begins in it, their weights."""
        ids, weights, begins = [], [], []
        for text in texts:
            begins.append(len(ids))
            known = [(self.places[p], n) for p, n in pieces(text, self.kind).items()
                     if p in self.places]
            values = np.array([1 + math.log(n) for _, n in known])
            values = values * self.rarity[[i for i, _ in known]] if known else values
            ids += [i for i, _ in known]
            weights += (values / (np.linalg.norm(values) or 1.0)).tolist()
        as_float = torch.tensor(weights, dtype=torch.float32)
        return torch.tensor(ids, dtype=torch.int64), torch.tensor(begins), as_float


class Regression:
    """Multinomial logistic regression: weights (D + 1, K), the last row for every text."""

    def __init__(self, counts: Counts, weights: Tensor):
        self.counts, self.weights = counts, weights

    @torch.no_grad()
    def probabilities(self, texts: list[str]) -> np.ndarray:
        """(N, K)"""
        return logits(self.counts(texts), self.weights).softmax(1).double().numpy()


def logits(bags: tuple[Tensor, Tensor, Tensor], weights: Tensor) -> Tensor:
    ids, begins, values = bags
    summed = F.embedding_bag(ids, weights, begins, mode="sum", per_sample_weights=values)
    return summed + weights[-1]


def fit(
    train: list[tuple[str, tuple[int, ...]]], val: list[tuple[str, tuple[int, ...]]],
    classes: int, class_weights: Tensor | None = None, kinds: tuple[str, ...] = FEATURES,
) -> tuple[Regression, dict]:
    """The regression, with features and decay of the weights chosen by accuracy on val, and then
    fitted to both splits, for it has no other use for val.

    Each text with its labels. Of several labels each counts as an example. kinds: those of FEATURES
    to choose from. Returns what was chosen too. Minimised by L-BFGS (Liu & Nocedal 1989), from the
    strongest decay to the weakest.
    """
    chosen: dict = {}
    rows, targets = examples(labels_of(train))
    with tqdm(total=len(kinds) * len(DECAYS), desc="n-grams", leave=False, delay=2,
              disable=None) as bar:
        for kind in kinds:
            counts = Counts([text for text, _ in train], kind)
            score = partial(logits, counts([text for text, _ in train]))
            judged = counts([text for text, _ in val])
            weights = torch.zeros(len(counts.places) + 1, classes)
            for decay in DECAYS:
                weights = minimise(score, rows, targets, weights, decay, class_weights)
                predicted = logits(judged, weights).argmax(1).numpy()
                right = np.mean(truth(predicted, labels_of(val)) == predicted)
                if not chosen or right > chosen["val_accuracy"]:
                    chosen = {"features": kind, "decay": decay, "val_accuracy": float(right)}
                bar.update()
    return fit_one(train + val, classes, chosen, class_weights), chosen


def fit_one(
    split: list[tuple[str, tuple[int, ...]]], classes: int, chosen: dict,
    class_weights: Tensor | None = None,
) -> Regression:
    """The regression of one split, with the features and decay that were chosen."""
    texts = [text for text, _ in split]
    counts = Counts(texts, chosen["features"])
    weights = torch.zeros(len(counts.places) + 1, classes)
    score = partial(logits, counts(texts))
    rows, targets = examples(labels_of(split))
    with tqdm(desc="n-grams", leave=False, delay=2, disable=None) as bar:
        weights = minimise(score, rows, targets, weights, chosen["decay"], class_weights, 300, bar)
    return Regression(counts, weights)


def labels_of(split: list[tuple[str, tuple[int, ...]]]) -> list[tuple[int, ...]]:
    return [labels for _, labels in split]


def examples(labels: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """Each text, by its number, with each of its labels."""
    pairs = [(i, label) for i, several in enumerate(labels) for label in several]
    return torch.tensor([i for i, _ in pairs]), torch.tensor([label for _, label in pairs])


def minimise(
    score: Callable[[Tensor], Tensor], rows: Tensor, targets: Tensor, weights: Tensor,
    decay: float, class_weights: Tensor | None, steps: int = 60, bar: tqdm | None = None,
) -> Tensor:
    """The weights (D + 1, K) that minimise the mean loss of the pairs and their own decayed
    squares, but for the last row. score(weights): the logits of all texts (N, K)."""
    weights = weights.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=steps, history_size=10,
                                  tolerance_change=1e-9, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        losses = F.cross_entropy(score(weights)[rows], targets, class_weights, reduction="sum")
        loss = losses / len(targets) + decay * weights[:-1].square().sum() / 2
        loss.backward()
        if bar is not None:
            bar.update()
        return loss

    optimizer.step(closure)
    return weights.detach()


class Overlap:
    """Answers from a text by the words that it shares with the question: from the sentence that
    shares most, the rarer the word the more, the phrase that is nearest to what is shared and of
    the kind that the question asks for. Richardson et al. (2013) have such a baseline.
    """

    def __init__(self, texts: list[str]):
        """texts: those to learn from how rare a word is."""
        counts = Counter(stem for text in texts for stem in {*map(stem_of, words_of(text))})
        self.rarity = {stem: math.log((1 + len(texts)) / (1 + n)) for stem, n in counts.items()}
        self.rarest = math.log(1 + len(texts))

    def __call__(self, text: str, question: str) -> str:
        asked = {stem_of(word) for word in words_of(question)}
        sentences = [words for part in SENTENCES.split(text) if (words := words_of(part))]
        words = max(sentences, key=lambda words: self.shared(words, asked), default=[])
        places = [i for i, word in enumerate(words) if is_shared(word, asked)]
        last = places[-1] if places else 0
        options = [phrase for phrase in questions.phrases(words)
                   if not any(is_shared(word, asked) for word in words[slice(*phrase[:2])])]
        kind = kind_of(question)
        for kinds in ((kind,), ("thing", "place"), ("name", "number", "color")):
            if found := [phrase for phrase in options if phrase[2] in kinds]:
                begin, end, _ = min(found, key=lambda phrase: (phrase[0] < last,
                                                               abs(phrase[0] - last)))
                return " ".join(words[begin:end])
        return " ".join(words[last + 1:last + 4] or words[-2:])

    def shared(self, words: list[str], asked: set[str]) -> float:
        """How much a sentence shares, a long one a little less."""
        stems = asked & {stem_of(word) for word in words}
        return sum(self.rarity.get(stem, self.rarest) for stem in stems) / (1 + len(words) / 50)


def is_shared(word: str, asked: set[str]) -> bool:
    return word.lower() not in questions.SMALL and stem_of(word) in asked


def kind_of(question: str) -> str:
    """The kind of phrase (questions.py) that answers a question."""
    low = question.lower()
    for kind, said in (("number", ("how many", "how old", "how long", "how much")),
                       ("color", ("what color",)), ("name", ("who", "what was the name")),
                       ("place", ("where",))):
        if low.startswith(said):
            return kind
    return "thing"


def stem_of(word: str) -> str:
    """A word without its ending: walked, walks, walking -> walk."""
    low = word.lower().partition("'")[0]
    low = questions.base_of(low) or low
    ending = next((end for end in ("ing", "ed", "es", "s", "e") if low.endswith(end)), "")
    return low.removesuffix(ending) if len(low) - len(ending) >= 3 else low


def majority(labels: list[tuple[int, ...]], number: int) -> np.ndarray:
    """The commonest label of these, `number` times."""
    return np.full(number, Counter(label for several in labels for label in several)
                   .most_common(1)[0][0])
