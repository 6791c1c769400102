"""`smidgen inspect`: the anatomy of any network, compared with its budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from smidgen.anatomy.layers import Anatomy, examine, examine_trial
from smidgen.data.dataset import load_dataset
from smidgen.data.known import KNOWN, MNIST_CLASSES, MNIST_SHAPE
from smidgen.errors import SmidgenError, TrialError
from smidgen.graph.ops import Shape
from smidgen.lowering.c.budget import bits_of
from smidgen.lowering.c.sizes import Sizes, int8_sizes
from smidgen.machine import exclusive
from smidgen.nets.build import build_network
from smidgen.nets.code import call_with
from smidgen.nets.own import user_errors
from smidgen.tables import TableFormat, paragraph
from smidgen.trial import BUDGETS, IN_BYTES, Trial, check_limit
from smidgen.trials.find import find_trial_or_network


@dataclass(frozen=True, repr=False)
class Inspection:
    """A network's anatomy and, for a trial, its budget.

    Attributes:
        name: what was inspected.
        anatomy: the layers and totals.
        trial: whose network it is; None for a bare module.
        limits: budgets by their names in `BUDGETS`: those that were given, else the trial's.
        sizes: on a microcontroller, within the budget of RAM if possible; None where there is no such export of it.
        no_sizes: why not.
    """

    name: str
    anatomy: Anatomy
    trial: Trial | None = None
    limits: Mapping[str, int] = field(default_factory=dict)
    sizes: Sizes | None = None
    no_sizes: str = ""

    @property
    def budgets(self) -> dict[str, tuple[int | None, int]]:
        """Used and allowed amount of each budget; of bytes None is used where there is no such export."""
        used = {
            "parameters": self.anatomy.parameters,
            "epochs": self.trial.epochs if self.trial else None,
            "flash": self.sizes.flash if self.sizes else None,
            "ram": self.sizes.ram if self.sizes else None,
        }
        return {name: (used[name], limit) for name, limit in self.limits.items()}

    @property
    def within_budget(self) -> bool | None:
        """Whether every budget is kept; None where there is none."""
        if not self.limits:
            return None
        return all(used is not None and used <= most for used, most in self.budgets.values())

    def to_json(self) -> dict[str, Any]:
        """The inspection as JSON data."""
        budget = None
        if self.budgets:
            budget = {**{what: most for what, (_, most) in self.budgets.items()}, "met": self.within_budget}
        names = ("flash", "ram", "flash_4_bits", "ram_lean")
        sizes = {name: getattr(self.sizes, name) if self.sizes else None for name in names}
        return {"name": self.name, **self.anatomy.to_json(), **sizes, "budget": budget}

    def text(self, format: TableFormat = "table") -> str:
        """Table, totals and budget verdict; only the table for CSV, and the rest as comments for LaTeX."""
        if format == "csv":
            return self.anatomy.table("csv")
        if format == "latex":
            comments = [self.name, *self._totals(), *self.verdicts]
            return "\n".join([*(f"% {' '.join(line.split())}" for line in comments), self.anatomy.table("latex")])
        parts = [self.name, "", self.anatomy.table(format), "" if format == "markdown" else None]
        totals = self._totals()
        parts += [f"- {line}" for line in totals] if format == "markdown" else totals
        parts += [f"- {line}" for line in self.verdicts] if format == "markdown" else self.verdicts
        return "\n".join(part for part in parts if part is not None)

    def _totals(self) -> list[str]:
        sizes = self.sizes
        if sizes is None:
            line = f"no C code in integers: {self.no_sizes}"
        else:
            line = (
                f"C code in integers: {sizes.flash:,} bytes of tables and {sizes.ram:,} of memory; with 4-bit weights "
                f"{sizes.flash_4_bits:,}, lean {sizes.ram_lean:,}"
            )
        return [*self.anatomy.totals().splitlines(), line]

    @property
    def verdicts(self) -> list[str]:
        """Each budget with what is used of it, for people."""
        verdicts = []
        for name, (used, limit) in self.budgets.items():
            if used is None:
                verdict = f"MISSED: no C code in integers: {self.no_sizes}"
            elif used <= limit:
                verdict = f"{used:,}, met, {limit - used:,} to spare"
            else:
                most = f"; most is taken by {self.sizes.costliest[name]}" if self.sizes and name in IN_BYTES else ""
                verdict = f"{used:,}, MISSED, {used - limit:,} too many{most}"
            verdicts.append(f"budget of at most {limit:,} {BUDGETS[name]}: {verdict}")
        return verdicts

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        met = {None: "", True: ", within budget", False: ", over budget"}[self.within_budget]
        return f"Inspection({self.name!r}: {self.anatomy.parameters:,} parameters, {self.anatomy.macs:,} MACs{met})"

    def _repr_html_(self) -> str:
        lines = [*self._totals(), *self.verdicts]
        return f"{paragraph(self.name)}{self.anatomy.table('html')}{paragraph(*lines)}"


@exclusive()
def inspect(
    what: Trial | nn.Module | Callable[..., nn.Module] | str | Path,
    *,
    input_shape: Sequence[int] | None = None,
    max_parameters: int | None = None,
    max_flash: int | None = None,
    max_ram: int | None = None,
) -> Inspection:
    """The anatomy of a trial's network or of any module.

    Args:
        what: a trial, a module, a module's class or a function that returns one; or what names one: a built-in
            name, `FILE.py:NAME`, a `trial.json`. Classes and functions are called with `input_shape` and `classes`
            (10), as far as they take them.
        input_shape: channels, height, width; None takes the trial's data's, or MNIST's for a module.
        max_parameters: a budget; None takes the trial's.
        max_flash: a budget of bytes of tables as C in integers; likewise.
        max_ram: a budget of bytes of memory of the same beside the image; likewise.

    Raises:
        SmidgenError: a budget is below 1, nothing of that name, or the network does not take such an input.
    """
    name = str(what) if isinstance(what, str | Path) else ""
    shape = _checked_shape(input_shape or MNIST_SHAPE)
    if isinstance(what, Trial | nn.Module):
        found = what
    elif isinstance(what, str | Path):
        found = find_trial_or_network(what, input_shape=shape, classes=MNIST_CLASSES)
    else:
        name = getattr(what, "__name__", "")
        with user_errors(f"{name}() failed"):
            found = call_with(what, input_shape=shape, classes=MNIST_CLASSES)
    limits = _limits(found, {"parameters": max_parameters, "flash": max_flash, "ram": max_ram})
    if isinstance(found, nn.Module):
        anatomy = examine(found, shape)  # first, since it gives lazy layers their weights
        return Inspection(name or type(found).__name__, anatomy, None, limits, **_sizes(lambda: found, shape, limits))
    if found.data.shape is not None:
        input_shape = input_shape or found.data.shape
    known = KNOWN.get(found.data.source)
    if known is not None:
        classes, input_shape = known.classes, input_shape or known.shape
    else:
        # Shape and classes are in the training files; the test files need not even be there.
        dataset = load_dataset(found.data.source, validation=1, shape=found.data.shape)
        classes, input_shape = dataset.classes, input_shape or dataset.input_shape
    shape = _checked_shape(input_shape or MNIST_SHAPE)
    anatomy, trial = examine_trial(found, shape, classes), found
    sizes = _sizes(
        lambda: build_network(trial.network, input_shape=shape, classes=classes), shape, limits, bits_of(trial)
    )
    return Inspection(found.name, anatomy, found, limits, **sizes)


def _limits(found: Trial | nn.Module, given: Mapping[str, int | None]) -> dict[str, int]:
    """The budgets that were given, else the trial's.

    Raises:
        SmidgenError: one is below 1; names the command-line option.
    """
    for name, limit in given.items():
        check_limit(name, limit)
    limits = found.goal.budgets if isinstance(found, Trial) else {}
    limits |= {name: limit for name, limit in given.items() if limit is not None}
    return {name: limits[name] for name in BUDGETS if name in limits}


def _checked_shape(shape: Sequence[int]) -> Shape:
    """Channels, height and width, each at least 1."""
    if len(shape) != 3 or not all(isinstance(side, int) and not isinstance(side, bool) and side >= 1 for side in shape):
        raise TrialError(
            f"an input shape is three whole numbers of at least 1, channels, height and width, not {tuple(shape)}"
        )
    channels, height, width = shape
    return channels, height, width


def _sizes(network: Callable[[], nn.Module], shape: Shape, limits: Mapping[str, int], bits: int = 8) -> dict[str, Any]:
    """What it needs on a microcontroller, or why that is not known."""
    try:
        return {"sizes": int8_sizes(network(), shape, bits=bits, most_ram=limits.get("ram"))}
    except SmidgenError as error:
        return {"no_sizes": str(error)}
