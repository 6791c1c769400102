"""The statistics against published figures, by hand, and in simulations of seeds and images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from smidgen.statistics import (
    Comparison,
    SeedComponent,
    VarianceComponents,
    compare_sets,
    summarize,
    variance_components,
)

ACCURACIES = [99.51, 99.55, 99.39, 99.62, 99.48, 99.50, 99.47, 99.53]
Flags = npt.NDArray[np.bool_]


class TestSummary:
    def test_it_is_what_its_words_say(self) -> None:
        summary = summarize(ACCURACIES, at_goal=7)
        assert summary.n == 8
        assert summary.mean == pytest.approx(np.mean(ACCURACIES))
        assert summary.sd == pytest.approx(np.std(ACCURACIES, ddof=1))
        assert summary.standard_error == pytest.approx(scipy.stats.sem(ACCURACIES))
        assert (summary.least, summary.most, summary.at_goal, summary.goal_share) == (99.39, 99.62, 7, 7 / 8)
        assert summary == summarize(ACCURACIES, at_goal=7)
        single = summarize([99.4], 1)
        assert (single.sd, single.standard_error, single.mean_interval) == (None, None, None)
        with pytest.raises(ValueError, match="no run"):
            summarize([], 0)

    @pytest.mark.parametrize(
        ("successes", "n", "low", "high"),
        [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
    )
    def test_the_interval_of_the_share_as_published(self, successes: int, n: int, low: float, high: float) -> None:
        """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
        interval = summarize([99.0] * n, successes).goal_interval
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=6e-5)

    def test_the_interval_of_the_mean_covers_it(self) -> None:
        rng = np.random.default_rng(3)
        covered = 0
        for _ in range(40):
            interval = summarize(list(rng.normal(99.5, 0.05, size=32)), 0).mean_interval
            assert interval is not None
            covered += interval.low <= 99.5 <= interval.high
        assert covered >= 34


