"""`gingham show`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gingham.cli.options import DATA_HELP, DEFAULT_DATA, Json, SkipUnreadable
from gingham.cli.output import print_json, print_notes, print_pairs
from gingham.presets import DEFAULT_RECIPE, find_recipe
from gingham.recipe import Recipe

if TYPE_CHECKING:
    from gingham.data.splits import DataSplits


def show(
    data: Annotated[str, typer.Argument(help=DATA_HELP)] = DEFAULT_DATA,
    skip_unreadable: SkipUnreadable = False,
    batch: Annotated[int | None, typer.Option(min=1, help="Show one training batch of N as the loop sees it.")] = None,
    recipe: Annotated[str, typer.Option(help="With --batch: the recipe whose batch it is.")] = DEFAULT_RECIPE,
    out: Annotated[Path | None, typer.Option(help="The PNG to write; <name>.png here unless told.")] = None,
    as_json: Json = False,
) -> None:
    """Print a dataset's facts and draw its pictures."""
    from gingham.data.load_data import load_data
    from gingham.data.statistics import describe

    splits = load_data(data, validation=0, skip_unreadable=skip_unreadable)
    print_notes(splits)
    stem = Path(splits.name).resolve().name
    statistics = describe(splits)
    if batch is None:
        from gingham.plots import draw_contact_sheet

        train = splits.train
        statistics["file"] = str(
            draw_contact_sheet(train.images, train.labels, train.classes, stem, out or Path(f"{stem}.png"))
        )
    else:
        statistics |= _show_batch(
            splits, find_recipe(recipe).replace(batch_size=batch), out or Path(f"{stem}-batch.png")
        )
    if as_json:
        print_json(statistics)
    else:
        _print_statistics(statistics)


def _show_batch(splits: "DataSplits", recipe: Recipe, file: Path) -> dict[str, Any]:
    from torch import nn

    from gingham.data.augment import augment
    from gingham.data.augment_photos import simulate_photos
    from gingham.data.sampler import Sampler
    from gingham.models.classifier import Classifier
    from gingham.plots import draw_batch

    indices = next(Sampler(recipe, len(splits.train)).batches(0, 1))
    images, labels = (
        augment(splits.train.images[indices], indices, recipe, epoch=0, step=0),
        splits.train.labels[indices],
    )
    if recipe.photo_share:
        images = simulate_photos(images, labels, splits.classes, recipe, step=0)
    names = [splits.classes[label] for label in labels.tolist()]
    channels, height, width = images.shape[1:]
    normalised = Classifier(nn.Identity(), splits.classes, (channels, height, width), recipe.mean, recipe.std)(images)
    return {
        "file": str(draw_batch(images, names, file)),
        "batch": {
            "shape": list(images.shape),
            "dtype": str(images.dtype).removeprefix("torch."),
            "range": [int(images.min()), int(images.max())],
            "normalised_dtype": str(normalised.dtype).removeprefix("torch."),
            "normalised_range": [float(normalised.min()), float(normalised.max())],
            "labels": names,
        },
    }


def _print_statistics(statistics: dict[str, Any]) -> None:
    from gingham.text import render_table

    if "batch" in statistics:
        batch = statistics["batch"]
        low, high = batch["normalised_range"]
        print(f"one training batch of {statistics['name']}, as the loop sees it")
        print(
            f"in memory     {batch['dtype']} {tuple(batch['shape'])}, from {batch['range'][0]} to {batch['range'][1]}"
        )
        print(f"normalised    {batch['normalised_dtype']} {tuple(batch['shape'])}, from {low:.3f} to {high:.3f}")
        print(f"first labels  {', '.join(batch['labels'][:6])}")
        print(f"figure        {statistics['file']}")
        return
    train, test = statistics["per_class_train"], statistics["per_class_test"]
    print(
        render_table(
            ["class", "train", "test"],
            [[name, f"{train[name]:,}", f"{test[name]:,}"] for name in statistics["classes"]],
        )
    )
    duplicates = statistics["duplicates"]
    numbers = [value if isinstance(value, list) else [value] for value in (statistics["mean"], statistics["std"])]
    mean, std = (", ".join(f"{x:.4f}" for x in values) for values in numbers)
    print()
    print_pairs(
        (
            "pictures",
            (
                f"{statistics['splits']['train']:,} train, {statistics['splits']['test']:,} test, in "
                f"{len(statistics['classes'])} classes"
            ),
        ),
        ("shape", f"{'x'.join(map(str, statistics['shape']))}, uint8"),
        ("mean, std", f"{mean}; {std} (training pictures, pixels from 0 to 1)"),
        (
            "duplicates",
            (
                f"{duplicates['train']} within train, {duplicates['test']} within test, {duplicates['across']} of test "
                "also in train"
            ),
        ),
        ("source", statistics["source"]),
        ("fingerprint", statistics["fingerprint"]),
        ("figure", statistics["file"]),
    )
