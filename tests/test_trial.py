from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from smidgen.anatomy.layers import examine, examine_trial
from smidgen.errors import SettingError, SmidgenError, TrialError
from smidgen.nets.build import build_network
from smidgen.schedules import Cosine, Step
from smidgen.settings import differences, with_settings
from smidgen.trial import SGD, AdamW, AvgPool, Conv, Linear, Network, Trial, separable
from smidgen.trials.builtin import BUILTIN, Builtin
from smidgen.trials.find import find_trial, find_trial_or_network
from smidgen.trials.listing import changes, listing
from smidgen.trials.measured import MEASURED, measured, read_measured, write_measured
from smidgen.trials.mnist import augmented, skeleton, strict


@pytest.mark.parametrize("name", BUILTIN)
def test_builtin_trials_survive_json(name: str) -> None:
    trial = find_trial(name)
    assert trial.name == name
    again = Trial.from_json(json.loads(json.dumps(trial.to_json())))
    assert again == trial
    assert again.recipe_digest == trial.recipe_digest


def test_the_digest_is_of_the_recipe_not_of_its_name() -> None:
    trial = strict()
    assert replace(trial, name="other", note="").recipe_digest == trial.recipe_digest
    assert replace(trial, batch_size=65).recipe_digest != trial.recipe_digest
    assert len({make.make().recipe_digest for make in BUILTIN.values()}) == len(BUILTIN)


class TestLineage:
    def test_replace_with_a_new_name_records_the_old_one(self) -> None:
        first = skeleton()
        second = replace(first, name="second", epochs=3)
        third = replace(replace(second, dropout=0.1), name="third")
        assert (first.base, second.base, third.base) == (None, "mnist-1-skeleton", "second")
        assert third.lineage == ("mnist-1-skeleton", "second", "third")
        assert with_settings(second, ["name=fourth", "epochs=4"]).base == "second"
        assert with_settings(second, ["epochs=4"]).base == "mnist-1-skeleton"
        assert Trial.from_json(json.loads(json.dumps(third.to_json()))).lineage == third.lineage

    def test_it_is_not_part_of_the_recipe(self) -> None:
        trial = replace(skeleton(), name="other")
        data = trial.to_json()
        del data["lineage"]  # as files of older versions
        old = Trial.from_json(data)
        assert old.base is None
        assert old == trial
        assert old.recipe_digest == trial.recipe_digest == skeleton().recipe_digest
        assert differences(old, trial) == []

    def test_it_does_not_grow_without_end_and_holds_names_only(self) -> None:
        trial = skeleton()
        for i in range(100):
            trial = replace(trial, name=f"n{i}")
        assert len(trial.lineage) < 20
        assert trial.base == "n98"
        with pytest.raises(SettingError, match="lineage"):
            replace(trial, lineage=("<b>",))

    def test_of_the_builtin_trials(self) -> None:
        bases = {"mnist-2-regularized": "mnist-1-skeleton", "mnist-3-augmented": "mnist-2-regularized"}
        bases |= {"mnist-4-strict": "mnist-3-augmented", "mnist-tiny": "mnist-4-strict"}
        bases |= {"mnist-tiny-99": "mnist-tiny", "mnist-sprint": "mnist-4-strict"}
        assert {name: builtin.make().base for name, builtin in BUILTIN.items()} == {n: bases.get(n) for n in BUILTIN}


def test_the_seeds_settings() -> None:
    """The table of the reference notebooks' settings."""
    one, two, three = (find_trial(name) for name in list(BUILTIN)[:3])
    assert (one.batch_size, two.batch_size, three.batch_size) == (512, 128, 128)
    assert one.optimizer == SGD(lr=0.01, momentum=0.9)
    assert two.optimizer == three.optimizer == SGD(lr=0.1, momentum=0.9)
    assert two.schedule == Step(every=4, factor=0.1)
    assert three.schedule == Step(every=8, factor=0.1)
    assert (one.dropout, two.dropout, three.dropout) == (0, 0.05, 0.05)
    assert one.epochs == two.epochs == three.epochs == 15
    assert not one.augmentation.affine
    assert not two.augmentation.affine
    a = three.augmentation
    assert (a.rotation, a.translation, a.scale, a.shear, a.interpolation) == (20, 0.1, 0.1, 0, "nearest")
    assert one.network == two.network == three.network


@pytest.mark.parametrize(("kernel", "padding", "stride"), [(3, 0, 1), (5, 2, 2)])
def test_separable_convolutions_cost_what_is_said(kernel: int, padding: int, stride: int) -> None:
    blocks = (Conv(6), *separable(6, 9, kernel=kernel, padding=padding, stride=stride), AvgPool(), Linear())
    network = build_network(Network(blocks), input_shape=(1, 28, 28), classes=10)
    found = [layer for layer in examine(network, (1, 28, 28)).layers if layer.type == "Conv2d"]
    side = (26 + 2 * padding - kernel) // stride + 1
    assert [layer.output_shape for layer in found] == [(6, 26, 26), (6, side, side), (9, side, side)]
    assert [layer.parameters for layer in found] == [54, 6 * kernel**2, 6 * 9]


