"""Settings of the served models: a default here, overridden by `config.pbtxt` parameters, then by the environment."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from tandem.step import MAX_DRAFTS, MAX_PASSES

ENVIRONMENT_PREFIX = "TANDEM_"


class SettingError(ValueError):
    """A setting is unknown or its value unusable; the message names it, the value and where it came from."""


@dataclass(frozen=True)
class _Settings:
    @classmethod
    def read(cls, parameters: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> Self:
        """Settings from a model's `parameters`, and from `TANDEM_<NAME>` in the environment, which wins.

        Raises:
            SettingError: an unknown parameter name, or a value of the wrong type or out of range.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(parameters) - set(fields))
        if unknown:
            raise SettingError(f"config.pbtxt: unknown parameter {unknown[0]!r}; known: {', '.join(sorted(fields))}")
        values: dict[str, Any] = {}
        for name, field in fields.items():
            variable = ENVIRONMENT_PREFIX + name.upper()
            for source, text in (
                (f"config.pbtxt: parameter {name!r}", parameters.get(name)),
                (f"environment variable {variable}", environment.get(variable)),
            ):
                if text is not None and text.strip():
                    values[name] = _convert(source, text.strip(), field.default)
        settings = dataclasses.replace(cls(), **values)
        settings.check()
        return settings

    def check(self) -> None:
        """Raise `SettingError` for values that are of the right type but out of range."""

    def _require(self, condition: bool, name: str, wanted: str) -> None:
        if not condition:
            raise SettingError(f"setting {name!r} is {getattr(self, name)!r}; it must be {wanted}")


def _convert(source: str, text: str, default: Any) -> Any:
    try:
        return type(default)(text)
    except ValueError:
        raise SettingError(f"{source} is {text!r}; it must be of type {type(default).__name__}") from None


@dataclass(frozen=True)
class DraftSettings(_Settings):
    """Settings of `draft`. Empty precisions and 0 threads mean: as the engine's manifest and the runtime say."""

    draft_engine: str = "engine"  # directory; relative to the model's version directory
    draft_kv_cache_mb: int = 512
    draft_activations: str = ""
    draft_kv_cache: str = ""
    draft_threads: int = 0
    draft_graph_memory_mb: int = 512  # as graph_memory_mb
    draft_prefix_cache: int = 1  # as prefix_cache

    def check(self) -> None:
        self._require(self.draft_kv_cache_mb >= 1, "draft_kv_cache_mb", "at least 1")
        self._require(self.draft_threads >= 0, "draft_threads", "0 (all cores) or more")
        self._require(self.draft_graph_memory_mb >= 0, "draft_graph_memory_mb", "0 (none) or more")


@dataclass(frozen=True)
class TargetSettings(_Settings):
    """Settings of `target`. Empty precisions and 0 threads mean: as the engine's manifest and the runtime say."""

    target_engine: str = "engine"  # directory; relative to the model's version directory
    kv_cache_mb: int = 1024
    activations: str = ""
    kv_cache: str = ""
    threads: int = 0
    invariance: str = "step"  # off or step: see tandem.engines.INVARIANCES
    # For graphs of fixed widths, each with a copy of the weights: see tandem.engines.EngineOptions. One of the default
    # engine's takes 170 MB, and a second while the model loads.
    graph_memory_mb: int = 2048
    prefix_cache: int = 1  # whether KV blocks are kept for requests that begin alike; 0: no
    # Whether K and V that were computed as those of an answer serve a prompt too, as in the next turn of a chat. They
    # differ in the last bits from those computed as a prompt's, which may decide between two equally likely tokens.
    cache_answers: int = 1
    pinned_share: float = 0.25  # of the pool that requests with cache_pin may have, at most
    host_cache_mb: int = 0  # memory for blocks that the pool gives up; 0: none
    disk_cache_dir: str = ""  # directory for those, which the next process finds again; empty: none
    disk_cache_mb: int = 4096
    redis_url: str = ""  # a Redis server that several servers share their prompts' blocks by; empty: none
    draft_model: str = "draft"  # a model of the same repository that drafts, if its engine is there
    draft_engine: str = "engine"  # the draft's engine directory
    draft_control: str = "measured"  # how many drafts: see tandem.speculation.CONTROLS
    shared_suffix_tokens: int = 0  # tokens of recent answers, per cache_salt, that are drafted from; 0: none

    def check(self) -> None:
        self._require(self.kv_cache_mb >= 1, "kv_cache_mb", "at least 1")
        self._require(self.threads >= 0, "threads", "0 (all cores) or more")
        self._require(self.graph_memory_mb >= 0, "graph_memory_mb", "0 (none) or more")
        self._require(0 <= self.pinned_share <= 0.9, "pinned_share", "between 0 and 0.9")
        self._require(self.host_cache_mb >= 0, "host_cache_mb", "0 (none) or more")
        self._require(self.disk_cache_mb >= 1, "disk_cache_mb", "at least 1")
        self._require(self.shared_suffix_tokens >= 0, "shared_suffix_tokens", "0 (off) or more")


