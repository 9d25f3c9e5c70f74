"""Evaluate a run on a split. Only this module predicts on the test split, and it records every use."""

import contextlib
import statistics
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch
import torch.nn.functional as F

from gingham.data.image_hashes import hash_images
from gingham.data.splits import Split
from gingham.display import Displayable
from gingham.errors import DataError, GinghamError, list_first, plural, require_types
from gingham.evaluation import metrics
from gingham.runs.predictions import load_predictions, save_predictions
from gingham.runs.run import Run, record_test_use
from gingham.text import format_threshold, render_table

MAX_MISTAKES = 24
MAX_COLUMNS = 20  # classes of a confusion matrix that is printed; with more, the most frequent mistakes are


@dataclass(frozen=True, repr=False)
class Confusion:
    """A confusion matrix: `confusion["Shirt", "Coat"]` is the number of shirts that were predicted as coats."""

    matrix: tuple[tuple[int, ...], ...]
    classes: tuple[str, ...]

    def __getitem__(self, pair: tuple[str, str]) -> int:
        for name in pair:
            if name not in self.classes:
                raise DataError(f"no class {name!r} in the confusion matrix; the classes are {', '.join(self.classes)}")
        return self.matrix[self.classes.index(pair[0])][self.classes.index(pair[1])]

    def most_frequent(self, limit: int) -> list[tuple[int, int, int]]:
        """Return the most frequent mistakes: number of images, index of the true and of the predicted class."""
        rows = [(n, k, j) for k, row in enumerate(self.matrix) for j, n in enumerate(row) if n and j != k]
        return sorted(rows, reverse=True)[:limit]

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        if len(self.classes) > MAX_COLUMNS:
            rows = [[self.classes[k], self.classes[j], f"{n:,}"] for n, k, j in self.most_frequent(MAX_COLUMNS)]
            return "the most frequent mistakes\n" + render_table(["true", "predicted<", "images"], rows)
        # The column names are shortened, so that ten classes fit 80 characters. The rows have the full names, in the
        # same order. Names that begin alike are numbered.
        names, columns = self.classes, [name[:5] for name in self.classes]
        if len({*columns}) < len(columns):
            columns = [f"{k}" for k in range(1, len(names) + 1)]
            names = tuple(f"{k} {name}" for k, name in zip(columns, names, strict=True))
        rows = [[name, *(str(count or ".") for count in row)] for name, row in zip(names, self.matrix, strict=True)]
        return render_table([r"true \ predicted", *columns], rows)


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction: the index of the image in its split, the image, uint8 (C, H, W), its class, the predicted
    class, its probability, and the image's file, if each image has its own."""

    index: int
    image: torch.Tensor = field(compare=False, repr=False)
    label: str
    predicted: str
    confidence: float
    file: str = ""


