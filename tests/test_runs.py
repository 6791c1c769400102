from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from conftest import write_folder
from smidgen.data.dataset import Dataset
from smidgen.engines.choose import choose
from smidgen.errors import DataError, RunError, SmidgenError, TrialError
from smidgen.runs.directory import RunDirectory
from smidgen.runs.options import RunOptions
from smidgen.runs.progress import Silent
from smidgen.runs.record import Run, load_run
from smidgen.runs.result import Result
from smidgen.runs.run import RunInterruptedError, load_trial_data, run
from smidgen.runs.weights import read_weights, weights_sha256
from smidgen.tensorfile import read_header, sealed_bytes
from smidgen.training.evaluation import HeldOut, evaluate
from smidgen.training.loop import EpochRecord
from smidgen.trial import Goal, Trial
from smidgen.trials.find import read_trial
from smidgen.verdict import judge, percent

FILES = {
    "trial.json", "environment.json", "epochs.jsonl", "checkpoint.safetensors", "checkpoint-previous.safetensors",
    "weights.safetensors", "predictions.safetensors", "result.json", "log.txt",
}  # fmt: skip


def test_a_run_directory_holds_what_it_promises(small_run: Run, small_trial: Trial) -> None:
    directory = small_run.directory
    assert {path.name for path in directory.iterdir()} == FILES
    assert read_trial(directory / "trial.json") == small_trial
    lines = [json.loads(line) for line in (directory / "epochs.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[-1]["test_correct"] == small_run.history[-1].test_correct
    environment = json.loads((directory / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert environment["threads"] == 1
    log = (directory / "log.txt").read_text()
    assert "epoch 2/2" in log
    assert "goal met" in log
    assert json.loads((directory / "result.json").read_text()) == small_run.result.to_json()


def test_the_result_says_what_was_measured(small_run: Run, small_trial: Trial) -> None:
    result = small_run.result
    data = load_trial_data(small_trial)
    judged = evaluate(small_run.network, HeldOut(choose("eager"), data.held_out, data.mean, data.std))
    assert result.accuracy_last == small_run.accuracy == judged.accuracy
    assert result.loss_last == pytest.approx(judged.loss)
    assert result.accuracy_best == max(r.test_accuracy for r in small_run.history)
    assert result.parameters == sum(p.numel() for p in small_run.network.parameters())
    assert result.weights_sha256 == weights_sha256(small_run.network)
    assert result.goal_met is True
    assert (result.trial, result.seed, result.engine, result.epochs) == ("small", 3, choose().name, 2)
    seconds = sum(r.seconds_training + r.seconds_evaluation for r in small_run.history)
    assert result.seconds_training == pytest.approx(seconds)
    assert result.images_per_second == pytest.approx(1200 / sum(r.seconds_training for r in small_run.history))


def test_a_run_reads_back_equal(small_run: Run) -> None:
    again = load_run(small_run.directory)
    assert (again.trial, again.seed, again.history, again.result, again.verdict) == (
        small_run.trial, small_run.seed, small_run.history, small_run.result, small_run.verdict,
    )  # fmt: skip
    assert weights_sha256(again.network) == small_run.result.weights_sha256


def test_the_same_run_twice_is_the_same_to_the_last_byte(small_run: Run, small_trial: Trial, tmp_path: Path) -> None:
    again = run(small_trial, seed=3, out=tmp_path / "again", options=RunOptions(threads=1), progress=Silent())
    assert again.result.weights_sha256 == small_run.result.weights_sha256
    for name in ("weights.safetensors", "trial.json"):
        assert (again.directory / name).read_bytes() == (small_run.directory / name).read_bytes(), name
    one, other = (safetensors.torch.load_file(r.directory / "checkpoint.safetensors") for r in (again, small_run))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one if name != "history")  # which tells times


def test_tuning_on_the_validation_split_leaves_the_goal_open(small_trial: Trial, tmp_path: Path) -> None:
    tuned = run(small_trial, settings=["data.evaluate=validation"], out=tmp_path / "r", progress=Silent())
    assert tuned.goal_met is None
    assert tuned.result.held_out == "validation"
    assert tuned.result.accuracy_last == tuned.accuracy
    written = tuned.result.to_json()
    assert (written["test_accuracy_last"], written["validation_accuracy_last"]) == (None, tuned.accuracy)
    assert tuned.history[0].test_total == 100
    assert "test images were not looked at" in tuned.summary
    assert load_run(tmp_path / "r").goal_met is None


def test_a_result_survives_json(small_run: Run, tmp_path: Path) -> None:
    data = small_run.result.to_json()
    assert Result.from_json(json.loads(json.dumps(data)), tmp_path) == small_run.result
    tuned = replace(small_run.result, held_out="validation", goal_met=None, class_names=("a", "b"))
    assert Result.from_json(json.loads(json.dumps(tuned.to_json())), tmp_path) == tuned
    older = {key: value for key, value in data.items() if key not in ("precision", "class_names", "resumptions")}
    assert Result.from_json(older, tmp_path) == small_run.result
    for key, value in (
        ("seed", -1), ("seed", "3"), ("seed", True), ("threads", 1.5), ("held_out", "train"), ("engine", "warp"),
        ("test_accuracy_last", None), ("seconds_training", 2**70), ("goal_met", 1), ("class_names", [1]),
    ):  # fmt: skip
        with pytest.raises(RunError, match=key) as caught:
            Result.from_json({**data, key: value}, tmp_path)
        assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"engine": "warp"}, "--engine"), ({"precision": "fp16"}, "--precision"), ({"device": "tpu"}, "--device"),
        ({"threads": 0}, "--threads"), ({"threads": 10_000}, "--threads"),
        ({"checkpoint_seconds": -1}, "--checkpoint-seconds"), ({"checkpoint_seconds": float("nan")}, "--checkpoint-seconds"),
    ],
)  # fmt: skip
def test_options_that_are_not_allowed_are_named(values: dict[str, Any], option: str) -> None:
    with pytest.raises(SmidgenError, match=option):
        RunOptions(**values)


