from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

from smidgen.data.augment import _elastic_offsets, augment, sampling_matrices
from smidgen.data.dataset import Dataset
from smidgen.randomness import Purpose, Stream
from smidgen.trial import Augmentation

stream = Stream(seed=1, purpose=Purpose.AUGMENTATION, epoch=1, step=0)
FULL = Augmentation(rotation=20, translation=0.1, scale=0.1, shear=0.2, elastic=1.0)


@pytest.fixture(scope="module")
def images(mnist: Dataset) -> Tensor:
    return mnist.train.images[:64].float() / 255


def test_without_strength_nothing_changes(images: Tensor) -> None:
    assert augment(images, Augmentation(), stream) is images


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_it_is_a_pure_function_of_images_and_stream(images: Tensor, interpolation: str) -> None:
    settings = Augmentation(**{**FULL.to_json(), "interpolation": interpolation})  # type: ignore[arg-type]
    before = images.clone()
    torch.manual_seed(1)
    one = augment(images, settings, stream)
    torch.manual_seed(2)
    again = augment(images, settings, stream)
    other = augment(images, settings, Stream(1, Purpose.AUGMENTATION, 1, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(images, before)
    assert one.shape == images.shape
    assert float(one.min()) >= 0
    assert float(one.max()) <= 1 + 1e-6


def test_each_image_has_parameters_of_its_own(images: Tensor) -> None:
    same = images[:1].expand(32, -1, -1, -1)
    augmented = augment(same, FULL, stream)
    assert len({tuple(image.flatten().tolist()) for image in augmented}) == 32


def matrices(settings: Augmentation, draws: list[float], height: int = 28, width: int = 28) -> npt.NDArray[np.float32]:
    """The sampling matrix for given draws (angle, shifts, scale, shear; -1 to 1)."""
    return sampling_matrices(settings, (np.array([[*draws, 0]]) + 1) / 2, height, width)


def sampled(image: Tensor, matrix: npt.NDArray[np.float32], mode: str = "bilinear") -> Tensor:
    grid = torch.nn.functional.affine_grid(torch.from_numpy(matrix), [1, 1, *image.shape[-2:]], align_corners=False)
    return torch.nn.functional.grid_sample(image[None], grid, mode=mode, padding_mode="zeros", align_corners=False)[0]


def test_rotation_and_scale_agree_with_pillow(images: Tensor) -> None:
    """Pillow turns counter-clockwise; a positive angle here turns the image clockwise on the screen."""
    settings = Augmentation(rotation=90, scale=0.5)
    for image in images[:8]:
        ours = sampled(image, matrices(settings, [20 / 90, 0, 0, 0, 0]))
        pillow = Image.fromarray(image[0].numpy()).rotate(-20, Image.Resampling.BILINEAR)
        assert float((ours[0] - torch.from_numpy(np.array(pillow))).abs().max()) < 1e-4
        larger = sampled(image, matrices(settings, [0, 0, 0, 0.4, 0]))
        matrix = (1 / 1.2, 0, 14 - 14 / 1.2, 0, 1 / 1.2, 14 - 14 / 1.2)
        pillow = Image.fromarray(image[0].numpy()).transform(
            (28, 28), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
        )
        assert float((larger[0] - torch.from_numpy(np.array(pillow))).abs()[2:-2, 2:-2].max()) < 1e-4


def test_translation_moves_whole_pixels_exactly(images: Tensor) -> None:
    settings = Augmentation(translation=0.25)
    moved = sampled(images[0], matrices(settings, [0, 3 / 7, -2 / 7, 0, 0]))
    expected = torch.zeros_like(images[0])
    expected[:, :-2, 3:] = images[0][:, 2:, :-3]
    assert torch.allclose(moved, expected, atol=1e-5)


def test_the_sampling_matrix_inverts_the_forward_map() -> None:
    """Forward, in pixels from the centre: turn(shear(scale(p))) + shift; on an image that is not square."""
    settings = Augmentation(rotation=40, translation=0.3, scale=0.3, shear=0.5)
    draws = [0.7, -0.4, 0.9, 0.5, -0.8]
    height, width = 20, 30
    matrix = matrices(settings, draws, height, width)[0].astype(float)
    angle, scale, shear = np.deg2rad(40 * 0.7), 1 + 0.3 * 0.5, 0.5 * -0.8
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forward = turn @ np.array([[1, shear], [0, 1]]) * scale
    half = np.array([width / 2, height / 2])
    for point in ([0, 0], [3, -5], [-7, 2.5]):
        there = forward @ np.array(point) + np.array([0.3 * width * -0.4, 0.3 * height * 0.9])
        back = (matrix[:, :2] @ (there / half) + matrix[:, 2]) * half
        assert np.allclose(back, point, atol=1e-4)


def test_strengths_are_half_widths_of_uniform_draws() -> None:
    settings = Augmentation(rotation=30)
    draws = Stream(5, Purpose.AUGMENTATION).uniforms(20_000, 6)
    m = sampling_matrices(settings, draws, 28, 28).astype(float)
    angles = np.rad2deg(np.arctan2(m[:, 0, 1], m[:, 0, 0]))
    assert abs(angles).max() <= 30 + 1e-4
    assert abs(angles.mean()) < 0.5
    assert abs(angles.std() - 30 / 3**0.5) < 0.3


def test_elastic_moves_by_its_strength() -> None:
    settings = Augmentation(elastic=1.5, elastic_smoothness=2)
    noise = torch.from_numpy(Stream(2, Purpose.AUGMENTATION).uniforms(200, 2, 40, 40)).float()
    pixels = _elastic_offsets(settings, noise)[:, 8:-8, 8:-8] * 20  # 20: half the side
    assert abs(float(pixels.pow(2).mean().sqrt()) - 1.5) < 0.05
    assert abs(float(pixels.mean())) < 0.05


def test_turning_elastic_on_does_not_change_the_affine_part(images: Tensor) -> None:
    without = augment(images, Augmentation(rotation=20), stream)
    barely = augment(images, Augmentation(rotation=20, elastic=1e-4), stream)
    assert torch.allclose(without, barely, atol=1e-3)


def test_an_image_is_augmented_alike_however_many_follow_it(images: Tensor) -> None:
    """Its numbers are at a place of their own in each augmentation's stream."""
    few, many = augment(images[:5], FULL, stream), augment(images, FULL, stream)
    assert torch.allclose(few, many[:5], atol=1e-6)


def test_what_comes_in_from_outside_is_black() -> None:
    white = torch.ones(16, 1, 28, 28)
    moved = augment(white, Augmentation(translation=0.4), stream)
    assert float(moved[:, :, 13:15, 13:15].min()) > 0.99
    assert float(moved.min()) == 0


def test_flip_mirrors_its_share_of_the_images_and_nothing_else(images: Tensor) -> None:
    colour = torch.cat([images, images.flip(2), images * 0.5], 1)
    mirrored = augment(colour, Augmentation(flip=1.0), stream)
    assert torch.allclose(mirrored, colour.flip(3), atol=1e-4)
    some = augment(colour, Augmentation(flip=0.4), stream)
    as_they_were = (some - colour).abs().amax((1, 2, 3)) < 1e-4
    turned = (some - colour.flip(3)).abs().amax((1, 2, 3)) < 1e-4
    assert bool((as_they_were ^ turned).all())
    draws = Stream(3, Purpose.AUGMENTATION).uniforms(5_000, 6)
    flipped = sampling_matrices(Augmentation(flip=0.3), draws, 8, 8)[:, 0, 0] < 0
    assert abs(flipped.mean() - 0.3) < 0.03


def test_turning_flip_on_leaves_the_other_images_as_they_were(images: Tensor) -> None:
    without = augment(images, Augmentation(rotation=20), stream)
    flipping = augment(images, Augmentation(rotation=20, flip=0.5), stream)
    same = (without == flipping).flatten(1).all(1)
    assert 0.2 < float(same.float().mean()) < 0.8
