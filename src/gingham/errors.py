"""Errors that a user can fix. Each message has what was given, what is allowed and what to do."""

import difflib
import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")
EXAMPLES = {  # of arguments of public functions, by type
    "Recipe": 'gingham.RECIPES["fast"]',
    "DataSplits": 'gingham.load_data("fashion-mnist")',
    "Split": 'gingham.load_data("fashion-mnist").train',
    "Run": 'gingham.load("runs/fast-0")',
    "path": '"runs/fast-0"',
}
MAX_LENGTH = 1500  # characters; longer messages are cut in the middle, because their end has what to do
EXHAUSTED = re.compile(  # matches messages of Python, C++, the system and oneDNN
    "(?i)memory|bad_alloc|can't start new thread|resource temporarily unavailable|could not create a primitive"
)


class GinghamError(Exception):
    """An error that the user can fix. The command line prints it on one line and exits with code 2.

    A message may quote any input. Line breaks are replaced by spaces and other unprintable characters by escapes, so
    that no file can control a terminal. Long messages are shortened.

    >>> raise GinghamError("unknown dataset 'fasion-mnist'; did you mean 'fashion-mnist'?")
    Traceback (most recent call last):
    gingham.errors.GinghamError: unknown dataset 'fasion-mnist'; did you mean 'fashion-mnist'?
    """

    def __init__(self, message: str) -> None:
        super().__init__(format_message(message))


def format_message(message: str) -> str:
    """Return a message as `GinghamError` shows it: on one line, printable, and at most MAX_LENGTH characters long."""
    message = "".join(map(_escape, message))
    if len(message) > MAX_LENGTH:
        message = f"{message[: MAX_LENGTH // 2]} ... {message[5 - MAX_LENGTH // 2 :]}"
    return message


def _escape(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else character.encode("unicode_escape").decode()


class DataError(GinghamError):
    """A dataset or one of its files is missing, damaged, or not of the expected kind."""


class RecipeError(GinghamError):
    """A recipe or one of its fields does not exist, or a value is not allowed."""


class ModelError(GinghamError):
    """A network cannot be built or traced, or does not accept the images."""


class RunError(GinghamError):
    """A run folder is missing, unfinished, damaged, or of a newer format."""


class TrainingError(GinghamError):
    """Training cannot continue: its loss is no longer finite, or another process failed."""


class Terminated(SystemExit):
    """SIGTERM, which schedulers and service managers send before they kill a process. Exits with code 143."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


def suggest(word: str, known: Iterable[str], unlisted: Iterable[object] = ()) -> str:
    """Return the end of a message about an unknown name: `; did you mean 'x'? (known: a, b)`.

    Names in `unlisted`, such as paths, may be suggested but are not listed.

    >>> suggest("fasion-mnist", ["fashion-mnist"])
    "; did you mean 'fashion-mnist'? (known: fashion-mnist)"
    """
    names = list(known)
    listing = list_first(names, 20)
    # Such as lr of learning_rate.
    by_initials = [name for name in names if "_" in name and word == "".join(part[:1] for part in name.split("_"))]
    close = by_initials or difflib.get_close_matches(word, [*names, *map(str, unlisted)], n=1)
    return f"; did you mean {close[0]!r}? (known: {listing})" if close else f"; known: {listing}"


class Catalogue(dict[str, Item]):
    """A dict of items by name. An unknown name raises `error`, whose message suggests the most similar name.

    >>> Catalogue("recipe", RecipeError, {"fast": 1})["fsat"]
    Traceback (most recent call last):
    gingham.errors.RecipeError: unknown recipe 'fsat'; did you mean 'fast'? (known: fast)
    """

    def __init__(self, kind: str, error: type[GinghamError], items: Mapping[str, Item]) -> None:
        super().__init__(items)
        self.kind, self.error = kind, error

    def __missing__(self, name: Any) -> Item:
        raise self.error(f"unknown {self.kind} {name!r}{suggest(str(name), self)}")


def require_types(function: str, **arguments: tuple[Any, Any]) -> None:
    """Raise a GinghamError if an argument of a public function, given as (value, type), is of another type.

    >>> require_types("load", folder=(None, str | bytes))
    Traceback (most recent call last):
    gingham.errors.GinghamError: gingham.load got None as folder; it takes a path, such as "runs/fast-0"
    """
    for name, (value, kind) in arguments.items():
        if not isinstance(value, kind):
            given = repr(value) if value is None or isinstance(value, str) else f"a {type(value).__name__}"
            needed = kind.__name__ if isinstance(kind, type) else "path"  # str | PathLike
            example = EXAMPLES[needed]
            raise GinghamError(f"gingham.{function} got {given} as {name}; it takes a {needed}, such as {example}")


def list_first(texts: Sequence[str], limit: int, joint: str = ", ") -> str:
    """Return the first `limit` texts of a sequence joined, followed by the number of the remaining ones.

    >>> list_first(["a", "b"], 3), list_first(["a", "b", "c", "d", "e"], 3)
    ('a, b', 'a, b, c and 2 more')
    """
    return joint.join(texts[:limit]) + (f" and {len(texts) - limit} more" if len(texts) > limit else "")


def plural(number: float, noun: str, form: str = ",") -> str:
    """Return a number, formatted with `form`, and its noun in the singular or plural.

    >>> plural(1, "class"), plural(2000, "class"), plural(0.0512, "epoch", ".2g")
    ('1 class', '2,000 classes', '0.051 epochs')
    """
    return f"{number:{form}} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


def is_exhausted(error: BaseException | None) -> bool:
    """Return whether an error or one of its causes, from any library, means that memory or threads ran out."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and EXHAUSTED.search(str(error))):
            return True
        error = error.__cause__ or error.__context__
    return False


def one_line(error: BaseException) -> str:
    """Return an error's message on one line, at most 300 characters, or the name of its type if it has no message."""
    text = " ".join(str(error).split())
    return (text[:297] + "..." if len(text) > 300 else text) or type(error).__name__