@dataclass(frozen=True)
class CoordinatorSettings(_Settings):
    """Settings of `generate`."""

    # A model of the same repository, or several that serve the same engine, separated by commas: replicas, each with a
    # KV cache of its own. A request goes to the one that has most of its prompt or least to do: see tandem.placement.
    target_models: str = "target"
    target_engine: str = "engine"  # the first one's engine directory: tokenizer and manifest are read from it
    draft_model: str = "draft"  # a model of the same repository; whether its engine is there says what may be asked for
    draft_engine: str = "engine"
    max_running: int = 32  # sequences in the running batch of each target
    max_queue_size: int = 256  # sequences that wait beyond those, for each; more are refused with UNAVAILABLE
    max_length: int = 0  # prompt and answer together, tokens; 0: the model's context
    max_prompt_bytes: int = 1 << 19  # a prompt beyond this is refused before it is tokenized
    default_max_tokens: int = 128
    default_timeout_ms: int = 0  # for requests that bring none; 0: none
    max_step_tokens: int = 512  # prompt tokens in a step in which nothing is decoding
    mixed_step_tokens: int = 64  # prompt tokens in a step beside running streams: bounds their inter-token latency
    # Tokens that each sequence gets in one call of the target while all are decoding and none waits to join: the call
    # itself costs 1 to 2 ms. A new or cancelled request waits for the end of the call.
    max_passes: int = 4
    max_drafts: int = MAX_DRAFTS  # draft tokens of a sequence in one pass, at most; 0 turns speculation off
    # Each response costs server and client CPU time that on a small machine the engine loses: beyond this rate the
    # tokens of a stream are sent in runs (the first and the last at once). 0: no bound.
    max_responses_per_s: int = 80
    answer_cache_mb: int = 0  # memory for whole answers to deterministic requests that may come again; 0: none
    # A request parameter that tells tenants apart: it becomes part of the salt, and requests without it are refused.
    # For a gateway to set in place of what the client sent: Triton 2.51 forwards no headers to this model. Empty: none.
    salt_parameter: str = ""
    # When this file appears, running requests end with UNAVAILABLE, new ones are refused, and the file is removed: so
    # that a server can be stopped while it is busy. Triton 2.51 may crash when it is stopped during BLS calls.
    drain_file: str = ""
    # OTLP over HTTP: where spans of the requests go that Triton traces, for example http://127.0.0.1:4318/v1/traces.
    trace_url: str = ""

    def check(self) -> None:
        for name in ("max_running", "max_prompt_bytes", "default_max_tokens", "max_step_tokens", "mixed_step_tokens"):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        self._require(1 <= self.max_passes <= MAX_PASSES, "max_passes", f"between 1 and {MAX_PASSES}")
        self._require(0 <= self.max_drafts <= MAX_DRAFTS, "max_drafts", f"between 0 and {MAX_DRAFTS}")
        for name in ("max_queue_size", "max_length", "default_timeout_ms", "max_responses_per_s", "answer_cache_mb"):
            self._require(getattr(self, name) >= 0, name, "0 or more")
        names = self.targets
        self._require(bool(all(names)) and len(set(names)) == len(names), "target_models", "names, each one once")

    @property
    def targets(self) -> list[str]:
        """The names in `target_models`."""
        return [name.strip() for name in self.target_models.split(",")]


MAX_DECODER_THREADS = 4  # unless the setting says more: each may need memory for an image of the largest size


@dataclass(frozen=True)
class DecoderSettings(_Settings):
    """Settings of `image_decoder`."""

    max_image_bytes: int = 32 << 20  # of a file; more are refused before anything is decoded
    # Width times height as decoded; decoding takes up to about 25 bytes for each, and each thread may be at one image.
    # A JPEG may have four times as many if it can be decoded at half its size.
    max_image_pixels: int = 16 << 20
    decoder_threads: int = 0  # images of a batch that are decoded at a time; 0: as many as cores, 4 at most

    def check(self) -> None:
        self._require(self.max_image_bytes >= 1, "max_image_bytes", "at least 1")
        self._require(self.max_image_pixels >= 1, "max_image_pixels", "at least 1")
        self._require(self.decoder_threads >= 0, "decoder_threads", "0 (as many as cores, 4 at most) or more")


@dataclass(frozen=True)
class ClassifierSettings(_Settings):
    """Settings of the classifiers."""

    classifier_threads: int = 0  # of the CPU; 0: all cores

    def check(self) -> None:
        self._require(self.classifier_threads >= 0, "classifier_threads", "0 (all cores) or more")


@dataclass(frozen=True)
class RankerSettings(_Settings):
    """Settings of `label_ranker`."""

    default_top_k: int = 5  # classes that are named where a request does not say how many

    def check(self) -> None:
        self._require(self.default_top_k >= 1, "default_top_k", "at least 1")
