"""Integer networks as ONNX and TFLite files: the same integers as in Python, but for what the runtimes round."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from conftest import Command
from networks import unsettled
from smidgen.errors import SmidgenError
from smidgen.exports import onnx_int8, tflite_model
from smidgen.exports.export import MANIFEST
from smidgen.exports.onnx_int8 import QdqWriter
from smidgen.exports.per_channel import PerChannel, per_channel
from smidgen.exports.quantized import Quantized
from smidgen.exports.target import fused_graph
from smidgen.exports.tflite_file import classify
from smidgen.exports.tflite_writer import ALIGNMENT
from smidgen.graph import ops
from smidgen.graph.activations import ACTIVATIONS
from smidgen.lowering.fused import Convolution, FusedGraph
from smidgen.lowering.integer import IntegerNetwork
from smidgen.lowering.quantize import BYTE, FINE, WORD, quantize
from smidgen.runs.options import RunOptions
from smidgen.runs.progress import Silent
from smidgen.runs.record import Run
from smidgen.runs.run import run
from smidgen.runs.weights import TrainedNetwork
from smidgen.trial import AvgPool, Conv, Linear, Network, Trial
from smidgen.trials.mnist import strict
from test_export_c import CASES, graph_of, random_images

TFLITE = importlib.util.find_spec("ai_edge_litert") is not None
needs_litert = pytest.mark.skipif(not TFLITE, reason="needs ai-edge-litert")
TARGETS = ["onnx", pytest.param("tflite", marks=needs_litert)]


def integers_of(graph: FusedGraph) -> IntegerNetwork:
    return quantize(graph, random_images(graph, 100))


def real_scores(network: IntegerNetwork, images: Tensor) -> Tensor:
    grid = network.grids[network.output]
    return (network.scores(images) - grid.zero) * grid.scale


def by_onnxruntime(content: bytes, images: Tensor, names: list[str]) -> list[np.ndarray[Any, Any]]:
    """Any of the model's values."""
    model = onnx.load_from_string(content)
    for name in names:
        if name != "scores":
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray[Any, Any]] = session.run(names, {"images": images.numpy()})
    return found


def by_litert(graph: FusedGraph, network: IntegerNetwork, images: Tensor, file: Path, *, delegate: bool) -> Tensor:
    largest = max(int(network.scores(images).abs().max()), 1)
    file.write_bytes(tflite_model.tflite_model(graph, network, largest, "a test", {}))
    return classify(file, images, delegate=delegate)[0]


@pytest.mark.parametrize("name", CASES)
def test_onnx_has_the_same_integers(name: str) -> None:
    """All values, not only scores: what one operation rounds otherwise, others can hide."""
    graph = graph_of(name)
    network, images = integers_of(graph), random_images(graph, 24)
    expected = network.values(images)
    values = [step.node.output for step in network.steps if network.grids[step.node.output].top != WORD]
    names = [f"value{value}.integers" for value in values]
    *found, scores = by_onnxruntime(QdqWriter(graph, network).content("net", {}), images, [*names, "scores"])
    for value, integers in zip(values, found, strict=True):
        assert integers.dtype == (np.uint8 if network.grids[value].top == BYTE else np.uint16)
        off = np.abs(integers.astype(np.int64) - expected[value].numpy())
        unit = 1 if network.grids[value].top == BYTE else 16
        assert off.max() <= 6 * unit, value
        assert off.mean() < 0.2 * unit, value
    reference = real_scores(network, images)
    spread = float(reference.max() - reference.min())
    assert float((torch.from_numpy(scores) - reference).abs().max()) < 0.01 * spread


@needs_litert
@pytest.mark.parametrize("delegate", [True, False], ids=["xnnpack", "integers"])
@pytest.mark.parametrize("name", CASES)
def test_tflite_comes_near(name: str, delegate: bool, tmp_path: Path) -> None:
    """Less near where a mean or a function other than ReLU has fewer steps than in the integer network."""
    graph = graph_of(name)
    network, images = integers_of(graph), random_images(graph, 24)
    found = by_litert(graph, network, images, tmp_path / "net.tflite", delegate=delegate)
    reference = real_scores(network, images)
    spread = float(reference.max() - reference.min())
    near = 0.06 if name.startswith("random") else 0.005
    assert float((found - reference).abs().max()) < near * spread


def small_graph(*layers: nn.Module, mean: float = 0.1, classes: int = 4) -> FusedGraph:
    """Of a network for images of 12 × 12."""
    network = nn.Sequential(*layers)
    network(torch.zeros(2, 1, 12, 12))
    torch.manual_seed(2)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()
    unsettled(network)
    return fused_graph(TrainedNetwork(network.eval().requires_grad_(False), strict(), (1, 12, 12), classes, mean, 0.3))


def test_what_is_made_of_pixels_without_a_convolution_has_their_zero() -> None:
    """The mean of the images lies between two grey levels, and no bias makes up for it."""
    graph = small_graph(nn.AvgPool2d(2), nn.Conv2d(1, 4, 6), nn.Flatten(), mean=34.5 / 255)
    network, images = integers_of(graph), random_images(graph, 24)
    (found,) = by_onnxruntime(QdqWriter(graph, network).content("net", {}), images, ["value1.integers"])
    assert np.abs(found - network.values(images)[1].numpy()).mean() < 0.05


