"""Statistics of runs over seeds and over test images.

Accuracies and their differences are in percent and points (a test image of 10,000 is 0.01 points).
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy  # loads scipy.stats, which takes a second, when first used

from smidgen.tables import paragraph

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

CONFIDENCE = 0.95
POWER = 0.8
"""The probability with which `Comparison.seeds_needed` seeds find a difference."""
PERMUTATION_SEEDS = 6
"""Seeds a side from which a permutation test is shown beside the comparison: with 5 pairs its least p is 0.0625."""
_RESAMPLES = 20_000
_MOST_SEEDS = 2**20
_SMALLEST_P = 1e-100
_NODES = 100
"""Points at which an integral over the chi-square distribution is evaluated."""

ComparisonVerdict = Literal["better", "worse", "not distinguishable", "unknown"]


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
    """Accuracy of several runs of one trial.

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
        ValueError: there are no runs, or fewer than reached their goal.
    """
    n = len(accuracies)
    if n == 0:
        raise ValueError("no runs to summarize")
    sd = statistics.stdev(accuracies) if n > 1 else None
    wilson = scipy.stats.binomtest(at_goal, n).proportion_ci(CONFIDENCE, method="wilson")
    return Summary(
        n=n,
        mean=statistics.fmean(accuracies),
        sd=sd,
        standard_error=None if sd is None else sd / math.sqrt(n),
        least=min(accuracies),
        most=max(accuracies),
        at_goal=at_goal,
        goal_share=at_goal / n,
        goal_interval=Interval(float(wilson.low), float(wilson.high)),
        mean_interval=_bootstrap(accuracies) if len(set(accuracies)) > 2 else None,
    )


def _bootstrap(values: Sequence[float]) -> Interval:
    rng = np.random.default_rng(0)  # the same values give the same interval
    found = scipy.stats.bootstrap((values,), np.mean, n_resamples=_RESAMPLES, confidence_level=CONFIDENCE, rng=rng)
    return Interval(float(found.confidence_interval.low), float(found.confidence_interval.high))


@dataclass(frozen=True)
class SeedComponent:
    """Variance of a mean difference of accuracies due to the seeds of one independent sample of runs.

    The sample is the runs of one side, or the pairs of runs with the same seed. Variances are those
    of the mean over the sample's runs, points²; arrays in a simulation of many comparisons.

    Attributes:
        runs: size of the sample, at least 2.
        variance: estimated from the accuracies of the runs, with runs - 1 degrees of freedom.
        residual: the part of it that comes from what a run does to each image by itself.
    """

    runs: int
    variance: Floats
    residual: Floats

    def with_runs(self, runs: int) -> SeedComponent:
        """The expected variance for a sample of another size."""
        shrinks = self.runs / runs
        # By chance the estimate can lie below the part of it that is known well.
        return SeedComponent(runs, np.maximum(self.variance, self.residual) * shrinks, self.residual * shrinks)


@dataclass(frozen=True)
class VarianceComponents:
    """Variance of a mean difference of accuracies due to seeds and images, crossed.

    The variance is the sum of independent parts: one for each sample of runs, and the images' own.
    The interval takes each part with the t quantile of its own degrees of freedom:

        half² = Σ t²(runs - 1) · variance + t²(images - 1) · images

    (Banerjee, Sankhyā 22, 1960.) It covers the truth with at least the stated confidence for any
    ratio of the parts. Degrees of freedom after Satterthwaite or Welch do not: with 2 or 3 runs a
    side they gave 6 to 12 % false alarms in simulations where they promised 5 %. It is never
    narrower than the interval of the images alone, as the runs of so few seeds can agree by luck.

    Attributes:
        seeds: one part for paired runs, one a side for unpaired ones; none where seeds are not known.
        images: variance of the mean difference that more seeds do not reduce, points².
        count: number of images.
    """

    seeds: tuple[SeedComponent, ...]
    images: Floats
    count: int

    def half_width(self, significance: float = 1 - CONFIDENCE) -> Floats:
        """Half the width of the interval with confidence 1 - `significance`, points."""
        t_images = _t(significance, self.count - 1)
        summed = t_images**2 * self.images + sum(_t(significance, s.runs - 1) ** 2 * s.variance for s in self.seeds)
        alone = t_images**2 * (self.images + sum(s.residual for s in self.seeds))
        half: Floats = np.sqrt(np.maximum(summed, alone))
        return half

    def p(self, difference: float) -> float:
        """Two-sided p of a difference: the significance at which its interval ends at 0."""
        if difference == 0:
            return 1.0

        def reach(logarithm: float) -> float:
            return float(self.half_width(math.exp(logarithm))) - abs(difference)

        least = math.log(_SMALLEST_P)
        return math.exp(scipy.optimize.brentq(reach, least, 0.0, xtol=1e-12)) if reach(least) > 0 else _SMALLEST_P

    def power(self, points: float, runs: int) -> float:
        """Probability that a comparison finds a true difference, with so many runs a side instead.

        The estimates here are taken for the true variances; those of the comparison to come are
        integrated over their chi-square distributions.
        """
        planned = [sample.with_runs(runs) for sample in self.seeds]
        sd = math.sqrt(float(self.images + sum(sample.variance for sample in planned)))
        if sd == 0:
            return 1.0
        grid = (np.arange(_NODES) + 0.5) / _NODES
        drawn = scipy.stats.chi2.ppf(grid, runs - 1) / (runs - 1)
        factors = np.meshgrid(*[drawn] * len(planned))
        estimated = [replace(s, variance=s.variance * factor) for s, factor in zip(planned, factors, strict=True)]
        half = replace(self, seeds=tuple(estimated)).half_width()
        found = scipy.special.ndtr((points - half) / sd) + scipy.special.ndtr((-points - half) / sd)
        return float(found.mean())

    def seeds_needed(self, points: float) -> int | None:
        """As `Comparison.seeds_needed`."""

        def enough(runs: int) -> bool:
            return self.power(points, runs) >= POWER

        most = 2
        while not enough(most):
            most *= 2
            if most > _MOST_SEEDS:
                return None
        return bisect.bisect_left(range(most), True, lo=2, key=enough)


def _t(significance: float, freedom: int) -> Any:
    return scipy.stats.t.isf(significance / 2, freedom)


@dataclass(frozen=True)
class Comparison:
    """Two sets of networks on the same test images.

    Seeds and images are both taken for samples: a difference is called real where it would show again
    with other seeds and other images of the same kind.

    Attributes:
        difference: mean accuracy of the first set minus that of the second, points.
        interval: 95 %; None if a side has a single run, since the variance between seeds is then unknown.
        p: two-sided; below 0.05 exactly where the interval leaves out 0. Where a side has a single
            run, it is about other images only, with these networks (McNemar's exact test for one run
            against one).
        paired: whether the sets have the same seeds, which were then paired.
        n: runs in the first and in the second set.
        images: test images.
        components: what the difference owes to chance.
        p_permutation: of a permutation test over seeds, on these images: a second opinion that
            decides nothing. None with fewer than 6 runs a side, where it can hardly be small.
        names: of the two sets.
        notes: what may have changed the answers that were compared; one line each.
        identical: whether both sets are right and wrong about the same images, run by run.
    """

    difference: float
    interval: Interval | None
    p: float
    paired: bool
    n: tuple[int, int]
    images: int
    components: VarianceComponents
    p_permutation: float | None = None
    names: tuple[str, str] = ("the first set", "the second set")
    notes: tuple[str, ...] = ()
    identical: bool = False

    @property
    def verdict(self) -> ComparisonVerdict:
        """Whether the first set is better or worse; unknown where a side has a single run."""
        if self.interval is None:
            return "unknown"
        if self.interval.low > 0:
            return "better"
        return "worse" if self.interval.high < 0 else "not distinguishable"

    @property
    def _coarse(self) -> bool:
        """Whether a single image is more than 0.02 points."""
        return 100 / self.images > 0.02

    def seeds_needed(self, points: float) -> int | None:
        """The fewest seeds a side with which a true difference is found with a probability of 80 %.

        Args:
            points: the difference.

        Returns:
            None where no number of seeds is enough on so few images, or a side has a single run.

        Raises:
            ValueError: `points` is not above 0.
        """
        if points <= 0:
            raise ValueError("a difference to be found must be above 0")
        return self.components.seeds_needed(points) if self.components.seeds else None

    def to_json(self) -> dict[str, float | int | bool | str | None]:
        """The comparison as `smidgen compare --json` prints it; points."""
        return {
            "name": self.names[0],
            "name_with": self.names[1],
            "verdict": self.verdict,
            "difference": self.difference,
            "low95": self.interval.low if self.interval else None,
            "high95": self.interval.high if self.interval else None,
            "p": self.p,
            "p_permutation": self.p_permutation,
            "paired": self.paired,
            "n": self.n[0],
            "n_with": self.n[1],
            "images": self.images,
            "seeds_for_002_points": None if self._coarse or self.identical else self.seeds_needed(0.02),
        }

    def _repr_html_(self) -> str:
        return paragraph(str(self), *self.notes)

    def __str__(self) -> str:
        """The comparison in a sentence."""
        what = (
            f"{self.names[0]} against {self.names[1]} on the same {self.images:,} images: {self.difference:+.3f} points"
        )
        runs = f"{self.n[0]} run{'s' * (self.n[0] > 1)} against {self.n[1]}{', paired by seed' * self.paired}"
        if self.interval is None:
            return f"{what} ({runs}; p = {self.p:.3g} for other images): a single run says nothing about other seeds."
        figures = [f"95 % interval {self.interval.low:+.3f} to {self.interval.high:+.3f}", f"p = {self.p:.3g}"]
        if self.p_permutation is not None:
            figures.append(f"by permutation p = {self.p_permutation:.3g}")
        text = f"{what} ({', '.join(figures)}; {runs}): {self.verdict}"
        if self.verdict != "not distinguishable":
            return f"{text}."
        if self.identical:
            return f"{text}; every run has its equal in the other set."
        if self._coarse:
            one = 100 / self.images
            return f"{text}; one of these images is {one:.2g} points, so they cannot show a difference of 0.02."
        needed = self.seeds_needed(0.02)
        if needed is None:
            return f"{text}; no number of seeds makes 0.02 points distinguishable on these images."
        return f"{text}; 0.02 points need about {needed:,} seeds a side."


def compare_sets(first: Flags, second: Flags, seeds: tuple[Sequence[int], Sequence[int]]) -> Comparison:
    """Compare two sets of networks on the same images.

    Args:
        first: [runs, images], whether each image was classified correctly.
        second: the same, of the other set; the images are the same and in the same order.
        seeds: of the runs of both sets.

    Raises:
        ValueError: the sets are empty, or have different images or fewer than two.
    """
    if first.ndim != 2 or second.ndim != 2 or not len(first) or not len(second):
        raise ValueError("each set needs at least one run")
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"the sets are of {first.shape[1]:,} and {second.shape[1]:,} images")
    if first.shape[1] < 2:
        raise ValueError("a comparison needs at least two images")
    paired = len(set(seeds[0])) == len(first) and sorted(seeds[0]) == sorted(seeds[1])
    if paired:
        first, second = first[np.argsort(seeds[0])], second[np.argsort(seeds[1])]
    difference = 100 * float(first.mean() - second.mean())
    components = variance_components(first, second, paired=paired)
    interval = None
    if components.seeds:
        half = float(components.half_width())
        interval = Interval(difference - half, difference + half)
    if len(first) == len(second) == 1:
        p = _mcnemar(int((first & ~second).sum()), int((second & ~first).sum()))
    else:
        p = components.p(difference)
    permuted = _permutation(first, second, paired=paired) if min(len(first), len(second)) >= PERMUTATION_SEEDS else None
    counts, same = (len(first), len(second)), bool(np.array_equal(first, second))
    return Comparison(difference, interval, p, paired, counts, first.shape[1], components, permuted, identical=same)


def variance_components(first: Flags, second: Flags, *, paired: bool) -> VarianceComponents:
    """Estimate what the difference of two sets owes to seeds and to images.

    Args:
        first: [..., runs, images], whether each image was classified correctly.
        second: the same, of the other set.
        paired: whether the runs of the two belong together in their order.
    """
    if min(first.shape[-2], second.shape[-2]) < 2:
        seeds: tuple[SeedComponent, ...] = ()
    elif paired:
        seeds = (_seed_component(first.astype(np.int8) - second),)
    else:
        seeds = (_seed_component(first), _seed_component(second))
    images = first.shape[-1]
    by_image = first.mean(axis=-2) - second.mean(axis=-2)
    # What each run does to each image by itself shows in the images, too, and counts once: in the seeds.
    own = 1e4 * by_image.var(axis=-1, ddof=1) / images - sum(sample.residual for sample in seeds)
    return VarianceComponents(seeds, np.maximum(own, 0.0), images)


def _seed_component(answers: npt.NDArray[Any]) -> SeedComponent:
    """The part of one sample of runs.

    Args:
        answers: [..., runs, images], 1 and 0, or their differences for pairs of runs.
    """
    runs, images = answers.shape[-2:]
    by_run, by_image = answers.mean(axis=-1), answers.mean(axis=-2)
    # A two-way table without replication: what remains beside the effects of runs and of images.
    squares = np.count_nonzero(answers, axis=(-2, -1)) + runs * images * by_run.mean(axis=-1) ** 2
    squares = squares - images * (by_run**2).sum(axis=-1) - runs * (by_image**2).sum(axis=-1)
    residual = 1e4 * np.maximum(squares, 0.0) / ((runs - 1) * (images - 1) * runs * images)
    return SeedComponent(runs, 1e4 * by_run.var(axis=-1, ddof=1) / runs, residual)


def _mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p of McNemar's test: whether two classifiers err equally often."""
    either = only_first + only_second
    return float(scipy.stats.binomtest(only_first, either).pvalue) if either else 1.0


def _permutation(first: Flags, second: Flags, *, paired: bool) -> float:
    """Two-sided p over all ways to swap the runs of pairs, or to deal all runs into two such sets.

    Exact up to 20,000 ways; beyond, from as many drawn ones. On counts of images: with accuracies,
    rounding would break ties.
    """
    found = scipy.stats.permutation_test(
        (first.sum(axis=1), second.sum(axis=1)),
        lambda x, y, axis: (x - y).sum(axis=axis) if paired else x.sum(axis=axis),
        permutation_type="samples" if paired else "independent",
        n_resamples=_RESAMPLES,
        vectorized=True,
        batch=1_000,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)
