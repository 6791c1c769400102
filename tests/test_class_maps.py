"""Class activation maps: that they are what makes up the scores, where their cells lie, and who has none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from networks import unsettled
from smidgen.anatomy.layers import examine_trial
from smidgen.data.dataset import Dataset
from smidgen.nets.build import build_network
from smidgen.reports.class_maps import CellPlace, NoClassMapsError, class_maps
from smidgen.runs.record import Run
from smidgen.runs.weights import TrainedNetwork
from smidgen.training.evaluation import scores
from smidgen.trial import Trial
from smidgen.trials.builtin import BUILTIN, FLAGSHIP

ALL = torch.arange(10).expand(6, 10)


def trained(network: nn.Module, trial: Trial) -> TrainedNetwork:
    return TrainedNetwork(unsettled(network).eval(), trial, (1, 28, 28), 10, 0.13, 0.31)


def built(name: str) -> TrainedNetwork:
    trial = BUILTIN[name].make()
    torch.manual_seed(1)
    return trained(build_network(trial.network, input_shape=(1, 28, 28), classes=10, dropout=trial.dropout), trial)


class Branches(nn.Module):
    """Branches that are added and concatenated, and functions in place of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.Conv2d(6, 6, 5, padding=2)
        self.norm, self.last = nn.BatchNorm1d(12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = torch.cat([x + self.second(x), x], 1)
        scores: Tensor = self.last(self.norm(x.mean((2, 3))))
        return scores


def two_linear_layers() -> nn.Module:
    pooled = (nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*pooled, nn.Linear(6, 8, bias=False), nn.Dropout(0.5), nn.Linear(8, 10))


def no_linear_layer() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 10, 3, padding=1), nn.BatchNorm2d(10), nn.AvgPool2d(28), nn.Flatten())


def normalized_scores() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 10, 3), nn.ReLU(), nn.AvgPool2d(26), nn.Flatten(), nn.BatchNorm1d(10))


OWN = {"branches": Branches, "two linear": two_linear_layers, "none": no_linear_layer, "normalized": normalized_scores}


@pytest.mark.parametrize("name", [*BUILTIN, *OWN])
def test_the_mean_of_a_map_plus_the_bias_is_the_score(mnist: Dataset, small_trial: Trial, name: str) -> None:
    torch.manual_seed(2)
    network = trained(OWN[name](), small_trial) if name in OWN else built(name)
    images = mnist.held_out.images[:6]
    found = class_maps(network, images, ALL)
    expected = scores(network.network, images, network.mean, network.std).double()
    assert found.maps.shape[2] > 1
    torch.testing.assert_close(found.scores, expected, rtol=1e-4, atol=1e-4)


def test_a_trained_run_has_the_scores_that_it_was_evaluated_by(small_run: Run, mnist: Dataset) -> None:
    predictions = small_run.predictions
    assert predictions is not None
    found = class_maps(small_run.trained, mnist.held_out.images[:200], torch.arange(10).expand(200, 10))
    sure, classes = found.scores.softmax(1).max(1)
    assert classes.tolist() == predictions.classes.tolist()
    torch.testing.assert_close(sure.float(), torch.from_numpy(predictions.probabilities), rtol=1e-4, atol=1e-5)


def test_a_map_is_the_last_feature_map_weighted_by_the_class(mnist: Dataset) -> None:
    """As Zhou et al. define it, from the layers themselves; only the chosen classes, in the order that was asked."""
    network = built(FLAGSHIP)
    layers = dict(network.network.named_children())
    kept: list[Tensor] = []
    hook = layers["pool2"].register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    images = mnist.held_out.images[:6]
    network.network((images / 255 - network.mean) / network.std)
    hook.remove()
    classes = torch.tensor([[3, 7], [7, 3], [0, 9], [1, 1], [5, 2], [8, 4]])
    linear = layers["linear1"]
    assert isinstance(linear, nn.Linear)
    found = class_maps(network, images, classes)
    for number, pair in enumerate(classes):
        for place, label in enumerate(pair):
            expected = (linear.weight[label][:, None, None] * kept[0][number]).sum(0).double()
            torch.testing.assert_close(found.maps[number, place], expected, rtol=1e-4, atol=1e-4)
            assert found.bias[number, place] == linear.bias[label]


