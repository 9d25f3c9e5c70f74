"""The report of a run: one HTML file that opens anywhere, without a network connection."""

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
from gingham.runs.schema import COUNTS, TEXTS
from gingham.text import duration

TEMPLATES = Path(__file__).parent / "templates"
SHOWN_CLASSES = 30  # tables of more than these are cut
EACH = 8  # sample pictures a class
MISTAKES = 24
SIDE = 64  # pixels; larger pictures are shrunk to it


def write_report(run: Run, train: Split, validation: Split | None, test: Split | None, file: Path) -> Path:
    """Write the report of a run to an HTML file and return it.

    It shows what was trained on what, sample pictures, curves, results by class, the most confident mistakes, how far its
    confidence can be trusted, what the network sees, its layers, its speed, what `check_run` finds, and its limits.
    The results are of the validation split; of the test split, where the run has opened it before, too: the report opens
    nothing.

        gingham.write_report(run, data.train, data.validation, data.test, Path("report.html"))

    Raises
        GinghamError: the file cannot be written.
    """
    import jinja2  # needed here alone

    # Class names come from folders and files: everything that is put in is escaped.
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"percent": _percent, "duration": duration, "safe_svg": _markup}
    values = _template_values(run, train, validation, test)
    write_text(file, environment.get_template("report.html").render(values))
    return file


def _markup(text: str) -> Any:
    import markupsafe

    return markupsafe.Markup(text)  # noqa: S704  # charts escape what they are given themselves


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def _template_values(run: Run, train: Split, validation: Split | None, test: Split | None) -> dict[str, Any]:
    model = run.model
    results = []
    if validation is not None:
        logits = model.logits(validation.images)
        report = compute_result(logits, validation, run.test_openings, float(model.temperature), float(model.threshold))
        results.append(_result(run, report, validation, logits.softmax(dim=1)))
    opened = load_predictions(run, "test", test.fingerprint) if test is not None else None
    return {
        "version": __version__,
        "written": datetime.now(UTC).strftime("%d %B %Y"),
        "run": run,
        "recipe": run.recipe,
        "metrics": {**dict.fromkeys((*COUNTS["metrics"], *TEXTS["metrics"])), **run.metrics},
        "environment": {key: run.environment.get(key) or "unknown" for key in TEXTS["environment"]},
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
        "more_classes": max(0, len(train.classes) - SHOWN_CLASSES),
        "curves": _curves(run),
        "hard": run.recipe.hard_share < 1 and (run.metrics.get("epochs") or 0) > 1,
        "results": results,
        "test": None if opened is None else _test_result(opened),
        "filters": _filters(model.network),
        "maps": _feature_maps(model, (validation or train).images[:1]),
        "example": _picture(_image((validation or train).images[0])),
        "layers": summarize(model.network, model.input_shape, run.recipe.network),
        "speed": _speed(run, train),
        "issues": check_run(run, train, validation),
        "limits": _limits(run, train, validation, opened),
    }


def _result(run: Run, report: EvaluationResult, split: Split, probabilities: torch.Tensor) -> dict[str, Any]:
    matrix = torch.tensor(report.confusion.matrix)
    totals = matrix.sum(dim=1, keepdim=True).clamp(min=1)
    order = sorted(report.per_class, key=lambda name: report.per_class[name]["accuracy"] or 0)
    pairs = [(int(matrix[i, j]), i, j) for i, j in (matrix * (1 - torch.eye(len(matrix), dtype=torch.long))).nonzero().tolist()]
    charts = {}
    for key, title in (("reliability_before", "before"), ("reliability", "after")):
        rows = getattr(report, key)
        said = "; ".join(f"{row['confidence']:.0%} sure, {row['accuracy']:.0%} right" for row in rows)
        charts[title] = reliability_chart(rows, title, f"Reliability {title} the temperature: {said}")
    return {
        "report": report,
        "matrix": [[(count, round(share, 3)) for count, share in zip(row, shares, strict=True)] for row, shares in
                   zip(matrix.tolist(), (matrix / totals).tolist(), strict=True)],
        "weakest": order[:3],
        "pairs": [(count, split.classes[i], split.classes[j]) for count, i, j in sorted(pairs, reverse=True)[:10]],
        "mistakes": _mistakes(split, probabilities),
        "charts": charts,
    }  # fmt: skip


