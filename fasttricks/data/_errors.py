"""What can be wrong with a data set; each message is one line: the file, the rule, what to do."""

from __future__ import annotations


class DataError(ValueError):
    """The data cannot be used as it is; the message names the file and says what to do."""


class DataNotFoundError(DataError, FileNotFoundError):
    """The path that was given does not exist."""


class DataUnavailableError(OSError):
    """The data would have to be downloaded, and that did not work."""


def reason_of(error: Exception) -> str:
    """What ``error`` says, on one line; its type if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
