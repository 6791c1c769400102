"""The target `onnx`: one file that takes raw uint8 images, in float32 or in integers."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from smidgen.exports.onnx_graph import GraphWriter
from smidgen.exports.onnx_int8 import QdqWriter
from smidgen.exports.quantized import Quantized
from smidgen.exports.target import Check, Source, arithmetic, compared, library

BATCH = 500


class OnnxTarget:
    """One ONNX file: `images` uint8 [N, channels, height, width] in, `scores` float32 [N, classes] out."""

    def __init__(self, type: str | None = None) -> None:
        self.type = arithmetic(type)
        self._quantized: Quantized | None = None

    def files(self, source: Source) -> dict[str, bytes]:
        """The file, named after the trial.

        Raises:
            SmidgenError: onnx or onnxruntime is missing, or a layer cannot be expressed in integers.
        """
        library("onnxruntime", "onnx")
        library("onnx", "onnx")
        if self.type == "int8":
            self._quantized = Quantized(source)
            writer: GraphWriter = QdqWriter(source.graph, self._quantized.network)
        else:
            writer = GraphWriter(source.graph)
        return {self._name(source): writer.content(source.run.trial.name, source.about)}

    def usage(self, source: Source) -> str:
        """With onnxruntime."""
        shape = ", ".join(map(str, source.graph.input_shape))
        return (
            f'```python\nimport onnxruntime\n\nsession = onnxruntime.InferenceSession("{self._name(source)}")\n'
            f'(scores,) = session.run(["scores"], {{"images": images}})  # uint8 [n, {shape}]\n'
            "labels = scores.argmax(1)\n```"
        )

    def check(self, source: Source, directory: Path) -> Check:
        """Classify all test images with onnxruntime on the CPU."""
        runtime = library("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        # Without VNNI, its kernels for uint8 times int8 would cut sums of two products to 16 bits.
        options.add_session_config_entry("session.x64quantprecision", "1")
        session = runtime.InferenceSession(directory / self._name(source), options, providers=["CPUExecutionProvider"])
        began = time.perf_counter()
        parts = [session.run(["scores"], {"images": part.numpy()})[0] for part in source.images.split(BATCH)]
        seconds = time.perf_counter() - began
        scores, details = torch.from_numpy(np.concatenate(parts)), {"onnxruntime": runtime.__version__}
        if self._quantized:
            return self._quantized.compared(scores, seconds, details)
        return compared(source, scores, seconds, details=details)

    @staticmethod
    def _name(source: Source) -> str:
        return f"{source.run.trial.name}.onnx"
