"""Target, result and analysis of a built-in trial."""

from __future__ import annotations

from dataclasses import dataclass

from smidgen.trials.measured import Measured

NOT_MEASURED = "(not measured)"


@dataclass(frozen=True)
class Story:
    """Target, result and analysis of a trial.

    `result` and `analysis` may have fields in braces that `told` fills in: `{measured}`, a sentence with mean, s.d.,
    n, minimum and the share of runs at the goal; and single figures: `{mean}`, test accuracy, `{train}`, training
    accuracy (both percent), `{gap}`, by how much the latter is higher (points), and `{seconds}`, a run's median.

    Attributes:
        title: what the trial tries.
        target: what it should reach.
        result: what it reached.
        analysis: what explains the result, and what follows from it.
    """

    title: str
    target: str
    result: str
    analysis: str

    def told(self, measured: Measured | None) -> Story:
        """The story with its figures.

        Args:
            measured: results of this very recipe; None where there are none, and the story says so.
        """
        figures = dict.fromkeys(("mean", "train", "gap", "seconds"), NOT_MEASURED)
        figures["measured"] = "Not measured with this recipe."
        if measured is not None:
            figures |= {
                "measured": f"{measured.mean:.3f} ± {measured.sd:.3f} % (n = {measured.n}), min {measured.min:.2f} %; "
                f"{measured.at_goal} of {measured.n} runs met the goal.",
                "mean": f"{measured.mean:.3f}",
                "train": f"{measured.train_mean:.2f}",
                "gap": f"{measured.train_mean - measured.mean:.1f}",
            }
            if measured.seconds_median is not None:
                figures["seconds"] = f"{measured.seconds_median:.1f}"
        return Story(self.title, self.target, self.result.format(**figures), self.analysis.format(**figures))

    @property
    def paragraphs(self) -> tuple[str, ...]:
        """The story as it stands in a report."""
        return (self.title, f"Target: {self.target}", f"Result: {self.result}", f"Analysis: {self.analysis}")
