"""Write the report of a run: a single HTML file that needs no network connection."""

import base64
import io
import math
import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from gingham._version import __version__
from gingham.data.splits import Split
from gingham.diagnosis.check_run import check_run
from gingham.evaluation.evaluate import EvaluationResult, compute_result
from gingham.evaluation.metrics import proportion_interval
from gingham.io import write_text
from gingham.models.summary import summarize
from gingham.reports.svg import Line, line_chart, reliability_chart
from gingham.runs.predictions import load_predictions
from gingham.runs.run import Run
from gingham.runs.schema import NUMBER_KEYS, TEXT_KEYS
from gingham.text import duration

TEMPLATES = Path(__file__).parent / "templates"
MAX_CLASSES = 30  # with sample images; more are left out
SAMPLES_PER_CLASS = 8
MAX_MISTAKES = 24
MAX_SIDE = 64  # pixels; larger images are shrunk to it


def write_report(run: Run, train: Split, validation: Split | None, test: Split | None, file: Path) -> Path:
    """Write the report of a run to an HTML file and return it.

    It shows the data and the recipe, sample images, learning curves, accuracy per class, the most confident mistakes,
    calibration, filters and feature maps, the layer table, the speed, the issues that `check_run` finds, and the limits
    of the evaluation. Results are those of the validation split; those of the test split are included only if the run
    has been evaluated on it before.

        gingham.write_report(run, data.train, data.validation, data.test, Path("report.html"))

    Raises
        GinghamError: the file cannot be written.
    """
    import jinja2  # only needed here

    # Class names come from folders and files, so all values are escaped.
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"percent": _percent, "duration": duration, "safe_svg": _unescaped}
    values = _template_values(run, train, validation, test)
    write_text(file, environment.get_template("report.html").render(values))
    return file


def _unescaped(svg: str) -> Any:
    import markupsafe

    return markupsafe.Markup(svg)  # noqa: S704  # svg.py escapes all text itself


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def _template_values(run: Run, train: Split, validation: Split | None, test: Split | None) -> dict[str, Any]:
    model = run.model
    evaluations = []
    if validation is not None:
        logits = model.logits(validation.images)
        result = compute_result(logits, validation, run.test_openings, float(model.temperature), float(model.threshold))
        evaluations.append(_evaluation(result, validation, logits.softmax(dim=1)))
    test_predictions = load_predictions(run, "test", test.fingerprint) if test is not None else None
    return {
        "version": __version__,
        "written": datetime.now(UTC).strftime("%d %B %Y"),
        "run": run,
        "recipe": run.recipe,
        "metrics": {**dict.fromkeys((*NUMBER_KEYS["metrics"], *TEXT_KEYS["metrics"])), **run.metrics},
        "environment": {key: run.environment.get(key) or "unknown" for key in TEXT_KEYS["environment"]},
        "classes": train.classes,
        "folder": run.folder.name if run.folder else run.recipe.name,
        "data": {
            "name": Path(train.dataset).name,
            "fingerprint": train.fingerprint,
            "train": len(train),
            "validation": len(validation) if validation else 0,
            "shape": "×".join(map(str, model.input_shape)),
        },
        "samples": _samples(train),
        "more_classes": max(0, len(train.classes) - MAX_CLASSES),
        "curves": _curves(run),
        "hard_examples": run.recipe.hard_share < 1 and (run.metrics.get("epochs") or 0) > 1,
        "evaluations": evaluations,
        "test": None if test_predictions is None else _test_accuracy(test_predictions),
        "filters": _filters(model.network),
        "feature_maps": _feature_maps(model, (validation or train).images[:1]),
        "example": _data_uri(_to_pillow((validation or train).images[0])),
        "layers": summarize(model.network, model.input_shape, run.recipe.network),
        "speed": _speed(run, train),
        "issues": check_run(run, train, validation),
        "limits": _limits(run, train, validation, test_predictions),
    }


def _evaluation(result: EvaluationResult, split: Split, probabilities: torch.Tensor) -> dict[str, Any]:
    matrix = torch.tensor(result.confusion.matrix)
    totals = matrix.sum(dim=1, keepdim=True).clamp(min=1)
    ranked = sorted(result.per_class, key=lambda name: result.per_class[name]["accuracy"] or 0)
    pairs = [
        (int(matrix[i, j]), i, j)
        for i, j in (matrix * (1 - torch.eye(len(matrix), dtype=torch.long))).nonzero().tolist()
    ]
    charts = {}
    for key, title in (("reliability_before", "before"), ("reliability", "after")):
        bins = getattr(result, key)
        values = "; ".join(f"{row['confidence']:.0%} sure, {row['accuracy']:.0%} right" for row in bins)
        charts[title] = reliability_chart(bins, title, f"Reliability {title} the temperature: {values}")
    return {
        "result": result,
        "matrix": [[(count, round(share, 3)) for count, share in zip(row, shares, strict=True)] for row, shares in
                   zip(matrix.tolist(), (matrix / totals).tolist(), strict=True)],
        "weakest": ranked[:3],
        "pairs": [(count, split.classes[i], split.classes[j]) for count, i, j in sorted(pairs, reverse=True)[:10]],
        "mistakes": _mistakes(split, probabilities),
        "charts": charts,
    }  # fmt: skip


