"""Which replica of the target a request goes to: by what each has of its prompt, and by what each has to do.

The rule is that of cache-aware load balancers (SGLang's router, Zheng et al. 2024; Preble, Srivatsa et al. 2024) as one
number: the prompt tokens that a replica would have to compute, and `SEQUENCE_TOKENS` more for every sequence that it
has already. The least wins. So the turns of a chat stay together, a prefix that everybody shares spreads over the
replicas as the load asks for it, and prompts that share nothing go where least is to do.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence

PIECE = 32  # tokens that are looked up at a time
SEQUENCE_TOKENS = 64  # prompt tokens that are as much work as a sequence: a guess at what is left of its answer
REMEMBERED = 1 << 16  # pieces, the least recently placed are forgotten first


class Placement:
    """Remembers where prompts went. Not thread-safe."""

    def __init__(self, replicas: int, remembered: int = REMEMBERED) -> None:
        self._replicas = replicas
        self._remembered = remembered
        self._places: OrderedDict[bytes, int] = OrderedDict()  # key of a prompt's beginning -> bit mask of replicas
        self._turn = 0

    def order(self, prompt: Sequence[int], salt: str, loads: Sequence[int]) -> list[int]:
        """All replicas, the best one first.

        Args:
            loads: sequences that each has, running and waiting.
        """
        if self._replicas == 1:
            return [0]
        found = [0] * self._replicas
        among = (1 << self._replicas) - 1
        for count, key in enumerate(_keys(prompt, salt), 1):
            among &= self._places.get(key, 0)
            if not among:
                break
            for replica in range(self._replicas):
                if among >> replica & 1:
                    found[replica] = count * PIECE
        self._turn += 1  # equal ones take turns

        def work(replica: int) -> tuple[int, int]:
            turn = (replica - self._turn) % self._replicas
            return SEQUENCE_TOKENS * loads[replica] - found[replica], turn

        return sorted(range(self._replicas), key=work)

    def place(self, prompt: Sequence[int], salt: str, replica: int) -> None:
        """The prompt went to this replica, which will have it in its cache."""
        for key in _keys(prompt, salt) if self._replicas > 1 else ():
            self._places[key] = self._places.get(key, 0) | 1 << replica
            self._places.move_to_end(key)
        while len(self._places) > self._remembered:
            self._places.popitem(last=False)

    def forget(self, replica: int) -> None:
        """Its cache is empty: a new process, or one that was told to."""
        kept = ((key, places & ~(1 << replica)) for key, places in self._places.items())
        self._places = OrderedDict((key, places) for key, places in kept if places)


def _keys(prompt: Sequence[int], salt: str) -> Iterator[bytes]:
    """A key for each beginning of the prompt that is whole pieces long."""
    key = salt.encode()
    for at in range(0, len(prompt) - PIECE + 1, PIECE):
        key = hashlib.blake2b(key + array("i", prompt[at : at + PIECE]).tobytes(), digest_size=16).digest()
        yield key
