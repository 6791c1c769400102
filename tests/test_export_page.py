"""The web page's own script in node: the same scores as the network, for every kind of layer; what is wrong is noticed."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from smidgen.data.dataset import Dataset
from smidgen.data.decode import decode
from smidgen.errors import SmidgenError
from smidgen.exports.page import PageTarget
from smidgen.exports.page_file import WEB
from smidgen.exports.page_model import page_model
from smidgen.exports.target import Check, Source
from smidgen.lowering.fused import Convolution
from smidgen.runs.record import Run
from smidgen.runs.weights import TrainedNetwork
from test_export_graph import NETWORKS, trained

needed = bool(os.environ.get("CI"))
pytestmark = pytest.mark.skipif(shutil.which("node") is None and not needed, reason="no node is installed")


def exported(source: Source, directory: Path) -> Path:
    """The page, written."""
    ((name, content),) = PageTarget().files(source).items()
    path = directory / name
    path.write_bytes(content)
    return path


def source_of(network: TrainedNetwork, like: Run, images: torch.Tensor) -> Source:
    """Any network as if it came from a run."""
    return Source(replace(like, trained=network), images, torch.zeros(len(images), dtype=torch.int64))


def agrees(check: Check, source: Source, tolerance: float = 1e-5) -> bool:
    """No image in another class, and scores that differ by rounding only."""
    scale = max(1.0, float(source.scores.abs().max()))
    assert check.mismatches == ()
    assert check.largest_difference < tolerance * scale, (check, scale)
    return True


@pytest.mark.parametrize("which", ["flagship", "reference"])
def test_over_the_whole_test_set(request: pytest.FixtureRequest, mnist: Dataset, tmp_path: Path, which: str) -> None:
    finished: Run = request.getfixturevalue(f"{which}_run")
    source = Source(finished, mnist.held_out.images, mnist.held_out.labels)
    path = exported(source, tmp_path)
    check = PageTarget().check(source, tmp_path)
    assert agrees(check, source)
    assert check.images == 10_000
    assert check.accuracy == pytest.approx(finished.accuracy)
    assert check.seconds > 0
    assert check.details == {"bytes": path.stat().st_size}
    assert path.stat().st_size < 100_000
    assert path.name == f"{finished.trial.name}.html"


class Sampler(nn.Module):
    """What neither the built-in networks nor those of the graph's tests have, on colour images that are no squares."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 7, (3, 5), stride=(2, 1), padding=(2, 1))
        self.depthwise = nn.Conv2d(7, 14, 3, padding=1, groups=7)
        self.mean1 = nn.AvgPool2d(3, stride=2, padding=1)
        self.mean2 = nn.AvgPool2d((2, 3), stride=1, padding=(1, 1), count_include_pad=False)
        self.most = nn.MaxPool2d((3, 2), stride=(2, 3), padding=1)
        self.wide = nn.Conv2d(28, 11, (1, 3), dilation=(1, 2))
        self.hidden = nn.Linear(55, 9)
        self.last = nn.Linear(18, 4)
        self.above = nn.Hardtanh(-0.2, float("inf"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.gelu(self.first(x), approximate="tanh")
        x = torch.tanh(self.depthwise(x))
        x = torch.cat([self.mean1(x), torch.sigmoid(nn.functional.relu6(self.mean1(x)))], 1)
        x = self.above(x)
        x = self.wide(self.most(self.mean2(x)))
        y = self.hidden(nn.functional.leaky_relu(x, 0.2).flatten(1))
        result: torch.Tensor = self.last(torch.cat([nn.functional.hardswish(y), nn.functional.silu(y + y)], 1))
        return result


@pytest.mark.parametrize("name", ["padded, activation first", "branches"])
def test_other_networks(flagship_run: Run, tmp_path: Path, name: str) -> None:
    images = torch.randint(0, 256, (40, 1, 28, 28), dtype=torch.uint8)
    source = source_of(trained(NETWORKS[name]()), flagship_run, images)
    exported(source, tmp_path)
    assert agrees(PageTarget().check(source, tmp_path), source)


def test_every_kind_of_layer(flagship_run: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = TrainedNetwork(Sampler().eval(), flagship_run.trial, (3, 30, 29), 4, 0.4, 0.2)
    source = source_of(network, flagship_run, torch.randint(0, 256, (40, 3, 30, 29), dtype=torch.uint8))
    kinds = {(node["kind"], node.get("which")) for node in page_model(source.graph)["nodes"]}
    acts = {"gelu", "tanh", "sigmoid", "clamp", "leaky_relu", "hardswish", "silu"}
    assert kinds >= {("activation", which) for which in acts}
    assert kinds >= {("pool", "max"), ("pool", "average"), ("add", None), ("concatenate", None), ("convolution", None)}
    exported(source, tmp_path)
    assert agrees(PageTarget().check(source, tmp_path), source)


def some_network(seed: int) -> tuple[nn.Module, tuple[int, int, int]]:
    """A few random convolutions, normalizations, activations and poolings on a random shape of image."""
    generator = random.Random(seed)
    channels, _, _ = shape = generator.choice([1, 2, 3]), generator.randint(9, 30), generator.randint(9, 30)
    layers: list[nn.Module] = []
    for _ in range(generator.randint(1, 4)):
        groups = generator.choice([1, 1, channels])
        out = groups * generator.randint(1, 6)
        kernel, dilation = generator.randint(1, 3), generator.randint(1, 2)
        layers.append(
            nn.Conv2d(
                channels, out, kernel, generator.randint(1, 2), generator.randint(0, kernel), dilation, groups
            )
        )  # fmt: skip
        channels = out
        layers += [nn.BatchNorm2d(out)] * generator.randint(0, 1) + [nn.ReLU()] * generator.randint(0, 1)
        layers += [nn.BatchNorm2d(out)] * generator.randint(0, 1)
        x = nn.Sequential(*layers).eval()(torch.zeros(2, *shape))
        if min(x.shape[2:]) >= 6:
            layers.append(generator.choice([nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1)]))
        elif min(x.shape[2:]) < 4:
            break
    features = nn.Sequential(*layers).eval()(torch.zeros(1, *shape)).numel()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 5)), shape


