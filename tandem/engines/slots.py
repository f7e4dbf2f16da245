"""Language-model engine with contiguous KV slots, on any runtime that offers a `Session`.

A slot is to the rest of Tandem a block that holds a whole sequence. The rows of a step lie in any slots, while a run of
the session takes neighbouring ones: rows with few tokens go together, with whatever slot lies between them, and each
row with many tokens goes alone, because in attention all rows of a run are as long as the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tandem.engines import INVARIANCES, EngineOptions, Row
from tandem.engines.session import Session
from tandem.manifest import Manifest
from tandem.sampling import Choice, Floats, Int32s
from tandem.step import MAX_DRAFTS

SPARE_POSITIONS = 64  # of a slot, behind the longest text: for the padding of rows, `FEW_TOKENS` at most
FEW_TOKENS = 1 + MAX_DRAFTS  # rows with no more run together
FILLED = (1, 2, 4, 8, FEW_TOKENS)  # lengths that those are filled up to where few shapes are wanted,
FILLED_STEP = 8  # and what the number of all of a run's tokens is then a multiple of, or a power of two below
VISIBLE_STEP = 64  # attention looks at a multiple of so many positions; sums over them are rounded in groups


_Answers = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows that run together: their places in the step, and the slots from the first to the last."""

    places: list[int]
    first: int
    count: int


class SlotEngine:
    """Implements `tandem.engines.Engine` and `tandem.slot_cache.SlotMemory`."""

    graph_widths: Sequence[int] = ()

    def __init__(self, session: Session, manifest: Manifest, options: EngineOptions) -> None:
        if options.invariance not in INVARIANCES:
            raise ValueError(f"invariance {options.invariance!r} is not one of {', '.join(INVARIANCES)}")
        for name in ("activations", "kv_cache"):
            wanted, built = getattr(options, name), getattr(manifest, name)
            if wanted not in (None, built):
                raise ValueError(
                    f"{name} {wanted}: this engine was built with {built}, which cannot be changed when it is loaded; "
                    "build another with another --weights"
                )
        self._session = session
        self.vocab_size = manifest.vocab_size
        self.num_blocks = session.slots
        self.block_size = session.positions - SPARE_POSITIONS
        self.identity = f"{manifest.build_key} {manifest.runtime} {manifest.runtime_version} {options.invariance}"
        self._least = 1 if options.invariance == "off" else 2  # tokens of a step, of a row, and rows of the LM head
        self._written = [0] * session.slots  # tokens that a slot may hold
        self._features = np.zeros((0, 0), np.float32)

    @property
    def chooses(self) -> bool:
        """See `ChoosingEngine`."""
        return self._session.chooses

    def forward(self, rows: Sequence[Row], width: int = 0) -> npt.NDArray[np.float32]:
        """See `Engine.forward`; `width` changes nothing."""
        return self._step(rows, None)["logits"]

    def choose(self, rows: Sequence[Row], choices: Sequence[Choice], width: int = 0) -> tuple[Int32s, Floats]:
        """See `ChoosingEngine.choose`; `width` changes nothing."""
        found = self._step(rows, choices)
        return found["tokens"], found["log_probs"]

    def _step(self, rows: Sequence[Row], choices: Sequence[Choice] | None) -> _Answers:
        """What the session answers for each row of logits that is wanted, in their order."""
        groups = _groups(rows)
        if len(groups) == 1:
            found = self._run(rows, groups[0], choices)
        else:
            found = {}
            begins = np.cumsum([0, *(row.logits for row in rows)])
            for group in groups:
                places = np.concatenate([np.arange(*begins[place : place + 2]) for place in group.places])
                own = None if choices is None else [choices[place] for place in places]
                for name, part in self._run([rows[place] for place in group.places], group, own).items():
                    if name not in found:
                        found[name] = np.empty((begins[-1], *part.shape[1:]), part.dtype)
                    found[name][places] = part
        self._features = found["features"]
        return found

    @property
    def features(self) -> npt.NDArray[np.float32]:
        """See `Engine.features`; here always."""
        return self._features

    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        """See `SlotMemory.copy_prefix`."""
        self._session.copy(source, target, tokens)
        self._written[target] = tokens

    def _run(self, rows: Sequence[Row], group: _Group, choices: Sequence[Choice] | None) -> _Answers:
        """The same of rows in the slots of `group`; a slot between them gets padding behind its tokens."""
        most = max(self._least, *(len(row.tokens) for row in rows))
        fills = self._session.wants_few_shapes and most <= FEW_TOKENS
        if fills:
            most = next(length for length in FILLED if length >= most)
        tokens: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        unpack = np.zeros((group.count, most), np.int64)
        pack: list[int] = []
        write_index = np.array(self._written[group.first : group.first + group.count], np.int64)
        for row in rows:
            slot, count, at = row.blocks[0], len(row.tokens), len(tokens)
            inside = slot - group.first
            write_index[inside] = row.past
            unpack[inside] = np.minimum(np.arange(at, at + most), at + count - 1)
            pack.extend(range(inside * most, inside * most + count))
            wanted.extend(range(at + count - row.logits, at + count))
            tokens.extend(row.tokens)
            positions.extend(range(row.past, row.past + count))
            self._written[slot] = row.past + count
        answered = len(wanted)
        missing, unwanted = (_missing(count, self._least, fills) for count in (len(tokens), answered))
        visible = -(-(max(positions) + 1) // VISIBLE_STEP) * VISIBLE_STEP
        feeds = {
            "tokens": np.array(tokens + [0] * missing, np.int64),
            "positions": np.array(positions + [0] * missing, np.int64),
            "unpack": unpack,
            "pack": np.array(pack + [0] * missing, np.int64),
            "write_index": write_index,
            "wanted": np.array(wanted + [0] * unwanted, np.int64),
            "visible": np.array([min(visible, self._session.positions)], np.int64),
        }
        return {name: value[:answered] for name, value in self._session.run(feeds, group.first, choices).items()}


def _missing(count: int, least: int, fills: bool) -> int:
    """How many to add to `count` tokens, so that there are at least so many, and few different numbers."""
    wanted = max(count, least)
    if fills:
        wanted = 1 << (wanted - 1).bit_length() if wanted < FILLED_STEP else -(-wanted // FILLED_STEP) * FILLED_STEP
    return wanted - count


def _groups(rows: Sequence[Row]) -> list[_Group]:
    """Rows with few tokens together, the others one by one."""
    few = [place for place, row in enumerate(rows) if len(row.tokens) <= FEW_TOKENS]
    together = [few] if few else []
    alone = [[place] for place, row in enumerate(rows) if len(row.tokens) > FEW_TOKENS]
    groups = []
    for places in together + alone:
        slots = [rows[place].blocks[0] for place in places]
        groups.append(_Group(places, min(slots), max(slots) - min(slots) + 1))
    return groups
