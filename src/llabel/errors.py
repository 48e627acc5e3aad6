"""The one exception that means: the user can mend this."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message names what was given, where (file, row, column), what is allowed and how to mend
    it. The command line prints it without a traceback and exits with code 2.
    """


class FetchError(InputError):
    """Something could not be fetched just now; what the user gave may be right."""


class DivergedError(InputError):
    """A training came to no finite loss; the same settings would do so again."""
