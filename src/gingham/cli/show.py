"""`gingham show`."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

import gingham
from gingham.cli.options import DATA_HELP, DEFAULT_DATA, Json, LabelFrom, SkipUnreadable
from gingham.cli.output import format_pairs, print_message, print_result
from gingham.errors import GinghamError
from gingham.presets import DEFAULT_RECIPE, RECIPES
from gingham.recipe import Recipe

RECIPE_HELP = f"With --batch: the recipe whose batch it is; by default {DEFAULT_RECIPE}, or finetune for photos."


def show(
    data: Annotated[str, Argument(help=DATA_HELP)] = DEFAULT_DATA,
    skip_unreadable: SkipUnreadable = False,
    label_from: LabelFrom = "folder",
    batch: Annotated[int | None, Option(min=1, help="Show one batch of N images as a recipe uses them.")] = None,
    recipe: Annotated[str | None, Option(help=RECIPE_HELP)] = None,
    out: Annotated[Path | None, Option(help="The PNG to write; by default <name>.png.")] = None,
    as_json: Json = False,
) -> None:
    """Print a dataset's statistics and draw its images."""
    if recipe is not None and batch is None:
        raise GinghamError("--recipe is for the figure of --batch; give both, or neither")
    from gingham.data.statistics import describe
    from gingham.figures import write_figure
    from gingham.training.auto import auto_size

    size = auto_size(data, label_from)
    splits = gingham.load_data(data, 0, size=size, skip_unreadable=skip_unreadable, label_from=label_from)
    for note in splits.notes:
        print_message(note)
    stem = Path(splits.name).resolve().name
    statistics = describe(splits)
    if batch is None:
        statistics["file"] = str(write_figure(splits.plot(), out or Path(f"{stem}.png")))
        text = _format_statistics(statistics)
    else:
        chosen = RECIPES[recipe or ("finetune" if size else DEFAULT_RECIPE)].replace(batch_size=batch)
        statistics |= _draw_batch(splits, chosen, out or Path(f"{stem}-batch.png"))
        text = _format_batch(statistics)
    print_result(statistics, text, as_json)


def _draw_batch(splits: "gingham.DataSplits", recipe: Recipe, file: Path) -> dict[str, Any]:
    """Draw the first training batch of a recipe, and return its statistics."""
    import torch
    from torch import nn

    from gingham.data.sampler import Sampler
    from gingham.figures import write_figure
    from gingham.models.classifier import Classifier
    from gingham.plots import draw_batch
    from gingham.training.batches import NO_CLASS, BatchLoader

    loader = BatchLoader(splits.train, recipe, Sampler(recipe, len(splits.train)), torch.device("cpu"))
    drawn = next(loader.batches(0, 1))
    names = ["no class" if label == NO_CLASS else splits.classes[label] for label in drawn.main_labels().tolist()]
    images = drawn.images
    channels, height, width = images.shape[1:]
    normalised = Classifier(nn.Identity(), splits.classes, (channels, height, width), recipe.mean, recipe.std)(images)
    batch = {
        "recipe": recipe.name,
        "shape": list(images.shape),
        "dtype": str(images.dtype).removeprefix("torch."),
        "range": [int(images.min()), int(images.max())],
        "normalised_dtype": str(normalised.dtype).removeprefix("torch."),
        "normalised_range": [float(normalised.min()), float(normalised.max())],
        "labels": names,
    }
    return {"file": str(write_figure(draw_batch(images, names), file)), "batch": batch}


def _format_batch(statistics: dict[str, Any]) -> str:
    batch = statistics["batch"]
    shape, (low, high) = tuple(batch["shape"]), batch["normalised_range"]
    pairs = {
        "in memory": f"{batch['dtype']} {shape}, from {batch['range'][0]} to {batch['range'][1]}",
        "normalised": f"{batch['normalised_dtype']} {shape}, from {low:.3f} to {high:.3f}",
        "first labels": ", ".join(batch["labels"][:6]),
        "figure": statistics["file"],
    }
    return f"one training batch of {statistics['name']}, as the recipe {batch['recipe']} uses it\n{format_pairs(pairs)}"


def _format_statistics(statistics: dict[str, Any]) -> str:
    from gingham.text import render_table

    train, test = statistics["per_class_train"], statistics["per_class_test"]
    rows = [[name, f"{train[name]:,}", f"{test[name]:,}"] for name in statistics["classes"]]
    splits, duplicates = statistics["splits"], statistics["duplicates"]
    numbers = [value if isinstance(value, list) else [value] for value in (statistics["mean"], statistics["std"])]
    mean, std = (", ".join(f"{x:.4f}" for x in values) for values in numbers)
    pairs = {
        "images": f"{splits['train']:,} train, {splits['test']:,} test, in {len(rows)} classes",
        "shape": f"{'x'.join(map(str, statistics['shape']))}, uint8",
        "mean, std": f"{mean}; {std} (training images, pixels from 0 to 1)",
        "duplicates": f"{duplicates['train']} within train, {duplicates['test']} within test, "
        f"{duplicates['across']} of test also in train",
        "source": statistics["source"],
        "fingerprint": statistics["fingerprint"],
        "figure": statistics["file"],
    }
    return f"{render_table(['class', 'train', 'test'], rows)}\n\n{format_pairs(pairs)}"
