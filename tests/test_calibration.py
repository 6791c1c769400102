"""Calibration: bins of confidence, their intervals, and the expected calibration error."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import scipy

from smidgen.reports.calibration import FINE_EDGES, binned, expected_calibration_error
from smidgen.statistics import Flags, Floats


def by_definition(confidence: Floats, correct: Flags, bins: int) -> float:
    """Guo et al. 2017, equations 3 and 5, one bin and one prediction at a time, in exact fractions."""
    total = Fraction(0)
    for m in range(1, bins + 1):
        low, high = Fraction(m - 1, bins), Fraction(m, bins)
        inside = [
            (Fraction(c), Fraction(int(ok)))
            for c, ok in zip(confidence.tolist(), correct.tolist(), strict=True)
            if low < Fraction(c) <= high
        ]
        if inside:
            accuracy = sum((ok for _, ok in inside), Fraction(0)) / len(inside)
            mean = sum((c for c, _ in inside), Fraction(0)) / len(inside)
            total += Fraction(len(inside), len(confidence)) * abs(accuracy - mean)
    return float(total)


@pytest.mark.parametrize("bins", [10, 15])
@pytest.mark.parametrize("power", [0.05, 0.5, 2])
def test_the_error_is_that_of_the_definition(bins: int, power: float) -> None:
    rng = np.random.default_rng(7)
    confidence = (1 - 0.9 * rng.random(600) ** (1 / power)).astype(np.float32).astype(np.float64)
    confidence[:3] = 0.5, 0.25, 1  # a half and a quarter are edges of neither; 1 is one of both
    correct = rng.random(600) < confidence**2
    assert expected_calibration_error(confidence, correct, bins) == pytest.approx(
        by_definition(confidence, correct, bins), abs=1e-12
    )


def test_the_error_of_extremes() -> None:
    half = np.array([True, False] * 50)
    assert expected_calibration_error(np.full(100, 0.5), half) == 0
    assert expected_calibration_error(np.ones(100), half) == 0.5
    # Errors in two bins do not cancel: 0.75 is right always, 1 half the time.
    both = expected_calibration_error(np.r_[np.full(100, 0.75), np.ones(100)], np.r_[np.ones(100, bool), half])
    assert both == pytest.approx((0.25 + 0.5) / 2)


def test_every_prediction_is_in_one_bin_with_its_upper_edge() -> None:
    confidence = np.array([0.05, 0.5, 0.55, 0.8, 0.95, 0.9901, 1.0, 1.0])
    correct = np.array([False, True, False, True, True, True, True, False])
    found = binned(confidence, correct, FINE_EDGES)
    assert found.count.tolist() == [2, 2, 1, 1, 2]
    assert found.labels == ["0–50", "50–80", "90–95", "99–99.5", "99.99–100"]
    assert found.accuracy.tolist() == [0.5, 0.5, 1, 1, 0.5]
    assert found.confidence.tolist() == pytest.approx([0.275, 0.675, 0.95, 0.9901, 1])


def test_intervals_are_clopper_and_pearsons_and_other_runs_on_the_same_images_do_not_narrow_them() -> None:
    confidence = np.repeat([0.3, 0.7, 0.97, 0.9999], [4, 40, 300, 1000])
    correct = np.ones(len(confidence), bool)
    correct[:4] = False
    correct[4:15] = False
    correct[50] = False
    one = binned(confidence, correct, FINE_EDGES).error_intervals(1)
    for (low, high), wrong, count in zip(one, [4, 11, 1, 0], [4, 40, 300, 1000], strict=True):
        expected = scipy.stats.binomtest(wrong, count).proportion_ci(0.95, method="exact")
        assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-6)
    three = binned(np.tile(confidence, 3), np.tile(correct, 3), FINE_EDGES).error_intervals(3)
    assert three == pytest.approx(one, rel=1e-6)
