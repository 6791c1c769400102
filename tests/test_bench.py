from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Command
from smidgen.anatomy.layers import examine
from smidgen.bench import measure as bench
from smidgen.bench.measure import benchmark
from smidgen.bench.reference import PillowImages
from smidgen.bench.results import Way
from smidgen.data.dataset import Dataset
from smidgen.engines.choose import choose
from smidgen.engines.engine import EngineName
from smidgen.engines.native.core import find_core, has_bfloat16
from smidgen.training.loop import take_step
from smidgen.trial import Augmentation
from smidgen.trials.mnist import augmented, strict


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "STEPS", 2)
    monkeypatch.setattr(bench, "WARM_UP", 1)


def test_the_bench_command_measures_both_ways(smidgen: Command) -> None:
    threads = torch.get_num_threads()
    done = smidgen("bench", "--rounds", "2", "--threads", "1", "--json")
    assert done.status == 0
    result = done.json
    assert set(result) >= {
        "native_images_per_second", "eager_images_per_second", "loader_images_per_second", "ratio_to_eager",
        "ratio_to_loader", "ratio_to_eager_bf16", "peak_share", "ratio_eager_to_loader", "threads", "torch",
    }  # fmt: skip
    flagship = {k.removeprefix("flagship_"): value for k, value in result.items() if k.startswith("flagship_")}
    networks = [result, flagship]
    assert [network["trial"] for network in networks] == ["mnist-3-augmented", "mnist-4-strict"]
    assert result["involuntary_switches_per_second"] >= 0
    for network in networks if find_core() else []:
        assert network["native_images_per_second"] > 0
        assert network["ratio_to_eager"] > 0
        assert 0 < network["peak_share"] < 1.5
        assert 0 < network["peak_share_convolutions"] < 1.5
        assert (network["ratio_to_eager_bf16"] is not None) == has_bfloat16()
        assert network["ratio_to_one_thread"] is None  # one thread is all there was
        assert network["bytes_an_image"] >= network["least_bytes_an_image"] > 0
        assert network["evaluation_ratio_to_eager"] > 0
        assert network["evaluation_ratio_to_onnxruntime"] > 0
    assert result["eager_images_per_second"] > 0
    assert result["loader_images_per_second"] > 0
    assert result["threads"] == 1
    assert torch.get_num_threads() == threads


def test_variants_are_measured_beside_them() -> None:
    seen: list[tuple[str, str, float]] = []
    results = benchmark(1, 1, True, lambda *at: seen.append(at))
    fractions = [fraction for _, _, fraction in seen]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert 0.7 < fractions[-1] < 1
    assert {role for role, _, _ in seen} == {network.role for network in results.networks}
    variants = results.reference.variants
    assert len(variants) == 5
    text = str(results)
    for way in variants:
        assert way.rate > 0
        assert way.name in text


def test_a_ratio_is_the_median_of_ratios_in_turn() -> None:
    fast, slow = Way("a", [10, 100, 30]), Way("b", [5, 10, 10])
    assert fast.ratio_to(slow) == 3
    assert fast.rate == 30


def test_the_seeds_way_gives_images_like_those_of_the_batched_way(mnist: Dataset) -> None:
    images = PillowImages(mnist, augmented().augmentation)
    image, label = images[0]
    assert image.shape == (1, 28, 28)
    assert image.dtype == torch.float32
    assert label == 5
    plain = PillowImages(mnist, Augmentation())
    expected = (mnist.train.images[7].float() / 255 - mnist.mean) / mnist.std
    assert torch.allclose(plain[7][0], expected)
    sums = torch.stack([images[i][0] for i in range(300)]).mean()
    assert abs(float(sums) - float((mnist.train.images[:300].float() / 255 - mnist.mean).mean() / mnist.std)) < 0.05


def test_the_seeds_way_turns_about_the_centre(mnist: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    images = PillowImages(mnist, Augmentation(rotation=20))
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, low, high: self.fill_(high))
    image = Image.fromarray(mnist.train.images[0, 0].numpy())
    ours = np.asarray(images._affine(image), dtype=float)
    pillow = np.asarray(image.rotate(-20, Image.Resampling.NEAREST), dtype=float)
    assert (ours != pillow).mean() < 0.02


@pytest.mark.parametrize("engine", ["eager", "auto"])
def test_the_measured_step_is_the_training_loops(
    engine: EngineName, mnist: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves out nothing that the loop does: it trains."""
    trial, runner = augmented(), choose(engine, threads=1)
    losses: list[float] = []

    def watched(*arguments: Any) -> tuple[float, int]:
        loss, hits = take_step(*arguments)
        losses.append(loss)
        return loss, hits

    monkeypatch.setattr(bench, "take_step", watched)
    step = bench._engine_step(bench._training(trial, mnist, runner), trial, mnist)
    for _ in range(25):
        step()
    assert losses[-1] < 0.8 * losses[0]


def test_the_profile_names_every_layer_that_multiplies(smidgen: Command) -> None:
    if not find_core():
        pytest.skip("the native engine is not installed")
    done = smidgen("bench", "--rounds", "1", "--threads", "2", "--profile")
    assert done.status == 0
    table = done.out[done.out.index("flagship (mnist-4-strict), float32, 2 thread(s)") :]
    rows = [line.split() for line in table.splitlines() if line.startswith(("conv", "linear"))]
    passes = [f"conv{i}+conv{i + 1} {p}" for i in range(2, 12, 2) for p in ("forward", "backward")]
    assert {f"{row[0]} {row[1]}" for row in rows} == {
        "conv1 forward", "conv1 weight", *passes, "linear1 forward", "linear1 input", "linear1 weight",
    }  # fmt: skip
    assert all(any(cell.endswith("%") for cell in row) for row in rows)


@pytest.mark.parametrize("threads", [1, 8])
def test_the_products_of_a_step_are_those_of_the_layer_table(mnist: Dataset, threads: int) -> None:
    """Forward once; backward twice, less the gradient by the images. Eight threads share the blocks of a batch."""
    if not find_core():
        pytest.skip("the native engine is not installed")
    for trial in (strict(), augmented()):
        training = bench._training(trial, mnist, choose("native", threads=threads))
        profile = bench._profile(training, trial, mnist)
        assert profile is not None
        layers = examine(training.engine.plain(training.network), mnist.input_shape).layers
        macs = [layer.macs for layer in layers]
        assert sum(each.multiply_adds for each in profile.passes) == 3 * sum(macs) - macs[0]
        assert profile.least < profile.moved
        assert all(each.moved > 0 for each in profile.passes)
