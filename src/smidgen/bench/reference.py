"""The reference way: images prepared one at a time by Pillow in a DataLoader, and a plain PyTorch training step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from smidgen.data.dataset import Dataset
from smidgen.graph.layers import Dropout
from smidgen.nets.build import build_network
from smidgen.trial import SGD, Augmentation, Trial

Step = Callable[[], object]


@contextmanager
def loader_step(trial: Trial, dataset: Dataset) -> Iterator[Step]:
    """A training step as the reference notebooks take it.

    One worker process turns PIL images into tensors one by one; training is plain eager PyTorch.
    """
    network = network_of(trial, dataset, trial.dropout, torch_dropout=True)
    assert isinstance(trial.optimizer, SGD)
    optimizer = torch.optim.SGD(network.parameters(), lr=trial.optimizer.lr, momentum=trial.optimizer.momentum)
    loader = DataLoader(
        PillowImages(dataset, trial.augmentation),
        batch_size=trial.batch_size,
        shuffle=True,
        num_workers=1,
        persistent_workers=True,
        drop_last=True,
    )
    batches = iter(itertools.chain.from_iterable(itertools.repeat(loader)))

    def step() -> None:
        images, labels = next(batches)
        _train_step(network, optimizer, images, labels)

    yield step


def _train_step(network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    """Forward, backward and optimizer, with the loss and the count of hits that a training loop shows."""
    logits = network(images)
    loss = F.cross_entropy(logits, labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    loss.item()
    int((logits.detach().argmax(1) == labels).sum())


def network_of(trial: Trial, dataset: Dataset, dropout: float, torch_dropout: bool) -> nn.Module:
    """A trial's network in training mode, with the project's dropout or PyTorch's."""
    network = build_network(trial.network, input_shape=dataset.input_shape, classes=dataset.classes, dropout=dropout)
    if torch_dropout:
        for name, module in list(network.named_children()):
            if isinstance(module, Dropout):
                setattr(network, name, nn.Dropout(module.p))
    return network.train()


class PillowImages(TorchDataset[tuple[Tensor, int]]):
    """Training images as torchvision's RandomAffine, ToTensor and Normalize would give them, one at a time."""

    def __init__(self, dataset: Dataset, settings: Augmentation) -> None:
        self.images = dataset.train.images.squeeze(1).numpy()
        self.labels = dataset.train.labels.numpy()
        self.mean, self.std, self.settings = dataset.mean, dataset.std, settings

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self._affine(Image.fromarray(self.images[index]))
        values = torch.from_numpy(np.array(image)).unsqueeze(0).contiguous().to(torch.float32).div(255)
        return values.sub_(self.mean).div_(self.std), int(self.labels[index])

    def _affine(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        angle, shift_x, shift_y, scale = (
            float(torch.empty(1).uniform_(-strength, strength))
            for strength in (
                self.settings.rotation,
                self.settings.translation * width,
                self.settings.translation * height,
                self.settings.scale,
            )
        )
        cos, sin = math.cos(math.radians(angle)) / (1 + scale), math.sin(math.radians(angle)) / (1 + scale)
        centre_x, centre_y = width / 2, height / 2
        left, top = centre_x + round(shift_x), centre_y + round(shift_y)
        matrix = (
            cos, sin, centre_x - cos * left - sin * top,
            -sin, cos, centre_y + sin * left - cos * top,
        )  # fmt: skip
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=0)
