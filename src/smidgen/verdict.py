"""Whether a run reached its goal, part by part, and by how much."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from smidgen.tables import render
from smidgen.trial import BUDGETS, Goal


@dataclass(frozen=True)
class Part:
    """One part of a verdict.

    Attributes:
        what: the part of the goal.
        reached: in words.
        wanted: in words.
        met: whether it was.
        margin: by how much, in words.
    """

    what: str
    reached: str
    wanted: str
    met: bool
    margin: str


@dataclass(frozen=True)
class Verdict:
    """The goal's parts, each met or missed.

    Attributes:
        parts: accuracy first, unless the test images were not looked at; then the budgets.
        judged: False if accuracy was measured on the validation split, so that the goal, which
            speaks of the test images, is left open.
    """

    parts: tuple[Part, ...]
    judged: bool

    @property
    def goal_met(self) -> bool | None:
        """Whether every part was met; None where accuracy was not measured on the test images."""
        return all(part.met for part in self.parts) if self.judged else None

    def __str__(self) -> str:
        rows = [[p.what, p.reached, p.wanted, "met" if p.met else "MISSED", p.margin] for p in self.parts]
        table = render(["goal", "reached", "wanted", "", "margin"], rows, left=5)
        verdict = {True: "met", False: "missed", None: "open: the test images were not looked at"}
        return f"{table}\ngoal {verdict[self.goal_met]}"


def judge(goal: Goal, used: Mapping[str, int], *, correct: int, total: int, on_test: bool = True) -> Verdict:
    """Hold a run against its goal, exactly: accuracies are compared as fractions, not as floats.

    Args:
        goal: the trial's.
        used: how much of each of the goal's budgets; parameters include frozen ones.
        correct: correctly classified test images after the last epoch.
        total: test images.
        on_test: False where `correct` counts validation images.
    """
    parts = []
    if on_test:
        spare = correct - images_needed(goal.accuracy, total)
        wanted = Fraction(str(goal.accuracy))
        # As many decimals as the goal has: then the reached accuracy, cut, is below it just where the goal is missed.
        digits = max(2, len(f"{Decimal(str(goal.accuracy)):f}".partition(".")[2]))
        reached = percent(correct, total, digits)
        difference = Fraction(reached) - wanted
        parts.append(
            Part(
                "test accuracy, last epoch",
                f"{reached} %",
                f"at least {goal.accuracy:.{digits}f} %",
                spare >= 0,
                f"{float(difference):+.{digits}f} points, {_images(spare)}",
            )
        )
    for name, limit in goal.budgets.items():
        spare = limit - used[name]
        margin = f"{spare:,} to spare" if spare >= 0 else f"{-spare:,} too many"
        parts.append(Part(BUDGETS[name], f"{used[name]:,}", f"at most {limit:,}", spare >= 0, margin))
    return Verdict(tuple(parts), on_test)


def images_needed(accuracy: float, total: int) -> int:
    """Number of `total` images that must be correct for an accuracy in percent, exactly."""
    return math.ceil(Fraction(str(accuracy)) * total / 100)


def percent(correct: int, total: int, digits: int = 2) -> str:
    """An accuracy in percent, cut (not rounded up) after some decimals, so 99.399 never reads as 99.40."""
    units = 100 * 10**digits * correct // total
    whole, rest = divmod(units, 10**digits)
    return f"{whole}.{rest:0{digits}d}"


def _images(spare: int) -> str:
    return f"{abs(spare):,} image{'' if abs(spare) == 1 else 's'} {'more' if spare >= 0 else 'too few'}"
