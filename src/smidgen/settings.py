"""Frozen, validated values that go to JSON and back: what a trial is made of.

A subclass of `Settings` is a frozen dataclass whose fields are checked at construction against
their annotation and the limits given with `setting(...)`. The same annotations drive reading
from JSON, `--set path=value` and the comparison of two values.

Annotations understood: `int`, `float`, `bool`, `str`, `Literal[...]`, another `Settings`, a union
of `Settings` (told apart in JSON by `"type"`), `X | None`, and `tuple[X, ...]`.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin

from smidgen.errors import SettingError, SmidgenError

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

LONGEST_TUPLE = 256
"""The most items in any tuple setting; a bound for files from anywhere."""


def setting(
    default: Any = dataclasses.MISSING,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    help: str = "",
    later: bool = False,
    record: bool = False,
) -> Any:
    """A dataclass field with limits: `least` and `most` inclusive, `above` and `below` exclusive.

    For a tuple the limits hold for each item. A field that came `later` than the values whose digests
    are on disk counts in a digest only where it is not at its default, so that those stay valid.
    A `record` states where a value comes from: it is kept in JSON, and left out of digests, differences and equality.
    """
    metadata = {
        "least": least, "most": most, "above": above, "below": below, "help": help, "later": later, "record": record
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata, compare=not record)


@dataclass(frozen=True)
class Settings:
    """Base of all settings; checks every field at construction.

    Where a part comes in kinds, JSON names the kind by its `type_name`, except for one that is
    `type_implied`: it was there before the others, and its JSON stays as it was.

    Raises:
        SettingError: names the field, the value and what is allowed.
    """

    type_name: ClassVar[str] = ""
    type_implied: ClassVar[bool] = False
    _resolved: ClassVar[dict[str, tuple[dataclasses.Field[Any], Any]]]

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "type_name" not in cls.__dict__:
            cls.type_name = _kebab(cls.__name__)

    def __post_init__(self) -> None:
        for field, annotation in _fields(type(self)).values():
            value = _checked(
                getattr(self, field.name), annotation, field.metadata, f"{type(self).__name__}.{field.name}"
            )
            object.__setattr__(self, field.name, value)

    def to_json(self) -> dict[str, Json]:
        """The value as plain JSON data; `from_json` gives it back equal."""
        return {
            name: _to_json(getattr(self, name), annotation) for name, (_, annotation) in _fields(type(self)).items()
        }

    @classmethod
    def from_json(cls, data: object, path: str = "") -> Self:
        """Read a value from JSON data.

        Args:
            data: what `json.loads` gave.
            path: where in the whole this value stands, for messages.

        Raises:
            SettingError: an unknown or missing name, or a value that is not allowed.
        """
        return _settings_from_json(cls, data, path, frozenset())

    def digest(self, leave_out: frozenset[str] = frozenset()) -> str:
        """SHA-256 (hex) of the canonical JSON, without the top-level names in `leave_out`."""
        kept = {name: value for name, value in _identity(self).items() if name not in leave_out}
        return hashlib.sha256(canonical_json(kept).encode()).hexdigest()


def check_value(kind: type[Settings], name: str, value: object, path: str) -> None:
    """Check a value as a field of some settings would be.

    Args:
        kind: the settings.
        name: of the field.
        value: that it could have.
        path: where the value stands, for the message.

    Raises:
        SettingError: the field could not have this value.
    """
    field, annotation = _fields(kind)[name]
    _checked(value, annotation, field.metadata, path)


AnySettings = TypeVar("AnySettings", bound=Settings)


def canonical_json(data: Json) -> str:
    """JSON text that is the same for equal data: sorted names, no spaces, no NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def with_settings(value: AnySettings, assignments: typing.Iterable[str]) -> AnySettings:
    """A copy of `value` with each `path=text` applied, in order.

    `path` addresses a setting by names and, in tuples, by index: `network.blocks.0.channels=12`.
    The text is read as the setting's type: a number, a word, `true`/`false`, `none`, or JSON.
    A part that comes in kinds (optimizer, schedule) changes kind by its name: `optimizer=adamw`;
    settings that both kinds have keep their values.

    Raises:
        SettingError: a path that does not exist (with a suggestion) or a value that is not allowed.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path.strip():
            raise SmidgenError(f"--set {assignment!r} must have the form path=value, as in optimizer.lr=0.05")
        data = value.to_json()
        if "." not in path and path.strip() not in data:
            deeper = [p for p in _paths(data, "") if p.endswith("." + path.strip())]
            if deeper:
                raise SmidgenError(
                    f"there is no setting {path.strip()!r}; did you mean {' or '.join(map(repr, deeper[:3]))}?"
                )
        _assign(data, type(value), path.strip().split("."), text.strip(), "")
        value = type(value).from_json(data)
    return value


def differences(old: Settings, new: Settings) -> list[tuple[str, Json, Json]]:
    """Differences of two values: `(path, old, new)`, with parts of different kinds as a whole."""
    return _differences(_without_records(old), _without_records(new), "")


def suggestion(name: str, known: typing.Iterable[str]) -> str:
    """`did you mean 'x'? ` for a name close to a known one, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? " if close else ""


