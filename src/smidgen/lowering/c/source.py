"""Assembles the files of a C export."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from smidgen.errors import SmidgenError
from smidgen.graph.ops import Operation, Pair, Pool, Shape
from smidgen.lowering.c.template import render
from smidgen.lowering.fused import Convolution
from smidgen.lowering.value_types import BYTES
from smidgen.version import VERSION

MOST_SIDE = 2**16 - 1
"""Sides and channels are 16 bits in the tables."""
MOST_VALUES = 2**31 - 1
"""Places in memory are 32 bits with a sign."""
LARGEST = float(np.finfo(np.float32).max)
WIDTH = 112
MOST_COMMENT = 200
"""Characters of a comment."""


@dataclass(frozen=True)
class Stream:
    """Rows of an image, one by one.

    Attributes:
        rows: of the image that are kept.
        push: lines of C that take the next row; `stream->seen` rows have come before it.
    """

    rows: int
    push: str


@dataclass
class Code:
    """The parts of a network in C that depend on the arithmetic.

    Attributes:
        arithmetic: its description, for the top of the header file.
        score: C type of a score.
        score_unit: what 1 of a score is in the network's unit, as C.
        score_format: arguments of printf for score `c` of `scores`.
        needs_math: whether math.h is called.
        kernels: static functions by name, in the order in which they were needed. In these, the tables and the
            steps, `$` begins a name of the source file's own: it becomes the export's prefix.
        tables: constants.
        steps: lines of the function that runs the network.
        functions: that call the kernels with the tables, in front of the one of the steps.
        scratch: C type, name and number of elements of each field of the scratch memory.
        stream: how the network is run while the image comes row by row; None where it must be whole.
        arrays: bytes of each table of constants, without the shapes, by name.
        order: a comment about what shares memory.
    """

    arithmetic: str
    score: str
    score_unit: str
    score_format: str
    needs_math: bool = False
    kernels: dict[str, str] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)
    scratch: list[tuple[str, str, int]] = field(default_factory=list)
    stream: Stream | None = None
    arrays: dict[str, int] = field(default_factory=dict)
    order: str = ""

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tables of constants, without the shapes."""
        return sum(self.arrays.values())

    @property
    def scratch_bytes(self) -> int:
        """Bytes of all fields: the widest come first, so only the end is padded."""
        used, widest = sum(BYTES[kind] * count for kind, _, count in self.scratch), BYTES[self.scratch[0][0]]
        return -(-used // widest) * widest

    def array(self, kind: str, name: str, values: NDArray[np.generic], comment: str = "") -> str:
        """A table of constants; gives its name in the source file."""
        flat = values.ravel()
        shown = [c_float(float(v)) for v in flat] if kind == "float" else [_integer(int(v)) for v in flat]
        lines = textwrap.fill(
            ", ".join(shown), WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False
        )
        about = f" /* {comment_text(comment)} */" if comment else ""
        self.tables.append(f"static const SMIDGEN_FLASH {kind} ${name}[{len(flat)}] = {{{about}\n{lines}\n}};")
        self.arrays[name] = BYTES[kind] * len(flat)
        return f"${name}"

    def kernel(self, fragment: str, name: str, values: Mapping[str, object], features: Collection[str] = ()) -> None:
        """A function of the source file's own, unless it is there; helpers come before those that call them."""
        if name not in self.kernels:
            self.kernels[name] = render(fragment, {"name": name, **values}, features)

    def struct(self, kernel: str, name: str, fields: Mapping[str, object]) -> None:
        """The table of a layer; members that are not given are 0.

        Args:
            kernel: that reads it, and has been added.
            name: of the table.
            fields: its members.
        """
        members = _members(self.kernels[kernel])
        assert set(fields) <= set(members), (kernel, set(fields) - set(members))
        # By position, as C++ knows no other way before C++20.
        shown = textwrap.fill(
            ", ".join(f"/* {member} */ {fields.get(member, 0)}" for member in members),
            WIDTH,
            initial_indent="    ",
            subsequent_indent="    ",
            break_on_hyphens=False,
        )
        self.tables.append(f"static const SMIDGEN_FLASH struct ${kernel}_layer ${name} = {{\n{shown}\n}};")

    def call(self, kernel: str, arguments: Sequence[object], comment: str = "") -> None:
        """A call of a kernel in the function that runs the network."""
        about = f" /* {comment_text(comment)} */" if comment else ""
        self.steps.append(f"    ${kernel}({', '.join(map(str, arguments))});{about}")


def _members(kernel: str) -> list[str]:
    """The members of the structure that a kernel declares, in their order."""
    (body,) = re.findall(r"^struct \S+ \{\n(.*?)^\};", kernel, re.DOTALL | re.MULTILINE)
    return re.findall(r"(\w+)\s*[,;]", re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL))


