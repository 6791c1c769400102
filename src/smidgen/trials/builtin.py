"""The built-in trials by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from smidgen.trial import Trial
from smidgen.trials import fashion, mnist

FLAGSHIP = "mnist-4-strict"


@dataclass(frozen=True)
class Builtin:
    """A built-in trial.

    Attributes:
        make: builds it; its docstring tells target, result and analysis.
        base: the name of the trial that it was made from, if any.
    """

    make: Callable[[], Trial]
    base: str | None = None

    @property
    def story(self) -> str:
        """Target, result and analysis, as written beside the trial."""
        return inspect.getdoc(self.make) or ""


BUILTIN = {
    "mnist-1-skeleton": Builtin(mnist.skeleton),
    "mnist-2-regularized": Builtin(mnist.regularized, base="mnist-1-skeleton"),
    "mnist-3-augmented": Builtin(mnist.augmented, base="mnist-2-regularized"),
    FLAGSHIP: Builtin(mnist.strict, base="mnist-3-augmented"),
    "mnist-tiny": Builtin(mnist.tiny, base=FLAGSHIP),
    "mnist-tiny-99": Builtin(mnist.tiny_99, base="mnist-tiny"),
    "mnist-sprint": Builtin(mnist.sprint, base=FLAGSHIP),
    "fashion-small": Builtin(fashion.small),
}
"""The built-in trials; those for MNIST each made from the one before it."""
