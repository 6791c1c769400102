"""Model cards: read by the Hub's own parser, true to the check and the seeds, and with code that runs."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from markdown_it import MarkdownIt
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from conftest import Command
from smidgen.data.dataset import Dataset
from smidgen.errors import RunError
from smidgen.exports.c.compiler import find_compiler
from smidgen.exports.card import CARD, model_card, to_yaml
from smidgen.exports.export import MANIFEST, export
from smidgen.exports.target import Check, Source
from smidgen.exports.weights import WeightsTarget
from smidgen.runs.options import RunOptions
from smidgen.runs.progress import Silent
from smidgen.runs.record import Run, load_run
from smidgen.runs.run import run
from smidgen.settings import with_settings
from smidgen.trial import Trial
from test_export import WAYS
from test_named_exports import hostile_run  # noqa: F401 - a fixture

compiler = pytest.mark.skipif(find_compiler() is None, reason="needs a C compiler")


def card_of(folder: Path) -> ModelCard:
    return ModelCard((folder / CARD).read_text())


def data_of(card: ModelCard) -> ModelCardData:
    data = card.data
    assert isinstance(data, ModelCardData)
    return data


def results_of(card: ModelCard) -> list[EvalResult]:
    found = data_of(card).eval_results
    assert found is not None
    return found


def metrics_of(card: ModelCard) -> dict[str, float]:
    """Values by name."""
    found = results_of(card)
    return {str(result.metric_name): result.metric_value for result in found}


@pytest.fixture
def siblings(small_run: Run, tmp_path: Path) -> Path:
    """A folder with four seeds of a recipe, and what must not be counted among them."""
    kept = json.loads((small_run.directory / "result.json").read_text())
    changes: dict[str, dict[str, Any]] = {
        "seed3": {},
        "seed4": {"seed": 4, "test_accuracy_last": 50.0, "goal_met": True},
        "seed5": {"seed": 5, "test_accuracy_last": 41.5, "goal_met": False},
        "seed9": {"seed": 9, "test_accuracy_last": 44.0, "goal_met": True},
        "another of seed 4": {"seed": 4, "test_accuracy_last": 99.0},
        "other recipe": {"seed": 6, "recipe_sha256": "0" * 64},
        "other data": {"seed": 7, "data_sha256": "0" * 64},
        "other precision": {"seed": 8, "precision": "bf16"},
        "unfinished": {"seed": 10},
        "damaged": {"seed": "many"},
    }
    for name, changed in changes.items():
        folder = tmp_path / "sweep" / name.replace("another", "z")
        shutil.copytree(small_run.directory, folder)
        (folder / "result.json").write_text(json.dumps(kept | changed))
    (tmp_path / "sweep" / "unfinished" / "result.json").unlink()
    (tmp_path / "sweep" / "notes.txt").write_text("")
    return tmp_path / "sweep"


def test_the_hub_reads_it(small_run: Run, tmp_path: Path) -> None:
    exported = export(small_run, "safetensors", tmp_path / "out")
    card = card_of(tmp_path / "out")
    assert data_of(card).library_name == "smidgen"
    assert data_of(card).pipeline_tag == "image-classification"
    assert data_of(card).tags == ["image-classification", "tinyml", "safetensors"]
    assert data_of(card).metrics == ["accuracy"]
    assert data_of(card).model_name == "small"
    results = results_of(card)
    assert {(r.task_type, r.dataset_split, r.metric_type) for r in results} == {
        ("image-classification", "test", "accuracy")
    }
    assert metrics_of(card) == {
        "accuracy of these files, %": pytest.approx(small_run.accuracy),
        "accuracy after the last epoch, seed 3, %": pytest.approx(small_run.accuracy),
    }
    assert {"small.safetensors", CARD} == set(exported.sizes)
    assert exported.sizes[CARD] == (tmp_path / "out" / CARD).stat().st_size
    assert "One run, seed 3" in card.text
    assert small_run.result.weights_sha256 in card.text


def test_known_data_have_their_licence_and_own_data_none(
    small_run: Run, colour_run: Run, mnist: Dataset, tmp_path: Path
) -> None:
    on_mnist = replace(small_run.trial, data=replace(small_run.trial.data, source="mnist"))
    source = Source(replace(small_run, trial=on_mnist), mnist.held_out.images, mnist.held_out.labels)
    known = ModelCard(model_card(source, "onnx", "--to onnx", "", {}, None).decode())
    assert (data_of(known).license, data_of(known).datasets) == ("cc-by-sa-3.0", ["ylecun/mnist"])
    assert "CC BY-SA 3.0" in known.text
    export(colour_run, "onnx", tmp_path / "own", check=False)
    own = card_of(tmp_path / "own")
    assert (data_of(own).license, data_of(own).get("datasets")) == ("unknown", None)
    assert "Its licence is not known to smidgen: fill in `license`" in own.text
    assert "Classes, in the order of the scores: circle ring, " in own.text
    results = results_of(own)
    assert results[0].dataset_name == "my pictures"


def test_the_seeds_beside_it_are_counted(siblings: Path, tmp_path: Path) -> None:
    chosen = load_run(siblings / "seed3")
    export(chosen, "safetensors", tmp_path / "out")
    card = card_of(tmp_path / "out")
    accuracies = [chosen.accuracy, 50.0, 41.5, 44.0]
    mean, sd = statistics.mean(accuracies), statistics.stdev(accuracies)
    assert f"{mean:.3f} ± {sd:.3f} % of the test images after the last epoch (mean ± s.d., n = 4 runs" in card.text
    met = 2 + bool(chosen.goal_met)
    assert (
        f"seeds 3-5, 9), min {min(accuracies):.2f} %; {met} of 4 met the goal. These files are of the run with seed 3"
        in card.text
    )
    assert metrics_of(card)["accuracy after the last epoch, mean of 4 seeds, %"] == pytest.approx(mean, abs=1e-4)


def test_it_says_whether_the_files_were_checked(
    small_run: Run, tmp_path: Path, smidgen: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert smidgen("export", small_run.directory, "--to", "safetensors", "-o", out, "--no-check").status == 0
    unchecked = card_of(out)
    assert "These files were not checked" in unchecked.text
    assert list(metrics_of(unchecked)) == ["accuracy after the last epoch, seed 3, %"]

    def interrupted(self: WeightsTarget, source: Source, directory: Path) -> None:
        assert "These files were not checked" in (directory / CARD).read_text()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(WeightsTarget, "check", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(small_run, "safetensors", out)
    assert smidgen("export", small_run.directory, "--to", "safetensors", "-o", out).status == 0
    checked = card_of(out).text
    assert "All 200 test images were classified with these files and compared with the network: all match." in checked
    honest = WeightsTarget.files

    def dishonest(self: WeightsTarget, source: Source) -> dict[str, bytes]:
        weight = source.run.network.get_parameter("linear1.weight")
        weight.mul_(-1)
        try:
            return honest(self, source)
        finally:
            weight.mul_(-1)

    monkeypatch.setattr(WeightsTarget, "files", dishonest)
    assert smidgen("export", small_run.directory, "--to", "safetensors", "-o", out).status == 1
    wrong = json.loads((out / MANIFEST).read_text())["check"]["mismatches"]
    assert f"**{wrong:,} of them do not match**" in card_of(out).text


def test_a_run_that_was_tuned_says_so(small_trial: Trial, tmp_path: Path) -> None:
    tuned = run(
        with_settings(small_trial, ["data.evaluate=validation", "epochs=1"]), out=tmp_path / "tuned",
        options=RunOptions(threads=1), progress=Silent(),
    )  # fmt: skip
    export(tuned, "safetensors", tmp_path / "out")
    card = card_of(tmp_path / "out")
    results = results_of(card)
    assert {(r.dataset_split, r.metric_name) for r in results} == {
        ("test", "accuracy of these files, %"), ("validation", "accuracy after the last epoch, seed 0, %"),
    }  # fmt: skip
    assert "of 100 validation images after the last epoch" in card.text


@pytest.mark.parametrize("way", WAYS)
def test_the_same_run_gives_the_same_card_without_paths(small_run: Run, way: dict[str, str], tmp_path: Path) -> None:
    contents = []
    for name in ("first", "second"):
        export(small_run, out=tmp_path / name, **way)
        contents.append((tmp_path / name / CARD).read_bytes())
    assert contents[0] == contents[1]
    assert str(small_run.directory.parent).encode() not in contents[0]
    assert str(tmp_path).encode() not in contents[0]
    manifest = json.loads((tmp_path / "first" / MANIFEST).read_text())
    assert CARD in manifest["files"]


def test_a_card_that_was_filled_in_or_is_another_s_is_left_alone(small_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(small_run, "safetensors", out)
    export(small_run, "c", out, check=False)
    (out / CARD).write_text((out / CARD).read_text().replace("unknown", "cc0-1.0"))
    with pytest.raises(RunError, match=r"README.md was changed since it was exported"):
        export(small_run, "safetensors", out)
    assert data_of(card_of(out)).license == "cc0-1.0"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / CARD).write_text("mine")
    with pytest.raises(RunError, match=r"README.md is not from an earlier export"):
        export(small_run, "safetensors", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [CARD]


def test_hostile_names_are_only_text(hostile_run: Run, tmp_path: Path) -> None:  # noqa: F811
    """Of classes, and of what a run says of where it was made."""
    copy = tmp_path / "run"
    shutil.copytree(hostile_run.directory, copy)
    environment = json.loads((copy / "environment.json").read_text())
    del environment["python"]
    (copy / "environment.json").write_text(json.dumps(environment | {"torch": "<script>`\n# 2</script>"}))
    export(copy, "safetensors", tmp_path / "out", check=False)
    card = card_of(tmp_path / "out")
    assert "Python of unknown version" in card.text
    shown = MarkdownIt().render(card.text)
    assert "<script" not in shown
    assert "<img" not in shown
    assert "javascript:f" not in "".join(re.findall(r"href=\"[^\"]*", shown))
    assert "&lt;script&gt;alert(1)" in shown


@pytest.mark.parametrize(
    "text", ["a: b", "- x", "#", "'\"\\", "null", "1e3", "naïve 日本 😀", "{a: b}", "&x *x", "", "@", "%"]
)
def test_any_text_is_a_text_in_yaml(text: str) -> None:
    data = {"a": text, "list": [text, {"b": [text], "c": {"d": text}}], "n": 99.5}
    assert yaml.safe_load(to_yaml(data)) == data


def python_block(card: ModelCard) -> str:
    (block,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    return str(block)


def test_a_card_of_integers_says_so(small_run: Run, mnist: Dataset) -> None:
    source = Source(small_run, mnist.held_out.images, mnist.held_out.labels)
    check = Check(400, (1, 2), "the integer network in Python", 1.0, 50.25, 1.0, {"macs": 30_000}, allowed=2)
    command = "--to c --type int8 --bits 4 --lean"
    card = ModelCard(model_card(source, "c", command, "", {}, check).decode())
    assert data_of(card).tags == ["image-classification", "tinyml", "c", "int8"]
    assert f"exported with `{command}`; these files compute in integers" in card.text
    assert "(the plan of these files: 30,000)" in card.text
    assert "the network in float32, from which these files in integers were made" in card.text
    assert "2 are in another class; up to 2 are to be expected" in card.text
    assert "files' accuracy is 50.25 %" in card.text
    assert replace(check, images=22, accuracy=100 * 9 / 22).percent == "40.90"  # cut, as in verdicts
    worse = model_card(source, "c", command, "", {}, replace(check, mismatches=(1, 2, 3))).decode()
    assert "**3 are in another class**" in worse
    assert "integers" not in model_card(source, "onnx", "--to onnx", "", {}, None).decode()


def test_its_code_runs_in_python(
    small_run: Run, mnist: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = mnist.held_out.images[:5]
    Image.fromarray(images[0, 0].numpy()).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    found: dict[str, dict[str, Any]] = {}
    nhwc = images[:1].permute(0, 2, 3, 1).contiguous().numpy()
    for to in ("safetensors", "tflite", "onnx"):
        export(small_run, to, tmp_path / to, check=False, type="int8" if to == "tflite" else None)
        for path in (tmp_path / to).iterdir():
            shutil.copy(path, tmp_path)
        names: dict[str, Any] = {"images": images.numpy(), "image": nhwc}
        exec(compile(python_block(card_of(tmp_path / to)), CARD, "exec"), names)
        found[to] = names
    assert re.fullmatch(r"\d 0\.\d+\n", capsys.readouterr().out)
    normalized = (images / 255 - small_run.trained.mean) / small_run.trained.std
    labels = small_run.network(normalized).argmax(1).tolist()
    assert (names["labels"].tolist(), found["tflite"]["label"]) == (labels, labels[0])


@compiler
def test_its_code_compiles_in_c(colour_run: Run, tmp_path: Path) -> None:
    export(colour_run, "c", tmp_path, type="int8", name="net", check=False)
    (block,) = re.findall(r"```c\n(.*?)```", card_of(tmp_path).text, re.DOTALL)
    assert "image: 432 bytes, rows from the top, the channels of a pixel side by side" in block
    head, _, call = block.rpartition("\n\n")
    program = f"{head}\nint main(void) {{ static uint8_t image[432]; {call} return label > 2; }}\n"
    (tmp_path / "use.c").write_text(program)
    files = [str(tmp_path / name) for name in ("use.c", "net.c", "use")]
    command = [*(find_compiler() or []), *files[:2], "-o", files[2], "-lm"]
    subprocess.run(command, check=True)
    subprocess.run([tmp_path / "use"], check=True)


def test_loaders_find_pytorch_s_format_and_equal_bytes(small_run: Run, tmp_path: Path) -> None:
    """transformers and others refuse a file that does not say `pt`."""
    for name in ("first", "second"):
        export(small_run, "safetensors", tmp_path / name, check=False)
    first, second = (tmp_path / name / "small.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes() == (small_run.directory / "weights.safetensors").read_bytes()
    with safe_open(first, "pt") as opened:
        assert opened.metadata()["format"] == "pt"
        assert list(opened.metadata()) in (["format", "smidgen"], ["smidgen", "format"])
    content = first.read_bytes()
    assert (8 + int.from_bytes(content[:8], "little")) % 8 == 0
    loaded = load_file(first)
    state = small_run.network.state_dict()
    assert set(loaded) == set(state)
    assert all(loaded[name].equal(state[name]) for name in state)
