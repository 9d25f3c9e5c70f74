"""What to type in place of an unknown option or argument."""

import dataclasses
import difflib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gingham.presets import RECIPES
from gingham.recipe import Recipe


def describe_usage_error(error: Any, arguments: Sequence[str]) -> str:
    """Return the message of a usage error, with what was given and, where it can be guessed, what to type instead."""
    message: str = error.format_message().replace("Value error, ", "").removesuffix(".")  # a library below typer's
    if hasattr(error.__cause__, "errors"):
        given = error.__cause__.errors()[0]["input"]
        return message if repr(given) in message else f"{message}; got {given!r}"
    known = {} if error.ctx is None else {parameter.name: parameter for parameter in error.ctx.command.params}
    advice = None
    if hasattr(error, "possibilities"):
        message, advice = error.message, _replace_option(error.option_name, known, arguments)
    elif "extra argument" in message:
        advice = _name_argument(message.rpartition("(")[2].rstrip(")").partition(" ")[0], known)
    else:
        return message
    return f"{message}; {advice or f'{error.ctx.command_path} --help lists what it takes'}"


def _replace_option(option: str, known: dict[str, Any], arguments: Sequence[str]) -> str | None:
    """Return what to type in place of an option that the command does not have."""
    name = option.lstrip("-").replace("-", "_")
    if name in known and known[name].param_type_name == "argument":
        rest = [word.removeprefix(f"{option}=") for word in arguments if word != option]
        return f"give it without {option}: gingham {shlex.join(rest)}"
    options = {word.lstrip("-").replace("-", "_"): word for parameter in known.values() for word in parameter.opts}
    fields = [item.name for item in dataclasses.fields(Recipe)] if "settings" in known else []
    initials = {"".join(word[0] for word in field.split("_")): field for field in fields if "_" in field}  # lr, bs, wd
    close = [initials[name]] if name in initials else difflib.get_close_matches(name, [*options, *fields], n=1)
    if not close or close[0] in options:
        return f"did you mean {options[close[0]]}?" if close else None
    value = re.search(f"{option}[= ](\\S+)", " ".join(arguments))
    return f"it is a field of the recipe: give --set {close[0]}={value[1] if value else 'VALUE'}"


def _name_argument(word: str, known: dict[str, Any]) -> str | None:
    """Return the option that a recipe, run or dataset is given with where the command takes no such argument."""
    from gingham.data.registry import REGISTRY

    options = {name for name, parameter in known.items() if parameter.param_type_name == "option"}
    option = "recipe" if word in RECIPES else "run" if "run" in options else "data"
    is_known = word in RECIPES or word in REGISTRY or Path(word).exists()
    return f"give it as --{option} {word}" if option in options and is_known else None