@needs_litert
def test_a_norm_after_relu_keeps_large_values(tmp_path: Path) -> None:
    graph = small_graph(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1), nn.Flatten(), nn.LazyLinear(4)
    )
    first = graph.operations[0]
    assert isinstance(first, Convolution)
    assert first.shift is not None
    first.shift[:] = -0.9 * np.abs(first.shift).max() - 1
    norm = graph.folded.operations[2]
    assert isinstance(norm, ops.Affine)
    norm.shift[:] = torch.from_numpy(first.shift)
    network, images = integers_of(graph), random_images(graph, 24)
    found = by_litert(graph, network, images, tmp_path / "net.tflite", delegate=True)
    reference = real_scores(network, images)
    assert float((found - reference).abs().max()) < 0.02 * float(reference.max() - reference.min())


@pytest.mark.parametrize("target", TARGETS)
def test_values_beyond_those_of_the_calibration_are_cut_alike(target: str, tmp_path: Path) -> None:
    graph = small_graph(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AvgPool2d(10), nn.Flatten(), nn.Linear(6, 4))
    images = random_images(graph, 40)
    network = quantize(graph, images // 4)
    reference = real_scores(network, images)
    assert int((network.values(images)[2] == FINE).sum()) > 20
    if target == "onnx":
        (scores,) = by_onnxruntime(QdqWriter(graph, network).content("net", {}), images, ["scores"])
        found = torch.from_numpy(scores)
    else:
        found = by_litert(graph, network, images, tmp_path / "net.tflite", delegate=True)
    assert float((found - reference).abs().max()) < 0.02 * float(reference.max() - reference.min())


def test_the_onnx_file_means_the_same_elsewhere() -> None:
    """By onnx's own evaluator, which joins no operators."""
    graph = graph_of("random 3")
    network, images = integers_of(graph), random_images(graph, 4)
    content = QdqWriter(graph, network).content("net", {})
    (scores,) = ReferenceEvaluator(onnx.load_from_string(content)).run(["scores"], {"images": images.numpy()})
    reference = real_scores(network, images)
    spread = float(reference.max() - reference.min())
    assert float((torch.from_numpy(scores) - reference).abs().max()) < 0.01 * spread


@needs_litert
@pytest.mark.parametrize("kind", ACTIVATIONS, ids=lambda kind: kind.setting)
def test_activations_in_tflite_or_named(kind: Any, tmp_path: Path) -> None:
    graph = small_graph(
        nn.Conv2d(1, 5, 3), kind.layer(), nn.Conv2d(5, 5, 3), nn.AvgPool2d(2), kind.layer(), nn.Flatten(),
        nn.Linear(5 * 4 * 4, 6), kind.layer(), nn.Linear(6, 4),
    )  # fmt: skip
    integers, images = integers_of(graph), random_images(graph, 32)
    if kind.setting == "gelu":
        with pytest.raises(SmidgenError, match=r"^1 \(GELU\) cannot be expressed in int8 TFLite; --to onnx can"):
            by_litert(graph, integers, images, tmp_path / "net.tflite", delegate=True)
        return
    found = by_litert(graph, integers, images, tmp_path / "net.tflite", delegate=True)
    reference = real_scores(integers, images)
    assert float((found - reference).abs().max()) < 0.05 * float(reference.max() - reference.min())


@needs_litert
@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(9, 12), (10, 11)])
def test_padding_that_tflite_has_and_has_not(pooling: str, stride: int, size: tuple[int, int], tmp_path: Path) -> None:
    """On values that are all below 0, where padding of 0 would win a maximum."""
    torch.manual_seed(4)
    pool = nn.MaxPool2d(3, stride, 1) if pooling == "max" else nn.AvgPool2d(3, stride, 1)
    network = nn.Sequential(nn.Conv2d(2, 4, 3, stride, 1), nn.Conv2d(4, 4, 1), pool, nn.Flatten(), nn.LazyLinear(3))
    network(torch.zeros(1, 2, *size))
    with torch.no_grad():
        network.get_parameter("1.bias").sub_(3)
    graph = fused_graph(TrainedNetwork(network.eval().requires_grad_(False), strict(), (2, *size), 3, 0.2, 0.3))
    integers, images = integers_of(graph), random_images(graph, 16)
    found = by_litert(graph, integers, images, tmp_path / "net.tflite", delegate=False)
    reference = real_scores(integers, images)
    assert float((found - reference).abs().max()) < 0.03 * float(reference.max() - reference.min())


@pytest.fixture(scope="module")
def known() -> dict[str, Tensor]:
    """The scores of the integer network, which take longest: once for both targets."""
    return {}