def test_a_run_shows_itself(small_run: Run) -> None:
    text, html = repr(small_run), small_run._repr_html_()
    for part in ("small", "seed 3", "goal met", percent(small_run.history[-1].test_correct, 200)):
        assert part in text
        assert part in html
    assert html.count("<tr>") == 3
    assert "<script" not in replace(small_run, trial=replace(small_run.trial, note="<script>"))._repr_html_()


def test_the_callers_settings_of_torch_are_left_alone(small_trial: Trial, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    options = RunOptions(threads=1 if threads > 1 else 2)
    run(small_trial, epochs=1, options=options, out=tmp_path / "r", progress=Silent())
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.rand(2), expected)


MISTAKES = {
    "over its parameters": ({"settings": ["goal.parameters=100"]}, TrialError, "over budget: .* parameters"),
    "over its epochs": ({"epochs": 4}, TrialError, "over budget: 4 epochs"),
    "no such setting": ({"settings": ["optimizer.lrr=1"]}, SmidgenError, "did you mean 'lr'"),
    "no data": ({"data": "nowhere"}, DataError, "no data at 'nowhere'"),
    "negative seed": ({"seed": -1}, SmidgenError, "the seed is -1"),
    "seed that is no number": ({"seed": 1.5}, SmidgenError, "the seed is 1.5"),
    "options that are none": ({"options": {"threads": 1}}, SmidgenError, r"must be a RunOptions, as in smidgen.RunO"),
    "no such precision": ({"options": RunOptions(engine="eager", precision="bf16")}, SmidgenError, "native engine"),
    "network too small": ({"settings": ["network.blocks.0.kernel=29"]}, TrialError, "does not fit"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_writes_nothing(small_trial: Trial, tmp_path: Path, name: str) -> None:
    options, kind, words = MISTAKES[name]
    with pytest.raises(kind, match=words):
        run(small_trial, out=tmp_path / "r", progress=Silent(), **options)  # type: ignore[arg-type]
    assert not (tmp_path / "r").exists()


class TestDirectory:
    def test_a_new_name_each_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        made = [str(RunDirectory.create(None, "t", 4).path) for _ in range(3)]
        assert made == ["runs/t-seed4", "runs/t-seed4-2", "runs/t-seed4-3"]

    def test_an_empty_directory_is_used_and_a_full_one_is_not(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert RunDirectory.create(tmp_path / "empty", "t", 0).path.is_dir()
        (tmp_path / "letters").mkdir()
        (tmp_path / "letters" / "a.txt").touch()
        with pytest.raises(RunError, match="already holds other files"):
            RunDirectory.create(tmp_path / "letters", "t", 0)

    def test_what_cannot_be_a_directory_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(RunError, match="is a file"):
            RunDirectory.create(tmp_path / "file", "t", 0)
        with pytest.raises(RunError, match="cannot be"):
            RunDirectory.create(tmp_path / "file" / "deep" / "er", "t", 0)
        with pytest.raises(RunError, match="cannot be written"):
            RunDirectory.create(Path("/proc/smidgen"), "t", 0)


def broken(small_run: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_run.directory, tmp_path / "broken"))


@pytest.mark.parametrize("name", ["result.json", "weights.safetensors", "epochs.jsonl"])
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "garbage"])
def test_a_damaged_run_is_one_line(small_run: Run, tmp_path: Path, name: str, damage: str) -> None:
    path = broken(small_run, tmp_path) / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"empty": b"", "half": content[: len(content) // 2], "garbage": b"\xff{" * 50}[damage])
    with pytest.raises(RunError) as caught:
        load_run(path.parent)
    assert str(path.parent) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_that_are_not_runs_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run directory"):
        load_run(tmp_path / "nothing")
    with pytest.raises(RunError, match="not a run directory"):
        load_run(tmp_path)


def test_weights_that_were_changed_are_noticed(small_run: Run, tmp_path: Path) -> None:
    path = broken(small_run, tmp_path) / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match="does not match its hash"):
        load_run(path.parent)


