"""The interface of export targets: files made from a trained network, and a check of those files."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from smidgen.errors import RunError, SmidgenError
from smidgen.graph.trace import TraceError
from smidgen.lowering.fused import FusedGraph, fuse
from smidgen.runs.record import Run
from smidgen.runs.run import load_trial_data
from smidgen.runs.weights import TrainedNetwork
from smidgen.settings import canonical_json
from smidgen.training.evaluation import scores
from smidgen.verdict import percent

TYPES = ("float32", "int8")
"""Of the arithmetic of an export."""
_EXAMPLES = 10


def fused_graph(trained: TrainedNetwork) -> FusedGraph:
    """A trained network as operations, with BatchNorm folded into the convolutions.

    Args:
        trained: with weights, in evaluation mode, on the CPU.

    Raises:
        RunError: it has a layer that cannot be expressed; names it and the reason.
    """
    try:
        return fuse(trained.network.eval(), trained.input_shape, trained.mean, trained.std)
    except TraceError as error:
        raise RunError(f"{trained.trial.name} cannot be exported: {error}") from None


@dataclass(frozen=True)
class Source:
    """What is exported, and what the export is compared with.

    Attributes:
        run: a finished run.
        images: all test images, uint8 [count, channels, height, width].
        labels: of those, int64 [count].
    """

    run: Run
    images: Tensor
    labels: Tensor

    @cached_property
    def graph(self) -> FusedGraph:
        """The network with BatchNorm folded away.

        Raises:
            RunError: it has a layer that no export can express.
        """
        return fused_graph(self.run.trained)

    @cached_property
    def training_images(self) -> Tensor:
        """The images that the run was trained on, uint8 [count, channels, height, width]: what to calibrate on."""
        return load_trial_data(self.run.trial).train.images

    @cached_property
    def examples(self) -> tuple[Tensor, Tensor]:
        """Ten test images and their labels, of as many classes as there are: what a package shows its work on."""
        first = [int((self.labels == label).nonzero()[0]) for label in self.labels.unique()[:_EXAMPLES]]
        others = [number for number in range(len(self.labels)) if number not in first]
        chosen = (first + others)[:_EXAMPLES]
        return self.images[chosen], self.labels[chosen]

    @cached_property
    def about(self) -> dict[str, str]:
        """Where the network comes from, for the metadata of a file: trial, recipe, seed, weights, class names."""
        run, names = self.run, self.run.trained.class_names
        return {
            "trial": run.trial.name,
            "recipe": canonical_json(run.trial.to_json()),
            "seed": str(run.seed),
            "weights_sha256": run.result.weights_sha256,
            **({"class_names": json.dumps(names, ensure_ascii=False)} if names else {}),
        }

    @cached_property
    def scores(self) -> Tensor:
        """Scores (logits) of the network itself, float32 [count, classes]: what an export must agree with."""
        return scores(self.run.network, self.images, self.run.trained.mean, self.run.trained.std)

    @cached_property
    def predictions(self) -> Tensor:
        """The class with the highest score of each image, int64 [count]; the first of equals."""
        return self.scores.argmax(1)


@dataclass(frozen=True)
class Check:
    """Result of classifying all test images with the exported files.

    Attributes:
        images: how many.
        mismatches: positions of the images that the export puts into another class than its reference does;
            where the two should agree to the last bit, of those for which any score differs.
        reference: what that is, for people: `the network`, or for integers `the integer network in Python`.
        largest_difference: between the export's scores and the reference's, in the export's units; infinite
            where the export gives no number.
        accuracy: of the export on the test images, percent.
        seconds: that classifying them took, without starting up.
        details: more figures by name (sizes in bytes, the like), for `--json` and the table.
        allowed: how many mismatches are to be expected at most: some, where a runtime rounds differently.
    """

    images: int
    mismatches: tuple[int, ...]
    reference: str
    largest_difference: float
    accuracy: float
    seconds: float
    details: Mapping[str, Any] = field(default_factory=dict)
    allowed: int = 0

    @property
    def percent(self) -> str:
        """The accuracy for people, cut as everywhere."""
        return percent(round(self.accuracy * self.images / 100), self.images)

    @property
    def passed(self) -> bool:
        """Whether there are no more mismatches than are to be expected."""
        return len(self.mismatches) <= self.allowed


def compared(
    source: Source,
    scores: Tensor,
    seconds: float,
    *,
    reference: Tensor | None = None,
    called: str = "the network",
    exact: bool = False,
    details: Mapping[str, Any] | None = None,
    allowed: int = 0,
) -> Check:
    """The check of an export from the scores that it gave.

    Args:
        source: what was exported.
        scores: of the export, one row a test image.
        seconds: that it took for them.
        reference: the scores that it should have given; None stands for the network's.
        called: what those are, for people.
        exact: whether any difference counts, and not only another class.
        details: more figures by name.
        allowed: mismatches that are to be expected at most.
    """
    expected = source.scores if reference is None else reference
    difference = float((scores.double() - expected.double()).abs().max())
    labels = scores.argmax(1)
    wrong = (scores != expected).any(1) if exact else labels != expected.argmax(1)
    return Check(
        images=len(source.labels),
        mismatches=tuple(wrong.nonzero().flatten().tolist()),
        reference=called,
        largest_difference=math.inf if math.isnan(difference) else difference,
        accuracy=100 * int((labels == source.labels).sum()) / len(source.labels),
        seconds=seconds,
        details=details or {},
        allowed=allowed,
    )


def arithmetic(type: str | None) -> str:
    """The arithmetic that is asked for; float32 if nothing is.

    Raises:
        SmidgenError: there is none of that name.
    """
    if type not in (None, *TYPES):
        raise SmidgenError(f"--type is {type!r}; allowed: {', '.join(TYPES)}")
    return type or "float32"


def library(name: str, extra: str) -> Any:
    """A module that only a target needs.

    Args:
        name: of the module.
        extra: of smidgen that brings it, named after the target.

    Raises:
        SmidgenError: it is not installed; says what to do.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0].replace("_", "-")
        raise SmidgenError(
            f"--to {extra} needs the package {package}; install it with: pip install 'smidgen[{extra}]'"
        ) from None


class Target(Protocol):
    """The interface of an export target."""

    def files(self, source: Source) -> dict[str, bytes]:
        """The export as files by name; everything is refused here, before anything is written.

        Raises:
            SmidgenError: the network cannot be expressed, or a library is missing; says what to do.
        """

    def usage(self, source: Source) -> str:
        """How to use the files, in Markdown, for their model card: a sentence or a few lines of code."""

    def check(self, source: Source, directory: Path) -> Check:
        """Classify all test images with the files that were written to a directory.

        Raises:
            SmidgenError: what the check needs is missing; says what to do.
        """
