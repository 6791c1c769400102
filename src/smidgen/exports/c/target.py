"""The target `c`: a header, a source file and an example program in C99."""

from __future__ import annotations

from pathlib import Path

from smidgen.errors import SmidgenError
from smidgen.exports.c.compiler import ARM, classify, code_bytes, compiled, find_source, require_compiler
from smidgen.exports.c.names import prefix
from smidgen.exports.c.package import PACKAGES, packaged
from smidgen.exports.quantized import Quantized
from smidgen.exports.target import Check, Source, arithmetic, compared
from smidgen.lowering.c.float32 import float32_code
from smidgen.lowering.c.int8 import int8_code
from smidgen.lowering.c.sizes import BITS
from smidgen.lowering.c.source import About, Code, files
from smidgen.lowering.memory import Plan, plan
from smidgen.trial import check_limit


class CTarget:
    """`<name>.h` and `<name>.c`, and `main.c`, which classifies IDX files with them."""

    def __init__(
        self,
        type: str | None = None,
        name: str | None = None,
        check: bool = True,
        bits: int | None = None,
        lean: bool = False,
        max_ram: int | None = None,
        package: str | None = None,
    ) -> None:
        self.type, self.name, self.checked = arithmetic(type), name, check
        if bits not in (None, *BITS):
            raise SmidgenError(f"--bits is {bits}; allowed: {', '.join(map(str, BITS))}")
        if lean and max_ram is not None:
            raise SmidgenError("--lean is as little memory as possible; leave out --max-ram")
        for option, given in (("bits", bits), ("lean", lean or None), ("max-ram", max_ram)):
            if given is not None and type != "int8":
                raise SmidgenError(f"--{option} is for --type int8; add that, or leave --{option} out")
        check_limit("ram", max_ram)
        if package not in (None, *PACKAGES):
            raise SmidgenError(f"--package is {package!r}; allowed: {', '.join(PACKAGES)}")
        self.package = package
        self.bits, self.lean, self.max_ram = bits, lean, max_ram
        self._code: Code | None = None
        self._quantized: Quantized | None = None
        self._plan: Plan | None = None

    def files(self, source: Source) -> dict[str, bytes]:
        """The three files, in a package if one is wanted.

        Raises:
            SmidgenError: the name is not an identifier in C, a layer cannot be expressed, or a check is wanted
                and there is no compiler.
        """
        name = prefix(self.name, source.run.trial.name)
        if self.checked:
            require_compiler()
        graph, run = source.graph, source.run
        if self.type == "int8":
            most = self.max_ram if self.max_ram is not None or self.lean else run.trial.goal.ram
            self._plan = plan(graph, most, lean=self.lean)
            self._quantized = Quantized(source, self.bits)
            code = int8_code(graph, self._quantized.network, self._plan)
        else:
            code = float32_code(graph)
        self._code = code
        about = About(
            name,
            f"{run.trial.name}: an image classifier of {graph.classes} classes",
            f"Trained with seed {run.seed}; sha256 of the weights {run.result.weights_sha256}.",
            graph.input_shape,
            graph.classes,
            graph.macs,
            run.trained.class_names,
        )
        made = files(code, about)
        return packaged(self.package, made, about, source.examples) if self.package else made

    def usage(self, source: Source) -> str:
        """In C."""
        name, (channels, height, width) = prefix(self.name, source.run.trial.name), source.graph.input_shape
        order = "rows from the top" + (", the channels of a pixel side by side" if channels > 1 else "")
        image = f"{channels * height * width} bytes, {order}"
        return (
            f'```c\n#include "{name}.h"\n\nstatic {name}_scratch scratch;\n\n'
            f"int label = {name}_classify(image, &scratch); /* image: {image} */\n```"
        )

    def check(self, source: Source, directory: Path) -> Check:
        """Compile the files without a warning and classify all test images with the program."""
        name = prefix(self.name, source.run.trial.name)
        with compiled(directory, name) as program:
            found = classify(program, source.images)
        assert self._code is not None
        details: dict[str, object] = {
            "bytes_of_weights": self._code.weight_bytes,
            "bytes_of_memory": self._code.scratch_bytes,
            **_code_sizes(find_source(directory, f"{name}.c")),
            "macs": source.graph.macs,
            "microseconds_an_image": found.microseconds,
        }
        if self._quantized and self._plan:
            channels, _, width = source.graph.shapes[0]
            details |= {
                "macs": self._plan.macs,
                "bytes_of_image_rows": self._plan.image_rows * channels * width,
            }
            return self._quantized.compared(found.scores, found.seconds, details, integers=True)
        return compared(source, found.scores, found.seconds, details=details)


def _code_sizes(source: Path) -> dict[str, int]:
    """Bytes of code compiled for size: for this machine, and for microcontrollers where their compiler is at hand."""
    sizes = {"bytes_of_code": code_bytes(source, require_compiler(), [])}
    for core, flags in ARM.items():
        sizes[f"bytes_of_code_{core}"] = code_bytes(source, ["arm-none-eabi-gcc"], flags, "arm-none-eabi-size")
    return {name: size for name, size in sizes.items() if size is not None}
