"""Every printed table, held against a file; `make golden` writes the files anew."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import Command
from smidgen.bench.results import NetworkResults, Profile, Results, Way
from smidgen.engines.engine import LayerPass
from smidgen.reports.collect import Collection, TrialRuns
from smidgen.reports.document import Bullets, Table
from smidgen.reports.markdown import _block
from smidgen.reports.write import write
from smidgen.runs.predictions import Predictions
from smidgen.runs.progress import epoch_line
from smidgen.runs.record import Run, history_html
from smidgen.training.loop import EpochRecord
from smidgen.trial import Goal, Trial
from smidgen.verdict import judge

Golden = Callable[[str, str], None]

HISTORY = (
    EpochRecord(1, 2.3025, 11.5, 2.0017, 40, 200, 0.05, 1.25, 0.125),
    EpochRecord(2, 1.5001, 51.25, 1.2349, 121, 200, 0.05, 1.5, 0.125),
)


@pytest.mark.parametrize("format", ["table", "markdown", "csv", "latex"])
def test_inspect(smidgen: Command, golden: Golden, format: str) -> None:
    golden(f"inspect-{format}.txt", smidgen("inspect", "mnist-3-augmented", "--format", format).out)


def test_trials(smidgen: Command, golden: Golden, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("smidgen.trials.measured.MEASURED", tmp_path / "none")
    golden("trials.txt", smidgen("trials").out)


def test_data(smidgen: Command, golden: Golden) -> None:
    golden("data.txt", smidgen("data", "--check").out)


def test_the_verdict(golden: Golden) -> None:
    goal = Goal(accuracy=99.4, parameters=7_999, epochs=14)
    met = judge(goal, {"parameters": 7_248, "epochs": 14}, correct=9_954, total=10_000)
    missed = judge(goal, {"parameters": 8_000, "epochs": 15}, correct=9_939, total=10_000)
    opened = judge(goal, {"parameters": 7_248, "epochs": 14}, correct=5_900, total=6_000, on_test=False)
    golden("verdict.txt", f"{met}\n\n{missed}\n\n{opened}\n")


def test_the_epochs(golden: Golden) -> None:
    golden("epochs.txt", "\n".join(epoch_line(record, 14, "test") for record in HISTORY) + "\n")
    golden("epochs.html", history_html(HISTORY, "test") + "\n")


def test_the_bench(golden: Golden) -> None:
    loader, eager = (
        Way("DataLoader, reference", [1000.0, 1200.0, 1100.0]),
        Way("eager (smidgen)", [3000.0, 3600.0, 3100.0]),
    )
    native = Way("native", [20000.0, 21000.0, 22000.0])
    passes = (
        LayerPass("conv1", "forward", 0.25e-3, multiply_adds=97_344, moved=46_400, least=46_400),
        LayerPass("norm1", "statistics", 0.125e-3, multiply_adds=0, moved=43_264, least=0),
    )
    profile = Profile(passes, batch_size=128, peak=200.0, threads=2)
    ways = {"loader": loader, "eager": eager, "native": native}
    evaluations = {"native": Way("native", [40000.0, 50000.0]), "onnxruntime": Way("onnxruntime", [20000.0, 20000.0])}
    network = NetworkResults(
        "reference network", "a-trial", 128, ways, evaluations, profile, 0.0042,
        (Way("another", [1500.0, 1800.0, 1700.0]),),
    )  # fmt: skip
    flagship = NetworkResults("flagship", "b-trial", 64, ways, {}, None, 0.0042)
    results = Results(network, flagship, threads=2, rounds=3, steps=25, switches=136.4)
    text = re.sub("smidgen .*, torch .*", "VERSIONS", f"{results.profiles()}\n\n{results}")
    golden("bench.txt", text + "\n")


def test_the_reports_tables(golden: Golden, small_run: Run, small_trial: Trial) -> None:
    """From figures written down here, so that they are the same on every machine."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 10
    groups: list[TrialRuns] = []
    for name, seeds in (("first", (0, 1)), ("second", (0,))):
        trial = replace(groups[0].trial if groups else small_trial, name=name, batch_size=50 if name == "first" else 64)
        runs = [
            replace(
                small_run,
                trial=trial,
                seed=seed,
                history=(HISTORY[0], replace(HISTORY[1], test_correct=121 + seed)),
                result=replace(
                    small_run.result,
                    engine="eager",
                    seed=seed,
                    seconds_training=3.0 + seed,
                    weights_sha256=f"{seed:064d}",
                ),
            )
            for seed in seeds
        ]
        group = TrialRuns(trial, runs, dataset_problem="the data is not here")
        probabilities = rng.dirichlet(np.ones(10), 200) * 0.3
        probabilities[np.arange(200), (labels + (np.arange(200) % 7 == 0)) % 10] += 0.7
        predictions = Predictions(probabilities.argmax(1), probabilities.max(1).astype(np.float32))
        group.predictions, group.labels = [predictions for _ in seeds], labels
        groups.append(group)
    document = write(Collection(groups))
    shown = [block for block in document.blocks if isinstance(block, Table | Bullets)]
    text = "\n\n".join(_block(block, "x", {}) for block in shown)
    # What the runs were made with differs from machine to machine.
    text = re.sub(r"\*What the runs were made with\*.*?(?=\n\n[^|]|\Z)", "", text, flags=re.DOTALL)
    golden("report.md", text + "\n")
