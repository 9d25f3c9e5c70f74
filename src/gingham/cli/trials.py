"""`gingham trials`."""

import sys
from pathlib import Path
from typing import Annotated, Any

from typer import Option

import gingham
from gingham.cli import options
from gingham.cli.output import print_message, print_result
from gingham.cli.resolve import load_teacher_runs, load_training_data, network_factory
from gingham.cli.resolve_recipe import RecipeChoice, recipe_changes
from gingham.errors import GinghamError, Terminated


def trials(
    recipe: options.RecipeName = options.AUTO,
    seeds: Annotated[int, Option(min=1, help="The number of seeds; more can be added to the folder later.")] = 10,
    first_seed: Annotated[int, Option(min=0, help="The first seed.")] = 0,
    split: options.Split = "validation",
    data: options.Data = options.DEFAULT_DATA,
    skip_unreadable: options.SkipUnreadable = False,
    label_from: options.LabelFrom = "folder",
    epochs: options.Epochs = None,
    settings: options.Settings = None,
    model: options.Model = None,
    backbone: options.BackboneName = None,
    weights: options.WeightsFile = None,
    finetune: options.Finetune = False,
    teacher: options.Teacher = None,
    device: options.Device = "auto",
    out: Annotated[Path | None, Option(help="The folder; by default runs/<recipe>-trials.")] = None,
    as_json: options.Json = False,
) -> None:
    """Train a recipe with several seeds: mean, spread, interval."""
    changes = recipe_changes(settings, backbone, epochs=epochs)
    choice = RecipeChoice(recipe, data, changes, finetune, weights, bool(model or teacher), label_from)
    chosen, reason = choice.choose()
    if "seed" in changes:
        raise GinghamError("--set got a seed, but trials uses several; give --seeds N and --first-seed K")
    folder = out or choice.default_folder(chosen, model, "trials")
    from gingham.device import prepare_process
    from gingham.text import duration

    def print_seed(seed: int, trained: "gingham.Run | None", was_finished: bool) -> None:
        label = f"seed {seed} ({seed - first_seed + 1} of {seeds})"
        if trained is None:
            print_message(f"{label}: failed; the result has the reason")
            return
        accuracy, seconds = trained.metrics.get("validation_accuracy"), trained.metrics.get("train_seconds")
        accuracy_text = "" if accuracy is None else f"  validation accuracy {accuracy:.2%}"
        print_message(f"{label}{', already finished' * was_finished}:{accuracy_text}  {duration(seconds or 0)}")

    teachers = load_teacher_runs(teacher, changes)
    reading: dict[str, Any] = {"skip_unreadable": skip_unreadable, "label_from": label_from}
    chosen, splits = load_training_data(chosen, data, reading, changes, folder, reason)
    prepare_process(compile_steps=chosen.compile)
    try:
        result = gingham.trials(
            chosen,
            splits,
            range(first_seed, first_seed + seeds),
            folder,
            split=split,
            progress=sys.stderr.isatty(),
            options=gingham.TrialOptions(
                device, network_factory(model), teachers, weights=weights, adapt_threads=True, on_seed=print_seed
            ),
        )
    except (KeyboardInterrupt, Terminated):
        print_message(f"\ninterrupted; finished seeds are kept in {folder}; continue with the same command")
        raise
    advice = f"runs      {folder}/seed-N; compare with others: gingham compare {folder} OTHER-TRIALS"
    print_result(result.to_dict(), f"{chosen.name}: {result}\n{advice}", as_json)
