"""Generated C against the graph (float32) and against the integer network (int8, to the last bit), under sanitizers."""

from __future__ import annotations

import itertools
import math
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import test_export_graph
from conftest import idx_bytes
from smidgen.errors import SmidgenError
from smidgen.exports.c import compiler
from smidgen.exports.c.compiler import STRICT, classify, compiled, find_compiler
from smidgen.exports.c.names import prefix
from smidgen.exports.target import fused_graph
from smidgen.graph.ops import Pool
from smidgen.lowering.c.float32 import float32_code
from smidgen.lowering.c.int8 import int8_code
from smidgen.lowering.c.source import About, Code, c_float, files
from smidgen.lowering.fused import Convolution, FusedGraph
from smidgen.lowering.integer import Averages, IntegerNetwork, Joined, Rescale, Scaled, Sums, Together
from smidgen.lowering.memory import plan
from smidgen.lowering.placing import Buffer, place
from smidgen.lowering.quantize import quantize
from smidgen.runs.weights import TrainedNetwork
from smidgen.trials.mnist import strict
from smidgen.version import VERSION

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="needs a C compiler")
SANITIZED = [
    *(flag for flag in STRICT if flag != "-O2"), "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
]  # fmt: skip
SANITIZED_WAYS: tuple[list[str], ...] = ([], ["-DSMIDGEN_OUTPUTS=2"])
RANDOM, MORE = range(6), range(6, 30)
ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.Hardswish, lambda: nn.GELU(approximate="tanh"), nn.SiLU, nn.Sigmoid, nn.Tanh,
]  # fmt: skip


class Joint(nn.Module):
    """Two branches of the same shape, added or side by side."""

    def __init__(self, first: nn.Module, second: nn.Module, *, add: bool) -> None:
        super().__init__()
        self.first, self.second, self.add = first, second, add

    def forward(self, x: Tensor) -> Tensor:
        a: Tensor = self.first(x)
        b: Tensor = self.second(x)
        return a + b if self.add else torch.cat([a, b, x], 1)


