"""The errors a user can mend. Each message is one sentence: what was got, what is allowed, what to do next."""

import difflib
import signal
from collections.abc import Iterable


class GinghamError(Exception):
    """Something the user can fix; the command line prints it on one line and exits with 2.

    >>> raise GinghamError("unknown dataset 'fasion-mnist'; did you mean 'fashion-mnist'?")
    Traceback (most recent call last):
    gingham.errors.GinghamError: unknown dataset 'fasion-mnist'; did you mean 'fashion-mnist'?
    """


class DataError(GinghamError):
    """A dataset or a file of it is missing, damaged, or not what it claims to be."""


class RecipeError(GinghamError):
    """A recipe, a field of one or its value does not exist or is not allowed."""


class ModelError(GinghamError):
    """A network cannot be built, traced or fed with the pictures at hand."""


class RunError(GinghamError):
    """A run folder is missing, unfinished, damaged, or of a newer format."""


class TrainingError(GinghamError):
    """A training cannot go on: its loss is no longer finite."""


class Terminated(SystemExit):  # no error of anyone's
    """SIGTERM, by which schedulers and service managers ask a process to end before they end it; exits with 143, as shells say it."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


def suggest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'? (known: a, b)`: the tail of a message about a name that does not exist.

    >>> suggest("fasion-mnist", ["fashion-mnist"])
    "; did you mean 'fashion-mnist'? (known: fashion-mnist)"
    """
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"; did you mean {close[0]!r}? (known: {listed})" if close else f"; known: {listed}"


def one_line(error: BaseException) -> str:
    """Return the error's message on one line, shortened to 300 characters; its type's name where it has none."""
    text = " ".join(str(error).split())
    return (text[:297] + "..." if len(text) > 300 else text) or type(error).__name__
