"""What targets in integers share: the integer network of a run, and the check of an export against it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from torch import Tensor

from smidgen.exports.target import Check, Source, compared
from smidgen.lowering.c.budget import bits_of
from smidgen.lowering.integer import IntegerNetwork
from smidgen.lowering.quantize import calibration_images, quantize

REFERENCE = "the integer network in Python"
OTHERWISE_ROUNDED = 0.005
"""Share of the images that a runtime may put into another class because it rounds differently; seen: at most 0.0011."""


class Quantized:
    """The integer network of a run.

    Args:
        source: what is exported.
        bits: of a weight; None takes as many as the weights were trained for.

    Raises:
        SmidgenError: a layer cannot be expressed in integers; names it.
    """

    def __init__(self, source: Source, bits: int | None = None) -> None:
        self.source = source
        self.network: IntegerNetwork = quantize(source.graph, source.training_images, bits or bits_of(source.run.trial))

    @cached_property
    def scores(self) -> Tensor:
        """Of the test images, in steps of a score: int64 [count, classes]."""
        return self.network.scores(self.source.images)

    @cached_property
    def largest_score(self) -> int:
        """Of the size of a score of the images that the network was calibrated on, in steps of a score; at least 1."""
        scores = self.network.scores(calibration_images(self.source.training_images))
        return max(int(scores.abs().max()), 1)

    def compared(self, scores: Tensor, seconds: float, details: Mapping[str, Any], *, integers: bool = False) -> Check:
        """The check of an export from the scores that it gave.

        Args:
            scores: of the export, one row a test image.
            seconds: that it took for them.
            details: more figures by name.
            integers: whether the scores are in steps and must agree to the last bit; else they are in the unit of
                the network's scores.
        """
        source, labels = self.source, self.source.labels
        grid = self.network.grids[self.network.output]
        reference = self.scores if integers else (self.scores - grid.zero) * grid.scale
        own = self.scores.argmax(1)
        return compared(
            source,
            scores,
            seconds,
            reference=reference,
            called=REFERENCE,
            exact=integers,
            allowed=0 if integers else int(OTHERWISE_ROUNDED * len(labels)),
            details={
                **details,
                "other_class_than_the_float32_network": int((scores.argmax(1) != source.predictions).sum()),
                "accuracy_of_the_float32_network": percent(source.predictions, labels),
                **({} if integers else {"accuracy_of_the_integer_network": percent(own, labels)}),
            },
        )


def percent(found: Tensor, labels: Tensor) -> float:
    """How many of the images that have these labels are in the class that was found for them."""
    return 100 * int((found == labels).sum()) / len(labels)