def test_cells_are_nonzero_where_the_image_is(small_trial: Trial) -> None:
    network = nn.Sequential(nn.Conv2d(1, 5, 1, bias=False), nn.AvgPool2d((8, 12)), nn.Flatten(), nn.Linear(5, 10))
    images = torch.zeros(1, 1, 8, 12, dtype=torch.uint8)
    images[0, 0, 2, 9] = 255
    found = class_maps(TrainedNetwork(network.eval(), small_trial, (1, 8, 12), 10, 0.0, 1.0), images, ALL[:1])
    assert (found.maps != 0).nonzero()[:, 2:].unique(dim=0).tolist() == [[2, 9]]
    assert (found.rows, found.columns) == (CellPlace(0, 1, 1), CellPlace(0, 1, 1))


@pytest.mark.parametrize("name", BUILTIN)
def test_cells_lie_where_the_receptive_fields_are(mnist: Dataset, name: str) -> None:
    """By the table of `smidgen inspect`, which follows the operators that PyTorch executes."""
    network = built(name)
    layers = examine_trial(network.trial, (1, 28, 28), 10).layers
    pool = max(i for i, layer in enumerate(layers) if layer.type == "AvgPool2d")
    seen = layers[pool - 1]
    assert seen.receptive_field
    assert seen.start
    assert seen.jump
    found = class_maps(network, mnist.held_out.images[:6], ALL)
    size, start, jump = seen.receptive_field[0], seen.start[0], seen.jump[0]
    assert found.rows == CellPlace(start + size / 2 - jump / 2, int(jump), size)
    assert found.columns == found.rows


def test_padding_and_the_wider_branch_count(small_trial: Trial, mnist: Dataset) -> None:
    found = class_maps(trained(Branches(), small_trial), mnist.held_out.images[:6], ALL)
    # A 3x3 field that begins at -1 with a jump of 2, widened by 2 cells of it on each side.
    assert found.rows == CellPlace(edge=(-1 - 4 + 2 + 4) / 2 - 1, jump=2, receptive_field=11)


class TwoScales(nn.Module):
    """Maps of the same size whose cells step by one pixel and by two."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far, self.last = nn.Conv2d(1, 4, 15), nn.Conv2d(1, 4, 1, stride=2), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.last((self.near(x) + self.far(x)).mean((2, 3)))
        return scores


HEAD = (nn.Conv2d(1, 4, 3, stride=2), nn.ReLU())
NONE = {
    "no pooling": (nn.Sequential(*HEAD, nn.Flatten(), nn.Linear(4 * 13 * 13, 10)), "layer 3"),
    "ReLU": (nn.Sequential(*HEAD, nn.AvgPool2d(13), nn.Flatten(), nn.ReLU(), nn.Linear(4, 10)), "layer 4"),
    "largest": (nn.Sequential(*HEAD, nn.MaxPool2d(13), nn.Flatten(), nn.Linear(4, 10)), "layer 2"),
    "not all": (nn.Sequential(*HEAD, nn.AvgPool2d(12), nn.Flatten(), nn.Linear(4, 10)), "layer 2"),
    "padded": (nn.Sequential(*HEAD, nn.AvgPool2d(13, padding=1), nn.Flatten(), nn.Linear(4, 10)), "layer 2"),
    "image": (nn.Sequential(nn.Conv2d(1, 10, 28), nn.Flatten()), "layer 0"),
    "softmax": (nn.Sequential(*HEAD, nn.AvgPool2d(13), nn.Flatten(), nn.Linear(4, 10), nn.Softmax(1)), "traced"),
    "scales": (TwoScales(), "different scales"),
}


@pytest.mark.parametrize("case", NONE)
def test_other_networks_have_no_maps_and_say_why(small_trial: Trial, mnist: Dataset, case: str) -> None:
    network, words = NONE[case]
    with pytest.raises(NoClassMapsError, match=words) as caught:
        class_maps(trained(network, small_trial), mnist.held_out.images[:6], ALL)
    assert "\n" not in str(caught.value)
