"""Export a run's model as an ONNX file or an offline page, after comparing it with the model."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from gingham.data.sampler import evenly_spaced
from gingham.data.splits import DataSplits, Split
from gingham.deploy.onnx import OPSET, create_session, quantize_int8, session_probabilities, to_onnx
from gingham.deploy.page import write_page
from gingham.errors import DataError, GinghamError
from gingham.evaluation.metrics import paired_interval
from gingham.evaluation.run_data import load_run_data
from gingham.inference.neighbours import GALLERY_SIZE, gallery
from gingham.io import atomic_write
from gingham.models.classifier import Classifier
from gingham.runs.run import Run

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


SUFFIXES = (".onnx", ".html")
NUM_COMPARED = 1000  # images on which the file and the model must agree
TOLERANCE = 1e-4  # allowed difference of a probability
NUM_MEASURED = 10_000  # images at most on which the accuracy of int8 is measured


@dataclass(frozen=True)
class ExportResult:
    """The exported file and its comparison with the model on `pictures` images of `split`.

    `agreement` is the share of images with the same top class, `max_difference` the largest difference of a
    probability. For int8, `accuracy` is the model's accuracy on `measured` images of the split, `accuracy_int8` the
    file's, and `interval` the 95 % interval of the loss of accuracy. A page has `neighbours` training images.
    """

    file: Path
    bytes: int
    opset: int
    max_difference: float
    agreement: float
    pictures: int
    split: str
    accuracy: float | None = None
    accuracy_int8: float | None = None
    measured: int | None = None
    interval: tuple[float, float] | None = None
    neighbours: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that apply as plain JSON values."""
        return {
            name: str(value) if name == "file" else value for name, value in asdict(self).items() if value is not None
        }


def export(
    run: Run, file: str | Path, data: DataSplits | None = None, *, int8: bool = False, neighbours: int = GALLERY_SIZE
) -> ExportResult:
    """Write a run's model as one file that predicts the same without gingham: `.onnx`, or `.html`, a page for a browser.

    ONNX: the input is `images`, uint8 (N, C, H, W) with any N, the output `probabilities`, float32 (N, K). The graph
    has the normalisation, the test-time augmentation and the temperature; the metadata has the class names, the
    threshold for "not sure" and the origin of the model. With `int8`, weights and activations have 8 bits, for a third
    to a half of the size and of the time; the loss of accuracy is measured, but not limited.

    HTML: the page of `gingham serve`, with the model and its runtime, and with `neighbours` training images from which
    it shows the nearest.

    Nothing is written unless ONNX Runtime agrees with the model on 1,000 images of `data`, by default the run's own: of
    the validation split, or of the training split if no images were held out.

        gingham.export(run, "fast.onnx").agreement        # 1.0

    Raises
        GinghamError: another file suffix, missing packages of gingham[export], a network that cannot be converted to
        ONNX, other
            predictions than the model's, or a file that cannot be written.
        DataError: the run's data, or the libraries for the page, are not available.
    """
    file = Path(file)
    require_exportable(file, int8=int8)
    data = load_run_data(run) if data is None else data
    split = (
        data.validation if data.validation is not None and len(data.validation) else data.train
    )  # never the test split
    if (shape := tuple(split.images.shape[1:])) != run.model.input_shape:
        actual, model = ("x".join(map(str, sides)) for sides in (shape, run.model.input_shape))
        raise DataError(
            f"{data.name} has pictures of {actual}, the model takes {model}; give data of the model's own kind"
        )
    is_page = file.suffix.lower() == ".html"
    graph = to_onnx(run, with_features=is_page)
    content = graph.SerializeToString()
    images = split.images[evenly_spaced(len(split), NUM_COMPARED)].cpu()
    expected = run.model.predict(images).probabilities.numpy()
    results = _compare(expected, create_session(content), images)
    if results["max_difference"] > TOLERANCE or results["agreement"] < 1:
        raise GinghamError(
            f"the exported model answers {1 - results['agreement']:.2%} of {results['pictures']:,} pictures "
            f"differently, by up to {results['max_difference']:.1e} of a probability where {TOLERANCE} is allowed; "
            "nothing was written; update torch, onnxscript and onnxruntime, or change the layer at fault"
        )
    if int8:
        content = quantize_int8(graph, data.train).SerializeToString()
        session = create_session(content)
        results = _compare(expected, session, images) | _measure_int8(run.model, session, split)
    if is_page:
        training_gallery = gallery(run.model, data.train, neighbours)
        write_page(run, file, content, training_gallery)
        results["neighbours"] = len(training_gallery.labels) if training_gallery else 0
    else:
        with atomic_write(file) as temporary:
            temporary.write_bytes(content)
    return ExportResult(file=file, bytes=file.stat().st_size, opset=OPSET, split=split.name, **results)


def require_exportable(file: Path, *, int8: bool) -> None:
    """Raise a GinghamError for another suffix, an existing file that is no export, int8 in a page, or missing packages."""
    if file.suffix.lower() not in SUFFIXES:
        raise GinghamError(
            f"{file} ends in {file.suffix or 'nothing'}; allowed: {', '.join(SUFFIXES)}; name it model.onnx or "
            "page.html"
        )
    if file.exists() and not _is_export(file):
        raise GinghamError(
            f"{file} is there already and is no export of gingham's; choose another name, or move it away"
        )
    if int8 and file.suffix.lower() == ".html":
        raise GinghamError("int8 is for .onnx files; leave it out, as a page answers as predict does")
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise GinghamError(f"exporting needs the package {error.name}; pip install 'gingham[export]'") from error


def _is_export(file: Path) -> bool:
    try:
        content = file.read_bytes()
    except OSError:
        return False
    return (b"GinghamEngine" if file.suffix.lower() == ".html" else b"gingham") in content


def _compare(expected: npt.NDArray[np.float32], session: "InferenceSession", images: torch.Tensor) -> dict[str, Any]:
    actual = session_probabilities(session, images)
    rows = np.arange(len(expected))
    # If two classes are equally probable, either may come first.
    agree = expected[rows, actual.argmax(axis=1)] >= expected.max(axis=1) - TOLERANCE
    return {
        "max_difference": float(np.abs(expected - actual).max()),
        "agreement": float(agree.mean()),
        "pictures": len(images),
    }


def _measure_int8(model: Classifier, session: "InferenceSession", split: Split) -> dict[str, Any]:
    indices = evenly_spaced(len(split), NUM_MEASURED)
    images, labels = split.images[indices].cpu(), split.labels[indices].cpu().numpy()
    # ONNX Runtime first, because torch's threads stay busy for a while after their work.
    int8_correct = session_probabilities(session, images).argmax(axis=1) == labels
    correct = model.predict(images, 125).labels.numpy() == labels
    return {
        "accuracy": float(correct.mean()),
        "accuracy_int8": float(int8_correct.mean()),
        "measured": len(labels),
        "interval": paired_interval(
            int((correct & ~int8_correct).sum()), int((int8_correct & ~correct).sum()), len(labels)
        ),
    }
