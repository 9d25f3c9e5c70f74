"""Export a run's model as an ONNX file or an offline page that makes the same predictions."""

import importlib.util
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gingham.data.sampler import evenly_spaced, limit_count
from gingham.data.splits import SAMPLE_PIXELS, DataSplits, Split
from gingham.deploy.onnx import OPSET, create_session, quantize_int8, session_outputs, to_onnx
from gingham.deploy.page import offline_page
from gingham.errors import DataError, GinghamError, require_types
from gingham.evaluation.metrics import paired_interval
from gingham.evaluation.run_data import load_run_data
from gingham.inference.neighbours import GALLERY_SIZE, gallery
from gingham.io import atomic_write
from gingham.models.backbones import Backbone
from gingham.models.classifier import MAX_BATCH_PIXELS, Predictions
from gingham.runs.run import Run

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


MARKERS = {".onnx": b"gingham", ".html": b"GinghamEngine"}  # what every exported file of a format contains
NUM_COMPARED = 1000  # images on which the file and the model must agree
TOLERANCE = 1e-4  # allowed difference of a probability
NOVELTY_TOLERANCE = 0.02  # allowed difference of a novelty score, in standard deviations of the scores
NUM_MEASURED, MEASURED_PIXELS = 10_000, 1 << 26  # images, and pixels, at most on which the accuracy of int8 is measured


