"""Start a training with pretrained weights, or those of another run, whose classes may differ."""

from collections.abc import Callable

import torch

from gingham.data.image_hashes import hash_images
from gingham.data.splits import DataSplits
from gingham.errors import DataError, ModelError
from gingham.models.backbones import Backbone, find_weights
from gingham.models.classifier import Classifier
from gingham.runs.run import Run
from gingham.training.trainer import Trainer


def load_initial_weights(trainer: Trainer, say: Callable[[str], None]) -> None:
    """Load the weights to start from, if the recipe or the options have some: those of a run, or pretrained ones.

    Raises
        ModelError: the weights do not fit the network, or cannot be found.
    """
    network, start = trainer.model.network, trainer.options.start
    if start is not None:
        copy_shared_weights(start, trainer.model)
        checksum = trainer.settings["start"]
        trainer.origin = {"run": start.recipe.name, "seed": start.recipe.seed, "weights_sha256": checksum}
    elif trainer.recipe.pretrained and isinstance(network, Backbone):
        with trainer.context.main_first():  # so that one process downloads them
            weights, checksum = find_weights(network.name, trainer.options.weights, say)
        trainer.context.require_same("pretrained weights", checksum)
        network.load_pretrained(weights)
        trainer.origin = {"pretrained": trainer.recipe.network, "weights_sha256": checksum}


def require_unseen(start: Run | None, data: DataSplits, say: Callable[[str], None]) -> None:
    """Check that a run to start from was not trained on test images of a dataset. `say` if on validation images.

    Raises
        DataError: it was, or does not record its training images.
    """
    if start is None:
        return
    if start.data.get("fingerprint") == data.fingerprint and start.data.get("train_images") == len(data.train):
        return  # the same splits
    name = start.folder or start.recipe.name
    if not start.image_hashes:
        raise DataError(
            f"{name} does not record its training images, which may be test images of {data.name}; train it again"
        )
    shapes = ["x".join(map(str, shape)) for shape in (start.model.input_shape, data.train.image_shape)]
    if shapes[0] != shapes[1]:
        say(
            f"warning: {name} was trained on images of {shapes[0]}, which cannot be found among those of {shapes[1]}; "
            f"make sure that no test image of {data.name} is among them, or give the same size (--set size=...)"
        )
        return
    seen = torch.cat(list(start.image_hashes.values()))
    if count := int(torch.isin(hash_images(data.test.images), seen).sum()):
        raise DataError(
            f"{name} was trained on {count} of the {len(data.test)} test images of {data.name}, so the test accuracy "
            "would be too high; put the images into train and test folders, where they stay, or leave out --from"
        )
    held_out, trained = data.validation, start.image_hashes.get("train", seen[:0])
    if held_out is not None and (count := int(torch.isin(hash_images(held_out.images), trained).sum())):
        say(
            f"warning: {name} was trained on {count} of the {len(held_out)} validation images, so the validation "
            "accuracy is too high; judge by the test split"
        )


@torch.no_grad()
def copy_shared_weights(start: Run, model: Classifier) -> None:
    """Copy the weights of a run into a model with the same network, in place.

    If the classes differ, the last layer gets the weights of the classes that both have, and keeps its own for the
    others.

    Raises
        ModelError: the networks differ.
    """
    before, after = start.model.network.state_dict(), model.network.state_dict()
    last_layer = [name for name, _ in model.network.named_parameters()][-1].rpartition(".")[0]
    shared = [name for name in model.classes if name in start.model.classes]
    rows, old_rows = ([each.classes.index(name) for name in shared] for each in (model, start.model))
    for name in before | after:
        tensor, old = after.get(name), before.get(name)
        is_output = name.rpartition(".")[0] == last_layer and tensor is not None and len(tensor) == len(model.classes)
        first = 1 if is_output else 0  # the numbers of classes may differ
        if tensor is None or old is None or old.shape[first:] != tensor.shape[first:]:
            raise ModelError(
                f"the network {start.recipe.network} of the run to start from does not fit (its tensor {name} is "
                "missing or has another shape); train with the same network, and images of the same number of channels"
            )
        if is_output:
            tensor[rows] = old[old_rows].to(tensor.device)
        else:
            tensor.copy_(old)