def random_network(seed: int) -> TrainedNetwork:
    """A small network of any of the layers, in any order."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    shape = (draw.choice([1, 1, 2, 3]), draw.randint(9, 14), draw.randint(9, 14))
    layers: list[nn.Module] = []
    x = torch.zeros(1, *shape)

    def put(layer: nn.Module) -> None:
        nonlocal x
        x = layer.eval()(x)
        layers.append(layer)

    def conv(channels: int, outputs: int, groups: int) -> nn.Conv2d:
        kernel, dilation = draw.choice([((3, 3), 1), ((3, 3), 2), ((2, 2), 1), ((1, 1), 1), ((2, 3), 2)])
        padding = draw.choice([(0, 0), (1, 1), (2, 2), (1, 0)])
        stride = draw.choice([(1, 1), (1, 1), (2, 2), (2, 1)])
        return nn.Conv2d(channels, outputs, kernel, stride, padding, (1, dilation), groups)

    for _ in range(draw.randint(3, 6)):
        channels, (height, width) = x.shape[1], x.shape[2:]
        kind = draw.choice(["conv", "conv", "norm", "activation", "max", "average", "add", "concat"])
        if kind == "conv" and min(height, width) >= 6:
            groups = draw.choice([g for g in (1, 2, 3, channels) if channels % g == 0])
            put(conv(channels, groups * draw.randint(1, 5), groups))
            for layer in draw.choice([[], ["norm"], ["relu"], ["norm", "relu"], ["relu", "norm"]]):
                put(nn.BatchNorm2d(x.shape[1]) if layer == "norm" else nn.ReLU())
        elif kind == "norm":
            put(nn.BatchNorm2d(channels))
        elif kind == "activation":
            put(draw.choice(ACTIVATIONS)())
        elif kind == "max" and min(height, width) >= 4:
            put(nn.MaxPool2d(draw.choice([2, 3]), draw.choice([1, 2]), draw.choice([0, 1])))
        elif kind == "average" and min(height, width) >= 4:
            put(nn.AvgPool2d(draw.choice([2, 3]), draw.choice([1, 2]), draw.choice([0, 1])))
        elif kind in ("add", "concat"):
            branches = [
                nn.Conv2d(channels, channels, 3, 1, 1),
                nn.Sequential(nn.Conv2d(channels, channels, 1), nn.Tanh()),
            ]
            put(Joint(branches[0], branches[1], add=kind == "add"))
    classes = draw.randint(2, 6)
    end = draw.choice(["linear", "pool and linear", "convolution and pool", "linear and norm"])
    if end == "convolution and pool":
        put(nn.Conv2d(x.shape[1], classes, 1))
        put(nn.AvgPool2d((x.shape[2], x.shape[3])))
        put(nn.Flatten())
    else:
        if end == "pool and linear":
            put(nn.AdaptiveAvgPool2d(1))
        put(nn.Flatten())
        put(nn.Linear(x.shape[1], classes))
        if end == "linear and norm":
            put(nn.BatchNorm1d(classes))
            put(nn.Sigmoid())
    example = test_export_graph.trained(nn.Sequential(*layers), classes)
    return replace(example, input_shape=shape)


CASES: list[Any] = [
    *test_export_graph.NETWORKS,
    *(f"random {seed}" for seed in RANDOM),
    *(pytest.param(f"random {seed}", marks=pytest.mark.slow) for seed in MORE),
]


FAST = {*test_export_graph.NETWORKS, *(f"random {seed}" for seed in RANDOM)}


def graph_of(name: str) -> FusedGraph:
    kind, _, seed = name.partition(" ")
    if kind == "random":
        return fused_graph(random_network(int(seed)))
    return fused_graph(test_export_graph.trained(test_export_graph.NETWORKS[name]()))


def random_images(graph: FusedGraph, count: int) -> Tensor:
    """Noise, half of it dark, so that values are as spread as with pictures."""
    generator = torch.Generator().manual_seed(7)
    images = torch.randint(0, 256, (count, *graph.input_shape), dtype=torch.uint8, generator=generator)
    images[count // 2 :] //= 4
    return images


def write(code: Code, graph: FusedGraph, folder: Path, name: str = "net") -> Path:
    about = About(name, "a test", "random weights", graph.input_shape, graph.classes, graph.macs)
    folder.mkdir(exist_ok=True)
    for file, content in files(code, about).items():
        (folder / file).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_float32_is_the_graph(name: str, tmp_path: Path) -> None:
    graph = graph_of(name)
    images = random_images(graph, 24)
    with compiled(write(float32_code(graph), graph, tmp_path), "net", SANITIZED) as program:
        found = classify(program, images)
    expected = graph.scores(images, torch.float64)
    size = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found.scores, expected, rtol=1e-5, atol=2e-5 * size)
    assert torch.equal(found.labels, found.scores.argmax(1))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", CASES)
def test_integers_are_the_integer_network_to_the_last_bit(name: str, bits: int, tmp_path: Path) -> None:
    """With as much memory as it takes and with as little as possible, for whole images and row by row."""
    graph = graph_of(name)
    network = quantize(graph, random_images(graph, 100), bits)
    images = random_images(graph, 32)
    expected = network.scores(images)
    ways = list(itertools.product((False, True), SANITIZED_WAYS, (False, True)))
    if name in FAST:  # each with one of two: the slow tests have all together
        ways = [(lean, SANITIZED_WAYS[lean ^ (bits == 4)], lean ^ (bits == 4)) for lean in (False, True)]
    for number, (lean, flags, rows) in enumerate(ways):
        memory = plan(graph, lean=lean)
        folder = write(int8_code(graph, network, memory), graph, tmp_path / str(number))
        sizes = dict(re.findall(r"_(SCRATCH_BYTES|WEIGHT_BYTES) (\d+)", (folder / "net.h").read_text()))
        assert int(sizes["SCRATCH_BYTES"]) == memory.bytes
        if rows:
            (folder / "main.c").write_text(by_rows(folder / "main.c"))
        with compiled(folder, "net", [*SANITIZED, *flags, f"-DSCRATCH={memory.bytes}"]) as program:
            found = classify(program, images)
        assert torch.equal(found.scores, expected.double())
        assert torch.equal(found.labels, expected.argmax(1))
    # And it comes near to the real thing.
    real = graph.scores(images)
    spread = float(real.max() - real.min())
    zero = network.grids[network.output].zero
    near = 0.08 if bits == 8 else 0.4
    assert float(((expected - zero) * network.score_unit - real).abs().mean()) < near * spread


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", CASES)
def test_no_sum_and_no_product_needs_more_than_32_bits(name: str, bits: int) -> None:
    """Whatever the image: by the worst that the weights allow."""
    network = quantize(graph := graph_of(name), random_images(graph, 60), bits)
    for step in network.steps:
        tops = [network.grids[value].top for value in step.node.inputs]
        match step:
            case Sums():
                flat = step.weight.reshape(len(step.weight), -1)
                high, low = tops[0] * flat.clip(min=0).sum(1), tops[0] * flat.clip(max=0).sum(1)
                added = tops[0] * (abs(flat) if bits == 8 else flat + 8).sum(1)  # as the code adds them up
                assert (added + abs(step.bias)).max() < 2**31
                assert abs(step.bias >> step.bias_shift).max() < 2**15
                if step.rescale is None:
                    continue
                high, low = high + step.bias, low + step.bias
                least = 0 if step.cut else None
                in_32_bits(step.rescale, high.clip(min=least), low.clip(min=least))
                if step.cut and step.node.scale is None:
                    assert step.rescale.multipliers.max() < 2**12
                    assert step.rescale.shifts.max() - step.rescale.shifts.min() < 2**4
            case Averages() if step.rescale:
                in_32_bits(step.rescale, np.array([tops[0] * step.node.kernel[0] * step.node.kernel[1]]), np.zeros(1))
            case Scaled():
                in_32_bits(step.rescale, np.full(1, tops[0]), np.zeros(1))
            case Joined():
                for rescale, top in zip(step.rescales, tops, strict=True):
                    in_32_bits(rescale, np.full(1, top), np.zeros(1))
            case Together():
                first, second = step.rescales
                worst = sum(abs(r.multipliers).max() * top for r, top in zip(step.rescales, tops, strict=True))
                assert worst + abs(first.offsets).max() < 2**31
                assert first.shifts == second.shifts


def in_32_bits(rescale: Rescale, high: Any, low: Any) -> None:
    assert rescale.shifts.min() >= 0
    assert rescale.shifts.max() < 32
    for sums in (high, low):
        assert abs((sums.astype(np.int64) >> rescale.before) * rescale.multipliers + rescale.offsets).max() < 2**31


def by_rows(main: Path) -> str:
    """The example program with the image given row by row; also says when rows are missing, or too many."""
    return (
        main.read_text()
        .replace("static net_scratch scratch;", "static net_stream stream;\nstatic char right_size[sizeof(net_scratch) == SCRATCH ? 1 : -1];")
        .replace(
            "scores = net_scores(image, &scratch);",
            """net_begin(&stream);
        (void)right_size;
        for (c = 0; c < NET_HEIGHT; c++) {
            if (net_end(&stream)) return fail("rows", "were not missed");
            net_row(&stream, image + c * NET_WIDTH * NET_CHANNELS);
        }
        net_row(&stream, image);
        scores = net_end(&stream);""",
        )
    )  # fmt: skip


def test_sums_are_those_of_whole_numbers() -> None:
    """The integer network's convolutions, worked out in floating point, against a loop over integers."""
    graph = fused_graph(test_export_graph.trained(test_export_graph.Branches()))
    network = quantize(graph, random_images(graph, 32))
    step = next(s for s in network.steps if isinstance(s, Sums) and s.node.groups == 3)
    x = torch.randint(0, 256, (1, 6, 7, 5))
    from smidgen.lowering.integer import whole_sums

    found = whole_sums(step, x).numpy()
    (pad, _), (gap, _) = step.node.padding, step.node.dilation
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=step.padding)
    for o, row, column in np.ndindex(found.shape[1:]):
        group = o // 2 * 2
        window = padded[0, group : group + 2, row : row + 2 * gap + 1 : gap, column : column + 2 * gap + 1 : gap]
        assert found[0, o, row, column] == int((window * step.weight[o]).sum())


