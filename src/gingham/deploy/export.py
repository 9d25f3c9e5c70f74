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
from gingham.io import replacing
from gingham.models.classifier import Classifier
from gingham.runs.run import Run

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


KINDS = (".onnx", ".html")
COMPARED = 1000  # pictures
TOLERANCE = 1e-4  # of a probability
MEASURED = 10_000  # pictures at most that say what int8 costs


@dataclass(frozen=True)
class ExportResult:
    """What was written: `pictures` of `split` were answered by the file and by the model it was made from, with the same
    top class for the share `agreement`, and probabilities that differ by `max_difference` at most. For int8 `accuracy` is the
    model's on `measured` of these pictures, `accuracy_int8` the file's, and `interval` that of the loss, at 95 %.
    A page holds `neighbours` training pictures.
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
        """Return the fields as plain JSON values; without those that do not apply."""
        return {name: str(value) if name == "file" else value for name, value in asdict(self).items() if value is not None}


def export(
    run: Run, file: str | Path, data: DataSplits | None = None, *, int8: bool = False, neighbours: int = GALLERY_SIZE
) -> ExportResult:
    """Write a run's model as one file that answers the same without gingham: `.onnx`, or `.html`, a page for a browser.

    ONNX: `images` uint8 (N, C, H, W) in, N being any number, `probabilities` float32 (N, K) out. Normalisation, both views and
    the temperature are inside; the names of the classes, the threshold for "not sure" and where the model comes from
    are in the metadata. With `int8` weights and activations have 8 bits: a third to a half of the size and of the time; what
    that costs in accuracy is measured, and nothing is demanded of it.

    HTML: the page that `gingham serve` serves, with the model and what runs it inside, and so many `neighbours`, training
    pictures that it may show as most like another.

    Nothing is written unless ONNX Runtime answers 1,000 pictures as the model does: pictures of `data`, by default what the
    run was trained on, of the validation split, or of the training split where nothing was held out.

        gingham.export(run, "fast.onnx").agreement        # 1.0

    Raises
        GinghamError: a file of another kind, packages of gingham[export] missing, a network without an ONNX form, other answers, or
            a file that cannot be written.
        DataError: the run's data, or the libraries for the page, are not at hand.
    """
    file = Path(file)
    require_exportable(file, int8=int8)
    source = load_run_data(run) if data is None else data
    split = (
        source.validation if source.validation is not None and len(source.validation) else source.train
    )  # never the test split
    if (shape := tuple(split.images.shape[1:])) != run.model.input_shape:
        got, wanted = ("x".join(map(str, sides)) for sides in (shape, run.model.input_shape))
        raise DataError(f"{source.name} has pictures of {got}, the model takes {wanted}; give data of the model's own kind")
    page = file.suffix.lower() == ".html"
    graph = to_onnx(run, with_features=page)
    content = graph.SerializeToString()
    images = split.images[evenly_spaced(len(split), COMPARED)].cpu()
    expected = run.model.predict(images).probabilities.numpy()
    exported = _compare(expected, create_session(content), images)
    if exported["max_difference"] > TOLERANCE or exported["agreement"] < 1:
        raise GinghamError(
            f"the exported model answers {1 - exported['agreement']:.2%} of {exported['pictures']:,} pictures differently, by up to "
            f"{exported['max_difference']:.1e} of a probability where {TOLERANCE} is allowed; nothing was written; update torch, "
            "onnxscript and onnxruntime, or change the layer at fault"
        )
    if int8:
        content = quantize_int8(graph, source.train).SerializeToString()
        session = create_session(content)
        exported = _compare(expected, session, images) | _cost(run.model, session, split)
    if page:
        shown = gallery(run.model, source.train, neighbours)
        write_page(run, file, content, shown)
        exported["neighbours"] = len(shown.labels) if shown else 0
    else:
        with replacing(file) as side:
            side.write_bytes(content)
    return ExportResult(file=file, bytes=file.stat().st_size, opset=OPSET, split=split.name, **exported)


def require_exportable(file: Path, *, int8: bool) -> None:
    """Raise a GinghamError for a file of another kind than KINDS, one that someone else made, int8 in a page, and missing packages."""
    if file.suffix.lower() not in KINDS:
        raise GinghamError(
            f"{file} ends in {file.suffix or 'nothing'}; allowed: {', '.join(KINDS)}; name it model.onnx or page.html"
        )
    if file.exists() and not _is_export(file):
        raise GinghamError(f"{file} is there already and is no export of gingham's; choose another name, or move it away")
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
    got = session_probabilities(session, images)
    rows = np.arange(len(expected))
    # Where two classes are equally probable either may come first.
    same = expected[rows, got.argmax(axis=1)] >= expected.max(axis=1) - TOLERANCE
    return {"max_difference": float(np.abs(expected - got).max()), "agreement": float(same.mean()), "pictures": len(images)}


def _cost(model: Classifier, session: "InferenceSession", split: Split) -> dict[str, Any]:
    places = evenly_spaced(len(split), MEASURED)
    images, labels = split.images[places].cpu(), split.labels[places].cpu().numpy()
    after = (
        session_probabilities(session, images).argmax(axis=1) == labels
    )  # first: torch's threads stay busy for a while after their work
    before = model.predict(images, 125).labels.numpy() == labels
    return {
        "accuracy": float(before.mean()),
        "accuracy_int8": float(after.mean()),
        "measured": len(labels),
        "interval": paired_interval(int((before & ~after).sum()), int((after & ~before).sum()), len(labels)),
    }
