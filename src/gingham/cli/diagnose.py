"""`gingham diagnose`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gingham.cli.options import Json, Model
from gingham.cli.output import print_json, print_message, try_draw
from gingham.cli.resolve import load_split, network_factory
from gingham.errors import DataError, GinghamError, suggest

if TYPE_CHECKING:
    import torch

    from gingham.data.splits import DataSplits
    from gingham.training.issue import Issue


def diagnose(
    what: Annotated[
        str, typer.Argument(metavar="RUN-OR-DATA", help="A run folder, a dataset's name or a place of data.")
    ],
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
        issues, splits, notes = _diagnose_run(folder, split, model)
    elif split is not None:
        raise GinghamError(f"--split is for a run, and {what} is none; leave it out")
    else:
        issues, splits, notes = _diagnose_data(what)
    figure = None
    if any(issue.images for issue in issues):
        from gingham.plots import draw_image_groups

        figure = try_draw(
            draw_image_groups, _groups(issues, splits), out or Path(f"{Path(splits.name).name}-findings.png")
        )
    if as_json:
        print_json([issue.to_dict() | {"file": figure if issue.images else None} for issue in issues])
        return
    for issue in issues:
        print(f"{issue}\n")
    if not issues:
        print(f"nothing found wrong with {what}")
    for note in notes:
        print(note)
    if figure:
        print(f"pictures: {figure}")


def _diagnose_run(folder: Path, split: str | None, model: str | None) -> "tuple[list[Issue], DataSplits, list[str]]":
    from gingham.diagnosis.check_run import check_run
    from gingham.evaluation.run_data import load_run_data
    from gingham.runs.run import load

    trained = load(folder, network_factory(model))
    splits = load_run_data(trained, folder)
    notes = [
        (
            "looked for: dead ReLUs, softmax applied twice, pixels that are not normalised, labels mixed up, a stuck "
            "loss, a learning rate far too high or low, over-fitting, a batch of one under BatchNorm"
        )
    ]
    if split is not None:
        from gingham.diagnosis.check_data import find_leaks
        from gingham.evaluation.evaluate import correct_predictions

        evaluated = load_split(trained, folder, None, split)
        training = [splits.train] + ([splits.validation] if split == "test" and splits.validation else [])
        correct = correct_predictions(trained, evaluated)
        leaks = find_leaks(training, evaluated)
        clean = (
            f"{float(correct[~leaks].double().mean()):.2%} without them"
            if not bool(leaks.all())
            else "nothing is left without"
        )
        notes.append(
            f"{int(leaks.sum()):,} of {len(leaks):,} {split} pictures are in the training data too, or nearly so: "
            f"accuracy {float(correct.double().mean()):.2%} with and {clean}"
        )
    return check_run(trained, splits.train, splits.validation), splits, notes


def _diagnose_data(what: str) -> "tuple[list[Issue], DataSplits, list[str]]":
    from gingham.data.load_data import load_unchecked
    from gingham.data.registry import REGISTRY
    from gingham.diagnosis.check_data import check_data

    if what not in REGISTRY and not Path(what).exists():
        raise DataError(
            f"{what} is no run, dataset or folder{suggest(what, REGISTRY)}; give a run folder, a dataset's name, a "
            "folder with a folder of pictures for each class or with IDX files, a .csv or a .npz"
        )
    splits, file_issues = load_unchecked(what)
    print_message("looking for duplicates, then training two small networks to doubt single labels")
    issues = check_data(splits, file_issues)
    notes = []
    if not any(issue.code.startswith("exact-duplicates") for issue in issues):
        notes.append("no exact duplicate, within the splits or across them")
    notes.append(
        "looked for: files, classes a split lacks, imbalance, pictures of one value, exact and near duplicates, labels "
        "mixed up, single labels that are likely wrong"
    )
    return issues, splits, notes


def _groups(issues: "list[Issue]", splits: "DataSplits") -> "list[tuple[str, list[list[tuple[torch.Tensor, str]]]]]":
    """Return each issue's title and its groups of images with captions, for `draw_image_groups`."""
    by_name = {split.name: split for split in (splits.train, splits.validation, splits.test) if split is not None}

    def with_caption(name: str, index: int) -> "tuple[torch.Tensor, str]":
        split = by_name[name]
        return split.images[index], f"{split.classes[int(split.labels[index])][:11]}\n{name} {index}"

    return [(issue.title, [[with_caption(*item) for item in group] for group in issue.images[:40]]) for issue in issues]
