"""The commands that judge: trials, compare, report, diagnose."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gingham.errors import DataError, GinghamError, suggest
from gingham.recipe import DEFAULT_RECIPE, RECIPES, find_recipe, parse_settings
from gingham.tables import duration
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
    print_json,
    require_split,
    say,
    say_notes,
    split_of,
    suited,
    teachers_named,
)

if TYPE_CHECKING:
    from gingham.datasets import Data
    from gingham.diagnosis import Finding
    from gingham.storage import Run

Split = Annotated[str, typer.Option(help="validation or test. Every look at test is written into the runs.")]


def trials(
    recipe: Annotated[str, typer.Option(help=f"One of: {', '.join(RECIPES)}.")] = DEFAULT_RECIPE,
    seeds: Annotated[int, typer.Option(min=1, help="How many; more can be added to the same folder later.")] = 10,
    first_seed: Annotated[int, typer.Option(min=0, help="The first of them.")] = 0,
    split: Split = "validation",
    data: Annotated[str, typer.Option(help=DATA_HELP)] = DEFAULT_DATA,
    skip_unreadable: SkipUnreadable = False,
    epochs: Annotated[float | None, typer.Option(help="How often every picture is seen; fractions are fine.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Set a field of the recipe; may be repeated.")
    ] = None,
    model: Model = None,
    teacher: Teacher = None,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="The folder of the trials; runs/<recipe>-trials unless told.")] = None,
    as_json: Json = False,
) -> None:
    """Train a recipe over seeds: mean, spread, interval."""
    changes = parse_settings(settings or []) | ({} if epochs is None else {"epochs": epochs})
    if "seed" in changes:
        raise GinghamError("--set got a seed; trials takes many: give --seeds N and --first-seed K")
    chosen = find_recipe(recipe).replace(**changes)
    own = f"-{model.rpartition(':')[2]}" if model else ""
    folder = out or Path("runs") / f"{chosen.name}{own}-trials"
    require_split(split)
    from gingham.datasets import load_data
    from gingham.repetition import trials as run_trials

    wanted = range(first_seed, first_seed + seeds)

    def say_seed(seed: int, run: "Run | None", kept: bool) -> None:
        done = f"seed {seed} ({seed - first_seed + 1} of {seeds})"
        if run is None:
            say(f"{done}: failed, its loss is no longer finite")
        else:
            accuracy = run.metrics.get("validation_accuracy")
            shown = "" if accuracy is None else f"  validation accuracy {accuracy:.2%}"
            say(f"{done}{', there already' * kept}:{shown}  {duration(run.metrics.get('train_seconds') or 0)}")

    teachers = teachers_named(teacher or [], changes)
    source = load_data(data, chosen.validation_images, size=chosen.size, skip_unreadable=skip_unreadable)
    say_notes(source)
    chosen = suited(chosen, len(source.train), changes)
    try:
        found = run_trials(
            chosen,
            source,
            wanted,
            folder,
            split=split,
            device=device,
            network=factory_of(model),
            teachers=teachers,
            progress=sys.stderr.isatty(),
            on_seed=say_seed,
        )
    except KeyboardInterrupt:
        say(f"\ninterrupted; finished seeds are kept in {folder}: the same command goes on")
        raise
    if as_json:
        print_json(found.to_dict())
    else:
        print(f"{chosen.name}: {found}")
        print(f"runs      {folder}/seed-N; compare with others: gingham compare {folder} OTHER-TRIALS")


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A run folder, or a folder of trials.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one, of the same kind.")],
    split: Split = "validation",
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="package.module:Class", help="A network of your own that they are of; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say whether one of two is better, by a paired test."""
    require_split(split)
    from gingham.catalogue import import_network
    from gingham.comparison import compare as run_compare

    networks = [import_network(name) for name in model or []]
    found = run_compare(a, b, lambda run: split_of(run, run.folder or a, None, split), networks=networks)
    if as_json:
        print_json(found.to_dict())
    else:
        print(found)


