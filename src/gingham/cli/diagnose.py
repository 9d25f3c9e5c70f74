"""`gingham diagnose`."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

import gingham
from gingham.cli.options import Json, LabelFrom, Model, SplitName
from gingham.cli.output import print_message, print_result, try_draw
from gingham.cli.resolve import load_split, network_factory
from gingham.errors import DataError, GinghamError, suggest
from gingham.io import is_run_folder

RUN_CHECKS = (
    "checked for: dead ReLUs, softmax applied twice, pixels that are not normalised, mixed-up labels, a stuck loss, a "
    "loss that jumped, a learning rate far too high or low, over-fitting, accuracy at chance level, a batch of one "
    "image under BatchNorm"
)
DATA_CHECKS = (
    "checked for: odd files, missing classes, imbalanced classes, images of one value, a narrow range of values, exact "
    "and near duplicates, mixed-up labels, single labels that are likely wrong"
)


def diagnose(
    what: Annotated[str, Argument(metavar="RUN-OR-DATA", help="A run folder, a dataset's name, or your own data.")],
    split: Annotated[SplitName | None, Option(help="For a run: measure its accuracy without leaked images.")] = None,
    label_from: LabelFrom = "folder",
    model: Model = None,
    out: Annotated[Path | None, Option(help="The PNG with the images found; default: <name>-findings.png.")] = None,
    as_json: Json = False,
) -> None:
    """Find problems in a run or in data."""
    folder = Path(what)
    if is_run_folder(folder):
        issues, splits, notes = _diagnose_run(folder, split, model)
    elif split is not None or model is not None:
        raise GinghamError(f"--{'model' if split is None else 'split'} is for a run; {what} is not one; leave it out")
    else:
        issues, splits, notes = _diagnose_data(what, label_from)
    figure = None
    if any(issue.images for issue in issues):
        from gingham.plots import draw_image_groups

        file = out or Path(f"{Path(splits.name).name}-findings.png")
        figure = try_draw(lambda: draw_image_groups(image_groups(issues, splits)), file)
    lines = [f"{issue}\n" for issue in issues] or [f"no problems found in {what}"]
    if as_json and split is not None:
        print_message(notes[-1])
    lines += notes + ([f"figure: {figure}"] if figure else [])
    values = [issue.to_dict() | {"file": figure if issue.images else None} for issue in issues]
    print_result(values, "\n".join(lines), as_json)


def _diagnose_run(
    folder: Path, split: str | None, model: str | None
) -> "tuple[list[gingham.Issue], gingham.DataSplits, list[str]]":
    from gingham.evaluation.run_data import load_run_data

    trained = gingham.load(folder, network_factory(model))
    splits = load_run_data(trained, folder)
    notes = [RUN_CHECKS] + ([] if split is None else [_measure_leaks(trained, splits, folder, split)])
    return gingham.check_run(trained, splits.train, splits.validation), splits, notes


def _measure_leaks(trained: "gingham.Run", splits: "gingham.DataSplits", folder: Path, split: str) -> str:
    """Return a sentence: the accuracy of a run on a split with and without images that are in the training data."""
    from gingham.diagnosis.check_data import find_leaks
    from gingham.evaluation.evaluate import correct_predictions

    evaluated = load_split(trained, folder, None, split)
    training = [splits.train] + ([splits.validation] if split == "test" and splits.validation else [])
    correct = correct_predictions(trained, evaluated).double()
    leaks = find_leaks(training, evaluated)
    clean = "no images left" if bool(leaks.all()) else f"{float(correct[~leaks].mean()):.2%}"
    return (
        f"{int(leaks.sum()):,} of {len(leaks):,} {split} images are duplicates or near duplicates of training images: "
        f"accuracy {float(correct.mean()):.2%} with them, {clean} without"
    )


def _diagnose_data(what: str, label_from: str) -> "tuple[list[gingham.Issue], gingham.DataSplits, list[str]]":
    from gingham.data.load_data import load_unchecked
    from gingham.data.registry import REGISTRY

    if what not in REGISTRY and not Path(what).exists():
        raise DataError(f"{what} is not a run folder, your own data or a dataset's name{suggest(what, REGISTRY)}")
    splits, file_issues = load_unchecked(what, label_from)
    print_message("searching for duplicates, then training two small networks to find wrong labels")
    issues = gingham.check_data(splits, file_issues)
    has_duplicates = any(issue.code.startswith("exact-duplicates") for issue in issues)
    notes = [] if has_duplicates else ["no exact duplicates within the splits or across them"]
    return issues, splits, [*notes, DATA_CHECKS]


def image_groups(issues: "list[gingham.Issue]", splits: "gingham.DataSplits") -> list[tuple[str, Any]]:
    """Return each issue's title and its groups of images with captions, for `draw_image_groups`."""
    by_name = {split.name: split for split in (splits.train, splits.validation, splits.test) if split is not None}

    def with_caption(name: str, index: int) -> tuple[Any, str]:
        split = by_name[name]
        file = Path(split.files[index]).name[-15:] if split.files else f"{name} {index}"
        return split.images[index], f"{split.classes[int(split.labels[index])][:11]}\n{file}"

    return [(issue.title, [[with_caption(*item) for item in group] for group in issue.images[:40]]) for issue in issues]
