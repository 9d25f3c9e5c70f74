"""The commands that train and look: train, evaluate, show, summary."""

import dataclasses
import functools
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gingham.errors import GinghamError, Terminated, sentence
from gingham.recipe import DEFAULT_RECIPE, RECIPES, Recipe, find_recipe, parse_settings
from gingham.terminal import (
    DATA_HELP,
    DEFAULT_DATA,
    Device,
    Json,
    Model,
    SkipUnreadable,
    Teacher,
    drawn,
    factory_of,
    named_run,
    print_json,
    print_pairs,
    require_split,
    say,
    say_notes,
    seconds,
    split_of,
    suited,
    teachers_named,
    times,
    wall_seconds,
)

if TYPE_CHECKING:
    from gingham.datasets import Data
    from gingham.distributed import Crew
    from gingham.models import NetworkFactory
    from gingham.storage import Run

FIELDS = ", ".join(item.name for item in dataclasses.fields(Recipe))


def train(
    recipe: Annotated[str, typer.Option(help=f"One of: {', '.join(RECIPES)}.")] = DEFAULT_RECIPE,
    data: Annotated[str, typer.Option(help=DATA_HELP)] = DEFAULT_DATA,
    skip_unreadable: SkipUnreadable = False,
    seed: Annotated[int | None, typer.Option(help="Decides every random draw; 0 unless told.")] = None,
    epochs: Annotated[float | None, typer.Option(help="How often every picture is seen; fractions are fine.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help=f"Set a field of the recipe; may be repeated. Fields: {FIELDS}."),
    ] = None,
    model: Model = None,
    teacher: Teacher = None,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/<recipe>-<seed> unless told.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint; a finished run stays as it is.")
    ] = False,
    track: Annotated[
        str | None, typer.Option(metavar="tensorboard", help="Write the history for TensorBoard too, into the run folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a network and write a run folder."""
    changes = parse_settings(settings or [])
    changes |= {key: value for key, value in (("seed", seed), ("epochs", epochs)) if value is not None}
    chosen = find_recipe(recipe).replace(**changes)
    own = f"-{model.rpartition(':')[2]}" if model else ""
    folder = out or Path("runs") / f"{chosen.name}{own}-{chosen.seed}"
    from gingham.distributed import joined, restarted

    finished, resume = (folder / "model.json").exists(), resume or restarted()
    if finished and not resume:
        raise GinghamError(
            f"{folder} already holds a finished run; give another --out or --seed, or look at it with gingham evaluate {folder}"
        )
    with joined() as crew:
        if crew.any(crew.leads and finished)[0]:
            if not crew.leads:
                return
            from gingham.storage import load

            run = load(folder, factory_of(model))
            say(f"{folder} is finished already; nothing to resume")
        else:
            run = _train(
                chosen, changes, data, skip_unreadable, folder, device, resume, factory_of(model), teacher or [], track, crew
            )
            if not crew.leads:
                return
    if as_json:
        print_json({"run": str(folder), **run.metrics})
    else:
        print_trained(run, folder, model)


def print_trained(run: "Run", folder: Path, model: str | None) -> None:
    """Print what `train` tells of a run, in two columns; `-` for what one from elsewhere does not say."""
    result = run.metrics
    print_pairs(
        ("run", folder),
        ("network", f"{run.recipe.network}, {_counted(result, 'parameters')} parameters"),
        (
            "trained on",
            f"{_counted(result, 'train_images')} pictures of {run.data.get('name')}, {_counted(result, 'epochs', '.3g')} epochs{_seen(result)}",
        ),
        (
            "time",
            f"{seconds(result.get('train_seconds'))} train_seconds, {seconds(result.get('wall_seconds'))} wall_seconds{_resumed(result)}",
        ),
        *([("taught by", run.taught_by)] if run.taught_by else []),
        ("throughput", _throughput(result)),
        ("on", f"{run.environment.get('hardware')}; torch {run.environment.get('torch')}, {result.get('precision')}"),
        ("validation", _validation(result.get("validation_accuracy"), run.recipe.validation_images)),
        (
            "next",
            f"gingham evaluate {folder} --split {'validation' if run.recipe.validation_images else 'test'}"
            + (f" --model {model}" if model else ""),
        ),
    )


def _seen(result: dict[str, Any]) -> str:
    return "" if result.get("images_seen") is None else f" ({result['images_seen']:,} pictures seen)"


def _counted(result: dict[str, Any], key: str, form: str = ",") -> str:
    value = result.get(key)
    return "-" if value is None else format(value, form)


def _throughput(result: dict[str, Any]) -> str:
    rate, processes = result.get("images_per_second_per_process"), result.get("processes") or 1
    if rate is None:
        return "-"
    return f"{rate:,.0f} pictures a second" + (f" in each of {processes} processes" if processes > 1 else "")


def _resumed(result: dict[str, Any]) -> str:
    step = result.get("resumed_from_step")
    return "" if step is None else f" (resumed at step {step:,}: training in all, and this last process)"


def _validation(accuracy: float | None, images: int) -> str:
    if accuracy is None or not images:
        return "none held out"
    from gingham.metrics import proportion_interval

    low, high = proportion_interval(round(accuracy * images), images)
    return f"{accuracy:.2%} of {images:,} pictures (95 % interval {low:.2%} to {high:.2%})"


def _train(
    recipe: Recipe,
    given: Collection[str],
    data: str,
    skip_unreadable: bool,
    folder: Path,
    device: str,
    resume: bool,
    network: "NetworkFactory | None",
    teachers: list[Path],
    track: str | None,
    crew: "Crew",
) -> "Run":
    from gingham.checkpoints import has_checkpoint, has_leftovers
    from gingham.datasets import load_data
    from gingham.devices import choose_device
    from gingham.figures import draw_curves
    from gingham.files import locked, require_writable
    from gingham.storage import FACTS, save
    from gingham.training import fit, require_teachers, require_tracker

    choose_device(device, crew.local_rank if crew.size > 1 else None)
    require_tracker(track)
    if crew.leads and has_checkpoint(folder) and not resume:
        raise GinghamError(
            f"{folder} holds a run that was interrupted; go on with --resume, give another --out, or remove the folder"
        )
    taught_by = teachers_named(teachers, given)
    with crew.in_turn():
        source = load_data(data, recipe.validation_images, size=recipe.size, skip_unreadable=skip_unreadable)
    say_notes(source)
    recipe = suited(recipe, len(source.train), given)
    require_teachers(taught_by, recipe, source.train, source.validation)  # before a folder is made
    train_it = functools.partial(
        fit,
        recipe,
        source.train,
        source.validation,
        folder=folder,
        resume=resume,
        device=device,
        network=network,
        teachers=taught_by,
    )
    if not crew.leads:
        return train_it()
    require_writable(folder)
    if resume and not has_checkpoint(folder):
        halves = " (what is in its checkpoint folder has no manifest, and is not known to be whole)" * has_leftovers(folder)
        say(f"nothing to resume in {folder}{halves}; starting")
    with locked(folder, wait=False):
        if (folder / FACTS).exists():  # while the data was being read
            raise GinghamError(
                f"{folder} was finished by another gingham just now; look at it with gingham evaluate {folder}, or give another --out"
            )
        try:
            run = train_it(track=track)
        except (KeyboardInterrupt, Terminated):
            again = (
                "go on with the same command and --resume"
                if has_checkpoint(folder)
                else "no step was done yet, so nothing is kept"
            )
            say(f"\ninterrupted; {again}")
            raise
        run.metrics["wall_seconds"] = wall_seconds()  # all but the writing that follows
        save(run, folder)
    drawn(draw_curves, run, folder / "curves.png")
    return run


def evaluate(
    run: Annotated[
        Path, typer.Argument(help="A run folder; or packaged: the model that comes with Gingham, on the photographs of --data.")
    ],
    data: Annotated[
        str | None,
        typer.Option(help="Other data than the run's own: a folder of photographs, one folder a class, or what train takes."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="validation (unless told) or test. Every look at test is written into the run."),
    ] = None,
    model: Model = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a run: accuracy, table by class, confusion."""
    require_split(split or "validation")
    from gingham.devices import choose_device
    from gingham.evaluation import evaluate as measure

    place = choose_device(device)
    loaded = named_run(run, model)
    packaged = loaded.folder is None
    loaded.model.to(place)
    photographs = data is not None and _are_photographs(data, loaded)
    if packaged and data is not None and not photographs:
        raise GinghamError(f"{data} is no folder of photographs; give --data FOLDER, with a folder of them for each class")
    if packaged and not photographs:
        raise GinghamError(
            "the packaged model is measured on photographs: give --data FOLDER, with a folder of them for each class"
        )
    unreadable = {}
    if data is not None and photographs:
        from gingham.prediction import evaluate_photographs

        report, bad = evaluate_photographs(loaded, data, split)
        unreadable = {"unreadable": [one.to_dict() for one in bad]}
        for one in bad:
            say(f"left out: {one.error}")
    else:
        report = measure(loaded, split_of(loaded, run, data, split or "validation"))

    from gingham.figures import draw_confusion

    beside = Path() if packaged else run
    figure = drawn(draw_confusion, report, beside / f"confusion-{report.split}.png")
    if as_json:
        print_json({**report.to_dict(), **unreadable, "file": figure})
        return
    print(report.confusion)
    print()
    print(report)
    if report.split == "test":
        print(f"the test split has been opened {times(len(report.test_openings))} by this run")
    seconds = loaded.metrics.get("train_seconds")
    if isinstance(seconds, (int, float)):
        print(
            sentence(f"trained in {seconds:.1f} s (train_seconds) on {loaded.environment.get('hardware', 'unknown hardware')}")
        )
    print(f"figure: {figure or 'not written'}")


def _are_photographs(data: str, run: "Run") -> bool:
    """Whether `data` is a place of picture files other than the run's own, to be prepared as `predict` does."""
    from gingham.datasets import is_pictures
    from gingham.published import NAMED

    place = Path(data).resolve()
    return data not in NAMED and place.exists() and is_pictures(place) and str(place) != run.data.get("name")


def show(
    data: Annotated[str, typer.Argument(help=DATA_HELP)] = DEFAULT_DATA,
    skip_unreadable: SkipUnreadable = False,
    batch: Annotated[int | None, typer.Option(min=1, help="Show one training batch of N as the loop sees it.")] = None,
    recipe: Annotated[str, typer.Option(help="With --batch: the recipe whose batch it is.")] = DEFAULT_RECIPE,
    out: Annotated[Path | None, typer.Option(help="The PNG to write; <name>.png here unless told.")] = None,
    as_json: Json = False,
) -> None:
    """Print a dataset's facts and draw its pictures."""
    from gingham.datasets import describe, load_data

    source = load_data(data, validation=0, skip_unreadable=skip_unreadable)
    say_notes(source)
    stem = Path(source.name).resolve().name
    facts = describe(source)
    if batch is None:
        from gingham.figures import draw_contact_sheet

        facts["file"] = str(draw_contact_sheet(source, out or Path(f"{stem}.png")))
    else:
        facts |= _show_batch(source, find_recipe(recipe).replace(batch_size=batch), out or Path(f"{stem}-batch.png"))
    if as_json:
        print_json(facts)
    else:
        _print_facts(facts)


def _show_batch(source: "Data", recipe: Recipe, file: Path) -> dict[str, Any]:
    from torch import nn

    from gingham.augmentation import augment
    from gingham.figures import draw_batch
    from gingham.models import Classifier
    from gingham.photo_augmentation import photograph_some
    from gingham.sampling import Sampler

    indices = next(Sampler(recipe, len(source.train)).batches(0, 1))
    images, labels = augment(source.train.images[indices], indices, recipe, epoch=0, step=0), source.train.labels[indices]
    if recipe.photo_share:
        images = photograph_some(images, labels, source.classes, recipe, step=0)
    names = [source.classes[label] for label in labels.tolist()]
    channels, height, width = images.shape[1:]
    normalised = Classifier(nn.Identity(), source.classes, (channels, height, width), recipe.mean, recipe.std)(images)
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


def _print_facts(facts: dict[str, Any]) -> None:
    from gingham.tables import render

    if "batch" in facts:
        batch = facts["batch"]
        low, high = batch["normalised_range"]
        print(f"one training batch of {facts['name']}, as the loop sees it")
        print(f"in memory     {batch['dtype']} {tuple(batch['shape'])}, from {batch['range'][0]} to {batch['range'][1]}")
        print(f"normalised    {batch['normalised_dtype']} {tuple(batch['shape'])}, from {low:.3f} to {high:.3f}")
        print(f"first labels  {', '.join(batch['labels'][:6])}")
        print(f"figure        {facts['file']}")
        return
    train, test = facts["per_class_train"], facts["per_class_test"]
    print(render(["class", "train", "test"], [[name, f"{train[name]:,}", f"{test[name]:,}"] for name in facts["classes"]]))
    duplicates = facts["duplicates"]
    numbers = [value if isinstance(value, list) else [value] for value in (facts["mean"], facts["std"])]
    mean, std = (", ".join(f"{x:.4f}" for x in values) for values in numbers)
    print()
    print_pairs(
        (
            "pictures",
            f"{facts['splits']['train']:,} train, {facts['splits']['test']:,} test, in {len(facts['classes'])} classes",
        ),
        ("shape", f"{'x'.join(map(str, facts['shape']))}, uint8"),
        ("mean, std", f"{mean}; {std} (training pictures, pixels from 0 to 1)"),
        (
            "duplicates",
            f"{duplicates['train']} within train, {duplicates['test']} within test, {duplicates['across']} of test also in train",
        ),
        ("source", facts["source"]),
        ("fingerprint", facts["fingerprint"]),
        ("figure", facts["file"]),
    )


def summary(
    model: Annotated[str, typer.Argument(help="A network's name, a run folder, torchvision:NAME or package.module:Class.")],
    input_shape: Annotated[
        str | None, typer.Option("--input", metavar="CxHxW", help="1x28x28, or what the model is for.")
    ] = None,
    explain: Annotated[
        str | None, typer.Option(metavar="LAYER", help="Work one layer's numbers through; all for every one.")
    ] = None,
    own: Annotated[
        str | None, typer.Option("--model", metavar="package.module:Class", help="The class of a run of your own network.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print a network's layers and receptive fields."""
    shape = None if input_shape is None else _parse_shape(input_shape)
    from gingham.catalogue import find_network
    from gingham.inspection import summarize

    network, default = find_network(model, shape, factory_of(own))
    result = summarize(network, shape or default, model)
    explained = None if explain is None else result.explain(explain)
    if as_json:
        print_json({**result.to_dict(), **({} if explained is None else {"explanation": explained})})
    else:
        print(result if explained is None else explained)


def _parse_shape(text: str) -> tuple[int, int, int]:
    try:
        channels, height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        channels = height = width = 0
    if not (1 <= channels <= 1024 and 1 <= height <= 8192 and 1 <= width <= 8192):
        raise GinghamError(f"--input got {text!r}; write CHANNELSxHEIGHTxWIDTH, such as 1x28x28 or 3x224x224")
    return channels, height, width
