"""Asks Optuna for candidates, a batch at a time; the answer is a function of the results it is given.

For every batch a new study is made from the candidates so far, with a seed of the batch's own. So a
resumed search chooses exactly as an uninterrupted one, and only the candidates are kept.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from smidgen.engines.full_matrix import MOST_PARAMETERS
from smidgen.errors import SmidgenError, TrialError
from smidgen.lowering.c.budget import check_bytes
from smidgen.nets.build import build_network, measure
from smidgen.searches.candidate import Candidate
from smidgen.searches.space import Integers, Numbers, Reals, Space, Words, make_trial, shortened
from smidgen.trial import BUDGETS, FullMatrixAdam, Trial, check_limit

MOST_REJECTED = 1_000
"""Candidates over a limit in a row before a batch is given up."""


@dataclass(frozen=True)
class Limits:
    """Limits of all candidates, checked before training.

    Attributes:
        parameters: at least 1; None: those of the base's goal.
        macs: multiply-accumulates of one image, at least 1; None: any number.
        epochs: of every candidate, at least 1; None: the base's.
        flash: bytes of tables as C in integers, at least 1; None: those of the base's goal, if any.
        ram: bytes of memory of the same beside the image, likewise.

    Raises:
        SmidgenError: a limit is below 1; names the command-line option.
    """

    parameters: int | None = None
    macs: int | None = None
    epochs: int | None = None
    flash: int | None = None
    ram: int | None = None

    def __post_init__(self) -> None:
        for name, limit in vars(self).items():
            check_limit(name, limit)

    def completed(self, base: Trial) -> Limits:
        """The limits with the base's epochs, and the other budgets of its goal, where they are left open."""
        goal = base.goal
        return replace(
            self,
            parameters=self.parameters or goal.parameters,
            epochs=self.epochs or base.epochs,
            flash=self.flash or goal.flash,
            ram=self.ram or goal.ram,
        )

    def exceeded(self, parameters: int, macs: int) -> bool:
        """Whether a network of so many parameters and MACs is over a limit."""
        limits = ((parameters, self.parameters), (macs, self.macs))
        return any(limit is not None and value > limit for value, limit in limits)

    def __str__(self) -> str:
        names = {"parameters": BUDGETS["parameters"], "macs": "MACs", "flash": BUDGETS["flash"], "ram": BUDGETS["ram"]}
        limits = ((getattr(self, name), text) for name, text in names.items())
        return " and ".join(f"{limit:,} {name}" for limit, name in limits if limit is not None)


