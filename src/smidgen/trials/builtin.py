"""The built-in trials by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from smidgen.trial import Trial
from smidgen.trials import fashion, mnist
from smidgen.trials.measured import measured
from smidgen.trials.story import Story

FLAGSHIP = "mnist-4-strict"


@dataclass(frozen=True)
class Builtin:
    """A built-in trial.

    Attributes:
        make: builds it.
        untold: target, result and analysis, without the measured figures.
    """

    make: Callable[[], Trial]
    untold: Story

    @property
    def story(self) -> Story:
        """Target, result and analysis, with the figures measured of this recipe."""
        return self.untold.told(measured(self.make()))


BUILTIN = {
    "mnist-1-skeleton": Builtin(mnist.skeleton, mnist.SKELETON),
    "mnist-2-regularized": Builtin(mnist.regularized, mnist.REGULARIZED),
    "mnist-3-augmented": Builtin(mnist.augmented, mnist.AUGMENTED),
    FLAGSHIP: Builtin(mnist.strict, mnist.STRICT),
    "mnist-tiny": Builtin(mnist.tiny, mnist.TINY),
    "mnist-tiny-99": Builtin(mnist.tiny_99, mnist.TINY_99),
    "mnist-sprint": Builtin(mnist.sprint, mnist.SPRINT),
    "fashion-small": Builtin(fashion.small, fashion.SMALL),
}
"""The built-in trials."""
