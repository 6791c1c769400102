"""Draws docs/front.svg: the built-in trials among the public records, accuracy against parameters: `make front`.

Ours are means over seeds by the last epoch, from the measured figures beside the trials. The public ones are single
runs by their last epoch, or by their best where no other is known, from their authors' own logs and pages.
"""

from __future__ import annotations

import smidgen
from common import DOCS
from smidgen.reports.charts import Point, front
from smidgen.trials.measured import read_measured

PUBLIC = [
    Point(7_752, 99.55, "School of AI", False),
    Point(7_878, 99.51, "", False),
    Point(7_432, 99.51, "sayanbanerjee32, PRIYE", False),
    Point(6_188, 99.44, "nagalakshmi-nimmagadda, sunpau", False),
    Point(6_128, 99.44, "", False),
    Point(4_862, 99.07, "ruslangrimov, 50 epochs", False),
    Point(697, 99.03, "JoshWarn, 2,000 epochs", False),
]
"""The best run of the reference notebooks (8,000 parameters) is left out: its trial is among ours. Where two lie close
together, one label names both."""


def main() -> None:
    """Draw and write."""
    ours = [
        Point(smidgen.inspect(name).anatomy.parameters, found.mean, name.removeprefix("mnist-"), True)
        for name, found in read_measured().items()
        if name.startswith("mnist-") and found.mean > 99
    ]
    chart = front(PUBLIC + ours, "test accuracy by the last epoch (%)", "front")
    (DOCS / "front.svg").write_text(chart)


if __name__ == "__main__":
    main()