@dataclass(frozen=True, repr=False)
class EvaluationResult(Displayable):
    """The result of evaluating a run on a split. `print(result)` shows a table by class.

    `accuracy` and its 95 % Wilson `interval` are fractions. `balanced_accuracy` is the mean recall over the classes
    that have images; `macro_f1` is the mean F1 over the classes that have images or predictions, as in scikit-learn.
    `loss` is the mean negative log-likelihood in nats. `calibration_error` is the expected calibration error and
    `reliability` the rows of its diagram; `calibration_error_before` and `reliability_before` are the same without the
    model's temperature. `unsure_share` is the share of images below the model's threshold, `sure_error` the share of
    wrong predictions among the others (None if there are no others). `per_class` gives `accuracy`, `recall` (the same),
    `precision`, `f1`, `correct` and `total` by class name. The recall of a class without images is None, and so are the
    precision of one without predictions and the F1 of one without both, for which scikit-learn returns `zero_division`.
    `trained_on` is how many of the images the run was trained on. `mistakes` are the wrong predictions with the highest
    confidence. `test_openings` are all recorded uses of the test split, including this one.
    """

    split: str
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
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
    trained_on: int = 0
    mistakes: tuple[Mistake, ...] = ()

    @property
    def image_noun(self) -> str:
        """The noun for one of the images: "validation image", "test image" or "photograph"."""
        return "photograph" if self.split == "photographs" else f"{self.split} image"

    @property
    def is_imbalanced(self) -> bool:
        """Whether a class has more than twice the images of another one; accuracy then mostly measures the former."""
        sizes = self._sizes()
        return max(sizes) > 2 * min(sizes)

    def _sizes(self) -> list[int]:
        """Return the numbers of images of the classes that have any."""
        return [row["total"] for row in self.per_class.values() if row["total"]]

    def to_dict(self) -> dict[str, Any]:
        """Return all fields but `mistakes` as JSON values; `confusion` becomes its rows, `classes` their names."""
        values = {key: value for key, value in vars(self).items() if key != "mistakes"}
        values |= {"interval": list(self.interval), "classes": list(self.confusion.classes)}
        return {**values, "confusion": [list(row) for row in self.confusion.matrix]}

    def plot(self, what: str = "confusion") -> Any:
        """Return a figure: the "confusion" matrix, the "reliability" diagram, or the most confident "mistakes".

        Raises
            GinghamError: `what` is none of these, or there are no mistakes.
        """
        from gingham import plots

        images = plural(self.total, self.image_noun)
        if what == "confusion":
            title = f"{self.accuracy:.2%} of {images} right; each row in percent"
            return plots.draw_confusion(self.confusion.matrix, self.confusion.classes, title)
        if what == "reliability":
            return plots.draw_calibration(self.reliability, f"calibration error {self.calibration_error:.2%}, {images}")
        if what == "mistakes":
            if not self.mistakes:
                raise GinghamError(f"there is no mistake to draw: all {images} are right")
            captions = [f"{m.predicted[:11]} {m.confidence:.0%}\nis {m.label[:11]}" for m in self.mistakes]
            groups = [[(mistake.image, text)] for mistake, text in zip(self.mistakes, captions, strict=True)]
            return plots.draw_image_groups([(f"the most confident mistakes on {images}", groups)])
        raise GinghamError(f"plot got {what!r}; allowed: confusion, reliability, mistakes")

    def __str__(self) -> str:
        rows = []
        for name, row in self.per_class.items():
            shares = [f"{row[key]:.2%}" if row[key] is not None else "-" for key in ("recall", "precision", "f1")]
            rows.append([name, *shares, f"{row['correct']:,}", f"{row['total']:,}"])
        lines = [render_table(["class", "recall", "precision", "F1", "correct", "total"], rows)]
        low, high = self.interval
        correct = f"{self.accuracy:.2%} of {plural(self.total, self.image_noun)} right"
        sizes, means = self._sizes(), f"macro F1 {self.macro_f1:.2%} (the mean over the classes)"
        if len({row["total"] for row in self.per_class.values()}) > 1:
            means = f"balanced accuracy {self.balanced_accuracy:.2%} (the mean recall of the classes), {means}"
        summary = [f"{correct} (95 % interval {low:.2%} to {high:.2%})", means]
        if self.is_imbalanced:
            reason = f"judge by these: the classes have from {min(sizes):,} to {max(sizes):,} images"
            summary = [means, f"{reason}, and the accuracy below mostly measures the common classes", summary[0]]
        lines += ["", *summary]
        before = f" ({self.calibration_error_before:.2%} before the temperature)" if self.temperature != 1 else ""
        lines.append(f"loss {self.loss:.4f}, calibration error {self.calibration_error:.2%}{before}")
        if self.threshold:
            wrong = "" if self.sure_error is None else f"; of the others {self.sure_error:.2%} are wrong"
            limit = "no threshold is safe"
            if self.threshold <= 1:
                limit = f"top probability below {format_threshold(self.threshold)}"
            lines.append(f"not sure ({limit}) of {self.unsure_share:.2%}{wrong}")
        if self.trained_on:
            lines.append(f"the model was trained on {self.trained_on:,} of these images: expect less on others")
        return "\n".join(lines)


def evaluate(run: Run, split: Split) -> EvaluationResult:
    """Return the result of evaluating a run on a split; `print` it for a table by class.

    A use of the test split is recorded in the run, and in its folder if it is saved, before any prediction is computed,
    so that no use goes unrecorded.

        result = gingham.evaluate(run, data.test)
        result.confusion["Shirt", "Coat"]   # shirts predicted as coats

    Raises
        DataError: the split's classes or image shape are not the model's, or the split is empty.
        GinghamError: the use of the test split cannot be recorded in the run's folder.
    """
    require_types("evaluate", run=(run, Run), split=(split, Split))
    return compute_result(run, split, _logits(run, split))


def correct_predictions(run: Run, split: Split) -> torch.Tensor:
    """Return which images of a split a run gets right, bool (N,), from cached predictions or else as `evaluate` does.

    Raises
        DataError, GinghamError: as `evaluate`.
    """
    predicted = load_predictions(run, split)
    if predicted is None:
        predicted = _logits(run, split).argmax(dim=1)
    return predicted == split.labels.cpu()


