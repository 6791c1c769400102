from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smidgen.errors import SettingError, SmidgenError
from smidgen.settings import Settings, canonical_json, differences, setting, with_settings
from smidgen.trial import Quantization
from smidgen.trials.find import find_trial


@dataclass(frozen=True)
class Circle(Settings):
    radius: float = setting(1.0, above=0)
    colour: Literal["red", "blue"] = setting("red")


@dataclass(frozen=True)
class Square(Settings):
    side: float = setting(1.0, above=0, most=10)
    colour: Literal["red", "blue"] = setting("red")


@dataclass(frozen=True)
class Drawing(Settings):
    title: str = setting()
    shape: Circle | Square = Circle()
    shapes: tuple[Circle | Square, ...] = ()
    sizes: tuple[int, ...] = setting((), least=1)
    copies: int | None = setting(None, least=1)
    framed: bool = setting(False)


def wrong(value: object) -> Any:
    """A value of a type that a type checker would refuse."""
    return value


drawing = Drawing("x", shapes=(Circle(2.0), Square(3.0)), sizes=(1, 2))

shapes = st.one_of(
    st.builds(Circle, st.floats(0.001, 1e6), st.sampled_from(["red", "blue"])),
    st.builds(Square, st.floats(0.001, 10), st.sampled_from(["red", "blue"])),
)
drawings = st.builds(
    Drawing,
    st.text(max_size=9),
    shapes,
    st.lists(shapes, max_size=3).map(tuple),
    st.lists(st.integers(1, 99), max_size=3).map(tuple),
    st.none() | st.integers(1, 99),
    st.booleans(),
)


@given(drawings)
def test_json_gives_back_an_equal_value(value: Drawing) -> None:
    assert Drawing.from_json(value.to_json()) == value
    assert Drawing.from_json(value.to_json()).digest() == value.digest()


@given(drawings, drawings)
def test_digests_and_differences_tell_values_apart(one: Drawing, other: Drawing) -> None:
    assert (one.digest() == other.digest()) == (one == other)
    assert (differences(one, other) == []) == (one == other)


def test_a_whole_number_is_a_float_where_one_is_wanted() -> None:
    assert Circle(2) == Circle(2.0)
    assert Circle(2).digest() == Circle(2.0).digest()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Circle(0), ("Circle.radius", "0.0", "above 0")),
        (lambda: Circle(float("nan")), ("Circle.radius", "nan", "a number")),
        (lambda: Circle(float("inf")), ("Circle.radius", "inf")),
        (lambda: Circle(wrong("1")), ("Circle.radius", "'1'", "a number")),
        (lambda: Circle(True), ("Circle.radius", "True")),
        (lambda: Square(11), ("Square.side", "11.0", "at most 10")),
        (lambda: Circle(1, wrong("green")), ("Circle.colour", "'green'", "red, blue")),
        (lambda: Drawing("x", sizes=(1, 0)), ("Drawing.sizes.1", "0", "at least 1")),
        (lambda: Drawing("x", sizes=wrong((1, 2.0))), ("Drawing.sizes.1", "2.0", "a whole number")),
        (lambda: Drawing("x", copies=0), ("Drawing.copies", "0")),
        (lambda: Drawing("x", shape=wrong(3)), ("Drawing.shape", "Circle or Square")),
        (lambda: Drawing("x", framed=wrong(1)), ("Drawing.framed", "true or false")),
        (lambda: Drawing(wrong(3)), ("Drawing.title", "text")),
        (lambda: Drawing("x", sizes=tuple(range(1, 300))), ("Drawing.sizes", "at most 256")),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(make: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(SettingError) as caught:
        make()
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": {"type": "circle", "radius": -1}}, ("shape.radius is -1",)),
        ({"shapes": [{"type": "square", "side": 99}]}, ("shapes.0.side is 99",)),
        ({"shape": {"type": "oval"}}, ("shape.type is 'oval'", "circle, square")),
        ({"shape": {"radius": 1}}, ("shape.type", "circle, square")),
        ({"shape": 3}, ("shape is 3",)),
        ({"titel": "x"}, ("'titel'", "did you mean 'title'?")),
        ({"shape": {"type": "circle", "side": 1}}, ("shape has no setting 'side'", "radius, colour")),
        ({"shapes": {}}, ("shapes", "a list")),
    ],
)
def test_wrong_json_is_named_by_its_path(change: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(SmidgenError) as caught:
        Drawing.from_json({"title": "x", **change})
    for word in words:
        assert word in str(caught.value)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(SmidgenError, match="title is missing"):
        Drawing.from_json({})
    with pytest.raises(SmidgenError, match="an object"):
        Drawing.from_json([])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shape.radius=2.5", replace(drawing, shape=Circle(2.5))),
        ("shape=square", replace(drawing, shape=Square())),
        ("shapes.1.side=1e-1", replace(drawing, shapes=(Circle(2.0), Square(0.1)))),
        ("copies=3", replace(drawing, copies=3)),
        ("copies=none", drawing),
        ("framed=yes", replace(drawing, framed=True)),
        ("title=3 = three", replace(drawing, title="3 = three")),
        ("sizes=[4, 5]", replace(drawing, sizes=(4, 5))),
        ("sizes.0=1e1", replace(drawing, sizes=(10, 2))),
        ('shape={"type": "square", "side": 2}', replace(drawing, shape=Square(2))),
    ],
)
def test_set_changes_one_setting(text: str, expected: Drawing) -> None:
    assert with_settings(drawing, [text]) == expected


