"""`gingham train`."""

import dataclasses
import functools
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gingham.cli.options import DATA_HELP, DEFAULT_DATA, Device, Json, Model, SkipUnreadable, Teacher
from gingham.cli.output import (
    format_seconds,
    print_json,
    print_message,
    print_notes,
    print_pairs,
    try_draw,
    wall_seconds,
)
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
        typer.Option(
            "--set", metavar="FIELD=VALUE", help=f"Set a field of the recipe; may be repeated. Fields: {FIELDS}."
        ),
    ] = None,
    model: Model = None,
    teacher: Teacher = None,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/<recipe>-<seed> unless told.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint; a finished run stays as it is.")
    ] = False,
    track: Annotated[
        str | None,
        typer.Option(metavar="tensorboard", help="Write the history for TensorBoard too, into the run folder."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a network and write a run folder."""
    changes = parse_settings(settings or [])
    changes |= {key: value for key, value in (("seed", seed), ("epochs", epochs)) if value is not None}
    chosen = find_recipe(recipe).replace(**changes)
    suffix = f"-{model.rpartition(':')[2]}" if model else ""
    folder = out or Path("runs") / f"{chosen.name}{suffix}-{chosen.seed}"
    from gingham.distributed import init_distributed, is_restart

    finished, resume = (folder / "model.json").exists(), resume or is_restart()
    if finished and not resume:
        raise GinghamError(
            f"{folder} already holds a finished run; give another --out or --seed, or look at it with gingham evaluate "
            f"{folder}"
        )
    with init_distributed() as context:
        if context.any(context.is_main and finished)[0]:
            if not context.is_main:
                return
            from gingham.runs.run import load

            trained = load(folder, network_factory(model))
            print_message(f"{folder} is finished already; nothing to resume")
        else:
            trained = _train(
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
        print_json({"run": str(folder), **trained.metrics})
    else:
        print_trained(trained, folder, model)


def print_trained(trained: "Run", folder: Path, model: str | None) -> None:
    """Print a run's results in two columns, with `-` for values that it lacks because it was not written by `train`."""
    metrics, environment = trained.metrics, trained.environment
    print_pairs(
        ("run", folder),
        ("network", f"{trained.recipe.network}, {_count(metrics, 'parameters')} parameters"),
        (
            "trained on",
            (
                f"{_count(metrics, 'train_images')} pictures of {trained.data.get('name')}, "
                f"{_count(metrics, 'epochs', '.3g')} epochs{_images_seen(metrics)}"
            ),
        ),
        (
            "time",
            (
                f"{format_seconds(metrics.get('train_seconds'))} train_seconds, "
                f"{format_seconds(metrics.get('wall_seconds'))} wall_seconds{_resumed_step(metrics)}"
            ),
        ),
        *([("taught by", trained.teacher_names)] if trained.teacher_names else []),
        ("throughput", _throughput(metrics)),
        ("on", f"{environment.get('hardware')}; torch {environment.get('torch')}, {metrics.get('precision')}"),
        ("validation", _validation_accuracy(metrics.get("validation_accuracy"), trained.recipe.validation_images)),
        (
            "next",
            f"gingham evaluate {folder} --split {'validation' if trained.recipe.validation_images else 'test'}"
            + (f" --model {model}" if model else ""),
        ),
    )


def _images_seen(metrics: dict[str, Any]) -> str:
    return "" if metrics.get("images_seen") is None else f" ({metrics['images_seen']:,} pictures seen)"


def _count(metrics: dict[str, Any], key: str, spec: str = ",") -> str:
    value = metrics.get(key)
    return "-" if value is None else format(value, spec)


def _throughput(metrics: dict[str, Any]) -> str:
    rate, processes = metrics.get("images_per_second_per_process"), metrics.get("processes") or 1
    if rate is None:
        return "-"
    return f"{rate:,.0f} pictures a second" + (f" in each of {processes} processes" if processes > 1 else "")


def _resumed_step(metrics: dict[str, Any]) -> str:
    step = metrics.get("resumed_from_step")
    return "" if step is None else f" (resumed at step {step:,}: training in all, and this last process)"


def _validation_accuracy(accuracy: float | None, count: int) -> str:
    if accuracy is None or not count:
        return "none held out"
    from gingham.evaluation.metrics import proportion_interval

    low, high = proportion_interval(round(accuracy * count), count)
    return f"{accuracy:.2%} of {count:,} pictures (95 % interval {low:.2%} to {high:.2%})"


def _train(
    recipe: Recipe,
    changes: Collection[str],
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
    from gingham.training.options import FitOptions

    choose_device(device, context.local_rank if context.size > 1 else None)
    validate_tracker(track)
    if context.is_main and has_checkpoint(folder) and not resume:
        raise GinghamError(
            f"{folder} holds a run that was interrupted; go on with --resume, give another --out, or remove the folder"
        )
    teacher_runs = load_teacher_runs(teachers, changes)
    with context.main_first():
        splits = load_data(data, recipe.validation_images, size=recipe.size, skip_unreadable=skip_unreadable)
    print_notes(splits)
    recipe = adapt_to_size(recipe, len(splits.train), changes)
    validate_teachers(teacher_runs, recipe, splits.train, splits.validation)  # before the folder is created
    run_fit = functools.partial(
        fit,
        recipe,
        splits.train,
        splits.validation,
        folder=folder,
        resume=resume,
    )
    options = FitOptions(device=device, network=network, teachers=teacher_runs, track=track)
    if not context.is_main:
        return run_fit(options=options)
    require_writable(folder)
    if resume and not has_checkpoint(folder):
        unverified = (
            " (what is in its checkpoint folder has no manifest, and is not known to be whole)"
            * has_unverified_checkpoint(folder)
        )
        print_message(f"nothing to resume in {folder}{unverified}; starting")
    with locked(folder, wait=False):
        if (folder / METADATA_FILE).exists():  # another process wrote it while the data was read
            raise GinghamError(
                f"{folder} was finished by another gingham just now; look at it with gingham evaluate {folder}, or "
                "give another --out"
            )
        try:
            trained = run_fit(options=options)
        except (KeyboardInterrupt, Terminated):
            advice = (
                "go on with the same command and --resume"
                if has_checkpoint(folder)
                else "no step was done yet, so nothing is kept"
            )
            print_message(f"\ninterrupted; {advice}")
            raise
        trained.metrics["wall_seconds"] = wall_seconds()  # without the writing that follows
        save(trained, folder)
    title = f"{trained.recipe.name}, seed {trained.recipe.seed}, {trained.metrics['train_seconds']:.0f} s"
    hard_examples = trained.recipe.hard_share < 1 and trained.metrics["epochs"] > 1
    try_draw(draw_curves, trained.history, title, folder / "curves.png", hard_examples=hard_examples)
    return trained
