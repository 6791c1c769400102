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
    """

    make: Callable[[], Trial]

    @property
    def story(self) -> str:
        """Target, result and analysis, as written beside the trial."""
        return inspect.getdoc(self.make) or ""


BUILTIN = {
    "mnist-1-skeleton": Builtin(mnist.skeleton),
    "mnist-2-regularized": Builtin(mnist.regularized),
    "mnist-3-augmented": Builtin(mnist.augmented),
    FLAGSHIP: Builtin(mnist.strict),
    "mnist-tiny": Builtin(mnist.tiny),
    "mnist-tiny-99": Builtin(mnist.tiny_99),
    "mnist-sprint": Builtin(mnist.sprint),
    "fashion-small": Builtin(fashion.small),
}
"""The built-in trials."""