def test_weights_of_another_run_are_noticed(small_run: Run, small_trial: Trial, tmp_path: Path) -> None:
    other = run(small_trial, seed=4, out=tmp_path / "other", progress=Silent())
    directory = broken(small_run, tmp_path)
    shutil.copy(other.directory / "weights.safetensors", directory)
    with pytest.raises(RunError, match="its hash differs from result.json"):
        load_run(directory)


def changed_weights(small_run: Run, tmp_path: Path, **changes: torch.Tensor | None) -> Path:
    source = small_run.directory / "weights.safetensors"
    tensors, about = safetensors.torch.load_file(source), read_header(source).about
    del about["seal"]
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    path = tmp_path / "w.safetensors"
    path.write_bytes(sealed_bytes(tensors, about))
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"conv1__weight": None}, "conv1.weight missing or too many"),
        ({"extra": torch.zeros(3)}, "extra missing or too many"),
        ({"conv1__weight": torch.zeros(9)}, "has shape"),
        ({"norm1__bias": torch.full((4,), float("nan"))}, "norm1.bias holds values that are not finite"),
        ({"norm1__bias": torch.zeros(4, dtype=torch.float64)}, "norm1.bias is torch.float64"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    small_run: Run, tmp_path: Path, changes: dict[str, torch.Tensor | None], words: str
) -> None:
    with pytest.raises(RunError, match=words):
        read_weights(changed_weights(small_run, tmp_path, **changes))


@pytest.mark.parametrize(
    "about",
    [
        None, "", "null", "[]", "{}", '{"format": 1}', '{"format": 2}', "{" * 10_000,
        '{"format": 1, "trial": {}, "input_shape": [1, 28, 28], "classes": 10, "mean": 0.1, "std": 0.3}',
    ],
)  # fmt: skip
def test_weights_that_do_not_say_whose_they_are_are_refused(tmp_path: Path, about: str | None) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, path, None if about is None else {"smidgen": about})
    with pytest.raises(RunError, match=r"w\.safetensors"):
        read_weights(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("input_shape", [1, 28]), ("input_shape", [1, -28, 28]), ("classes", 1), ("classes", "10"), ("std", 0.0), ("mean", None), ("classes", 2**40)],
)  # fmt: skip
def test_metadata_from_anywhere_are_checked(small_run: Run, tmp_path: Path, name: str, value: object) -> None:
    about = json.loads(safetensors.safe_open(small_run.directory / "weights.safetensors", "pt").metadata()["smidgen"])
    about[name] = value
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, path, {"smidgen": json.dumps(about)})
    with pytest.raises(RunError, match=r"w\.safetensors"):
        read_weights(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smidgen.tensorfile.MOST_BYTES", 1000)
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"\0" * 1001)
    with pytest.raises(RunError, match="1,001 bytes; at most 1,000 are read"):
        read_weights(path)


def test_an_interrupted_run_keeps_what_is_finished(small_trial: Trial, tmp_path: Path) -> None:
    class Impatient(Silent):
        def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
            if epoch == 2 and images > 200:
                raise KeyboardInterrupt

    with pytest.raises(RunInterruptedError) as caught:
        run(small_trial, out=tmp_path / "r", progress=Impatient())
    assert (caught.value.directory, caught.value.epochs) == (tmp_path / "r", 1)
    kept = {path.name for path in (tmp_path / "r").iterdir()}
    assert kept == FILES - {
        "result.json", "weights.safetensors", "predictions.safetensors", "checkpoint-previous.safetensors",
    }  # fmt: skip
    assert len((tmp_path / "r" / "epochs.jsonl").read_text().splitlines()) == 1
    with pytest.raises(RunError, match="unfinished"):
        load_run(tmp_path / "r")


