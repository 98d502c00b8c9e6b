"""Errors that a user can cause and mend."""

import re


class UserError(ValueError):
    """A value that the user gave cannot be used.

    The message names the value and the remedy, in one or two lines. The command line prints it without a traceback
    and exits with code 2.
    """


class OutOfMemory(UserError):
    """There was not enough memory for what the user asked for."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python, numpy or torch says that there is not enough memory."""
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def wanted_memory(error: BaseException) -> str:
    """Return ", 7.28 TiB more were asked for" for an error that says so, else ""."""
    found = re.search(r"(?:tried|Tried|Unable) to allocate ([\d.]+) ?(\w+)", str(error))
    if found is None:
        return ""
    number, unit = found.groups()
    if unit == "bytes":
        number, unit = f"{float(number) / 1e9:.1f}", "GB"
    return f", {number} {unit} more were asked for"
