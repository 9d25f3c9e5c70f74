"""Create a network by its name or from a user's class."""

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from gingham.errors import ModelError, is_exhausted, one_line, suggest
from gingham.models.backbones import PREFIX, Backbone
from gingham.models.classifier import Classifier
from gingham.models.networks import NETWORKS

MAX_TRIAL_SIDE = 128  # pixels; the largest side of the blank image that a built-in network is tried on
NetworkFactory = Callable[..., nn.Module]


def factory_name(factory: NetworkFactory) -> str:
    """Return the name under which a run saves a user's network: `package.module:Class`."""
    return f"{factory.__module__}:{factory.__qualname__}"


def create_network(network: str, factory: NetworkFactory | None, channels: int = 1, classes: int = 10) -> nn.Module:
    """Return a new network: the one that the factory creates or, without a factory, Gingham's or timm's of that name.

    A network of timm is named timm/NAME. A factory is a class or function. It gets `channels` and `classes` if it has
    parameters with these names.

    Raises
        ModelError: no network has that name, the factory fails, or it does not return a torch.nn.Module.
    """
    if factory is None and network.startswith(PREFIX):
        return Backbone(network.removeprefix(PREFIX), classes)
    create: NetworkFactory = NETWORKS[network] if factory is None else factory
    available = {"channels": channels, "classes": classes}
    try:
        parameters = inspect.signature(create).parameters
        created: Any = create(**{name: value for name, value in available.items() if name in parameters})
    except Exception as error:
        raise ModelError(
            f"cannot create {network} ({type(error).__name__}: {one_line(error)}); it must be a torch.nn.Module that "
            "needs no arguments other than channels and classes"
        ) from error
    if not isinstance(created, nn.Module):
        raise ModelError(f"{network} creates a {type(created).__name__}; it must create a torch.nn.Module")
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
    """Return a Classifier with a newly initialised network, after trying it on one blank image.

    `input_shape` is (C, H, W). `network` is a name in NETWORKS or, with a `factory`, the name to show for its network.
    The initialisation draws from torch's global generator.

    Raises
        ModelError: no network has that name, or it does not fit the images or the number of classes.
    """
    created = create_network(network, factory, input_shape[0], len(classes))
    channels, height, width = input_shape
    # Built-in networks take any size or only a small one, so a large size in an untrusted file is not allocated.
    limit = max(height, width) if factory is not None else MAX_TRIAL_SIDE
    if network.startswith(PREFIX):  # some take only the size of their pretraining
        limit = 5 * MAX_TRIAL_SIDE
    trial_shape = (channels, min(height, limit), min(width, limit))
    shape = "x".join(map(str, trial_shape))
    if any(map(is_lazy, [*created.parameters(), *created.buffers()])):
        from gingham.models.summary import summarize  # takes a tenth of a second to import and is rarely needed

        summarize(created, trial_shape, network)  # a forward pass, in which lazy layers get their shape and weights
    model = Classifier(created, classes, trial_shape, mean, std, tta)
    try:
        output_shape = tuple(model.logits(torch.zeros(1, *trial_shape, dtype=torch.uint8)).shape)
    except Exception as error:  # a user's forward may fail in any way
        if is_exhausted(error):
            raise
        from gingham.models.summary import summarize

        summarize(created, trial_shape, network)  # its error names the layer
        raise ModelError(f"the network {network!r} cannot take images of {shape} ({one_line(error)})") from error
    needed = (1, len(classes))
    if output_shape != needed:
        remedy = f"let it end in {len(classes)} outputs per image, such as nn.Linear(..., {len(classes)})"
        if factory is None:
            remedy = "choose another network, or images of the size that it was made for (article: 28x28)"
        output = f"the network {network!r} turns one image of {shape} into an output of shape {output_shape}"
        raise ModelError(f"{output}, but logits of shape {needed} are needed; {remedy}")
    model.input_shape = input_shape
    return model


def torchvision_network(name: str) -> nn.Module:
    """Return an untrained torchvision network, if possible without allocating memory for its weights.

    Raises
        ModelError: torchvision has no model of that name.
    """
    import torchvision.models  # takes a second to import and is needed only here

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ModelError(f"torchvision has no model {name!r}{suggest(name, known)}")
    # The initialisation of these two takes seconds and does not affect shapes.
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    try:
        with torch.device("meta"):  # shapes without memory or arithmetic
            return cast(nn.Module, torchvision.models.get_model(name, weights=None, **options))
    except NotImplementedError:  # some initialisations read values, which meta tensors do not have
        return cast(nn.Module, torchvision.models.get_model(name, weights=None, **options))


def import_network(name: str) -> NetworkFactory:
    """Import the class or function `package.module:Class`, also from the current folder.

    This is the only function of Gingham that imports code by name. The name always comes from the user, never from a
    file.

    Raises
        ModelError: the name has another form, or the module or the class does not exist or cannot be imported.
    """
    module_name, _, class_name = name.partition(":")
    if module_name.endswith(".py") or not module_name or not class_name:
        example = f"{module_name.removesuffix('.py').replace('/', '.') or 'mynet'}:{class_name or 'Net'}"
        raise ModelError(f"got {name!r} as a network; write package.module:Class, such as {example}")
    if "" not in sys.path:
        sys.path.insert(0, "")  # modules in the current folder, as with `python -m`
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ModelError(f"cannot import {module_name} ({reason}); it must be importable in this folder") from error
    imported = getattr(module, class_name, None)
    if not callable(imported) or not hasattr(imported, "__qualname__"):  # an object or a functools.partial has none
        known = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, nn.Module)]
        raise ModelError(f"{module_name} has no class or function {class_name!r}{suggest(class_name, known)}")
    return cast(NetworkFactory, imported)