SABOTAGE: dict[str, Callable[[str], str]] = {
    "a weight": lambda text: re.sub(r"(layer1_weights\[\d+\] = \{[^\n]*\n\s+)(-?\d+)", lambda m: f"{m[1]}{90 if int(m[2]) < 0 else -90}", text),
    "rounding": lambda text: text.replace("value >>= shift;", "value = (value >> shift) + 1;"),
    "padding": lambda text: text.replace("const int32_t inside = y >= 0 && y <", "const int32_t inside = y >= 1 && y <"),
    "a ReLU": lambda text: text.replace("layer->relu)) value = 0;", "layer->relu)) value = -value;"),
    "a row too few": lambda text: re.sub(r"% 3 \*", "% 2 *", text),
    "the last pixels": lambda text: text.replace("width > 4 ? width - 4 : x;", "width > 4 ? width - 3 : x;"),
}  # fmt: skip


@pytest.mark.parametrize("what", SABOTAGE)
def test_a_fault_in_the_files_is_noticed(what: str, tmp_path: Path) -> None:
    graph = graph_of("padded, activation first")
    network = quantize(graph, random_images(graph, 64))
    folder = write(int8_code(graph, network), graph, tmp_path)
    source = folder / "net.c"
    changed = SABOTAGE[what](source.read_text())
    assert changed != source.read_text()
    source.write_text(changed)
    images = random_images(graph, 24)
    with compiled(folder, "net", [*STRICT, "-Wno-conversion"]) as program:
        assert not torch.equal(classify(program, images).scores, network.scores(images).double())


