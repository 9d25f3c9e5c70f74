"""Write the report of a run: a single HTML file that needs no network connection."""

import contextlib
import functools
import statistics
import time
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms.functional import resize, to_pil_image
from torchvision.utils import make_grid

from gingham._version import __version__
from gingham.data.splits import Split
from gingham.diagnosis.check_run import check_run
from gingham.errors import require_types
from gingham.evaluation.evaluate import compute_result
from gingham.evaluation.metrics import proportion_interval
from gingham.figures import BLUE, RUST, png_url, svg_chart
from gingham.io import write_text
from gingham.models.classifier import Classifier
from gingham.models.summary import summarize
from gingham.plots import draw_curve, draw_reliability
from gingham.runs.predictions import load_predictions
from gingham.runs.run import Run
from gingham.text import duration

MAX_CLASSES = 30  # with sample images; more are left out
SAMPLES_PER_CLASS = 8
NUM_NOVEL = 12
MAX_SIDE = 64  # pixels; larger images are shrunk to it


def write_report(run: Run, train: Split, validation: Split | None, test: Split | None, file: Path) -> Path:
    """Write the report of a run to an HTML file and return it.

    It shows the data and the recipe, sample images, learning curves, accuracy per class, the most confident mistakes,
    calibration, the most unusual images, filters and feature maps, the layer table, the speed, the issues that
    `check_run` finds, and the limits of the evaluation. The results are for the validation split. The accuracy on the
    test split is included only if the run has been evaluated on it before.

        gingham.write_report(run, data.train, data.validation, data.test, Path("report.html"))

    Raises
        GinghamError: the file cannot be written.
    """
    import jinja2  # only needed here

    require_types("write_report", run=(run, Run), train=(train, Split))
    # Class names come from folders and files, so all values are escaped.
    loader = jinja2.PackageLoader("gingham.reports")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"percent": _percent, "duration": duration}
    values = _template_values(run, train, validation, test)
    write_text(file, environment.get_template("report.html").render(values))
    return file


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def _template_values(run: Run, train: Split, validation: Split | None, test: Split | None) -> dict[str, Any]:
    model, measured = run.model, validation or train
    return {
        "version": __version__,
        "written": datetime.now(UTC).strftime("%d %B %Y"),
        "run": run,
        # `fit` sets all values, but a Run that was made without it may lack some.
        "metrics": defaultdict(lambda: None, run.metrics),
        "environment": defaultdict(lambda: "unknown", {key: value for key, value in run.environment.items() if value}),
        "dataset": Path(train.dataset).name,
        "train": train,
        "validation": validation,
        "samples": _samples(train),
        "max_classes": MAX_CLASSES,
        "curves": _curves(run),
        "has_sample": any(entry.get("sample_loss") is not None for entry in run.history),
        "evaluation": None if validation is None else _evaluate(run, validation),
        "test": None if test is None else _test_result(run, test),
        "filters": _filters(model.network),
        "feature_maps": _feature_maps(model, measured.images[:1]),
        "example": _png(measured.images[:1]),
        "layers": summarize(model.network, model.input_shape, run.recipe.network),
        "speed": _speed(model, train.sample(500)[0]),
        "issues": check_run(run, train, validation),
    }


def _evaluate(run: Run, split: Split) -> dict[str, Any]:
    logits, novelty = run.model.score(split.images)
    result = compute_result(run, split, logits)
    charts = {}
    for when, rows, color in (("before", result.reliability_before, RUST), ("after", result.reliability, BLUE)):
        values = [f"{row['confidence']:.0%}, {row['accuracy']:.0%} ({row['count']})" for row in rows]
        description = f"Confidence and accuracy {when} temperature scaling (number of images): {'; '.join(values)}"
        charts[when] = svg_chart(description, draw_reliability, rows, color)
    return {
        "result": result,
        "most_confused": result.confusion.most_frequent(5),
        "mistakes": [
            {**vars(mistake), "image": _png(mistake.image[None]), "answer": mistake.predicted}
            for mistake in result.mistakes
        ],
        "novel": _novel(run.model, split, novelty),
        "charts": charts,
    }


def _novel(model: Classifier, split: Split, novelty: torch.Tensor) -> dict[str, Any] | None:
    """Return the share of novel images and those with the highest scores, or None for a model without a score."""
    if model.novelty is None:
        return None
    highest = novelty.argsort(descending=True, stable=True)[:NUM_NOVEL].tolist()
    return {
        "share": float((novelty > model.novelty.threshold.cpu()).double().mean()),
        "images": [
            {"image": _png(split.images[k : k + 1]), "index": k, "label": int(split.labels[k])} for k in highest
        ],
    }


def _test_result(run: Run, test: Split) -> dict[str, Any] | None:
    """Return the accuracy on the test split from the predictions of an earlier evaluation, or None without any."""
    predicted = load_predictions(run, test)
    if predicted is None:
        return None
    correct, total = int((predicted == test.labels).sum()), len(test)
    return {"accuracy": correct / total, "interval": proportion_interval(correct, total), "total": total}