# How annotations are read.


def _fields(cls: type[Settings]) -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    """The fields of a class with their annotations, by name; resolved once a class."""
    if "_resolved" not in cls.__dict__:
        hints = typing.get_type_hints(cls)
        cls._resolved = {field.name: (field, hints[field.name]) for field in dataclasses.fields(cls)}
    return cls._resolved


def _kinds(annotation: Any) -> dict[str, type[Settings]]:
    """The `Settings` classes in an annotation, by their `type` in JSON."""
    members = get_args(annotation) if _is_union(annotation) else (annotation,)
    return {m.type_name: m for m in members if isinstance(m, type) and issubclass(m, Settings)}


def _implied(kinds: typing.Mapping[str, type[Settings]]) -> str | None:
    """The kind of JSON that names none."""
    return next((name for name, kind in kinds.items() if kind.type_implied), None)


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (typing.Union, types.UnionType)


def _optional(annotation: Any) -> bool:
    return _is_union(annotation) and type(None) in get_args(annotation)


def _without_none(annotation: Any) -> Any:
    if not _optional(annotation):
        return annotation
    rest = tuple(a for a in get_args(annotation) if a is not type(None))
    return rest[0] if len(rest) == 1 else typing.Union[rest]  # noqa: UP007 - built at run time


def _kebab(name: str) -> str:
    return "".join("-" + c.lower() if c.isupper() and i else c.lower() for i, c in enumerate(name))


# Checking.


def _checked(value: object, annotation: Any, limits: typing.Mapping[str, Any], path: str) -> object:
    """`value`, an integer made float where a float is wanted; raises `SettingError` if not allowed."""
    if _optional(annotation):
        if value is None:
            return None
        annotation = _without_none(annotation)
    kinds = _kinds(annotation)
    if kinds:
        if isinstance(value, tuple(kinds.values())):
            return value
        raise SettingError(path, value, " or ".join(kind.__name__ for kind in kinds.values()))
    if get_origin(annotation) is tuple:
        if not isinstance(value, tuple | list):
            raise SettingError(path, value, "a sequence")
        if len(value) > LONGEST_TUPLE:
            raise SettingError(path, f"{len(value)} items", f"at most {LONGEST_TUPLE} items")
        item = get_args(annotation)[0]
        return tuple(_checked(v, item, limits, f"{path}.{i}") for i, v in enumerate(value))
    if annotation is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        value = float(value)
    allowed = _allowed(annotation, limits)
    if get_origin(annotation) is Literal:
        good = value in get_args(annotation)
    elif annotation is int or annotation is float:
        good = type(value) is annotation and _within(typing.cast("float", value), limits)
    else:
        good = isinstance(value, annotation)
    if not good:
        raise SettingError(path, value, allowed)
    return value


def _within(value: float, limits: typing.Mapping[str, Any]) -> bool:
    try:
        if not math.isfinite(value):
            return False
    except OverflowError:  # a whole number beyond any float
        return False
    least, most, above, below = (limits.get(name) for name in ("least", "most", "above", "below"))
    return (
        (least is None or value >= least)
        and (most is None or value <= most)
        and (above is None or value > above)
        and (below is None or value < below)
    )


def _allowed(annotation: Any, limits: typing.Mapping[str, Any]) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(str(choice) for choice in get_args(annotation))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    text = words.get(annotation, str(annotation))
    named = (("above", "above"), ("least", "at least"), ("below", "below"), ("most", "at most"))
    bounds = [f"{word} {limits[name]:,}" for name, word in named if limits.get(name) is not None]
    return " ".join([text, " and ".join(bounds)]).strip()


# JSON.


def _identity(value: Settings) -> dict[str, Json]:
    """As `Settings.to_json`, without records and without later fields that are at their defaults."""
    return {
        name: _to_json(getattr(value, name), annotation, _identity)
        for name, (field, annotation) in _fields(type(value)).items()
        if not (field.metadata.get("record") or (field.metadata.get("later") and getattr(value, name) == field.default))
    }


def _without_records(value: Settings) -> dict[str, Json]:
    """As `Settings.to_json`, without fields that are records."""
    return {
        name: _to_json(getattr(value, name), annotation, _without_records)
        for name, (field, annotation) in _fields(type(value)).items()
        if not field.metadata.get("record")
    }