def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path | None, typer.Option(help="The HTML file to write; report.html in the run folder unless told.")] = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Write a run's report: one HTML file that opens offline."""
    from gingham.evaluation import data_of
    from gingham.reporting import write_report
    from gingham.storage import load

    loaded = load(run, factory_of(model))
    source = data_of(loaded, run)
    file = write_report(loaded, source.train, source.validation, source.test, out or run / "report.html")
    if as_json:
        print_json({"file": str(file), "bytes": file.stat().st_size})
    else:
        print(f"report: {file} ({file.stat().st_size / 1e6:.2f} MB); open it in a browser")


def diagnose(
    what: Annotated[str, typer.Argument(metavar="RUN-OR-DATA", help="A run folder, a dataset's name or a place of data.")],
    split: Annotated[
        str | None, typer.Option(help="Of a run: also the accuracy with and without pictures of this split that leak.")
    ] = None,
    model: Model = None,
    out: Annotated[
        Path | None, typer.Option(help="The PNG of the pictures found; <name>-findings.png here unless told.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find what is wrong with a run or with data."""
    folder = Path(what)
    if any((folder / name).exists() for name in ("model.json", "checkpoint", "trials.json")):
        found, data, notes = _diagnose_run(folder, split, model)
    elif split is not None:
        raise GinghamError(f"--split is for a run, and {what} is none; leave it out")
    else:
        found, data, notes = _diagnose_data(what)
    figure = None
    if any(finding.pictures for finding in found):
        from gingham.figures import draw_findings

        figure = drawn(draw_findings, found, data, out or Path(f"{Path(data.name).name}-findings.png"))
    if as_json:
        print_json([finding.to_dict() | {"file": figure if finding.pictures else None} for finding in found])
        return
    for finding in found:
        print(f"{finding}\n")
    if not found:
        print(f"nothing found wrong with {what}")
    for note in notes:
        print(note)
    if figure:
        print(f"pictures: {figure}")


def _diagnose_run(folder: Path, split: str | None, model: str | None) -> "tuple[list[Finding], Data, list[str]]":
    from gingham.diagnosis import diagnose_run
    from gingham.evaluation import data_of
    from gingham.storage import load

    run = load(folder, factory_of(model))
    data = data_of(run, folder)
    notes = [
        (
            "looked for: dead ReLUs, softmax applied twice, pixels that are not normalised, labels mixed up, a stuck loss, a learning "
            "rate far too high or low, over-fitting, a batch of one under BatchNorm"
        )
    ]
    if split is not None:
        from gingham.evaluation import right_answers
        from gingham.examination import leaking

        chosen = split_of(run, folder, None, split)
        trained = [data.train] + ([data.validation] if split == "test" and data.validation else [])
        right = right_answers(run, chosen)
        leaks = leaking(trained, chosen)
        clean = (
            f"{float(right[~leaks].double().mean()):.2%} without them" if not bool(leaks.all()) else "nothing is left without"
        )
        notes.append(
            f"{int(leaks.sum()):,} of {len(leaks):,} {split} pictures are in the training data too, or nearly so: accuracy "
            f"{float(right.double().mean()):.2%} with and {clean}"
        )
    return diagnose_run(run, data.train, data.validation), data, notes


def _diagnose_data(what: str) -> "tuple[list[Finding], Data, list[str]]":
    from gingham.datasets import look_into
    from gingham.examination import examine
    from gingham.published import NAMED

    if what not in NAMED and not Path(what).exists():
        raise DataError(
            f"{what} is no run, dataset or folder{suggest(what, NAMED)}; give a run folder, a dataset's name, a folder with a folder of "
            "pictures for each class or with IDX files, a .csv or a .npz"
        )
    data, odd = look_into(what)
    say("looking for duplicates, then training two small networks to doubt single labels")
    found = examine(data, odd)
    notes = []
    if not any("exact" in finding.finding for finding in found):
        notes.append("no exact duplicate, within the splits or across them")
    notes.append(
        "looked for: files, classes a split lacks, imbalance, pictures of one value, exact and near duplicates, labels mixed up, "
        "single labels that are likely wrong"
    )
    return found, data, notes
