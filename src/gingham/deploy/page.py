"""The web page for a model: served over HTTP, or as one file that works offline."""

import base64
import gzip
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import torch

from gingham._version import __version__
from gingham.deploy.browser_libraries import LIBRARIES, library_files
from gingham.inference.neighbours import Gallery
from gingham.runs.run import Run

WEB_FOLDER = Path(__file__).parent / "web"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"


def model_metadata(run: Run) -> dict[str, Any]:
    """Return a run's model as JSON values: classes, shape, thresholds, origin and accuracy.

    The thresholds named `photo_` apply to photos prepared as garments. A novelty threshold is None if no image is novel
    to the model, because JSON has no infinity.
    """
    dataset = run.data.get("name")
    thresholds = dict[str, float | None]()
    for prefix in ("", "photo_"):
        threshold, novelty = run.model.thresholds(for_photos=bool(prefix))
        thresholds[f"{prefix}threshold"] = threshold
        thresholds[f"{prefix}novelty_threshold"] = novelty if math.isfinite(novelty) else None
    return {
        "classes": list(run.model.classes),
        "input_shape": list(run.model.input_shape),
        **thresholds,
        "temperature": float(run.model.temperature),
        "garments": run.is_of_garments,
        "background": run.data.get("background") if run.model.novelty else None,
        "object_share": run.data.get("object_share"),
        "recipe": run.recipe.name,
        "network": run.recipe.network,
        "seed": run.recipe.seed,
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "dataset": Path(dataset).name if dataset else None,  # the rest of a path may be private
        "fingerprint": run.data.get("fingerprint"),
        "validation_accuracy": run.metrics.get("validation_accuracy"),
        "test_openings": len(run.test_openings),
    }


def served_page(run: Run) -> tuple[str, str]:
    """Return the served page and its Content-Security-Policy, which allows its script and requests to its server."""
    script, source = _script("server.js", "page.js")
    policy = f"{POLICY}; script-src {source}; connect-src 'self'; frame-ancestors 'none'"
    return _render(run, script), policy


def offline_page(run: Run, graph: bytes, gallery: Gallery | None) -> str:
    """Return the page as one file that needs no network and cannot send data anywhere.

    `graph` is the model as ONNX, with the outputs `probabilities` and `features`; `gallery` has the training images to
    compare with. The page contains both, and ONNX Runtime and OpenCV for browsers.

    Raises
        DataError: the libraries are not in the cache and cannot be downloaded.
    """
    contents = {**library_files(), "model.onnx": graph}
    labels: list[int] = []
    if gallery is not None:
        contents["gallery"] = gallery.images.numpy().tobytes()
        contents["features"] = _to_int8(gallery.features).numpy().tobytes()
        labels = [run.model.classes.index(label) for label in gallery.labels]
    payload = {name: base64.b64encode(gzip.compress(data, 6, mtime=0)).decode() for name, data in contents.items()}
    script, source = _script("photos.js", "local.js", "page.js")
    policy = f"{POLICY}; script-src {source} blob: 'unsafe-eval'; connect-src 'none'"
    return _render(run, script, policy, payload, labels)


def _to_int8(vectors: torch.Tensor) -> torch.Tensor:
    """Return vectors scaled to int8, which have nearly the same nearest neighbours and a quarter of the size."""
    scale = vectors.abs().amax(dim=1, keepdim=True).clamp(min=1e-9)
    return (vectors / scale * 127).round().to(torch.int8)


def _script(*names: str) -> tuple[str, str]:
    """Return the page's script, and its source for a Content-Security-Policy: the hash that allows it."""
    script = "\n".join((WEB_FOLDER / name).read_text(encoding="utf-8") for name in names)
    assert "</script" not in script, "it would end its script element"
    return script, f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _render(
    run: Run, script: str, policy: str | None = None, payload: dict[str, str] | None = None, labels: Sequence[int] = ()
) -> str:
    """Render the page; the offline page also has its policy, its payload and the labels of its training images."""
    metadata = model_metadata(run) | {"labels": labels}
    loader = jinja2.FileSystemLoader(WEB_FOLDER)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.get_template("page.html").render(
        model=metadata,
        # In a script element only the end tag must be escaped.
        metadata=json.dumps(metadata, ensure_ascii=False).replace("<", "\\u003c"),
        script=script,
        policy=policy,
        payload=payload or {},
        libraries=LIBRARIES,
        version=__version__,
    )
