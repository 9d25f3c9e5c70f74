"""Suggest what to type instead of an unknown option or argument."""

import difflib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gingham.presets import RECIPES
from gingham.recipe import FIELDS


def describe_usage_error(error: Any, arguments: Sequence[str]) -> str:
    """Return the message of a usage error, with what was given and, where it can be guessed, what to type instead."""
    message: str = error.format_message().replace("Value error, ", "").removesuffix(".")
    known = {parameter.name: parameter for parameter in error.ctx.command.params} if error.ctx else {}
    if "Input should" in message:  # a message of the library with which typer checks types
        return f"{message}; got {error.__cause__.errors()[0]['input']!r}"
    if hasattr(error, "possibilities"):
        return f"{error.message}; {_replace_option(error.option_name, known, arguments)}"
    if "extra argument" in message:
        return f"{message}; {_name_argument(message.rpartition('(')[2].rstrip(')').partition(' ')[0], known)}"
    return message


def _replace_option(option: str, known: dict[str, Any], arguments: Sequence[str]) -> str:
    """Return what to type instead of an option that the command does not have."""
    name = option.lstrip("-").replace("-", "_")
    if name in known and known[name].param_type_name == "argument":
        rest = [word.removeprefix(f"{option}=") for word in arguments if word != option]
        return f"give it without {option}: gingham {shlex.join(rest)}"
    options = {word.lstrip("-").replace("-", "_"): word for parameter in known.values() for word in parameter.opts}
    # No field `seed`, which has an option in train, and for which trials has --seeds and --first-seed.
    fields = [field for field in FIELDS if field != "seed"] if "settings" in known else []
    initials = [field for field in fields if name == "".join(word[0] for word in field.split("_"))]  # lr: learning_rate
    close = initials or difflib.get_close_matches(name, [*options, *fields], n=1)
    if not close or close[0] in options:
        return f"did you mean {options[close[0]]}?" if close else "--help lists all options"
    value = re.search(f"{option}[= ](\\S+)", " ".join(arguments))
    return f"it is a field of the recipe: give --set {close[0]}={value[1] if value else 'VALUE'}"


def _name_argument(word: str, known: dict[str, Any]) -> str:
    """Return the option with which to give a recipe, run or dataset that was given as an extra argument."""
    from gingham.data.registry import REGISTRY

    options = {name for name, parameter in known.items() if parameter.param_type_name == "option"}
    option = "recipe" if word in RECIPES else "run" if "run" in options else "data"
    is_known = word in RECIPES or word in REGISTRY or Path(word).exists()
    return f"give it as --{option} {word}" if option in options and is_known else "--help lists all arguments"
