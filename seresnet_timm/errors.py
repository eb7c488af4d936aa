"""Errors that a user can act on. The command line prints their one sentence instead of a traceback."""


class UsageError(Exception):
    """The request is wrong: what, where, and what to do. Exit code 2."""

    exit_code = 2


class RunError(Exception):
    """The request was right and the run failed: what happened, and what to do. Exit code 1."""

    exit_code = 1
