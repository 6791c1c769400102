"""Budgets in bytes: what the C export in integers will need, checked before training and by every command that sizes."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import Command
from smidgen.errors import RunError, SmidgenError, TrialError
from smidgen.exports.c.compiler import find_compiler
from smidgen.exports.export import export
from smidgen.inspection import inspect
from smidgen.lowering.c.sizes import int8_needs, int8_sizes
from smidgen.nets.build import build_network
from smidgen.reports.report import report
from smidgen.runs.options import RunOptions
from smidgen.runs.progress import Silent
from smidgen.runs.record import Run, load_run
from smidgen.runs.run import run
from smidgen.searches.ask import Limits
from smidgen.settings import with_settings
from smidgen.trial import Goal, Trial
from smidgen.trials.find import find_trial
from smidgen.trials.new import new_trial

compiler = pytest.mark.skipif(find_compiler() is None, reason="needs a C compiler")
SHAPE = (1, 28, 28)


@pytest.fixture(scope="module")
def needed(small_trial: Trial) -> dict[str, int]:
    """Bytes of the small trial's network."""
    sizes = int8_sizes(build_network(small_trial.network, input_shape=SHAPE, classes=10), SHAPE)
    return {"flash": sizes.flash, "ram": sizes.ram, "flash_4_bits": sizes.flash_4_bits, "ram_lean": sizes.ram_lean}


@pytest.fixture(scope="module")
def tight(small_trial: Trial, needed: dict[str, int]) -> Trial:
    """The small trial with exactly its tables, and less memory than without making anything again."""
    goal = replace(small_trial.goal, flash=needed["flash"], ram=needed["ram"] - 1)
    return replace(small_trial, name="tight", goal=goal)


@pytest.fixture(scope="module")
def tight_run(tight: Trial, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tight, out=tmp_path_factory.mktemp("runs") / "tight", options=RunOptions(threads=1), progress=Silent())


def test_a_goal_without_bytes_is_what_it_was(small_trial: Trial) -> None:
    goal = small_trial.goal
    assert goal.budgets == {"parameters": 1_000, "epochs": 3}
    assert goal.budgets_text == "1,000 parameters and 3 epochs"
    assert not goal.in_bytes
    more = replace(goal, flash=2_048, ram=512)
    assert more.budgets_text == "1,000 parameters, 3 epochs, 2,048 bytes of flash and 512 bytes of RAM"
    assert replace(small_trial, goal=more).recipe_digest != small_trial.recipe_digest
    assert Goal.from_json(more.to_json()) == more
    old = {name: value for name, value in goal.to_json().items() if name not in ("flash", "ram")}
    assert Goal.from_json(old).digest() == goal.digest()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ["goal.flash=600"],
            r"small is over budget: [\d,]+ bytes of flash, at most 600 allowed; most is taken by conv3",
        ),
        (
            ["goal.ram=100"],
            r"[\d,]+ bytes of RAM, at most 100 allowed; most is taken by conv\d.* \([\d,]+ bytes\); make",
        ),
    ],
)
def test_what_exceeds_a_budget_is_never_trained(
    small_trial: Trial, tmp_path: Path, settings: list[str], words: str
) -> None:
    with pytest.raises(TrialError, match=words):
        run(small_trial, settings=settings, out=tmp_path / "r", progress=Silent())
    assert not (tmp_path / "r").exists()


def test_budgets_are_met_at_their_edges(small_trial: Trial, needed: dict[str, int], tmp_path: Path) -> None:
    """RAM by any plan, so by the leanest; flash by the bits that the trial's weights have."""
    for settings, edge in (
        (["goal.flash"], needed["flash"]),
        (["quantization.weights=4", "quantization.epochs=1", "goal.flash"], needed["flash_4_bits"]),
    ):
        *others, limit = settings
        with pytest.raises(TrialError, match=f"{edge:,} bytes of flash, at most {edge - 1:,}"):
            run(small_trial, settings=[*others, f"{limit}={edge - 1}"], out=tmp_path / "r", progress=Silent())
    four = inspect(with_settings(small_trial, ["quantization.weights=4"])).sizes
    assert four is not None
    assert four.flash == four.flash_4_bits == needed["flash_4_bits"]
    network = build_network(small_trial.network, input_shape=SHAPE, classes=10)
    assert int8_needs(network, SHAPE, most_ram=needed["ram"]).ram == needed["ram"]
    assert needed["ram_lean"] <= int8_needs(network, SHAPE, most_ram=needed["ram"] - 1).ram < needed["ram"]
    least = int8_needs(network, SHAPE, most_ram=1).ram
    assert least <= needed["ram_lean"] <= 1.05 * least
    with pytest.raises(TrialError, match=f"{least:,} bytes of RAM, at most {least - 1:,}"):
        run(small_trial, settings=[f"goal.ram={least - 1}"], out=tmp_path / "r", progress=Silent())


