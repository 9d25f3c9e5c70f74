"""Create a network by its name or from a user's class."""

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

MAX_TRIAL_SIDE = 128  # pixels; the largest blank image that a built-in network is tried on
NetworkFactory = Callable[..., nn.Module]


def factory_name(factory: NetworkFactory) -> str:
    """Return the name under which a run saves a user's network: `package.module:Class`."""
    return f"{factory.__module__}:{factory.__qualname__}"


def create_network(network: str, factory: NetworkFactory | None, channels: int = 1, classes: int = 10) -> nn.Module:
    """Return a new network: the one that the factory returns or, without a factory, Gingham's network of that name.

    A factory is a class or function. It gets `channels` and `classes` if it has parameters of these names.

    Raises
        ModelError: no network has that name, the factory fails, or it does not return a torch.nn.Module.
    """
    if factory is None and network not in NETWORKS:
        raise ModelError(f"unknown network {network!r}{suggest(network, NETWORKS)}")
    try:
        create: NetworkFactory = factory if factory is not None else NETWORKS[network]
        parameters = inspect.signature(create).parameters
        arguments = {
            name: value for name, value in (("channels", channels), ("classes", classes)) if name in parameters
        }
        created: Any = create(**arguments)
    except Exception as error:
        raise ModelError(
            f"cannot make {network} ({type(error).__name__}: {one_line(error)}); it must be a torch.nn.Module that "
            "needs no arguments other than channels and classes"
        ) from error
    if not isinstance(created, nn.Module):
        raise ModelError(f"{network} makes a {type(created).__name__}; a torch.nn.Module is needed")
    return created


def build_classifier(
    network: str,
    classes: Sequence[str],
    input_shape: tuple[int, int, int],
    mean: Sequence[float] = (0.5,),
    std: Sequence[float] = (0.5,),
    tta: str = "none",
    factory: NetworkFactory | None = None,
) -> Classifier:
    """Return a Classifier around a newly initialised network, after a trial on one blank image.

    `input_shape` is (C, H, W). `network` is a name in NETWORKS or, with a `factory`, the name to show for its network.
    The initialisation draws from torch's global generator.

    Raises
        ModelError: no network has that name, or it does not fit the images or the number of classes.
    """
    created = create_network(network, factory, input_shape[0], len(classes))
    model = Classifier(created, classes, input_shape, mean, std, tta)
    # Built-in networks take any size or a small one, so a large `input_shape` from an untrusted file need not be
    # allocated.
    channels, height, width = input_shape
    trial_shape = (
        input_shape if factory is not None else (channels, min(height, MAX_TRIAL_SIDE), min(width, MAX_TRIAL_SIDE))
    )
    shape = "x".join(map(str, trial_shape))
    failures: type[Exception] = RuntimeError if factory is None else Exception  # a user's forward may fail in any way
    try:
        model.input_shape = trial_shape
        output_shape = tuple(model.logits(torch.zeros(1, *trial_shape, dtype=torch.uint8)).shape)
        model.input_shape = input_shape
    except failures as error:
        raise ModelError(
            f"the network {network!r} cannot take pictures of {shape} ({one_line(error)}); "
            f"gingham summary {network} --input {shape} names the layer"
        ) from error
    if output_shape != (1, len(classes)) and factory is not None:
        raise ModelError(
            f"the network {network!r} turns one picture of {shape} into {output_shape}, where (1, {len(classes)}) "
            f"logits are needed; let it end in {len(classes)} outputs a picture, such as nn.Linear(..., {len(classes)})"
        )
    if output_shape != (1, len(classes)):
        raise ModelError(
            f"the network {network!r} turns one picture of {shape} into {output_shape}, where (1, {len(classes)}) "
            "logits are needed; choose another network or pictures of the size it was made for (article: 28x28)"
        )
    return model


def torchvision_network(name: str) -> nn.Module:
    """Return an untrained torchvision network, without memory for its weights if that is possible."""
    import torchvision.models  # takes a second to import and is needed only here

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ModelError(f"torchvision has no model {name!r}{suggest(name, known)}")
    # Their initialisation takes seconds and does not affect shapes.
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    try:
        with torch.device("meta"):  # shapes without memory or arithmetic
            return cast(nn.Module, torchvision.models.get_model(name, weights=None, **options))
    except NotImplementedError:  # some initialisations read values, which meta tensors do not have
        return cast(nn.Module, torchvision.models.get_model(name, weights=None, **options))


def import_network(name: str) -> NetworkFactory:
    """Import the class or function `package.module:Class`, also from the current folder.

    Only here does Gingham import code by name, and the name always comes from the user, never from a file.

    Raises
        ModelError: the name has another form, or there is no such module or class.
    """
    module_name, colon, class_name = name.partition(":")
    if module_name.endswith(".py"):
        raise ModelError(
            f"got the file {module_name}; write its module, as in "
            f"{module_name[:-3].replace('/', '.')}:{class_name or 'Class'}"
        )
    if not colon or not module_name or not class_name:
        raise ModelError(
            f"--model got {name!r}; write package.module:Class, such as mynet:Net for the class Net in mynet.py"
        )
    if "" not in sys.path:
        sys.path.insert(0, "")  # modules in the current folder, as with `python -m`
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"cannot import {module_name} ({type(error).__name__}: {one_line(error)}); write package.module:Class, "
            "importable from here"
        ) from error
    if not hasattr(module, class_name):
        known = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, nn.Module)]
        raise ModelError(f"{module_name} has no {class_name!r}{suggest(class_name, known)}")
    imported = getattr(module, class_name)
    if not callable(imported):
        raise ModelError(
            f"{name} is a {type(imported).__name__}; name a class, or a function, that makes a torch.nn.Module"
        )
    return cast(NetworkFactory, imported)
