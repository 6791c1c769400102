"""A trial: the full recipe of a training with its goal, as one frozen value.

A later trial is made from an earlier one with `dataclasses.replace` and a new name, so what changed is
visible in the code and can be printed (`smidgen.settings.differences`); `Trial.base` records the earlier one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from smidgen.errors import SettingError, SmidgenError, TrialError
from smidgen.schedules import Constant, Schedule
from smidgen.settings import Settings, setting

ActivationName = Literal["relu", "leaky_relu", "relu6", "hardswish", "gelu", "silu", "sigmoid", "tanh"]
"""The activations of a trial's network; `smidgen.graph.activations` says what each is. GELU is the one by tanh."""
BUDGETS = {"parameters": "parameters", "epochs": "epochs", "flash": "bytes of flash", "ram": "bytes of RAM"}
"""The budgets of a goal by their settings, and what they are counted in."""
IN_BYTES = ("flash", "ram")
"""Those that are about C code in integers."""
MOST_CHANNELS = 4096
"""Bound on any layer's width, so that an untrusted trial cannot request unlimited memory."""


def check_limit(name: str, limit: int | None) -> None:
    """Check a limit that was given as `--max-NAME`.

    Raises:
        SmidgenError: it is not a whole number of at least 1; names the option.
    """
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise SmidgenError(f"--max-{name} is {limit}; allowed: a whole number, at least 1")


@dataclass(frozen=True)
class Goal(Settings):
    """The goal of a run. Accuracy is in percent of the test images, after the last epoch.

    Flash and RAM are what the network needs as C in integers (`smidgen export --to c --type int8`): the tables, which
    are all constants but the code's own, and the memory of a call beside the image. The export then takes the plan
    with the least work among those within `ram`, so that budget is met if there is one.
    """

    accuracy: float = setting(99.4, least=0, most=100, help="least test accuracy of the last epoch, percent")
    parameters: int = setting(7_999, least=1, help="most parameters, frozen ones included")
    epochs: int = setting(14, least=1, help="most epochs")
    flash: int | None = setting(
        None, least=1, later=True, help="most bytes of tables as C in integers; none: any number"
    )
    ram: int | None = setting(
        None, least=1, later=True, help="most bytes of memory as C in integers, beside the image; none: any number"
    )

    @property
    def budgets(self) -> dict[str, int]:
        """The limits that are set, by their names in `BUDGETS`."""
        limits = {name: getattr(self, name) for name in BUDGETS}
        return {name: limit for name, limit in limits.items() if limit is not None}

    @property
    def in_bytes(self) -> bool:
        """Whether there is a budget in bytes."""
        return not self.budgets.keys().isdisjoint(IN_BYTES)

    @property
    def budgets_text(self) -> str:
        """The limits for people, as in `7,999 parameters and 14 epochs`."""
        *parts, last = (f"{limit:,} {BUDGETS[name]}" for name, limit in self.budgets.items())
        return f"{', '.join(parts)} and {last}"