def test_a_separable_convolution_without_channels_is_refused() -> None:
    with pytest.raises(SettingError, match="channels"):
        separable(6, 0)


def test_a_separable_convolution_can_give_the_scores() -> None:
    """Without anything behind it: what the average shows is what the convolution says of each place."""
    blocks = (Conv(6), *separable(6, None), AvgPool())
    network = build_network(Network(blocks), input_shape=(1, 28, 28), classes=7).eval()
    assert [type(layer).__name__ for layer in network.children()][-3:] == ["Conv2d", "Conv2d", "AvgPool2d"]
    images = torch.rand(2, 1, 28, 28)
    values = images
    for layer in list(network.children())[:-1]:
        values = layer(values)
    assert values.shape == (2, 7, 24, 24)
    torch.testing.assert_close(network(images), values.mean((2, 3)))


RECIPES = sorted((Path(__file__).parents[1] / "benchmarks" / "recipes").glob("*.json"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_former_recipes_can_still_be_run(path: Path) -> None:
    """Named after the trial that they were of, and their parameters or optimizer, whichever is another now."""
    trial = find_trial(path)
    name, _, own = trial.name.rpartition("-")
    assert path.stem == trial.name
    assert trial.recipe_digest != BUILTIN[name].make().recipe_digest
    assert own in {str(examine_trial(trial, (1, 28, 28), 10).parameters), trial.optimizer.type_name}


def test_the_flagship_is_strict() -> None:
    trial = strict()
    assert trial.goal.parameters == 7_999
    assert trial.goal.epochs == 14
    assert trial.goal.accuracy == 99.4
    assert trial.epochs <= 14
    assert trial.data.evaluate == "test"


def test_changes_show_what_a_trial_changed() -> None:
    entries = {entry["name"]: entry for entry in listing()}
    assert entries["mnist-3-augmented"]["changes"] == [
        "augmentation.rotation: 0 -> 20",
        "augmentation.translation: 0 -> 0.1",
        "augmentation.scale: 0 -> 0.1",
        "augmentation.interpolation: bilinear -> nearest",
        "schedule.every: 4 -> 8",
    ]
    assert changes(skeleton(), skeleton()) == []
    assert entries["mnist-1-skeleton"]["parameters"] == 8_000


def test_every_builtin_trial_has_its_story_also_without_docstrings() -> None:
    code = (  # not by way of `listing`, whose PyTorch takes ten seconds to compile anew without docstrings
        "import dataclasses, json; from smidgen.trials.builtin import BUILTIN; "
        "print(json.dumps([dataclasses.asdict(builtin.story) for builtin in BUILTIN.values()]))"
    )
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, check=True)
    stories = json.loads(done.stdout)
    assert stories == [asdict(builtin.story) for builtin in BUILTIN.values()] == [e["story"] for e in listing()]
    assert all(text and "{" not in text for story in stories for text in story.values())


def test_the_figures_of_a_story_are_those_measured() -> None:
    for name, builtin in BUILTIN.items():
        result = json.loads(MEASURED.read_text())[name]
        figures = f"{result['mean']:.3f} ± {result['sd']:.3f} % (n = {result['n']}), min {result['min']:.2f} %"
        assert figures in builtin.story.result
        assert f"{result['goal_share'] * result['n']:.0f} of {result['n']} runs" in builtin.story.result
    assert f"{read_measured()['mnist-4-strict'].train_mean:.2f} %" in BUILTIN["mnist-4-strict"].story.analysis
    assert f"{read_measured()['mnist-sprint'].seconds_median:.1f} s" in BUILTIN["mnist-sprint"].story.result


def test_a_recipe_that_changed_since_has_no_measured_figures() -> None:
    changed = Builtin(lambda: replace(strict(), batch_size=128), BUILTIN["mnist-4-strict"].untold)
    result = read_measured()["mnist-4-strict"]
    assert "Not measured" in changed.story.result
    assert f"{result.mean:.3f}" not in changed.story.result
    assert f"{result.train_mean:.2f}" not in changed.story.analysis
    assert changed.story.target == BUILTIN["mnist-4-strict"].story.target


def test_measured_results_are_written_beside_those_of_other_trials(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = read_measured()
    monkeypatch.setattr("smidgen.trials.measured.MEASURED", tmp_path / "measured.json")
    assert read_measured() == {}
    write_measured(before)
    newer = replace(before["mnist-tiny"], n=3)
    write_measured({"mnist-tiny": newer})
    assert read_measured() == before | {"mnist-tiny": newer}
    assert (measured(find_trial("mnist-tiny")), measured(replace(strict(), dropout=0.5))) == (newer, None)


def test_budgets_are_checked_at_their_edges() -> None:
    trial = strict()
    trial.check_budgets(7_999)
    with pytest.raises(TrialError, match=r"8,000 parameters, at most 7,999"):
        trial.check_budgets(8_000)
    with pytest.raises(TrialError, match="15 epochs, at most 14"):
        replace(trial, epochs=15).check_budgets(7_999)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "../x"}, "Trial.name"),
        ({"name": ""}, "Trial.name"),
        ({"note": "a\nb"}, "Trial.note"),
        ({"epochs": 0}, "Trial.epochs is 0"),
        ({"dropout": 1.0}, "Trial.dropout"),
        ({"batch_size": 1}, "Trial.batch_size"),
        ({"averaging": 1}, "Trial.averaging"),
        ({"label_smoothing": -0.1}, "Trial.label_smoothing"),
    ],
)
def test_a_trial_is_checked_when_made(change: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError) as caught:
        replace(strict(), **change)
    assert words in str(caught.value)