DIALECTS = [
    *((compiler, f"-std={std}") for compiler in ("gcc", "clang") for std in ("c99", "c11", "c17", "c2x")),
    *((compiler, f"-std=c++{std}") for compiler in ("g++", "clang++") for std in (11, 14, 17, 20)),
]


@pytest.mark.parametrize(("command", "std"), DIALECTS, ids=" ".join)
def test_every_dialect_compiles_the_files_without_a_warning(command: str, std: str, tmp_path: Path) -> None:
    """Also two networks in one unit."""
    if not shutil.which(command):
        pytest.skip(f"{command} is not installed")
    both = ""
    for number, name in enumerate(("flagship", "random 1", "random 2", "padded, activation first")):
        graph = graph_of(name)
        codes = [float32_code(graph), int8_code(graph, quantize(graph, random_images(graph, 64)))]
        for kind, code in zip(("float", "int"), codes, strict=True):
            write(code, graph, tmp_path, f"{kind}{number}_net")
            both += f'#include "{kind}{number}_net.c"\n'
    (tmp_path / "both.c").write_text(both + "int main(void) { return 0; }\n")
    language = ["-x", "c++"] if "++" in std else ["-Wstrict-prototypes"]
    flags = [*language, std, *(flag for flag in STRICT if flag.startswith("-W") and flag != "-Wstrict-prototypes")]
    for source in ("both.c", "main.c", "float1_net.c"):
        done = subprocess.run(
            [command, *flags, "-c", "-o", "/dev/null", source], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[:2000]


@pytest.mark.parametrize(
    "layer",
    ["größe", "3x3*/", "/*x", "*/ int main; /*", "a\\", "what??/", "$layer1", "tab\tand\nline", "層" * 300, "**//**//"],
)
def test_layers_of_any_name_are_exported(layer: str, tmp_path: Path) -> None:
    graph = graph_of("random 1")
    graph = replace(graph, operations=tuple(replace(node, name=layer) for node in graph.operations))
    images = random_images(graph, 8)
    network = quantize(graph, images)
    for code in (float32_code(graph), int8_code(graph, network)):
        with compiled(write(code, graph, tmp_path), "net", [*STRICT, "-Wtrigraphs"]) as program:
            assert len(classify(program, images).scores) == 8


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.5), (0.0, 1.0), (0.0, 1 / 255), (1.0, 1e-6)])
@pytest.mark.parametrize("limits", [(0.0, math.inf), (-math.inf, 2.0), (-1.0, 1.0)])
def test_whole_and_infinite_numbers_compile(
    mean: float, std: float, limits: tuple[float, float], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Hardtanh(*limits), nn.Flatten(), nn.Linear(3 * 4 * 4, 4))
    graph = fused_graph(TrainedNetwork(network.eval().requires_grad_(False), strict(), (1, 6, 6), 4, mean, std))
    images = random_images(graph, 8)
    with compiled(write(float32_code(graph), graph, tmp_path), "net") as program:
        found = classify(program, images)
    expected = graph.scores(images, torch.float64)
    torch.testing.assert_close(found.scores, expected, rtol=1e-5, atol=2e-5 * max(1.0, float(expected.abs().max())))
    network_ = quantize(graph, images)
    with compiled(write(int8_code(graph, network_), graph, tmp_path), "net") as program:
        assert torch.equal(classify(program, images).scores, network_.scores(images).double())


