"""Load profiles: YAML files of perf_analyzer_configs/, checked before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from launcher.runtime import PROJECT
from perf.errors import PerfError

DIRECTORY = PROJECT / "perf_analyzer_configs"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Concurrency(_Strict):
    """A closed loop: so many streams, each sends its next request when its last one has ended."""

    kind: Literal["concurrency"]
    levels: list[PositiveInt] = Field(min_length=1, description="numbers of streams")


class Poisson(_Strict):
    """An open loop: requests come at random, whether earlier ones have ended or not."""

    kind: Literal["poisson"]
    levels: list[PositiveFloat] = Field(min_length=1, description="requests per second, on average")


class Bursts(_Strict):
    """An open loop: so many requests at once, then a pause."""

    kind: Literal["bursts"]
    levels: list[PositiveInt] = Field(min_length=1, description="requests in a burst")
    every_s: PositiveFloat = Field(description="seconds from the beginning of a burst to that of the next")


class Part(_Strict):
    """One kind of request in a mix."""

    share: PositiveFloat = Field(description="of all requests; shares are divided by their sum")
    prompt_words: PositiveInt | None = Field(
        None, description="questions are joined up to so many words; one by default"
    )
    max_tokens: PositiveInt
    whole: bool = Field(False, description="the answer may not end before max_tokens")


class Questions(_Strict):
    """Real questions (MT-Bench), in a mix of prompt and answer lengths; no two requests share more than they must."""

    kind: Literal["questions"]
    mix: list[Part] = Field(min_length=1)
    parameters: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="more inputs of the model `generate`, for all requests"
    )


class Chats(_Strict):
    """Chats of several turns behind system prompts that some of them share.

    Each turn is a request that holds the chat so far. Earlier answers are texts of other questions: what counts here is
    that the beginning repeats.
    """

    kind: Literal["chats"]
    systems: PositiveInt = Field(description="different system prompts")
    system_words: PositiveInt
    turns: PositiveInt
    max_tokens: PositiveInt
    parameters: dict[str, bool | int | float | str] = Field(default_factory=dict)


class Images(_Strict):
    """JPEG files: crops of a real photo, in several sizes, for an image classifier."""

    kind: Literal["images"]
    sizes: list[PositiveInt] = Field(min_length=1, description="pixels along an edge")


class Cancelling(_Strict):
    """Clients beside the measured load that leave their streams early; ours, as perf_analyzer cannot cancel."""

    clients: PositiveInt
    after_tokens: tuple[PositiveInt, PositiveInt] = Field(description="least and most responses read before leaving")


class Profile(_Strict):
    """One load profile."""

    name: str = Field(exclude=True)
    description: str
    model: str = "generate"
    load: Annotated[Concurrency | Poisson | Bursts, Field(discriminator="kind")]
    requests: PositiveInt | list[PositiveInt] = Field(
        description="measured requests of a round, for all levels or each"
    )
    rounds: PositiveInt = Field(6, description="how often each level is measured, in turns; comparison wants 6 or more")
    inputs: Annotated[Questions | Chats | Images, Field(discriminator="kind")]
    cancelling: Cancelling | None = None
    server: dict[str, str | int | float] = Field(
        default_factory=dict, description="settings of a server that is started for this profile, as in the README"
    )
    timeout_s: PositiveFloat = Field(600, description="for one perf_analyzer run")

    @model_validator(mode="after")
    def _levels_fit(self) -> Profile:
        if isinstance(self.requests, list) and len(self.requests) != len(self.load.levels):
            raise ValueError(f"requests has {len(self.requests)} entries for {len(self.load.levels)} levels")
        for level, count in zip(self.load.levels, self.counts(), strict=True):
            if not isinstance(self.load, Poisson) and count < level:
                raise ValueError(f"{count} requests never make {self.load.kind} of {level}: more requests are needed")
        if (self.inputs.kind == "images") != (self.model != "generate"):
            raise ValueError(f"inputs of kind {self.inputs.kind!r} do not fit the model {self.model!r}")
        if self.cancelling and self.model != "generate":
            raise ValueError("cancelling clients need the model 'generate'")
        return self

    def counts(self) -> list[int]:
        """Requests of a round at each level."""
        levels = len(self.load.levels)
        return list(self.requests) if isinstance(self.requests, list) else [self.requests] * levels

    def environment(self) -> dict[str, str]:
        """The server's settings as environment variables."""
        return {f"TANDEM_{name.upper()}": str(value) for name, value in self.server.items()}


def names(directory: Path = DIRECTORY) -> list[str]:
    """The profiles that there are."""
    return sorted(path.stem for path in directory.glob("*.yaml"))


def load(name: str, directory: Path = DIRECTORY) -> Profile:
    """The profile of this name, or in the file of this path.

    Raises:
        PerfError: there is none, or it is not a valid one; the message names the fields.
    """
    path = Path(name) if name.endswith(".yaml") else directory / f"{name}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        raise PerfError(f"there is no profile {name!r}: choose one of {', '.join(names(directory))}") from None
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PerfError(f"{path} is not YAML: {error}") from None
    if not isinstance(data, dict):
        raise PerfError(f"{path}: expected fields such as `load:` and `inputs:`, found {type(data).__name__}")
    try:
        return Profile.model_validate({**data, "name": path.stem})
    except ValidationError as error:
        raise PerfError("\n".join([f"{path} is not a valid profile:", *map(explained, error.errors())])) from None


def explained(error: object) -> str:
    """One of pydantic's errors, in a line."""
    assert isinstance(error, dict)
    place = ".".join(str(part) for part in error["loc"]) or "the profile"
    message = str(error["msg"]).removeprefix("Value error, ")
    found = error.get("input")
    shown = f", found {found!r}" if isinstance(found, bool | int | float | str) else ""
    return f"  {place}: {message}{shown}"
