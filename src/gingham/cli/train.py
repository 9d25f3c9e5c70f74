"""`gingham train`."""

import functools
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Context, Option

import gingham
from gingham.cli import options
from gingham.cli.output import format_pairs, print_message, print_result, try_draw, wall_seconds
from gingham.cli.resolve import load_teacher_runs, load_training_data, network_factory
from gingham.cli.resolve_recipe import RecipeChoice, recipe_changes
from gingham.errors import GinghamError, Terminated, plural
from gingham.recipe import describe_changes


def train(
    command_line: Context,
    recipe: options.RecipeName = options.AUTO,
    data: options.Data = options.DEFAULT_DATA,
    skip_unreadable: options.SkipUnreadable = False,
    label_from: options.LabelFrom = "folder",
    seed: Annotated[int | None, Option(help="The seed of all random draws; by default 0.")] = None,
    epochs: options.Epochs = None,
    settings: options.Settings = None,
    model: options.Model = None,
    backbone: options.BackboneName = None,
    weights: options.WeightsFile = None,
    finetune: options.Finetune = False,
    start: options.Start = None,
    teacher: options.Teacher = None,
    device: options.Device = "auto",
    out: Annotated[Path | None, Option(help="The run folder; by default runs/<recipe>-<seed>.")] = None,
    resume: Annotated[bool, Option("--resume", help="Continue from the last checkpoint, unless finished.")] = False,
    track: Annotated[Literal["tensorboard"] | None, Option(help="Also write its logs into the run folder.")] = None,
    as_json: options.Json = False,
) -> None:
    """Train a network and write a run folder."""
    from gingham.device import choose_device, prepare_process
    from gingham.distributed import init_distributed, is_restart
    from gingham.runs.checkpoint import has_checkpoint
    from gingham.runs.run import METADATA_FILE
    from gingham.training.distillation import validate_teachers
    from gingham.training.initial_weights import require_unseen

    resume = resume or is_restart()
    source = gingham.load(start, network_factory(model)) if start else None
    reading: dict[str, Any] = {"skip_unreadable": skip_unreadable, "label_from": label_from}
    reading["trained_on"] = source.image_hashes.get("train") if source else None
    changes = recipe_changes(settings, backbone, seed=seed, epochs=epochs)
    choice = RecipeChoice(recipe, data, changes, finetune, weights, bool(model or teacher), label_from, source)
    chosen, reason = choice.choose(out, resume=resume)
    folder = out or choice.default_folder(chosen, model)
    finished = (folder / METADATA_FILE).exists()
    with init_distributed() as context:
        taken = context.is_main and not resume and (finished or has_checkpoint(folder))
        finished, taken = context.any(context.is_main and finished, taken)
        if taken or not finished:
            network = network_factory(model)
            choose_device(device, context.local_rank if context.size > 1 else None)  # raise errors before the slow part
            teachers = load_teacher_runs(teacher, changes)
            if taken:  # checked after the options and the data, and without their notes
                now = gingham.load_data(data, chosen.validation_images, size=chosen.size, **reading)
                raise GinghamError(_describe_taken(folder, finished, now.train.dataset))
            with context.main_first():
                chosen, splits = load_training_data(chosen, data, reading, changes, folder, reason)
            validate_teachers(teachers, chosen, splits.train, splits.validation)  # before the folder is created
            require_unseen(source, splits, print_message)
            prepare_process(compile_steps=chosen.compile)
            fit_options = gingham.FitOptions(device, network, teachers, track, weights, source, adapt_threads=True)
            fit = functools.partial(gingham.fit, chosen, splits.train, splits.validation, options=fit_options)
            trained = _fit_and_save(fit, folder, resume) if context.is_main else fit(folder=folder, resume=resume)
        if not context.is_main:
            return
    trained = _load_finished(folder, changes, command_line) if finished else trained
    print_result({"run": str(folder), **trained.metrics}, format_trained(trained, folder, model), as_json)
    if not finished:
        # Last, because matplotlib takes as long as a short training.
        try_draw(trained.plot, folder / "curves.png")


def _describe_taken(folder: Path, finished: bool, data: str) -> str:
    """Return the message for a folder that contains a run: what it was trained on, if not on `data`, and advice."""
    from gingham.io import read_json
    from gingham.runs.run import METADATA_FILE

    if not finished:
        return f"{folder} contains an interrupted run; continue with --resume, or give another --out"
    before = read_json(folder / METADATA_FILE).get("data")
    name = before.get("name") if isinstance(before, dict) else None
    other = f", trained on {name}" if name != data else ""
    return f"{folder} already contains a finished run{other}; give another --out or --seed, or evaluate it"


