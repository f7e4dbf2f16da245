"""A request's error as Triton's response."""

from __future__ import annotations

import logging
from typing import Any

import triton_python_backend_utils as pb_utils

from tandem.errors import RequestError

log = logging.getLogger(__name__)


def request_error(failure: Exception) -> RequestError:
    """What the client is told of an exception: a bug must not leave it waiting."""
    if isinstance(failure, RequestError):
        return failure
    log.error("a request could not be read", exc_info=failure)
    return RequestError(f"internal error while reading the request: {failure!r}")


def error_response(error: RequestError) -> Any:
    """The Triton response for a request that ends with an error.

    The message begins with the code, because a stream's error responses and HTTP carry no other.
    """
    code = getattr(pb_utils.TritonError, error.code)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"[{error.code}] {error}", code))
