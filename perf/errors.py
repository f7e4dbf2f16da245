"""The one error that a user of the load tests gets to see."""


class PerfError(Exception):
    """A load test that cannot go on; the message says what is wrong and what to do about it."""
