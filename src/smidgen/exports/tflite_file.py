"""The target `tflite`: one file in integers for LiteRT and its like, from microcontrollers to phones."""

from __future__ import annotations

import time
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from smidgen.errors import SmidgenError
from smidgen.exports.quantized import Quantized, percent
from smidgen.exports.target import Check, Source, arithmetic, library
from smidgen.exports.tflite_model import tflite_model

BATCH = 500


class TfliteTarget:
    """One TFLite file: `images` uint8 [N, height, width, channels] in, `scores` int16 or int8 [N, classes] out."""

    def __init__(self, type: str | None = None) -> None:
        if arithmetic(type) != "int8":
            raise SmidgenError("--to tflite is for int8 only; add --type int8")
        self._quantized: Quantized | None = None

    def files(self, source: Source) -> dict[str, bytes]:
        """The file, named after the trial.

        Raises:
            SmidgenError: LiteRT is missing, or a layer cannot be expressed.
        """
        library("ai_edge_litert.interpreter", "tflite")
        self._quantized = Quantized(source)
        about = source.about
        names = {"class_names": about["class_names"]} if "class_names" in about else {}
        return {
            self._name(source): tflite_model(
                source.graph,
                self._quantized.network,
                self._quantized.largest_score,
                f"{about['trial']}, seed {about['seed']}, sha256 of the weights {about['weights_sha256']}",
                names,
            )
        }

    def usage(self, source: Source) -> str:
        """With LiteRT's interpreter."""
        channels, height, width = source.graph.input_shape
        return (
            "```python\nfrom ai_edge_litert.interpreter import Interpreter\n\n"
            f'interpreter = Interpreter("{self._name(source)}")\n'
            "interpreter.allocate_tensors()\n"
            f"interpreter.set_tensor(interpreter.get_input_details()[0]['index'], image)"
            f"  # uint8 [1, {height}, {width}, {channels}]\n"
            "interpreter.invoke()\n"
            "label = interpreter.get_tensor(interpreter.get_output_details()[0]['index']).argmax()\n```"
        )

    def check(self, source: Source, directory: Path) -> Check:
        """Classify all test images with LiteRT's interpreter, as it is and with kernels that have no real numbers."""
        assert self._quantized is not None
        file, quantized = directory / self._name(source), self._quantized
        scores, seconds = classify(file, source.images)
        fixed = classify(file, source.images, delegate=False)[0].argmax(1)
        details = {
            "litert": metadata.version("ai-edge-litert"),
            "mismatches_without_xnnpack": int((fixed != quantized.scores.argmax(1)).sum()),
            "accuracy_without_xnnpack": percent(fixed, source.labels),
        }
        return quantized.compared(scores, seconds, details)

    @staticmethod
    def _name(source: Source) -> str:
        return f"{source.run.trial.name}.tflite"


def classify(file: Path, images: Tensor, *, delegate: bool = True) -> tuple[Tensor, float]:
    """Scores of images by LiteRT's interpreter on one thread, as real numbers, and the seconds that it took.

    Args:
        file: as `tflite_model` makes it.
        images: uint8 [count, channels, height, width].
        delegate: whether XNNPACK computes what it can, as it does by default: it requantizes sums by a float32 factor.
            LiteRT's own kernels do so by a multiplication and a shift of integers, as those for microcontrollers do.
    """
    litert = library("ai_edge_litert.interpreter", "tflite")
    kernels = litert.OpResolverType
    interpreter = litert.Interpreter(
        str(file),
        num_threads=1,
        experimental_op_resolver_type=kernels.BUILTIN if delegate else kernels.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    (image,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero = output["quantization"]
    found = []
    began = time.perf_counter()
    for part in images.permute(0, 2, 3, 1).contiguous().split(BATCH):
        interpreter.resize_tensor_input(image["index"], part.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(image["index"], part.numpy())
        interpreter.invoke()
        found.append(interpreter.get_tensor(output["index"]))
    seconds = time.perf_counter() - began
    return (torch.from_numpy(np.concatenate(found)).double() - zero) * scale, seconds