def _mistakes(split: Split, probabilities: torch.Tensor) -> list[dict[str, Any]]:
    confidence, predicted = probabilities.max(dim=1)
    wrong = (predicted != split.labels).nonzero().flatten()
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][:MISTAKES].tolist()
    return [
        {
            "picture": _picture(_image(split.images[k])),
            "true": split.classes[int(split.labels[k])],
            "predicted": split.classes[int(predicted[k])],
            "confidence": float(confidence[k]),
            "index": k,
        }
        for k in worst
    ]


def _test_result(kept: dict[str, torch.Tensor]) -> dict[str, Any]:
    correct, total = int((kept["predicted"] == kept["labels"]).sum()), len(kept["labels"])
    return {"accuracy": correct / total, "interval": proportion_interval(correct, total), "total": total}


def _samples(split: Split) -> list[dict[str, Any]]:
    rows = []
    for number, name in enumerate(split.classes[:SHOWN_CLASSES]):
        places = (split.labels == number).nonzero().flatten()
        images = [_image(split.images[k]) for k in places[:EACH].tolist()]
        if images:
            rows.append({"name": name, "picture": _picture(_row(images, EACH)), "count": len(places)})
    return rows


def _image(picture: torch.Tensor) -> Image.Image:
    """A uint8 picture (C, H, W) as an image no larger than SIDE."""
    pixels = picture.cpu().numpy()
    image = Image.fromarray(pixels.transpose(1, 2, 0)) if len(pixels) == 3 else Image.fromarray(pixels[0])
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE))
    return image


