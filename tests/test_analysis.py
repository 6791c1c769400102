"""The report's sentences, each rule at its boundary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from smidgen.reports import analysis
from smidgen.reports.analysis import fit_sentence, goal_sentence, held_from, pairs_sentence
from smidgen.reports.collect import binomial_sd
from smidgen.training.loop import EpochRecord
from smidgen.trials.mnist import skeleton


class TestAnalysis:
    trial = skeleton()

    @pytest.mark.parametrize(
        ("train", "held_out", "dropout", "words"),
        [
            (99.51, 99.2, 0.0, "overfits"),
            (99.5, 99.2, 0.0, "neither"),
            (99.51, 99.2, 0.05, "overfits"),
            (99.5, 99.2, 0.05, "no sign of overfitting"),
            (98.69, 98.6, 0.0, "underfits"),
            (98.71, 98.6, 0.0, "neither"),
            (97.0, 98.01, 0.05, "no sign of overfitting."),
            (97.0, 97.99, 0.05, "far below the target"),
        ],
    )
    def test_fit_at_its_boundaries(self, train: float, held_out: float, dropout: float, words: str) -> None:
        """The target is 99 %, so unaugmented training below 98.7 % underfits; a gap above 0.3 points overfits;
        with dropout, below 98 % on the held-out images is far below."""
        sentence = fit_sentence(train, held_out, replace(self.trial, dropout=dropout), "test")
        assert words in sentence
        assert f"{train - held_out:+.2f}" in sentence

    @pytest.mark.parametrize(
        ("correct", "expected"),
        [
            ([1, 5, 5, 5], (2, 2)),
            ([5, 1, 5, 5], (1, 3)),
            ([5, 5, 5, 1], (1, None)),
            ([1, 1, 1, 5], (4, 4)),
            ([1, 4, 4, 4], (None, None)),
            ([5], (1, 1)),
            ([], (None, None)),
        ],
    )
    def test_first_met_and_held(self, correct: list[int], expected: tuple[int | None, int | None]) -> None:
        assert held_from(correct, 5) == expected

    def test_the_goal_in_words(self) -> None:
        assert "No epoch reached the target of 99 %, in 2 runs" in goal_sentence(
            [(None, None), (None, None)], self.trial
        )
        assert "1 of 2 runs" in goal_sentence([(3, None), (None, None)], self.trial)
        assert "none held it" in goal_sentence([(3, None)], self.trial)
        both = goal_sentence([(3, 5), (2, 9)], self.trial)
        assert "first in epoch 2 to 3; 2 held it to the end, from epoch 5 to 9 on" in both

    def history(self, correct: Sequence[int], rates: Sequence[float] | None = None) -> list[EpochRecord]:
        return [
            EpochRecord(i + 1, 0.1, 99.0, 0.1, c, 10_000, rates[i] if rates else 0.1, 1.0, 1.0)
            for i, c in enumerate(correct)
        ]

    def test_stability_against_the_noise_of_so_many_images(self) -> None:
        noise = binomial_sd(99.4, 10_000)
        assert noise == pytest.approx(0.0772, abs=1e-4)
        steady = analysis.stability_sentence([self.history([9_930, 9_940, 9_935, 9_940])])
        moving = analysis.stability_sentence([self.history([9_900, 9_940, 9_920, 9_940])])
        assert steady.endswith("steady.")
        assert moving.endswith("still moving more than noise explains.")
        assert analysis.stability_sentence([self.history([9_900, 9_940, 9_920])]) == ""

    def test_the_effect_of_a_drop(self) -> None:
        drops = analysis.drop_sentences([self.history([9_800, 9_850, 9_900, 9_910], [0.1, 0.1, 0.01, 0.01])])
        assert drops == [
            "The drop of the learning rate from 0.1 to 0.01 at epoch 3 changed the accuracy by +0.50 points."
        ]
        assert analysis.drop_sentences([self.history([9_800] * 6, [0.4, 0.35, 0.25, 0.14, 0.05, 0.001])]) == []
        assert analysis.drop_sentences([self.history([9_800] * 3, [0.1, 0.051, 0.026])]) == []

    def test_the_pairs_that_cost_most(self) -> None:
        labels = np.array([4, 4, 9, 3, 5, 0])
        sentence = pairs_sentence([(labels, np.array([9, 9, 4, 5, 5, 0])), (labels, labels)])
        assert "2.0 images are misclassified per run" in sentence
        assert "4 and 9 (1.5), 3 and 5 (0.5): 100% of all errors" in sentence
        assert pairs_sentence([(labels, labels)]) == "No image is misclassified."