@dataclass(frozen=True)
class World:
    """Networks that are simulated: the logit of an image's being classified correctly is a sum of normal draws.

    Attributes:
        images: in the test set.
        easy: mean logit: 4 with a spread of 2 is about 94 %.
        spread: s.d. of the images' difficulty, the same for both methods.
        own: s.d. of each method's own difficulty with each image: chance that no seeds reduce.
        quality: s.d. of the runs.
        shared: s.d. of what two runs of the same seed have in common, where paired.
        effect: what the first method is better by.
    """

    images: int = 200
    easy: float = 4.0
    spread: float = 2.0
    own: float = 0.6
    quality: float = 0.2
    shared: float = 0.1
    effect: float = 0.0

    def draw(
        self, rng: np.random.Generator, comparisons: int, runs: tuple[int, int], *, paired: bool
    ) -> tuple[Flags, Flags]:
        """Two sets of [comparisons, runs, images]: all images and runs anew for each comparison."""

        def normal(sd: float, *shape: int) -> npt.NDArray[np.float32]:
            return np.float32(sd) * rng.standard_normal((comparisons, *shape), dtype=np.float32)

        difficulty = normal(self.spread, 1, self.images) + np.float32(self.easy)
        common = normal(self.shared, runs[0], 1) if paired else np.float32(0)
        sets = []
        for n, effect in zip(runs, (self.effect, 0.0), strict=True):
            logit = difficulty + normal(self.own, 1, self.images)
            logit = logit + normal(self.quality, n, 1) + common + np.float32(effect)
            sets.append(rng.random(logit.shape, dtype=np.float32) < scipy.special.expit(logit))
        return sets[0], sets[1]

    def points(self) -> float:
        """The true difference."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(60)
        shared = self.shared**2
        sd = (self.spread**2 + self.own**2 + self.quality**2 + shared) ** 0.5
        accuracies = [weights @ scipy.special.expit(self.easy + e + sd * nodes) for e in (self.effect, 0.0)]
        return float(100 * (accuracies[0] - accuracies[1]) / weights.sum())


@dataclass(frozen=True)
class Simulated:
    """Comparisons that were simulated: arrays, an item each."""

    difference: npt.NDArray[np.float64]
    components: VarianceComponents

    @property
    def found(self) -> float:
        """The share in which the interval leaves out 0."""
        return float(np.mean(np.abs(self.difference) > self.components.half_width()))


def simulate(world: World, runs: tuple[int, int], comparisons: int, *, paired: bool, seed: int = 0) -> Simulated:
    rng = np.random.default_rng([seed, *runs, paired])
    parts = []
    for count in _chunks(comparisons, max(1, 4_000_000 // (sum(runs) * world.images))):
        first, second = world.draw(rng, count, runs, paired=paired)
        difference = 100 * (first.mean(axis=(-2, -1)) - second.mean(axis=(-2, -1)))
        parts.append((difference, variance_components(first, second, paired=paired)))
    seeds = tuple(
        SeedComponent(
            same[0].runs, np.concatenate([s.variance for s in same]), np.concatenate([s.residual for s in same])
        )
        for same in zip(*(components.seeds for _, components in parts), strict=True)
    )
    images = np.concatenate([components.images for _, components in parts])
    return Simulated(np.concatenate([d for d, _ in parts]), VarianceComponents(seeds, images, world.images))


def _chunks(total: int, size: int) -> Iterator[int]:
    for begin in range(0, total, size):
        yield min(size, total - begin)


def most_false_alarms(comparisons: int) -> float:
    """5 %, and three standard errors of the simulation."""
    return 0.05 + 3 * math.sqrt(0.05 * 0.95 / comparisons)


SIDES = pytest.mark.parametrize("n", [2, 3, 5, 8, 20])
PAIRED = pytest.mark.parametrize("paired", [True, False], ids=["paired", "unpaired"])
WORLDS = {
    "both": World(),
    "seeds": World(own=0.0, quality=0.5),
    "images": World(own=2.5, quality=0.0, shared=0.0),
    "images and some seeds": World(own=2.5, quality=0.6),
    "neither": World(own=0.0, quality=0.0, shared=0.0),
    "like MNIST": World(images=10_000, easy=9.2, spread=3.0, own=0.5, quality=0.07),  # 99.5 ± 0.06 %
}


class TestFalseAlarms:
    """Two methods that are equally good must be called different in at most 5 of 100 comparisons."""

    @SIDES
    @PAIRED
    def test_in_short(self, n: int, paired: bool) -> None:
        world = World(own=1.0, quality=0.5)
        assert simulate(world, (n, n), 4_000, paired=paired).found <= most_false_alarms(4_000)

    @pytest.mark.parametrize(("runs", "quality"), [((2, 20), 0.5), ((3, 8), 0.5), ((2, 2), 1.0)])
    def test_with_unequal_numbers_of_runs(self, runs: tuple[int, int], quality: float) -> None:
        """Welch's test gives 11 % with 2 runs against 20."""
        world = World(own=0.1, quality=quality)
        assert simulate(world, runs, 4_000, paired=False).found <= most_false_alarms(4_000)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", WORLDS)
    @SIDES
    @PAIRED
    def test_in_full(self, name: str, n: int, paired: bool) -> None:
        world = WORLDS[name]
        comparisons = 2_000 if world.images > 1_000 else 20_000
        found = simulate(world, (n, n), comparisons, paired=paired).found
        print(f"\nfalse alarms | {name} | {'paired' if paired else 'unpaired'} | n = {n} | {100 * found:.1f} %")
        assert found <= most_false_alarms(comparisons)


