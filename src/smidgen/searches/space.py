"""The search space: networks and recipes, and the trial of each choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from smidgen.errors import SettingError
from smidgen.schedules import Cosine, OneCycle, Schedule
from smidgen.settings import Settings, check_value, setting
from smidgen.trial import (
    SGD,
    SOAP,
    AdamW,
    Augmentation,
    AvgPool,
    Block,
    Conv,
    FullMatrixAdam,
    Linear,
    MaxPool,
    Network,
    Optimizer,
    Trial,
    separable,
)


@dataclass(frozen=True)
class Integers(Settings):
    """Whole numbers from `low` to `high`, both included, in steps."""

    low: int = setting(least=0, most=10_000)
    high: int = setting(least=0, most=10_000)
    step: int = setting(1, least=1, most=10_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        _ordered(self.low, self.high, "Integers.high")
        if (self.high - self.low) % self.step:
            raise SettingError("Integers.high", self.high, f"a whole number of steps of {self.step} above {self.low}")


@dataclass(frozen=True)
class Reals(Settings):
    """Numbers from `low` to `high`; with `log` evenly by their logarithm."""

    low: float = setting(least=0, most=10_000)
    high: float = setting(least=0, most=10_000)
    log: bool = setting(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        _ordered(self.low, self.high, "Reals.high")
        if self.log and self.low == 0:
            raise SettingError("Reals.low", self.low, "above 0 where log is true")


@dataclass(frozen=True)
class Numbers(Settings):
    """One of some numbers, without an order among them."""

    options: tuple[float, ...] = setting()

    def __post_init__(self) -> None:
        super().__post_init__()
        _distinct(self.options, "Numbers.options")


@dataclass(frozen=True)
class Words(Settings):
    """One of some words; which ones there are is said where it is used."""

    options: tuple[str, ...] = setting()

    def __post_init__(self) -> None:
        super().__post_init__()
        _distinct(self.options, "Words.options")


def _ordered(low: float, high: float, path: str) -> None:
    if low > high:
        raise SettingError(path, high, f"at least low, which is {low}")


def _distinct(options: tuple[object, ...], path: str) -> None:
    if not options or len(set(options)) != len(options):
        raise SettingError(path, list(options), "at least one, and each once")


_WORDS = {
    "widths": ("stage", "each"),
    "kind": ("plain", "separable"),
    "pool": ("max", "average", "stride"),
    "squeeze": ("no", "yes"),
    "head": ("linear", "convolution", "separable"),
    "order": ("norm-activation", "activation-norm"),
    "norm_scale": ("yes", "no"),
    "optimizer": ("sgd", "adamw", "full-matrix-adam", "soap"),
    "schedule": ("one-cycle", "cosine"),
}


_FEEDS: dict[str, tuple[tuple[type[Settings], str, int], ...]] = {
    **{name: ((Augmentation, name, 1),) for name in ("rotation", "translation", "scale", "shear", "elastic", "flip")},
    **{name: ((Trial, name, 1),) for name in ("averaging", "label_smoothing", "dropout")},
    "lr": ((SGD, "lr", 1),),
    "adamw_lr": ((AdamW, "lr", 1),),
    "full_matrix_lr": ((FullMatrixAdam, "lr", 1),),
    "soap_lr": ((SOAP, "lr", 1),),
    "weight_decay": ((SGD, "weight_decay", 1), (AdamW, "weight_decay", 10), (FullMatrixAdam, "weight_decay", 10)),
    "rise": ((OneCycle, "rise", 1), (Cosine, "warmup", 1)),
}
"""The settings that a dimension of numbers is for, and what it is multiplied by; whose bounds it must keep."""


def _ends(dimension: Reals | Numbers) -> list[tuple[str, float]]:
    """Where values of a dimension stand between which all others lie, and they."""
    if isinstance(dimension, Numbers):
        return [("options", min(dimension.options)), ("options", max(dimension.options))]
    return [("low", shortened(dimension.low)), ("high", shortened(dimension.high))]


def shortened(value: float) -> float:
    """A chosen number: four digits are plenty, and read better in a trial file."""
    return float(f"{value:.4g}")


@dataclass(frozen=True)
class Space(Settings):
    """The dimensions of a search and their ranges. A dimension with a single value is fixed.

    A network is made of stages of convolutions with a halving of the image between them; it ends with a
    global average pooling and a linear layer, or a convolution to the classes and the pooling.
    """

    stages: tuple[Integers, ...] = setting((Integers(1, 4), Integers(1, 4)), help="convolutions in each stage")
    width: Integers = setting(Integers(4, 20, 2), help="channels of a convolution; twice as many where separable")
    widths: Words = setting(Words(("stage", "each")), help="one for all convolutions of a stage, or each its own")
    kind: Words = setting(Words(("plain", "separable")), help="plain, or separable after the first convolution")
    padding: Integers = setting(Integers(0, 0), help="of 3 x 3 convolutions, pixels")
    pool: Words = setting(Words(("max", "average")), help="or stride: the stage's first convolution takes steps of 2")
    squeeze: Words = setting(Words(("no", "yes")), help="whether a 1 x 1 convolution follows each halving")
    head: Words = setting(Words(("linear", "convolution")), help="linear, or a convolution, 1 x 1 or separable")
    order: Words = setting(Words(("norm-activation", "activation-norm")))
    norm_scale: Words = setting(Words(("yes",)), later=True, help="whether BatchNorm learns a scale: yes or no")
    optimizer: Words = setting(Words(("sgd",)), help="sgd, adamw, soap or, up to 4,096 parameters, full-matrix-adam")
    lr: Reals = setting(Reals(0.02, 0.4, True), help="peak learning rate of SGD with Nesterov momentum 0.9")
    adamw_lr: Reals = setting(Reals(0.002, 0.05, True), help="peak learning rate of AdamW")
    full_matrix_lr: Reals = setting(Reals(0.01, 0.05, True), later=True, help="peak learning rate of full-matrix-adam")
    soap_lr: Reals = setting(Reals(0.003, 0.02, True), later=True, help="peak learning rate of soap")
    weight_decay: Reals = setting(Reals(1e-5, 1e-3, True))
    schedule: Words = setting(Words(("one-cycle",)), help="one-cycle or cosine")
    rise: Reals = setting(Reals(0.1, 0.4), help="fraction of the steps on the way up")
    batch_size: Numbers = setting(Numbers((32, 64, 128)))
    averaging: Numbers = setting(Numbers((0.0, 0.998, 0.999)), help="decay a step; 0: none")
    label_smoothing: Reals = setting(Reals(0.0, 0.05))
    dropout: Reals = setting(Reals(0.0, 0.0))
    rotation: Reals = setting(Reals(4.0, 14.0), help="degrees")
    translation: Reals = setting(Reals(0.03, 0.11), help="fraction of the side")
    scale: Reals = setting(Reals(0.0, 0.16))
    shear: Reals = setting(Reals(0.0, 0.2))
    elastic: Reals = setting(Reals(0.0, 0.0), help="root-mean-square displacement, pixels")
    flip: Reals = setting(Reals(0.0, 0.0), later=True, help="share of images mirrored; only where that means the same")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= len(self.stages) <= 5:
            raise SettingError("Space.stages", f"{len(self.stages)} items", "1 to 5 items")
        if self.width.low < 1:
            raise SettingError("Space.width.low", self.width.low, "at least 1")
        for name, known in _WORDS.items():
            for word in getattr(self, name).options:
                if word not in known:
                    raise SettingError(f"Space.{name}.options", word, ", ".join(known))
        for batch in self.batch_size.options:
            if batch != int(batch):
                raise SettingError("Space.batch_size.options", batch, "whole numbers")
            check_value(Trial, "batch_size", int(batch), "Space.batch_size.options")
        kinds = {*_WORDS["optimizer"], *_WORDS["schedule"]}
        unused = kinds - {*self.optimizer.options, *self.schedule.options}
        for name, fields in _FEEDS.items():
            for kind, field, factor in fields:
                dimension: Reals | Numbers = getattr(self, name)
                for end, value in _ends(dimension) if kind.type_name not in unused else ():
                    check_value(kind, field, factor * value, f"Space.{name}.{end}")
        twice = 1 + ("separable" in self.kind.options)
        check_value(Conv, "channels", twice * self.width.high, "Space.width.high")
        check_value(Conv, "padding", self.padding.high, "Space.padding.high")


class Choose(Protocol):
    """Decides each dimension by its name, the same name always within the same bounds."""

    def integer(self, name: str, among: Integers) -> int:
        """A whole number."""

    def real(self, name: str, among: Reals) -> float:
        """A number."""

    def number(self, name: str, among: Numbers) -> float:
        """One of the numbers."""

    def word(self, name: str, among: Words) -> str:
        """One of the words."""


def make_trial(space: Space, choose: Choose, base: Trial) -> Trial:
    """The trial that choices make of a base, which gives the name, the goal, the data and the epochs.

    Args:
        space: what is varied.
        choose: decides.
        base: gives the rest.
    """
    return replace(
        base,
        network=_network(space, choose),
        augmentation=Augmentation(
            rotation=choose.real("rotation", space.rotation),
            translation=choose.real("translation", space.translation),
            scale=choose.real("scale", space.scale),
            shear=choose.real("shear", space.shear),
            elastic=choose.real("elastic", space.elastic),
            flip=choose.real("flip", space.flip),
        ),
        dropout=choose.real("dropout", space.dropout),
        optimizer=_optimizer(space, choose),
        schedule=_schedule(space, choose),
        batch_size=int(choose.number("batch_size", space.batch_size)),
        averaging=choose.number("averaging", space.averaging),
        label_smoothing=choose.real("label_smoothing", space.label_smoothing),
    )


def _network(space: Space, choose: Choose) -> Network:
    kind = choose.word("kind", space.kind)
    padding = choose.integer("padding", space.padding)
    pool = choose.word("pool", space.pool) if len(space.stages) > 1 else "max"
    shared = choose.word("widths", space.widths) == "stage"
    squeeze = choose.word("squeeze", space.squeeze) == "yes" if len(space.stages) > 1 else False
    blocks: list[Block] = []
    channels = 0
    for stage, count in enumerate(space.stages, 1):
        convolutions = choose.integer(f"stage{stage}", count)
        if stage > 1:
            if pool == "max":
                blocks.append(MaxPool(2))
            elif pool == "average":
                blocks.append(AvgPool(2))
            if squeeze:
                channels = choose.integer(f"squeeze{stage}", space.width)
                blocks.append(Conv(channels, kernel=1))
        width = choose.integer(f"width{stage}", space.width) if shared else 0
        for number in range(1, convolutions + 1):
            stride = 2 if stage > 1 and number == 1 and pool == "stride" else 1
            if not shared:
                width = choose.integer(f"width{stage}-{number}", space.width)
            if kind == "separable" and channels:
                blocks += separable(channels, 2 * width, padding=padding, stride=stride)
                channels = 2 * width
            else:
                blocks.append(Conv(width, stride=stride, padding=padding))
                channels = width
    match choose.word("head", space.head):
        case "linear":
            blocks += [AvgPool(), Linear()]
        case "separable":
            blocks += [*separable(channels, None, padding=padding), AvgPool()]
        case _:
            blocks += [Conv(None, kernel=1, norm=False, activation="none"), AvgPool()]
    order = choose.word("order", space.order)
    scale = choose.word("norm_scale", space.norm_scale) == "yes"
    return Network(tuple(blocks), "activation-norm" if order == "activation-norm" else "norm-activation", scale)


def _optimizer(space: Space, choose: Choose) -> Optimizer:
    decay = choose.real("weight_decay", space.weight_decay)
    # Decoupled, the decay acts times the rate, which is smaller there: ten times as much is alike, and with soap, whose
    # rate is smaller still and which bears more of it (docs/log.md), a hundred times.
    match choose.word("optimizer", space.optimizer):
        case "adamw":
            return AdamW(lr=choose.real("adamw_lr", space.adamw_lr), weight_decay=10 * decay)
        case "full-matrix-adam":
            return FullMatrixAdam(lr=choose.real("full_matrix_lr", space.full_matrix_lr), weight_decay=10 * decay)
        case "soap":
            return SOAP(lr=choose.real("soap_lr", space.soap_lr), weight_decay=min(100 * decay, 10))
    return SGD(lr=choose.real("lr", space.lr), momentum=0.9, nesterov=True, weight_decay=decay)


def _schedule(space: Space, choose: Choose) -> Schedule:
    kinds: dict[str, Callable[[float], Schedule]] = {
        "one-cycle": lambda rise: OneCycle(rise=rise),
        "cosine": lambda rise: Cosine(warmup=rise),
    }
    return kinds[choose.word("schedule", space.schedule)](choose.real("rise", space.rise))
