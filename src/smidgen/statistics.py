"""Statistics of runs over seeds and over test images, written so that few of them are read rightly.

Accuracies and their differences are in percent and points (a test image of 10,000 is 0.01 points).
"""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

CONFIDENCE = 0.95
_RESAMPLES = 20_000
_MOST_EXACT = 200_000
"""Permutations up to which all are gone through; beyond, as many are drawn."""
_NORMAL = statistics.NormalDist()


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low: its lower end.
        high: its upper end.
    """

    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """What several runs of one trial came to.

    Attributes:
        n: runs, one a seed.
        mean: of their accuracies, percent.
        sd: their standard deviation (n - 1), points; None for a single run.
        standard_error: of the mean, points; None for a single run.
        least: the lowest accuracy.
        most: the highest.
        at_goal: how many reached the goal.
        goal_share: that over n, 0 to 1.
        goal_interval: Wilson's for the share, 95 %.
        mean_interval: bootstrap (BCa) for the mean, 95 %; None for fewer than three different values.
    """

    n: int
    mean: float
    sd: float | None
    standard_error: float | None
    least: float
    most: float
    at_goal: int
    goal_share: float
    goal_interval: Interval
    mean_interval: Interval | None


def summarize(accuracies: Sequence[float], at_goal: int) -> Summary:
    """Describe the accuracies of several runs.

    Args:
        accuracies: percent, one a run.
        at_goal: how many of the runs reached their goal.

    Raises:
        ValueError: there is none.
    """
    n = len(accuracies)
    if n == 0:
        raise ValueError("there is no run to summarize")
    sd = statistics.stdev(accuracies) if n > 1 else None
    return Summary(
        n=n,
        mean=statistics.fmean(accuracies),
        sd=sd,
        standard_error=None if sd is None else sd / math.sqrt(n),
        least=min(accuracies),
        most=max(accuracies),
        at_goal=at_goal,
        goal_share=at_goal / n,
        goal_interval=wilson_interval(at_goal, n),
        mean_interval=bootstrap_interval(accuracies) if len(set(accuracies)) > 2 else None,
    )


def wilson_interval(successes: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval for a share (Wilson 1927); right for few trials and for shares of 0 and 1.

    Raises:
        ValueError: not 0 <= successes <= n, or n is 0.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} of {n} is no share")
    z = _NORMAL.inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Rounding must not push the ends beyond what they are exactly at shares of 0 and 1.
    return Interval(0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


def bootstrap_interval(values: Sequence[float], confidence: float = CONFIDENCE, seed: int = 0) -> Interval:
    """Bias-corrected and accelerated bootstrap interval of the mean (Efron 1987).

    With few values it is too narrow, like every bootstrap; it needs no bell-shaped distribution.

    Args:
        values: at least two different ones.
        confidence: 0 to 1.
        seed: of the resampling; the same one gives the same interval.

    Raises:
        ValueError: fewer than two different values.
    """
    x = np.asarray(values, dtype=np.float64)
    if len(set(values)) < 2:
        raise ValueError("a bootstrap needs at least two different values")
    draws = np.random.default_rng(seed).integers(0, len(x), size=(_RESAMPLES, len(x)))
    means = np.sort(x[draws].mean(axis=1))
    below = float(((means < x.mean()).mean() + (means <= x.mean()).mean()) / 2)
    bias = _NORMAL.inv_cdf(min(max(below, 1 / _RESAMPLES), 1 - 1 / _RESAMPLES))
    without_one = (x.sum() - x) / (len(x) - 1)
    spread = without_one.mean() - without_one
    acceleration = float((spread**3).sum() / (6 * ((spread**2).sum()) ** 1.5))

    def end(z: float) -> float:
        shifted = bias + (bias + z) / (1 - acceleration * (bias + z))
        return float(np.quantile(means, _NORMAL.cdf(shifted)))

    z = _NORMAL.inv_cdf((1 + confidence) / 2)
    return Interval(end(-z), end(z))


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Exact two-sided p of McNemar's test (1947): whether two classifiers err equally often.

    Args:
        only_first: images that only the first classifies correctly.
        only_second: images that only the second does.
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    # In whole numbers until the end: 2**n is beyond a float for n above 1,023.
    return min(1.0, float((2 * tail << 64) // (1 << n)) / 2**64)


def paired_permutation_p(differences: Sequence[float] | Floats, seed: int = 0) -> float:
    """Two-sided p that paired differences have no sign: of all ways to flip their signs (Fisher 1935).

    Exact for up to 17 differences other than 0; beyond, from drawn ones, with the one seen counted in.
    """
    d = np.asarray(differences, dtype=np.float64)
    d = d[d != 0]
    if len(d) == 0:
        return 1.0
    seen = abs(d.sum()) * (1 - 1e-12)
    if 2 ** len(d) <= _MOST_EXACT:
        sums = np.zeros(1)
        for value in d:
            sums = np.concatenate([sums + value, sums - value])
        return float((np.abs(sums) >= seen).mean())
    generator = np.random.default_rng(seed)
    extreme = 0
    for _ in range(_RESAMPLES // 500):
        signs = generator.integers(0, 2, size=(500, len(d)), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ d) >= seen).sum())
    return (extreme + 1) / (_RESAMPLES + 1)


def permutation_p(first: Sequence[float], second: Sequence[float], seed: int = 0) -> float:
    """Two-sided p that two unpaired sets have one mean: of all ways to deal their values into two such sets.

    Exact for up to 200,000 ways; beyond, from drawn ones, with the one seen counted in.
    """
    pooled = np.asarray([*first, *second], dtype=np.float64)
    pooled = pooled - pooled.mean()
    n = len(first)
    seen = abs(pooled[:n].sum()) * (1 - 1e-12) - 1e-12
    if math.comb(len(pooled), n) <= _MOST_EXACT:
        picks = np.array(list(itertools.combinations(range(len(pooled)), n)))
        return float((np.abs(pooled[picks].sum(axis=1)) >= seen).mean())
    generator = np.random.default_rng(seed)
    dealt = generator.permuted(np.tile(pooled, (_RESAMPLES, 1)), axis=1)
    extreme = int((np.abs(dealt[:, :n].sum(axis=1)) >= seen).sum())
    return (extreme + 1) / (_RESAMPLES + 1)


@dataclass(frozen=True)
class Comparison:
    """Two sets of networks on the same test images.

    Attributes:
        difference: mean accuracy of the first set minus that of the second, points.
        interval: 95 %, over other seeds and other images of the same kind at once; None where a set
            has a single run, as nothing then tells how much seeds differ.
        p: the larger of the two below: a difference is called real only if it holds in both ways.
        p_seeds: had the seeds been others, on these images; None where a set has a single run.
        p_images: had the images been others, with these networks. McNemar's, for a run each.
        paired: whether the sets have the same seeds, which were then paired.
        n: runs in the first and in the second set.
        images: test images.
        sd: of a difference of two runs, over seeds, points; None where that is not known.
        notes: what may have changed the answers that were compared; one line each.
    """

    difference: float
    interval: Interval | None
    p: float
    p_seeds: float | None
    p_images: float
    paired: bool
    n: tuple[int, int]
    images: int
    sd: float | None
    notes: tuple[str, ...] = ()

    def seeds_for(self, points: float) -> int | None:
        """Seeds a set with which a difference of so many points is found in 4 of 5 cases, at 5 %.

        Raises:
            ValueError: `points` is not above 0.
        """
        if points <= 0:
            raise ValueError("a difference to be found must be above 0")
        return None if self.sd is None else seeds_needed(self.sd, points)

    def to_json(self) -> dict[str, float | int | bool | None]:
        """The comparison as JSON data; points."""
        return {
            "difference": self.difference,
            "low95": self.interval.low if self.interval else None,
            "high95": self.interval.high if self.interval else None,
            "p": self.p,
            "p_seeds": self.p_seeds,
            "p_images": self.p_images,
            "paired": self.paired,
            "n": self.n[0],
            "n_with": self.n[1],
            "images": self.images,
            "seeds_for_002_points": self.seeds_for(0.02),
        }

    def __str__(self) -> str:
        """The comparison in words."""
        runs = f"{self.n[0]} and {self.n[1]} runs" + (", paired by seed" if self.paired else "")
        if self.interval is None:
            verdict = (
                f"difference {self.difference:+.3f} points on these {self.images:,} images (p = {self.p:.3g} for other "
                f"images); one run a side says nothing about other seeds"
            )
            return f"{runs}\n{verdict}"
        between = f"95 % interval {self.interval.low:+.3f} to {self.interval.high:+.3f}, p = {self.p:.3g}"
        lines = [runs, f"difference {self.difference:+.3f} points, {between}"]
        real = self.p < 1 - CONFIDENCE and (self.interval.low > 0 or self.interval.high < 0)
        smaller = 0.02
        needed = f"{smaller:.2f} points would need about {self.seeds_for(smaller):,} seeds a side"
        if real:
            lines.append("the first set is better" if self.difference > 0 else "the second set is better")
        else:
            lines.append(f"not distinguishable with {min(self.n)} seeds; {needed}")
        return "\n".join(lines)


def compare_sets(first: Flags, second: Flags, seeds: tuple[Sequence[int], Sequence[int]]) -> Comparison:
    """Compare two sets of networks on the same images.

    Args:
        first: [runs, images], whether each image was classified correctly.
        second: the same, of the other set; the images are the same and in the same order.
        seeds: of the runs of both sets.

    Raises:
        ValueError: the sets are empty or have different images.
    """
    if first.ndim != 2 or second.ndim != 2 or not len(first) or not len(second):
        raise ValueError("each set needs at least one run")
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"the sets are of {first.shape[1]:,} and {second.shape[1]:,} images")
    images = first.shape[1]
    paired = len(set(seeds[0])) == len(first) and sorted(seeds[0]) == sorted(seeds[1])
    if paired:
        first, second = first[np.argsort(seeds[0])], second[np.argsort(seeds[1])]
    a, b = 100 * first.mean(axis=1), 100 * second.mean(axis=1)
    difference = float(a.mean() - b.mean())
    by_image = 100 * (first.mean(axis=0) - second.mean(axis=0))
    if len(first) == len(second) == 1:
        p_images = mcnemar_p(int((first[0] & ~second[0]).sum()), int((second[0] & ~first[0]).sum()))
    else:
        p_images = paired_permutation_p(by_image)
    interval, p_seeds, sd = None, None, None
    if len(first) > 1 and len(second) > 1:
        if paired:
            gaps = a - b
            sd = float(gaps.std(ddof=1))
            p_seeds = paired_permutation_p(gaps)
            variance, freedom = sd**2 / len(gaps), float(len(gaps) - 1)
        else:
            each = [float(x.var(ddof=1)) / len(x) for x in (a, b)]
            sd = math.sqrt(float(a.var(ddof=1) + b.var(ddof=1)))
            p_seeds = permutation_p(list(a), list(b))
            variance = sum(each)
            # Welch (1947) and Satterthwaite (1946).
            parts = sum(v**2 / (len(x) - 1) for v, x in zip(each, (a, b), strict=True))
            freedom = variance**2 / parts if parts else float(len(a) + len(b) - 2)
        # Both kinds of chance, added: a little too careful, as what seeds do shows in the images too.
        half = math.hypot(
            t_quantile((1 + CONFIDENCE) / 2, freedom) * math.sqrt(variance),
            _NORMAL.inv_cdf((1 + CONFIDENCE) / 2) * float(by_image.std(ddof=1)) / math.sqrt(images),
        )
        interval = Interval(difference - half, difference + half)
    p = p_images if p_seeds is None else max(p_seeds, p_images)
    return Comparison(difference, interval, p, p_seeds, p_images, paired, (len(first), len(second)), images, sd)


def seeds_needed(sd: float, points: float, power: float = 0.8) -> int:
    """Seeds a side with which a t test at 5 %, two-sided, finds a difference with some probability.

    Args:
        sd: of the difference of a run of each side, points.
        points: the difference to be found.
        power: the probability.
    """

    def enough(n: int) -> bool:
        return (t_quantile(0.975, n - 1) + t_quantile(power, n - 1)) * sd <= points * math.sqrt(n)

    most = 2
    while not enough(most):
        most *= 2
    return bisect.bisect_left(range(most + 1), True, lo=2, key=enough)


def t_quantile(probability: float, freedom: float) -> float:
    """Quantile of Student's t distribution.

    Args:
        probability: above 0, below 1.
        freedom: degrees of freedom, above 0.
    """
    if probability < 0.5:
        return -t_quantile(1 - probability, freedom)
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def t_cdf(t: float, freedom: float) -> float:
    """Distribution function of Student's t distribution, by the regularized incomplete beta function."""
    if t * t < freedom:
        half = 0.5 * _incomplete_beta(0.5, freedom / 2, t * t / (freedom + t * t))
        return 0.5 + math.copysign(half, t)
    tail = 0.5 * _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))
    return 1 - tail if t > 0 else tail


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularized, 0 to 1; by Lentz's continued fraction (Press et al., Numerical Recipes, 6.4)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)) / a
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 500):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            c, d = 1 + term / c, 1 / (1 + term * d)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * value
