"""`smidgen inspect`: the anatomy of any network, compared with its budget."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from smidgen.anatomy.layers import Anatomy, examine, examine_trial
from smidgen.data.dataset import load_dataset
from smidgen.data.known import KNOWN, MNIST_CLASSES, MNIST_SHAPE
from smidgen.errors import TrialError
from smidgen.machine import exclusive
from smidgen.nets.code import call_with
from smidgen.nets.own import user_errors
from smidgen.tables import TableFormat
from smidgen.trial import Trial
from smidgen.trials.find import find_trial_or_network


@dataclass(frozen=True)
class Inspection:
    """A network's anatomy and, for a trial, its budget.

    Attributes:
        name: what was inspected.
        anatomy: the layers and totals.
        trial: whose network it is; None for a bare module.
        max_parameters: a budget that was given, instead of the trial's.
    """

    name: str
    anatomy: Anatomy
    trial: Trial | None = None
    max_parameters: int | None = None

    @property
    def budgets(self) -> dict[str, tuple[int, int]]:
        """Used and allowed amount of each budget."""
        budgets = {}
        most = self.max_parameters or (self.trial.goal.parameters if self.trial else None)
        if most is not None:
            budgets["parameters"] = (self.anatomy.parameters, most)
        if self.trial is not None:
            budgets["epochs"] = (self.trial.epochs, self.trial.goal.epochs)
        return budgets

    @property
    def within_budget(self) -> bool | None:
        """Whether every budget is kept; None where there is none."""
        return all(used <= most for used, most in self.budgets.values()) if self.budgets else None

    def to_json(self) -> dict[str, Any]:
        """The inspection as JSON data."""
        budget = None
        if self.budgets:
            budget = {**{what: most for what, (_, most) in self.budgets.items()}, "met": self.within_budget}
        return {"name": self.name, **self.anatomy.to_json(), "budget": budget}

    def text(self, format: TableFormat = "table") -> str:
        """Table, totals and budget verdict; only the table for CSV."""
        if format == "csv":
            return self.anatomy.table("csv")
        parts = [self.name, "", self.anatomy.table(format), "" if format == "markdown" else None]
        totals = self.anatomy.totals().splitlines()
        parts += [f"- {line}" for line in totals] if format == "markdown" else totals
        parts += [f"- {line}" for line in self._verdicts()] if format == "markdown" else self._verdicts()
        return "\n".join(part for part in parts if part is not None)

    def _verdicts(self) -> list[str]:
        verdicts = []
        for what, (used, limit) in self.budgets.items():
            spare = limit - used
            verdict = f"met, {spare:,} to spare" if spare >= 0 else f"MISSED, {-spare:,} too many"
            verdicts.append(f"budget of at most {limit:,} {what}: {used:,}, {verdict}")
        return verdicts

    def _repr_html_(self) -> str:
        lines = [*self.anatomy.totals().splitlines(), *self._verdicts()]
        return (
            f"<p>{html.escape(self.name)}</p>{self.anatomy.table('html')}<p>{'<br>'.join(map(html.escape, lines))}</p>"
        )


@exclusive()
def inspect(
    what: Trial | nn.Module | Callable[..., nn.Module] | str | Path,
    *,
    input_shape: Sequence[int] | None = None,
    max_parameters: int | None = None,
) -> Inspection:
    """The anatomy of a trial's network or of any module.

    Args:
        what: a trial, a module, a module's class or a function that returns one; or what names one: a built-in
            name, `FILE.py:NAME`, a `trial.json`. Classes and functions are called with `input_shape` and `classes`
            (10), as far as they take them.
        input_shape: channels, height, width; None takes the trial's data's, or MNIST's for a module.
        max_parameters: a budget; None takes the trial's.

    Raises:
        SmidgenError: nothing of that name, or the network does not take such an input.
    """
    name = str(what) if isinstance(what, str | Path) else ""
    shape = tuple(input_shape or MNIST_SHAPE)
    if isinstance(what, Trial | nn.Module):
        found = what
    elif isinstance(what, str | Path):
        found = find_trial_or_network(what, input_shape=shape, classes=MNIST_CLASSES)
    else:
        name = getattr(what, "__name__", "")
        with user_errors(f"{name}() failed"):
            found = call_with(what, input_shape=shape, classes=MNIST_CLASSES)
    if isinstance(found, nn.Module):
        return Inspection(name or type(found).__name__, examine(found, shape), None, max_parameters)
    if found.data.shape is not None:
        input_shape = input_shape or found.data.shape
    known = KNOWN.get(found.data.source)
    if known is not None:
        classes, input_shape = known.classes, input_shape or known.shape
    else:
        # Shape and classes are in the training files; the test files need not even be there.
        dataset = load_dataset(found.data.source, validation=1, shape=found.data.shape)
        classes, input_shape = dataset.classes, input_shape or dataset.input_shape
    shape = tuple(input_shape or MNIST_SHAPE)
    if len(shape) != 3:
        raise TrialError(f"an input shape has three numbers, channels, height and width, not {len(shape)}")
    return Inspection(found.name, examine_trial(found, shape, classes), found, max_parameters)
