"""`gingham train`."""

import dataclasses
import functools
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gingham.cli.options import DATA_HELP, DEFAULT_DATA, Device, Json, Model, SkipUnreadable, Teacher
from gingham.cli.output import format_seconds, print_json, print_message, print_notes, print_pairs, try_draw, wall_seconds
from gingham.cli.resolve import adapt_to_size, load_teacher_runs, network_factory
from gingham.errors import GinghamError, Terminated
from gingham.presets import DEFAULT_RECIPE, RECIPES, find_recipe
from gingham.recipe import Recipe, parse_settings

if TYPE_CHECKING:
    from gingham.distributed import DistributedContext
    from gingham.models.registry import NetworkFactory
    from gingham.runs.run import Run


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
    from gingham.distributed import init_distributed, is_restart

    finished, resume = (folder / "model.json").exists(), resume or is_restart()
    if finished and not resume:
        raise GinghamError(
            f"{folder} already holds a finished run; give another --out or --seed, or look at it with gingham evaluate {folder}"
        )
    with init_distributed() as context:
        if context.any(context.is_main and finished)[0]:
            if not context.is_main:
                return
            from gingham.runs.run import load

            run = load(folder, network_factory(model))
            print_message(f"{folder} is finished already; nothing to resume")
        else:
            run = _train(
                chosen,
                changes,
                data,
                skip_unreadable,
                folder,
                device,
                resume,
                network_factory(model),
                teacher or [],
                track,
                context,
            )
            if not context.is_main:
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
            f"{format_seconds(result.get('train_seconds'))} train_seconds, {format_seconds(result.get('wall_seconds'))} wall_seconds{_resumed(result)}",
        ),
        *([("taught by", run.teacher_names)] if run.teacher_names else []),
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
    from gingham.evaluation.metrics import proportion_interval

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
    context: "DistributedContext",
) -> "Run":
    from gingham.data.load_data import load_data
    from gingham.device import choose_device
    from gingham.io import locked, require_writable
    from gingham.plots import draw_curves
    from gingham.runs.checkpoint import has_checkpoint, has_unverified_checkpoint
    from gingham.runs.run import METADATA_FILE, save
    from gingham.training.callbacks import validate_tracker
    from gingham.training.distillation import validate_teachers
    from gingham.training.fit import fit

    choose_device(device, context.local_rank if context.size > 1 else None)
    validate_tracker(track)
    if context.is_main and has_checkpoint(folder) and not resume:
        raise GinghamError(
            f"{folder} holds a run that was interrupted; go on with --resume, give another --out, or remove the folder"
        )
    taught_by = load_teacher_runs(teachers, given)
    with context.main_first():
        source = load_data(data, recipe.validation_images, size=recipe.size, skip_unreadable=skip_unreadable)
    print_notes(source)
    recipe = adapt_to_size(recipe, len(source.train), given)
    validate_teachers(taught_by, recipe, source.train, source.validation)  # before a folder is made
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
    if not context.is_main:
        return train_it()
    require_writable(folder)
    if resume and not has_checkpoint(folder):
        halves = (
            " (what is in its checkpoint folder has no manifest, and is not known to be whole)"
            * has_unverified_checkpoint(folder)
        )
        print_message(f"nothing to resume in {folder}{halves}; starting")
    with locked(folder, wait=False):
        if (folder / METADATA_FILE).exists():  # while the data was being read
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
            print_message(f"\ninterrupted; {again}")
            raise
        run.metrics["wall_seconds"] = wall_seconds()  # all but the writing that follows
        save(run, folder)
    title = f"{run.recipe.name}, seed {run.recipe.seed}, {run.metrics['train_seconds']:.0f} s"
    hard_examples = run.recipe.hard_share < 1 and run.metrics["epochs"] > 1
    try_draw(draw_curves, run.history, title, folder / "curves.png", hard_examples=hard_examples)
    return run