@dataclass(frozen=True)
class Asker:
    """Gives batches of candidates.

    Attributes:
        space: what is varied.
        base: what is not; its name is the beginning of the candidates'.
        limits: that each candidate keeps.
        input_shape: channels, height, width of an image.
        classes: of the data.
        seed: of the search.
        pareto: whether few parameters are wanted as well as a high accuracy.

    Raises:
        SmidgenError: Optuna is not installed.
    """

    space: Space
    base: Trial
    limits: Limits
    input_shape: tuple[int, int, int]
    classes: int
    seed: int
    pareto: bool

    def __post_init__(self) -> None:
        _optuna()

    def ask(self, history: Sequence[Candidate], batch: int, count: int) -> tuple[list[Candidate], int]:
        """The next candidates, all within the limits and new, and how many others were rejected.

        Args:
            history: all candidates of earlier batches.
            batch: number of this one.
            count: how many are wanted.

        Raises:
            SmidgenError: the space holds hardly anything within the limits.
        """
        optuna = _optuna()
        study = self._study(history, batch)
        known = {candidate.trial.recipe_digest for candidate in history}
        found: list[Candidate] = []
        rejected = in_a_row = 0
        while len(found) < count:
            asked = study.ask()
            trial = make_trial(self.space, _ByOptuna(asked), self.base)
            candidate = self._candidate(trial, asked, len(history) + len(found), batch)
            if candidate is None or candidate.trial.recipe_digest in known:
                study.tell(asked, state=optuna.trial.TrialState.FAIL)
                rejected, in_a_row = rejected + 1, in_a_row + 1
                if in_a_row >= MOST_REJECTED:
                    raise SmidgenError(
                        f"none of {in_a_row:,} candidates in a row was new, fitted the images and had at most "
                        f"{self.limits}{self._bound}; allow more, or change the space, as in --set width.high=8"
                    )
                continue
            in_a_row = 0
            known.add(candidate.trial.recipe_digest)
            found.append(candidate)
        return found, rejected

    @property
    def _bound(self) -> str:
        """What an optimizer of the space asks for besides."""
        matrix = FullMatrixAdam.type_name
        return f" ({MOST_PARAMETERS:,} with {matrix})" if matrix in self.space.optimizer.options else ""

    def _candidate(self, trial: Trial, asked: Any, number: int, batch: int) -> Candidate | None:
        """The candidate of a trial; None where it does not fit the images or its optimizer, or is over a limit."""
        try:
            parameters, macs = measure(trial.network, input_shape=self.input_shape, classes=self.classes)
        except TrialError:
            return None
        if isinstance(trial.optimizer, FullMatrixAdam) and parameters > MOST_PARAMETERS:
            return None
        if self.limits.exceeded(parameters, macs) or not self._fits_in_bytes(trial):
            return None
        write = _optuna().distributions.distribution_to_json
        dimensions = {name: write(distribution) for name, distribution in asked.distributions.items()}
        named = replace(trial, name=f"{self.base.name}-{number:03d}")
        return Candidate(number, batch, named, dict(asked.params), dimensions, parameters, macs)

    def _fits_in_bytes(self, trial: Trial) -> bool:
        """Whether the network is within the goal's budgets in bytes, if it has any."""
        try:
            with torch.random.fork_rng(devices=[]):
                network = build_network(trial.network, input_shape=self.input_shape, classes=self.classes)
            check_bytes(trial, network, self.input_shape)
        except TrialError:
            return False
        return True

    def _study(self, history: Sequence[Candidate], batch: int) -> Any:
        optuna = _optuna()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                # Of numpy's old generator, which takes 32 bits.
                seed=(self.seed * 1_000_003 + batch) % 2**32,
                multivariate=True,
                group=True,
                constant_liar=True,  # the members of a batch keep away from each other
            )
        directions = ["maximize", "minimize"] if self.pareto else ["maximize"]
        study = optuna.create_study(directions=directions, sampler=sampler)
        for candidate in history:
            if candidate.evaluated:
                read = optuna.distributions.json_to_distribution
                distributions = {name: read(text) for name, text in candidate.dimensions.items()}
                values = [candidate.mean, candidate.parameters] if self.pareto else [candidate.mean]
                study.add_trial(
                    optuna.trial.create_trial(
                        params=dict(candidate.choices), distributions=distributions, values=values
                    )
                )
        return study


class _ByOptuna:
    """Decides by asking; a dimension with one possibility is not asked for."""

    def __init__(self, asked: Any) -> None:
        self._asked = asked

    def integer(self, name: str, among: Integers) -> int:
        if among.low == among.high:
            return among.low
        return int(self._asked.suggest_int(name, among.low, among.high, step=among.step))

    def real(self, name: str, among: Reals) -> float:
        if among.low == among.high:
            return among.low
        return shortened(self._asked.suggest_float(name, among.low, among.high, log=among.log))

    def number(self, name: str, among: Numbers) -> float:
        return float(self._one(name, among.options))

    def word(self, name: str, among: Words) -> str:
        return str(self._one(name, among.options))

    def _one(self, name: str, options: tuple[Any, ...]) -> Any:
        return options[0] if len(options) == 1 else self._asked.suggest_categorical(name, options)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise SmidgenError("a search needs Optuna; install it with: pip install 'smidgen[search]'") from None
    optuna.logging.set_verbosity(logging.WARNING)
    return optuna
