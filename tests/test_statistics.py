"""The statistics against scipy, published examples and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from smidgen.statistics import (
    bootstrap_interval,
    compare_sets,
    mcnemar_p,
    paired_permutation_p,
    permutation_p,
    seeds_needed,
    summarize,
    t_cdf,
    t_quantile,
    wilson_interval,
)  # fmt: skip

ACCURACIES = [99.51, 99.55, 99.39, 99.62, 99.48, 99.50, 99.47, 99.53]


def test_a_summary_is_what_its_words_say() -> None:
    summary = summarize(ACCURACIES, at_goal=7)
    assert summary.n == 8
    assert summary.mean == pytest.approx(np.mean(ACCURACIES))
    assert summary.sd == pytest.approx(np.std(ACCURACIES, ddof=1))
    assert summary.standard_error == pytest.approx(scipy.stats.sem(ACCURACIES))
    assert (summary.least, summary.most, summary.at_goal, summary.goal_share) == (99.39, 99.62, 7, 7 / 8)
    assert summary.mean_interval is not None
    assert summary.mean_interval.low < summary.mean < summary.mean_interval.high
    single = summarize([99.4], 1)
    assert (single.sd, single.standard_error, single.mean_interval) == (None, None, None)
    with pytest.raises(ValueError, match="no run"):
        summarize([], 0)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_as_scipy(share: tuple[int, int], confidence: float) -> None:
    ours = wilson_interval(*share, confidence)
    theirs = scipy.stats.binomtest(*share).proportion_ci(confidence, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= ours.low <= share[0] / share[1] <= ours.high <= 1


def test_wilson_as_published() -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    for successes, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        interval = wilson_interval(successes, n)
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=6e-5)
    for wrong in ((2, 1), (-1, 3), (0, 0)):
        with pytest.raises(ValueError, match="is no share"):
            wilson_interval(*wrong)


@pytest.mark.parametrize(
    "values", [ACCURACIES, [1.0, 1.0, 1.0, 9.0, 2.0, 1.5], list(np.random.default_rng(3).exponential(size=40))]
)
def test_the_bootstrap_as_scipy(values: list[float]) -> None:
    ours = bootstrap_interval(values)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=50_000, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03 * width)
    assert ours == bootstrap_interval(values)
    with pytest.raises(ValueError, match="two different"):
        bootstrap_interval([1.0, 1.0])


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_as_the_binomial_test(b: int, c: int) -> None:
    expected = scipy.stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar_p(b, c) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_for_many_images() -> None:
    assert mcnemar_p(1500, 1650) == pytest.approx(scipy.stats.binomtest(1500, 3150).pvalue, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1, 1).map(lambda x: round(x, 2)), min_size=2, max_size=9))
def test_flipping_signs_as_scipy(differences: list[float]) -> None:
    expected = scipy.stats.permutation_test(
        (differences, np.zeros(len(differences))), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples",
        n_resamples=np.inf, vectorized=True,
    ).pvalue  # fmt: skip
    assert paired_permutation_p(differences) == pytest.approx(min(1, expected), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(*[st.lists(st.integers(-35, 35).map(float), min_size=2, max_size=5)] * 2)  # whole: scipy misses ties that round
def test_dealing_anew_as_scipy(first: list[float], second: list[float]) -> None:
    expected = scipy.stats.permutation_test(
        (first, second), lambda x, y, axis: np.mean(x, axis=axis) - np.mean(y, axis=axis), n_resamples=np.inf, vectorized=True,
        alternative="two-sided",
    ).pvalue  # fmt: skip
    ours = permutation_p(first, second)
    if len(first) == len(second):
        assert ours == pytest.approx(expected, abs=1e-9)
    else:  # scipy doubles the smaller tail; with sets of two sizes ours adds up both
        assert ours == pytest.approx(_both_tails(first, second), abs=1e-9)


def _both_tails(first: list[float], second: list[float]) -> float:
    """Written down once more, the slow way."""
    import itertools

    pooled = [*first, *second]
    seen = abs(np.mean(first) - np.mean(second))
    ways = list(itertools.combinations(range(len(pooled)), len(first)))
    extreme = 0
    for picks in ways:
        a = [pooled[i] for i in picks]
        b = [pooled[i] for i in range(len(pooled)) if i not in picks]
        extreme += abs(np.mean(a) - np.mean(b)) >= seen - 1e-9
    return extreme / len(ways)


def test_drawn_permutations_come_near_the_exact_ones() -> None:
    generator = np.random.default_rng(5)
    gaps = generator.normal(0.3, 1, size=24)
    t = scipy.stats.ttest_1samp(gaps, 0).pvalue
    assert paired_permutation_p(gaps) == pytest.approx(t, abs=0.03)
    a, b = generator.normal(0, 1, 15), generator.normal(0.7, 1, 14)
    assert permutation_p(list(a), list(b)) == pytest.approx(scipy.stats.ttest_ind(a, b).pvalue, abs=0.03)


@given(st.floats(-30, 30), st.floats(0.5, 500))
def test_student_as_scipy(t: float, freedom: float) -> None:
    assert t_cdf(t, freedom) == pytest.approx(scipy.stats.t.cdf(t, freedom), abs=1e-9)


@given(st.floats(0.01, 0.99), st.floats(1, 300))
def test_quantiles_of_student_as_scipy(probability: float, freedom: float) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(
        scipy.stats.t.ppf(probability, freedom), rel=1e-6, abs=1e-9
    )


def test_as_many_seeds_as_are_needed() -> None:
    """Held against simulation: with so many, the t test finds the difference in four of five cases."""
    generator = np.random.default_rng(0)
    for sd, points in ((0.07, 0.05), (0.07, 0.02), (0.05, 0.2)):
        n = seeds_needed(sd, points)
        gaps = generator.normal(points, sd, size=(4000, n))
        found = (scipy.stats.ttest_1samp(gaps, 0, axis=1).pvalue < 0.05).mean()
        assert found == pytest.approx(0.8, abs=0.03) or (n <= 5 and found > 0.77)


def networks(
    generator: np.random.Generator, runs: int, images: int, accuracy: float, hardness: np.ndarray
) -> np.ndarray:
    """Simulated networks: some images are hard for all, and each run errs a little differently."""
    chance = 1 / (1 + np.exp(-(hardness + accuracy)))
    luck = generator.normal(0, 0.1, size=(runs, 1))
    return generator.random((runs, images)) < np.clip(chance + 0.01 * luck, 0, 1)


def test_the_interval_covers_the_truth_in_at_least_95_of_100() -> None:
    """Both seeds and images drawn anew each time; the true difference is known from many."""
    generator = np.random.default_rng(2)
    big = generator.normal(3, 2, size=400_000)
    truth = 100 * float((1 / (1 + np.exp(-(big + 0.3))) - 1 / (1 + np.exp(-big))).mean())
    for paired in (True, False):
        covered = 0
        for _ in range(200):
            hardness = generator.normal(3, 2, size=400)
            a, b = networks(generator, 5, 400, 0.3, hardness), networks(generator, 5, 400, 0.0, hardness)
            seeds = (list(range(5)), list(range(5)) if paired else list(range(5, 10)))
            comparison = compare_sets(a, b, seeds)
            assert comparison.paired == paired
            assert comparison.interval is not None
            covered += comparison.interval.low <= truth <= comparison.interval.high
        assert covered / 200 >= 0.93


def test_no_difference_is_rarely_called_one() -> None:
    generator = np.random.default_rng(4)
    called = 0
    for _ in range(120):
        hardness = generator.normal(3, 2, size=200)
        first, second = (networks(generator, 4, 200, 0.0, hardness) for _ in range(2))
        called += "is better" in str(compare_sets(first, second, ([0, 1, 2, 3], [4, 5, 6, 7])))
    assert called / 120 <= 0.07


def test_a_comparison_in_words() -> None:
    generator = np.random.default_rng(6)
    hardness = generator.normal(3, 2, size=2000)
    good, bad = networks(generator, 8, 2000, 2.0, hardness), networks(generator, 8, 2000, 0.0, hardness)
    seeds = (list(range(8)), list(range(8)))
    assert str(compare_sets(good, bad, seeds)).endswith("the first set is better")
    assert str(compare_sets(bad, good, seeds)).endswith("the second set is better")
    same = str(compare_sets(bad, networks(generator, 8, 2000, 0.0, hardness), seeds))
    assert "not distinguishable with 8 seeds; 0.02 points would need about" in same
    single = compare_sets(good[:1], bad[:1], ([0], [0]))
    assert single.interval is None
    assert single.p == single.p_images == mcnemar_p(int((good[0] & ~bad[0]).sum()), int((bad[0] & ~good[0]).sum()))
    assert "one run a side says nothing about other seeds" in str(single)
    assert single.seeds_for(0.02) is None
    with pytest.raises(ValueError, match="600 and 500"):
        compare_sets(good[:, :600], bad[:, :500], seeds)
    assert not math.isnan(compare_sets(good, good, seeds).p)


def test_pairing_follows_the_seeds_and_not_the_order() -> None:
    generator = np.random.default_rng(7)
    hardness = generator.normal(3, 2, size=500)
    a, b = networks(generator, 6, 500, 0.5, hardness), networks(generator, 6, 500, 0.0, hardness)
    order = [3, 1, 5, 0, 4, 2]
    assert compare_sets(a, b, (list(range(6)), list(range(6)))) == compare_sets(a[order], b, (order, list(range(6))))