def _samples(split: Split) -> list[dict[str, Any]]:
    rows = []
    for label, name in enumerate(split.classes[:MAX_CLASSES]):
        indices = (split.labels == label).nonzero().flatten()
        if len(indices):
            image = _png(split.images[indices[:SAMPLES_PER_CLASS]], SAMPLES_PER_CLASS)
            rows.append({"name": name, "image": image, "count": len(indices)})
    return rows


def _png(images: torch.Tensor, columns: int = 1, gap: int = 2) -> dict[str, Any]:
    """Return images, uint8 (N, C, H, W), in a grid: a PNG as a data URI, with its width and height.

    Images with sides over MAX_SIDE are shrunk; those that are not RGB show their first channel in grey. The gaps are
    transparent, so that they have the page's background colour.
    """
    scale = min(1, MAX_SIDE / max(images.shape[2:]))
    size = [max(1, round(scale * side)) for side in images.shape[2:]]
    rgb = resize(images if images.shape[1] == 3 else images[:, :1], size).cpu().expand(-1, 3, -1, -1)
    opaque = torch.cat([rgb, torch.full_like(rgb[:, :1], 255)], dim=1)
    filled = F.pad(opaque, (0, 0, 0, 0, 0, 0, 0, -len(images) % columns))  # so that all rows have the same scale
    grid = make_grid(filled, columns, gap)
    image = to_pil_image(grid[:, gap:-gap, gap:-gap] if columns > 1 else grid)  # a single image has no margins
    return {"uri": png_url(image, optimize=True), "width": image.width, "height": image.height}


def _to_grey(maps: torch.Tensor, centred: bool) -> torch.Tensor:
    """Return float (N, H, W) as grey images, uint8 (N, 1, H, W), each scaled to its own values.

    Black is a map's smallest value and white its largest; if `centred`, the scale is symmetric, with 0 as middle grey.
    """
    largest = maps.abs().amax((1, 2), keepdim=True).clamp(min=1e-9) if centred else maps.amax((1, 2), keepdim=True)
    smallest = -largest if centred else maps.amin((1, 2), keepdim=True)
    scaled = (maps - smallest) / (largest - smallest).clamp(min=1e-9)
    return (255 * scaled).round().byte()[:, None]


def _filters(network: nn.Module) -> dict[str, Any] | None:
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or max(first.kernel_size) < 2:
        return None
    kernels = first.weight.detach()[:64].mean(dim=1)
    image = _png(_to_grey(kernels, centred=True), 16, gap=1)
    return {"image": image, "count": len(first.weight), "size": "×".join(map(str, first.kernel_size))}


def _feature_maps(model: Classifier, example: torch.Tensor) -> list[dict[str, Any]]:
    """Return the first feature maps of the last layer at each size, for one image."""
    outputs: list[tuple[str, torch.Tensor]] = []

    def keep(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if torch.is_tensor(output) and output.dim() == 4 and min(output.shape[2:]) > 1:
            outputs.append((name, output[0].float().cpu().clone()))  # the next layer may change it in place

    with contextlib.ExitStack() as hooks:
        for name, module in model.network.named_modules():
            if name:
                hooks.enter_context(module.register_forward_hook(functools.partial(keep, name)))
        model.logits(example)  # the image itself comes first, then its other views
    last_by_size = {maps.shape[1:]: (name, maps) for name, maps in outputs[: len(outputs) // model.num_views]}
    rows = []
    for (height, width), (name, maps) in list(last_by_size.items())[:6]:
        scale = max(1, MAX_SIDE // 2 // max(height, width))
        image = _png(F.interpolate(_to_grey(maps[:16], centred=False), scale_factor=scale), 8)
        rows.append({"layer": name, "image": image, "count": len(maps), "size": f"{height}×{width}"})
    return rows


def _curves(run: Run) -> dict[str, str] | None:
    epoch_ends = [entry for entry in run.history if "epoch" in entry]
    if not epoch_ends or not any("learning_rate" in entry for entry in run.history):
        return None
    charts = {}
    for key in ("loss", "accuracy"):
        description = f"{key.capitalize()} over the epochs"
        for name, part in (("training", "train"), ("validation", "validation")):
            values = [entry[f"{part}_{key}"] for entry in epoch_ends if entry[f"{part}_{key}"] is not None]
            description += f", {name} {values[0]:.3g} to {values[-1]:.3g}" if values else ""
        charts[key] = svg_chart(description, draw_curve, run.history, key)
    return charts


def _speed(model: Classifier, images: torch.Tensor) -> dict[str, float]:
    """Return the seconds that predictions take on this machine: of one image, and of all of them together."""
    model.logits(images)
    single = statistics.median(_seconds(model, images[:1]) for _ in range(15))
    return {"single": single, "together": min(_seconds(model, images) for _ in range(3)), "images": len(images)}


def _seconds(model: Classifier, images: torch.Tensor) -> float:
    start = time.perf_counter()  # not timeit, which executes source text
    model.logits(images)
    return time.perf_counter() - start
