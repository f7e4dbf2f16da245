"""Which of Triton's endpoints administer the server, and the key that opens them to a client.

Whoever may load models may run code, so on a server that others can reach these are for its operator alone. Calls
from inside the server are not affected: `generate` reloads a dead `target` in any case.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

KEY_VARIABLE = "TANDEM_ADMIN_KEY"
HEADER = "tandem-admin-key"  # of HTTP; Triton puts `triton-grpc-protocol-` in front of it for gRPC
# Names of `tritonserver --help`; health, metadata, statistics and inference stay open.
RESTRICTED = ("model-repository", "shared-memory", "trace", "logging")
_KEY = re.compile(r"[A-Za-z0-9_.~-]{16,256}")  # a header's value that needs no quoting in Triton's option either


class AdminKeyError(ValueError):
    """The key cannot be used; the message says what it may be, and not what it is."""


def admin_key(env: Mapping[str, str]) -> str:
    """The key in `env`, or a random one, which nobody knows: then no client administers the server.

    Raises:
        AdminKeyError: it is too short, too long or has characters that a header may not carry.
    """
    key = env.get(KEY_VARIABLE, "").strip()
    if not key:
        return secrets.token_urlsafe(32)
    if not _KEY.fullmatch(key):
        raise AdminKeyError(
            f"{KEY_VARIABLE} must be 16 to 256 letters, digits or any of _ . ~ - (for example the output of "
            "`openssl rand -hex 16`)"
        )
    return key


def restriction_arguments(key: str) -> list[str]:
    """tritonserver arguments by which only clients that send `key` reach the endpoints in RESTRICTED."""
    rule = f"{','.join(RESTRICTED)}:{HEADER}={key}"
    return [f"--http-restricted-api={rule}", f"--grpc-restricted-protocol={rule}"]
