"""Random augmentation of a whole batch at once, with parameters of its own for each image.

A pure function of the images and a `Stream`: the same stream augments the same way.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from smidgen.randomness import Purpose, Stream
from smidgen.trial import Augmentation

KNOWN_SETTINGS = frozenset(
    {
        "rotation", "translation", "scale", "shear", "elastic", "elastic_smoothness", "interpolation", "flip",
    }
)  # fmt: skip
"""The settings of an `Augmentation` that `augment` follows."""


def changed_settings(settings: Augmentation) -> frozenset[str]:
    """The names of the settings that are not at their defaults, where they leave images as they are."""
    return frozenset(field.name for field in fields(settings) if getattr(settings, field.name) != field.default)


def augment(images: Tensor, settings: Augmentation, stream: Stream) -> Tensor:
    """Augment a batch of images.

    Affine: the image is mirrored, scaled, sheared, rotated and moved about its centre, in that order. Elastic
    (Simard, Steinkraus and Platt 2003): each pixel is moved by uniform noise smoothed with a
    Gaussian. Both are done in one resampling; what comes in from outside is 0.

    Args:
        images: float32 [count, channels, height, width], 0 to 1, black being 0.
        settings: strengths; with all of them 0 the images come back as they are.
        stream: for the purpose `AUGMENTATION`. Each augmentation draws from a stream of its own: the affine
            parameters from this one, elastic noise from the one for the purpose `ELASTIC` of the same step.

    Returns:
        float32, of the same shape and range.
    """
    if not settings.is_on:
        return images
    count, _, height, width = images.shape
    matrices = sampling_matrices(settings, stream.uniforms(count, 6), height, width)
    noise = None
    if settings.elastic:
        drawn = replace(stream, purpose=Purpose.ELASTIC).uniforms(count, 2, height, width)
        noise = torch.from_numpy(drawn.astype(np.float32)).to(images.device)
    return resample(images, settings, torch.from_numpy(matrices).to(images.device), noise)


def resample(images: Tensor, settings: Augmentation, matrices: Tensor, noise: Tensor | None = None) -> Tensor:
    """The part of `augment` that is done on the images' device.

    Args:
        images: float32 [count, channels, height, width].
        settings: strengths.
        matrices: float32 [count, 2, 3], as `sampling_matrices` gives them, on the images' device.
        noise: float32 [count, 2, height, width], 0 to 1, where there is elastic augmentation.

    Returns:
        float32, of the images' shape.
    """
    count, _, height, width = images.shape
    grid = F.affine_grid(matrices, [count, 1, height, width], align_corners=False)
    if noise is not None:
        grid = grid + _elastic_offsets(settings, noise)
    return F.grid_sample(images, grid, mode=settings.interpolation, padding_mode="zeros", align_corners=False)


def to_float(images: Tensor) -> Tensor:
    """uint8 images as float32, 0 to 1."""
    return images.float().div_(255)


def normalize(images: Tensor, mean: float, std: float) -> Tensor:
    """Images of 0 to 1 brought to the training set's mean 0 and standard deviation 1."""
    return images.sub(mean).div_(std)


def sampling_matrices(
    settings: Augmentation, draws: npt.NDArray[np.float64], height: int, width: int
) -> npt.NDArray[np.float32]:
    """For each image the 2×3 matrix from output to input coordinates, both -1 to 1 over the image.

    `draws` is [count, 6], uniform in [0, 1): angle, shift in x and y, scale, shear, flip. The
    forward map of pixel offsets from the centre is p -> R S_h (s F p) + t, with F the mirroring; sampling inverts it.
    """
    spread = 2 * draws - 1
    angle = np.deg2rad(settings.rotation) * spread[:, 0]
    shift_x = settings.translation * width * spread[:, 1]
    shift_y = settings.translation * height * spread[:, 2]
    scale = 1 + settings.scale * spread[:, 3]
    shear = settings.shear * spread[:, 4]
    cos, sin = np.cos(angle), np.sin(angle)
    # Inverse of R(angle) @ [[1, shear], [0, 1]] @ scale: [[1, -shear], [0, 1]] @ R(-angle) / scale.
    a, b = (cos + shear * sin) / scale, (sin - shear * cos) / scale
    c, d = -sin / scale, cos / scale
    matrices = np.empty((len(draws), 2, 3), dtype=np.float32)
    matrices[:, 0, 0], matrices[:, 0, 1] = a, b * height / width
    matrices[:, 1, 0], matrices[:, 1, 1] = c * width / height, d
    matrices[:, 0, 2] = -(a * shift_x + b * shift_y) * 2 / width
    matrices[:, 1, 2] = -(c * shift_x + d * shift_y) * 2 / height
    if settings.flip:
        matrices[draws[:, 5] < settings.flip, 0] *= -1
    return matrices


def _elastic_offsets(settings: Augmentation, noise: Tensor) -> Tensor:
    """Offsets for the sampling grid [count, height, width, 2], from noise [count, 2, height, width]."""
    _, _, height, width = noise.shape
    radius = min(math.ceil(3 * settings.elastic_smoothness), 4 * max(height, width))
    kernel, strength = _elastic_kernel(settings, radius)
    kernel = kernel.to(noise.device)
    field = (2 * noise - 1).flatten(0, 1).unsqueeze(1)
    field = F.conv2d(
        F.conv2d(field, kernel.view(1, 1, 1, -1), padding=(0, radius)),
        kernel.view(1, 1, -1, 1),
        padding=(radius, 0),
    )
    field = (field * strength).view(noise.shape)
    return torch.stack((field[:, 0] * (2 / width), field[:, 1] * (2 / height)), dim=-1)


def _elastic_kernel(settings: Augmentation, radius: int) -> tuple[Tensor, float]:
    """A Gaussian that sums to 1, float32 [2 * radius + 1], and what the smoothed noise is multiplied by."""
    positions = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (positions / settings.elastic_smoothness) ** 2)
    kernel = kernel / kernel.sum()
    # Uniform noise in [-1, 1) has variance 1/3; smoothing in both directions leaves (sum k²)² of it.
    return kernel, settings.elastic * math.sqrt(3) / float((kernel**2).sum())
