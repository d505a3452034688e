"""The head before anything else learns: a logistic regression on what the network knows already.

A head that begins at zero, or at random, has at first nothing to say to the network but noise, and
features that were worth something are lost (Kumar et al. 2022). So it is fitted first, while all
else stays as it is, which is a matter of one pass over the texts, or over MOST of them.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

import data
from nanogpt.machine import Machine

from .baselines import examples, minimise
from .labelled import Classifier, Encoded, at_ends

DECAYS = (0.1, 0.03, 0.01, 0.003, 0.001, 3e-4)  # of the head's weights, the strongest first
MOST = 20_000  # texts that the head is fitted to: their features are all held at once
FLAT = 1e-4  # times what varies most: a feature that varies less than so is no feature


def fit_head(classifier: Classifier, train: Encoded, val: Encoded, machine: Machine) -> float:
    """Fit the head, in place, its decay chosen by the loss on val: that loss, in nats.

    The features are standardised by those of train (N, D), and the head then made to take them as
    they are. The classifier is left in eval. ValueError: features that are no finite numbers.
    """
    classifier.eval()
    class_weights = classifier.class_weights.cpu()
    train, val = some(train), some(val)
    known = at_ends(classifier.reads, train.sequences, machine, "fitting the head")
    if not known.isfinite().all():
        raise ValueError("what the network makes of these texts are no finite numbers; its weights "
                         "are damaged, or --dtype is too narrow for them.")
    mean, deviation = known.mean(0), known.std(0, correction=0)
    flat = deviation <= FLAT * deviation.max()
    scale = torch.where(flat, 0.0, 1 / deviation.clamp(min=1e-12)) / known.shape[1] ** 0.5
    known = (known - mean) * scale
    judged = (at_ends(classifier.reads, val.sequences, machine, "judging the head") - mean) * scale
    rows, targets = examples(train.labels)
    weights = torch.zeros(known.shape[1] + 1, classifier.head.out_features)
    best, least = weights, float("inf")
    for decay in DECAYS:
        weights = minimise(lambda weights: linear(known, weights), rows, targets, weights, decay,
                           class_weights)
        loss = mean_nats(linear(judged, weights), val.labels, class_weights)
        if loss < least:
            best, least = weights, loss
    matrix = best[:-1] * scale[:, None]  # (D, K)
    with torch.no_grad():
        classifier.head.weight.copy_(matrix.T)
        classifier.head.bias.copy_(best[-1] - mean @ matrix)
    return least


def some(texts: Encoded) -> Encoded:
    """MOST of them at the most. Their order is that of a file, so they are drawn from all over."""
    if len(texts.sequences) <= MOST:
        return texts
    chosen = data.order(0, 0, len(texts.sequences))[:MOST]
    return Encoded([texts.sequences[i] for i in chosen], [texts.labels[i] for i in chosen])


def linear(features: Tensor, weights: Tensor) -> Tensor:
    """(N, D), (D + 1, K) -> (N, K)"""
    return features @ weights[:-1] + weights[-1]


def mean_nats(logits: Tensor, labels: list[tuple[int, ...]], class_weights: Tensor) -> float:
    rows, targets = examples(labels)
    nats = F.cross_entropy(logits[rows], targets, class_weights, reduction="sum")
    return nats.item() / len(targets)