def _mistakes(split: Split, probabilities: torch.Tensor) -> list[dict[str, Any]]:
    confidence, predicted = probabilities.max(dim=1)
    wrong = (predicted != split.labels).nonzero().flatten()
    most_confident = wrong[confidence[wrong].argsort(descending=True, stable=True)][:MAX_MISTAKES].tolist()
    return [
        {
            "image": _data_uri(_to_pillow(split.images[k])),
            "true": split.classes[int(split.labels[k])],
            "predicted": split.classes[int(predicted[k])],
            "confidence": float(confidence[k]),
            "index": k,
        }
        for k in most_confident
    ]


def _test_accuracy(predictions: dict[str, torch.Tensor]) -> dict[str, Any]:
    correct, total = int((predictions["predicted"] == predictions["labels"]).sum()), len(predictions["labels"])
    return {"accuracy": correct / total, "interval": proportion_interval(correct, total), "total": total}


def _samples(split: Split) -> list[dict[str, Any]]:
    rows = []
    for label, name in enumerate(split.classes[:MAX_CLASSES]):
        indices = (split.labels == label).nonzero().flatten()
        images = [_to_pillow(split.images[k]) for k in indices[:SAMPLES_PER_CLASS].tolist()]
        if images:
            rows.append({"name": name, "image": _data_uri(_grid(images, SAMPLES_PER_CLASS)), "count": len(indices)})
    return rows


def _to_pillow(image: torch.Tensor) -> Image.Image:
    """Return an image, uint8 (C, H, W), as a Pillow image whose sides are at most MAX_SIDE."""
    pixels = image.cpu().numpy()
    pillow_image = Image.fromarray(pixels.transpose(1, 2, 0)) if len(pixels) == 3 else Image.fromarray(pixels[0])
    if max(pillow_image.size) > MAX_SIDE:
        pillow_image.thumbnail((MAX_SIDE, MAX_SIDE))
    return pillow_image