def test_parts_are_checked_when_made() -> None:
    with pytest.raises(SettingError, match="at least one block"):
        Network(blocks=())
    with pytest.raises(SettingError, match="false where momentum is 0"):
        SGD(lr=1, momentum=0, nesterov=True)
    with pytest.raises(SettingError, match=r"Cosine.warmup"):
        Cosine(warmup=1)


def test_settings_from_the_command_line_are_typed() -> None:
    network = strict().network
    assert isinstance(network, Network)
    last = len(network.blocks) - 1
    trial = with_settings(
        strict(), ["optimizer=adamw", "optimizer.lr=0.003", f"network.blocks.{last}.bias=false", "goal.accuracy=99"]
    )
    assert trial.optimizer == AdamW(lr=0.003, weight_decay=1e-4)
    assert with_settings(trial, ["optimizer=sgd"]).optimizer == SGD(lr=0.003, weight_decay=1e-4)
    assert isinstance(trial.network, Network)
    assert trial.network.blocks[last] == Linear(bias=False)
    assert trial.goal.accuracy == 99


def write(folder: Path, text: str) -> str:
    (folder / "mine.py").write_text(text)
    return f"{folder / 'mine.py'}:trial"


def test_a_trial_from_a_python_file(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("EPOCHS = 2\n")
    name = write(
        tmp_path,
        "from dataclasses import replace\nfrom helper import EPOCHS\nfrom smidgen import find_trial\n"
        "def trial():\n    return replace(find_trial('mnist-4-strict'), name='mine', epochs=EPOCHS)\n",
    )
    assert find_trial(name) == replace(strict(), name="mine", epochs=2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\ny = nonsense\n", ("fails to import", "NameError", "nonsense", "line 2")),
        ("def trial(:\n", ("fails to import", "SyntaxError", "line 1")),
        ("def trial():\n    return 3\n", ("is of type int", "must be a Trial")),
        ("trial = 'x'\n", ("is of type str",)),
        ("def trial():\n    return 1 / 0\n", ("failed", "ZeroDivisionError", "line 2")),
        ("def trial(size):\n    return size\n", ("failed", "TypeError")),
        ("def trail():\n    return 3\n", ("defines no 'trial'", "did you mean 'trail'?")),
        ("raise SystemExit(0)\n", ("fails to import", "SystemExit")),
        ("from smidgen import SGD\ntrial = SGD(lr=-1)\n", ("SGD.lr is -1",)),
        ("import torch\ntrial = torch.nn.ReLU()\n", ("is a ReLU", "Trial is needed")),
    ],
)
def test_a_wrong_python_file_is_one_line(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(SmidgenError) as caught:
        find_trial(write(tmp_path, text))
    for word in words:
        assert word in str(caught.value)


def test_a_module_from_a_python_file(tmp_path: Path) -> None:
    from torch import nn

    name = write(
        tmp_path,
        "from torch import nn\nclass trial(nn.Linear):\n    def __init__(self):\n        super().__init__(3, 4)\n",
    )
    assert isinstance(find_trial_or_network(name), nn.Linear)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mnist-3-augmentd", ("did you mean 'mnist-3-augmented'?",)),
        ("nothing.py:trial", ("nothing.py does not exist",)),
        ("nothing.py", ("nothing.py:NAME",)),
        ("nothing.json", ("nothing.json", "cannot be read")),
        (".", ("trial.json",)),
    ],
)
def test_an_unknown_trial_is_one_line(
    name: str, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrialError) as caught:
        find_trial(name)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"name": 1}', b"1" * 6000, b" " * 2_000_000],
)
def test_a_damaged_trial_json_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "trial.json").write_bytes(content)
    with pytest.raises(TrialError, match=r"trial\.json"):
        find_trial(tmp_path)


def test_a_trial_json_is_never_executed(tmp_path: Path) -> None:
    data = augmented().to_json() | {"note": "__import__('os').system('touch executed')"}
    (tmp_path / "trial.json").write_text(json.dumps(data))
    assert find_trial(tmp_path / "trial.json").note.startswith("__import__")
    assert not Path("executed").exists()


def test_no_source_file_executes_or_unpickles() -> None:
    for path in Path(__file__).parents[1].glob("src/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in (
                    "eval",
                    "exec",
                    "torch.load",
                    "torch.save",
                    "pickle.load",
                    "pickle.loads",
                ), path