@pytest.mark.parametrize("seed", range(10))
def test_random_networks(flagship_run: Run, tmp_path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    network, shape = some_network(seed)
    filled = replace(trained(network, 5), input_shape=shape)
    source = source_of(filled, flagship_run, torch.randint(0, 256, (20, *shape), dtype=torch.uint8))
    exported(source, tmp_path)
    assert agrees(PageTarget().check(source, tmp_path), source)


def model_in(html: str) -> dict[str, Any]:
    found = re.search(r'id="model">(.*?)</script>', html, re.DOTALL)
    assert found
    model: dict[str, Any] = json.loads(found[1])
    return model


def test_a_changed_weight_is_noticed(flagship_run: Run, mnist: Dataset, tmp_path: Path) -> None:
    source = Source(flagship_run, mnist.held_out.images[:500], mnist.held_out.labels[:500])
    path = exported(source, tmp_path)
    html = path.read_text()
    weights = model_in(html)["weights"]
    numbers = np.frombuffer(base64.b64decode(weights), "<f4").copy()
    assert len(numbers) == sum(
        n.weight.size + n.bias.size for n in source.graph.operations if isinstance(n, Convolution)
    )
    numbers[40] += 0.01  # a weight of the first layer, by a little
    path.write_text(html.replace(weights, base64.b64encode(numbers.tobytes()).decode()))
    assert PageTarget().check(source, tmp_path).largest_difference > 1e-3
    numbers[40] = 30
    path.write_text(html.replace(weights, base64.b64encode(numbers.tobytes()).decode()))
    check = PageTarget().check(source, tmp_path)
    assert len(check.mismatches) > 50
    assert check.accuracy < 90


@pytest.mark.parametrize(
    ("what", "instead"),
    [
        ('"padding":[1,1]', '"padding":[0,0]'),
        ('"groups":2', '"groups":1'),
        ('"relu":true', '"relu":false'),
        ("fround(pixels[i] / 255)", "fround(pixels[i] / 256)"),
    ],
)
def test_a_changed_page_is_noticed(flagship_run: Run, tmp_path: Path, what: str, instead: str) -> None:
    images = torch.randint(0, 256, (40, 1, 28, 28), dtype=torch.uint8)
    source = source_of(trained(NETWORKS["padded, activation first"]()), flagship_run, images)
    path = exported(source, tmp_path)
    honest = PageTarget().check(source, tmp_path).largest_difference
    html = path.read_text()
    assert what in html
    path.write_text(html.replace(what, instead))
    try:
        check = PageTarget().check(source, tmp_path)
    except SmidgenError as error:
        assert "cannot be run in node" in str(error)
    else:
        assert check.largest_difference > 50 * honest


def test_what_cannot_be_checked_is_one_line(
    small_run: Run, tmp_path: Path, mnist: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(small_run, mnist.held_out.images[:5], mnist.held_out.labels[:5])
    with pytest.raises(SmidgenError, match=r"small\.html cannot be read"):
        PageTarget().check(source, tmp_path)
    path = exported(source, tmp_path)
    whole = path.read_text()
    for content, words in (
        ("<p>hello</p>", "the page has no script with the id model; export it again"),
        (whole.replace('"mean":', '"mean":x'), "cannot be run in node: .*JSON"),
        (whole.replace("return this.values[this.output];", "return this.none.at;"), "cannot be run in node: "),
        (whole.replace(f'"output":{source.graph.output}', '"output":0', 1), "a different number of scores"),
    ):
        assert content != whole
        path.write_text(content)
        with pytest.raises(SmidgenError, match=words) as caught:
            PageTarget().check(source, tmp_path)
        assert "\n" not in str(caught.value)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SmidgenError, match="needs node, which is not installed; install it"):
        PageTarget().check(source, tmp_path)


FIT = """
const { readFileSync } = require("node:fs");
const scripts = process.argv.slice(1).map((path) => readFileSync(path, "utf8"));
const { separate, fitted } = new Function(`${scripts.join("\\n")}; return { separate, fitted };`)();
const cases = JSON.parse(readFileSync(0, "utf8"));
const made = cases.map(({ width, height, pixels, shape }) => {
  const planes = Array.from({ length: shape[0] }, () => new Uint8Array(width * height));
  separate(Uint8ClampedArray.from(Buffer.from(pixels, "base64")), planes, 0);
  return Buffer.from(fitted({ planes, width, height }, "PNG", shape[1], shape[2])).toString("base64");
});
process.stdout.write(JSON.stringify(made));
"""


def test_pictures_are_fitted_to_the_last_bit_as_pillow_fits_them(colour_run: Run, tmp_path: Path) -> None:
    """Sizes up and down, oblong, tall and tiny, with transparency, for grey and colour networks."""
    generator = np.random.default_rng(4)
    cases, expected = [], []
    for number in range(150):
        width, height = (int(side) for side in generator.integers(1, (12, 90, 400)[number % 3], 2))
        shape = int(generator.choice([1, 3])), *(int(side) for side in generator.integers(1, 50, 2))
        pixels = generator.integers(0, 256, (height, width, 4), dtype=np.uint8)
        if number % 2:
            pixels[..., 3] = 255
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        expected.append(decode(file.getvalue(), "x", (shape[0], shape[1], shape[2])))
        text = base64.b64encode(pixels.tobytes()).decode()
        cases.append({"width": width, "height": height, "pixels": text, "shape": shape})
    scripts = [Path(str(WEB / name)) for name in ("rounding.js", "picture.js")]
    page = exported(Source(colour_run, *[torch.zeros(0)] * 2), tmp_path).read_text()
    assert all(script.read_text() in page for script in scripts)
    command = ["node", "-e", FIT, *map(str, scripts)]
    done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, check=True)
    for case, wanted, found in zip(cases, expected, json.loads(done.stdout), strict=True):
        pixels = np.frombuffer(base64.b64decode(found), np.uint8).reshape(wanted.shape)
        assert np.array_equal(pixels, wanted), (case["width"], case["height"], case["shape"])