@compiler
def test_a_run_says_what_its_export_then_needs(tight_run: Run, needed: dict[str, int], tmp_path: Path) -> None:
    result = tight_run.result
    assert result.flash == needed["flash"]
    assert result.ram is not None
    assert needed["ram_lean"] <= result.ram < needed["ram"]
    exported = export(tight_run, "c", tmp_path / "out", type="int8").to_json()
    assert exported["mismatches"] == 0
    assert exported["details"]["bytes_of_weights"] == result.flash
    assert exported["details"]["bytes_of_memory"] == result.ram
    found = inspect(tight_run.trial).to_json()
    assert (found["flash"], found["ram"], found["ram_lean"]) == (result.flash, result.ram, needed["ram_lean"])
    lean = export(tight_run, "c", tmp_path / "lean", type="int8", lean=True).to_json()
    assert lean["details"]["bytes_of_memory"] == needed["ram_lean"]


def test_the_verdict_the_files_and_the_report_show_them(tight_run: Run, tmp_path: Path) -> None:
    shown = [(part.what, part.reached, part.margin) for part in tight_run.verdict.parts[-2:]]
    assert shown[0] == ("bytes of flash", f"{tight_run.result.flash:,}", "0 to spare")
    assert shown[1][:2] == ("bytes of RAM", f"{tight_run.result.ram:,}")
    assert tight_run.goal_met
    kept = json.loads((tight_run.directory / "result.json").read_text())
    assert (kept["flash"], kept["ram"]) == (tight_run.result.flash, tight_run.result.ram)
    log = (tight_run.directory / "log.txt").read_text()
    assert f"{tight_run.result.flash:,} of at most {tight_run.result.flash:,} bytes of flash" in log
    again = load_run(tight_run.directory)
    assert (again.result, again.verdict) == (tight_run.result, tight_run.verdict)
    text = report([tight_run], tmp_path / "r.md").path.read_text()
    assert re.search(r"at most 1,000 parameters, 3 epochs, [\d,]+ bytes of flash and [\d,]+ bytes of RAM", text)
    assert re.search(r"0 below the budget of [\d,]+ bytes of flash", text)


def test_a_run_without_such_budgets_does_not_say(small_run: Run) -> None:
    kept = json.loads((small_run.directory / "result.json").read_text())
    assert kept["flash"] is kept["ram"] is None
    assert "flash" not in str(small_run.verdict)


def test_a_result_that_leaves_a_budget_open_is_damaged(tight_run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tight_run.directory, copy)
    kept = json.loads((copy / "result.json").read_text())
    (copy / "result.json").write_text(json.dumps(kept | {"ram": None}))
    with pytest.raises(RunError, match="limits bytes of RAM, but it does not say how many"):
        load_run(copy)
    (copy / "result.json").write_text(json.dumps(kept | {"ram": "few"}))
    with pytest.raises(RunError, match="'few' for ram"):
        load_run(copy)


def test_a_network_without_such_an_export_is_refused_with_the_reason(
    small_folder: Path, tmp_path: Path, smidgen: Command
) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\nimport smidgen\n\n"
        "def net(classes):\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 28), nn.Flatten(), nn.Softplus(), nn.Linear(4, classes))\n\n"
        "def trial():\n"
        "    return smidgen.Trial(name='soft', goal=smidgen.Goal(parameters=5000, flash=9000),\n"
        f"        data=smidgen.Data(source={str(small_folder)!r}), network=smidgen.from_module(net),\n"
        "        optimizer=smidgen.SGD(lr=0.01), epochs=1)\n"
    )
    out = tmp_path / "r"
    refused = smidgen("run", f"{file}:trial", "--out", out)
    assert refused.is_mistake("soft has a budget in bytes", "Softplus", "unset goal.flash")
    assert not out.exists()
    found = smidgen("inspect", f"{file}:trial")
    assert found.status == 1
    assert re.search(r"budget of at most 9,000 bytes of flash: MISSED: no C code in integers: .*Softplus", found.out)
    assert smidgen("inspect", f"{file}:trial", "--json").json["budget"] == {
        "parameters": 5000, "epochs": 14, "flash": 9000, "met": False,
    }  # fmt: skip


