"""A network as large as a budget allows, for images of any size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from smidgen.errors import SmidgenError, TrialError
from smidgen.nets.build import measure
from smidgen.trial import AvgPool, Block, Conv, Linear, Network, separable

LAST_SIDE = 6
"""The image is halved until its shorter side is about this, pixels."""
MOST_HALVINGS = 4
LARGE = 64
"""From this shorter side on, pixels, the first convolution takes steps of 2: most of the work would be there."""
GROWTH = 1.5
"""By which a stage is wider than the one before."""
MOST_WIDTH = 512
"""Of the first stage; wider would no longer be tiny."""
LEAST_SHARE = 0.9
"""Of the parameters that full convolutions can have, below which these are taken; docs/log.md has what was measured."""


def sized_network(
    input_shape: Sequence[int],
    classes: int,
    max_parameters: int,
    check: Callable[[Network], object] = lambda _network: None,
) -> Network:
    """A network just under a budget of parameters, and within what else is checked.

    Stages of padded 3 × 3 convolutions (two each, one in the last), each `GROWTH` times as wide as the one before,
    with average pooling between them; then the average over the image and a linear layer. All convolutions but the
    first are separable, unless something else than the parameters bounds their widths, as a budget of memory does,
    and leaves them with too few parameters (`LEAST_SHARE`). All widths are scaled together by bisection, and what is
    left over widens single layers, the last first.

    Args:
        input_shape: channels, height, width.
        classes: number of scores.
        max_parameters: the budget.
        check: raises a `SmidgenError` if a network is over another budget.

    Raises:
        SmidgenError: even the narrowest such network is over the budget.
    """
    plans = [_Plan(input_shape, classes, max_parameters, check, is_separable) for is_separable in (True, False)]
    found: list[tuple[Network, int]] = []
    problems: list[tuple[int, SmidgenError]] = []
    for plan in plans:
        try:
            found.append(_sized(plan))
        except SmidgenError as error:
            problems.append((plan.parameters(plan.widths(1.0)), error))
    if not found:
        raise min(problems, key=lambda problem: problem[0])[1]
    (network, parameters), (full, most) = found[0], found[-1]
    return network if parameters >= LEAST_SHARE * most else full


def _sized(plan: _Plan) -> tuple[Network, int]:
    """The widest network of a plan, and its parameters.

    Raises:
        SmidgenError: none fits.
    """
    narrowest = plan.widths(1.0)
    if (least := plan.parameters(narrowest)) > plan.max_parameters:
        raise TrialError(
            f"the smallest network for {'x'.join(map(str, plan.input_shape))} and {plan.classes} classes has "
            f"{least:,} parameters, more than {plan.max_parameters:,}; raise --max-parameters"
        )
    plan.check(plan.network(narrowest))
    low, high = 1.0, float(MOST_WIDTH)
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (middle, high) if plan.fits(plan.widths(middle)) else (low, middle)
    widths = plan.widths(low)
    for index in reversed(range(len(widths))):
        wider = [*widths[:index], widths[index] + 1, *widths[index + 1 :]]
        if plan.fits(wider):
            widths = wider
    return plan.network(widths), plan.parameters(widths)


class _Plan:
    """The stages of a network, chosen before the widths."""

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        max_parameters: int,
        check: Callable[[Network], object],
        is_separable: bool,
    ) -> None:
        self.max_parameters, self.check, self.is_separable = max_parameters, check, is_separable
        self.input_shape, self.classes = tuple(input_shape), classes
        side = min(self.input_shape[1:])
        self.stride = 2 if side >= LARGE else 1
        side = -(-side // self.stride)
        self.stages = 1 + max(0, min(MOST_HALVINGS, round(math.log2(max(side, 1) / LAST_SIDE))))

    def widths(self, first: float) -> list[int]:
        """The width of each convolution, given that of the first stage."""
        widths = [max(1, round(first * GROWTH**stage)) for stage in range(self.stages)]
        return [width for stage, width in enumerate(widths) for _ in range(1 if self._is_last(stage) else 2)]

    def network(self, widths: Sequence[int]) -> Network:
        blocks: list[Block] = []
        left, before = list(widths), 0
        for stage in range(self.stages):
            if stage:
                blocks.append(AvgPool(2))
            for _ in range(1 if self._is_last(stage) else 2):
                width = left.pop(0)
                if blocks and self.is_separable:
                    blocks += separable(before, width, padding=1)
                else:
                    blocks.append(Conv(width, padding=1, stride=1 if blocks else self.stride))
                before = width
        return Network(blocks=(*blocks, AvgPool(), Linear()))

    def parameters(self, widths: Sequence[int]) -> int:
        return measure(self.network(widths), input_shape=self.input_shape, classes=self.classes)[0]

    def fits(self, widths: Sequence[int]) -> bool:
        """Whether the network is within the budgets, and not too large for any."""
        try:
            if self.parameters(widths) > self.max_parameters:
                return False
            self.check(self.network(widths))
        except SmidgenError:
            return False
        return True

    def _is_last(self, stage: int) -> bool:
        return stage > 0 and stage == self.stages - 1
