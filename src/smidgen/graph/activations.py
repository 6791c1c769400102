"""The activations, a row each: all that trials, tracing, exports and pages need to know about one.

The native engine has its own list, with the kernels (`native/activations.h`), and is asked for one by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smidgen.trial import ActivationName


@dataclass(frozen=True)
class OnnxForm:
    """An activation in ONNX.

    Attributes:
        operator: its name, in the domain of ONNX itself.
        attributes: that are always the same.
        parameter_attributes: for those of the activation's parameters that are attributes, the name of each; the
            others are further inputs.
        times_input: whether the operator's result is multiplied by its input.
    """

    operator: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    parameter_attributes: Mapping[str, str] = field(default_factory=dict)
    times_input: bool = False


@dataclass(frozen=True)
class Call:
    """A PyTorch function that is an activation.

    Attributes:
        function: it.
        arguments: names of the function's arguments that are the activation's parameters.
        defaults: the activation's parameters where the call says nothing.
    """

    function: Callable[..., Tensor]
    arguments: tuple[str, ...] = ()
    defaults: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class ActivationKind:
    """A function of each value by itself.

    Attributes:
        name: in the graph and in the native engine.
        setting: how a trial calls it.
        title: for people.
        layer: makes the layer that a trial's network gets.
        evaluate: the function in PyTorch: a tensor and the parameters, one float each.
        modules: PyTorch's layers that are it.
        calls: PyTorch's functions that are it.
        methods: a tensor's methods that are it.
        parameters: names of its parameters.
        attributes: of the layers: where those hold them, in the same order.
        required: attributes of the layers, and arguments of the functions, that must have these values.
        c: expression in C99 for `x` and the parameters, float32.
        javascript: expression for `x` and the parameters.
        onnx: how ONNX says it.
    """

    name: str
    setting: ActivationName
    title: str
    layer: Callable[[], nn.Module]
    evaluate: Callable[..., Tensor]
    c: str
    javascript: str
    onnx: OnnxForm
    modules: tuple[type[nn.Module], ...]
    calls: tuple[Call, ...] = ()
    methods: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    required: Mapping[str, Any] = field(default_factory=dict)


RELU = ActivationKind(
    name="relu",
    setting="relu",
    title="ReLU",
    # In place is safe: neither convolution nor BatchNorm needs its output again.
    layer=lambda: nn.ReLU(inplace=True),
    evaluate=torch.relu,
    c="x > 0.0f ? x : 0.0f",
    javascript="x > 0 ? x : 0",
    onnx=OnnxForm("Relu"),
    modules=(nn.ReLU,),
    calls=(Call(torch.relu), Call(F.relu)),
    methods=("relu", "relu_"),
)
ACTIVATIONS: tuple[ActivationKind, ...] = (
    RELU,
    ActivationKind(
        name="leaky_relu",
        setting="leaky_relu",
        title="leaky ReLU",
        layer=nn.LeakyReLU,
        evaluate=F.leaky_relu,
        c="x > 0.0f ? x : x * slope",
        javascript="x > 0 ? x : x * slope",
        onnx=OnnxForm("LeakyRelu", parameter_attributes={"slope": "alpha"}),
        modules=(nn.LeakyReLU,),
        calls=(Call(F.leaky_relu, ("negative_slope",), (0.01,)),),
        parameters=("slope",),
        attributes=("negative_slope",),
    ),
    ActivationKind(
        name="clamp",
        setting="relu6",
        title="clamp",
        layer=nn.ReLU6,
        evaluate=torch.clamp,
        c="x < low ? low : x > high ? high : x",
        javascript="Math.min(Math.max(x, low), high)",
        onnx=OnnxForm("Clip"),
        modules=(nn.ReLU6, nn.Hardtanh),
        calls=(Call(F.relu6, (), (0.0, 6.0)), Call(F.hardtanh, ("min_val", "max_val"), (-1.0, 1.0))),
        parameters=("low", "high"),
        attributes=("min_val", "max_val"),
    ),
    ActivationKind(
        name="hardswish",
        setting="hardswish",
        title="hardswish",
        layer=nn.Hardswish,
        evaluate=F.hardswish,
        c="x <= -3.0f ? 0.0f : x >= 3.0f ? x : x * (x + 3.0f) / 6.0f",
        javascript="(x * Math.min(Math.max(x + 3, 0), 6)) / 6",
        onnx=OnnxForm("HardSwish"),
        modules=(nn.Hardswish,),
        calls=(Call(F.hardswish),),
    ),
    ActivationKind(
        name="gelu",
        setting="gelu",
        title="GELU",
        layer=lambda: nn.GELU(approximate="tanh"),
        evaluate=lambda x: F.gelu(x, approximate="tanh"),
        c="0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)))",
        javascript="0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)))",
        onnx=OnnxForm("Gelu", attributes={"approximate": "tanh"}),
        modules=(nn.GELU,),
        calls=(Call(F.gelu),),
        required={"approximate": "tanh"},
    ),
    ActivationKind(
        name="silu",
        setting="silu",
        title="SiLU",
        layer=nn.SiLU,
        evaluate=F.silu,
        c="x / (1.0f + expf(-x))",
        javascript="x / (1 + Math.exp(-x))",
        onnx=OnnxForm("Sigmoid", times_input=True),
        modules=(nn.SiLU,),
        calls=(Call(F.silu),),
    ),
    ActivationKind(
        name="sigmoid",
        setting="sigmoid",
        title="sigmoid",
        layer=nn.Sigmoid,
        evaluate=torch.sigmoid,
        c="1.0f / (1.0f + expf(-x))",
        javascript="1 / (1 + Math.exp(-x))",
        onnx=OnnxForm("Sigmoid"),
        modules=(nn.Sigmoid,),
        calls=(Call(torch.sigmoid), Call(F.sigmoid)),
        methods=("sigmoid",),
    ),
    ActivationKind(
        name="tanh",
        setting="tanh",
        title="tanh",
        layer=nn.Tanh,
        evaluate=torch.tanh,
        c="tanhf(x)",
        javascript="Math.tanh(x)",
        onnx=OnnxForm("Tanh"),
        modules=(nn.Tanh,),
        calls=(Call(torch.tanh), Call(F.tanh)),
        methods=("tanh",),
    ),
)
"""Every activation that a trial can have, and that tracing recognises."""

BY_SETTING: Mapping[ActivationName, ActivationKind] = {kind.setting: kind for kind in ACTIVATIONS}
"""By the name that a trial gives."""