def c_float(value: float) -> str:
    """A float32 in nine decimal digits, which name it exactly; hexadecimal ones are new in C++17.

    An infinite limit becomes the largest finite number, which no finite value exceeds.
    """
    text = f"{max(-LARGEST, min(value, LARGEST)):.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def comment_text(text: str) -> str:
    """Any text as it can stand in a comment: ASCII, without what ends or begins one, and of bounded length."""
    plain = text.encode("unicode_escape").decode("ascii").replace("$", "\\x24")
    plain = plain if len(plain) <= MOST_COMMENT else plain[: MOST_COMMENT - 3] + "..."
    return re.sub(r"(?<=[*/?])(?=[*/?])", " ", plain)


def string(text: str) -> str:
    """Any text as a string literal of its UTF-8 bytes.

    Everything but plain ASCII is an octal escape, which ends after three digits whatever follows; so are quotation
    mark, backslash, and the question mark, two of which begin a trigraph.
    """
    plain = set(range(0x20, 0x7F)) - set(b'"\\?')
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in text.encode()) + '"'


def _integer(value: int) -> str:
    """An integer of 32 bits; the least has no literal of its own."""
    return "(-2147483647 - 1)" if value == -(2**31) else str(value)


def check_sizes(shapes: Sequence[Shape], operations: Sequence[Operation]) -> None:
    """Refuse layers that do not fit the tables.

    Raises:
        SmidgenError: names the layer.
    """
    for node in operations:
        pairs: tuple[Pair, ...] = (node.kernel, node.stride, node.padding) if isinstance(node, Pool) else ()
        if isinstance(node, Convolution):
            kernel = (node.weight.shape[2], node.weight.shape[3])
            pairs = (kernel, node.stride, node.padding, node.dilation, (node.groups, 1))
        numbers = [*shapes[node.output], *(n for pair in pairs for n in pair)]
        if max(numbers) > MOST_SIDE or int(np.prod(shapes[node.output])) > MOST_VALUES:
            raise SmidgenError(f"{node.name} is too large for C: sides and channels may be {MOST_SIDE:,} at most")


def shape_text(shape: Shape) -> str:
    """As in 26 x 26 x 10: rows, columns, channels."""
    channels, height, width = shape
    return f"{height} x {width} x {channels}"


@dataclass(frozen=True)
class About:
    """The description of the network in the files.

    Attributes:
        prefix: of identifiers and file names.
        title: one line that cannot end a comment.
        origin: of the weights, likewise.
        input_shape: channels, height, width.
        classes: number of scores.
        macs: multiply-accumulates for an image.
        class_names: of the scores, any text; none where classes are plain numbers.
    """

    prefix: str
    title: str
    origin: str
    input_shape: Shape
    classes: int
    macs: int
    class_names: tuple[str, ...] = ()


def files(code: Code, about: About) -> dict[str, bytes]:
    """The header, the source and the example program."""
    channels, height, width = about.input_shape
    values: dict[str, object] = {
        "prefix": about.prefix,
        "upper": about.prefix.upper(),
        "guard": f"{about.prefix.upper()}_H",
        "title": about.title,
        "origin": about.origin,
        "arithmetic": textwrap.fill(code.arithmetic, 110, subsequent_indent="   "),
        "math": " but libm's functions of floats" if code.needs_math else "",
        "libraries": " -lm" if code.needs_math else "",
        "polarity": "",
        "version": VERSION,
        "height": height,
        "width": width,
        "channels": channels,
        "pixels": channels * height * width,
        "classes": about.classes,
        "last": about.classes - 1,
        "weight_bytes": code.weight_bytes,
        "scratch_bytes": code.scratch_bytes,
        "macs": about.macs,
        "score": code.score,
        "score_unit": code.score_unit,
        "score_format": code.score_format,
        "scratch": "\n".join(f"    {kind} {name}[{count}];" for kind, name, count in code.scratch),
        "includes": "#include <math.h>\n" if code.needs_math else "",
        "kernels": "\n\n".join(code.kernels.values()),
        "tables": "\n\n".join(code.tables),
        "steps": "\n".join(code.steps),
        "functions": "\n\n".join(code.functions),
        "stream_rows": code.stream.rows if code.stream else 0,
        "push": code.stream.push if code.stream else "",
        "order": code.order,
        "names": ",\n".join(f"    {string(name)}" for name in about.class_names),
    }
    names = {"header.h": f"{about.prefix}.h", "source.c": f"{about.prefix}.c", "main.c": "main.c"}
    features = ({"names"} if about.class_names else set()) | ({"stream"} if code.stream else set())
    made = {name: _tidy(render(fragment, values, features)) for fragment, name in names.items()}
    source = f"{about.prefix}.c"
    made[source] = made[source].replace("$", f"{about.prefix}_")
    return {name: text.encode("ascii") for name, text in made.items()}


def _tidy(text: str) -> str:
    """At most one empty line in a row, and a newline at the end."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.strip() or (lines and lines[-1]):
            lines.append(line.rstrip())
    return "\n".join(lines) + "\n"