@dataclass(frozen=True)
class ExportResult:
    """The exported file and its comparison with the model on `pictures` images of the split `split`.

    `agreement` is the share of images with the same top class, `max_difference` the largest difference of a
    probability. `novelty_agreement` is the share of images that are novel to both or to neither, `novelty_difference`
    the largest difference of a score. For int8, `accuracy` is the model's accuracy on `measured` images of the split,
    `accuracy_int8` the file's, and `interval` the 95 % interval of the loss of accuracy. A page contains `neighbours`
    training images.
    """

    file: Path
    bytes: int
    opset: int
    max_difference: float
    agreement: float
    novelty_difference: float
    novelty_agreement: float
    pictures: int
    split: str
    accuracy: float | None = None
    accuracy_int8: float | None = None
    measured: int | None = None
    interval: tuple[float, float] | None = None
    neighbours: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that apply as plain JSON values."""
        fields = asdict(self) | {"file": str(self.file)}
        return {name: value for name, value in fields.items() if value is not None}


def export(
    run: Run, file: str | Path, data: DataSplits | None = None, *, int8: bool = False, neighbours: int | None = None
) -> ExportResult:
    """Write a run's model as one file that works without gingham: `.onnx`, or `.html`, a page for browsers.

    ONNX: the input is `images`, uint8 (N, C, H, W) with any N, the outputs `probabilities`, float32 (N, K), and
    `novelty`, float32 (N,). The graph includes the normalisation, the test-time augmentation and the temperature; the
    metadata has the class names, the thresholds of both outputs and the origin of the model. With `int8`, weights and
    activations have 8 bits, except those of the novelty score, for less size and a third to a half of the time; the
    loss of accuracy is measured, but not limited.

    HTML: the page of `gingham serve`, with the model and its runtime. It also contains `neighbours` training images, by
    default 2,000, and shows the most similar of them.

    The file is written only if ONNX Runtime and the model agree on 1,000 images of `data`, by default the run's own.
    They are from the validation split, or from the training split if no images were held out.

        gingham.export(run, "fast.onnx").agreement        # 1.0

    Raises
        GinghamError: an unknown file suffix, an option for the other kind of file, missing packages of gingham[export],
            a network that cannot be converted to ONNX, predictions that differ from the model's, an existing file that
            gingham did not export, or a file that cannot be written.
        DataError: the run's data, or the libraries for the page, are not available.
    """
    require_types("export", run=(run, Run))
    file = Path(file)
    require_exportable(file, int8=int8, neighbours=neighbours)
    require_page_network(run, file)
    data = load_run_data(run) if data is None else data
    split = data.validation or data.train  # never the test split
    shape, needed = ("x".join(map(str, sides)) for sides in (split.images.shape[1:], run.model.input_shape))
    if shape != needed:
        raise DataError(f"{data.name} has images of {shape}, but the model takes {needed}; give data of that kind")
    is_page = file.suffix.lower() == ".html"
    graph = to_onnx(run, with_features=is_page)
    content = graph.SerializeToString()
    images = split.images[evenly_spaced(len(split), limit_count(NUM_COMPARED, split.images, SAMPLE_PIXELS))].cpu()
    expected, threshold = run.model.predict(images), run.model.thresholds()[1]
    results = _compare(expected, threshold, create_session(content), images)
    if results["max_difference"] > TOLERANCE or results["agreement"] < 1:
        raise GinghamError(
            f"the exported model classifies {1 - results['agreement']:.2%} of {results['pictures']:,} images "
            f"differently, with probabilities off by up to {results['max_difference']:.1e} ({TOLERANCE} is allowed); "
            "nothing was written; update torch, onnxscript and onnxruntime, or change the layer that causes it"
        )
    allowed = NOVELTY_TOLERANCE * max(1.0, float(expected.novelty.std(correction=0)))
    if not results["novelty_difference"] <= allowed:  # a score that is not a number fails too
        raise GinghamError(
            f"the novelty scores of the exported model are off by up to {results['novelty_difference']:.1e} "
            f"({allowed:.2g} is allowed); nothing was written; update torch, onnxscript and onnxruntime"
        )
    if int8:
        content = quantize_int8(graph, data.train).SerializeToString()
        session = create_session(content)
        results = _compare(expected, threshold, session, images) | _measure_int8(run, session, split)
    if is_page:
        training_gallery = gallery(run.model, data.train, GALLERY_SIZE if neighbours is None else neighbours)
        content = offline_page(run, content, training_gallery).encode()
        results["neighbours"] = len(training_gallery.labels) if training_gallery else 0
    with atomic_write(file) as temporary:
        temporary.write_bytes(content)
    return ExportResult(file=file, bytes=len(content), opset=OPSET, split=split.name, **results)


def require_exportable(file: Path, *, int8: bool, neighbours: int | None) -> None:
    """Raise a GinghamError for an unknown suffix, an existing file that gingham did not export, an option for the other
    kind of file, or a missing package.
    """
    suffix = file.suffix.lower()
    if suffix not in MARKERS:
        given = f"the suffix {file.suffix}" if file.suffix else "no suffix"
        raise GinghamError(f"{file} has {given}; allowed: {', '.join(MARKERS)}; name it model.onnx or page.html")
    if file.exists() and not (file.is_file() and os.access(file, os.R_OK) and MARKERS[suffix] in file.read_bytes()):
        raise GinghamError(f"{file} already exists and was not exported by gingham; choose another name, or move it")
    if int8 and suffix == ".html":
        raise GinghamError("int8 is for .onnx files; leave it out: a page makes the same predictions as predict")
    if neighbours is not None and suffix != ".html":
        raise GinghamError("neighbours is for .html files; leave it out: an ONNX file contains no training images")
    for package in ("onnx", "onnxruntime", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise GinghamError(f"exporting needs the package {package}; run pip install 'gingham[export]'")


def require_page_network(run: Run, file: Path) -> None:
    """Raise a GinghamError for a page of a pretrained network: pages are for small networks and small images."""
    if file.suffix.lower() == ".html" and isinstance(run.model.network, Backbone):
        raise GinghamError(
            f"a page is for a small network and small images, not for the pretrained network {run.recipe.network} and "
            f"images of {run.model.input_shape[1]} pixels; export FILE.onnx, or run gingham serve"
        )


def _compare(
    expected: Predictions, novelty_threshold: float, session: "InferenceSession", images: torch.Tensor
) -> dict[str, Any]:
    probabilities = expected.probabilities.numpy()
    actual, novelty = session_outputs(session, images)
    # If two classes are equally probable, either may be the top class.
    agree = probabilities[np.arange(len(actual)), actual.argmax(axis=1)] >= probabilities.max(axis=1) - TOLERANCE
    return {
        "max_difference": float(np.abs(probabilities - actual).max()),
        "agreement": float(agree.mean()),
        "novelty_difference": float(np.abs(expected.novelty.numpy() - novelty).max()),
        "novelty_agreement": float((expected.novel.numpy() == (novelty > novelty_threshold)).mean()),
        "pictures": len(images),
    }


def _measure_int8(run: Run, session: "InferenceSession", split: Split) -> dict[str, Any]:
    indices = evenly_spaced(len(split), limit_count(NUM_MEASURED, split.images, MEASURED_PIXELS))
    images, labels = split.images[indices].cpu(), split.labels[indices].cpu().numpy()
    # ONNX Runtime first, because torch's threads stay busy for a while after their work.
    int8_correct = session_outputs(session, images)[0].argmax(axis=1) == labels
    correct = run.model.predict(images, limit_count(125, images, MAX_BATCH_PIXELS)).labels.numpy() == labels
    lost, gained = int((correct & ~int8_correct).sum()), int((int8_correct & ~correct).sum())
    return {
        "accuracy": float(correct.mean()),
        "accuracy_int8": float(int8_correct.mean()),
        "measured": len(labels),
        "interval": paired_interval(lost, gained, len(labels)),
    }
