"""Why a server does not run; each message is for the person who started it."""

from __future__ import annotations


class ServerError(RuntimeError):
    """The server did not start; the message holds the relevant part of its log."""


class EngineMissingError(ServerError):
    """A model's engine has not been built; the message names the command that builds it."""
