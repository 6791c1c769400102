"""Training steps of one network in smidgen, PyTorch, JAX, TensorFlow and tinygrad, in turn: `make peers`.

Each way runs in a process of its own, with the same initial weights and the same images, and takes the same step:
forward in training mode, cross-entropy, backward, SGD with Nesterov momentum. Images are prepared beforehand, so no
way's loading counts. The processes are held to as many cores as there are threads, and measure one after another,
round by round. A way whose loss differs from PyTorch's in any of the first three steps is an error.

    make peers ARGS='--threads 2'
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from smidgen.bench.reference import network_of
from smidgen.data.dataset import load_dataset
from smidgen.engines.choose import choose
from smidgen.graph.ops import Activation, BatchNorm, Convolution, Graph, Pool
from smidgen.graph.trace import trace
from smidgen.machine import usable_cores
from smidgen.randomness import Purpose, Stream
from smidgen.tables import render
from smidgen.trial import Trial
from smidgen.trials.mnist import augmented, strict

NETWORKS = {"flagship": strict, "reference": augmented}
RATE, MOMENTUM = 0.02, 0.9
BATCHES, CHECKED, STEPS = 16, 3, 20
WAYS = {
    "smidgen": ("smidgen", "native engine"),
    "smidgen-bf16": ("smidgen", "native engine, bfloat16 products"),
    "torch": ("torch", "PyTorch, eager"),
    "compile": ("torch", "PyTorch, torch.compile"),
    "jax": ("jax", "JAX, jit"),
    "tensorflow": ("tensorflow", "TensorFlow, tf.function"),
    "tinygrad": ("tinygrad", "tinygrad, TinyJit"),
}
"""Package and description."""
Step = Callable[[int], float]
"""Takes a step on the batch of that number; returns the loss."""


class Case:
    """A network in training mode and batches for it, the same in every process."""

    def __init__(self, trial: Trial) -> None:
        dataset = load_dataset()
        torch.manual_seed(0)
        self.network = network_of(trial, dataset, dropout=0.0, torch_dropout=True)
        self.mean, self.std = dataset.mean, dataset.std
        count = trial.batch_size * BATCHES
        self.pixels = dataset.train.images[:count].split(trial.batch_size)
        self.labels = dataset.train.labels[:count].split(trial.batch_size)
        self.images = [(part.float() / 255 - self.mean) / self.std for part in self.pixels]
        self.shape = dataset.input_shape

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Normalized images and their labels, batch by batch."""
        return zip(self.images, self.labels, strict=True)

    def graph(self) -> Graph:
        """The network as operations, for frameworks that have none of its modules."""
        return trace(self.network, self.shape)


def smidgen_step(case: Case, threads: int, precision: Any = "fp32") -> Step:
    """The native engine, and its flat SGD."""
    from smidgen.trial import SGD

    engine = choose("native", threads=threads, precision=precision)
    network = engine.prepare(case.network).train()
    optimizer, _ = engine.optimizer(SGD(lr=RATE, momentum=MOMENTUM, nesterov=True), network, averaged=False)
    batches = [engine.batch(part, case.mean, case.std) for part in case.pixels]
    stream = Stream(0, Purpose.TORCH)  # the networks drop nothing

    def step(number: int) -> float:
        loss, _ = engine.gradients(network, batches[number], case.labels[number], 0.0, stream)
        optimizer.step()
        return loss

    return step


