"""How well labels were assigned, and how sure that is: accuracy, macro F1, bootstrap intervals."""

from collections.abc import Callable

import numpy as np

RESAMPLES = 1000


def truth(predicted: np.ndarray, labels: list[tuple[int, ...]]) -> np.ndarray:
    """The label (N,) that each prediction (N,) is held against: itself if it is one of the right
    ones, else the first of them."""
    return np.array([p if p in right else right[0] for p, right in zip(predicted.tolist(), labels)])


def confusion(true: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How often the label of a row was taken for that of a column: (K, K)."""
    return np.bincount(true * classes + predicted, minlength=classes**2).reshape(classes, classes)


def macro_f1(true: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """The mean F1 of the labels that occur in (N,), true or predicted, each counting as much."""
    right = np.bincount(true[true == predicted], minlength=classes)
    both = np.bincount(true, minlength=classes) + np.bincount(predicted, minlength=classes)
    occurs = both > 0
    return float(np.mean(2 * right[occurs] / both[occurs]))


def bootstrap(
    measure: Callable[[np.ndarray], float], n: int, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The 95% interval of measure(items) over items (n,) drawn again with replacement.

    (Efron 1979; percentiles.)
    """
    generator = np.random.default_rng(seed)
    values = [measure(generator.integers(n, size=n)) for _ in range(resamples)]
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def judge(predicted: np.ndarray, labels: list[tuple[int, ...]], classes: int) -> dict:
    """accuracy and macro_f1 of predictions (N,), each with its 95% interval over the N items."""
    true = truth(predicted, labels)

    def f1(items):
        return macro_f1(true[items], predicted[items], classes)

    return {
        "accuracy": float((true == predicted).mean()),
        "accuracy_interval": mean_interval((true == predicted).astype(float)),
        "macro_f1": f1(np.arange(len(true))),
        "macro_f1_interval": bootstrap(f1, len(true)),
    }


def paired(right: np.ndarray, others: np.ndarray) -> tuple[float, tuple[float, float]]:
    """By how much the mean of right (N,) exceeds that of others on the same items, and its 95%
    interval."""
    difference = right.astype(float) - others.astype(float)
    return float(difference.mean()), mean_interval(difference)


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """The 95% interval of the mean of values (N,)."""
    return bootstrap(lambda items: float(values[items].mean()), len(values))


def normal(text: str) -> list[str]:
    """The words of an answer: lower case, without signs around them, nor a, an, the."""
    words = (word.strip(".,;:!?\"'()-") for word in text.lower().split())
    return [word for word in words if word and word not in ("a", "an", "the")]


def exact(answer: str, expected: str) -> bool:
    """Whether an answer to a question is the expected one, but for case, signs and articles."""
    return normal(answer) == normal(expected)


def word_f1(answer: str, expected: str) -> float:
    """The F1 of the words of an answer (Rajpurkar et al. 2016)."""
    mine, theirs = normal(answer), normal(expected)
    shared = sum(min(mine.count(word), theirs.count(word)) for word in set(mine))
    return 2 * shared / (len(mine) + len(theirs)) if mine or theirs else 1.0


def copied(text: str, grams: set[tuple[str, ...]], n: int = 8) -> float:
    """The share of the n-grams of words of a text that are among these; 0 of a shorter text."""
    mine = word_grams(text, n)
    return sum(gram in grams for gram in mine) / len(mine) if mine else 0.0


def word_grams(text: str, n: int = 8) -> list[tuple[str, ...]]:
    """All n words in a row, lower case, without signs around them."""
    words = [word.strip(".,;:!?\"'()-") for word in text.lower().split()]
    words = [word for word in words if word]
    return [tuple(words[i:i + n]) for i in range(len(words) - n + 1)]
