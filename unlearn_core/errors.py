"""Errors that cross process borders. All are picklable: each takes one message."""


class UserError(ValueError):
    """A mistake in what the user gave: a path, a split, a number, a file.

    The message says the value, what was expected and what to do. The command line prints it without a traceback and
    exits with code 2.
    """


class MissingPackageError(ImportError):
    """An optional package is needed here and not installed; the message names it and the install command."""


class DivergedError(RuntimeError):
    """A loss or gradient became non-finite; every rank stopped together before the optimizer step."""