HOSTILE = """</script><script>alert(1)</script><!-- <b>&amp; "'` {{model}} </style>"""


def test_nothing_from_the_trial_breaks_out(small_run: Run, mnist: Dataset, tmp_path: Path) -> None:
    hostile = replace(small_run, trial=replace(small_run.trial, note=HOSTILE))
    plain = PageTarget().files(Source(small_run, mnist.held_out.images[:5], mnist.held_out.labels[:5]))
    found = PageTarget().files(Source(hostile, mnist.held_out.images[:5], mnist.held_out.labels[:5]))
    (before,), (after,) = plain.values(), found.values()
    for dangerous in (b"<script", b"</script", b"</style", b"<!--", b"<b>"):
        assert before.count(dangerous) == after.count(dangerous)
    assert b"{{model}} &lt;/style&gt;" in after


def test_a_name_in_the_model_breaks_nothing(flagship_run: Run, tmp_path: Path) -> None:
    """The layers of a network of one's own can be called anything."""
    network = nn.Sequential()
    network.add_module("</script><!--", nn.Conv2d(1, 10, 28))
    network.add_module("flat", nn.Flatten())
    source = source_of(trained(network), flagship_run, torch.randint(0, 256, (9, 1, 28, 28), dtype=torch.uint8))
    path = exported(source, tmp_path)
    assert model_in(path.read_text())["nodes"][0]["name"] == "</script><!--"
    assert agrees(PageTarget().check(source, tmp_path), source)


def test_words_for_a_learner(flagship_run: Run) -> None:
    titles = {n["name"]: n["title"] for n in page_model(Source(flagship_run, *[torch.zeros(0)] * 2).graph)["nodes"]}
    assert titles["conv1"] == "3 × 3 convolution, ReLU"
    assert titles["pool1"] == "mean of each 2 × 2"
    assert titles["pool2"] == "mean of the whole image"
    assert titles["linear1"] == "linear layer"


def test_the_demo_is_what_the_exporter_makes(small_run: Run, mnist: Dataset, tmp_path: Path) -> None:
    """`make demo` makes it again after a change of the page."""
    demo = (Path(__file__).parents[1] / "docs" / "demo.html").read_text()
    path = exported(Source(small_run, mnist.held_out.images[:5], mnist.held_out.labels[:5]), tmp_path)
    for part in (r"<style>.*?</style>", r'<script id="network">.*?</script>', r"<script>.*?</script>"):
        found = [re.search(part, html, re.DOTALL) for html in (demo, path.read_text())]
        assert found[0]
        assert found[1]
        assert found[0][0] == found[1][0], "docs/demo.html is out of date: make demo"
    assert len(demo) < 100_000
    assert len(model_in(demo)["weights"]) > 7_000 * 16 / 3
