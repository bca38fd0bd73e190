"""The one exception that bad input raises."""


class LowbitError(ValueError):
    """Input that lowbit cannot work with: the message says what was wrong, where, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """
