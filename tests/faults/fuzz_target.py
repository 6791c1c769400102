"""What `fuzz.py` runs in a process of its own, which libFuzzer ends: one of smidgen's readers under atheris.

python fuzz_target.py READER SECONDS FOLDER
"""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import atheris
import torch

# The finder of an editable installation hides the modules from atheris: no coverage, and no word of it.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
with atheris.instrument_imports(include=["smidgen", "json", "PIL", "gzip"]):
    from smidgen.data.dataset import FILES, load_dataset
    from smidgen.data.decode import read_picture
    from smidgen.data.idx import read_idx
    from smidgen.engines.choose import choose
    from smidgen.errors import SmidgenError
    from smidgen.images import read_image
    from smidgen.runs.options import RunOptions
    from smidgen.runs.progress import Silent
    from smidgen.runs.record import load_run
    from smidgen.runs.run import run
    from smidgen.runs.weights import read_weights
    from smidgen.training import checkpoint
    from smidgen.training.checkpoint import Origin
    from smidgen.training.loop import new_network, start
    from smidgen.trial import SGD, AvgPool, Conv, Data, Goal, Linear, Network, Trial
    from smidgen.trials.find import read_trial


def small_run(folder: Path) -> Path:
    """A finished run on a few images made up here."""
    data = folder / "data"
    data.mkdir()
    for name, file in FILES.items():
        images = name.endswith("images")
        header = bytes([0, 0, 8, 3 if images else 1, 0, 0, 0, 20, *([0, 0, 0, 8] * 2 if images else [])])
        (data / file).write_bytes(
            header + bytes(i * 37 % 251 if images else i % 3 for i in range(20 * (64 if images else 1)))
        )
    trial = Trial(
        name="small",
        goal=Goal(accuracy=0, parameters=1000, epochs=1),
        data=Data(source=str(data)),
        network=Network(blocks=(Conv(3), AvgPool(), Linear())),
        optimizer=SGD(lr=0.01),
        epochs=1,
        batch_size=10,
    )
    return run(trial, out=folder / "run", progress=Silent(), options=RunOptions(threads=1)).directory


def reader_and_seeds(name: str, folder: Path) -> tuple[Callable[[bytes], object], list[bytes]]:
    """What is to be fuzzed, and good inputs to begin with."""
    directory = small_run(folder)
    path = folder / {"idx.gz": "input.gz", "npz": "input.npz", "csv": "input.csv"}.get(name, "input")

    def of_file(read: Callable[[Path], object]) -> Callable[[bytes], object]:
        def reader(content: bytes) -> object:
            path.write_bytes(content)
            return read(path)

        return reader

    idx = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4]) + bytes(range(24))
    trial = read_trial(directory / "trial.json")
    match name:
        case "idx":
            return of_file(lambda p: read_idx(p, 3)), [idx]
        case "idx.gz":
            return of_file(lambda p: read_idx(p, 3)), [gzip.compress(idx)]
        case "image":
            from PIL import Image

            drawing = Image.new("L", (20, 20))
            drawing.paste(255, (5, 5, 9, 15))
            seeds = []
            for mode, kind in (("L", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("L", "JPEG"), ("CMYK", "JPEG")):
                out = io.BytesIO()
                drawing.convert(mode).save(out, kind)
                seeds.append(out.getvalue())
            return of_file(read_image), seeds
        case "picture":
            from PIL import Image

            colours = Image.linear_gradient("L").resize((12, 9)).convert("RGB")
            seeds = []
            for mode, kind in (("RGB", "PNG"), ("P", "GIF"), ("RGB", "BMP"), ("RGBA", "WEBP"), ("CMYK", "JPEG")):
                out = io.BytesIO()
                colours.convert(mode).save(out, kind)
                seeds.append(out.getvalue())
            return of_file(lambda p: read_picture(p, (3, 8, 8))), seeds
        case "npz":
            import numpy as np

            images, labels = np.arange(960).astype(np.uint8).reshape(60, 4, 4), np.arange(60) % 2
            seeds = []
            for save in (np.savez, np.savez_compressed):
                out = io.BytesIO()
                save(out, images=images, labels=labels, class_names=np.array(["a", "b"]))
                seeds.append(out.getvalue())
            return of_file(load_dataset), seeds
        case "csv":
            from PIL import Image

            for number in range(20):
                Image.new("RGB", (4, 4), (9 * number, 0, 99)).save(folder / f"{number}.png")
            rows = "".join(f"{number}.png,{'ab'[number % 2]}\n" for number in range(20))
            return of_file(load_dataset), [rows.encode(), f"path,label\n{rows}".encode()]
        case "trial":
            return of_file(read_trial), [(directory / "trial.json").read_bytes()]
        case "weights":
            return of_file(read_weights), [(directory / "weights.safetensors").read_bytes()]
        case "checkpoint":
            data = load_dataset(trial.data.source)
            training = start(trial, new_network(trial, data, 0), choose("auto", threads=1))
            origin = Origin(trial.recipe_digest, data.digest, 0)
            seeds = [(directory / "checkpoint.safetensors").read_bytes()]
            return of_file(lambda p: checkpoint.restore(training, p, origin, trial, len(data.train))), seeds
        case "run":
            # The two JSON files of a run, one after the other with a zero byte between them.
            def both(content: bytes) -> object:
                result, _, epochs = content.partition(b"\0")
                (directory / "result.json").write_bytes(result)
                (directory / "epochs.jsonl").write_bytes(epochs)
                return load_run(directory)

            good = [(directory / file).read_bytes() for file in ("result.json", "epochs.jsonl")]
            return both, [b"\0".join(good)]
    raise SystemExit(f"there is no reader {name!r}")


def fuzz(name: str, seconds: str, folder: Path) -> None:
    """Fuzz, and end this process."""
    torch.set_num_threads(1)
    reader, seeds = reader_and_seeds(name, folder)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        reader(seed)
        (corpus / str(number)).write_bytes(seed)
    words = set(re.findall(r"[a-z_]{3,}", json.dumps(read_trial(folder / "run" / "trial.json").to_json())))
    (folder / "words").write_text("".join(f'"{word}"\n' for word in sorted(words | {"NaN", "1e999", "null", "-1"})))

    def one(content: bytes) -> None:
        try:
            reader(content)
        except SmidgenError as error:
            assert "\n" not in str(error)

    options = [
        sys.argv[0], str(corpus), f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=2048", "-max_len=20000",
        f"-dict={folder / 'words'}", "-print_final_stats=1", "-verbosity=0",
    ]  # fmt: skip
    atheris.Setup(options, one)
    atheris.Fuzz()


if __name__ == "__main__":
    fuzz(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