def test_changing_the_kind_keeps_what_both_have() -> None:
    value = with_settings(drawing, ["shape.colour=blue", "shape=square"])
    assert value.shape == Square(1.0, "blue")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("shape.radius", ("path=value",)),
        ("=3", ("path=value",)),
        ("radius=3", ("did you mean 'shape.radius'?",)),
        ("shape.raduis=3", ("did you mean 'radius'?",)),
        ("shape.radius=big", ("shape.radius is 'big'", "a number")),
        ("shape.radius=NaN", ("shape.radius is 'NaN'",)),
        ("shapes.2.side=1", ("no item '2'", "it has 2")),
        ("shapes.-1.side=1", ("no item '-1'",)),
        ("title.x=1", ("title is a single value",)),
        ("copies=2.5", ("copies is 2.5", "a whole number")),
        ("framed=perhaps", ("framed is 'perhaps'",)),
        ("shape.colour=green", ("red, blue",)),
    ],
)
def test_a_wrong_set_is_named(text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(SmidgenError) as caught:
        with_settings(drawing, [text])
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_differences_name_path_old_and_new() -> None:
    other = replace(drawing, shape=Square(), copies=2, shapes=(Circle(2.0),))
    found = differences(drawing, other)
    assert ("copies", None, 2) in found
    assert [path for path, _, _ in found] == ["shape", "shapes", "copies"]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_any_json_is_read_or_refused_in_one_line(data: Any) -> None:
    for candidate in (data, {"title": "x", "shape": data}, {"title": "x", "shapes": [data]}):
        try:
            Drawing.from_json(candidate)
        except SmidgenError as error:
            assert "\n" not in str(error)


def test_canonical_json_does_not_depend_on_order() -> None:
    assert (
        canonical_json({"b": 1, "a": [1.5, None]})
        == canonical_json({"a": [1.5, None], "b": 1})
        == '{"a":[1.5,null],"b":1}'
    )


@dataclass(frozen=True)
class Old(Settings):
    side: int = setting(1)


@dataclass(frozen=True)
class OldWhole(Settings):
    type_name = "whole"
    part: Old = Old()


@dataclass(frozen=True)
class New(Settings):
    side: int = setting(1)
    added: int = setting(0, later=True)


@dataclass(frozen=True)
class NewWhole(Settings):
    type_name = "whole"
    part: New = New()


def test_a_later_setting_at_its_default_leaves_digests_as_they_were() -> None:
    assert NewWhole().digest() == OldWhole().digest()
    assert NewWhole(New(2)).digest() == OldWhole(Old(2)).digest()
    assert NewWhole(New(1, 5)).digest() != OldWhole().digest()
    assert NewWhole().to_json() == {"part": {"side": 1, "added": 0}}


def test_a_part_that_is_left_out_begins_with_its_defaults() -> None:
    trial = find_trial("mnist-tiny")
    assert trial.quantization is None
    few = with_settings(trial, ["quantization.weights=3"])
    assert few.quantization == Quantization(weights=3)
    assert with_settings(few, ["quantization=none"]) == trial
    with pytest.raises(SmidgenError, match=r"quantization has no setting 'weight'; did you mean 'weights'"):
        with_settings(trial, ["quantization.weight=3"])
