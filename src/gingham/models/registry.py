"""Create a network by its name, or from a class of the user's own."""

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn

from gingham.errors import ModelError, one_line, suggest
from gingham.models.classifier import Classifier
from gingham.models.networks import NETWORKS

TRIED_SIDE = 128  # pixels of the blank picture that a network is tried on, at most
NetworkFactory = Callable[..., nn.Module]


def factory_name(factory: NetworkFactory) -> str:
    """Return what a run calls a network of the user's own: `package.module:Class`."""
    return f"{factory.__module__}:{factory.__qualname__}"


def create_network(network: str, factory: NetworkFactory | None, channels: int = 1, classes: int = 10) -> nn.Module:
    """Return a fresh network: Gingham's of that name or, given a factory, what that makes.

    A factory is a class or function; it gets `channels` and `classes` where it has parameters of these names.

    Raises
        ModelError: no network has that name, or the factory fails or makes no torch.nn.Module.
    """
    if factory is None and network not in NETWORKS:
        raise ModelError(f"unknown network {network!r}{suggest(network, NETWORKS)}")
    try:
        maker: NetworkFactory = factory if factory is not None else NETWORKS[network]
        taken = inspect.signature(maker).parameters
        given = {name: value for name, value in (("channels", channels), ("classes", classes)) if name in taken}
        made: Any = maker(**given)
    except Exception as error:
        raise ModelError(
            f"cannot make {network} ({type(error).__name__}: {one_line(error)}); it must be a torch.nn.Module that needs no "
            "arguments other than channels and classes"
        ) from error
    if not isinstance(made, nn.Module):
        raise ModelError(f"{network} makes a {type(made).__name__}; a torch.nn.Module is needed")
    return made


def build_classifier(
    network: str,
    classes: Sequence[str],
    input_shape: tuple[int, int, int],
    mean: Sequence[float] = (0.5,),
    std: Sequence[float] = (0.5,),
    tta: str = "none",
    factory: NetworkFactory | None = None,
) -> Classifier:
    """Return a Classifier around a freshly initialised network, tried on one blank picture.

    `input_shape` is (C, H, W). `network` is a name in NETWORKS or, with a `factory` that makes it, a name to call it by.
    The initialisation draws from torch's global generator.

    Raises
        ModelError: no network has that name, or it does not fit the pictures or the number of classes.
    """
    made = create_network(network, factory, input_shape[0], len(classes))
    model = Classifier(made, classes, input_shape, mean, std, tta)
    # Those of gingham's take pictures of any size or of a small one: no file of a stranger's makes room for a larger one here.
    channels, height, width = input_shape
    tried = input_shape if factory is not None else (channels, min(height, TRIED_SIDE), min(width, TRIED_SIDE))
    shape = "x".join(map(str, tried))
    failures: type[Exception] = RuntimeError if factory is None else Exception  # a user's forward may fail in any way
    try:
        model.input_shape = tried
        got = tuple(model.logits(torch.zeros(1, *tried, dtype=torch.uint8)).shape)
        model.input_shape = input_shape
    except failures as error:
        raise ModelError(
            f"the network {network!r} cannot take pictures of {shape} ({one_line(error)}); "
            f"gingham summary {network} --input {shape} names the layer"
        ) from error
    if got != (1, len(classes)) and factory is not None:
        raise ModelError(
            f"the network {network!r} turns one picture of {shape} into {got}, where (1, {len(classes)}) logits are needed; "
            f"let it end in {len(classes)} outputs a picture, such as nn.Linear(..., {len(classes)})"
        )
    if got != (1, len(classes)):
        raise ModelError(
            f"the network {network!r} turns one picture of {shape} into {got}, where (1, {len(classes)}) logits are "
            "needed; choose another network or pictures of the size it was made for (article: 28x28)"
        )
    return model


def torchvision_network(name: str) -> nn.Module:
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
