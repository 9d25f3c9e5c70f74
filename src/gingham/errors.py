"""Errors that a user can fix. Each message says what was given, what is allowed and what to do next."""

import difflib
import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")
EXAMPLES = {  # of the arguments of public functions, by type
    "Recipe": 'gingham.RECIPES["fast"]',
    "DataSplits": 'gingham.load_data("fashion-mnist")',
    "Split": 'gingham.load_data("fashion-mnist").train',
    "Run": 'gingham.load("runs/fast-0")',
    "path": '"runs/fast-0"',
}
MAX_LENGTH = 1500  # characters of a message; a longer one is cut in the middle, because its end says what to do
EXHAUSTED = re.compile(  # in the words of Python, C++, the system and oneDNN
    "(?i)memory|bad_alloc|can't start new thread|resource temporarily unavailable|could not create a primitive"
)


class GinghamError(Exception):
    """An error that the user can fix. The command line prints it on one line and exits with 2.

    A message quotes its input, which may be anything. Line breaks become spaces and other unprintable characters become
    escapes, so that no file can control a terminal; long messages are shortened.

    >>> raise GinghamError("unknown dataset 'fasion-mnist'; did you mean 'fashion-mnist'?")
    Traceback (most recent call last):
    gingham.errors.GinghamError: unknown dataset 'fasion-mnist'; did you mean 'fashion-mnist'?
    """

    def __init__(self, message: str) -> None:
        super().__init__(format_message(message))


def format_message(message: str) -> str:
    """Return a message as `GinghamError` shows it: one line, printable characters only, at most MAX_LENGTH of them."""
    if not message.isprintable():
        message = "".join(map(_escape, message))
    if len(message) > MAX_LENGTH:
        message = f"{message[: MAX_LENGTH // 2]} ... {message[5 - MAX_LENGTH // 2 :]}"
    return message


def _escape(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else character.encode("unicode_escape").decode()


class DataError(GinghamError):
    """A dataset or one of its files is missing, damaged, or not what it claims to be."""


class RecipeError(GinghamError):
    """A recipe or one of its fields does not exist, or a value is not allowed."""


class ModelError(GinghamError):
    """A network cannot be built or traced, or does not accept the images."""


class RunError(GinghamError):
    """A run folder is missing, unfinished, damaged, or of a newer format."""


class TrainingError(GinghamError):
    """A training cannot continue because its loss is no longer finite."""


class Terminated(SystemExit):
    """SIGTERM, which schedulers and service managers send before they kill a process. Exits with 143, as in shells."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


def suggest(word: str, known: Iterable[str], unlisted: Iterable[object] = ()) -> str:
    """Return `; did you mean 'x'? (known: a, b)`, the end of a message about an unknown name.

    Names in `unlisted`, such as paths, are suggested too, but not listed.

    >>> suggest("fasion-mnist", ["fashion-mnist"])
    "; did you mean 'fashion-mnist'? (known: fashion-mnist)"
    """
    names = list(known)
    close, listing = difflib.get_close_matches(word, [*names, *map(str, unlisted)], n=1), list_first(names, 20)
    return f"; did you mean {close[0]!r}? (known: {listing})" if close else f"; known: {listing}"


class Catalogue(dict[str, Item]):
    """Things by their name. An unknown name raises the given `error`, whose message suggests the nearest one.

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
    """Raise a GinghamError if an argument of a public function, here a value and its type, is of another type.

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
    """Return the first texts of a sequence, and the number of the others if there are more than `limit`.

    >>> list_first(["a", "b"], 3), list_first(["a", "b", "c", "d", "e"], 3)
    ('a, b', 'a, b, c and 2 more')
    """
    return joint.join(texts[:limit]) + (f" and {len(texts) - limit} more" if len(texts) > limit else "")


def plural(number: float, noun: str, form: str = ",") -> str:
    """Return a number with its noun.

    >>> plural(1, "class"), plural(2000, "class"), plural(0.0512, "epoch", ".2g")
    ('1 class', '2,000 classes', '0.051 epochs')
    """
    return f"{number:{form}} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


def is_exhausted(error: BaseException | None) -> bool:
    """Return whether an error, or a cause of it, means that memory or threads ran out, in the words of any library."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and EXHAUSTED.search(str(error))):
            return True
        error = error.__cause__ or error.__context__
    return False


def one_line(error: BaseException) -> str:
    """Return an error's message on one line, shortened to 300 characters, or its type's name if it has no message."""
    text = " ".join(str(error).split())
    return (text[:297] + "..." if len(text) > 300 else text) or type(error).__name__
