"""Measuring: whole training steps, each way in turn in one run.

Every way trains a built-in trial's network with the trial's settings on bundled MNIST. A step is
everything from picking the images to the optimizer and the average. Machines are noisy: what counts
is the ratio of two ways measured in turn, and of that the median over the rounds.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from smidgen.bench.reference import Step, loader_step, network_of
from smidgen.bench.results import NetworkResults, Profile, Results, Way
from smidgen.data.dataset import Dataset, load_dataset
from smidgen.engines.choose import choose
from smidgen.engines.eager import EagerEngine
from smidgen.engines.engine import Engine, Precision
from smidgen.errors import SmidgenError
from smidgen.exports.onnx_graph import onnx_model
from smidgen.exports.target import fused_graph
from smidgen.files import cannot_write, write_atomic
from smidgen.runs.weights import TrainedNetwork
from smidgen.training import checkpoint
from smidgen.training.checkpoint import Origin
from smidgen.training.evaluation import BATCH
from smidgen.training.loop import Training, start, take_step
from smidgen.trial import Trial
from smidgen.trials.mnist import augmented, strict

try:
    import resource
except ImportError:  # Windows
    HAS_RUSAGE = False
else:
    HAS_RUSAGE = True

STEPS = 25
"""Steps of one measurement."""
WARM_UP = 8
"""Steps before each measurement that do not count; they also empty what a loader has prefetched."""

ROUNDS = 5
"""Measurements of each way, unless more are asked for."""

Report = Callable[[str, str, float], object]
"""Receives, before each measurement, the network, what is measured, and the fraction of all work that is done."""


def benchmark(
    threads: int | None = None, rounds: int = ROUNDS, variants: bool = False, report: Report = lambda *_: None
) -> Results:
    """Measure the reference way and smidgen's engines in turn.

    Args:
        threads: None takes the usable cores, at most 8.
        rounds: measurements of each way.
        variants: also measure other memory layouts, dropouts and thread counts of the eager engine.
        report: receives progress.

    Raises:
        SmidgenError: no rounds, or a number of threads that is not allowed.
    """
    if rounds < 1:
        raise SmidgenError(f"--rounds is {rounds}; allowed: a whole number at least 1")
    threads, dataset = choose("eager", threads=threads).threads, load_dataset()
    before, switches = torch.get_num_threads(), Switches()

    def measure(number: int, role: str, trial: Trial, variants: bool) -> NetworkResults:
        def overall(what: str, fraction: float) -> None:
            report(role, what, (number + fraction) / 2)

        return _measure(role, trial, dataset, threads, rounds, variants, switches, overall)

    try:
        reference = measure(0, "reference network", augmented(), variants)
        flagship = measure(1, "flagship", strict(), False)
    finally:
        torch.set_num_threads(before)
    return Results(reference, flagship, threads, rounds, STEPS, switches.rate)


class Switches:
    """Counts how often the system takes a core from this process while it measures."""

    def __init__(self) -> None:
        self._count, self._seconds = 0, 0.0

    @contextmanager
    def counted(self, threads: int) -> Iterator[None]:
        """Count during a measurement with so many threads."""
        before, began = _switches(), time.perf_counter()
        yield
        self._count += _switches() - before
        self._seconds += threads * (time.perf_counter() - began)

    @property
    def rate(self) -> float | None:
        """Times a second and thread; None where the system does not count."""
        if not HAS_RUSAGE:
            return None
        return self._count / self._seconds if self._seconds else 0.0


def _switches() -> int:
    """Involuntary context switches of this process so far; 0 where the system does not count them."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if HAS_RUSAGE else 0


def _measure(
    role: str,
    trial: Trial,
    dataset: Dataset,
    threads: int,
    rounds: int,
    variants: bool,
    switches: Switches,
    report: Callable[[str, float], object],
) -> NetworkResults:
    ways: dict[str, Way] = {"loader": Way("DataLoader, reference")}
    steps: list[tuple[Way, Step, int]] = []
    trainings: dict[str, Training] = {}

    def add(key: str, name: str, engine: Engine) -> None:
        ways[key] = Way(name)
        trainings[key] = _training(trial, dataset, engine)
        steps.append((ways[key], _engine_step(trainings[key], trial, dataset), engine.torch_threads))

    with loader_step(trial, dataset) as reference:
        steps.append((ways["loader"], reference, threads))
        add("eager", "eager (smidgen)", choose("eager", threads=threads))
        if native := _native(threads):
            add("native", "native", native)
            if rough := _native(threads, "bf16"):
                add("native_bf16", "native, bfloat16 products", rough)
            if threads > 1 and (single := _native(1)):
                add("native_1_thread", "native, 1 thread", single)
        others = _variants(trial, dataset, threads) if variants else []
        steps += others
        measurements = [measured for _ in range(rounds) for measured in steps]
        for done, (way, step, count) in enumerate(measurements):
            report(way.name, 0.8 * done / len(measurements))
            torch.set_num_threads(count)
            # The reference way has a process of its own beside the threads, and disturbs itself.
            counting = switches.counted(count) if step is not reference else nullcontext()
            way.rates.append(_rate(step, trial.batch_size, counting))
    report("time by layer, checkpoints, evaluation", 0.8)
    torch.set_num_threads(1)
    fastest = trainings.get("native", trainings["eager"])
    return NetworkResults(
        role,
        trial.name,
        trial.batch_size,
        ways,
        _evaluations(fastest, trial, dataset, rounds),
        _profile(fastest, trial, dataset),
        _checkpoint_seconds(fastest, rounds),
        tuple(way for way, _, _ in others),
    )


