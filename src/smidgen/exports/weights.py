"""The target `safetensors`: the weights in one file that says by which trial they were trained."""

from __future__ import annotations

import time
from pathlib import Path

from smidgen.exports.target import Check, Source, compared
from smidgen.runs.weights import read_weights, to_bytes
from smidgen.training.evaluation import scores
from smidgen.trial import Module


class WeightsTarget:
    """One safetensors file: weights by PyTorch's names, trial, input shape and normalization in the metadata."""

    def files(self, source: Source) -> dict[str, bytes]:
        """The file, named after the trial."""
        return {self._name(source): to_bytes(source.run.trained)}

    def usage(self, source: Source) -> str:
        """In Python, with smidgen."""
        network = source.run.trial.network
        own = ""
        if isinstance(network, Module):
            own = f"smidgen.trust({network.file!r})  # the file with the network's code\n"
        return (
            f'```python\nimport smidgen\n\n{own}for found in smidgen.predict("{self._name(source)}", ["image.png"]):\n'
            "    print(found.name, found.probability)\n```\n\n"
            "The tensors have PyTorch's names: `safetensors.torch.load_file` and `load_state_dict` load them without "
            "smidgen into the same layers, which take normalized images."
        )

    def check(self, source: Source, directory: Path) -> Check:
        """Classify all test images with a network built from the file alone."""
        began = time.perf_counter()
        trained = read_weights(directory / self._name(source))
        found = scores(trained.network, source.images, trained.mean, trained.std)
        return compared(source, found, time.perf_counter() - began)

    @staticmethod
    def _name(source: Source) -> str:
        return f"{source.run.trial.name}.safetensors"
