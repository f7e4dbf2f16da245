"""Parts that tests of the scheduler and the decoding loop share: sequences, a collecting sink, an in-process target."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from table_engine import TableEngine, table_logits
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE

from tandem.coordinator import Coordinator
from tandem.decoding import DecodingLoop, Target, TargetFailed
from tandem.detokenizer import Detokenizer
from tandem.errors import RequestError
from tandem.executor import Executor
from tandem.manifest import Manifest
from tandem.metrics import Metrics
from tandem.noise import gumbel
from tandem.sampling import SamplingParams
from tandem.scheduler import Scheduler
from tandem.sequence import Emission, Sequence
from tandem.settings import CoordinatorSettings
from tandem.speculation import Speculation
from tandem.step import StepRequest, StepResult
from tandem.stopping import StopMatcher

VOCAB = 32
END = VOCAB - 1


def letters_tokenizer() -> Tokenizer:
    """Token i is one letter, so that texts and ids can be compared by eye."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef"
    tokenizer = Tokenizer(BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.decoder = ByteLevel()
    return tokenizer


def letters_coordinator(directory: Path, targets: Seq[Target], **settings: object) -> Coordinator:
    """A coordinator of targets whose engine's files it writes to `directory`."""
    letters_tokenizer().save(str(directory / "tokenizer.json"))
    fields: dict[str, Any] = {item.name: "" for item in dataclasses.fields(Manifest)}
    numbers = {"vocab_size": VOCAB, "context_length": 200, "dynamic_quantization_group": 0, "bos_token_id": None}
    fields |= numbers | {"eos_token_ids": (END,), "add_bos": False, "files": {}, "quality": None}
    runtime = {"runtime": "numpy", "runtime_version": metadata.version("numpy")}
    Manifest(**{**fields, **runtime}).write(directory)
    names = ",".join(f"target_{number}" for number in range(len(targets)))
    return Coordinator(CoordinatorSettings(target_models=names, **settings), directory, targets)  # type: ignore[arg-type]


DETOKENIZER = Detokenizer(letters_tokenizer())


@dataclass
class Collector:
    """Implements `tandem.sequence.Sink`."""

    emitted: Emission = field(default_factory=Emission)
    error: RequestError | None = None
    emissions: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    def emit(self, sequence: Sequence, emission: Emission) -> None:
        assert not self.ended.is_set(), "something came after the end"
        self.emitted.extend(emission)
        self.emissions += 1
        if emission.finish_reason:
            self.ended.set()

    def fail(self, sequence: Sequence, error: RequestError) -> None:
        assert not self.ended.is_set(), "something came after the end"
        self.error = error
        self.ended.set()


def make_sequence(
    identity: int,
    prompt: list[int],
    max_tokens: int = 8,
    sampling: SamplingParams | None = None,
    stop_words: tuple[str, ...] = (),
    priority: int = 0,
    arrival: float | None = None,
) -> tuple[Sequence, Collector]:
    sink = Collector()
    sequence = Sequence(
        id=identity,
        prompt=prompt,
        sampling=sampling or SamplingParams(end_ids=(END,)),
        max_tokens=max_tokens,
        detokenizer=DETOKENIZER.stream(),
        stopper=StopMatcher(stop_words),
        sink=sink,
        priority=priority,
        arrival=float(identity) if arrival is None else arrival,
    )
    return sequence, sink


def expected_tokens(sequence: Sequence) -> list[int]:
    """What the sequence must generate: one token at a time, nothing shared, straight from the definition."""
    history = list(sequence.prompt)
    temperature = sequence.sampling.temperature
    while len(history) - len(sequence.prompt) < sequence.max_tokens:
        scores = table_logits(history, VOCAB).astype(float)
        if temperature:
            scores = scores / temperature + gumbel(sequence.sampling.seed, len(history), range(VOCAB))
        history.append(int(scores.argmax()))
        if history[-1] in sequence.sampling.end_ids:
            break
    return history[len(sequence.prompt) :]


class LocalTarget:
    """Implements `tandem.decoding.Target` in this process; `failures` are the numbers of the steps that fail."""

    def __init__(
        self,
        num_blocks: int = 64,
        failures: frozenset[int] = frozenset(),
        restarts_work: bool = True,
        speculation: Callable[[], Speculation | None] = lambda: None,
    ) -> None:
        self.num_blocks = num_blocks
        self.failures = failures
        self.restarts_work = restarts_work
        self.speculation = speculation
        self.requests: list[StepRequest] = []
        self.epoch = 0
        self._load()

    def _load(self) -> None:
        self.epoch += 1
        self.engine = TableEngine(VOCAB, num_blocks=self.num_blocks)
        self.executor = Executor(self.engine, self.epoch, self.speculation())

    def step(self, request: StepRequest) -> StepResult:
        self.requests.append(request)
        if len(self.requests) in self.failures:
            raise TargetFailed("killed by the test")
        arrays = StepRequest.from_arrays(request.to_arrays())
        result = StepResult.from_arrays(self.executor.step(arrays).to_arrays())
        if self.executor.can_run_ahead:  # as the Triton model does
            self.executor.run_ahead()
        return result

    def restart(self) -> None:
        if not self.restarts_work:
            raise TargetFailed("cannot be loaded")
        self._load()


def make_loop(
    target: LocalTarget, max_running: int = 4, max_queue_size: int = 100, max_passes: int = 1
) -> DecodingLoop:
    return DecodingLoop(target, Scheduler(max_running, 8, 3, max_passes), Metrics(), max_queue_size)
