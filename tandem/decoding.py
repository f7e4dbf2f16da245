"""The decoding cycle: admit, verify, accept, emit. Pure: the target and the clients are behind protocols."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Protocol

from tandem import ranges
from tandem.cache_counts import CACHE_COUNTERS
from tandem.errors import Cancelled, ExecutorFailed, InvalidRequest, QueueFull, RequestError, ShuttingDown, TimedOut
from tandem.metrics import Metrics
from tandem.sampling import NO_TOKEN
from tandem.scheduler import Capacity, Plan, Scheduler
from tandem.sequence import Sequence
from tandem.step import RowStatus, StepRequest, StepResult

MAX_FAILURES_IN_A_ROW = 3  # a target that fails this often without one good step is not healed by reloading it
IDLE_POLL_S = 0.2  # how often an idle loop looks for its drain file
NO_CACHE_STATE = (0, 0)  # of a target that has made no step yet

log = logging.getLogger(__name__)


class TargetFailed(Exception):
    """A step did not come back: the process died, or the executor raised."""


class ServerStopping(Exception):
    """The server was told to stop: no step will come back any more."""


class Target(Protocol):
    """The executor of the target model, wherever it runs."""

    def step(self, request: StepRequest) -> StepResult:
        """Run one step; raises `TargetFailed` or `ServerStopping`."""
        ...

    def restart(self) -> None:
        """Load the executor anew; raises `TargetFailed`."""
        ...


class DecodingLoop:
    """Runs cycles on a thread of its own, from `start` to `stop`; other threads may call `submit` and `cancel`."""

    def __init__(
        self,
        target: Target,
        scheduler: Scheduler,
        metrics: Metrics,
        max_queue_size: int,
        drain_file: Path | None = None,
    ) -> None:
        self._target = target
        self._scheduler = scheduler
        self._metrics = metrics
        self._max_queue_size = max_queue_size
        self._drain_file = drain_file  # its appearance has the effect of `stop`
        self._inbox: deque[Sequence] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._capacity: Capacity | None = None
        self._epoch: int | None = None
        self.cache_state = NO_CACHE_STATE  # what is kept of earlier answers is of use as long as this stays
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; sequences that still run fail with `ShuttingDown`."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    @property
    def load(self) -> int:
        """Sequences that run or wait; from any thread, and then a little late."""
        return len(self._inbox) + len(self._scheduler.waiting) + len(self._scheduler.running)

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence for the next cycle.

        If it is the first of a group, the others follow when its prompt has been computed, and find it in the cache.

        Raises:
            QueueFull: `max_queue_size` sequences wait already, beyond those that can run at once.
            ShuttingDown: the loop is stopping.
        """
        with self._wake:
            if self._stopping:
                raise ShuttingDown("the server is shutting down")
            slots = self._scheduler.max_running - len(self._scheduler.running)
            others = len(sequence.group) - 1
            if len(self._inbox) + len(self._scheduler.waiting) + others - slots >= self._max_queue_size:
                raise QueueFull(f"the queue is full: {self._max_queue_size} requests wait already; try again later")
            self._inbox.append(sequence)
            self._wake.notify()

    def cancel(self, sequence: Sequence) -> None:
        """The client has gone: the next cycle frees the sequence and all of its group."""
        with self._wake:
            for one in sequence.group:
                one.cancelled = True
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._inbox or self._scheduler.has_work or self._is_stopping()):
                    self._wake.wait(IDLE_POLL_S)
                if self._is_stopping():
                    break
                while self._inbox:
                    self._scheduler.add(self._inbox.popleft())
            try:
                with ranges.CYCLE:
                    self.cycle()
            except Exception as error:  # a bug: it must end neither the thread nor in silence
                log.exception("decoding cycle failed")
                self._recover(TargetFailed(f"internal error in the decoding cycle: {error!r}"))
        while self._inbox:
            self._scheduler.add(self._inbox.popleft())
        self._fail_all(ShuttingDown("the server is shutting down"))

    @property
    def has_ended(self) -> bool:
        """The thread ran and is over: every sequence has got its last emission or its error."""
        return self._thread.ident is not None and not self._thread.is_alive()

    def _is_stopping(self) -> bool:
        if self._drain_file and self._drain_file.exists():
            self._stopping = True
        return self._stopping

    def cycle(self) -> None:
        """One step of the whole batch."""
        self._advance()
        self._metrics.running = len(self._scheduler.running)
        self._metrics.queued = len(self._scheduler.waiting)

    def _advance(self) -> None:
        self._drop_ended()
        if self._capacity is None:
            self._step(StepRequest())  # an empty step tells what the executor has
            if self._capacity is None:
                return
        self._drop_misfits(self._capacity)
        started = time.monotonic()
        plan = self._scheduler.plan(self._capacity)
        self._metrics.preemptions += len(plan.preempted)
        called = time.monotonic()
        result = self._step(plan.request)
        if result is not None:
            ended = time.monotonic()
            traces = [sequence.trace for sequence in plan.batch if sequence.trace]  # some may end with this step
            self._take(plan, result)
            for trace in traces:
                trace.cycle(started, called, ended, plan.request, result)
            self._failures = 0

    def _drop_ended(self) -> None:
        for sequence in self._scheduler.drop(lambda s: s.cancelled):
            self._fail(sequence, Cancelled("the client cancelled the request"))
        now = time.monotonic()
        for sequence in self._scheduler.drop(lambda s: now > s.deadline):
            self._fail(
                sequence,
                TimedOut(f"the request's time was over after {sequence.generated} of {sequence.max_tokens} tokens"),
            )

    def _drop_misfits(self, capacity: Capacity) -> None:
        """Refuse what could not be finished even with the whole KV pool; everything else can, by preemption."""
        room = (capacity.total_blocks - 1) * capacity.block_size
        for sequence in self._scheduler.drop(lambda s: len(s.prompt) + s.max_tokens > room):
            wanted = len(sequence.prompt) + sequence.max_tokens
            self._fail(sequence, InvalidRequest(f"max_tokens: with the prompt {wanted} tokens; KV memory holds {room}"))

    def _step(self, request: StepRequest) -> StepResult | None:
        """Run a step; on failure reload the target, so that the next cycle feeds every sequence again."""
        try:
            result = self._target.step(request)
        except TargetFailed as error:
            log.warning("target failed, reloading it: %s", error)
            self._recover(error)
            return None
        except ServerStopping:
            self._stopping = True
            return None
        self._capacity = Capacity(result.free_blocks, result.total_blocks, result.block_size)
        self._metrics.kv_blocks_total = result.total_blocks
        self._metrics.kv_blocks_used = result.total_blocks - result.free_blocks
        self._metrics.observe_cache(result)
        self.cache_state = (result.epoch, int(result.cache[CACHE_COUNTERS.index("resets")]))
        if self._epoch not in (None, result.epoch):  # somebody else reloaded it: it knows none of the sequences
            self._scheduler.forget_caches()
            self._epoch = result.epoch
            return None
        self._epoch = result.epoch
        return result

    def _recover(self, error: TargetFailed) -> None:
        self._failures += 1
        self._capacity = None
        self._metrics.kv_blocks_used = 0
        self._scheduler.forget_caches()
        if self._failures >= MAX_FAILURES_IN_A_ROW:
            self._fail_all(ExecutorFailed(f"the target failed {self._failures} times in a row: {error}"))
            self._failures = 0
        try:
            self._target.restart()
            self._metrics.target_restarts += 1
        except TargetFailed as failed:
            log.error("target could not be reloaded: %s", failed)

    def _take(self, plan: Plan, result: StepResult) -> None:
        """Accept the chosen tokens of every row that ran."""
        chosen, log_probs, origins = result.chosen.tolist(), result.log_probs.tolist(), result.origins.tolist()
        columns = (result.status, result.lengths, result.cached, result.counts, result.drafted)
        states = zip(*(column.tolist() for column in columns), strict=True)
        now, at = time.monotonic(), 0
        for sequence, row, state in zip(plan.batch, plan.request.rows, states, strict=True):
            status, length, found, count, drafted = state
            if status == RowStatus.UNKNOWN_SEQUENCE:
                sequence.forget_cache()
                continue
            sequence.cached = length
            if status == RowStatus.OUT_OF_BLOCKS:
                continue
            if found and not sequence.generated:  # not after a preemption
                sequence.reused = found
            self._metrics.prompt_tokens += max(0, min(length, len(sequence.prompt)) - row.keep - found)
            sequence.drafted += drafted
            if count:
                part = slice(at, at + count)
                self._accept(sequence, chosen[part], log_probs[part], origins[part], now)
                at += count
        if plan.batch:
            self._metrics.observe_call(result)

    def _accept(
        self, sequence: Sequence, tokens: Seq[int], log_probs: Seq[float], origins: Seq[int], now: float
    ) -> None:
        if NO_TOKEN in tokens:
            self._scheduler.remove(sequence)
            self._fail(
                sequence, RequestError("no token can be chosen: bad_words forbid all, or the logits are not finite")
            )
            return
        emission = sequence.accept(tokens, log_probs, origins)
        self._metrics.observe_tokens(len(emission.token_ids), sequence.last_token_at, sequence.arrival, now)
        if sequence.last_token_at is None and sequence is sequence.group[0]:
            for follower in sequence.group[1:]:
                self._scheduler.add(follower)
            if sequence.trace:
                sequence.trace.event("first token", now)
        sequence.last_token_at = now
        if emission.finish_reason:
            self._scheduler.remove(sequence)
            sequence.ended = True
            if all(one.ended for one in sequence.group):
                self._metrics.observe_outcome("success")
                if trace := sequence.group[0].trace:
                    trace.end(sequence.group)
        sequence.sink.emit(sequence, emission)

    def _fail(self, sequence: Sequence, error: RequestError) -> None:
        """End the request of a sequence that has left the scheduler."""
        if sequence.ended:  # with another of its group
            return
        for one in sequence.group:
            if not one.ended:
                self._scheduler.remove(one)
                one.ended = True
        self._metrics.observe_outcome(error.outcome)
        if trace := sequence.group[0].trace:
            trace.fail(error)
        sequence.sink.fail(sequence, error)

    def _fail_all(self, error: RequestError) -> None:
        for sequence in self._scheduler.drop(lambda _: True):
            self._fail(sequence, error)