def _grid(images: Sequence[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """Return images of one size in a grid. The gaps are transparent, so that they have the page's background colour."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    columns = min(columns, len(images)) if rows > 1 else columns
    grid = Image.new("RGBA", (columns * (width + gap) - gap, rows * (height + gap) - gap))
    for k, image in enumerate(images):
        grid.paste(image.convert("RGB"), (k % columns * (width + gap), k // columns * (height + gap)))
    return grid


def _data_uri(image: Image.Image) -> dict[str, Any]:
    """Return an image as a data URI, with its width and height."""
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    uri = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    return {"uri": uri, "width": image.width, "height": image.height}


def _to_grey_images(maps: torch.Tensor, centred: bool) -> list[Image.Image]:
    """Return float (M, H, W) as grey images, scaled from the smallest to the largest value; if `centred`, 0 is middle grey."""
    images = []
    for values in maps.detach().float().cpu():
        if centred:
            scaled = 0.5 + 0.5 * values / values.abs().max().clamp(min=1e-9)
        else:
            scaled = (values - values.min()) / (values.max() - values.min()).clamp(min=1e-9)
        images.append(Image.fromarray((255 * scaled).round().numpy().astype(np.uint8)))
    return images


def _filters(network: nn.Module) -> dict[str, Any] | None:
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or max(first.kernel_size) < 2:
        return None
    weight = first.weight.detach()
    kernels = weight[:64].mean(dim=1) if weight.shape[1] > 1 else weight[:64, 0]
    size = "×".join(map(str, first.kernel_size))
    grid = _grid(_to_grey_images(kernels, centred=True), 16, gap=1)
    return {"image": _data_uri(grid), "count": len(weight), "size": size}


@torch.no_grad()
def _feature_maps(model: Any, image: torch.Tensor) -> list[dict[str, Any]]:
    """Return the first feature maps of the last layer at each size, for one image."""
    by_size: dict[tuple[int, int], tuple[str, torch.Tensor]] = {}

    def make_hook(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if torch.is_tensor(output) and output.dim() == 4 and min(output.shape[2:]) > 1:
                by_size[output.shape[2], output.shape[3]] = (name, output[0].clone())

        return hook

    handles = [module.register_forward_hook(make_hook(name)) for name, module in model.network.named_modules() if name]
    try:
        tta, model.tta = model.tta, "none"
        model.logits(image)
    finally:
        model.tta = tta
        for handle in handles:
            handle.remove()
    rows = []
    for (height, width), (name, maps) in list(by_size.items())[:6]:
        images = _to_grey_images(maps[:16], centred=False)
        scale = max(1, MAX_SIDE // 2 // max(width, height))
        images = [
            image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST) for image in images
        ]
        if max(images[0].size) > MAX_SIDE:
            images = [image.resize((MAX_SIDE, MAX_SIDE * image.height // image.width)) for image in images]
        rows.append(
            {"layer": name, "image": _data_uri(_grid(images, 8)), "count": len(maps), "size": f"{height}×{width}"}
        )
    return rows


def _curves(run: Run) -> dict[str, str] | None:
    steps = [entry for entry in run.history if "learning_rate" in entry]
    epoch_ends = [entry for entry in run.history if "epoch" in entry]
    if not steps or not epoch_ends:
        return None
    end_steps, end_epochs = (np.array([0.0, *(entry[key] for entry in epoch_ends)]) for key in ("step", "epoch"))
    width = max(1, len(steps) // 60)
    charts = {}
    for key, scale, label in (("loss", 1, "loss (nats)"), ("accuracy", 100, "accuracy (%)")):
        usable = len(steps) // width * width
        means = np.array([entry[key] for entry in steps[:usable]]).reshape(-1, width).mean(axis=1) * scale
        epochs = np.interp((np.arange(len(means)) + 0.5) * width, end_steps, end_epochs)
        lines = [Line("training", "training", list(zip(epochs.tolist(), means.tolist(), strict=True)))]
        evaluations = [
            (entry["epoch"], scale * entry[f"validation_{key}"])
            for entry in epoch_ends
            if entry["validation_loss"] is not None
        ]
        if evaluations:
            lines.append(Line("validation", "validation", evaluations, dots=len(evaluations) <= 40))
        description = f"{key.capitalize()} over the epochs: training from {means[0]:.3g} to {means[-1]:.3g}"
        description += f", validation from {evaluations[0][1]:.3g} to {evaluations[-1][1]:.3g}" if evaluations else ""
        charts[key] = line_chart(lines, "epoch", label, description)
    return charts


def _speed(run: Run, train: Split) -> dict[str, Any]:
    """Return the training speed of the run and the prediction speed measured on this machine."""
    model, images = run.model, train.images[:500]
    model.logits(images)
    single = statistics.median(_seconds(lambda: model.logits(images[:1])) for _ in range(15))
    batch = min(_seconds(lambda: model.logits(images)) for _ in range(3))
    train_seconds = run.metrics.get("train_seconds") or math.nan
    return {
        "training": (run.metrics.get("images_seen") or 0) / train_seconds,
        "single_milliseconds": 1000 * single,
        "batch": len(images) / batch,
        "batch_size": len(images),
    }


def _seconds(function: Any) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _limits(
    run: Run, train: Split, validation: Split | None, test_predictions: dict[str, torch.Tensor] | None
) -> list[str]:
    """Return sentences that say what the report does not show."""
    limits = [
        f"One seed ({run.recipe.seed}). Another would end a little higher or lower; gingham trials says how much.",
        (
            f"Every picture here comes from {Path(train.dataset).name}. Nothing says how the model does on pictures "
            "from elsewhere: photographs, other cameras, other backgrounds."
        ),
        "No test of what small changes do: turned, blurred, noisy or partly hidden pictures.",
        (
            "The model knows its classes alone. Anything else is given the class it resembles most, perhaps with "
            "confidence."
        ),
    ]
    if validation is not None:
        limits.append(
            "Temperature and threshold were fitted to the validation pictures they are shown on; on new pictures they "
            "hold a little less well."
        )
    if run.recipe.patience:
        limits.append(
            "The weights were chosen by the validation split, so the validation accuracy flatters them a little."
        )
    if test_predictions is None:
        limits.append("The test split was not measured: there is no figure from pictures that no choice was made by.")
    elif len(run.test_openings) > 1:
        limits.append(
            f"The test split was opened {len(run.test_openings)} times; each look that led to a change makes it less "
            "of a test."
        )
    few = [name for name, count in (validation or train).counts().items() if count < 30]
    if few:
        names = ", ".join(few[:5]) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
        limits.append(
            f"Fewer than 30 pictures measured of {names}: what is said of these classes is little more than a guess."
        )
    return limits