def torch_step(case: Case, threads: int, *, compiled: bool = False) -> Step:
    """PyTorch as its tutorials have it, with the fused optimizer step."""
    torch.set_num_threads(threads)
    network: nn.Module = case.network
    optimizer = torch.optim.SGD(network.parameters(), RATE, MOMENTUM, nesterov=True, fused=True)

    def forward(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(network(images), labels)

    forward = torch.compile(forward) if compiled else forward

    def step(number: int) -> float:
        loss = forward(case.images[number], case.labels[number])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


class Layers(Protocol):
    """What a framework makes of each kind of operation."""

    def convolution(self, op: Convolution, x: Any) -> Any:
        """With its bias, if it has one."""

    def norm(self, op: BatchNorm, x: Any) -> Any:
        """By the batch's statistics, with the running ones kept."""

    def relu(self, x: Any) -> Any:
        """The only activation of these networks."""

    def pool(self, op: Pool, x: Any) -> Any:
        """Of either kind."""


def run_graph(graph: Graph, layers: Layers, images: Any) -> Any:
    """The network's output, whatever the framework."""
    values = {0: images}
    for op in graph.operations:
        x = values[op.inputs[0]]
        match op:
            case Convolution():
                x = layers.convolution(op, x)
            case BatchNorm():
                x = layers.norm(op, x)
            case Activation():
                x = layers.relu(x)
            case Pool():
                x = layers.pool(op, x)
        values[op.output] = x
    return values[graph.output]


def weights_of(graph: Graph) -> dict[str, np.ndarray]:
    """The parameters of a graph's operations by name; of a linear layer in the shape of a convolution's."""
    found = {}
    for op in graph.operations:
        if isinstance(op, Convolution | BatchNorm):
            for role in ("weight", "bias"):
                if (tensor := getattr(op, role)) is not None:
                    found[f"{op.name}.{role}"] = tensor.detach().numpy().copy()
        if isinstance(op, Convolution):
            weight, channels = found[f"{op.name}.weight"], graph.shapes[op.inputs[0]][0]
            found[f"{op.name}.weight"] = weight.reshape(len(weight), channels // op.groups, *op.kernel)
    return found


def norms_of(graph: Graph) -> dict[str, int]:
    """The channels of each BatchNorm."""
    return {op.name: graph.shapes[op.output][0] for op in graph.operations if isinstance(op, BatchNorm)}


def jax_step(case: Case, threads: int) -> Step:  # noqa: ARG001 - the process is held to the cores
    """One jitted function of parameters, momenta and running statistics."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    graph = case.graph()

    class JaxLayers:
        def __init__(self, weights: Any) -> None:
            self.weights = weights
            self.statistics: dict[str, Any] = {}

        def convolution(self, op: Convolution, x: Any) -> Any:
            pads = [(p, p) for p in op.padding]
            x = lax.conv_general_dilated(
                x, self.weights[f"{op.name}.weight"], op.stride, pads, feature_group_count=op.groups
            )
            bias = self.weights.get(f"{op.name}.bias")
            return x if bias is None else x + bias[None, :, None, None]

        def norm(self, op: BatchNorm, x: Any) -> Any:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
            self.statistics[op.name] = mean, variance
            scale = self.weights[f"{op.name}.weight"] * lax.rsqrt(variance + op.epsilon)
            shift = self.weights[f"{op.name}.bias"] - scale * mean
            return x * scale[None, :, None, None] + shift[None, :, None, None]

        def relu(self, x: Any) -> Any:
            return jax.nn.relu(x)

        def pool(self, op: Pool, x: Any) -> Any:
            window, strides = (1, 1, *op.kernel), (1, 1, *op.stride)
            if op.kind == "max":
                return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, "VALID")
            return lax.reduce_window(x, 0.0, lax.add, window, strides, "VALID") / np.prod(op.kernel)

    def loss_of(weights: Any, images: Any, labels: Any) -> tuple[Any, Any]:
        layers = JaxLayers(weights)
        scores = run_graph(graph, layers, images).reshape(images.shape[0], -1)
        picked = jnp.take_along_axis(jax.nn.log_softmax(scores), labels[:, None], 1)
        return -picked.mean(), layers.statistics

    def update(state: Any, images: Any, labels: Any) -> tuple[Any, Any]:
        weights, momenta, running = state
        (loss, found), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights, images, labels)
        momenta = {name: MOMENTUM * momenta[name] + gradients[name] for name in weights}
        weights = {name: weights[name] - RATE * (gradients[name] + MOMENTUM * momenta[name]) for name in weights}
        kept = {
            name: tuple(0.9 * a + 0.1 * b for a, b in zip(pair, found[name], strict=True))
            for name, pair in running.items()
        }
        return (weights, momenta, kept), loss

    jitted = jax.jit(update, donate_argnums=0)
    start = weights_of(graph)
    state: Any = (
        {name: jnp.asarray(value) for name, value in start.items()},
        {name: jnp.zeros_like(value) for name, value in start.items()},
        {name: (jnp.zeros(channels), jnp.ones(channels)) for name, channels in norms_of(graph).items()},
    )
    batches = [(jnp.asarray(x.numpy()), jnp.asarray(y.numpy())) for x, y in case.batches()]

    def step(number: int) -> float:
        nonlocal state
        state, loss = jitted(state, *batches[number])
        return float(loss)

    return step


def tensorflow_step(case: Case, threads: int) -> Step:
    """One tf.function; channels last, the only layout of its convolutions on CPUs."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    graph = case.graph()
    start = weights_of(graph)
    for op in graph.operations:
        if isinstance(op, Convolution):  # depthwise ones: [height, width, channels, multiplier]
            order = (2, 3, 0, 1) if op.groups > 1 else (2, 3, 1, 0)
            start[f"{op.name}.weight"] = start[f"{op.name}.weight"].transpose(order)
    variables = {name: tf.Variable(value) for name, value in start.items()}
    momenta = {name: tf.Variable(tf.zeros_like(v)) for name, v in variables.items()}
    running = {
        name: (tf.Variable(tf.zeros(channels)), tf.Variable(tf.ones(channels)))
        for name, channels in norms_of(graph).items()
    }

    class TensorFlowLayers:
        def convolution(self, op: Convolution, x: Any) -> Any:
            if op.padding != (0, 0):
                x = tf.pad(x, [(0, 0), *((p, p) for p in op.padding), (0, 0)])
            kind = tf.nn.depthwise_conv2d if op.groups > 1 else tf.nn.conv2d
            x = kind(x, variables[f"{op.name}.weight"], (1, *op.stride, 1), "VALID")
            bias = variables.get(f"{op.name}.bias")
            return x if bias is None else x + bias

        def norm(self, op: BatchNorm, x: Any) -> Any:
            gamma, beta = variables[f"{op.name}.weight"], variables[f"{op.name}.bias"]
            x, mean, variance = tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=op.epsilon)
            for kept, new in zip(running[op.name], (mean, variance), strict=True):
                kept.assign(0.9 * kept + 0.1 * new)
            return x

        def relu(self, x: Any) -> Any:
            return tf.nn.relu(x)

        def pool(self, op: Pool, x: Any) -> Any:
            kind = tf.nn.max_pool2d if op.kind == "max" else tf.nn.avg_pool2d
            return kind(x, op.kernel, op.stride, "VALID")

    @tf.function  # type: ignore[untyped-decorator]
    def update(images: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            scores = tf.reshape(run_graph(graph, TensorFlowLayers(), images), (images.shape[0], -1))
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, scores))
        for name, gradient in zip(variables, tape.gradient(loss, list(variables.values())), strict=True):
            momenta[name].assign(MOMENTUM * momenta[name] + gradient)
            variables[name].assign_sub(RATE * (gradient + MOMENTUM * momenta[name]))
        return loss

    batches = [(tf.constant(x.numpy().transpose(0, 2, 3, 1)), tf.constant(y.numpy())) for x, y in case.batches()]
    return lambda number: float(update(*batches[number]))


