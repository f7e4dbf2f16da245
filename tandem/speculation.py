"""Which draft tokens a pass verifies: proposes them, and spends on them only what they are expected to return.

Terms, as in Leviathan et al., "Fast inference from transformers via speculative decoding" (2023): a *draft* token is
*accepted* if it is the token that the target itself chooses there and all drafts before it were accepted; the target's
own token behind the last accepted one is the *bonus* token. A draft is worth the probability that it is accepted: the
product of the acceptance rates along its run. A pass over sequences with drafts yields the sum of their worths more
tokens than one without, and costs T(width) instead of T(rows): so drafts are taken in order of worth up to the width at
which tokens per second are the most (goodput, as in Liu et al., "TurboSpec", 2024). Where nothing pays, k is 0.

Acceptance rates are measured by kind of draft: the length of the match for suffixes, and for models how sure the model
was. Models cost time themselves: whether they draft is decided by their mean rate; how deep, and what of it is
verified, by how sure they are of what they came up with.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tandem.acceptance import SEQUENCE_MEMORY, Rate, ServerRates
from tandem.sampling import MIN_TEMPERATURE, SamplingState
from tandem.shared_texts import SharedTexts
from tandem.step import OpenSequence, Origin
from tandem.step_cost import StepCost
from tandem.suffix_drafter import Match, SuffixIndex

MIN_GAIN = 0.05  # drafts must promise this much more tokens per second: below, errors of the estimate decide
MATCH_LENGTHS = (2, 3, 4, 6, 9, 14, 22)  # suffix matches of at least so many tokens are one kind of draft
SUFFIX_PRIORS = (0.35, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9)
CONFIDENCES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97)  # the same for drafts of models
MODEL_PRIORS = (0.15, 0.25, 0.35, 0.4, 0.5, 0.55, 0.65, 0.7, 0.8, 0.9, 0.95)
MODEL_PRIOR = 0.5  # over all confidences
# Whether k comes from what was measured, or is what the request allows: for trying drafters, whatever they cost.
CONTROLS = ("measured", "always")
# Every so many passes with drafts there are a few more or fewer than pay, so that the cost of those widths stays known:
# one that is taken for dear is never used, and then nothing corrects that.
EXPLORE_EVERY = 50
EXTRA_DEPTH = 2  # a model may draft this much deeper than pays on average, because some runs are better than that


@dataclass(slots=True)
class DraftState:
    """What drafting knows of one sequence."""

    opened: OpenSequence
    sampling: SamplingState
    index: SuffixIndex = field(default_factory=SuffixIndex)
    suffix: Rate = field(default_factory=lambda: Rate(SEQUENCE_MEMORY))
    model: Rate = field(default_factory=lambda: Rate(SEQUENCE_MEMORY))
    features: npt.NDArray[np.float32] | None = None  # [hidden] of the position that chose the newest token

    def uses(self, drafter: str) -> bool:
        return self.opened.drafter in ("auto", drafter)

    @property
    def is_sampled(self) -> bool:
        return self.sampling.params.temperature >= MIN_TEMPERATURE


class Drafts(NamedTuple):
    """What a model proposes for one sequence."""

    tokens: list[int]
    confidences: list[float]  # the model's own probability of each


# Whether a model should draft on behind a run, told by how sure it was of each of its tokens.
GoesOn = Callable[[DraftState, Sequence[float]], bool]


@dataclass(slots=True)
class Proposal:
    """Draft tokens of one sequence in one pass."""

    state: DraftState
    limit: int  # drafts that may be verified
    tokens: list[int] = field(default_factory=list)
    origin: Origin = Origin.TARGET
    kinds: list[int] = field(default_factory=list)  # of each token, an index into the drafter's rates


class ModelDrafter(Protocol):
    """A drafter that is a model, and so costs time."""

    wants_features: bool  # it goes on from the target's hidden states: `DraftState.features`
    is_remote: bool  # it is another model of the server

    def propose(
        self, states: Sequence[DraftState], counts: Sequence[int], goes_on: GoesOn | None = None
    ) -> list[Drafts]:
        """Up to `counts[i]` tokens that may follow the history of `states[i]`; none if the drafter is out of order.

        A drafter whose tokens cost a step each stops where `goes_on` says so.
        """
        ...

    def close(self, state: DraftState) -> None:
        """This sequence is over."""
        ...


@dataclass(slots=True)
class _Candidate:
    """A sequence that could be given drafts."""

    proposal: Proposal
    match: Match | None  # None: the model drafts
    kind: int
    rates: list[float]  # expected acceptance of each draft that it could have, given the ones before


class Speculation:
    """The drafters of one executor and the control of what they may propose."""

    def __init__(
        self,
        cost: StepCost,
        model: ModelDrafter | None = None,
        shared: SharedTexts | None = None,
        control: str = "measured",
    ) -> None:
        """`control` is one of `CONTROLS`; raises `ValueError` if it is not."""
        if control not in CONTROLS:
            raise ValueError(f"draft_control is {control!r}; it must be one of {', '.join(CONTROLS)}")
        self._always = control == "always"
        self.cost = cost
        self.model = model
        self._shared = shared
        self.suffix_rates = ServerRates(SUFFIX_PRIORS)
        # Greedy and sampled: at the same confidence they agree with the target differently often.
        self.model_rates = ServerRates(MODEL_PRIORS * 2)
        self.model_means = ServerRates((MODEL_PRIOR,) * 2)
        self._model_share = 0.1  # seconds per draft of a step's batch, in steps of one token
        self._passes = 0  # with drafts

    @property
    def is_remote(self) -> bool:
        """Whether proposing calls another model of the server."""
        return self.model is not None and self.model.is_remote

    @property
    def wants_features(self) -> bool:
        return self.model is not None and self.model.wants_features

    def propose(self, proposals: Sequence[Proposal], width: int) -> None:
        """Fill in drafts.

        Args:
            proposals: one for each sequence that is decoding; its sampling history ends with the newest token.
            width: tokens in the pass without drafts.
        """
        candidates = [c for p in proposals if p.limit > 0 and (c := self._candidate(p)) is not None]
        rounds, place = divmod(self._passes, EXPLORE_EVERY)
        detour = (1, -1)[rounds % 2] if place == EXPLORE_EVERY - 1 else 0
        counts = self._allocate(candidates, width, self._model_share, detour)
        if self._draft(candidates, counts, width, in_full=detour > 0):
            counts = self._allocate(candidates, width, 0.0, detour)
        self._passes += any(counts) or detour != 0
        for candidate, count in zip(candidates, counts, strict=True):
            proposal, match = candidate.proposal, candidate.match
            if not count:
                self._forget(candidate)
                proposal.tokens, proposal.kinds = [], []
            elif match is not None:
                proposal.tokens, proposal.kinds = match.following(count), [candidate.kind] * count
            else:
                proposal.tokens, proposal.kinds = proposal.tokens[:count], proposal.kinds[:count]

    def observe(self, proposal: Proposal, accepted: int) -> None:
        """Of the proposal's tokens the first `accepted` were accepted."""
        if not proposal.tokens:
            return
        tried = min(accepted + 1, len(proposal.tokens))
        own, server = proposal.state.suffix, self.suffix_rates
        if proposal.origin is Origin.DRAFT:
            own, server = proposal.state.model, self.model_rates
            self.model_means.rates[proposal.state.is_sampled].observe(accepted, tried)
        own.observe(accepted, tried)
        for place, kind in enumerate(proposal.kinds[:tried]):
            server.rates[kind].observe(int(place < accepted), 1)

    def close(self, state: DraftState) -> None:
        """This sequence is over."""
        if self.model is not None:
            self.model.close(state)
        if self._shared is not None and not state.opened.retention.skipped:
            self._shared.add(state.opened.salt, state.sampling.history[state.opened.prompt_length :].tolist())

    def _candidate(self, proposal: Proposal) -> _Candidate | None:
        """The drafter that promises most for a sequence."""
        state, best, rate = proposal.state, None, 0.0
        if (match := self._match(state)) is not None:
            kind = bisect_right(MATCH_LENGTHS, match.length) - 1
            rate = state.suffix.mean(self.suffix_rates.mean(kind))
            proposal.origin = Origin.SUFFIX
            best = _Candidate(proposal, match, kind, [rate] * proposal.limit)
        if self.model is not None and state.uses("draft"):
            model_rate = state.model.mean(self.model_means.mean(state.is_sampled))
            if best is None or rate < model_rate:
                proposal.origin = Origin.DRAFT
                best = _Candidate(proposal, None, 0, [model_rate] * proposal.limit)
        return best

    def _match(self, state: DraftState) -> Match | None:
        """The longest match of the end of a sequence in itself, or in what others were told under the same salt."""
        if not state.uses("suffix"):
            return None
        history = state.sampling.history
        if len(state.index.tokens) > len(history):  # rolled back behind what is indexed
            state.index = SuffixIndex()
        state.index.extend(history[len(state.index.tokens) :].tolist())
        own = state.index.find(state.index.tokens)
        shared = self._shared.find(state.opened.salt, state.index.tokens) if self._shared else None
        return shared if shared and (own is None or shared.length > own.length) else own

    def _draft(self, candidates: Sequence[_Candidate], counts: Sequence[int], width: int, in_full: bool) -> bool:
        """Let the model draft where it is to, `in_full` even where it does not pay; then its candidates hold what each
        draft is worth."""
        asked = [(c, count) for c, count in zip(candidates, counts, strict=True) if c.match is None and count]
        if not asked or self.model is None:
            return False
        depths = [min(count + EXTRA_DEPTH, c.proposal.limit) for c, count in asked]
        goes_on = None if self._always or in_full else self._goes_on(width)
        started = time.perf_counter()
        drafted = self.model.propose([c.proposal.state for c, _ in asked], depths, goes_on)
        deepest = max(1, *(len(drafts.tokens) for drafts in drafted))
        share = (time.perf_counter() - started) / deepest / self.cost(width)
        # A call in which the draft reads a prompt says nothing of the others.
        self._model_share += 0.05 * (min(share, 2 * self._model_share) - self._model_share)
        for (candidate, _), drafts in zip(asked, drafted, strict=True):
            proposal = candidate.proposal
            proposal.tokens = drafts.tokens
            proposal.kinds = [_model_kind(proposal.state, confidence) for confidence in drafts.confidences]
            candidate.rates = [self.model_rates.mean(kind) for kind in proposal.kinds]
        for candidate in candidates:  # those that were not asked have nothing now
            if candidate.match is None and not candidate.proposal.tokens:
                candidate.rates = []
        return True

    def _goes_on(self, width: int) -> GoesOn:
        """Draft on where the next draft is expected to pay for itself: for the model's step and for being verified.

        The step may turn out to be for this sequence alone.
        """
        wider = 2 * width + 2
        slope = (self.cost(wider) / self.cost(width) - 1) / (wider - width)
        price = width * (self._model_share + slope)  # in tokens, of which a pass yields one per sequence

        def goes_on(state: DraftState, confidences: Sequence[float]) -> bool:
            rate = self.model_means.mean(state.is_sampled)
            worth = math.prod(self.model_rates.mean(_model_kind(state, confidence)) for confidence in confidences)
            return worth * rate >= price * (1 + rate)

        return goes_on

    def _forget(self, candidate: _Candidate) -> None:
        """Nothing was drafted, so what is known gets old."""
        state = candidate.proposal.state
        if candidate.match is not None:
            state.suffix.forget()
            self.suffix_rates.rates[candidate.kind].forget()
        else:
            state.model.forget()
            self.model_means.rates[state.is_sampled].forget()

    def _allocate(self, candidates: Sequence[_Candidate], width: int, model_share: float, detour: int = 0) -> list[int]:
        """How many drafts each candidate gets; each further place that a model drafts costs `model_share` steps.

        If any are worth it, they are so many that the step has the next width above the best one for a `detour` of 1,
        where there is one, and below for -1: none, if the best one is the first.
        """
        if self._always:
            return [len(candidate.rates) for candidate in candidates]
        counts = [0] * len(candidates)
        order = sorted(
            (-worth, place, index)
            for index, candidate in enumerate(candidates)
            for place, worth in enumerate(accumulate(candidate.rates, mul), 1)
        )
        step, best, chosen = self.cost(width), width / self.cost.expected(width, width) * (1 + MIN_GAIN), -1
        tokens, deepest, done = float(width), 0, 0
        sizes: list[int] = []  # drafts in a step of each of the widths
        for wide in self.cost.wider(width, width + len(order)):
            for negative, place, index in order[done : wide - width]:
                tokens -= negative
                if candidates[index].match is None:
                    deepest = max(deepest, place)
            done = min(len(order), wide - width)
            sizes.append(done)
            rate = tokens / (self.cost.expected(wide, width) + deepest * model_share * step)
            if rate > best:
                best, chosen = rate, len(sizes) - 1
        taken = 0
        if chosen >= 0:
            taken = [0, *sizes][1 + min(chosen + detour, len(sizes) - 1)]
        for _, _, index in order[:taken]:
            counts[index] += 1
        return counts


def _model_kind(state: DraftState, confidence: float) -> int:
    """Of a draft of a model, its index into `Speculation.model_rates`."""
    return state.is_sampled * len(CONFIDENCES) + bisect_right(CONFIDENCES, confidence) - 1


def agreement(drafts: Sequence[int], chosen: Sequence[int]) -> int:
    """How many drafts are accepted: the length of the longest common prefix."""
    for place, (draft, choice) in enumerate(zip(drafts, chosen, strict=False)):
        if draft != choice:
            return place
    return min(len(drafts), len(chosen))