class TestVerdict:
    GOAL = Goal(accuracy=99.4, parameters=7_999, epochs=14)

    @pytest.mark.parametrize(
        ("correct", "parameters", "epochs", "met"),
        [
            (9_940, 7_999, 14, [True, True, True]),
            (9_939, 7_999, 14, [False, True, True]),
            (10_000, 8_000, 14, [True, False, True]),
            (9_940, 1, 15, [True, True, False]),
        ],
    )
    def test_each_part_at_its_edge(self, correct: int, parameters: int, epochs: int, met: list[bool]) -> None:
        verdict = judge(self.GOAL, {"parameters": parameters, "epochs": epochs}, correct=correct, total=10_000)
        assert [part.met for part in verdict.parts] == met
        assert verdict.goal_met == all(met)
        assert str(verdict).count("MISSED") == met.count(False)

    def test_margins_are_in_images(self) -> None:
        verdict = judge(self.GOAL, {"parameters": 1, "epochs": 1}, correct=9_939, total=10_000)
        assert verdict.parts[0].margin == "-0.01 points, 1 image too few"
        verdict = judge(self.GOAL, {"parameters": 1, "epochs": 1}, correct=9_954, total=10_000)
        assert verdict.parts[0].margin == "+0.14 points, 14 images more"

    @pytest.mark.parametrize(
        ("correct", "total", "accuracy", "reached", "margin"),
        [
            (263, 268, 90, "98.13 %", "+8.13 points, 21 images more"),
            (241, 268, 90, "89.92 %", "-0.08 points, 1 image too few"),
            (2, 3, 66.667, "66.666 %", "-0.001 points, 1 image too few"),
            (2, 3, 66.66, "66.66 %", "+0.00 points, 0 images more"),
            (0, 7, 100, "0.00 %", "-100.00 points, 7 images too few"),
            (994, 1000, 99.4, "99.40 %", "+0.00 points, 0 images more"),
        ],
    )
    def test_the_margin_is_the_difference_of_the_two_figures_beside_it(
        self, correct: int, total: int, accuracy: float, reached: str, margin: str
    ) -> None:
        goal = Goal(accuracy=accuracy, parameters=1, epochs=1)
        part = judge(goal, {"parameters": 1, "epochs": 1}, correct=correct, total=total).parts[0]
        assert (part.reached, part.margin) == (reached, margin)
        figures = [float(text.removeprefix("at least ").removesuffix(" %")) for text in (part.reached, part.wanted)]
        assert float(margin.partition(" ")[0]) == pytest.approx(figures[0] - figures[1], abs=1e-9)
        assert part.met == (margin[0] == "+")

    def test_no_target_is_met_by_rounding(self) -> None:
        """2,982 of 3,000 is exactly 99.4 %. With floats, 90.04 % of 10,000 images would need 9,005 of them."""
        fine = Goal(accuracy=90.04, parameters=7_999, epochs=14)
        assert judge(fine, {"parameters": 1, "epochs": 1}, correct=9_004, total=10_000).goal_met
        assert not judge(fine, {"parameters": 1, "epochs": 1}, correct=9_003, total=10_000).goal_met
        assert judge(self.GOAL, {"parameters": 1, "epochs": 1}, correct=2_982, total=3_000).goal_met
        assert not judge(self.GOAL, {"parameters": 1, "epochs": 1}, correct=2_981, total=3_000).goal_met

    def test_an_accuracy_is_never_rounded_up(self) -> None:
        assert percent(99_399, 100_000) == "99.39"
        assert percent(9_940, 10_000) == "99.40"
        assert percent(0, 7) == "0.00"


def test_data_of_another_size_trains(mnist: Dataset, small_trial: Trial, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "d", mnist, 300, 100, zipped=True, step=2)
    finished = run(
        small_trial,
        data=folder,
        settings=["network.blocks.0.stride=1"],
        out=tmp_path / "r",
        progress=Silent(),
    )
    assert finished.trained.input_shape == (1, 14, 14)
    assert load_run(tmp_path / "r").trained.classes == 10


def test_a_channels_last_network_is_saved_as_plain(small_run: Run) -> None:
    tensors = safetensors.torch.load_file(small_run.directory / "weights.safetensors")
    assert all(t.is_contiguous() for t in tensors.values())
    assert np.isfinite(tensors["conv1.weight"].numpy()).all()


def test_records_survive_json(small_run: Run) -> None:
    record = small_run.history[0]
    data = record.to_json()
    accuracy = data.pop("test_accuracy")
    assert accuracy == record.test_accuracy
    assert EpochRecord(**data) == record  # type: ignore[arg-type]