def _to_json(
    value: object,
    annotation: Any,
    of: typing.Callable[[Settings], dict[str, Json]] = Settings.to_json,
) -> Json:
    if isinstance(value, Settings):
        data = of(value)
        return {"type": value.type_name, **data} if len(_kinds(annotation)) > 1 and not value.type_implied else data
    if isinstance(value, tuple):
        item = get_args(_without_none(annotation))[0]
        return [_to_json(v, item, of) for v in value]
    assert value is None or isinstance(value, bool | int | float | str)
    return value


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _settings_from_json(cls: type[AnySettings], data: object, path: str, extra: frozenset[str]) -> AnySettings:
    if not isinstance(data, dict):
        raise SettingError(path or cls.__name__, data, "an object")
    fields = _fields(cls)
    for name in data:
        if name not in fields and name not in extra:
            raise _unknown(path, str(name), fields)
    arguments = {}
    for name, (field, annotation) in fields.items():
        if name in data:
            arguments[name] = _from_json(data[name], annotation, _join(path, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SmidgenError(f"{_join(path, name)} is missing; it has no default, so give it a value")
    try:
        return cls(**arguments)
    except SettingError as error:
        prefix, _, rest = error.path.partition(".")
        if prefix != cls.__name__:
            raise
        raise SettingError(_join(path, rest), error.value, error.allowed) from None


def _from_json(data: object, annotation: Any, path: str) -> object:
    if data is None and _optional(annotation):
        return None
    annotation = _without_none(annotation)
    kinds = _kinds(annotation)
    if len(kinds) > 1:
        if not isinstance(data, dict):
            raise SettingError(path, data, "an object with a type")
        kind = data.get("type", _implied(kinds))
        if not isinstance(kind, str) or kind not in kinds:
            raise SettingError(_join(path, "type"), kind, ", ".join(kinds))
        return _settings_from_json(kinds[kind], data, path, frozenset({"type"}))
    if kinds:
        return _settings_from_json(next(iter(kinds.values())), data, path, frozenset())
    if get_origin(annotation) is tuple:
        if not isinstance(data, list) or len(data) > LONGEST_TUPLE:
            raise SettingError(path, data, f"a list of at most {LONGEST_TUPLE} items")
        item = get_args(annotation)[0]
        return tuple(_from_json(v, item, f"{path}.{i}") for i, v in enumerate(data))
    return data


def _unknown(path: str, name: str, known: typing.Collection[str]) -> SmidgenError:
    where = path or "a trial"
    return SmidgenError(
        f"{where} has no setting {name!r}; {suggestion(name, known)}it has: {', '.join(known) or 'none'}"
    )


# --set path=value.


def _assign(data: Json, annotation: Any, keys: list[str], text: str, path: str) -> None:
    """Change the JSON `data` of a value of type `annotation` in place, at `keys`, to what `text` says."""
    annotation = _without_none(annotation)
    key, rest = keys[0], keys[1:]
    if isinstance(data, list):
        if not key.isascii() or not key.isdigit() or int(key) >= len(data):
            raise SmidgenError(f"{path} has no item {key!r}; it has {len(data)}, counted from 0")
        index, child = int(key), get_args(annotation)[0]
        if rest:
            _assign(data[index], child, rest, text, _join(path, key))
        else:
            data[index] = _parsed(text, child, data[index])
        return
    if not isinstance(data, dict):
        raise SmidgenError(f"{path} is a single value; it has no setting {key!r}")
    kinds = _kinds(annotation)
    cls = kinds[str(data.get("type", _implied(kinds)))] if len(kinds) > 1 else next(iter(kinds.values()))
    fields = _fields(cls)
    if key not in fields:
        raise _unknown(path, key, fields)
    child = fields[key][1]
    if rest:
        parts = _kinds(_without_none(child))
        if data[key] is None and len(parts) == 1:  # a part that is left out begins with its defaults
            data[key] = next(iter(parts.values()))().to_json()
        _assign(data[key], child, rest, text, _join(path, key))
    else:
        data[key] = _parsed(text, child, data[key])


def _paths(data: Json, path: str) -> list[str]:
    """The paths of all settings within parts, tuples left out."""
    if not isinstance(data, dict):
        return [path]
    return [found for name, value in data.items() for found in _paths(value, _join(path, name))]


def _parsed(text: str, annotation: Any, current: Json) -> Json:
    """The JSON that `text` means for a setting of this type; what does not fit is left to validation."""
    if _optional(annotation) and text.lower() in ("none", "null"):
        return None
    annotation = _without_none(annotation)
    kinds = _kinds(annotation)
    if len(kinds) > 1 and text in kinds:
        kept = _fields(kinds[text])
        old = current if isinstance(current, dict) else {}
        return {"type": text, **{name: value for name, value in old.items() if name in kept}}
    if annotation is str or get_origin(annotation) is Literal:
        return text
    if annotation is bool and text.lower() in ("true", "yes", "on", "false", "no", "off"):
        return text.lower() in ("true", "yes", "on")
    try:
        parsed: Json = json.loads(text, parse_constant=lambda _: text)
    except (ValueError, RecursionError):
        return text
    if annotation is int and isinstance(parsed, float) and parsed.is_integer():
        return int(parsed)
    return parsed


def _differences(old: Json, new: Json, path: str) -> list[tuple[str, Json, Json]]:
    if old == new and type(old) is type(new):
        return []
    if isinstance(old, dict) and isinstance(new, dict) and old.get("type") == new.get("type"):
        found = []
        for name in old | new:
            found += _differences(old.get(name), new.get(name), _join(path, name))
        return found
    return [(path, old, new)]
