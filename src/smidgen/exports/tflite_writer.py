"""A TFLite file while it is being put together: tensors, operators, and what the schema calls them.

The schema is TensorFlow's `schema.fbs`, version 3; LiteRT's package brings the Python code made from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smidgen.exports.target import library

SCHEMA_VERSION = 3
IDENTIFIER = b"TFL3"
ALIGNMENT = 16
"""Of the constants, bytes, as the schema says; the code made from it does not align them."""
VERSIONS = {
    "ADD": (2, 3),
    "AVERAGE_POOL_2D": (2, 3),
    "CONCATENATION": (2, 3),
    "CONV_2D": (3, 4),
    "DEPTHWISE_CONV_2D": (3, 5),
    "FULLY_CONNECTED": (4, 7),
    "HARD_SWISH": (1, 1),
    "LEAKY_RELU": (2, 2),
    "LOGISTIC": (2, 2),
    "MAX_POOL_2D": (2, 3),
    "MUL": (2, 4),
    "PAD": (2, 3),
    "PADV2": (2, 2),
    "QUANTIZE": (1, 2),
    "RELU": (2, 2),
    "RELU6": (2, 2),
    "RESHAPE": (1, 1),
    "TANH": (2, 2),
}
"""The version of each operator that has int8 and that has int16 (TensorFlow's `tools/versioning/op_version.cc`)."""


class ModelWriter:
    """Tensors and operators of a TFLite model.

    Raises:
        SmidgenError: LiteRT is missing.
    """

    def __init__(self) -> None:
        self.schema = library("ai_edge_litert.schema_py_generated", "tflite")
        self.builders = library("flatbuffers", "tflite")
        self.buffers: list[bytes | None] = [None]  # the first is that of tensors without content
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self.codes: list[tuple[str, int]] = []

    def tensor(self, name: str, shape: Sequence[int], kind: type, scale: ArrayLike, zero: int) -> int:
        """A value that is computed; its number.

        Args:
            name: for people.
            shape: the first dimension, 1, is that of the images, of which there may be any number.
            kind: NumPy's type of an element.
            scale: of a step.
            zero: the integer that stands for 0.
        """
        return self._tensor(name, shape, kind, scale, zero, signature=(-1, *shape[1:]))

    def constant(
        self, name: str, values: NDArray[Any], scales: ArrayLike | None = None, axis: int = 0, zero: int = 0
    ) -> int:
        """A constant; its number.

        Args:
            name: for people.
            values: of a type of the schema.
            scales: one, or one for each position of an axis; None where the numbers mean themselves.
            axis: which.
            zero: the integer that stands for 0.
        """
        made = self._tensor(name, values.shape, values.dtype.type, scales, zero, axis=axis)
        self.tensors[made].buffer = len(self.buffers)
        self.buffers.append(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes())
        return made

    def _tensor(
        self,
        name: str,
        shape: Sequence[int],
        kind: type,
        scales: ArrayLike | None,
        zero: int,
        *,
        axis: int = 0,
        signature: Sequence[int] | None = None,
    ) -> int:
        made = self.schema.TensorT()
        made.name, made.shape, made.shapeSignature = name.encode(), list(shape), signature and list(signature)
        made.type = getattr(self.schema.TensorType, np.dtype(kind).name.upper())
        if scales is not None:
            steps = made.quantization = self.schema.QuantizationParametersT()
            steps.scale = np.atleast_1d(np.asarray(scales, dtype=np.float32))
            steps.zeroPoint = np.full(len(steps.scale), zero, dtype=np.int64)
            steps.quantizedDimension = axis
        self.tensors.append(made)
        return len(self.tensors) - 1

    def emit(self, operator: str, inputs: Sequence[int], output: int, options: str = "", **fields: Any) -> int:
        """An operator; the tensor that it writes.

        Args:
            operator: its name in the schema.
            inputs: numbers of tensors.
            output: likewise.
            options: the name of its options in the schema.
            **fields: of those.
        """
        wide = self.tensors[output].type == self.schema.TensorType.INT16
        code = (operator, VERSIONS[operator][wide])
        if code not in self.codes:
            self.codes.append(code)
        made = self.schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = self.codes.index(code), list(inputs), [output]
        if options:
            made.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
            made.builtinOptions = getattr(self.schema, f"{options}T")()
            for name, value in fields.items():
                assert hasattr(made.builtinOptions, name), name
                setattr(made.builtinOptions, name, value)
        self.operators.append(made)
        return output

    def content(self, image: int, scores: int, description: str, metadata: Mapping[str, str]) -> bytes:
        """The whole file.

        Args:
            image: the tensor that is given.
            scores: the tensor that is returned.
            description: of the model.
            metadata: texts by name.
        """
        schema = self.schema
        model, graph = schema.ModelT(), schema.SubGraphT()
        graph.name, graph.tensors, graph.operators = b"main", self.tensors, self.operators
        graph.inputs, graph.outputs = [image], [scores]
        model.version, model.description, model.subgraphs = SCHEMA_VERSION, description.encode(), [graph]
        model.operatorCodes = [self._code(name, version) for name, version in self.codes]
        model.metadata = []
        for name, text in metadata.items():
            entry = schema.MetadataT()
            entry.name, entry.buffer = name.encode(), len(self.buffers)
            self.buffers.append(text.encode())
            model.metadata.append(entry)
        model.buffers = [_AlignedBuffer(schema, content) for content in self.buffers]
        builder = self.builders.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
        return bytes(builder.Output())

    def _code(self, operator: str, version: int) -> Any:
        made = self.schema.OperatorCodeT()
        made.builtinCode, made.version = getattr(self.schema.BuiltinOperator, operator), version
        made.deprecatedBuiltinCode = min(made.builtinCode, 127)
        return made


class _AlignedBuffer:
    """A constant's bytes, which the generated code would put anywhere."""

    def __init__(self, schema: Any, content: bytes | None) -> None:
        self.schema, self.content = schema, content

    def Pack(self, builder: Any) -> int:  # noqa: N802 - the generated code calls it
        data = None
        if self.content is not None:
            builder.StartVector(1, len(self.content), ALIGNMENT)
            for byte in reversed(self.content):
                builder.PrependByte(byte)
            data = builder.EndVector()
        self.schema.BufferStart(builder)
        if data is not None:
            self.schema.BufferAddData(builder, data)
        made: int = self.schema.BufferEnd(builder)
        return made