@pytest.mark.parametrize(
    "name", ["int8", "INT8", "uint16", "Size", "short", "net__a", "net_", "errno", "unistd", "con", "lpt1", "char8_t"]
)
def test_names_that_headers_and_systems_have_are_refused(name: str) -> None:
    with pytest.raises(SmidgenError, match=f"the C name '{name}' .*; choose another with --name"):
        prefix(name, "trial")


def test_a_warning_is_an_error(tmp_path: Path) -> None:
    graph = graph_of("flagship")
    folder = write(float32_code(graph), graph, tmp_path)
    (folder / "net.c").write_text((folder / "net.c").read_text() + "static int unused;\n")
    with pytest.raises(SmidgenError, match=r"does not compile the files in .*unused"), compiled(folder, "net"):
        pass


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The example program of a tiny network on images of 12 x 10, under the sanitizers."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 10 * 8, 4))
    graph = fused_graph(TrainedNetwork(network.eval().requires_grad_(False), strict(), (1, 12, 10), 4, 0.1, 0.3))
    folder = write(float32_code(graph), graph, tmp_path_factory.mktemp("c") / "net")
    with compiled(folder, "net", SANITIZED) as made:
        yield made, graph


def test_the_example_program_classifies_idx_files(program: tuple[Path, FusedGraph], tmp_path: Path) -> None:
    made, graph = program
    images = random_images(graph, 20)
    expected = graph.scores(images).argmax(1)
    (tmp_path / "images").write_bytes(idx_bytes(images[:, 0].numpy()))
    (tmp_path / "labels").write_bytes(idx_bytes(torch.cat([expected[:15], (expected[15:] + 1) % 4]).numpy()))
    done = subprocess.run([made, tmp_path / "images", tmp_path / "labels"], capture_output=True, text=True, check=True)
    assert [int(line) for line in done.stdout.split()] == expected.tolist()
    assert "15 right, 75.00 %" in done.stderr


