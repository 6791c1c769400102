"""A finished run: its contents, its text and HTML, and loading it from its directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from smidgen.errors import RunError
from smidgen.files import looked_up
from smidgen.machine import exclusive
from smidgen.runs.directory import RunDirectory, RunFiles
from smidgen.runs.predictions import Predictions, read_predictions
from smidgen.runs.result import Result
from smidgen.runs.weights import TrainedNetwork, read_weights, weights_sha256
from smidgen.tables import paragraph, preformatted, render
from smidgen.training.loop import EpochRecord
from smidgen.trial import BUDGETS, Trial
from smidgen.verdict import Verdict, judge, percent


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run.

    Attributes:
        trial: the recipe with its goal.
        seed: the random seed.
        directory: where its files are.
        history: one record an epoch.
        verdict: the goal's parts, each met or missed.
        result: the figures, as in `result.json`.
        trained: the network that was evaluated, with what it needs to be used.
        predictions: what that network answered for each held-out image; None in runs of older versions.
    """

    trial: Trial
    seed: int
    directory: Path
    history: tuple[EpochRecord, ...]
    verdict: Verdict
    result: Result
    trained: TrainedNetwork
    predictions: Predictions | None = None

    @property
    def network(self) -> nn.Module:
        """The network that was evaluated, in evaluation mode, on the CPU."""
        return self.trained.network

    @property
    def accuracy(self) -> float:
        """Percent of the held-out images, after the last epoch: the headline figure."""
        return self.history[-1].test_accuracy

    @property
    def goal_met(self) -> bool | None:
        """Whether every part of the goal was met; None where the test images were not looked at."""
        return self.verdict.goal_met

    @property
    def summary(self) -> str:
        """The verdict and the best epoch beside it, as text."""
        best = max(self.history, key=lambda r: r.test_correct)
        split = self.result.held_out
        last = self.history[-1]
        lines = [
            str(self.verdict),
            f"best epoch {percent(best.test_correct, best.test_total)} % (epoch {best.epoch}, chosen on the "
            f"{split} images, so not the headline)",
        ]
        if not self.verdict.judged:
            lines.insert(0, f"{split} accuracy, last epoch: {percent(last.test_correct, last.test_total)} %")
        return "\n".join(lines)

    def __repr__(self) -> str:
        last, goal = self.history[-1], {True: "met", False: "missed", None: "open"}[self.goal_met]
        return (
            f"Run({self.trial.name!r}, seed {self.seed}: {self.result.held_out} accuracy "
            f"{percent(last.test_correct, last.test_total)} % after the last of {len(self.history)} epochs, "
            f"{self.result.parameters:,} parameters, goal {goal}, in {str(self.directory)!r})"
        )

    def _repr_html_(self) -> str:
        return f"{paragraph(repr(self))}{history_html(self.history, self.result.held_out)}{preformatted(self.summary)}"


@exclusive()
def load_run(path: str | Path) -> Run:
    """Read a finished run back from its directory. Nothing in it is executed.

    Raises:
        RunError: it is not a run directory, unfinished, or a file in it is damaged.
    """
    directory = RunDirectory(Path(path))
    with looked_up(directory.path):
        if not directory.path.is_dir():
            raise RunError(f"{path} is not a run directory; `smidgen run` makes one")
    result = Result.from_json(directory.read_json(RunFiles.RESULT), directory.path)
    trained = read_weights(directory.path / RunFiles.WEIGHTS)
    if result.weights_sha256 != weights_sha256(trained.network):
        raise RunError(
            f"{directory.path / RunFiles.WEIGHTS} is not what the run wrote: its hash differs from result.json"
        )
    try:
        history = tuple(map(EpochRecord.from_json, directory.read_epochs()))
        if [record.epoch for record in history] != list(range(1, result.epochs + 1)):
            raise ValueError(f"{len(history)} of {result.epochs} epochs are present, or they are out of order")
        if result.held_out != trained.trial.data.evaluate:
            raise ValueError(f"it was evaluated on {result.held_out} images, but its trial says otherwise")
        parameters = sum(p.numel() for p in trained.network.parameters())
        if result.parameters != parameters:
            raise ValueError(f"it says {result.parameters} parameters, but the network has {parameters}")
        unknown = [BUDGETS[name] for name in trained.trial.goal.budgets if name not in result.used]
        if unknown:
            raise ValueError(f"its goal limits {unknown[0]}, but it does not say how many there are")
        last = history[-1]
        if result.accuracy_last != last.test_accuracy:
            raise ValueError(f"it says {result.accuracy_last} %, but the last epoch had {last.test_accuracy} %")
        verdict = judge(
            trained.trial.goal,
            result.used,
            correct=last.test_correct,
            total=last.test_total,
            on_test=result.held_out == "test",
        )
    except (IndexError, ValueError) as error:
        raise RunError(f"{path} is damaged: {error}") from None
    predictions = read_predictions(
        directory.path / RunFiles.PREDICTIONS, result.weights_sha256, history[-1], trained.classes
    )
    return Run(trained.trial, result.seed, directory.path, history, verdict, result, trained, predictions)


def history_html(history: list[EpochRecord] | tuple[EpochRecord, ...], held_out: str) -> str:
    """The epochs as an HTML table."""
    columns = ["epoch", "train loss", "train accuracy", f"{held_out} loss", f"{held_out} accuracy", "lr", "seconds"]
    rows = [
        [
            r.epoch,
            f"{r.train_loss:.4f}",
            f"{r.train_accuracy:.2f} %",
            f"{r.test_loss:.4f}",
            f"{percent(r.test_correct, r.test_total)} %",
            f"{r.learning_rate:.3g}",
            f"{r.seconds_training + r.seconds_evaluation:.1f}",
        ]
        for r in history
    ]
    return render(columns, rows, "html")
