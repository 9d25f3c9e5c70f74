"""A network by what the user calls it: a name, a run folder, torchvision:NAME, or package.module:Class."""

import importlib
import sys
from pathlib import Path
from typing import cast

import torch
from torch import nn

from gingham.errors import ModelError, one_line, suggest
from gingham.models import NETWORKS, NetworkFactory, construct
from gingham.storage import load


def find_network(
    model: str, shape: tuple[int, int, int] | None = None, factory: NetworkFactory | None = None
) -> tuple[nn.Module, tuple[int, int, int]]:
    """Return a network and the picture shape (C, H, W) it is for, where none is asked for.

    `model` is the name of one of gingham's networks, the folder of a run, `torchvision:NAME` (without its weights), or
    `package.module:Class`. A run of a network of one's own needs its `factory`.

    Raises
        ModelError: there is no such network, or it cannot be made.
        RunError: the run cannot be loaded.
    """
    if model in NETWORKS:
        return construct(model, None, shape[0] if shape else 1), (1, 28, 28)
    if model.startswith("torchvision:"):
        return _torchvision_network(model.removeprefix("torchvision:")), (3, 224, 224)
    if model and Path(model).is_dir():
        loaded = load(model, factory).model
        return loaded.network, loaded.input_shape
    if ":" in model:
        return construct(model, import_network(model), shape[0] if shape else 1), (1, 28, 28)
    raise ModelError(f"unknown model {model!r}{suggest(model, NETWORKS)}, a run folder, torchvision:NAME, package.module:Class")


def _torchvision_network(name: str) -> nn.Module:
    import torchvision.models  # a second to import, needed for this alone

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ModelError(f"torchvision has no model {name!r}{suggest(name, known)}")
    # Their own initialisation takes seconds and says nothing of shapes.
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    try:
        with torch.device("meta"):  # shapes without memory or arithmetic
            return cast(nn.Module, torchvision.models.get_model(name, weights=None, **options))
    except NotImplementedError:  # some initialisations read numbers back
        return cast(nn.Module, torchvision.models.get_model(name, weights=None, **options))


def import_network(name: str) -> NetworkFactory:
    """Return the class or function that `package.module:Class` names, importable from the folder the user is in.

    The one place where Gingham imports what a text names: a text that the user typed, never one from a file.

    Raises
        ModelError: not of that form, or there is no such module or class.
    """
    module_name, colon, class_name = name.partition(":")
    if module_name.endswith(".py"):
        raise ModelError(
            f"got the file {module_name}; write its module, as in {module_name[:-3].replace('/', '.')}:{class_name or 'Class'}"
        )
    if not colon or not module_name or not class_name:
        raise ModelError(f"--model got {name!r}; write package.module:Class, such as mynet:Net for the class Net in mynet.py")
    if "" not in sys.path:
        sys.path.insert(0, "")  # a module beside the user, as `python -m` finds it
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"cannot import {module_name} ({type(error).__name__}: {one_line(error)}); write package.module:Class, importable from here"
        ) from error
    if not hasattr(module, class_name):
        known = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, nn.Module)]
        raise ModelError(f"{module_name} has no {class_name!r}{suggest(class_name, known)}")
    found = getattr(module, class_name)
    if not callable(found):
        raise ModelError(f"{name} is a {type(found).__name__}; name a class, or a function, that makes a torch.nn.Module")
    return cast(NetworkFactory, found)
