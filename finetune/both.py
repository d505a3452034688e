"""A network and the regression on n-grams together, for each knows what the other does not.

    p(label) ~ p_network(label)^a p_regression(label)^b

This is the logarithmic pool (Genest & Zidek 1986), its powers a and b those under which the labels
of the validation texts are likeliest (stacking, Wolpert 1992). A network that has learned a few
hundred texts by heart is too sure of itself; then a is small.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .baselines import FEATURES, Counts, Regression, examples, labels_of

NGRAMS = "ngrams.pt"  # in a run folder
USUAL = 0.5  # of both powers, where too few texts say otherwise
LEAST = 1e-9  # of a probability


@dataclass
class Both:
    """powers: of the network, and of the regression."""

    regression: Regression
    powers: tuple[float, float]

    @classmethod
    def fit(
        cls, regression: Regression, unseen: Regression, network: np.ndarray,
        val: list[tuple[str, tuple[int, ...]]],
    ) -> "Both":
        """regression: the one to use. unseen: the same, fitted without the texts of val. network
        (N, K): its probabilities of these texts."""
        theirs = unseen.probabilities([text for text, _ in val])
        return cls(regression, powers(network, theirs, labels_of(val)))

    def probabilities(self, network: np.ndarray, texts: list[str]) -> np.ndarray:
        """network: its probabilities (N, K) for the texts. Those of both, (N, K)."""
        logs = logarithms(network, self.regression.probabilities(texts))
        return pooled(logs, torch.tensor(self.powers)).exp().numpy()

    def to_dict(self) -> dict:
        """Plain values and tensors, for a checkpoint."""
        counts = self.regression.counts
        return {"features": counts.kind, "pieces": list(counts.places),
                "rarity": torch.from_numpy(counts.rarity), "weights": self.regression.weights,
                "powers": list(self.powers)}

    @classmethod
    def from_dict(cls, saved: dict) -> "Both":
        """ValueError: the parts do not fit each other."""
        features = len(saved["pieces"])
        fit = len(saved["rarity"]) == features == len(saved["weights"]) - 1
        if saved["features"] not in FEATURES or not fit:
            raise ValueError("n-grams that do not fit each other")
        counts = Counts([], saved["features"])
        counts.places = {piece: i for i, piece in enumerate(saved["pieces"])}
        counts.rarity = saved["rarity"].numpy()
        a, b = saved["powers"]
        return cls(Regression(counts, saved["weights"]), (a, b))


def logarithms(network: np.ndarray, regression: np.ndarray) -> Tensor:
    """Of two (N, K): (2, N, K) float64."""
    return torch.from_numpy(np.log(np.maximum(np.stack([network, regression]), LEAST)))


def pooled(logs: Tensor, powers: Tensor) -> Tensor:
    """The logarithms (N, K) of the probabilities that both come to."""
    return (powers.to(logs.dtype)[:, None, None] * logs).sum(0).log_softmax(1)


def powers(
    network: np.ndarray, regression: np.ndarray, labels: list[tuple[int, ...]]
) -> tuple[float, float]:
    """Those under which the labels are likeliest, by probabilities (N, K) of each.

    Their logarithms are normally distributed around that of USUAL beforehand, with deviation 1, so
    that neither is ever negative, nor far away where there are few texts.
    """
    rows, targets = examples(labels)
    logs = logarithms(network, regression)
    away = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([away], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        found = pooled(logs, USUAL * away.exp())[rows]
        loss = F.nll_loss(found, targets, reduction="sum") + away.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    a, b = (USUAL * away.detach().exp()).tolist()
    return a, b
