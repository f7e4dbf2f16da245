"""The one error that a user of the build tools gets to see."""


class BuildError(Exception):
    """A build that cannot go on; the message says what is wrong and what to do about it."""