def _load_finished(folder: Path, changes: dict[str, Any], command_line: Context) -> "gingham.Run":
    """Return a finished run after checking that the recipe and data that were given, and not left at their defaults,
    are its own. Say that there is nothing to resume."""
    from gingham.data.registry import REGISTRY

    trained = gingham.load(folder, network_factory(command_line.params["model"]))
    before, name, data = trained.recipe, command_line.params["recipe"], command_line.params["data"]
    given = {key for key in ("recipe", "data") if str(command_line.get_parameter_source(key)).endswith("COMMANDLINE")}
    is_named = "recipe" in given and name != options.AUTO
    recipe = before.replace(**{"name": name if is_named else before.name, **changes})
    # A small dataset holds out fewer images than the recipe, and a size of 0 is chosen from the data.
    held_out = min(recipe.validation_images, before.validation_images)
    recipe = recipe.replace(validation_images=held_out, size=recipe.size or before.size)
    stored = {"recipe": before.to_dict(), "data": trained.data.get("name")}
    settings = {**stored, "recipe": recipe.to_dict()}
    if "data" in given:
        settings["data"] = data if data in REGISTRY else str(Path(data).resolve())
    if difference := describe_changes(stored, settings):
        raise GinghamError(f"{folder} has a finished run with {difference}; give another --out, or the same options")
    print_message(f"{folder} is already finished; nothing to resume")
    return trained


def _fit_and_save(fit: "Callable[..., gingham.Run]", folder: Path, resume: bool) -> "gingham.Run":
    """Train with the folder locked, and save the run there."""
    from gingham.io import locked
    from gingham.runs.checkpoint import has_checkpoint, has_unverified_checkpoint

    if resume and not has_checkpoint(folder):
        unverified = " (its checkpoint has no manifest, so it may be damaged)" * has_unverified_checkpoint(folder)
        print_message(f"nothing to resume in {folder}{unverified}; starting from the beginning")
    with locked(folder, wait=False):
        try:
            trained = fit(folder=folder, resume=resume)
        except (KeyboardInterrupt, Terminated):
            advice = "no step was finished, so nothing is saved"
            if has_checkpoint(folder):
                advice = "continue with the same command and --resume"
            print_message(f"\ninterrupted; {advice}")
            raise
        trained.metrics["wall_seconds"] = wall_seconds()  # does not include the writing that follows
        gingham.save(trained, folder)
    return trained


def format_trained(trained: "gingham.Run", folder: Path, model: str | None) -> str:
    """Return a run's results in two columns, with `-` for values that a run made without `train` may lack."""
    metrics, recipe, environment = trained.metrics, trained.recipe, trained.environment

    def show(key: str, template: str, missing: str = "-") -> str:
        value = metrics.get(key)
        return missing if value is None else template.format(value)

    def seconds(key: str) -> str:
        return show(key, "{:.1f} s" if (metrics.get(key) or 0) >= 1 else "{:.3f} s")

    processes = metrics.get("processes") or 1
    in_each = f" in each of {processes} processes" if processes > 1 else ""
    resumed = show("resumed_from_step", " (resumed at step {:,}: total training time, time of the last process)", "")
    split, recorded = ("validation", "") if recipe.validation_images else ("test", "  (each use of test is recorded)")
    pairs = {
        "run": folder,
        "network": f"{recipe.network}, {show('parameters', '{:,}')} parameters",
        "trained on": f"{plural(metrics.get('train_images') or 0, 'image')} of {trained.data.get('name')}, "
        f"{plural(metrics.get('epochs') or 0, 'epoch', '.3g')}{show('images_seen', ' ({:,} images seen)', '')}",
        "time": f"{seconds('train_seconds')} train_seconds, {seconds('wall_seconds')} wall_seconds{resumed}",
        "started from": trained.origin_name,
        "teachers": trained.teacher_names,
        "throughput": show("images_per_second_per_process", "{:,.0f} images per second" + in_each),
        "hardware": f"{environment.get('hardware')}; torch {environment.get('torch')}, {metrics.get('precision')}",
        "validation": _format_accuracy(metrics.get("validation_accuracy"), recipe.validation_images),
        "next": f"gingham evaluate {shlex.quote(str(folder))} --split {split}"
        + f" --model {model}" * bool(model)
        + recorded,
    }
    return format_pairs({label: text for label, text in pairs.items() if text != ""})


def _format_accuracy(accuracy: float | None, count: int) -> str:
    if accuracy is None or not count:
        return "no images held out"
    from gingham.evaluation.metrics import proportion_interval

    low, high = proportion_interval(round(accuracy * count), count)
    return f"{accuracy:.2%} of {plural(count, 'image')} (95 % interval {low:.2%} to {high:.2%})"