@pytest.mark.parametrize("target", TARGETS)
def test_all_test_images_are_classified(
    target: str, flagship_run: Run, known: dict[str, Tensor], tmp_path: Path, smidgen: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def scores(quantized: Quantized) -> Tensor:
        if not known:
            known["scores"] = quantized.network.scores(quantized.source.images)
        return known["scores"]

    monkeypatch.setattr(Quantized, "scores", property(scores))
    done = smidgen("export", flagship_run.directory, "--to", target, "--type", "int8", "-o", tmp_path / "out", "--json")
    assert done.status == 0, done
    found = done.json
    assert found["allowed_mismatches"] == 50
    assert found["images"] == 10_000
    assert found["mismatches"] <= 10
    assert len(found["mismatching_images"]) == found["mismatches"]
    assert found["reference"] == "the integer network in Python"
    assert 0 < found["largest_difference"] < 2
    details = found["details"]
    assert found["accuracy"] == pytest.approx(details["accuracy_of_the_integer_network"], abs=0.1)
    assert details["accuracy_of_the_float32_network"] == flagship_run.accuracy
    assert details["other_class_than_the_float32_network"] < 50
    if target == "tflite":
        assert details["mismatches_without_xnnpack"] <= 10
        assert details["accuracy_without_xnnpack"] == pytest.approx(found["accuracy"], abs=0.1)
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["options"]["type"] == "int8"


def damaged(change: Callable[[PerChannel], PerChannel]) -> Callable[..., PerChannel]:
    """The convolutions of a network, those with more than one input and a larger kernel changed."""

    def made(network: IntegerNetwork, step: Any) -> PerChannel:
        honest = per_channel(network, step)
        return change(honest) if min(honest.weight.shape[1:]) > 1 else honest

    return made


FAULTS: dict[str, Callable[[PerChannel], PerChannel]] = {
    "a scale": lambda made: replace(made, scales=made.scales * np.where(np.arange(len(made.scales)) == 1, 3, 1).astype(np.float32)),
    "a transposed weight": lambda made: replace(made, weight=np.ascontiguousarray(made.weight.transpose(0, 1, 3, 2))),
    "a bias": lambda made: replace(made, bias=-made.bias),
}  # fmt: skip


@pytest.mark.parametrize("what", FAULTS)
@pytest.mark.parametrize("target", TARGETS)
def test_a_fault_is_noticed(
    target: str, what: str, small_run: Run, tmp_path: Path, smidgen: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = onnx_int8 if target == "onnx" else tflite_model
    monkeypatch.setattr(module, "per_channel", damaged(FAULTS[what]))
    done = smidgen("export", small_run.directory, "--to", target, "--type", "int8", "-o", tmp_path / "out", "--json")
    assert done.status == 1
    assert done.json["mismatches"] > 3


@pytest.mark.parametrize(
    ("target", "module", "package"),
    [("onnx", "onnx", "onnx"), ("onnx", "onnxruntime", "onnxruntime"), ("tflite", "ai_edge_litert.interpreter", "ai-edge-litert")],
)  # fmt: skip
def test_a_missing_package_is_one_line(
    target: str, module: str, package: str, small_run: Run, tmp_path: Path, smidgen: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, module, None)
    done = smidgen("export", small_run.directory, "--to", target, "--type", "int8", "-o", tmp_path / "out")
    assert done.is_mistake(f"the package {package};", f"pip install 'smidgen[{target}]'")
    assert not (tmp_path / "out").exists()


@needs_litert
def test_what_tflite_cannot_express_is_named_before_anything_is_written(
    small_trial: Trial, tmp_path: Path, smidgen: Command
) -> None:
    blocks = (Conv(4, stride=4, activation="gelu"), AvgPool(), Linear())
    trial = replace(small_trial, name="curved", network=Network(blocks=blocks), epochs=1, averaging=0.0)
    made = run(trial, out=tmp_path / "run", options=RunOptions(threads=1), progress=Silent())
    done = smidgen("export", made.directory, "--to", "tflite", "--type", "int8", "-o", tmp_path / "out")
    assert done.is_mistake("GELU", "cannot be expressed in int8 TFLite", "--to onnx")
    assert not (tmp_path / "out").exists()


@needs_litert
def test_scores_of_several_pixels_are_refused(tmp_path: Path) -> None:
    graph = small_graph(nn.Conv2d(1, 2, 6, stride=6), nn.Flatten(), classes=8)
    with pytest.raises(SmidgenError, match="0 gives scores of more than one pixel"):
        by_litert(graph, integers_of(graph), random_images(graph, 4), tmp_path / "net.tflite", delegate=True)


@needs_litert
def test_constants_of_a_tflite_file_are_aligned() -> None:
    """As the schema demands: processors without unaligned access read biases of 32 and 64 bits in place."""
    from ai_edge_litert import schema_py_generated as schema

    graph = graph_of("flagship")
    network = integers_of(graph)
    content = tflite_model.tflite_model(graph, network, 1000, "a test", {"class_names": '["a"]'})
    model = schema.Model.GetRootAs(content)
    start = np.frombuffer(content, np.uint8).ctypes.data
    buffers = [model.Buffers(number) for number in range(model.BuffersLength())]
    places = [buffer.DataAsNumpy().ctypes.data - start for buffer in buffers if not buffer.DataIsNone()]
    assert len(places) > 20
    assert all(place % ALIGNMENT == 0 for place in places)
