"""How often a second turn reads otherwise because the K and V of the first answer come from the cache.

What was computed token by token, as an answer, differs in the last bits from what is computed at once, as a prompt, and
may decide between two tokens that are about equally likely.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from client import Client, Message
from client.response import Result

STREAMS = 8


class Turns(NamedTuple):
    """Of so many second turns: those whose tokens differ between a hit and a miss, and between two misses."""

    asked: int
    differ: int
    differ_without: int


def second_turns(client: Client, questions: Sequence[tuple[str, str]], tokens: int) -> Turns:
    """Ask both questions of each chat, greedy; the second once with the first turn cached, and twice without.

    Chats whose first answer is not found, because its text is divided into other tokens, are not counted.
    """

    def answer(messages: list[Message], salt: str) -> Result:
        return client.generate(
            messages=messages, max_tokens=tokens, min_length=tokens, cache_salt=salt, return_token_ids=True
        )

    def chat(asked: tuple[str, str]) -> tuple[bool, bool] | None:
        salt = secrets.token_hex(8)
        messages: list[Message] = [{"role": "user", "content": asked[0]}]
        first = answer(messages, salt)
        messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": asked[1]}]
        hit, miss, again = (answer(messages, key) for key in (salt, secrets.token_hex(8), secrets.token_hex(8)))
        if hit.cached_prompt_tokens < first.prompt_tokens + tokens // 2:
            return None
        return hit.token_ids != miss.token_ids, miss.token_ids != again.token_ids

    with ThreadPoolExecutor(STREAMS) as pool:
        found = [chat for chat in pool.map(chat, questions) if chat is not None]
    return Turns(len(found), sum(hit for hit, _ in found), sum(miss for _, miss in found))
