"""What each ingredient of the flagship, of the two smallest trials and of fashion-small gives: `make ablation`.

Trains them and copies that lack one thing each, with the same seeds, on two thirds of the training images, and
evaluates them on the last third, a third in turn for each seed (never on the test images). Prints tables with the
paired differences. Existing runs are kept, so an interrupted call resumes where it stopped. fashion-small has to be
asked for by `--trials`: it needs Debian's package dataset-fashion-mnist, and another hour.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

import smidgen
from common import FLAGSHIP, FOLDS, asked_for, difference, on_held_out, parser, swept
from smidgen import SGD, SOAP, Augmentation, AvgPool, Conv, Linear, MaxPool, Network, Step, Trial
from smidgen.sweeps.sweep import TrialResult
from smidgen.tables import render
from smidgen.trials.mnist import separable_network

FASHION = "fashion-small"


def of_the_flagship() -> dict[str, Trial]:
    """The flagship first, then what lacks something, by what it lacks or has instead."""
    whole = on_held_out(smidgen.find_trial(FLAGSHIP))
    full = (*(Conv(10),) * 3, AvgPool(2), Conv(14), Conv(14), Conv(16), AvgPool(), Linear())
    return {
        "the flagship": whole,
        "full convolutions, 10-10-10, 14-14-16": replace(whole, network=Network(full)),
        "no augmentation": replace(whole, augmentation=Augmentation()),
        "rate falls in steps, every 4 epochs to a third": replace(whole, schedule=Step(every=4, factor=1 / 3)),
        "no averaging of weights": replace(whole, averaging=0.0),
        "no recalibration": replace(whole, recalibration=0.0),
    }


def of_tiny() -> dict[str, Trial]:
    """The same of mnist-tiny, with about as many parameters."""
    whole = on_held_out(smidgen.find_trial("mnist-tiny"))
    linear = separable_network(Conv(8), (13,), (18, 21, 24))
    later = separable_network(Conv(8), (14, 18), (19, 21), direct=True)
    both = separable_network(Conv(7, kernel=5), (12, 12), (18, 18, 20))
    return {
        "mnist-tiny": whole,
        "a linear layer instead of the last separable convolution": replace(whole, network=linear),
        "pooling a layer later": replace(whole, network=later),
        "both, with a first kernel of 5×5": replace(whole, network=both),
    }


def of_tiny_99() -> dict[str, Trial]:
    """The same of mnist-tiny-99."""
    whole = on_held_out(smidgen.find_trial("mnist-tiny-99"))
    assert isinstance(whole.network, Network)
    scaled = replace(whole, network=replace(whole.network, scale=True), goal=replace(whole.goal, parameters=1_100))
    even = separable_network(Conv(5), (8,), (8, 11, 13), direct=True, scale=False)
    linear = separable_network(Conv(4), (6,), (9, 11, 20), scale=False)
    sgd = smidgen.find_trial(FLAGSHIP).optimizer
    weaker = Augmentation(rotation=5, translation=0.03, scale=0.05, interpolation="bilinear")
    return {
        "mnist-tiny-99": whole,
        "SGD, as the flagship": replace(whole, optimizer=sgd),
        "SGD, and weaker augmentation, 5°, 3 %, 5 %": replace(whole, optimizer=sgd, augmentation=weaker),
        "BatchNorm with scales": scaled,
        "widths that grow less, 5-8-8-11-13": replace(whole, network=even),
        "a linear layer instead of the last separable convolution, 9-11-20": replace(whole, network=linear),
    }


def of_fashion() -> dict[str, Trial]:
    """The same of fashion-small."""
    whole = on_held_out(smidgen.find_trial(FASHION))
    assert isinstance(whole.network, Network)
    assert isinstance(whole.optimizer, SOAP)
    pools = (MaxPool(2) if block == AvgPool(2) else block for block in whole.network.blocks)
    former = SGD(lr=0.2, momentum=0.9, nesterov=True, weight_decay=3e-4)
    return {
        FASHION: whole,
        "SGD, with as little regularization as suits it": replace(whole, optimizer=former, label_smoothing=0.0),
        "weight decay 0.001": replace(whole, optimizer=replace(whole.optimizer, weight_decay=1e-3)),
        "no label smoothing": replace(whole, label_smoothing=0.0),
        "maximum pooling": replace(whole, network=replace(whole.network, blocks=tuple(pools))),
        "no mirrored images": replace(whole, augmentation=Augmentation()),
    }


TABLES = {
    FLAGSHIP: (of_the_flagship, "ablation"),
    "mnist-tiny": (of_tiny, "ablation-tiny"),
    "mnist-tiny-99": (of_tiny_99, "ablation-tiny-99"),
    FASHION: (of_fashion, "ablation-fashion"),
}
"""The tables by the trial that they are about: what makes the recipes, and how the runs of all but the first begin."""


def main() -> None:
    """Make what is missing and print the tables."""
    options = parser(__doc__)
    options.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16 is faster where supported")
    arguments = options.parse_args()
    run_options = smidgen.RunOptions(precision=arguments.precision)
    for about in asked_for(TABLES, arguments):
        if about == FASHION and not arguments.trials:
            continue  # needs Debian's package dataset-fashion-mnist, and an hour
        made, name = TABLES[about]
        trials = {
            text: replace(trial, name=f"{name}-{number}" if number else trial.name)
            for number, (text, trial) in enumerate(made().items())
        }
        results = swept(tuple(trials.values()), arguments, "0-7", run_options, folds=FOLDS)
        print(table(list(trials), results), "\n", flush=True)


def table(texts: Sequence[str], results: Sequence[TrialResult]) -> str:
    """The recipes with their differences from the first, as Markdown."""
    base = [run.accuracy for run in results[0].runs]
    rows: list[list[object]] = []
    for text, result in zip(texts, results, strict=True):
        summary = result.summary
        assert summary is not None
        differences = [run.accuracy - before for run, before in zip(result.runs, base, strict=True)]
        rows.append([
            text, result.runs[0].result.parameters, summary.n, f"{summary.mean:.3f}",
            "-" if summary.sd is None else f"{summary.sd:.3f}", f"{summary.least:.2f}",
            difference(differences) if rows else "",
            f"{statistics.fmean(run.result.train_accuracy_last for run in result.runs):.2f}",
        ])  # fmt: skip
    columns = ["", "parameters", "n", "mean", "s.d.", "min", "difference ± standard error", "train"]
    return render(columns, rows, "markdown")


if __name__ == "__main__":
    main()
