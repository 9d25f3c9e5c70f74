"""Evaluate a run on a split. This is the only module that predicts on the test split, and it records each use."""

import contextlib
import statistics
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
import torch.nn.functional as F

from gingham.data.splits import Split
from gingham.errors import DataError, GinghamError
from gingham.evaluation.metrics import calibration_error, confusion_matrix, proportion_interval, reliability
from gingham.runs.predictions import load_predictions, save_predictions
from gingham.runs.run import Run, record_test_use
from gingham.text import render


@dataclass(frozen=True)
class Confusion:
    """How many pictures of each true class were given each class: `confusion["Shirt", "Coat"]` is (true, predicted)."""

    matrix: tuple[tuple[int, ...], ...]
    classes: tuple[str, ...]

    def __getitem__(self, pair: tuple[str, str]) -> int:
        for name in pair:
            if name not in self.classes:
                raise DataError(f"no class {name!r} in the confusion matrix; the classes are {', '.join(self.classes)}")
        return self.matrix[self.classes.index(pair[0])][self.classes.index(pair[1])]

    def __str__(self) -> str:
        rows = [
            [name, *(str(count) if count else "." for count in row)]
            for name, row in zip(self.classes, self.matrix, strict=True)
        ]
        # Columns by their first letters, so that ten classes fit 80 characters; the rows give the full names in order.
        return render([r"true \ predicted", *(name[:5] for name in self.classes)], rows)


