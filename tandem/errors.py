"""Why a request ends without its tokens; each class is one Triton error code."""

from __future__ import annotations


class RequestError(Exception):
    """A request that cannot be answered; the message is for the client."""

    code = "INTERNAL"
    outcome = "error"  # the label of `tandem_requests_total`


class InvalidRequest(RequestError):
    """The request itself is wrong; the message names the field."""

    code = "INVALID_ARG"
    outcome = "invalid"


class Unsupported(RequestError):
    """The request asks for something that this server does not have."""

    code = "UNSUPPORTED"
    outcome = "invalid"


class QueueFull(RequestError):
    """More sequences wait than `max_queue_size` allows."""

    code = "UNAVAILABLE"
    outcome = "rejected"


class TimedOut(RequestError):
    """The request's time was over before its tokens were complete. Triton's own queue timeout has the same code."""

    code = "UNAVAILABLE"
    outcome = "timeout"


class ShuttingDown(RequestError):
    """The server is stopping."""

    code = "UNAVAILABLE"
    outcome = "error"


class Cancelled(RequestError):
    """The client cancelled or went away."""

    code = "CANCELLED"
    outcome = "cancelled"


class ExecutorFailed(RequestError):
    """The executor failed again and again, and reloading did not help."""

    code = "INTERNAL"
    outcome = "error"
