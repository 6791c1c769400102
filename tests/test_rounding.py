"""Quantization-aware training: rounding itself, the last epochs of a training, and the export that gets the same."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import cast

import onnx
import pytest
import torch

from conftest import Command
from smidgen.data.dataset import Dataset
from smidgen.engines.choose import choose
from smidgen.engines.engine import EngineName
from smidgen.errors import SmidgenError, TrialError
from smidgen.exports.c.compiler import find_compiler
from smidgen.exports.export import export
from smidgen.exports.target import fused_graph
from smidgen.lowering.integer import Sums
from smidgen.lowering.quantize import quantize
from smidgen.quantization import rounded, weight_steps
from smidgen.runs.options import RunOptions
from smidgen.runs.progress import Silent
from smidgen.runs.run import load_trial_data, run
from smidgen.runs.weights import weights_sha256
from smidgen.training import loop
from smidgen.training.rounding import Rounding
from smidgen.trial import Network, Quantization, Trial
from test_recalibration import whole_and_continued


@pytest.fixture(scope="module")
def few_bits(small_trial: Trial) -> Trial:
    return replace(small_trial, name="few", quantization=Quantization(weights=4, epochs=1), recalibration=0.2)


@pytest.fixture(scope="module")
def small_data(small_trial: Trial) -> Dataset:
    return load_trial_data(small_trial)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("together", [False, True])
def test_weights_become_few_multiples_of_a_step_and_stay_so(bits: int, together: bool) -> None:
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor(
        [1.0, 0.01, 30.0, 0.0, 2.0]
    ).reshape(5, 1, 1, 1)
    found = rounded(weight, bits, together=together)
    steps = weight_steps(weight, bits, together=together)
    assert len(steps.unique()) == (1 if together else 5)
    whole = found / torch.where(steps > 0, steps, 1.0).reshape(5, 1, 1, 1)
    torch.testing.assert_close(whole, whole.round(), rtol=0, atol=1e-4)
    assert whole.abs().round().max() <= 2 ** (bits - 1) - 1
    torch.testing.assert_close(rounded(found, bits, together=together), found, rtol=1e-6, atol=0)
    if not together:
        # What multiplies a channel, as a folded BatchNorm does, changes nothing.
        factors = torch.tensor([3.0, -0.2, 1.0, 5.0, 100.0]).reshape(5, 1, 1, 1)
        torch.testing.assert_close(rounded(weight * factors, bits), found * factors, rtol=1e-5, atol=0)


def test_the_step_is_that_of_the_least_squared_error() -> None:
    weight = torch.randn(4, 200, generator=torch.Generator().manual_seed(2))
    steps = weight_steps(weight, 4)
    assert (steps < weight.abs().amax(1) / 7).all()  # the rarest are cut
    error = (rounded(weight, 4) - weight).square().sum(1)
    for factor in (0.9, 1.1, 1.3):
        other = (steps * factor)[:, None]
        assert (((weight / other).round().clamp(-7, 7) * other - weight).square().sum(1) > error).all()


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_the_last_epochs_alone_see_rounded_weights(engine: EngineName, few_bits: Trial, small_data: Dataset) -> None:
    def trained(trial: Trial) -> tuple[loop.Training, list[str]]:
        made = loop.start(trial, loop.new_network(trial, small_data, 5), choose(engine, threads=1))
        digests = [weights_sha256(made.network) for _ in loop.train(made, trial, small_data, 5, Silent())]
        return made, digests

    rounding, after = trained(few_bits)
    _, plain = trained(replace(few_bits, quantization=None))
    assert after[0] == plain[0]
    assert after[1] != plain[1]
    # The last evaluation was of what is kept, to the last bit.
    kept = rounding.engine.batch(small_data.held_out.images, small_data.mean, small_data.std)
    assert rounding.evaluation
    with torch.inference_mode():
        assert torch.equal(rounding.judged(kept), rounding.evaluation.logits)
    # What is evaluated and kept has few values; what goes on learning has many.
    for name, module in rounding.engine.plain(rounding.judged).named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            most = max(len(channel.unique()) for channel in module.weight)
            learning = cast("torch.Tensor", rounding.engine.plain(rounding.network).get_submodule(name).weight)
            assert most <= 15
            assert max(len(channel.unique()) for channel in learning) == learning[0].numel()


def test_each_gradient_is_that_of_the_rounded_weights(few_bits: Trial, small_data: Dataset) -> None:
    """A step is what PyTorch does with weights + (rounded - weights).detach()."""
    trial = replace(few_bits, epochs=1, averaging=0.0, recalibration=0.0)
    ours = loop.start(trial, loop.new_network(trial, small_data, 1), choose("eager", threads=1))
    network = ours.engine.plain(ours.network)
    rounding = Rounding(trial, network, small_data.input_shape)
    images = (small_data.train.images[:50].float() / 255 - small_data.mean) / small_data.std
    labels = small_data.train.labels[:50]
    straight = copy.deepcopy(network).train()
    weights = {
        name: module.weight
        for name, module in straight.named_modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
    }
    last = list(weights)[-1]
    seen = {
        f"{name}.weight": weight + (rounded(weight, 4, together=name == last) - weight).detach()
        for name, weight in weights.items()
    }
    scores = torch.func.functional_call(straight, seen, (images,))
    torch.nn.functional.cross_entropy(scores, labels).backward()
    network.train()
    before = weights_sha256(network)
    with rounding.applied(network):
        assert weights_sha256(network) != before
        torch.nn.functional.cross_entropy(network(images), labels).backward()
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            torch.testing.assert_close(module.weight.grad, straight.get_submodule(name).weight.grad)
            assert torch.equal(module.weight, cast("torch.Tensor", straight.get_submodule(name).weight))


@pytest.mark.parametrize("steps", [4, 15])
def test_going_on_from_a_checkpoint(steps: int, few_bits: Trial, small_data: Dataset, tmp_path: Path) -> None:
    whole, second, _ = whole_and_continued(few_bits, small_data, steps, tmp_path)
    assert weights_sha256(second.judged) == weights_sha256(whole.judged)
    assert second.history[-1].test_correct == whole.history[-1].test_correct


@pytest.mark.skipif(find_compiler() is None, reason="needs a C compiler")
def test_an_export_has_those_weights(few_bits: Trial, small_data: Dataset, tmp_path: Path, smidgen: Command) -> None:
    made = run(few_bits, seed=2, out=tmp_path / "run", options=RunOptions(threads=1))
    network = quantize(fused_graph(made.trained), small_data.train.images, 4)
    for step in network.steps:
        if isinstance(step, Sums):
            whole = step.weight.reshape(len(step.weight), -1)
            real = step.node.weight.reshape(len(step.weight), -1)
            for integers, weights in zip(whole, real, strict=True):
                factor = weights[abs(integers).argmax()] / integers[abs(integers).argmax()]
                assert abs(integers * factor - weights).max() < 1e-5 * abs(weights).max()
    export(made, "onnx", tmp_path / "onnx", type="int8", check=False)
    constants = onnx.load(tmp_path / "onnx" / "few.onnx").graph.initializer
    stored = [onnx.numpy_helper.to_array(found) for found in constants if found.name.endswith("weight.integers")]
    assert {abs(found).max() for found in stored} == {7}
    done = smidgen("export", tmp_path / "run", "--to", "c", "--type", "int8", "-o", tmp_path / "out", "--json")
    assert done.status == 0
    assert "weights of 4 bits" in (tmp_path / "out" / "few.h").read_text()
    assert done.json["details"]["other_class_than_the_float32_network"] <= 4
    assert abs(done.json["accuracy"] - made.accuracy) <= 2


def test_what_cannot_be_rounded_as_an_export_does_is_refused(
    few_bits: Trial, small_data: Dataset, tmp_path: Path
) -> None:
    network = cast("Network", few_bits.network)
    trial = replace(few_bits, network=replace(network, order="activation-norm"))
    with pytest.raises(TrialError, match=r"folds the norm before .* into its weights"):
        Rounding(trial, loop.new_network(trial, small_data, 1), small_data.input_shape)
    with pytest.raises(TrialError, match=r"folds the norm before .* into its weights"):
        run(trial, out=tmp_path / "refused", progress=Silent())
    assert not (tmp_path / "refused").exists()
    odd = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 28), torch.nn.Flatten(), torch.nn.Softplus())
    with pytest.raises(TrialError, match="needs a network that can be exported"):
        Rounding(few_bits, odd, small_data.input_shape)
    with pytest.raises(SmidgenError, match=r"Quantization.weights"):
        Quantization(weights=9)