@dataclass(frozen=True)
class Data(Settings):
    """The images to train on and to evaluate on.

    With `evaluate="validation"` the last `validation` training images are held out for evaluation,
    the rest trained on, and the test images never touched: for tuning. Another `fold` holds out the
    block that lies so many blocks before. With `"test"` all training images are trained on. In image
    folders and the like, "last" is by the hash of each image; data with a validation split of their
    own hold out that, and never train on it.
    """

    source: str = setting("mnist", help="a bundled data set, or a path: images, IDX files, .npz or .csv")
    evaluate: Literal["test", "validation"] = setting("test", help="what the accuracy is measured on")
    validation: int = setting(6_000, least=1, help="training images held out for tuning")
    fold: int = setting(0, least=0, later=True, help="which block of so many is held out, 0 the last of them")
    shape: tuple[int, ...] | None = setting(
        None, least=1, most=4_096, later=True, help="channels, height, width of the images; none: the data's own"
    )
    form: Literal["auto", "drawing", "picture"] = setting(
        "auto", later=True, help="how files are brought to that form by predict: as MNIST's drawings, or as pictures"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shape is not None and (len(self.shape) != 3 or self.shape[0] not in (1, 3)):
            raise SettingError("Data.shape", list(self.shape), "channels (1 or 3), height and width")


@dataclass(frozen=True)
class Conv(Settings):
    """A convolution without bias, then (unless turned off) BatchNorm and an activation, then dropout.

    `channels=None` means one channel a class. Dropout follows only where there is an activation.
    """

    channels: int | None = setting(least=1, most=MOST_CHANNELS, help="output channels; none: one a class")
    kernel: int = setting(3, least=1, most=63, help="side of the square kernel, pixels")
    stride: int = setting(1, least=1, most=63)
    padding: int = setting(0, least=0, most=31, help="zero pixels added on each side")
    groups: int = setting(1, least=1, most=MOST_CHANNELS)
    norm: bool = setting(True, help="BatchNorm or none")
    activation: Literal[ActivationName, "none"] = setting("relu")


def separable(
    channels: int, outputs: int | None, *, kernel: int = 3, padding: int = 0, stride: int = 1
) -> tuple[Conv, Conv]:
    """A depthwise separable convolution: each channel separately, then 1×1 across channels.

    It needs `channels * (kernel² + outputs)` weights where a full convolution needs
    `channels * outputs * kernel²`. Between the two is neither BatchNorm nor an activation, as in
    Xception (Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", 2017).

    Args:
        channels: that come in.
        outputs: number of output channels; None: one a class, without BatchNorm and activation, as scores to average.
        kernel: side of the square kernel of the first, pixels.
        padding: zero pixels added on each side.
        stride: of the first, pixels.
    """
    return (
        Conv(channels, kernel=kernel, stride=stride, padding=padding, groups=channels, norm=False, activation="none"),
        Conv(None, kernel=1, norm=False, activation="none") if outputs is None else Conv(outputs, kernel=1),
    )


@dataclass(frozen=True)
class MaxPool(Settings):
    """Max pooling over squares of `size` × `size` pixels, without overlap."""

    size: int = setting(2, least=1, most=63)


@dataclass(frozen=True)
class AvgPool(Settings):
    """Average pooling over squares of `size` × `size` pixels; `size=None` pools the whole image."""

    size: int | None = setting(None, least=1, most=63)


@dataclass(frozen=True)
class Linear(Settings):
    """A fully connected layer on the flattened input; `features=None` means one output a class."""

    features: int | None = setting(None, least=1, most=MOST_CHANNELS)
    bias: bool = setting(True)
    activation: Literal[ActivationName, "none"] = setting("none")


Block = Conv | MaxPool | AvgPool | Linear


@dataclass(frozen=True)
class Network(Settings):
    """The blocks of the network, in order; the last gives one score a class.

    `order` says where BatchNorm stands in a convolution's block. Without `scale` it has a shift only: a scale costs a
    parameter a channel, and where ReLU and a convolution or linear layer follow, their weights can do the same.
    """

    type_implied = True

    blocks: tuple[Block, ...] = setting()
    order: Literal["norm-activation", "activation-norm"] = setting("norm-activation")
    scale: bool = setting(True, later=True, help="whether BatchNorm learns a scale, not only a shift")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.blocks:
            raise SettingError("Network.blocks", self.blocks, "at least one block")

    def __str__(self) -> str:
        return " ".join(_short(block) for block in self.blocks)


@dataclass(frozen=True, kw_only=True)
class Module(Settings):
    """A network from a Python file of the user's own; `smidgen.from_module` makes it.

    The file is named, not found: it is run only where the user names it (`smidgen.nets.code`).
    """

    file: str = setting(help="the file's name, without its folder")
    name: str = setting(help="of the class or function in it")
    sha256: str = setting(help="of the file")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[^/\\]{1,200}\.py", self.file) or not self.file.isprintable():
            raise SettingError("Module.file", self.file, "the name of a Python file, without its folder")
        if not self.name.isidentifier() or len(self.name) > 200:
            raise SettingError("Module.name", self.name, "the name of a class or function")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise SettingError("Module.sha256", self.sha256, "64 hexadecimal digits")

    def __str__(self) -> str:
        return f"{self.file}:{self.name}"


def _short(block: Block) -> str:
    """A block in one word: `conv10`, `conv10/1x1`, `maxpool2`, `gap`, `linear`."""
    match block:
        case Conv():
            marks = [f"conv{block.channels or ''}"]
            marks += [f"{block.kernel}x{block.kernel}"] * (block.kernel != 3)
            marks += [f"stride{block.stride}"] * (block.stride != 1)
            marks += [f"pad{block.padding}"] * (block.padding != 0)
            marks += [f"groups{block.groups}"] * (block.groups != 1)
            marks += ["plain"] * (not block.norm and block.activation == "none")
            marks += ["no-norm"] * (not block.norm and block.activation != "none")
            marks += ["no-activation"] * (block.norm and block.activation == "none")
            marks += [block.activation] * (block.activation not in ("relu", "none"))
            return "/".join(marks)
        case MaxPool():
            return f"maxpool{block.size}"
        case AvgPool():
            return f"avgpool{block.size}" if block.size else "gap"
        case Linear():
            activation = "" if block.activation == "none" else f"/{block.activation}"
            return f"linear{block.features or ''}" + ("" if block.bias else "/no-bias") + activation


@dataclass(frozen=True)
class Augmentation(Settings):
    """Random augmentation of the training images, drawn for each image and epoch.

    Every strength is the half-width of a uniform distribution around "unchanged"; 0 turns it off.
    Pixels from outside the image are black (0). Images are mirrored only where `flip` asks for
    it: a mirrored shoe is a shoe, but a mirrored digit is another sign.
    """

    rotation: float = setting(0.0, least=0, most=180, help="degrees")
    translation: float = setting(0.0, least=0, most=1, help="fraction of the side, drawn separately per axis")
    scale: float = setting(0.0, least=0, below=1, help="0.1 draws a factor from 0.9 to 1.1")
    shear: float = setting(0.0, least=0, most=2, help="pixels sideways for each pixel of height")
    elastic: float = setting(0.0, least=0, most=64, help="root-mean-square displacement on each axis, pixels")
    elastic_smoothness: float = setting(4.0, least=0.5, most=16, help="s.d. of the smoothing Gaussian, pixels")
    interpolation: Literal["nearest", "bilinear"] = setting("bilinear")
    flip: float = setting(0.0, least=0, most=1, later=True, help="share of images mirrored left to right")

    @property
    def affine(self) -> bool:
        """Whether any affine augmentation is on, mirroring included."""
        return bool(self.rotation or self.translation or self.scale or self.shear or self.flip)

    @property
    def is_on(self) -> bool:
        """Whether any augmentation is on."""
        return self.affine or self.elastic > 0


@dataclass(frozen=True, kw_only=True)
class SGD(Settings):
    """Stochastic gradient descent with momentum, as `torch.optim.SGD` does it."""

    type_name = "sgd"

    lr: float = setting(above=0, most=1_000, help="learning rate; the peak, where the schedule has one")
    momentum: float = setting(0.9, least=0, below=1)
    nesterov: bool = setting(False)
    weight_decay: float = setting(0.0, least=0, most=10, help="on weights, never on biases or BatchNorm")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.momentum == 0:
            raise SettingError("SGD.nesterov", True, "false where momentum is 0")


@dataclass(frozen=True, kw_only=True)
class Adam(Settings):
    """Adam (Kingma and Ba 2014), as `torch.optim.Adam` does it; weight decay adds to the gradient."""

    lr: float = setting(above=0, most=1_000, help="learning rate; the peak, where the schedule has one")
    beta1: float = setting(0.9, least=0, below=1)
    beta2: float = setting(0.999, least=0, below=1)
    weight_decay: float = setting(0.0, least=0, most=10, help="on weights, never on biases or BatchNorm")


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017), as `torch.optim.AdamW` does it."""

    type_name = "adamw"


@dataclass(frozen=True, kw_only=True)
class FullMatrixAdam(Settings):
    """Adam whose second moments are a whole matrix, not its diagonal, for at most 4,096 trained parameters.

    Where AdamW divides each parameter's step by the root of its mean squared gradient, this multiplies the step of all
    parameters by the inverse root of the mean of their gradients' products: full-matrix AdaGrad (Duchi, Hazan and
    Singer, JMLR 2011) with decaying means and decoupled weight decay as in AdamW, and Nesterov's momentum. Steep
    directions need not agree with the axes. The first nine steps only gather gradients.
    """

    lr: float = setting(above=0, most=1_000, help="learning rate; the peak, where the schedule has one")
    beta1: float = setting(0.9, least=0, below=1)
    beta2: float = setting(0.999, least=0, below=1)
    epsilon: float = setting(0.01, above=0, most=1_000, help="added to each eigenvalue, as a share of their mean")
    every: int = setting(200, least=10, most=100_000, help="steps from one root of the matrix to the next, tens only")
    weight_decay: float = setting(0.0, least=0, most=10, help="on weights, never on biases or BatchNorm")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every % 10:
            raise SettingError("FullMatrixAdam.every", self.every, "a multiple of 10")


@dataclass(frozen=True, kw_only=True)
class SOAP(Settings):
    """Adam in the eigenbases of Shampoo (Vyas et al. 2024, arXiv:2409.11321), with Nesterov's momentum.

    AdamW's step, taken for each weight, as a matrix with a row for each output, along axes of the rows and of the
    columns in which its gradients are uncorrelated. Biases and BatchNorm's scale and shift are updated by Adam. Sides
    longer than 512 are not rotated. `smidgen.engines.soap` has the formulas, and where they differ from the paper's.
    """

    type_name = "soap"

    lr: float = setting(above=0, most=1_000, help="learning rate; the peak, where the schedule has one")
    beta1: float = setting(0.9, least=0, below=1)
    beta2: float = setting(0.999, least=0, most=0.9999)
    every: int = setting(100, least=1, most=100_000, help="steps from one set of axes to the next")
    weight_decay: float = setting(0.0, least=0, most=10, help="on weights, never on biases or BatchNorm")


Optimizer = SGD | Adam | AdamW | FullMatrixAdam | SOAP


LONGEST_LINEAGE = 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Quantization(Settings):
    """Weights of few bits: the last epochs train a network whose weights are rounded, and so it is evaluated and kept.

    `smidgen export --to c --type int8` then has those weights exactly, in 4 bits if they fit.
    """

    weights: int = setting(4, least=2, most=8, help="bits of a weight, sign included")
    epochs: int = setting(2, least=1, help="how many of the epochs, at the end, see rounded weights")


@dataclass(frozen=True, kw_only=True)
class Trial(Settings):
    """A full recipe with its goal.

    Two runs of one trial with one seed, on one machine with one engine and the same versions,
    give the same weights to the last byte.

    `dataclasses.replace(trial, name="new", ...)` records the name of the trial that the new one was made
    from; reports compare the two.
    """

    name: str = setting(help="letters, digits, '.', '_' and '-'; names the run directory")
    note: str = setting("", help="one line for people: what this trial is about")
    goal: Goal = Goal()
    data: Data = Data()
    network: Network | Module
    augmentation: Augmentation = Augmentation()
    dropout: float = setting(0.0, least=0, below=1, help="rate after every convolution with an activation")
    optimizer: Optimizer
    schedule: Schedule = Constant()
    batch_size: int = setting(128, least=2, most=60_000)
    epochs: int = setting(least=1, most=100_000)
    averaging: float = setting(
        0.0, least=0, below=1, help="decay per step of the averaged weights used for evaluation; 0: no averaging"
    )
    label_smoothing: float = setting(0.0, least=0, below=1)
    recalibration: float = setting(
        0.0,
        least=0,
        below=1,
        later=True,
        help="share of the last epoch's images used, without augmentation, only to recompute BatchNorm's statistics",
    )
    initial_weights: Literal["pytorch", "he"] = setting(
        "pytorch", later=True, help="of convolutions: PyTorch's default, or normal with variance 2 / fan-in"
    )
    quantization: Quantization | None = setting(
        None, later=True, help="whether the last epochs train with weights of few bits; none: float32"
    )
    lineage: tuple[str, ...] = setting(
        (),
        record=True,
        help="names of the trials that it was derived from, oldest first, and its own; recorded automatically",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for path, name in (("name", self.name), *((f"lineage.{i}", name) for i, name in enumerate(self.lineage))):
            if not _NAME.fullmatch(name):
                raise SettingError(f"Trial.{path}", name, "1 to 64 letters, digits, '.', '_' and '-'")
        # `replace` hands on the lineage of the old trial, which ends in the old name.
        if self.lineage[-1:] != (self.name,):
            object.__setattr__(self, "lineage", (*self.lineage, self.name)[-LONGEST_LINEAGE:])
        if len(self.note) > 1_000 or not self.note.isprintable():
            raise SettingError("Trial.note", self.note, "one line of at most 1,000 characters")

    @property
    def base(self) -> str | None:
        """The name of the trial that it was made from, if any."""
        return self.lineage[-2] if len(self.lineage) > 1 else None

    @property
    def recipe_digest(self) -> str:
        """SHA-256 (hex) of everything that shapes the weights or the verdict: all but name, note and lineage."""
        return self.digest(leave_out=frozenset({"name", "note"}))

    def check_budgets(self, parameters: int) -> None:
        """Refuse a trial that its own goal rules out, before any time is spent on it.

        Args:
            parameters: of the trial's network, frozen ones too.

        Raises:
            TrialError: more parameters or epochs than the goal allows.
        """
        goal = self.goal
        if parameters > goal.parameters:
            raise TrialError(
                f"{self.name} is over budget: {parameters:,} parameters, at most {goal.parameters:,} "
                f"allowed; make the network smaller, or raise goal.parameters"
            )
        if self.epochs > goal.epochs:
            raise TrialError(
                f"{self.name} is over budget: {self.epochs} epochs, at most {goal.epochs} allowed; "
                f"train for fewer (--epochs {goal.epochs}), or raise goal.epochs"
            )