RUNTIME_BATCH = 64
"""Images that onnxruntime classifies at once: of 1, 16, 64, 500 and all 10,000, among the fastest for it."""


def _evaluations(training: Training, trial: Trial, dataset: Dataset, rounds: int) -> dict[str, Way]:
    """Classifying the test images with 1 thread, from uint8 to scores, each way in turn."""
    network = training.engine.plain(training.network).eval()
    images, (mean, std) = dataset.held_out.images, (dataset.mean, dataset.std)

    def engine_way(engine: Engine) -> Callable[[], object]:
        prepared, parts = engine.prepare(copy.deepcopy(network)).eval(), images.split(BATCH)

        def classify() -> None:
            with torch.inference_mode():
                for part in parts:
                    prepared(engine.batch(part, mean, std))

        return classify

    ways: dict[str, tuple[Way, Callable[[], object]]] = {
        "eager": (Way("eager"), engine_way(EagerEngine(torch.device("cpu"), 1)))
    }
    if native := _native(1):
        ways["native"] = Way("native"), engine_way(native)
    if importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        trained = TrainedNetwork(copy.deepcopy(network), trial, dataset.input_shape, dataset.classes, mean, std)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            onnx_model(fused_graph(trained), trial.name, {}), options, providers=["CPUExecutionProvider"]
        )
        parts = [part.numpy() for part in images.split(RUNTIME_BATCH)]
        ways["onnxruntime"] = Way("onnxruntime"), lambda: [session.run(["scores"], {"images": part}) for part in parts]
    for _, classify in ways.values():
        classify()
    for _ in range(rounds):
        for way, classify in ways.values():
            began = time.perf_counter()
            classify()
            way.rates.append(len(images) / (time.perf_counter() - began))
    return {key: way for key, (way, _) in ways.items()}


def _native(threads: int, precision: Precision = "fp32") -> Engine | None:
    """The native engine, if it is available."""
    try:
        return choose("native", threads=threads, precision=precision)
    except SmidgenError:
        return None


def _checkpoint_seconds(training: Training, rounds: int) -> float:
    """Median of writing a checkpoint, the one before it kept, as a run does."""
    origin = Origin("0" * 64, "0" * 64, 0)
    seconds = []
    try:
        with tempfile.TemporaryDirectory(prefix=".bench-", dir=".") as name:
            path = Path(name) / "checkpoint"
            for _ in range(10 * rounds):
                began = time.perf_counter()
                write_atomic(path, checkpoint.to_bytes(training, origin), previous=path.with_name("previous"))
                seconds.append(time.perf_counter() - began)
    except OSError as error:
        raise cannot_write(Path.cwd(), error) from None
    return statistics.median(seconds)


def _training(trial: Trial, dataset: Dataset, engine: Engine, *, torch_dropout: bool = False) -> Training:
    torch.manual_seed(0)
    training = start(trial, network_of(trial, dataset, trial.dropout, torch_dropout), engine)
    training.network.train()
    return training


def _engine_step(training: Training, trial: Trial, dataset: Dataset) -> Step:
    """A step as the training loop takes it."""
    loader = training.engine.loader(dataset.train, trial.augmentation, 0, dataset.mean, dataset.std)
    order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(0))
    batches = itertools.cycle(order.split(trial.batch_size)[:-1])
    counter = itertools.count()

    def step() -> None:
        number = next(counter)
        take_step(training, loader, next(batches), trial.optimizer.lr, trial, 0, 1, number, number + 1)

    return step


def _variants(trial: Trial, dataset: Dataset, threads: int) -> list[tuple[Way, Step, int]]:
    """Other ways to run PyTorch eagerly, each with one thing changed."""
    cpu = torch.device("cpu")
    usual, single = EagerEngine(cpu, threads), EagerEngine(cpu, 1)
    plain = replace(trial, dropout=0.0)

    def relaid(engine: EagerEngine) -> EagerEngine:
        other = {torch.channels_last: torch.contiguous_format, torch.contiguous_format: torch.channels_last}
        return replace(engine, layout=other[engine.memory_format])

    def way(name: str, trial: Trial, engine: EagerEngine, *, torch_dropout: bool = False) -> tuple[Way, Step, int]:
        training = _training(trial, dataset, engine, torch_dropout=torch_dropout)
        return Way(f"eager, {name}"), _engine_step(training, trial, dataset), engine.threads

    return [
        way("the other memory layout", trial, relaid(usual)),
        way("PyTorch's dropout", trial, usual, torch_dropout=True),
        way("no dropout", plain, usual),
        way("1 thread", trial, single),
        way("1 thread, the other memory layout", trial, relaid(single)),
    ]


PROFILED = 40
"""Steps over which the layers' times are taken."""


def _profile(training: Training, trial: Trial, dataset: Dataset) -> Profile | None:
    """The time of a step by layer, if the engine measures it."""
    engine, network = training.engine, training.network.train()
    step = _engine_step(training, trial, dataset)
    for _ in range(WARM_UP):
        step()
    times, multiply_adds = engine.time_layers(network), engine.peak()
    if times is None or multiply_adds is None:
        return None
    for _ in range(PROFILED):
        step()
    passes = tuple(replace(each, seconds=each.seconds / PROFILED) for each in times())
    return Profile(passes, trial.batch_size, 2e-9 * multiply_adds, engine.threads)


def _rate(step: Step, batch_size: int, counting: AbstractContextManager[None]) -> float:
    for _ in range(WARM_UP):
        step()
    with counting:
        began = time.perf_counter()
        for _ in range(STEPS):
            step()
        return STEPS * batch_size / (time.perf_counter() - began)
