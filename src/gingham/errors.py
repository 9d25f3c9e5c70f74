"""The errors a user can mend. Each message is one sentence: what was got, what is allowed, what to do next."""

import difflib
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


def suggest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'? (known: a, b)`: the tail of a message about a name that does not exist.

    >>> suggest("fasion-mnist", ["fashion-mnist"])
    "; did you mean 'fashion-mnist'? (known: fashion-mnist)"
    """
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"; did you mean {close[0]!r}? (known: {listed})" if close else f"; known: {listed}"


def is_exhausted(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that memory or another thread was not to be had: each library says it in its own way."""
    signs = ("memory", "bad_alloc", "can't start new thread", "resource temporarily unavailable")
    while error is not None:
        said = str(error).lower()
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(sign in said for sign in signs)):
            return True
        error = error.__cause__ or error.__context__
    return False


def one_line(error: BaseException) -> str:
    """Return the error's message on one line, shortened to 300 characters; its type's name where it has none."""
    text = " ".join(str(error).split())
    return (text[:297] + "..." if len(text) > 300 else text) or type(error).__name__
