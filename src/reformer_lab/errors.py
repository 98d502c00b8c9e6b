"""Errors that a user can cause and mend."""


class UserError(ValueError):
    """A value that the user gave cannot be used.

    The message names the value and the remedy, in one or two lines. The command line prints it without a traceback
    and exits with code 2.
    """