HEAD = b"\0\0\x08\x03\0\0\0\x02\0\0\0\x0c\0\0\0\x0a"
HOSTILE = {
    "empty": b"",
    "header cut short": HEAD[:10],
    "other type": b"\0\0\x0d\x03" + HEAD[4:],
    "other dimensions": b"\0\0\x08\x01" + HEAD[4:],
    "larger images": HEAD[:8] + b"\xff\xff\xff\xff" * 2 + bytes(240),
    "other images": HEAD[:8] + b"\0\0\0\x0a\0\0\0\x0c" + bytes(240),
    "more promised than there is": b"\0\0\x08\x03\xff\xff\xff\xff" + HEAD[8:] + bytes(240),
    "gzipped": b"\x1f\x8b\x08\x00" + bytes(300),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_the_example_program_withstands_a_hostile_file(
    program: tuple[Path, FusedGraph], tmp_path: Path, what: str
) -> None:
    made, graph = program
    (tmp_path / "images").write_bytes(HOSTILE[what])
    done = subprocess.run([made, tmp_path / "images"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "images") in done.stderr
    good = random_images(graph, 2)[:, 0].numpy()
    (tmp_path / "images").write_bytes(idx_bytes(good))
    for labels in (b"", b"\0\0\x08\x01\0\0\0\x03\1\2\3", b"\0\0\x08\x01\0\0\0\x02\1"):
        (tmp_path / "labels").write_bytes(labels)
        done = subprocess.run(
            [made, tmp_path / "images", tmp_path / "labels"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert "labels" in done.stderr
    for arguments in ([], ["a", "b", "c"], [tmp_path / "nothing"]):
        done = subprocess.run([made, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 2


def test_buffers_that_are_needed_at_the_same_time_do_not_meet() -> None:
    assert place([]) == ({}, 0)
    long, short, late = Buffer("long", 10, 0, 9), Buffer("short", 4, 1, 2), Buffer("late", 6, 3, 4)
    offsets, size = place([long, short, late])
    assert size == 16
    assert offsets["short"] == offsets["late"]


def test_a_network_keeps_the_rows_that_its_kernels_need() -> None:
    whole = plan(graph_of("plain"))
    shapes = whole.graph.shapes
    rings = [whole.pipeline.rings[stage.output] for stage in whole.pipeline.stages]
    assert rings == [3, 3, 3, 3, 3, 1, 1]  # the average has a single row, and so have the scores
    assert whole.bytes < sum(3 * channels * width for channels, _, width in shapes[1:]) + 2 * 14 * 12 + 64


def test_less_memory_is_more_work() -> None:
    graph = graph_of("flagship")
    whole, lean = plan(graph), plan(graph, lean=True)
    between = plan(graph, (whole.bytes + lean.bytes) // 2)
    assert whole.bytes < 6_400
    assert lean.bytes < 4_300
    assert lean.bytes < between.bytes <= (whole.bytes + lean.bytes) // 2
    assert graph.macs == whole.macs < between.macs < lean.macs
    with pytest.raises(
        SmidgenError, match=r"needs [\d,]+ bytes of memory .* and 2,000 are allowed; most is taken by conv"
    ):
        plan(graph, 2_000)


def test_branches_are_kept_as_long_as_they_must() -> None:
    graph = graph_of("branches")
    memory = plan(graph)
    assert memory.bands is None
    assert plan(graph, lean=True).bytes == memory.bytes  # nothing before the branches to make again


def test_what_integers_cannot_express_is_named() -> None:
    def graph(*layers: nn.Module) -> FusedGraph:
        network = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))
        network(torch.zeros(2, 1, 12, 12))
        return fused_graph(TrainedNetwork(network.eval().requires_grad_(False), strict(), (1, 12, 12), 3, 0.1, 0.3))

    images = torch.randint(0, 256, (8, 1, 12, 12), dtype=torch.uint8)
    padded = graph(nn.Conv2d(1, 2, 3), nn.AvgPool2d(3, 2, 1, count_include_pad=False))
    assert any(isinstance(node, Pool) for node in padded.operations)
    with pytest.raises(SmidgenError, match=r"^1 averages without its padding, .*--type float32 can"):
        quantize(padded, images)
    wide = graph(nn.Conv2d(1, 3, 1))
    linear = wide.operations[-1]
    assert isinstance(linear, Convolution)
    linear.weight[:] = 1
    heavy = np.ones((3, 3, 200, 200), dtype=np.float32)
    too_large = replace(wide, operations=(wide.operations[0], replace(linear, weight=heavy)))
    from smidgen.lowering.quantize import _Quantizer

    quantizer = _Quantizer(wide, images, 8)
    with pytest.raises(SmidgenError, match="sums that might not fit in 32 bits.*--type float32 can"):
        quantizer._sums(too_large.operations[-1])  # type: ignore[arg-type]


def test_rescaling_rounds_to_the_nearest_and_cuts() -> None:
    half = Rescale(np.array([2**9]), np.array([10]), np.array([2**9 + 3 * 2**10]), 0, 10)
    sums = torch.tensor([-100, -7, -6, -5, 0, 1, 2, 13, 1000]).reshape(-1, 1, 1, 1)
    assert half(sums).flatten().tolist() == [0, 0, 0, 1, 3, 4, 4, 10, 10]


def test_floats_are_written_exactly() -> None:
    assert c_float(-math.inf) == f"-{c_float(math.inf)}" == "-3.40282347e+38f"
    for value in [0.0, -0.0, 1.0, -1.0, 255.0, 0.1, -3.14159, 1e-40, 3.4e38]:
        exact = float(np.float32(value))
        text = c_float(exact)
        assert text.endswith("f")
        assert any(mark in text for mark in ".e")
        assert np.float32(text[:-1]) == np.float32(exact)
        assert str(np.float32(text[:-1])) == str(np.float32(exact))


def test_a_program_that_fails_or_never_ends_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = tmp_path / "crash"
    crash.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    crash.chmod(0o755)
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(SmidgenError, match=r"the exported program failed \(3\): broken"):
        classify(crash, images)
    crash.write_text("#!/bin/sh\nsleep 5\n")
    monkeypatch.setattr(compiler, "SECONDS", 0.2)
    with pytest.raises(SmidgenError, match="did not finish within"):
        classify(crash, images)
    crash.write_text("#!/bin/sh\n")
    monkeypatch.setattr(compiler, "SECONDS", 20)
    with pytest.raises(SmidgenError, match="printed 0 lines for 2 images"):
        classify(crash, images)


def test_integer_networks_have_no_real_numbers() -> None:
    graph = graph_of("branches")
    network = quantize(graph, random_images(graph, 32))
    assert isinstance(network, IntegerNetwork)
    text = "".join(
        content.decode()
        for name, content in files(int8_code(graph, network), About("net", "a", "b", (1, 28, 28), 10, 1)).items()
        if name == "net.c"
    )
    assert not re.search(r"\b(float|double)\b|\d\.\d|math\.h", text.replace(VERSION, ""))