def _row(images: Sequence[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """Images of one size in a grid, on nothing, so that the page's own ground shows between them."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    columns = min(columns, len(images)) if rows > 1 else columns
    sheet = Image.new("RGBA", (columns * (width + gap) - gap, rows * (height + gap) - gap))
    for place, image in enumerate(images):
        sheet.paste(image.convert("RGB"), (place % columns * (width + gap), place // columns * (height + gap)))
    return sheet


def _picture(image: Image.Image) -> dict[str, Any]:
    """An image as a data URI with its size."""
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    uri = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    return {"uri": uri, "width": image.width, "height": image.height}


def _greys(maps: torch.Tensor, centred: bool) -> list[Image.Image]:
    """Float (M, H, W) as grey images: from the smallest to the largest value, or with 0 at middle grey."""
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
    shown = weight[:64].mean(dim=1) if weight.shape[1] > 1 else weight[:64, 0]
    size = "×".join(map(str, first.kernel_size))
    return {"picture": _picture(_row(_greys(shown, centred=True), 16, gap=1)), "count": len(weight), "size": size}


@torch.no_grad()
def _feature_maps(model: Any, image: torch.Tensor) -> list[dict[str, Any]]:
    """The first maps of the last layer at each size, for one picture."""
    found: dict[tuple[int, int], tuple[str, torch.Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, out: Any) -> None:
            if torch.is_tensor(out) and out.dim() == 4 and min(out.shape[2:]) > 1:
                found[out.shape[2], out.shape[3]] = (name, out[0].clone())

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in model.network.named_modules() if name]
    try:
        tta, model.tta = model.tta, "none"
        model.logits(image)
    finally:
        model.tta = tta
        for handle in handles:
            handle.remove()
    rows = []
    for (height, width), (name, maps) in list(found.items())[:6]:
        pictures = _greys(maps[:16], centred=False)
        scale = max(1, SIDE // 2 // max(width, height))
        pictures = [one.resize((one.width * scale, one.height * scale), Image.Resampling.NEAREST) for one in pictures]
        if max(pictures[0].size) > SIDE:
            pictures = [one.resize((SIDE, SIDE * one.height // one.width)) for one in pictures]
        row = {"layer": name, "picture": _picture(_row(pictures, 8)), "count": len(maps), "size": f"{height}×{width}"}
        rows.append(row)
    return rows


def _curves(run: Run) -> dict[str, str] | None:
    steps = [entry for entry in run.history if "learning_rate" in entry]
    ends = [entry for entry in run.history if "epoch" in entry]
    if not steps or not ends:
        return None
    xs = np.array([0.0, *(entry["step"] for entry in ends)]), np.array([0.0, *(entry["epoch"] for entry in ends)])
    width = max(1, len(steps) // 60)
    charts = {}
    for key, scale, label in (("loss", 1, "loss (nats)"), ("accuracy", 100, "accuracy (%)")):
        usable = len(steps) // width * width
        means = np.array([entry[key] for entry in steps[:usable]]).reshape(-1, width).mean(axis=1) * scale
        places = np.interp((np.arange(len(means)) + 0.5) * width, *xs)
        lines = [Line("training", "taught", list(zip(places.tolist(), means.tolist(), strict=True)))]
        looks = [(entry["epoch"], scale * entry[f"validation_{key}"]) for entry in ends if entry["validation_loss"] is not None]
        if looks:
            lines.append(Line("validation", "held-out", looks, dots=len(looks) <= 40))
        said = f"{key.capitalize()} over the epochs: training from {means[0]:.3g} to {means[-1]:.3g}"
        said += f", validation from {looks[0][1]:.3g} to {looks[-1][1]:.3g}" if looks else ""
        charts[key] = line_chart(lines, "epoch", label, said)
    return charts


def _speed(run: Run, train: Split) -> dict[str, Any]:
    """Training speed from the run; prediction speed measured here and now."""
    model, few = run.model, train.images[:500]
    model.logits(few)
    one = statistics.median(_seconds(lambda: model.logits(few[:1])) for _ in range(15))
    many = min(_seconds(lambda: model.logits(few)) for _ in range(3))
    seconds = run.metrics.get("train_seconds") or math.nan
    return {
        "trained": (run.metrics.get("images_seen") or 0) / seconds,
        "one_milliseconds": 1000 * one,
        "many": len(few) / many,
        "batch": len(few),
    }


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _limits(run: Run, train: Split, validation: Split | None, opened: dict[str, torch.Tensor] | None) -> list[str]:
    """What this report does not show, in plain sentences."""
    limits = [
        f"One seed ({run.recipe.seed}). Another would end a little higher or lower; gingham trials says how much.",
        (
            f"Every picture here comes from {Path(train.dataset).name}. Nothing says how the model does on pictures from elsewhere: "
            "photographs, other cameras, other backgrounds."
        ),
        "No test of what small changes do: turned, blurred, noisy or partly hidden pictures.",
        "The model knows its classes alone. Anything else is given the class it resembles most, perhaps with confidence.",
    ]
    if validation is not None:
        limits.append(
            "Temperature and threshold were fitted to the validation pictures they are shown on; on new pictures they hold "
            "a little less well."
        )
    if run.recipe.patience:
        limits.append("The weights were chosen by the validation split, so the validation accuracy flatters them a little.")
    if opened is None:
        limits.append("The test split was not measured: there is no figure from pictures that no choice was made by.")
    elif len(run.test_openings) > 1:
        limits.append(
            f"The test split was opened {len(run.test_openings)} times; each look that led to a change makes it less of a test."
        )
    few = [name for name, count in (validation or train).counts().items() if count < 30]
    if few:
        names = ", ".join(few[:5]) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
        limits.append(f"Fewer than 30 pictures measured of {names}: what is said of these classes is little more than a guess.")
    return limits
