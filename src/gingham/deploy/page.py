"""The web page for a model: served over HTTP, or as one file that works offline."""

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import torch
import torch.nn.functional as F

from gingham._version import __version__
from gingham.deploy.browser_libraries import LIBRARIES, library_files
from gingham.inference.neighbours import Gallery
from gingham.inference.predict import is_garment_model
from gingham.io import write_text
from gingham.runs.run import Run

FOLDER = Path(__file__).parent / "web"


def model_metadata(run: Run) -> dict[str, Any]:
    """Return what a run's model is, as JSON values: classes, shape, threshold, where it comes from and how it was measured."""
    background = run.data.get("background")
    return {
        "classes": list(run.model.classes),
        "input_shape": list(run.model.input_shape),
        "threshold": float(run.model.threshold),
        "temperature": float(run.model.temperature),
        "garments": is_garment_model(run),
        "background": background if isinstance(background, (int, float)) else None,
        "recipe": run.recipe.name,
        "network": run.recipe.network,
        "seed": run.recipe.seed,
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "dataset": dataset_of(run),
        "fingerprint": run.data.get("fingerprint"),
        "validation_accuracy": run.metrics.get("validation_accuracy"),
        "test_openings": len(run.test_openings),
    }


def dataset_of(run: Run) -> str | None:
    """Return what a run's data is called: a dataset's name or the last part of a place, since the rest is nobody else's business."""
    name = run.data.get("name")
    return Path(name).name if isinstance(name, str) else None


def served_page(run: Run) -> tuple[str, str]:
    """Return the page that asks the server it comes from, and its Content-Security-Policy: its own script, and that server alone."""
    script = _script("server.js", "page.js")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src 'unsafe-inline'; img-src data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return _render(run, script), policy


def write_page(run: Run, file: Path, graph: bytes, gallery: Gallery | None) -> Path:
    """Write the page as one file that needs no network and has no way to send anything anywhere.

    `graph` is the model as ONNX, with the outputs `probabilities` and `features`; `gallery` the training pictures it may compare with.
    The page holds both, ONNX Runtime and OpenCV for browsers.

    Raises
        DataError: the libraries are neither in the cache nor can they be downloaded.
        GinghamError: the file cannot be written.
    """
    contents = {**library_files(), "model.onnx": graph}
    labels: list[int] = []
    if gallery is not None:
        contents["gallery"] = gallery.images.numpy().tobytes()
        contents["features"] = _in_bytes(gallery.features).numpy().tobytes()
        labels = [run.model.classes.index(label) for label in gallery.labels]
    payload = {name: base64.b64encode(gzip.compress(content, 6, mtime=0)).decode() for name, content in contents.items()}
    script = _script("photos.js", "local.js", "page.js")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}' blob: 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; "
        "connect-src 'none'; base-uri 'none'; form-action 'none'"
    )
    write_text(file, _render(run, script, policy, payload, labels))
    return file


def _in_bytes(vectors: torch.Tensor) -> torch.Tensor:
    """Directions in a byte a number: they order neighbours as the floats do, in a quarter of the room."""
    directions = F.normalize(vectors.float(), dim=1)
    scale = directions.abs().amax(dim=1, keepdim=True).clamp(min=1e-9)
    return (directions / scale * 127).round().to(torch.int8)


def _script(*names: str) -> str:
    script = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in names)
    assert "</script" not in script, "it would end the element it stands in"
    return script


def _hash(script: str) -> str:
    """How a policy names a script that stands in the page."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _render(
    run: Run, script: str, policy: str | None = None, payload: dict[str, str] | None = None, labels: Sequence[int] = ()
) -> str:
    """The page with its script; alone, also with its own policy, the parts it is made of, and the labels of its training pictures."""
    metadata = model_metadata(run) | {"labels": labels}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html").render(
        model=metadata,
        # In a script element, where the only thing that may not stand is its end.
        metadata=json.dumps(metadata, ensure_ascii=False).replace("<", "\\u003c"),
        script=script,
        policy=policy,
        payload=payload or {},
        libraries=LIBRARIES,
        version=__version__,
    )