def tinygrad_step(case: Case, threads: int) -> Step:  # noqa: ARG001 - the process is held to the cores
    """A TinyJit of the whole step."""
    from tinygrad import Context, Tensor, TinyJit
    from tinygrad import nn as tiny

    graph = case.graph()
    weights = {name: Tensor(value) for name, value in weights_of(graph).items()}
    running = {
        name: (Tensor.zeros(channels).contiguous(), Tensor.ones(channels).contiguous())
        for name, channels in norms_of(graph).items()
    }
    optimizer = tiny.optim.SGD(list(weights.values()), lr=RATE, momentum=MOMENTUM, nesterov=True)

    class TinyLayers:
        def convolution(self, op: Convolution, x: Any) -> Any:
            weight, bias = weights[f"{op.name}.weight"], weights.get(f"{op.name}.bias")
            return x.conv2d(weight, bias, groups=op.groups, stride=op.stride, padding=op.padding)

        def norm(self, op: BatchNorm, x: Any) -> Any:
            mean = x.mean((0, 2, 3))
            variance = (x - mean.reshape(1, -1, 1, 1)).square().mean((0, 2, 3))
            for kept, new in zip(running[op.name], (mean, variance), strict=True):
                kept.assign(0.9 * kept + 0.1 * new.detach())
            inverse = (variance + op.epsilon).rsqrt()
            return x.batchnorm(weights[f"{op.name}.weight"], weights[f"{op.name}.bias"], mean, inverse)

        def relu(self, x: Any) -> Any:
            return x.relu()

        def pool(self, op: Pool, x: Any) -> Any:
            return (x.max_pool2d if op.kind == "max" else x.avg_pool2d)(op.kernel, op.stride)

    @TinyJit  # type: ignore[untyped-decorator]
    def update(images: Any, labels: Any) -> Any:
        with Context(TRAINING=1):
            scores = run_graph(graph, TinyLayers(), images).reshape(images.shape[0], -1)
            loss = scores.sparse_categorical_crossentropy(labels)
            optimizer.zero_grad()
            loss.backward()
            kept = [tensor for pair in running.values() for tensor in pair]
            return loss.realize(*optimizer.schedule_step(), *kept)

    batches = [(Tensor(x.numpy()).realize(), Tensor(y.numpy().astype(np.int32)).realize()) for x, y in case.batches()]
    return lambda number: float(update(*batches[number]).item())


