from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Command
from smidgen import bench
from smidgen.bench import Way, benchmark
from smidgen.data.dataset import Dataset
from smidgen.engines.prepare import place
from smidgen.trial import Augmentation
from smidgen.trials.mnist import augmented


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
    assert result["native_images_per_second"] is None
    assert result["eager_images_per_second"] > 0
    assert result["loader_images_per_second"] > 0
    assert result["threads"] == 1
    assert torch.get_num_threads() == threads


def test_variants_are_measured_beside_them() -> None:
    results = benchmark(threads=1, rounds=1, variants=True)
    assert len(results.variants) == len(bench._VARIANTS)
    text = str(results)
    for way in results.variants:
        assert way.rate > 0
        assert way.name in text


def test_a_ratio_is_the_median_of_ratios_in_turn() -> None:
    fast, slow = Way("a", [10, 100, 30]), Way("b", [5, 10, 10])
    assert fast.ratio_to(slow) == 3
    assert fast.rate == 30


def test_the_seeds_way_gives_images_like_those_of_the_batched_way(mnist: Dataset) -> None:
    images = bench._PillowImages(mnist, augmented().augmentation)
    image, label = images[0]
    assert image.shape == (1, 28, 28)
    assert image.dtype == torch.float32
    assert label == 5
    plain = bench._PillowImages(mnist, Augmentation())
    expected = (mnist.train.images[7].float() / 255 - mnist.mean) / mnist.std
    assert torch.allclose(plain[7][0], expected)
    sums = torch.stack([images[i][0] for i in range(300)]).mean()
    assert abs(float(sums) - float((mnist.train.images[:300].float() / 255 - mnist.mean).mean() / mnist.std)) < 0.05


def test_the_seeds_way_turns_about_the_centre(mnist: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    images = bench._PillowImages(mnist, Augmentation(rotation=20))
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, low, high: self.fill_(high))
    image = Image.fromarray(mnist.train.images[0, 0].numpy())
    ours = np.asarray(images._affine(image), dtype=float)
    pillow = np.asarray(image.rotate(-20, Image.Resampling.NEAREST), dtype=float)
    assert (ours != pillow).mean() < 0.02


def test_the_eager_step_is_the_training_loops(mnist: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bench's own step leaves out nothing that the loop does: it trains."""
    trial = augmented()
    step = bench._eager_step(trial, mnist, place(threads=1))
    losses: list[float] = []
    original = torch.nn.functional.cross_entropy

    def watched(*arguments: Any) -> Any:
        loss = original(*arguments)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", watched)
    for _ in range(25):
        step()
    assert losses[-1] < 0.8 * losses[0]
