"""Fine-tune the same network on the same photos with Gingham and with fastai, for the same time.

    pip install fastai==2.8.*
    python benchmarks/photo_peers.py DATA --weights model.safetensors

DATA is as for `gingham train`, with a test split. Each tool starts with the same pretrained weights. fastai trains with
`Learner.fine_tune` and its default augmentation, as its documentation recommends, for as many epochs as fit into the seconds
that Gingham took. Writes benchmarks/results/photo-peers-<hardware>-<date>.md.
"""

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

import gingham
import records
from gingham.device import choose_device, describe_environment, retain_freed_memory
from gingham.evaluation.metrics import proportion_interval
from gingham.models.backbones import DEFAULT_BACKBONE


def train_gingham(data: gingham.DataSplits, weights: Path) -> tuple[float, float, str]:
    """Return the test accuracy, the seconds of training and the settings of the recipe `finetune`."""
    recipe = gingham.RECIPES["finetune"]
    started = time.perf_counter()
    run = gingham.fit(recipe, data.train, data.validation, options=gingham.FitOptions(weights=weights))
    seconds = time.perf_counter() - started
    return gingham.evaluate(run, data.test).accuracy, seconds, f"recipe `finetune`, {recipe.epochs:g} epochs"


def train_fastai(data: gingham.DataSplits, weights: Path, seconds: float) -> tuple[float, float, str]:
    """Return the same for fastai, which trains as many epochs as fit into the seconds."""
    from fastai.vision import all as fastai

    validation = data.validation or data.test
    images = torch.cat([data.train.images, validation.images, data.test.images]).permute(0, 2, 3, 1).numpy()
    labels = torch.cat([data.train.labels, validation.labels, data.test.labels]).tolist()
    first_test = len(data.train) + len(validation)
    block = fastai.DataBlock(
        blocks=(fastai.ImageBlock, fastai.CategoryBlock(vocab=list(data.classes))),
        get_x=lambda row: fastai.PILImage.create(images[row]),
        get_y=lambda row: data.classes[labels[row]],
        splitter=fastai.IndexSplitter(range(len(data.train), first_test)),
        item_tfms=fastai.RandomResizedCrop(144, min_scale=0.35),
        batch_tfms=fastai.aug_transforms(size=144),
    )
    torch.manual_seed(0)
    loaders = block.dataloaders(list(range(first_test)), bs=32, num_workers=0)
    learner = fastai.vision_learner(loaders, DEFAULT_BACKBONE, pretrained=False, metrics=fastai.accuracy)
    body = load_file(weights)
    model = learner.model[0].model
    missing, _ = model.load_state_dict({key: body[key] for key in model.state_dict() if key in body}, strict=False)
    assert not missing, missing
    learner.freeze()
    started = time.perf_counter()
    learner.fine_tune(0, freeze_epochs=1)
    per_epoch = time.perf_counter() - started
    epochs = max(1, int((seconds - per_epoch) / (1.6 * per_epoch)))  # an epoch of all layers takes longer
    learner.fine_tune(epochs, freeze_epochs=0)
    used = time.perf_counter() - started
    test = loaders.test_dl(list(range(first_test, len(labels))), with_labels=True)
    probabilities, expected = learner.get_preds(dl=test)
    accuracy = float((probabilities.argmax(dim=1) == expected).double().mean())
    return accuracy, used, f"`fine_tune`, 1 epoch frozen and {epochs} unfrozen"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data")
    parser.add_argument("--weights", type=Path, required=True)
    options = parser.parse_args()
    commit = records.clean_commit()
    retain_freed_memory()
    data = gingham.load_data(options.data, size=224)
    rows = []
    accuracy, seconds, settings = train_gingham(data, options.weights)
    rows.append(("Gingham", accuracy, seconds, settings))
    rows.append(("fastai", *train_fastai(data, options.weights, seconds)))
    lines = []
    for name, accuracy, used, settings in rows:
        low, high = proportion_interval(round(accuracy * len(data.test)), len(data.test))
        lines.append(f"| {name} | {accuracy:.1%} ({low:.1%} to {high:.1%}) | {used:.0f} | {settings} |")
    environment = describe_environment(choose_device("auto"))
    text = f"""# The same network and photos with other tools

Command: `python benchmarks/photo_peers.py {options.data} --weights {options.weights.name}`, commit {commit[:12]}.
Hardware: {environment["hardware"]}; torch {environment["torch"]}.
Data: {Path(options.data).name}: {len(data.train):,} training and {len(data.test):,} test images, {len(data.classes)} classes; one seed.

| tool | test accuracy (95 % interval) | seconds | settings |
| --- | ---: | ---: | --- |
{chr(10).join(lines)}
"""
    print(records.write_result("photo-peers", environment, text))
    print(text)


if __name__ == "__main__":
    records.run(main)