def _logits(run: Run, split: Split) -> torch.Tensor:
    """Return a run's logits on a split, float (N, K). A use of the test split is recorded first."""
    model = run.model
    shape = tuple(split.images.shape[1:])
    if shape != model.input_shape or split.classes != model.classes:
        remedy = "evaluate it on data of that kind"
        if split.classes == model.classes and shape[0] == model.input_shape[0]:
            remedy = f"load the data with size={model.input_shape[1]}"
        raise DataError(
            f"{split.dataset} has images of {'x'.join(map(str, shape))} in {len(split.classes)} classes "
            f"({list_first(split.classes, 3)}); the model was trained on {'x'.join(map(str, model.input_shape))} in "
            f"{len(model.classes)} ({list_first(model.classes, 3)}): {remedy}"
        )
    if not len(split):
        raise DataError(f"the {split.name} split of {split.dataset} is empty; choose another split")
    if split.name == "test":
        date = datetime.now(UTC).isoformat(timespec="seconds")
        record_test_use(run, {"date": date, "dataset": split.dataset, "images": len(split)})
    logits = model.logits(split.images)
    if run.folder is not None and split.fingerprint == run.data.get("fingerprint"):
        with contextlib.suppress(GinghamError):  # a run in a read-only folder can be evaluated too
            save_predictions(run, split, logits)
    return logits


def compute_result(run: Run, split: Split, logits: torch.Tensor) -> EvaluationResult:
    """Return the result for the logits of a run's model on a split, float (N, K)."""
    labels, temperature = split.labels.cpu(), float(run.model.temperature)
    threshold, _ = run.model.thresholds(for_photos=split.name == "photographs")
    probabilities, uncalibrated = logits.softmax(dim=1), (logits * temperature).softmax(dim=1)
    confidence, predicted = probabilities.max(dim=1)
    unsure_share, sure_error = metrics.selective_error(confidence, predicted == labels, threshold)
    matrix = metrics.confusion_matrix(labels, predicted, len(split.classes))
    correct, total = int(matrix.trace()), len(labels)
    per_class: dict[str, dict[str, Any]] = {}
    diagonal, row_sums, column_sums = (sums.tolist() for sums in (matrix.diag(), matrix.sum(dim=1), matrix.sum(dim=0)))
    for name, num_correct, images, predictions in zip(split.classes, diagonal, row_sums, column_sums, strict=True):
        # F1, the harmonic mean of recall and precision, is the number of correct ones by the mean of the two counts.
        counts = (images, predictions, (images + predictions) / 2)
        recall, precision, f1 = (num_correct / count if count else None for count in counts)
        per_class[name] = {"accuracy": recall, "recall": recall, "precision": precision, "f1": f1}
        per_class[name] |= {"correct": num_correct, "total": images}
    return EvaluationResult(
        split=split.name,
        accuracy=correct / total,
        balanced_accuracy=statistics.fmean(row["accuracy"] for row in per_class.values() if row["total"]),
        macro_f1=statistics.fmean(row["f1"] for row in per_class.values() if row["f1"] is not None),
        interval=metrics.proportion_interval(correct, total),
        loss=float(F.cross_entropy(logits, labels)),
        correct=correct,
        total=total,
        per_class=per_class,
        confusion=Confusion(tuple(tuple(row) for row in matrix.tolist()), split.classes),
        calibration_error=metrics.calibration_error(probabilities, labels),
        calibration_error_before=metrics.calibration_error(uncalibrated, labels),
        reliability=metrics.reliability(probabilities, labels),
        reliability_before=metrics.reliability(uncalibrated, labels),
        temperature=temperature,
        threshold=threshold,
        unsure_share=unsure_share,
        sure_error=sure_error,
        test_openings=list(run.test_openings),
        trained_on=int(torch.isin(hash_images(split.images), run.image_hashes.get("train", labels[:0])).sum()),
        mistakes=_most_confident_mistakes(split, predicted, confidence),
    )


def _most_confident_mistakes(split: Split, predicted: torch.Tensor, confidence: torch.Tensor) -> tuple[Mistake, ...]:
    wrong = (predicted != split.labels.cpu()).nonzero().flatten()
    chosen = wrong[confidence[wrong].argsort(descending=True, stable=True)][:MAX_MISTAKES].tolist()
    labels = [(split.classes[int(split.labels[k])], split.classes[int(predicted[k])]) for k in chosen]
    return tuple(
        Mistake(k, split.images[k].clone(), *names, float(confidence[k]), split.files[k] if split.files else "")
        for k, names in zip(chosen, labels, strict=True)
    )
