"""Plans: YAML files of perf_analyzer_configs/plans/, checked before anything starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from perf.errors import PerfError
from perf.figures import PERCENTILES
from perf.profile import DIRECTORY, Chats, Images, Questions, explained

PLANS = DIRECTORY / "plans"
_TARGET = re.compile(rf"(ttft|itl|latency)_p({'|'.join(map(str, PERCENTILES))})_ms")

Setting = str | int | float
Configuration = dict[str, Setting]


class Plan(BaseModel):
    """What is searched, for whom, and what it costs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(exclude=True)
    description: str
    model: str = "generate"
    inputs: Questions | Chats | Images = Field(discriminator="kind")
    targets: dict[str, PositiveFloat] = Field(
        min_length=1, description="upper bounds, such as {ttft_p99_ms: 300, itl_p95_ms: 40}"
    )
    requests_per_s: PositiveFloat = Field(description="the whole load, over all machines")
    price_per_hour: PositiveFloat = Field(description="of one machine")
    space: dict[str, list[Setting]] = Field(
        description="settings as in the README, each with the values to try; the first is where the search begins. "
        "`precision` is one too: of the default language model's weights, or a recipe of `build_engines vision`"
    )
    streams: list[PositiveInt] = Field([1, 4, 8, 16], min_length=1, description="closed loops that are measured")
    requests: PositiveInt = Field(24, description="of each measurement, and at least two for each stream")
    timeout_s: PositiveFloat = Field(600, description="for one perf_analyzer run")

    @field_validator("targets")
    @classmethod
    def _known(cls, targets: dict[str, float]) -> dict[str, float]:
        for name in targets:
            if not _TARGET.fullmatch(name):
                raise ValueError(
                    f"{name!r} is no target: ttft, itl or latency, p50, p90, p95 or p99, and ms, such as ttft_p99_ms"
                )
        return targets

    @field_validator("space")
    @classmethod
    def _not_empty(cls, space: dict[str, list[Setting]]) -> dict[str, list[Setting]]:
        for name, values in space.items():
            if not values:
                raise ValueError(f"{name} has no values")
        return space

    @model_validator(mode="after")
    def _fits_the_model(self) -> Plan:
        if (self.inputs.kind == "images") != (self.model != "generate"):
            raise ValueError(f"inputs of kind {self.inputs.kind!r} do not fit the model {self.model!r}")
        if self.model != "generate" and (wrong := [name for name in self.targets if not name.startswith("latency")]):
            raise ValueError(f"an image has no tokens, and so no {wrong[0]}: take latency_p99_ms")
        return self

    @property
    def unit(self) -> str:
        """What is sold."""
        return "million tokens" if self.model == "generate" else "thousand images"

    @property
    def start(self) -> Configuration:
        """The first value of every setting."""
        return {name: values[0] for name, values in self.space.items()}


def parts(target: str) -> tuple[str, int]:
    """("ttft_ms", 99) of "ttft_p99_ms"."""
    found = _TARGET.fullmatch(target)
    assert found is not None
    return f"{found[1]}_ms", int(found[2])


def environment(configuration: Configuration) -> dict[str, str]:
    """The configuration as the server reads it."""
    return {f"TANDEM_{name.upper()}": str(value) for name, value in configuration.items()}


def names(directory: Path = PLANS) -> list[str]:
    """The plans that there are."""
    return sorted(path.stem for path in directory.glob("*.yaml"))


def load(name: str, changes: dict[str, Any] | None = None, directory: Path = PLANS) -> Plan:
    """The plan of this name, or in the file of this path, with some fields replaced.

    Raises:
        PerfError: there is none, or it is not a valid one; the message names the fields.
    """
    path = Path(name) if name.endswith(".yaml") else directory / f"{name}.yaml"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        raise PerfError(f"there is no plan {name!r}: choose one of {', '.join(names(directory))}") from None
    except yaml.YAMLError as error:
        raise PerfError(f"{path} is not YAML: {error}") from None
    if not isinstance(data, dict):
        raise PerfError(f"{path}: expected fields such as `targets:` and `space:`, found {type(data).__name__}")
    try:
        return Plan.model_validate({**data, **(changes or {}), "name": path.stem})
    except ValidationError as error:
        raise PerfError("\n".join([f"{path} is not a valid plan:", *map(explained, error.errors())])) from None
