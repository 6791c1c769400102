"""Calibration: whether predictions are right as often as their confidence says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy  # loads scipy.stats, which takes a second, when first used

from smidgen.statistics import CONFIDENCE, Flags, Floats

EQUAL_BINS = 15
"""Bins of the expected calibration error, as in Guo et al. 2017."""
_SHARES = (1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001, 0)
FINE_EDGES: Floats = 1 - np.array(_SHARES, dtype=np.float64)
"""Edges of bins that narrow towards a confidence of 1, where a network with few errors has nearly all predictions."""


@dataclass(frozen=True, eq=False)
class Bins:
    """Predictions grouped by confidence; bins without predictions are left out.

    Attributes:
        low: lower edge of each bin, 0 to 1, itself not in the bin.
        high: upper edge, itself in the bin.
        confidence: mean confidence in each bin, 0 to 1.
        accuracy: share of correct predictions in each bin, 0 to 1.
        count: predictions in each bin.
    """

    low: Floats
    high: Floats
    confidence: Floats
    accuracy: Floats
    count: npt.NDArray[np.int64]

    @property
    def labels(self) -> list[str]:
        """Each bin's range of confidence in percent, for people."""
        return [f"{100 * low:.4g}–{100 * high:.4g}" for low, high in zip(self.low, self.high, strict=True)]

    def error_intervals(self, runs: int) -> Floats:
        """Intervals of each bin's error rate (Clopper and Pearson 1934, 95 %), float64 [bins, 2].

        Runs see the same images, so together they count as many as one of them.

        Args:
            runs: of which the predictions are.
        """
        n = self.count / runs
        wrong = n * (1 - self.accuracy)
        tail = (1 - CONFIDENCE) / 2
        beta = scipy.stats.beta.ppf
        low = np.where(wrong > 0, beta(tail, np.maximum(wrong, 1e-9), n - wrong + 1), 0)
        high = np.where(wrong < n, beta(1 - tail, wrong + 1, np.maximum(n - wrong, 1e-9)), 1)
        return np.stack([low, high], axis=1)


def binned(confidence: Floats, correct: Flags, edges: Floats) -> Bins:
    """Predictions grouped by confidence.

    Args:
        confidence: probability of the predicted class, 0 to 1, [predictions].
        correct: whether the prediction is right, [predictions].
        edges: of the bins, ascending from 0 to 1.
    """
    bins = len(edges) - 1
    which = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    filled = np.flatnonzero(count)
    n = count[filled]
    return Bins(
        low=edges[filled],
        high=edges[filled + 1],
        confidence=np.bincount(which, weights=confidence, minlength=bins)[filled] / n,
        accuracy=np.bincount(which, weights=correct, minlength=bins)[filled] / n,
        count=n,
    )


def expected_calibration_error(confidence: Floats, correct: Flags, bins: int = EQUAL_BINS) -> float:
    """Expected calibration error, 0 to 1: |accuracy - mean confidence| of equal-width bins, weighted by their counts.

    From Naeini, Cooper and Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015, in
    the form of Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, whose bins
    contain their upper edges.

    Args:
        confidence: probability of the predicted class, 0 to 1, [predictions].
        correct: whether the prediction is right, [predictions].
        bins: how many.
    """
    found = binned(confidence, correct, np.linspace(0, 1, bins + 1))
    return float((found.count * np.abs(found.accuracy - found.confidence)).sum() / found.count.sum())
