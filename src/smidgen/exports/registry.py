"""The targets by name. A target's module is loaded when it is asked for: some need libraries that few have."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping

from smidgen.errors import SmidgenError
from smidgen.exports.target import Target
from smidgen.settings import suggestion

Option = str | int | bool | None

TARGETS = {
    "safetensors": "smidgen.exports.weights:WeightsTarget",
    "onnx": "smidgen.exports.onnx_file:OnnxTarget",
    "tflite": "smidgen.exports.tflite_file:TfliteTarget",
    "c": "smidgen.exports.c.target:CTarget",
    "page": "smidgen.exports.page:PageTarget",
}
"""Where each target's class is; it is called with the options that it takes."""


def make_target(name: str, options: Mapping[str, Option]) -> Target:
    """A target by name, with its options.

    Raises:
        SmidgenError: the target does not exist, or does not accept an option.
    """
    if name not in TARGETS:
        raise SmidgenError(f"no target {name!r}; {suggestion(name, TARGETS)}there are: {', '.join(TARGETS)}")
    module, _, kind = TARGETS[name].partition(":")
    make = getattr(importlib.import_module(module), kind)
    given = {
        option: value for option, value in options.items() if value is not None and value is not (option == "check")
    }
    taken = inspect.signature(make).parameters
    for option in given:
        if option not in taken and option != "check":
            raise SmidgenError(f"--{option.replace('_', '-')} is not for --to {name}; leave it out")
    target: Target = make(**{option: value for option, value in given.items() if option in taken})
    return target
