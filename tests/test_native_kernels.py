"""Each native kernel against PyTorch in float64, on generated shapes, at every instruction level."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from native import LEVELS, compare, generated

if not LEVELS:
    pytest.skip("the native engine is not installed", allow_module_level=True)

EXACT = 3e-5
"""Float32 against float64, relative to the largest value."""
BFLOAT16 = 3e-2

pytestmark = pytest.mark.usefixtures("level")


counts = st.sampled_from([1, 2, 7, 15, 16, 17, 33])
sides = st.integers(1, 11)


def images(count: int, channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((count, channels, height, width), generator=generator)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv2d, torch.Tensor]:
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    per_group = st.integers(1, 9)
    inputs, outputs = groups * draw(per_group), groups * draw(st.integers(1, 18))
    kernel = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    stride, dilation = (draw(st.integers(1, 3)), draw(st.integers(1, 3))), draw(st.sampled_from([1, 1, 2]))
    padding = draw(st.sampled_from([(0, 0), (1, 1), (2, 0), (kernel[0] // 2, kernel[1] // 2)]))
    height = draw(sides) + dilation * (kernel[0] - 1)
    width = draw(sides) + dilation * (kernel[1] - 1)
    torch.manual_seed(draw(st.integers(0, 1000)))
    conv = nn.Conv2d(
        inputs, outputs, kernel, stride, padding, dilation, groups, bias=draw(st.booleans())
    )  # fmt: skip
    return conv, images(draw(counts), inputs, height, width)


@generated
@given(case=convolutions())
def test_convolution(case: tuple[nn.Conv2d, torch.Tensor]) -> None:
    conv, x = case
    compare(nn.Sequential(conv), x, EXACT)


@generated
@given(case=convolutions())
def test_convolution_with_bfloat16_products(case: tuple[nn.Conv2d, torch.Tensor], level: str) -> None:
    if level != "avx512bf16":
        pytest.skip("no bfloat16 products at this level")
    conv, x = case
    # Inputs and weights that bfloat16 holds exactly, so that only the gradient's products round.
    x = x.bfloat16().float()
    conv.weight.data = conv.weight.data.bfloat16().float()
    compare(nn.Sequential(conv), x, BFLOAT16, bfloat16=True)


@pytest.mark.parametrize("channels", [1, 3, 10, 16, 17, 31])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_depthwise_and_same_padding(channels: int, kernel: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, channels, kernel, padding="same", groups=channels)
    compare(nn.Sequential(conv), images(20, channels, 9, 8), EXACT)


@generated
@given(count=counts, inputs=st.integers(1, 5), outputs=st.integers(1, 20), height=sides, width=sides)
def test_linear_on_a_flattened_image(count: int, inputs: int, outputs: int, height: int, width: int) -> None:
    torch.manual_seed(outputs)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(inputs * height * width, outputs))
    compare(layers, images(count, inputs, height, width), EXACT)


@generated
@given(
    count=counts,
    channels=st.integers(1, 20),
    height=sides,
    width=sides,
    training=st.booleans(),
    affine=st.booleans(),
    after=st.sampled_from(["", "relu", "pool", "relu-pool"]),
    before=st.booleans(),
)
def test_batch_norm_and_what_is_fused_with_it(
    count: int, channels: int, height: int, width: int, training: bool, affine: bool, after: str, before: bool
) -> None:
    if count * height * width < 4:
        count = 4
    torch.manual_seed(channels)
    norm = nn.BatchNorm2d(channels, affine=affine)
    if affine:
        nn.init.uniform_(norm.weight, -2, 2)  # negative scales turn pooling around
        nn.init.uniform_(norm.bias, -1, 1)
    nn.init.uniform_(norm.running_mean, -1, 1)  # type: ignore[arg-type]
    nn.init.uniform_(norm.running_var, 0.5, 2)  # type: ignore[arg-type]
    layers: list[nn.Module] = [nn.Conv2d(2, channels, 1, bias=False)] + ([nn.ReLU()] if before else []) + [norm]
    layers += [nn.ReLU()] if "relu" in after else []
    layers += [nn.MaxPool2d(2)] if "pool" in after and height > 1 and width > 1 else []
    compare(nn.Sequential(*layers).train(training), images(count, 2, height, width), 1e-3)


def test_batch_norm_of_values_far_from_zero() -> None:
    """A mean of a thousand standard deviations: sums of squares would lose everything."""
    norm = nn.Sequential(nn.BatchNorm2d(3))
    compare(norm, images(40, 3, 9, 9) + 1000, 2e-3)


def test_batch_norm_after_flattening() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(1, 5, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 7, bias=False),
        nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3),
    )  # fmt: skip
    compare(layers, images(33, 1, 6, 6), 1e-3)


ACTIVATIONS = [
    nn.ReLU(), nn.LeakyReLU(0.1), nn.ReLU6(), nn.Hardtanh(-0.5, 0.7), nn.Hardswish(), nn.GELU(approximate="tanh"),
    nn.SiLU(), nn.Sigmoid(), nn.Tanh(), nn.Identity(),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_activation(activation: nn.Module) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 3, 1, bias=True), activation)
    compare(layers, 4 * images(17, 1, 5, 7), EXACT)
    compare(nn.Sequential(activation, nn.Conv2d(1, 3, 1)), 30 * images(17, 1, 5, 7), EXACT)


@generated
@given(
    count=counts,
    height=st.integers(3, 11),
    width=st.integers(3, 11),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pad=st.booleans(),
    counts_padding=st.booleans(),
    kind=st.sampled_from(["max", "average"]),
)
def test_pooling(
    count: int,
    height: int,
    width: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    pad: bool,
    counts_padding: bool,
    kind: str,
) -> None:
    padding = (kernel[0] // 2, kernel[1] // 2) if pad else (0, 0)
    pool: nn.Module = nn.MaxPool2d(kernel, stride, padding)
    if kind == "average":
        pool = nn.AvgPool2d(kernel, stride, padding, count_include_pad=counts_padding)
    compare(nn.Sequential(pool), images(count, 3, height, width), EXACT)


def test_equal_values_in_a_pooling_window_give_the_gradient_to_the_first() -> None:
    few = images(16, 2, 8, 8).round().clamp(-1, 1)
    for layers in ([nn.MaxPool2d(2)], [nn.MaxPool2d(3, 1)], [nn.MaxPool2d(2), nn.ReLU()]):
        compare(nn.Sequential(*layers), few, EXACT)


def test_global_average_pooling_in_its_three_spellings() -> None:
    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))

    for pool in (nn.AdaptiveAvgPool2d(1), nn.AvgPool2d((5, 6)), Mean()):
        compare(nn.Sequential(pool), images(18, 4, 5, 6), EXACT)