@dataclass(frozen=True)
class EvaluationResult:
    """How a run did on a split.

    `accuracy` and its 95 % Wilson `interval` are fractions; `balanced_accuracy` is the mean of the accuracies of the classes
    that have pictures, so that a class with many does not count for more; `loss` is the mean negative log-likelihood in nats,
    `calibration_error` the expected calibration error, and `calibration_error_before` what it would be without the
    model's temperature; `reliability` and `reliability_before` are the rows of their diagrams. Of the pictures
    `unsure_share` are below the model's threshold, and `sure_error`, null if there are none, is the share of wrong answers
    among the others. `per_class` gives `accuracy` (recall), `precision`, `correct`
    and `total` by class name, null where a class has no pictures or no predictions. `test_openings` are all of the
    run, this one included. `print(report)` shows a table by class.
    """

    split: str
    accuracy: float
    balanced_accuracy: float
    interval: tuple[float, float]
    loss: float
    correct: int
    total: int
    per_class: dict[str, dict[str, Any]]
    confusion: Confusion
    calibration_error: float
    calibration_error_before: float
    reliability: list[dict[str, Any]]
    reliability_before: list[dict[str, Any]]
    temperature: float
    threshold: float
    unsure_share: float
    sure_error: float | None
    test_openings: list[dict[str, Any]]

    @property
    def pictures(self) -> str:
        """What was measured, in words: "validation pictures", "photographs"."""
        return self.split if self.split == "photographs" else f"{self.split} pictures"

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain JSON values; `confusion` becomes its rows, `classes` their names."""
        values = {**vars(self), "interval": list(self.interval), "classes": list(self.confusion.classes)}
        return {**values, "confusion": [list(row) for row in self.confusion.matrix]}

    def __str__(self) -> str:
        rows = []
        for name, row in self.per_class.items():
            shares = [f"{row[key]:.2%}" if row[key] is not None else "-" for key in ("accuracy", "precision")]
            rows.append([name, *shares, f"{row['correct']:,}", f"{row['total']:,}"])
        lines = [render(["class", "accuracy", "precision", "correct", "total"], rows)]
        low, high = self.interval
        lines.append("")
        lines.append(f"{self.accuracy:.2%} of {self.total:,} {self.pictures} right (95 % interval {low:.2%} to {high:.2%})")
        before = f" ({self.calibration_error_before:.2%} before the temperature)" if self.temperature != 1 else ""
        totals = {row["total"] for row in self.per_class.values()}
        if len(totals) > 1:
            lines.append(f"balanced accuracy {self.balanced_accuracy:.2%}: the mean over the classes that have pictures")
        lines.append(f"loss {self.loss:.4f}, calibration error {self.calibration_error:.2%}{before}")
        if self.threshold:
            of_the_sure = "" if self.sure_error is None else f"; of the others {self.sure_error:.2%} are wrong"
            lines.append(f"not sure (top probability below {self.threshold:.2f}) of {self.unsure_share:.2%}{of_the_sure}")
        return "\n".join(lines)


def evaluate(run: Run, split: Split) -> EvaluationResult:
    """Return how a run does on a split: `print` it for a table by class.

    Opening the test split is written into the run, and into its folder where it is saved, before any prediction is
    computed, so that no look goes unrecorded.

        report = gingham.evaluate(run, data.test)
        report.confusion["Shirt", "Coat"]   # shirts taken for coats

    Raises
        DataError: the split's classes or picture shape are not the model's, or it is empty.
        GinghamError: the opening cannot be written into the run's folder.
    """
    logits = _answers(run, split)
    return compute_result(logits, split, list(run.test_openings), float(run.model.temperature), float(run.model.threshold))


def correct_predictions(run: Run, split: Split) -> torch.Tensor:
    """Return which pictures of a split a run gets right, bool (N,): from the predictions it keeps, or computed as `evaluate` does.

    Raises
        DataError, GinghamError: as `evaluate`.
    """
    kept = load_predictions(run, split.name, split.fingerprint)
    predicted = kept["predicted"] if kept and len(kept["labels"]) == len(split) else _answers(run, split).argmax(dim=1)
    return predicted == split.labels.cpu()


def _answers(run: Run, split: Split) -> torch.Tensor:
    """The logits of a run on a split, float (N, K); an opening is written down before, what was predicted after."""
    model = run.model
    shape = tuple(split.images.shape[1:])
    if shape != model.input_shape or split.classes != model.classes:
        raise DataError(
            f"{split.dataset} has pictures of {'x'.join(map(str, shape))} in {len(split.classes)} classes "
            f"({_some(split.classes)}), the model was trained on {'x'.join(map(str, model.input_shape))} in "
            f"{len(model.classes)} ({_some(model.classes)}); evaluate it on data of its own kind"
        )
    if not len(split):
        raise DataError(f"the {split.name} split of {split.dataset} is empty; choose another split")
    if split.name == "test":
        date = datetime.now(UTC).isoformat(timespec="seconds")
        record_test_use(run, {"date": date, "dataset": split.dataset, "images": len(split)})
    logits = model.logits(split.images)
    if run.folder is not None and split.fingerprint == run.data.get("fingerprint"):
        with contextlib.suppress(GinghamError):  # a folder that cannot be written to can be measured all the same
            save_predictions(run, split.name, split.fingerprint, logits, split.labels)
    return logits


def compute_result(
    logits: torch.Tensor,
    split: Split,
    test_openings: list[dict[str, Any]],
    temperature: float = 1.0,
    threshold: float = 0.0,
) -> EvaluationResult:
    """Return the Report of a model's logits, float (N, K), computed on a split with that temperature and threshold."""
    labels = split.labels.cpu()
    probabilities, plain = logits.softmax(dim=1), (logits * temperature).softmax(dim=1)
    confidence, predicted = probabilities.max(dim=1)
    sure = confidence >= threshold
    matrix = confusion_matrix(labels, predicted, len(split.classes))
    right, true, given = matrix.diag().tolist(), matrix.sum(dim=1).tolist(), matrix.sum(dim=0).tolist()
    correct, total = sum(right), len(labels)
    per_class = {
        name: {
            "accuracy": right[k] / true[k] if true[k] else None,
            "precision": right[k] / given[k] if given[k] else None,
            "correct": right[k],
            "total": true[k],
        }
        for k, name in enumerate(split.classes)
    }
    return EvaluationResult(
        split=split.name,
        accuracy=correct / total,
        balanced_accuracy=statistics.fmean(right[k] / true[k] for k in range(len(true)) if true[k]),
        interval=proportion_interval(correct, total),
        loss=float(F.cross_entropy(logits, labels)),
        correct=correct,
        total=total,
        per_class=per_class,
        confusion=Confusion(tuple(tuple(row) for row in matrix.tolist()), split.classes),
        calibration_error=calibration_error(probabilities, labels),
        calibration_error_before=calibration_error(plain, labels),
        reliability=reliability(probabilities, labels),
        reliability_before=reliability(plain, labels),
        temperature=temperature,
        threshold=threshold,
        unsure_share=1 - float(sure.double().mean()),
        sure_error=int((predicted != labels)[sure].sum()) / int(sure.sum()) if sure.any() else None,
        test_openings=test_openings,
    )


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
