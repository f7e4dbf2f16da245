"""Turns requests into sequences and runs them through the decoding loop of the target, or of one of its replicas."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import threading
import time
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

from tandem.answer_cache import AnswerCache, Recorder
from tandem.decoding import NO_CACHE_STATE, DecodingLoop, Target
from tandem.detokenizer import Detokenizer
from tandem.errors import InvalidRequest, QueueFull, RequestError
from tandem.kv_cache import Retention
from tandem.manifest import Manifest
from tandem.metrics import Metrics, total
from tandem.placement import Placement
from tandem.prompt import PromptEncoder
from tandem.request import GenerateRequest, parse_request
from tandem.sampling import SamplingParams
from tandem.scheduler import Scheduler
from tandem.sequence import Sequence, Sink
from tandem.settings import CoordinatorSettings
from tandem.step import DRAFTERS
from tandem.stopping import StopMatcher
from tandem.tracing import Tracing


class Coordinator:
    """One per `generate` instance."""

    def __init__(
        self, settings: CoordinatorSettings, engine_directory: Path, targets: Seq[Target], has_draft: bool = False
    ) -> None:
        """Not started yet.

        Args:
            engine_directory: what all of `targets` serve; tokenizer and manifest are read from it.
            targets: in the order of `settings.targets`.
        """
        manifest = Manifest.load(engine_directory, verify=False)  # the target verifies the weights
        self.settings = settings
        self._drafters = [name for name in DRAFTERS if name != "draft" or has_draft]
        self._metrics = Metrics()  # of what reaches no target
        self.tracing = Tracing(settings.trace_url) if settings.trace_url else None
        self.answers = AnswerCache(settings.answer_cache_mb << 20)
        self._metrics.answers = self.answers
        self.prompts = PromptEncoder(engine_directory)
        self.max_length = min(manifest.context_length, settings.max_length or manifest.context_length)
        self._end_ids = tuple(manifest.eos_token_ids)
        self._detokenizer = Detokenizer(self.prompts.tokenizer)
        self._drain_file = Path(settings.drain_file) if settings.drain_file else None
        self._ids = itertools.count(1)
        self._replicas = [Metrics() for _ in targets]
        self._loops = [self._loop(target, metrics) for target, metrics in zip(targets, self._replicas, strict=True)]
        self._placement = Placement(len(targets))
        self._placing = threading.Lock()
        self._placed = dict.fromkeys(settings.targets, 0)
        self._cache_states = [loop.cache_state for loop in self._loops]

    def _loop(self, target: Target, metrics: Metrics) -> DecodingLoop:
        settings = self.settings
        scheduler = Scheduler(
            settings.max_running, settings.max_step_tokens, settings.mixed_step_tokens, settings.max_passes
        )
        return DecodingLoop(target, scheduler, metrics, settings.max_queue_size, self._drain_file)

    def start(self) -> None:
        for loop in self._loops:
            loop.start()

    def stop(self) -> None:
        for loop in self._loops:
            loop.stop()
        if self.tracing:
            self.tracing.stop()

    def read_metrics(self) -> Metrics:
        """What is counted, over all replicas."""
        result = total([self._metrics, *self._replicas])
        result.placed = dict(self._placed)
        return result

    def parse(self, fields: Mapping[str, Seq[Any]], parameters: Mapping[str, Any] | None = None) -> GenerateRequest:
        """Check the fields of a request; see `tandem.request.parse_request`.

        Args:
            fields: its tensors.
            parameters: those of the request itself.
        """
        request = parse_request(fields, self.settings.max_prompt_bytes, self._drafters)
        name = self.settings.salt_parameter
        if not name:
            return request
        tenant = (parameters or {}).get(name)
        if not isinstance(tenant, str) or not tenant:
            raise InvalidRequest(f"{name}: this server needs this request parameter, which tells tenants apart")
        return dataclasses.replace(request, cache_salt=json.dumps([tenant, request.cache_salt]))

    def prepare(
        self, request: GenerateRequest, sink: Sink, timeout_s: float | None = None, trace_context: str = ""
    ) -> tuple[Sequence, str]:
        """Tokenize a request and check its lengths. `sink` will get its tokens, or its error.

        `trace_context` is that of the span whose child the request's span is to be: see `tandem.tracing`.

        Returns:
            The first sequence of the request's group, which `submit` and `cancel` take, and the prompt as text.

        Raises:
            InvalidRequest: the prompt is empty, too long, or refused by the chat template.
        """
        if request.messages is None:
            field, text = "text_input", request.text_input or ""
        else:
            field, text = "messages", self.prompts.render(request.messages)
        prompt = self.prompts.encode(text, special_tokens=request.messages is None)
        max_tokens = self._answer_length(field, len(prompt), request)
        if timeout_s is None and self.settings.default_timeout_ms:
            timeout_s = self.settings.default_timeout_ms / 1000
        sampling, now = self._sampling(request), time.monotonic()
        group = [
            Sequence(
                id=next(self._ids),
                prompt=prompt,
                sampling=dataclasses.replace(sampling, seed=(request.random_seed + index) % 2**64),
                max_tokens=max_tokens,
                detokenizer=self._detokenizer.stream(continued=request.messages is None),
                stopper=StopMatcher(request.stop_words),
                sink=sink,
                priority=request.priority,
                drafter=request.drafter,
                max_drafts=self._max_drafts(request),
                salt=request.cache_salt,
                retention=Retention(request.cache_priority, request.cache_pin, request.cache_skip),
                deadline=float("inf") if timeout_s is None else now + timeout_s,
                arrival=now,
            )
            for index in range(request.num_return_sequences)
        ]
        for sequence in group:
            sequence.group = group
        if self.tracing and trace_context:
            asked = {"prompt_tokens": len(prompt), "max_tokens": max_tokens, "answers": len(group)}
            group[0].trace = self.tracing.begin(trace_context, asked, now)
        return group[0], text

    def submit(self, request: GenerateRequest, sequence: Sequence) -> None:
        """Answer a request, whose first sequence this is, from the answers that are kept, or queue its group.

        Raises `QueueFull` or `ShuttingDown`; the sink is not called then.
        """
        if self.answers and self._may_be_kept(request):
            answer = self.answers.get(self._answer_key(request, sequence))
            if answer is not None:
                sequence.replay(answer)
                self._metrics.observe_outcome("success")
                if sequence.trace:
                    sequence.trace.end(sequence.group)
                sequence.sink.emit(sequence, answer)
                return
            sequence.sink = Recorder(sequence.sink, self.answers, lambda: self._answer_key(request, sequence))
        try:
            self._place(sequence)
        except RequestError as error:
            if sequence.trace:
                sequence.trace.fail(error)
            raise

    def _place(self, sequence: Sequence) -> None:
        """Give a group to the best replica whose queue has room; raises as `submit`."""
        prompt, salt = sequence.prompt, sequence.salt
        with self._placing:
            for replica, loop in enumerate(self._loops):
                before, self._cache_states[replica] = self._cache_states[replica], loop.cache_state
                if loop.cache_state != before and before != NO_CACHE_STATE:
                    self._placement.forget(replica)
            order = self._placement.order(prompt, salt, [loop.load for loop in self._loops])
            for replica in order:
                for one in sequence.group:
                    one.replica = replica
                try:
                    self._loops[replica].submit(sequence)
                except QueueFull:
                    if replica == order[-1]:
                        raise
                    continue
                if not sequence.retention.skipped:
                    self._placement.place(prompt, salt, replica)
                self._placed[self.settings.targets[replica]] += 1
                return

    @staticmethod
    def _may_be_kept(request: GenerateRequest) -> bool:
        """Whether the answer may serve others, and theirs this request."""
        return request.is_deterministic and request.num_return_sequences == 1 and not request.cache_skip

    def _answer_key(self, request: GenerateRequest, sequence: Sequence) -> bytes:
        """Hash over everything that determines the answer. Who drafts for it does not."""
        sampling = sequence.sampling
        if sampling.temperature == 0:
            sampling = dataclasses.replace(sampling, seed=0)
        text = request.messages is None  # a leading space is part of a text that is continued, and not of an answer
        caches = tuple(loop.cache_state for loop in self._loops)
        parts = (caches, sequence.salt, sampling, sequence.max_tokens, request.stop_words, text)
        return hashlib.blake2b(repr((parts, sequence.prompt)).encode(), digest_size=32).digest()

    def cancel(self, sequence: Sequence) -> None:
        self._loops[sequence.replica].cancel(sequence)

    def all_sent(self) -> None:
        """Nothing waits to be sent; if the loops have ended too, removing the drain file tells that to who made it."""
        if self._drain_file and all(loop.has_ended for loop in self._loops):
            self._drain_file.unlink(missing_ok=True)

    def count_refused(self, error: RequestError) -> None:
        """Count a request that `parse` or `submit` refused."""
        self._metrics.observe_outcome(error.outcome)

    def _answer_length(self, field: str, prompt_length: int, request: GenerateRequest) -> int:
        if prompt_length == 0:
            raise InvalidRequest(f"{field}: has no tokens")
        room = self.max_length - prompt_length
        if room < 1:
            raise InvalidRequest(f"{field}: has {prompt_length} tokens; prompt and answer may have {self.max_length}")
        if request.max_tokens is None:
            return min(room, self.settings.default_max_tokens)
        if request.max_tokens > room:
            raise InvalidRequest(
                f"max_tokens: is {request.max_tokens}; after a prompt of {prompt_length} tokens there is room for "
                f"{room} of {self.max_length}"
            )
        return request.max_tokens

    def _max_drafts(self, request: GenerateRequest) -> int:
        wanted = request.num_draft_tokens
        return self.settings.max_drafts if wanted is None else min(wanted, self.settings.max_drafts)

    def _sampling(self, request: GenerateRequest) -> SamplingParams:
        bad_words = (ids for word in request.bad_words for ids in self.prompts.encode_word(word))
        return SamplingParams(
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            min_p=request.min_p,
            seed=request.random_seed,
            repetition_penalty=request.repetition_penalty,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            min_length=request.min_length,
            end_ids=self._end_ids,
            bad_words=tuple(dict.fromkeys(bad_words)),
            log_probs=request.return_log_probs,
        )
