"""Exports of the flagship and of the reference network through every target, over all test images; and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Command
from smidgen.data.dataset import Dataset
from smidgen.errors import RunError, SmidgenError
from smidgen.exports.c.compiler import find_compiler
from smidgen.exports.c.target import CTarget
from smidgen.exports.export import MANIFEST, export
from smidgen.exports.registry import TARGETS, make_target
from smidgen.exports.target import Source
from smidgen.exports.weights import WeightsTarget
from smidgen.files import write_together
from smidgen.runs.options import RunOptions
from smidgen.runs.record import Run
from smidgen.runs.run import run
from smidgen.trial import Trial

ROOT = Path(__file__).parents[1]
TRIALS = ["mnist-4-strict", "mnist-2-regularized"]
"""The flagship and the reference network."""
compiler = pytest.mark.skipif(find_compiler() is None, reason="needs a C compiler")
WAYS: list[Any] = [
    pytest.param({"to": "safetensors"}, id="safetensors"),
    pytest.param({"to": "onnx"}, id="onnx"),
    pytest.param({"to": "c"}, id="c", marks=compiler),
    pytest.param({"to": "c", "type": "int8"}, id="c-int8", marks=compiler),
]


@pytest.fixture(scope="module")
def runs(flagship_run: Run, reference_run: Run) -> dict[str, Run]:
    """An epoch each, on all of MNIST."""
    return {made.trial.name: made for made in (flagship_run, reference_run)}


@pytest.mark.parametrize("trial", TRIALS)
@pytest.mark.parametrize("way", WAYS)
def test_every_test_image_matches(
    runs: dict[str, Run], trial: str, way: dict[str, str], tmp_path: Path, smidgen: Command, mnist: Dataset
) -> None:
    options = [word for name, value in way.items() for word in (f"--{name}", value)]
    done = smidgen("export", runs[trial].directory, *options, "-o", tmp_path / "out", "--json")
    assert done.status == 0, done
    found = done.json
    assert found["images"] == 10_000
    assert found["mismatches"] == 0
    assert found["mismatching_images"] == []
    if "type" in way:
        assert found["reference"] == "the integer network in Python"
        assert found["largest_difference"] == 0
        assert found["accuracy"] == pytest.approx(runs[trial].accuracy, abs=0.2)
        assert found["details"]["other_class_than_the_float32_network"] < 50
    else:
        assert found["largest_difference"] < 1e-3
        assert found["accuracy"] == runs[trial].accuracy
    assert found["seconds"] > 0
    for file in found["files"]:
        assert Path(file).stat().st_size == found["sizes"][Path(file).name]
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["weights_sha256"] == runs[trial].result.weights_sha256
    assert manifest["check"]["mismatches"] == 0


def test_what_people_see(small_run: Run, tmp_path: Path, smidgen: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = smidgen("export", small_run.directory, "--to", "safetensors")
    assert done.status == 0
    assert "small-safetensors/small.safetensors" in done.out
    assert re.search(r"^mismatches +0$", done.out, re.MULTILINE)
    assert "all 200 test images match the network" in done.out
    again = smidgen("export", small_run.directory, "--to", "safetensors")
    assert again.status == 0


def test_a_changed_weight_is_noticed(
    small_run: Run, tmp_path: Path, smidgen: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = WeightsTarget.files

    def dishonest(self: WeightsTarget, source: Source) -> dict[str, bytes]:
        other = {name: value.clone() for name, value in source.run.network.state_dict().items()}
        try:
            source.run.network.get_parameter("linear1.weight").mul_(-1)
            return honest(self, source)
        finally:
            source.run.network.load_state_dict(other)

    monkeypatch.setattr(WeightsTarget, "files", dishonest)
    done = smidgen("export", small_run.directory, "--to", "safetensors", "-o", tmp_path / "out")
    assert done.status == 1
    assert "of 200 test images are classified differently from the network" in done.out
    assert re.search(r"mismatches +\d+ \(images (\d+, ){10}\.\.\.\)", done.out)
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["check"]["mismatches"] > 10


@compiler
@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_a_changed_weight_in_c_is_noticed(
    small_run: Run, tmp_path: Path, smidgen: Command, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    honest = CTarget.files

    def dishonest(self: CTarget, source: Source) -> dict[str, bytes]:
        made = honest(self, source)
        text, count = re.subn(rb"(_weights\[60\] = \{[^\n]*\n +)([^,]+)", rb"\g<1>-\2 - 1", made["small.c"])
        assert count == 1
        return {**made, "small.c": text.replace(b"\n    --", b"\n    ")}

    monkeypatch.setattr(CTarget, "files", dishonest)
    done = smidgen("export", small_run.directory, "--to", "c", "--type", kind, "-o", tmp_path / "out", "--json")
    assert done.status == 1
    assert done.json["mismatches"] > 0
    assert len(done.json["mismatching_images"]) == done.json["mismatches"]


def test_predict_takes_the_safetensors_file(
    runs: dict[str, Run], mnist: Dataset, tmp_path: Path, smidgen: Command
) -> None:
    chosen = runs["mnist-4-strict"]
    exported = export(chosen, "safetensors", tmp_path / "out")
    picture = tmp_path / "digit.png"
    Image.fromarray(mnist.held_out.images[0, 0].numpy()).save(picture)
    by_file = smidgen("predict", exported.directory / "mnist-4-strict.safetensors", picture, "--json")
    by_run = smidgen("predict", chosen.directory, picture, "--json")
    assert by_file.status == 0
    assert by_file.json == by_run.json
    assert smidgen("predict", picture, picture).is_mistake("digit.png")


def test_the_docs_lines_of_plain_pytorch_load_the_file(
    runs: dict[str, Run], mnist: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand in docs/export.md, the normalization included."""
    text = (ROOT / "docs" / "export.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "smidgen" not in block
    (formula,) = re.findall(r"The network takes `(.*?)` as input", text)
    chosen = runs["mnist-4-strict"]
    export(chosen, "safetensors", tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"images": mnist.held_out.images[:100]}
    exec(compile(block, "docs/export.md", "exec"), names)
    with torch.no_grad():
        found = names["network"](eval(formula, names))
    normalized = (mnist.held_out.images[:100] / 255 - chosen.trained.mean) / chosen.trained.std
    torch.testing.assert_close(found, chosen.network(normalized))


def test_an_onnx_file_takes_uint8_images_in_any_number(runs: dict[str, Run], mnist: Dataset, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    chosen = runs["mnist-4-strict"]
    exported = export(chosen, "onnx", tmp_path / "out")
    path = exported.directory / "mnist-4-strict.onnx"
    assert [p.name for p in sorted(exported.directory.iterdir())] == ["README.md", MANIFEST, path.name]
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    about = {prop.key: prop.value for prop in model.metadata_props}
    assert about["trial"] == "mnist-4-strict"
    assert Trial.from_json(json.loads(about["recipe"])) == chosen.trial
    assert not [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].type == "tensor(uint8)"
    for count in (1, 3):
        images = mnist.held_out.images[:count]
        (scores,) = session.run(None, {"images": images.numpy()})
        normalized = (images / 255 - chosen.trained.mean) / chosen.trained.std
        np.testing.assert_allclose(scores, chosen.network(normalized).numpy(), atol=1e-4)


def test_a_run_evaluated_on_validation_is_checked_on_the_test_images(small_trial: Trial, tmp_path: Path) -> None:
    from smidgen.settings import with_settings

    tuned = run(
        with_settings(small_trial, ["data.evaluate=validation"]), out=tmp_path / "tuned", options=RunOptions(threads=1)
    )
    exported = export(tuned, "safetensors", tmp_path / "out")
    assert exported.check is not None
    assert exported.check.images == 200


def test_what_cannot_be_is_one_line_and_nothing_is_written(
    small_run: Run, tmp_path: Path, smidgen: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    unfinished = tmp_path / "unfinished"
    shutil.copytree(small_run.directory, unfinished)
    (unfinished / "result.json").unlink()
    mistakes: list[tuple[list[str | Path], list[str]]] = [
        ([unfinished, "--to", "onnx"], ["the run is unfinished", "--resume"]),
        ([tmp_path, "--to", "onnx"], ["not a run directory"]),
        ([tmp_path / "nowhere", "--to", "onnx"], ["not a run directory"]),
        ([small_run.directory, "--to", "onxx"], ["no target 'onxx'", "did you mean 'onnx'"]),
        ([small_run.directory, "--to", "page", "--type", "int8"], ["--type is not for --to page"]),
        ([small_run.directory, "--to", "tflite"], ["for int8 only", "--type int8"]),
        ([small_run.directory, "--to", "tflite", "--type", "float32"], ["for int8 only", "--type int8"]),
        ([small_run.directory, "--to", "safetensors", "--name", "x"], ["--name is not for"]),
        ([small_run.directory, "--to", "c", "--name", "7up"], ["'7up'", "--name"]),
        ([small_run.directory, "--to", "c", "--name", "while"], ["keyword", "--name"]),
        ([small_run.directory, "--to", "c", "--name", "main"], ["taken", "--name"]),
        ([small_run.directory, "--to", "c", "--name", "stdio"], ["taken", "--name"]),
        ([small_run.directory, "--to", "c", "--name", "a" * 49], ["48 characters", "--name"]),
    ]
    for arguments, words in mistakes:
        assert smidgen("export", *arguments, "-o", out).is_mistake(*words)
        assert not out.exists()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    missing = smidgen("export", small_run.directory, "--to", "onnx", "-o", out)
    assert missing.is_mistake("onnxruntime", "pip install 'smidgen[onnx]'")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    missing = smidgen("export", small_run.directory, "--to", "c", "-o", out)
    assert missing.is_mistake("no C compiler", "--no-check")
    assert not out.exists()
    unchecked = smidgen("export", small_run.directory, "--to", "c", "-o", out, "--no-check")
    assert unchecked.status == 0
    assert unchecked.out.endswith("not checked\n")
    assert json.loads((out / MANIFEST).read_text())["check"] is None
    assert (
        smidgen("export", small_run.directory, "--to", "c", "-o", out, "--no-check", "--json").json["mismatches"]
        is None
    )


def test_a_name_from_a_trial_that_is_not_an_identifier(small_run: Run) -> None:
    from smidgen.exports.c.names import prefix

    assert prefix(None, "mnist-4-strict") == "mnist_4_strict"
    assert prefix("Digits_2", "mnist-4-strict") == "Digits_2"
    for trial in ("4-strict", "--", "int"):
        with pytest.raises(SmidgenError, match="made from the trial's name.*--name"):
            prefix(None, trial)


def test_other_people_s_files_are_left_alone(small_run: Run, tmp_path: Path, smidgen: Command) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "small.safetensors").write_text("mine")
    done = smidgen("export", small_run.directory, "--to", "safetensors", "-o", out)
    assert done.is_mistake("small.safetensors is not from an earlier export", "-o")
    assert (out / "small.safetensors").read_text() == "mine"
    (out / "small.safetensors").unlink()
    assert smidgen("export", small_run.directory, "--to", "safetensors", "-o", out).status == 0
    assert (out / "notes.txt").read_text() == "mine"
    with (out / "small.safetensors").open("ab") as file:
        file.write(b"changed")
    done = smidgen("export", small_run.directory, "--to", "safetensors", "-o", out)
    assert done.is_mistake("was changed since it was exported")
    (tmp_path / "file").write_text("")
    assert smidgen("export", small_run.directory, "--to", "safetensors", "-o", tmp_path / "file").is_mistake(
        "is a file"
    )


def test_another_export_into_the_same_place_replaces_the_first(
    small_run: Run, tmp_path: Path, smidgen: Command
) -> None:
    out = tmp_path / "out"
    for name in ("first", "second"):
        assert smidgen("export", small_run.directory, "--to", "c", "--name", name, "-o", out, "--no-check").status == 0
    assert sorted(p.name for p in out.iterdir()) == ["README.md", MANIFEST, "main.c", "second.c", "second.h"]


def test_a_file_system_that_fails_leaves_nothing_half_written(tmp_path: Path) -> None:
    """The second file is larger than the process may write: the first is not put into place either."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000));"
        "from pathlib import Path; from smidgen.files import write_together;"
        "write_together(Path(sys.argv[1]), {'a': b'new', 'b': b'x' * 5000}, '-o')"
    )
    for out in (tmp_path / "new", tmp_path / "old"):
        if out.name == "old":
            write_together(out, {"a": b"old"})
        done = subprocess.run([sys.executable, "-c", code, out], capture_output=True, text=True, check=False)
        assert (
            "cannot be written: File too large; free some space there, or choose another place with -o" in done.stderr
        )
    assert not (tmp_path / "new").exists()
    assert [p.name for p in (tmp_path / "old").iterdir()] == ["a"]
    assert (tmp_path / "old" / "a").read_bytes() == b"old"


@pytest.mark.skipif(os.name != "posix", reason="needs a place below a file")
def test_a_place_that_cannot_be_written_is_named(small_run: Run, tmp_path: Path, smidgen: Command) -> None:
    (tmp_path / "file").write_text("")
    done = smidgen("export", small_run.directory, "--to", "safetensors", "-o", tmp_path / "file" / "below")
    assert done.is_mistake("cannot be written", "-o")


def test_every_target_has_what_targets_have() -> None:
    for name in TARGETS:
        target = make_target(name, {"type": "int8"} if name == "tflite" else {})
        assert callable(target.files)
        assert callable(target.check)


def test_changed_data_is_noticed(small_trial: Trial, small_folder: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    copy = tmp_path / "data"
    shutil.copytree(small_folder, copy)
    trial = replace(small_trial, data=replace(small_trial.data, source=str(copy)), epochs=1)
    finished = run(trial, out=tmp_path / "run", options=RunOptions(threads=1))
    labels = next(copy.glob("t10k-labels*"))
    content = bytearray(labels.read_bytes())
    content[-1] = (content[-1] + 1) % 10
    labels.write_bytes(bytes(content))
    with pytest.raises(RunError, match="has changed since"):
        export(finished, "safetensors", tmp_path / "out")
    assert torch.is_tensor(finished.network.state_dict()["linear1.weight"])


@compiler
def test_less_memory_and_fewer_bits_are_for_integers(small_run: Run, tmp_path: Path, smidgen: Command) -> None:
    def exported(*options: str) -> dict[str, Any]:
        done = smidgen("export", small_run.directory, "--to", "c", "-o", tmp_path / "out", "--json", *options)
        assert done.status in (0, 2), done.err
        return {"error": done.json["error"]} if done.status else done.json["details"]

    whole = exported("--type", "int8")
    lean = exported("--type", "int8", "--lean")
    few = exported("--type", "int8", "--bits", "4", "--max-ram", str(whole["bytes_of_memory"]))
    assert lean["bytes_of_memory"] < whole["bytes_of_memory"] == few["bytes_of_memory"]
    assert lean["macs"] > whole["macs"] == few["macs"]
    assert few["bytes_of_weights"] < 0.75 * whole["bytes_of_weights"]
    for options, problem in {
        (
            "--type",
            "int8",
            "--max-ram",
            "100",
        ): r"needs [\d,]+ bytes of memory .* and 100 are allowed; most is taken by",
        ("--type", "int8", "--bits", "3"): "--bits is 3; allowed: 8, 4",
        ("--type", "int8", "--lean", "--max-ram", "9000"): "leave out --max-ram",
        ("--bits", "4"): "--bits is for --type int8; add that",
        ("--type", "float32", "--lean"): "--lean is for --type int8; add that",
    }.items():
        assert re.search(problem, exported(*options)["error"])
    assert smidgen("export", small_run.directory, "--to", "onnx", "--max-ram", "1", "-o", tmp_path / "o").status == 2


@compiler
def test_inspect_knows_the_sizes_before_training(small_run: Run, tmp_path: Path, smidgen: Command) -> None:
    before = smidgen("inspect", small_run.directory / "trial.json", "--json").json
    for options, keys in {
        (): {"flash": "bytes_of_weights", "ram": "bytes_of_memory"},
        ("--bits", "4", "--lean"): {"flash_4_bits": "bytes_of_weights", "ram_lean": "bytes_of_memory"},
    }.items():
        done = smidgen(
            "export", small_run.directory, "--to", "c", "--type", "int8", *options, "-o", tmp_path / "o", "--json"
        )
        assert {key: before[key] for key in keys} == {key: done.json["details"][name] for key, name in keys.items()}


def test_inspect_says_why_there_are_no_sizes(tmp_path: Path, smidgen: Command) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\n\ndef net(classes):\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 28), nn.Flatten(), nn.Softplus(), nn.Linear(4, classes))\n"
    )
    found = smidgen("inspect", f"{file}:net", "--json")
    assert found.status == 0
    assert found.json["flash"] is found.json["ram"] is None
    assert "no C code in integers: 2: Softplus" in smidgen("inspect", f"{file}:net").out
    huge = smidgen("inspect", "mnist-4-strict", "--input", "1x600x600")
    assert "its images have more than 262,144 pixels" in huge.out
