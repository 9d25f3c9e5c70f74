"""Fine-tune the same network on the same photos with Gingham, fastai and Keras, each for the same time.

    pip install fastai==2.8.* keras==3.*
    python benchmarks/photo_peers.py DATA --weights model.safetensors
    python benchmarks/photo_peers.py DATA --weights model.safetensors --epochs 8 --sizes 144

DATA is as for `gingham train`, with a test split. Gingham trains with the recipe `finetune`, and the others as their guides
recommend, for as many epochs as fit into the seconds that Gingham took: fastai with `Learner.fine_tune` and its default
augmentation, Keras (on PyTorch) as in "Transfer learning & fine-tuning", half of the time with a frozen network. All start with
the same pretrained weights. Writes benchmarks/results/photo-peers-<hardware>-<date>.md.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file

import gingham
import records
from gingham.device import choose_device, describe_environment, retain_freed_memory
from gingham.evaluation.metrics import proportion_interval
from gingham.models.backbones import DEFAULT_BACKBONE

Result = tuple[float, float, str]  # test accuracy, seconds of training, settings
BATCH_SIZE = 32


def train_gingham(data: gingham.DataSplits, weights: Path, epochs: float | None) -> Result:
    recipe = gingham.RECIPES["finetune"]
    if epochs is not None:
        recipe = recipe.replace(epochs=epochs)
    started = time.perf_counter()
    run = gingham.fit(recipe, data.train, data.validation, options=gingham.FitOptions(weights=weights))
    seconds = time.perf_counter() - started
    settings = (
        f"recipe `finetune`, {recipe.epochs:g} epochs, crops of {recipe.crop_size}, answers for {recipe.size} pixels"
    )
    return gingham.evaluate(run, data.test).accuracy, seconds, settings


def load_pretrained(weights: Path) -> Any:
    """Return the network without its classifier, with pretrained weights."""
    network = timm.create_model(DEFAULT_BACKBONE, num_classes=0)
    tensors = load_file(weights)
    network.load_state_dict({name: tensors[name] for name in network.state_dict() if name in tensors}, strict=False)
    return network


def train_fastai(data: gingham.DataSplits, weights: Path, seconds: float, size: int) -> Result:
    from fastai.vision import all as fastai

    images = torch.cat([data.train.images, data.test.images]).permute(0, 2, 3, 1).numpy()
    labels = torch.cat([data.train.labels, data.test.labels]).tolist()
    test_rows = list(range(len(data.train), len(labels)))
    block = fastai.DataBlock(
        blocks=(fastai.ImageBlock, fastai.CategoryBlock(vocab=list(data.classes))),
        get_x=lambda row: fastai.PILImage.create(images[row]),
        get_y=lambda row: data.classes[labels[row]],
        splitter=fastai.IndexSplitter(test_rows[:1]),  # no time is used for validation
        item_tfms=fastai.RandomResizedCrop(size, min_scale=0.35),
        batch_tfms=fastai.aug_transforms(size=size),
    )
    torch.manual_seed(0)
    loaders = block.dataloaders(list(range(len(data.train) + 1)), bs=BATCH_SIZE, num_workers=0)
    learner = fastai.vision_learner(loaders, DEFAULT_BACKBONE, pretrained=False)
    learner.model[0].model.load_state_dict(load_pretrained(weights).state_dict(), strict=False)
    learner.freeze()
    started = time.perf_counter()
    learner.fine_tune(0, freeze_epochs=1)
    frozen_seconds = time.perf_counter() - started
    # One more epoch shows how long those of all layers take; its changes are undone.
    learner.save(checkpoint := Path("photo-peers").absolute())
    learner.unfreeze()
    before = time.perf_counter()
    learner.fit(1, lr=1e-9)
    per_epoch = time.perf_counter() - before
    learner.load(checkpoint)
    checkpoint.with_suffix(".pth").unlink()
    epochs = max(1, round((seconds - frozen_seconds) / per_epoch))
    before = time.perf_counter()
    learner.fine_tune(epochs, freeze_epochs=0)
    used = frozen_seconds + time.perf_counter() - before
    test = loaders.test_dl(test_rows, with_labels=True)
    probabilities, expected = learner.get_preds(dl=test)
    accuracy = float((probabilities.argmax(dim=1) == expected).double().mean())
    return accuracy, used, f"`fine_tune`, 1 epoch frozen and {epochs} of all layers, {size} pixels"


def train_keras(data: gingham.DataSplits, weights: Path, seconds: float, size: int) -> Result:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras
    from torch.nn.functional import interpolate

    body = load_pretrained(weights)
    mean, std = (torch.tensor(body.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))

    class Network(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.augment = keras.Sequential([keras.layers.RandomFlip("horizontal"), keras.layers.RandomRotation(0.1)])
            self.body = keras.layers.TorchModuleWrapper(body)
            self.dropout = keras.layers.Dropout(0.2)
            self.head = keras.layers.Dense(len(data.classes))

        def call(self, images: torch.Tensor, training: bool = False) -> torch.Tensor:
            pixels = self.augment(images, training=training).permute(0, 3, 1, 2)
            # training=False: the statistics of BatchNorm stay as they are.
            features = self.body((pixels / 255 - mean) / std, training=False)
            logits: torch.Tensor = self.head(self.dropout(features, training=training))
            return logits

    def resized(split: gingham.Split) -> torch.Tensor:
        parts = [
            interpolate(part.float(), size=size, mode="bilinear", antialias=True)
            for part in torch.split(split.images, 256)
        ]
        return torch.cat(parts).permute(0, 2, 3, 1).contiguous()

    keras.utils.set_random_seed(0)
    model, images = Network(), resized(data.train).numpy()
    model(images[:1])
    used, epochs = 0.0, list[int]()
    for trainable, rate in ((False, 1e-3), (True, 1e-5)):
        model.body.trainable = trainable
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=keras.optimizers.Adam(rate), loss=loss)
        end = (len(epochs) + 1) * seconds / 2  # each half of the time
        epochs.append(0)
        longest = 0.0
        while used + longest / 2 < end:
            started = time.perf_counter()
            model.fit(images, data.train.labels.numpy(), batch_size=BATCH_SIZE, verbose=0)
            longest = time.perf_counter() - started
            used += longest
            epochs[-1] += 1
    answers = model.predict(resized(data.test).numpy(), batch_size=BATCH_SIZE, verbose=0).argmax(axis=1)
    accuracy = float((answers == data.test.labels.numpy()).mean())
    return accuracy, used, f"{epochs[0]} epochs frozen and {epochs[1]} of all layers, {size} pixels"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--epochs", type=float, help="of Gingham, instead of the recipe's")
    parser.add_argument("--sizes", type=int, nargs="+", default=[144, 192], help="of the images, for the other tools")
    options = parser.parse_args()
    commit = records.clean_commit()
    retain_freed_memory()
    data = gingham.load_data(options.data, size=gingham.RECIPES["finetune"].size)
    first = train_gingham(data, options.weights, options.epochs)
    rows: list[tuple[str, Result]] = [("Gingham", first)]
    tools: dict[str, Callable[..., Result]] = {"fastai": train_fastai, "Keras": train_keras}
    for name, train in tools.items():
        for size in options.sizes:
            rows.append((name, train(data, options.weights, first[1], size)))
            print(name, rows[-1][1])
    lines = []
    for name, (accuracy, seconds, settings) in rows:
        low, high = proportion_interval(round(accuracy * len(data.test)), len(data.test))
        lines.append(f"| {name} | {accuracy:.1%} ({low:.1%} to {high:.1%}) | {seconds:.0f} | {settings} |")
    environment = describe_environment(choose_device("auto"))
    text = f"""# The same network and photos with other tools

Command: `python benchmarks/photo_peers.py {" ".join(map(str, [options.data, "--weights", options.weights.name]))}{
        f" --epochs {options.epochs:g}" if options.epochs else ""
    }`, commit {commit[:12]}.
Hardware: {environment["hardware"]}; torch {environment["torch"]}.
Data: {Path(options.data).name}: {len(data.train):,} training and {len(data.test):,} test images, {
        len(data.classes)
    } classes; one seed.

| tool | test accuracy (95 % interval) | seconds | settings |
| --- | ---: | ---: | --- |
{chr(10).join(lines)}
"""
    print(records.write_result("photo-peers", environment, text))
    print(text)


if __name__ == "__main__":
    records.run(main)
