"""Writes docs/trials.md, the report of the built-in trials on MNIST, with its pictures: `make trials`.

Trains what is missing of its runs first, the sprint in float32 like the others, so that any CPU can: some minutes on
2 cores for each seed.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

import smidgen
from common import DOCS, RESULTS, parser

SEEDS = "0-2"


def main() -> None:
    """Make what is missing and write the report."""
    arguments = parser(__doc__).parse_args()
    sprint = replace(RESULTS["sprint"], options=replace(RESULTS["sprint"].options, precision="fp32"))
    sets = [replace(one, seeds=SEEDS) for one in (RESULTS["reference"], RESULTS["float32"], sprint)]
    runs = [run for one in sets for result in one.runs(arguments) for run in result.runs]
    shutil.rmtree(DOCS / "trials-images", ignore_errors=True)
    print(smidgen.report(runs, DOCS / "trials.md").path)


if __name__ == "__main__":
    main()