class TestPower:
    """The seeds that are said to be needed find a difference in 80 of 100 comparisons."""

    @pytest.mark.parametrize(("n", "own"), [(3, 0.5), (8, 2.0)])
    @PAIRED
    def test_in_short(self, n: int, own: float, paired: bool) -> None:
        self.hold(World(images=300, easy=3.0, own=own), n, 1_500, paired)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["both", "seeds", "images and some seeds"])
    @SIDES
    @PAIRED
    def test_in_full(self, name: str, n: int, paired: bool) -> None:
        world = replace(WORLDS[name], images=1_000)
        if n == 2:  # no effect is large enough for 2 runs that differ so much
            world = replace(world, quality=world.quality / 5, shared=world.shared / 5)
        found = self.hold(world, n, 4_000, paired)
        print(f"\npower | {name} | {'paired' if paired else 'unpaired'} | n = {n} | {100 * found:.1f} %")

    def hold(self, world: World, n: int, comparisons: int, paired: bool) -> float:
        """Choose the effect for which n seeds are just enough, and see how often n seeds find it."""
        for _ in range(3):  # a larger effect changes the variances, too
            world = self.just_found(world, self.truth(world, paired), n)
        needed = self.truth(world, paired).seeds_needed(abs(world.points()))
        assert needed is not None
        assert abs(needed - n) <= 1 + n // 10
        found = simulate(world, (n, n), comparisons, paired=paired, seed=1).found
        assert 0.75 <= found <= 0.85
        return found

    def just_found(self, world: World, truth: VarianceComponents, n: int) -> World:
        """The world with the effect that n seeds find in 80 of 100 comparisons."""

        def missing(effect: float) -> float:
            return truth.power(abs(replace(world, effect=effect).points()), n) - 0.8

        return replace(world, effect=scipy.optimize.brentq(missing, -world.easy - 3, -1e-3))

    def truth(self, world: World, paired: bool) -> VarianceComponents:
        """The components themselves, from the mean of many estimates."""
        components = simulate(world, (10, 10), 400, paired=paired).components
        seeds = tuple(
            SeedComponent(s.runs, np.asarray(s.variance.mean()), np.asarray(s.residual.mean()))
            for s in components.seeds
        )
        return VarianceComponents(seeds, np.asarray(components.images.mean()), world.images)

    def test_so_few_images_that_no_seeds_help(self) -> None:
        always = np.ones((8, 500), dtype=bool)
        first, second = always.copy(), always.copy()
        first[:, :10] = np.arange(8)[:, None] % 4 > 0
        second[:, 10:14] = False
        comparison = compare_sets(first, second, (range(8), range(8)))
        assert comparison.seeds_needed(0.02) is None
        assert comparison.to_json()["seeds_for_002_points"] is None
        assert "one of these images is 0.2 points, so they cannot show a difference of 0.02." in str(comparison)
        assert comparison.seeds_needed(20) == 2
        with pytest.raises(ValueError, match="above 0"):
            comparison.seeds_needed(0)
        itself = compare_sets(first, first, (range(8), range(8)))
        assert str(itself).endswith("not distinguishable; every run has its equal in the other set.")
        assert itself.to_json()["seeds_for_002_points"] is None


@PAIRED
@pytest.mark.parametrize("name", ["both", "seeds", "images and some seeds", "neither"])
def test_each_kind_of_chance_counts_once(name: str, paired: bool) -> None:
    """The estimated variance is that with which the difference varies: no more, no less."""
    simulated = simulate(WORLDS[name], (5, 5), 3_000, paired=paired)
    components = simulated.components
    estimated = float(np.mean(components.images + sum(sample.variance for sample in components.seeds)))
    # Where images have no part of their own, its estimate is cut off at 0, so its mean is above it.
    assert 0.92 * simulated.difference.var() <= estimated <= 1.15 * simulated.difference.var()


def networks(rng: np.random.Generator, runs: int, images: int, accuracy: float) -> Flags:
    """Networks of so many percent: half of their mistakes are on the same images, and runs differ by 0.05 points."""
    errors = np.clip(100 - accuracy + rng.normal(0, 0.05, size=(runs, 1)), 0.01, None) / 100
    hard = np.arange(images) < images * (100 - accuracy) / 100
    chance: Flags = rng.random((runs, images)) >= np.where(hard, 0.5, errors / 2)
    return chance


