"""The exported C files as libraries that Arduino, PlatformIO and CMake take as they are."""

from __future__ import annotations

import json

from torch import Tensor

from smidgen.lowering.c.source import About
from smidgen.lowering.c.template import render

PACKAGES = ("arduino", "platformio", "cmake")
VERSION = "1.0.0"
"""Of the exported library: each export is another network, and the first of its kind."""


def packaged(package: str, files: dict[str, bytes], about: About, examples: tuple[Tensor, Tensor]) -> dict[str, bytes]:
    """The files of a library, by path.

    Args:
        package: one of `PACKAGES`.
        files: header, source and example program, by name.
        about: the network.
        examples: images, uint8 [count, channels, height, width], and labels, int64 [count], for a sketch.
    """
    prefix = about.prefix
    values: dict[str, object] = {
        "prefix": prefix,
        "upper": prefix.upper(),
        "title": about.title,
        "origin": about.origin,
        "version": VERSION,
    }
    if package == "cmake":
        text = render("CMakeLists.txt", {**values, "libraries": "m" if b"math.h" in files[f"{prefix}.c"] else ""})
        return {**files, "CMakeLists.txt": text.encode()}
    placed = {f"src/{name}": files[name] for name in (f"{prefix}.h", f"{prefix}.c")}
    placed["extras/classify/main.c"] = files["main.c"]
    features = {"stream"} if f"{prefix}_begin".encode() in files[f"{prefix}.h"] else set()
    features |= {"names"} if about.class_names else set()
    sketch = render("sketch.ino", {**values, "count": len(examples[1])}, features)
    placed[f"examples/{prefix}_examples/{prefix}_examples.ino"] = (sketch + "\n").encode()
    placed[f"examples/{prefix}_examples/images.h"] = _images(*examples).encode()
    if package == "arduino":
        return {"library.properties": (render("library.properties", values) + "\n").encode(), **placed}
    library = {
        "name": prefix,
        "version": VERSION,
        "description": f"{about.title}. {about.origin}",
        "keywords": "machine learning, image classification, int8",
        "headers": f"{prefix}.h",
        "frameworks": "*",
        "platforms": "*",
        "examples": [
            {
                "name": f"{prefix}_examples",
                "base": f"examples/{prefix}_examples",
                "files": [f"{prefix}_examples.ino", "images.h"],
            }
        ],
        "build": {"srcDir": "src", "includeDir": "src"},
    }
    return {"library.json": (json.dumps(library, indent=2) + "\n").encode(), **placed}


def _images(images: Tensor, labels: Tensor) -> str:
    """Images and labels as tables that stay in flash."""
    last = images.permute(0, 2, 3, 1).flatten(1)
    rows = ",\n".join(f"{{{','.join(map(str, image.tolist()))}}}" for image in last)
    return (
        "/* Test images, rows from the top, and the classes that they are. */\n"
        f"static const uint8_t labels[{len(labels)}] PROGMEM = {{{', '.join(map(str, labels.tolist()))}}};\n"
        f"static const uint8_t images[{len(images)}][{last.shape[1]}] PROGMEM = {{\n{rows}\n}};\n"
    )
