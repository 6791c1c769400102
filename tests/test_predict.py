from __future__ import annotations

import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from conftest import Command
from smidgen.data.dataset import Dataset
from smidgen.errors import ImageError
from smidgen.images import read_image
from smidgen.runs.predict import predict
from smidgen.runs.record import Run
from smidgen.training.evaluation import scores


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two images as vectors."""
    x, y = a.astype(float).ravel(), b.astype(float).ravel()
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def digit(mnist: Dataset, index: int) -> Image.Image:
    return Image.fromarray(mnist.held_out.images[index, 0].numpy())


def inverted(image: Image.Image) -> Image.Image:
    return Image.eval(image, lambda v: 255 - v)


FORMS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as it is": lambda x: x,
    "dark on light": inverted,
    "ten times as large": lambda x: x.resize((280, 280), Image.Resampling.BICUBIC),
    "small in a corner": lambda x: padded(x, (200, 120), (150, 80)),
    "colour": lambda x: inverted(x).convert("RGB"),
    "palette": lambda x: x.convert("P"),
    "16-bit": lambda x: Image.fromarray(np.asarray(x).astype(np.uint16) * 257),
    "black ink on transparency": lambda x: Image.merge("LA", (Image.new("L", x.size, 0), x)),
    "white ink on transparency": lambda x: Image.merge("LA", (Image.new("L", x.size, 255), x)),
    "grey ink on grey paper": lambda x: Image.eval(x, lambda v: 190 - v // 3),
}


def padded(image: Image.Image, size: tuple[int, int], at: tuple[int, int]) -> Image.Image:
    page = Image.new("L", size, 0)
    page.paste(image, at)
    return page


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_brought_to_that_of_mnist(mnist: Dataset, tmp_path: Path, form: str) -> None:
    """Against the original MNIST image, which is 20 × 20 in a box, centred by mass."""
    alike = []
    for index in range(20):
        path = saved(FORMS[form](digit(mnist, index)), tmp_path / f"{index}.png")
        result = read_image(path)
        assert result.shape == (28, 28)
        assert result.dtype == np.uint8
        alike.append(similarity(result, mnist.held_out.images[index, 0].numpy()))
    assert np.median(alike) > 0.93, alike
    assert min(alike) > 0.75, alike


def test_a_jpeg_photo_with_noise_and_an_uneven_page(mnist: Dataset, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    alike = []
    for index in range(20):
        ink = np.asarray(digit(mnist, index).resize((300, 300), Image.Resampling.BICUBIC), dtype=float)
        page = np.full((480, 640), 200.0)
        page[90:390, 170:470] -= ink * 0.6
        page += rng.normal(0, 4, page.shape) + np.linspace(-6, 6, 640)
        path = saved(Image.fromarray(np.clip(page, 0, 255).astype(np.uint8)), tmp_path / "x.jpg", quality=70)
        alike.append(similarity(read_image(path), mnist.held_out.images[index, 0].numpy()))
    assert np.median(alike) > 0.9, alike


def test_the_result_fits_its_box_and_is_centred(tmp_path: Path) -> None:
    for box in ((10, 40, 30, 200), (5, 5, 250, 20), (100, 100, 104, 104), (0, 0, 299, 150)):
        image = Image.new("L", (300, 300), 255)
        ImageDraw.Draw(image).ellipse(box, fill=0)
        result = read_image(saved(image, tmp_path / "x.png")).astype(float)
        rows, columns = np.flatnonzero(result.max(1) > 25), np.flatnonzero(result.max(0) > 25)
        assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)
        centre = [(result.sum(1 - axis) * np.arange(28)).sum() / result.sum() for axis in (0, 1)]
        assert np.allclose(centre, 14, atol=0.55)


def test_a_phones_rotation_is_followed(mnist: Dataset, tmp_path: Path) -> None:
    upright = digit(mnist, 0).resize((100, 140))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    path = saved(turned, tmp_path / "x.jpg", exif=exif, quality=95)
    assert similarity(read_image(path), read_image(saved(upright, tmp_path / "y.png"))) > 0.98


def test_predictions_are_those_of_the_network(small_run: Run, mnist: Dataset, tmp_path: Path) -> None:
    paths = [saved(digit(mnist, i).resize((90, 90)), tmp_path / f"{i}.png") for i in range(12)]
    found = predict(small_run.directory, paths)
    images = torch.from_numpy(np.stack([read_image(p) for p in paths])).unsqueeze(1)
    trained = small_run.trained
    probabilities = scores(trained.network, images, trained.mean, trained.std).softmax(1)
    assert [p.label for p in found] == probabilities.argmax(1).tolist()
    assert [p.probability for p in found] == pytest.approx(probabilities.max(1).values.tolist(), rel=1e-5)
    assert [p.file for p in found] == [str(p) for p in paths]
    assert predict(small_run, []) == []


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunk(*c) for c in chunks) + chunk(b"IEND", b"")


good_png = png(28, 28, (b"IDAT", zlib.compress(b"".join(b"\0" + bytes(range(i, i + 28)) for i in range(28)))))
HOSTILE = {
    "empty": (b"", "not a PNG or JPEG"),
    "text": (b"hello", "not a PNG or JPEG"),
    "a GIF": (b"GIF89a" + b"\0" * 100, "not a PNG or JPEG"),
    "cut short": (good_png[:60], "cannot be decoded"),
    "a pixel bomb": (
        png(60_000, 60_000, (b"IDAT", zlib.compress(b"\0" * 10**7))),
        "too many pixels",
    ),
    "just too many pixels": (png(50_001, 1_000, (b"IDAT", b"")), "50,001 x 1,000 pixels"),
    "no pixels": (png(28, 28), "cannot be decoded"),
    "a text bomb": (png(28, 28, (b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 10**8))), "cannot be decoded"),
    "zero wide": (png(0, 28, (b"IDAT", b"")), "not a PNG or JPEG|cannot be decoded"),
    "blank": (png(28, 28, (b"IDAT", zlib.compress((b"\0" + b"\x80" * 28) * 28))), "blank"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_image_is_one_line(tmp_path: Path, name: str) -> None:
    content, words = HOSTILE[name]
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=words) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_that_are_not_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(ImageError, match="cannot be read: it is a folder"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="cannot be read: it is not a regular file"):
        read_image(Path("/dev/zero"))


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    with path.open("wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(ImageError, match="bytes; at most"):
        read_image(path)


def test_bombs_are_refused_under_a_memory_limit(tmp_path: Path) -> None:
    for index, name in enumerate(("a pixel bomb", "a text bomb", "just too many pixels")):
        (tmp_path / f"{index}.png").write_bytes(HOSTILE[name][0])
    code = f"""
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any
from smidgen.images import read_image
from smidgen.errors import ImageError
resource.setrlimit(resource.RLIMIT_AS, ({500 * 2**20}, {500 * 2**20}))
for index in range(3):
    try:
        read_image(Path({str(tmp_path)!r}) / f"{{index}}.png")
    except ImageError as error:
        print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("refused:") == 3, done


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 2**32))
def test_any_damage_is_read_or_refused(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    path = tmp_path / "x"
    if generator.random() < 0.5:
        content = bytearray(good_png)
    else:
        Image.fromarray(np.arange(32 * 32, dtype=np.uint8).reshape(32, 32)).save(path, "JPEG")
        content = bytearray(path.read_bytes())
    for _ in range(generator.randint(1, 8)):
        content[generator.randrange(len(content))] = generator.randrange(256)
    path.write_bytes(content[: generator.randint(1, len(content))])
    try:
        assert read_image(path).shape == (28, 28)
    except ImageError as error:
        assert "\n" not in str(error)


def test_the_predict_command(smidgen: Command, small_run: Run, mnist: Dataset, tmp_path: Path) -> None:
    path = saved(digit(mnist, 0), tmp_path / "seven.png")
    done = smidgen("predict", small_run.directory, path, "--json")
    assert done.status == 0
    entry = done.json["predictions"][0]
    assert set(entry) == {"file", "label", "probability", "name"}
    assert entry["name"] == str(entry["label"])
    assert 0 < entry["probability"] <= 1
    assert str(path) in smidgen("predict", small_run.directory, path).out
    assert smidgen("predict", small_run.directory, tmp_path / "no.png").is_mistake("no.png", "does not exist")
    assert smidgen("predict", tmp_path, path).is_mistake("not a run directory")


def test_a_broken_file_among_others_is_named_and_the_others_are_classified(
    smidgen: Command, small_run: Run, mnist: Dataset, tmp_path: Path
) -> None:
    first, last = (saved(digit(mnist, i), tmp_path / f"{i}.png") for i in (0, 1))
    broken, missing = tmp_path / "0b.png", tmp_path / "0c.png"
    broken.write_bytes(first.read_bytes()[:60])
    files = [first, broken, missing, last, first]
    expected = [
        p["label"] for p in smidgen("predict", small_run.directory, first, last, first, "--json").json["predictions"]
    ]
    done = smidgen("predict", small_run.directory, *files)
    assert done.status == 2
    assert [line.split()[0] for line in done.out.splitlines()[2:-1]] == [str(first), str(last), str(first)]
    assert done.err.count("\n") == 2
    assert str(broken) in done.err
    assert str(missing) in done.err
    done = smidgen("predict", small_run.directory, *files, "--json")
    assert done.status == 2
    assert [p["label"] for p in done.json["predictions"]] == expected
    assert set(done.json["errors"]) == {str(broken), str(missing)}
    assert done.json["error"] == done.json["errors"][str(broken)]
    with pytest.raises(ImageError, match="0b"):
        predict(small_run, files)
