"""The errors a user can mend. Each message is one sentence: what was got, what is allowed, what to do next."""

import difflib
import signal
from collections.abc import Iterable, Sequence

LONGEST = 1500  # characters of a message; what is longer loses its middle, since its end says what to do


class GinghamError(Exception):
    """Something the user can fix; the command line prints it on one line and exits with 2.

    A message quotes what was got, which may be anything: line breaks in it become spaces, other characters that do not show
    their escapes, so that no file can write to a terminal, and what is longer than a sentence is shortened.

    >>> raise GinghamError("unknown dataset 'fasion-mnist'; did you mean 'fashion-mnist'?")
    Traceback (most recent call last):
    gingham.errors.GinghamError: unknown dataset 'fasion-mnist'; did you mean 'fashion-mnist'?
    """

    def __init__(self, message: str) -> None:
        super().__init__(sentence(message))


def sentence(message: str) -> str:
    """Return a message as `GinghamError` shows it: on one line, nothing hidden in it, at most LONGEST characters."""
    message = _shortened(message)
    return message if message.isprintable() else _shortened("".join(map(_shown, message)))


def _shortened(message: str) -> str:
    return message if len(message) <= LONGEST else f"{message[: LONGEST // 2]} ... {message[5 - LONGEST // 2 :]}"


def _shown(letter: str) -> str:
    if letter.isprintable():
        return letter
    return " " if letter.isspace() else letter.encode("unicode_escape").decode()


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


class Terminated(SystemExit):
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
    list_differences = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"; did you mean {close[0]!r}? (known: {list_differences})" if close else f"; known: {list_differences}"


def list_differences(differences: Sequence[str]) -> str:
    """Return the first three of some differences, and how many more there are.

    >>> list_differences(["seed 1, not 0", "epochs 2, not 3"]), list_differences(list("abcde"))
    ('seed 1, not 0 and epochs 2, not 3', 'a and b and c and 2 more differences')
    """
    more = f" and {len(differences) - 3} more differences" if len(differences) > 3 else ""
    return " and ".join(differences[:3]) + more


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
