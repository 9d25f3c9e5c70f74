"""The commands: parse, call, print. Results go to stdout, everything else to stderr."""

import dataclasses
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gingham import __version__
from gingham.errors import DataError, GinghamError, one_line
from gingham.recipe import DEFAULT_RECIPE, RECIPES, Recipe, find_recipe, parse_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from gingham.datasets import Data, Split
    from gingham.storage import Run

STARTED = time.time()

app = typer.Typer(
    name="gingham",
    help="Train image classifiers on small pictures: in seconds on a laptop, honest about how good they are.",
    epilog="Start with: gingham train",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DEFAULT_DATA = "fashion-mnist"
FIELDS = ", ".join(item.name for item in dataclasses.fields(Recipe))
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value to stdout, and nothing else.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps; auto takes the GPU where there is one.")]


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def train(
    recipe: Annotated[str, typer.Option(help=f"One of: {', '.join(RECIPES)}.")] = DEFAULT_RECIPE,
    data: Annotated[str, typer.Option(help="A dataset's name, or a folder with its four IDX files.")] = DEFAULT_DATA,
    seed: Annotated[int | None, typer.Option(help="Decides every random draw; 0 unless told.")] = None,
    epochs: Annotated[float | None, typer.Option(help="How often every picture is seen; fractions are fine.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help=f"Set a field of the recipe; may be repeated. Fields: {FIELDS}."),
    ] = None,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/<recipe>-<seed> unless told.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint; a finished run stays as it is.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a network and write a run folder."""
    changes = parse_settings(settings or [])
    changes |= {key: value for key, value in (("seed", seed), ("epochs", epochs)) if value is not None}
    chosen = find_recipe(recipe).replace(**changes)
    folder = out or Path("runs") / f"{chosen.name}-{chosen.seed}"
    if (folder / "model.json").exists():
        if not resume:
            raise GinghamError(
                f"{folder} already holds a finished run; give another --out or --seed, or look at it with "
                f"gingham evaluate {folder}"
            )
        from gingham.storage import load

        run = load(folder)
        _say(f"{folder} is finished already; nothing to resume")
    else:
        run = _train(chosen, data, folder, device, resume)
    result = {"run": str(folder), **run.metrics}
    if as_json:
        _print_json(result)
        return
    _print_pairs(
        ("run", folder),
        ("network", f"{run.recipe.network}, {result['parameters']:,} parameters"),
        ("trained on", f"{result['train_images']:,} pictures of {run.data.get('name')}, {result['epochs']:.3g} epochs"),
        ("time", f"{_seconds(result['train_seconds'])} train_seconds, {_seconds(result['wall_seconds'])} wall_seconds"),
        ("on", f"{run.environment.get('hardware')}; torch {run.environment.get('torch')}, {result['precision']}"),
        ("validation", "none held out" if result["validation_accuracy"] is None else f"{result['validation_accuracy']:.2%}"),
        ("next", f"gingham evaluate {folder} --split {'validation' if run.recipe.validation_images else 'test'}"),
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def _print_pairs(*pairs: tuple[str, object]) -> None:
    width = max(len(label) for label, _ in pairs)
    for label, text in pairs:
        print(f"{label:<{width}}  {text}")


def _train(recipe: Recipe, data: str, folder: Path, device: str, resume: bool) -> "Run":
    from gingham.datasets import load_data
    from gingham.files import locked, require_writable
    from gingham.reporting import draw_curves
    from gingham.storage import CHECKPOINT, save
    from gingham.training import choose_device, fit

    choose_device(device)
    if (folder / CHECKPOINT).exists() and not resume:
        raise GinghamError(
            f"{folder} holds a run that was interrupted; go on with --resume, give another --out, or remove the folder"
        )
    source = load_data(data, recipe.validation_images)
    require_writable(folder)
    if resume and not (folder / CHECKPOINT).exists():
        _say(f"nothing to resume in {folder}; starting")
    with locked(folder, wait=False):
        try:
            run = fit(recipe, source.train, source.validation, folder=folder, resume=resume, device=device)
        except KeyboardInterrupt:
            kept = (folder / CHECKPOINT).exists()
            again = "go on with the same command and --resume" if kept else "no checkpoint was due yet, so nothing is kept"
            _say(f"\ninterrupted; {again}")
            raise
        run.metrics["wall_seconds"] = time.time() - _process_start()  # all but the writing that follows
        save(run, folder)
    _draw(draw_curves, run, folder / "curves.png")
    return run


def _draw(draw: "Callable[[Any, Path], Path]", what: object, file: Path) -> str | None:
    """A figure beside a result: where it cannot be written the result still counts, and stderr says why."""
    try:
        return str(draw(what, file))
    except GinghamError as error:
        _say(f"gingham: no figure: {error}")
        return None


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Annotated[str | None, typer.Option(help="Other data than the run's own: a name or a folder.")] = None,
    split: Annotated[str, typer.Option(help="validation or test. Every look at test is written into the run.")] = "validation",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a run: accuracy, table by class, confusion."""
    if split not in ("validation", "test"):
        raise GinghamError(f"--split got {split!r}; allowed: validation, test")
    from gingham.evaluation import evaluate as measure
    from gingham.storage import load
    from gingham.training import choose_device

    place = choose_device(device)
    loaded = load(run)
    loaded.model.to(place)
    report = measure(loaded, _split_of(loaded, run, data, split))

    from gingham.reporting import draw_confusion

    figure = _draw(draw_confusion, report, run / f"confusion-{split}.png")
    if as_json:
        _print_json({**report.to_dict(), "file": figure})
        return
    print(report.confusion)
    print()
    print(report)
    if split == "test":
        print(f"the test split has been opened {_times(len(report.test_openings))} by this run")
    seconds = loaded.metrics.get("train_seconds")
    if isinstance(seconds, (int, float)):
        print(f"trained in {seconds:.1f} s (train_seconds) on {loaded.environment.get('hardware', 'unknown hardware')}")
    print(f"figure: {figure or 'not written'}")


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _split_of(run: "Run", folder: Path, data: str | None, split: str) -> "Split":
    from gingham.datasets import load_data

    name = data or run.data.get("name")
    if not isinstance(name, str):
        raise DataError(f"{folder} does not say what it was trained on; give --data NAME-OR-FOLDER")
    held_out = run.recipe.validation_images
    if split == "validation" and held_out == 0:
        raise DataError(
            f"{folder} held no pictures out for validation (recipe {run.recipe.name}, validation_images=0); "
            f"use --split test, or train with --set validation_images=5000"
        )
    # A folder of IDX files has numbers for classes; here they are the model's.
    source = load_data(name, held_out if split == "validation" else 0, run.model.classes)
    if data is None and source.fingerprint != run.data.get("fingerprint"):
        raise DataError(
            f"{name} has changed since {folder} was trained on it, so its splits may overlap with what was trained on; "
            f"restore it, or say --data {name} to measure on it as it is now"
        )
    chosen = source.test if split == "test" else source.validation
    assert chosen is not None
    return chosen


@app.command()
def show(
    data: Annotated[str, typer.Argument(help="A dataset's name, or a folder with its four IDX files.")] = DEFAULT_DATA,
    batch: Annotated[int | None, typer.Option(min=1, help="Show one training batch of N as the loop sees it.")] = None,
    out: Annotated[Path | None, typer.Option(help="The PNG to write; <name>.png here unless told.")] = None,
    as_json: Json = False,
) -> None:
    """Print a dataset's facts and draw its pictures."""
    from gingham.datasets import describe, load_data

    source = load_data(data, validation=0)
    stem = Path(source.name).resolve().name
    facts = describe(source)
    if batch is None:
        from gingham.reporting import draw_contact_sheet

        facts["file"] = str(draw_contact_sheet(source, out or Path(f"{stem}.png")))
    else:
        facts |= _show_batch(source, batch, out or Path(f"{stem}-batch.png"))
    if as_json:
        _print_json(facts)
    else:
        _print_facts(facts)


def _show_batch(source: "Data", size: int, file: Path) -> dict[str, Any]:
    from torch import nn

    from gingham.augmentation import augment
    from gingham.models import Classifier
    from gingham.reporting import draw_batch
    from gingham.sampling import Sampler

    recipe = find_recipe(DEFAULT_RECIPE).replace(batch_size=size)
    indices = next(Sampler(recipe, len(source.train)).batches(0, 1))
    images, labels = augment(source.train.images[indices], indices, recipe, epoch=0, step=0), source.train.labels[indices]
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
    _print_pairs(
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


@app.command()
def summary(
    model: Annotated[str, typer.Argument(help="A network's name, a run folder, torchvision:NAME or package.module:Class.")],
    input_shape: Annotated[
        str | None, typer.Option("--input", metavar="CxHxW", help="1x28x28, or what the model is for.")
    ] = None,
    explain: Annotated[
        str | None, typer.Option(metavar="LAYER", help="Work one layer's numbers through; all for every one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print a network's layers and receptive fields."""
    shape = None if input_shape is None else _parse_shape(input_shape)
    from gingham.inspection import find_network, summarize

    network, default = find_network(model, shape)
    result = summarize(network, shape or default, model)
    explained = None if explain is None else result.explain(explain)
    if as_json:
        _print_json({**result.to_dict(), **({} if explained is None else {"explanation": explained})})
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


def _process_start() -> float:
    """When this process began, in seconds since the epoch: before Python read its first import."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
        start = time.time() - up + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return STARTED
    return start if 0 <= STARTED - start < 60 else STARTED  # a container may show another machine's uptime


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with 0, 2 for what the user can mend, 130 when interrupted."""
    usage_error: Any = typer.BadParameter.__mro__[2]  # the base of every complaint about arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an old terminal shows a question mark for the formulas' signs
    try:
        code: Any = app(arguments, standalone_mode=False)
        sys.stdout.flush()
    except GinghamError as error:
        _fail(str(error))
    except typer.Exit as stop:
        code = stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except (BrokenPipeError, SystemExit):
        # The reader, such as head, has had enough; typer, told to leave exits to us, still exits by itself on that.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except usage_error as error:
        _fail(error.format_message())
    except OSError as error:
        _fail(
            f"cannot use {error.filename or 'a file'} ({error.strerror or one_line(error)}); check the path and its permissions"
        )
    except (MemoryError, RuntimeError) as error:
        if "memory" not in str(error):
            raise
        _fail(f"out of memory ({one_line(error)}); try a smaller --set batch_size, or fewer other programs")
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> None:
    line = " ".join(message.split())
    _say(f"gingham: {line}")
    sys.exit(2)
