"""smidgen trains tiny image classifiers under hard budgets and proves the result.

    import smidgen

    run = smidgen.run("mnist-4-strict", seed=1)
    print(run.accuracy, run.goal_met)

The names below do everything that the command line does. They are loaded when first used, so that
`import smidgen` and `smidgen --help` do not wait for PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smidgen.anatomy.layers import Anatomy as Anatomy
    from smidgen.anatomy.layers import Layer as Layer
    from smidgen.bench.measure import benchmark as benchmark
    from smidgen.data.augment import augment as augment
    from smidgen.data.dataset import Dataset as Dataset
    from smidgen.data.dataset import Examples as Examples
    from smidgen.data.dataset import load_dataset as load_dataset
    from smidgen.data.describe import describe as describe
    from smidgen.errors import DataError as DataError
    from smidgen.errors import ImageError as ImageError
    from smidgen.errors import RunError as RunError
    from smidgen.errors import SettingError as SettingError
    from smidgen.errors import SmidgenError as SmidgenError
    from smidgen.errors import SmidgenInterruptedError as SmidgenInterruptedError
    from smidgen.errors import TrainingError as TrainingError
    from smidgen.errors import TrialError as TrialError
    from smidgen.exports.export import Exported as Exported
    from smidgen.exports.export import export as export
    from smidgen.images import read_image as read_image
    from smidgen.inspection import Inspection as Inspection
    from smidgen.inspection import inspect as inspect
    from smidgen.nets.build import build_network as build_network
    from smidgen.nets.code import from_module as from_module
    from smidgen.nets.code import trust as trust
    from smidgen.nets.sizing import sized_network as sized_network
    from smidgen.reports.compare import compare as compare
    from smidgen.reports.report import Report as Report
    from smidgen.reports.report import report as report
    from smidgen.runs.options import RunOptions as RunOptions
    from smidgen.runs.predict import Prediction as Prediction
    from smidgen.runs.predict import predict as predict
    from smidgen.runs.predictions import Predictions as Predictions
    from smidgen.runs.record import Run as Run
    from smidgen.runs.record import load_run as load_run
    from smidgen.runs.result import Result as Result
    from smidgen.runs.run import RunInterruptedError as RunInterruptedError
    from smidgen.runs.run import run as run
    from smidgen.schedules import Constant as Constant
    from smidgen.schedules import Cosine as Cosine
    from smidgen.schedules import OneCycle as OneCycle
    from smidgen.schedules import Step as Step
    from smidgen.searches.ask import Limits as Limits
    from smidgen.searches.found import Search as Search
    from smidgen.searches.search import SearchInterruptedError as SearchInterruptedError
    from smidgen.searches.search import SearchPlan as SearchPlan
    from smidgen.searches.search import search as search
    from smidgen.searches.space import Integers as Integers
    from smidgen.searches.space import Numbers as Numbers
    from smidgen.searches.space import Reals as Reals
    from smidgen.searches.space import Space as Space
    from smidgen.searches.space import Words as Words
    from smidgen.settings import differences as differences
    from smidgen.settings import with_settings as with_settings
    from smidgen.statistics import Comparison as Comparison
    from smidgen.statistics import Summary as Summary
    from smidgen.sweeps.sweep import Sweep as Sweep
    from smidgen.sweeps.sweep import SweepInterruptedError as SweepInterruptedError
    from smidgen.sweeps.sweep import sweep as sweep
    from smidgen.training.loop import EpochRecord as EpochRecord
    from smidgen.trial import SGD as SGD
    from smidgen.trial import Adam as Adam
    from smidgen.trial import AdamW as AdamW
    from smidgen.trial import Augmentation as Augmentation
    from smidgen.trial import AvgPool as AvgPool
    from smidgen.trial import Conv as Conv
    from smidgen.trial import Data as Data
    from smidgen.trial import Goal as Goal
    from smidgen.trial import Linear as Linear
    from smidgen.trial import MaxPool as MaxPool
    from smidgen.trial import Module as Module
    from smidgen.trial import Network as Network
    from smidgen.trial import Trial as Trial
    from smidgen.trial import separable as separable
    from smidgen.trials.find import find_trial as find_trial
    from smidgen.trials.listing import listing as listing
    from smidgen.trials.new import NewTrial as NewTrial
    from smidgen.trials.new import new_trial as new_trial
    from smidgen.verdict import Verdict as Verdict

_HOMES = {
    "inspection": ("Inspection", "inspect"),
    "anatomy.layers": ("Anatomy", "Layer"),
    "bench.measure": ("benchmark",),
    "data.augment": ("augment",),
    "data.dataset": ("Dataset", "Examples", "load_dataset"),
    "data.describe": ("describe",),
    "errors": (
        "DataError",
        "ImageError",
        "RunError",
        "SettingError",
        "SmidgenError",
        "SmidgenInterruptedError",
        "TrainingError",
        "TrialError",
    ),
    "exports.export": ("Exported", "export"),
    "images": ("read_image",),
    "nets.build": ("build_network",),
    "nets.code": ("from_module", "trust"),
    "nets.sizing": ("sized_network",),
    "reports.compare": ("compare",),
    "reports.report": ("Report", "report"),
    "runs.options": ("RunOptions",),
    "runs.predict": ("Prediction", "predict"),
    "runs.predictions": ("Predictions",),
    "runs.record": ("Run", "load_run"),
    "runs.result": ("Result",),
    "runs.run": ("RunInterruptedError", "run"),
    "searches.ask": ("Limits",),
    "searches.found": ("Search",),
    "searches.search": ("SearchInterruptedError", "SearchPlan", "search"),
    "searches.space": ("Integers", "Numbers", "Reals", "Space", "Words"),
    "schedules": ("Constant", "Cosine", "OneCycle", "Step"),
    "settings": ("differences", "with_settings"),
    "statistics": ("Comparison", "Summary"),
    "sweeps.sweep": ("Sweep", "SweepInterruptedError", "sweep"),
    "training.loop": ("EpochRecord",),
    "trial": (
        "SGD",
        "Adam",
        "AdamW",
        "Augmentation",
        "AvgPool",
        "Conv",
        "Data",
        "Goal",
        "Linear",
        "MaxPool",
        "Module",
        "Network",
        "Trial",
        "separable",
    ),
    "trials.find": ("find_trial",),
    "trials.listing": ("listing",),
    "trials.new": ("NewTrial", "new_trial"),
    "verdict": ("Verdict",),
    "version": ("VERSION",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    attribute = {"__version__": "VERSION"}.get(name, name)
    if attribute not in _HOME:
        raise AttributeError(f"module 'smidgen' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"smidgen.{_HOME[attribute]}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