class TestComparison:
    rng = np.random.default_rng(6)
    good, bad = networks(rng, 20, 10_000, 99.5), networks(rng, 20, 10_000, 95.0)
    level = networks(rng, 20, 10_000, 99.5)

    def compare(self, first: Flags, second: Flags, *, paired: bool = True) -> Comparison:
        begin = 0 if paired else 1_000
        return compare_sets(first, second, (range(len(first)), range(begin, begin + len(second))))

    @pytest.mark.parametrize("n", [2, 3, 5, 20])
    @PAIRED
    def test_995_against_95_is_different(self, n: int, paired: bool) -> None:
        comparison = self.compare(self.good[:n], self.bad[:n], paired=paired)
        assert comparison.verdict == "better"
        assert comparison.difference == pytest.approx(4.5, abs=0.4)
        assert self.compare(self.bad[:n], self.good[:n], paired=paired).verdict == "worse"

    @pytest.mark.parametrize("n", [2, 5, 20])
    def test_equal_ones_are_not(self, n: int) -> None:
        assert self.compare(self.good[:n], self.level[:n]).verdict == "not distinguishable"
        same = self.compare(self.good[:n], self.good[:n])
        assert (same.difference, same.p, same.verdict) == (0, 1, "not distinguishable")

    @settings(max_examples=80, deadline=None)
    @given(
        st.integers(2, 7), st.integers(2, 7), st.integers(5, 60), st.floats(0.1, 0.9), st.booleans(), st.integers(0, 99)
    )
    def test_p_and_interval_agree(self, n: int, m: int, images: int, share: float, paired: bool, seed: int) -> None:
        rng = np.random.default_rng(seed)
        m = n if paired else m
        comparison = self.compare(rng.random((n, images)) < share, rng.random((m, images)) < 0.5, paired=paired)
        interval = comparison.interval
        assert interval is not None
        assert comparison.paired == paired
        assert (comparison.p < 0.05) == (interval.low > 0 or interval.high < 0)
        assert (comparison.verdict == "not distinguishable") == (comparison.p >= 0.05)
        if comparison.difference:
            assert comparison.components.half_width(comparison.p) == pytest.approx(abs(comparison.difference))

    def test_many_seeds_do_not_make_up_for_few_images(self) -> None:
        """Every seed has the same three images more: with other images it might be the other way round."""
        first, second = np.ones((20, 1_000), dtype=bool), np.ones((20, 1_000), dtype=bool)
        second[:, :3] = False
        assert self.compare(first, second).verdict == "not distinguishable"

    def test_two_seeds_that_agree_by_luck(self) -> None:
        """Both pairs differ by 8 images of 1,000, each on images of its own, of 40 that differ."""
        first, second = np.ones((2, 1_000), dtype=bool), np.ones((2, 1_000), dtype=bool)
        first[0, :16], second[0, 16:40] = False, False
        first[1, 40:56], second[1, 56:80] = False, False
        assert self.compare(first, second).verdict == "not distinguishable"

    def test_one_run_says_nothing_of_seeds(self) -> None:
        single = self.compare(self.good[:1], self.bad[:1])
        only_good, only_bad = (self.good[0] & ~self.bad[0]).sum(), (self.bad[0] & ~self.good[0]).sum()
        assert single.interval is None
        assert single.verdict == "unknown"
        assert single.p == scipy.stats.binomtest(only_good, only_good + only_bad).pvalue
        assert single.seeds_needed(0.02) is None
        several = self.compare(self.good[:1], self.bad[:5], paired=False)
        assert (several.interval, several.verdict) == (None, "unknown")
        assert several.p < 0.01
        assert compare_sets(self.good[:1], self.good[:1], ([0], [1])).p == 1

    def test_what_cannot_be_compared(self) -> None:
        with pytest.raises(ValueError, match="600 and 500"):
            self.compare(self.good[:, :600], self.bad[:, :500])
        with pytest.raises(ValueError, match="at least one run"):
            self.compare(self.good[:0], self.bad)
        with pytest.raises(ValueError, match="two images"):
            self.compare(self.good[:, :1], self.bad[:, :1])

    def test_pairing_follows_the_seeds_and_not_the_order(self) -> None:
        a, b = self.good[:6], self.bad[:6]
        order = [3, 1, 5, 0, 4, 2]
        assert compare_sets(a, b, (range(6), range(6))) == compare_sets(a[order], b, (order, range(6)))
        assert not compare_sets(a, b, (range(6), range(5, 11))).paired

    def test_permutations_as_counted_by_hand(self) -> None:
        first, second = self.good[:6], self.level[:6]
        counts = first.sum(axis=1), second.sum(axis=1)
        gaps = counts[0] - counts[1]
        signs = np.array(list(itertools.product((1, -1), repeat=6)))
        expected = (np.abs(signs @ gaps) >= abs(gaps.sum())).mean()
        assert self.compare(first, second).p_permutation == pytest.approx(expected)
        pooled = np.concatenate(counts)
        sums = np.array([pooled[list(picks)].sum() for picks in itertools.combinations(range(12), 6)])
        expected = (np.abs(sums - pooled.sum() / 2) >= abs(gaps.sum()) / 2).mean()
        assert self.compare(first, second, paired=False).p_permutation == pytest.approx(expected)
        assert self.compare(first[:5], second[:5]).p_permutation is None
