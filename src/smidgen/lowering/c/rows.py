"""Where the rows of a pipeline's values are, and how many there are, in C."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from smidgen.graph.ops import Shape
from smidgen.lowering.integer import Step, Sums
from smidgen.lowering.pipeline import Pipeline
from smidgen.lowering.stages import Stage
from smidgen.lowering.value_types import SCORES


class Rows:
    """The values of a pipeline, as its functions in C name them.

    Args:
        pipeline: stages and memory.
        steps: in integers, by the value of the whole network that each writes.
        before: how many values of the network lie before the pipeline's own.
        first: how many stages do.
        on_its_side: whether rows are columns of the image.

    Attributes:
        pipeline: likewise.
        on_its_side: likewise.
        takes_image: whether value 0 is the image, and not another pipeline's last value.
        steps: by the pipeline's own values, on their side where the rows are.
        stages: by the value that each writes.
        names: of the tables of each stage, likewise.
        counters: the number of each stage's counter, likewise.
    """

    def __init__(
        self, pipeline: Pipeline, steps: Mapping[int, Step], before: int, first: int, *, on_its_side: bool
    ) -> None:
        self.pipeline = pipeline
        self.on_its_side, self.takes_image = on_its_side, before == 0
        self.steps = {value - before: _turned(step) if on_its_side else step for value, step in steps.items()}
        self.counters = {stage.output: first + number for number, stage in enumerate(pipeline.stages)}
        self.stages = {stage.output: stage for stage in pipeline.stages}
        self.names = {stage.output: layer_name(before + stage.output) for stage in pipeline.stages}

    def sums(self, value: int) -> Sums:
        """The convolution that writes a value."""
        found = self.steps[value]
        assert isinstance(found, Sums)
        return found

    def shape(self, value: int) -> Shape:
        """Of a value, as the network has it."""
        channels, height, width = self.pipeline.graph.shapes[value]
        return (channels, width, height) if self.on_its_side else (channels, height, width)

    def count(self, value: int) -> str:
        """How many rows of a value there are, in C."""
        if value == 0:
            return "given"
        made, each = f"scratch->made[{self.counters[value]}]", self.stages[value].rows_each
        return f"{made} / {each}" if each > 1 else made

    def there(self, stage: Stage, value: int) -> str:
        """Whether a value has the rows that the next one needs, in C."""
        height, rows = self.pipeline.graph.shapes[value][1], self.count(value)
        if stage.extent == height and not stage.padding:
            return f"{rows} == {height}"
        wanted = f"row * {stage.stride}" if stage.stride > 1 else "row"
        more = stage.extent - stage.padding
        enough = f"{rows} >= {wanted} + {more}" if more >= 0 else f"{rows} + {-more} >= {wanted}"
        return f"({rows} == {height} || {enough})" if stage.padding else enough

    def ring(self, value: int) -> str:
        """Where the rows of a value are, in C."""
        if value == 0 and self.takes_image:
            return "image"
        return plus("memory", self.pipeline.places[value])

    def kept(self, value: int) -> str:
        """How many rows there are before the next takes the place of the first, in C."""
        return "ring" if value == 0 and self.takes_image else str(self.pipeline.rings[value])

    def row(self, value: int, row: str) -> str:
        """Where one of its rows is, typed."""
        kind = self.pipeline.types[value]
        if kind == SCORES:
            return "scratch->scores"
        kept = self.kept(value)
        at = self.ring(value) + (f" + {row} % {kept} * {self.pipeline.row_bytes(value)}" if kept != "1" else "")
        return at if kind == "uint8_t" else f"({kind} *)({at})"

    def patch(self, stage: Stage) -> str:
        """Where a stage gathers what four pixels depend on, typed."""
        patch = self.pipeline.patches[stage.output]
        if patch.lender is None:
            assert patch.place is not None
            return f"(uint16_t *)({plus('memory', patch.place)})"
        rows = self.count(patch.lender)
        return f"(uint16_t *)({self.row(patch.lender, f'({rows})' if ' ' in rows else rows)})"


def layer_name(value: int) -> str:
    """What the names of the tables begin with of the stage that writes a value of the whole network."""
    return f"layer{value}"


def _turned(step: Step) -> Step:
    """The same for images on their side; of poolings, the pipeline's graph has the sides."""
    return replace(step, weight=step.weight.transpose(0, 1, 3, 2)) if isinstance(step, Sums) else step


def plus(base: str, offset: int) -> str:
    """An address in C."""
    return f"{base} + {offset}" if offset else base
