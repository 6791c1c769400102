"""LeNet-5 on MNIST, 10 epochs, as the benchmark of SimpleChains.jl has it: `make lenet`.

The network, the optimizer and the number of epochs are those of julialang.org/blog/2022/04/simple-chains (14 April
2022): two 5 x 5 convolutions with ReLU and 2 x 2 max pooling, three fully connected layers, Adam with a learning rate
of 3e-4. There, the batch is proportional to the number of threads; its size is not given. Here it is 64. Prints the
seconds of training and the test accuracy of each run.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from torch import nn

import smidgen
from smidgen import RunOptions
from smidgen.runs.progress import Silent
from smidgen.trial import Adam, Goal, Trial


class LeNet5(nn.Sequential):
    """44,426 parameters; images of 28 x 28."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
        )  # fmt: skip


def main() -> None:
    """Train and print."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--threads", type=int, help="default: the usable cores, at most 8")
    made.add_argument("--runs", type=int, default=3)
    made.add_argument("--batch-size", type=int, default=64)
    options = made.parse_args()
    trial = Trial(
        name="lenet-5",
        note="LeNet-5 as in the benchmark of SimpleChains.jl",
        goal=Goal(accuracy=98.0, parameters=44_426, epochs=10),
        network=smidgen.from_module(LeNet5),
        optimizer=Adam(lr=3e-4),
        batch_size=options.batch_size,
        epochs=10,
    )
    for seed in range(options.runs):
        with tempfile.TemporaryDirectory() as folder:
            run_options = RunOptions(threads=options.threads)
            run = smidgen.run(trial, seed=seed, options=run_options, out=Path(folder) / "run", progress=Silent())
            result = run.result
            print(f"seed {seed}: {result.seconds_training:.2f} s with an evaluation after each epoch, "
                  f"{result.accuracy_last:.2f} %, {result.engine}, {result.threads} thread(s)")  # fmt: skip


if __name__ == "__main__":
    main()