def test_inspect_holds_any_network_against_bytes(needed: dict[str, int], small_run: Run, smidgen: Command) -> None:
    trial = small_run.directory / "trial.json"
    met = smidgen("inspect", trial, "--max-flash", str(needed["flash"]), "--max-ram", str(needed["ram_lean"]))
    assert met.status == 0
    assert f"bytes of flash: {needed['flash']:,}, met, 0 to spare" in met.out
    missed = smidgen("inspect", trial, "--max-flash", str(needed["flash"] - 1))
    assert missed.status == 1
    assert re.search(r"bytes of flash: [\d,]+, MISSED, 1 too many; most is taken by conv3", missed.out)
    found = smidgen("inspect", trial, "--max-ram", "50", "--json")
    assert (found.status, found.json["budget"]["ram"], found.json["budget"]["met"]) == (1, 50, False)
    assert smidgen("inspect", trial, "--max-ram", "0").is_mistake("--max-ram is 0; allowed: a whole number, at least 1")
    assert smidgen("inspect", trial, "--max-parameters", "-3").is_mistake("--max-parameters is -3")
    words: Any = "5"
    for refused in (
        lambda: inspect(trial, max_parameters=words),
        lambda: Limits(ram=words),
        lambda: export(small_run, "c", type="int8", max_ram=words),
        lambda: export(small_run, "c", type="int8", max_ram=0),
    ):
        with pytest.raises(SmidgenError, match=r"--max-.* is [05]; allowed: a whole number, at least 1"):
            refused()


@pytest.mark.parametrize(("flash", "ram"), [(2_500, None), (None, 900), (3_000, 1_200)])
def test_a_new_network_is_sized_within_bytes(
    colour_folder: Path, tmp_path: Path, flash: int | None, ram: int | None
) -> None:
    written = new_trial(tmp_path / "t.py", data=colour_folder, max_flash=flash, max_ram=ram)
    trial = find_trial(f"{tmp_path / 't.py'}:trial")
    assert (trial.goal.flash, trial.goal.ram) == (flash, ram)
    network = build_network(written.network, input_shape=(3, 12, 12), classes=3)
    needs = int8_needs(network, (3, 12, 12), most_ram=ram)
    assert written.needs == needs
    assert f"{needs.flash:,} bytes of flash, {needs.ram:,} of RAM" in (tmp_path / "t.py").read_text()
    used = [(needs.flash, flash), (needs.ram, ram)]
    assert all(limit is None or value <= limit for value, limit in used)
    assert any(limit is not None and value > 0.85 * limit for value, limit in used)


def test_bytes_that_nothing_fits_are_named(colour_folder: Path, tmp_path: Path, smidgen: Command) -> None:
    file = tmp_path / "t.py"
    for option in ("--max-flash", "--max-ram"):
        done = smidgen("new", file, "--data", colour_folder, option, "20")
        assert done.is_mistake("even a narrow network", "at most 20 allowed; most is taken by", f"raise {option}")
        assert smidgen("new", file, "--data", colour_folder, option, "0").is_mistake(f"Goal.{option[6:]} is 0")
    assert not file.exists()
    done = smidgen("new", file, "--data", colour_folder, "--max-flash", "3000", "--json")
    assert 2_000 < done.json["flash"] <= 3_000
    assert done.json["ram"] > 0


def test_a_bias_that_is_zero_before_training_counts() -> None:
    """Between the two convolutions of a separable one, a table of biases is left out where all are 0."""
    torch.manual_seed(0)
    made = []
    for value in (0.0, 0.5):
        depthwise = nn.Conv2d(4, 4, 3, groups=4)
        nn.init.constant_(depthwise.bias, value)  # type: ignore[arg-type]
        layers = (nn.Conv2d(1, 4, 3), nn.ReLU(), depthwise, nn.Conv2d(4, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        made.append(int8_sizes(nn.Sequential(*layers), (1, 12, 12)))
    assert made[0] == made[1]


def test_a_network_for_large_images_has_no_sizes() -> None:
    with pytest.raises(SmidgenError, match="more than 262,144 pixels"):
        int8_needs(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), (1, 600, 600))


def test_settings_take_bytes(small_trial: Trial) -> None:
    assert with_settings(small_trial, ["goal.flash=8192", "goal.ram=none"]).goal.flash == 8_192
    with pytest.raises(SmidgenError, match="goal.ram is 0"):
        with_settings(small_trial, ["goal.ram=0"])
