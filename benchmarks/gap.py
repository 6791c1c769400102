"""How much better trials do on test images than on held-out training images, by which they were chosen: `make gap`.

Each trial is trained on two thirds of the training images and evaluated on the last third, a third in turn for each
seed, as when it was chosen; then the same weights are evaluated on the test images. Runs that are there already are
kept, also those of `make ablation`.
"""

from __future__ import annotations

import statistics

import smidgen
from common import FOLDS, accuracy, asked_for, difference, on_held_out, parser, swept
from smidgen.tables import render

TRIALS = ["mnist-3-augmented", "mnist-4-strict", "mnist-tiny", "mnist-tiny-99"]


def main() -> None:
    """Make what is missing and print the table."""
    options = parser(__doc__)
    options.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16 is faster where supported")
    arguments = options.parse_args()
    trials = tuple(on_held_out(smidgen.find_trial(name)) for name in asked_for(TRIALS, arguments))
    run_options = smidgen.RunOptions(precision=arguments.precision)
    test = smidgen.load_dataset().held_out
    rows: list[list[object]] = []
    for result in swept(trials, arguments, "0-7", run_options, folds=FOLDS):
        held_out = [run.accuracy for run in result.runs]
        tested = [accuracy(run, test) for run in result.runs]
        rows.append([
            result.trial.name, len(tested), f"{statistics.fmean(held_out):.3f}", f"{statistics.fmean(tested):.3f}",
            difference([after - before for before, after in zip(held_out, tested, strict=True)]),
        ])  # fmt: skip
    columns = ["trial", "n", "held-out training images", "test images", "difference ± standard error"]
    print(render(columns, rows, "markdown"))


if __name__ == "__main__":
    main()
