"""`gingham trials`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gingham.cli.options import DATA_HELP, DEFAULT_DATA, Device, Json, Model, SkipUnreadable, SplitOption, Teacher
from gingham.cli.output import print_json, print_message, print_notes
from gingham.cli.resolve import adapt_to_size, load_teacher_runs, network_factory, require_split
from gingham.errors import GinghamError
from gingham.presets import DEFAULT_RECIPE, RECIPES, find_recipe
from gingham.recipe import parse_settings
from gingham.text import duration

if TYPE_CHECKING:
    from gingham.runs.run import Run


def trials(
    recipe: Annotated[str, typer.Option(help=f"One of: {', '.join(RECIPES)}.")] = DEFAULT_RECIPE,
    seeds: Annotated[int, typer.Option(min=1, help="How many; more can be added to the same folder later.")] = 10,
    first_seed: Annotated[int, typer.Option(min=0, help="The first of them.")] = 0,
    split: SplitOption = "validation",
    data: Annotated[str, typer.Option(help=DATA_HELP)] = DEFAULT_DATA,
    skip_unreadable: SkipUnreadable = False,
    epochs: Annotated[float | None, typer.Option(help="How often every picture is seen; fractions are fine.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Set a field of the recipe; may be repeated."),
    ] = None,
    model: Model = None,
    teacher: Teacher = None,
    device: Device = "auto",
    out: Annotated[
        Path | None, typer.Option(help="The folder of the trials; runs/<recipe>-trials unless told.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a recipe over seeds: mean, spread, interval."""
    changes = parse_settings(settings or []) | ({} if epochs is None else {"epochs": epochs})
    if "seed" in changes:
        raise GinghamError("--set got a seed; trials takes many: give --seeds N and --first-seed K")
    chosen = find_recipe(recipe).replace(**changes)
    suffix = f"-{model.rpartition(':')[2]}" if model else ""
    folder = out or Path("runs") / f"{chosen.name}{suffix}-trials"
    require_split(split)
    from gingham.data.load_data import load_data
    from gingham.experiments.trials import TrialOptions
    from gingham.experiments.trials import trials as run_trials

    seed_range = range(first_seed, first_seed + seeds)

    def print_seed(seed: int, trained: "Run | None", was_finished: bool) -> None:
        label = f"seed {seed} ({seed - first_seed + 1} of {seeds})"
        if trained is None:
            print_message(f"{label}: failed, its loss is no longer finite")
        else:
            accuracy, seconds = (trained.metrics.get(key) for key in ("validation_accuracy", "train_seconds"))
            accuracy_text = "" if accuracy is None else f"  validation accuracy {accuracy:.2%}"
            print_message(f"{label}{', there already' * was_finished}:{accuracy_text}  {duration(seconds or 0)}")

    teachers = load_teacher_runs(teacher or [], changes)
    splits = load_data(data, chosen.validation_images, size=chosen.size, skip_unreadable=skip_unreadable)
    print_notes(splits)
    chosen = adapt_to_size(chosen, len(splits.train), changes)
    try:
        result = run_trials(
            chosen,
            splits,
            seed_range,
            folder,
            split=split,
            progress=sys.stderr.isatty(),
            options=TrialOptions(device, network_factory(model), teachers, on_seed=print_seed),
        )
    except KeyboardInterrupt:
        print_message(f"\ninterrupted; finished seeds are kept in {folder}: the same command goes on")
        raise
    if as_json:
        print_json(result.to_dict())
    else:
        print(f"{chosen.name}: {result}")
        print(f"runs      {folder}/seed-N; compare with others: gingham compare {folder} OTHER-TRIALS")