def work(way: str, network: str, threads: int) -> None:
    """A way's own process: prints what it is and its first losses, then a rate for each line that it reads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    out, sys.stdout = sys.stdout, sys.stderr  # frameworks print what they like
    trial = NETWORKS[network]()
    case = Case(trial)
    makers: dict[str, Callable[[], Step]] = {
        "smidgen": lambda: smidgen_step(case, threads),
        "smidgen-bf16": lambda: smidgen_step(case, threads, "bf16"),
        "torch": lambda: torch_step(case, threads),
        "compile": lambda: torch_step(case, threads, compiled=True),
        "jax": lambda: jax_step(case, threads),
        "tensorflow": lambda: tensorflow_step(case, threads),
        "tinygrad": lambda: tinygrad_step(case, threads),
    }
    began = time.perf_counter()
    step = makers[way]()
    losses = [step(number) for number in range(CHECKED)]
    seconds = time.perf_counter() - began
    for number in range(CHECKED, BATCHES):  # what a compiler does on the way does not count
        step(number)
    # Only now: whoever is measured next must have the cores to itself.
    print(json.dumps({"losses": losses, "seconds": seconds}), file=out, flush=True)
    for _ in sys.stdin:
        step(0)
        began = time.perf_counter()
        for number in range(STEPS):
            step(number % BATCHES)
        rate = STEPS * trial.batch_size / (time.perf_counter() - began)
        print(json.dumps({"rate": rate}), file=out, flush=True)


class Worker:
    """The process of a way.

    Attributes:
        rates: images a second, one a round.
        losses: of the first steps.
        first: seconds until they were done: compilation.
        problem: why there is nothing to measure; empty if there is.
    """

    def __init__(self, way: str, network: str, threads: int) -> None:
        self.way, self.rates = way, []  # type: tuple[str, list[float]]
        one = {"OMP_NUM_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "3", "DEV": "CPU"}
        xla = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}"
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", way, "--network", network, "--threads", str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **one, "XLA_FLAGS": xla},
        )  # fmt: skip
        answer = self._answer()
        self.losses: list[float] = answer.get("losses", [])
        self.first: float = answer.get("seconds", 0.0)
        self.problem: str = answer.get("problem", "")

    def measure(self) -> None:
        """One round."""
        assert self._process.stdin
        print("go", file=self._process.stdin, flush=True)
        self.rates.append(self._answer()["rate"])

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        assert self._process.stderr
        line = self._process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        said = self._process.stderr.read().strip().splitlines()
        return {"problem": said[-1] if said else f"ended with status {self._process.wait()}"}


def versions(workers: list[Worker]) -> Iterator[str]:
    """Each package with its version."""
    for package in dict.fromkeys(WAYS[worker.way][0] for worker in workers):
        for name in (package, f"{package}-cpu"):
            try:
                yield f"{package} {version(name)}"
                break
            except PackageNotFoundError:
                continue


def main() -> int:
    """Measure and print the table."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--threads", type=int, default=1, help="of each way; default 1")
    made.add_argument("--rounds", type=int, default=5, help="measurements of each way; default 5")
    made.add_argument("--network", choices=NETWORKS, help="only this one")
    made.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="default: all")
    made.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.worker:
        work(options.worker, options.network, options.threads)
        return 0
    if not 1 <= options.threads <= usable_cores():
        made.error(f"--threads is {options.threads}; this machine has {usable_cores()} cores to use")
    same = [compare(network, options) for network in ([options.network] if options.network else NETWORKS)]
    return int(not all(same))


def compare(network: str, options: argparse.Namespace) -> bool:
    """Measure all ways with one network and print the table; returns whether their losses agree."""
    workers: list[Worker] = []
    try:
        for way in options.ways:
            print(f"{network}: starting {WAYS[way][1]} ...", file=sys.stderr, flush=True)
            workers.append(Worker(way, network, options.threads))
        there = [worker for worker in workers if not worker.problem]
        for _ in range(options.rounds):
            for worker in there:
                worker.measure()
    finally:
        for worker in workers:
            worker.stop()
    for worker in workers:
        if worker.problem:
            print(f"{WAYS[worker.way][1]}: not measured: {worker.problem}", file=sys.stderr)
    reference = next((worker for worker in there if worker.way == "torch"), None)
    rows, same = [], True
    for worker in there:
        ratio = ""
        if reference:
            ratio = f"{statistics.median(a / b for a, b in zip(worker.rates, reference.rates, strict=True)):.2f}"
            tolerance = 3e-2 if worker.way == "smidgen-bf16" else 1e-3
            if not np.allclose(worker.losses, reference.losses, rtol=tolerance):
                print(f"{WAYS[worker.way][1]}: losses {worker.losses}, not {reference.losses}", file=sys.stderr)
                same = False
        rows.append([WAYS[worker.way][1], f"{statistics.median(worker.rates):,.0f}", ratio, f"{worker.first:.1f}"])
    trial = NETWORKS[network]()
    print(f"\n{network} ({trial.name}), batches of {trial.batch_size}, {options.threads} thread(s), float32\n")
    print(render(["way", "images/s", "times PyTorch eager", "s for the first 3 steps"], rows, "markdown"))
    print(f"\n{', '.join(versions(there))}")
    return same


if __name__ == "__main__":
    sys.exit(main())
