"""A run as one file that answers the same without torch: ONNX, with all it needs inside, compared before it is written."""

import contextlib
import copy
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from gingham import __version__
from gingham.datasets import Data, Split
from gingham.errors import DataError, GinghamError, one_line
from gingham.evaluation import data_of
from gingham.files import replacing
from gingham.metrics import paired_interval
from gingham.models import Classifier
from gingham.pages import dataset_of, write_page
from gingham.prediction import GALLERY, entering_last_layer, gallery, takes_garments
from gingham.sampling import evenly
from gingham.storage import Run

if TYPE_CHECKING:
    import onnx
    from onnxruntime import InferenceSession

KINDS = (".onnx", ".html")
OPSET = 18  # read by ONNX Runtime from 1.14 (2023) and by every browser's
COMPARED = 1000  # pictures
TOLERANCE = 1e-4  # of a probability
CALIBRATED = 1000  # training pictures that say how far the activations of an int8 model reach
MEASURED = 10_000  # pictures at most that say what int8 costs


@dataclass(frozen=True)
class Exported:
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


def export(run: Run, file: str | Path, data: Data | None = None, *, int8: bool = False, neighbours: int = GALLERY) -> Exported:
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
    source = data_of(run) if data is None else data
    split = (
        source.validation if source.validation is not None and len(source.validation) else source.train
    )  # never the test split
    if (shape := tuple(split.images.shape[1:])) != run.model.input_shape:
        got, wanted = ("x".join(map(str, sides)) for sides in (shape, run.model.input_shape))
        raise DataError(f"{source.name} has pictures of {got}, the model takes {wanted}; give data of the model's own kind")
    page = file.suffix.lower() == ".html"
    graph = graph_of(run, with_features=page)
    content = graph.SerializeToString()
    images = split.images[evenly(len(split), COMPARED)].cpu()
    expected = run.model.predict(images).probabilities.numpy()
    exported = _compare(expected, _session(content), images)
    if exported["max_difference"] > TOLERANCE or exported["agreement"] < 1:
        raise GinghamError(
            f"the exported model answers {1 - exported['agreement']:.2%} of {exported['pictures']:,} pictures differently, by up to "
            f"{exported['max_difference']:.1e} of a probability where {TOLERANCE} is allowed; nothing was written; update torch, "
            "onnxscript and onnxruntime, or change the layer at fault"
        )
    if int8:
        content = _in_int8(graph, source.train).SerializeToString()
        session = _session(content)
        exported = _compare(expected, session, images) | _cost(run.model, session, split)
    if page:
        shown = gallery(run.model, source.train, neighbours)
        write_page(run, file, content, shown)
        exported["neighbours"] = len(shown.labels) if shown else 0
    else:
        with replacing(file) as side:
            side.write_bytes(content)
    return Exported(file=file, bytes=file.stat().st_size, opset=OPSET, split=split.name, **exported)


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


class _Answering(torch.nn.Module):
    """What goes into the file: pictures in, probabilities out and, if asked, what the last layer sees of each picture."""

    def __init__(self, model: Classifier, *, with_features: bool) -> None:
        super().__init__()
        self.model, self.with_features = model, with_features

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if not self.with_features:
            answers: torch.Tensor = self.model(images).softmax(dim=1)
            return answers
        with entering_last_layer(self.model) as seen:
            logits = self.model(images)
        return logits.softmax(dim=1), seen[0] if seen else logits


def graph_of(run: Run, *, with_features: bool = False) -> "onnx.ModelProto":
    """Return a run's model as an ONNX graph, with its metadata; `with_features` adds an output `features` (N, D), what `features`
    in prediction.py returns.

    Raises
        GinghamError: the network has no ONNX form.
    """
    model = _Answering(copy.deepcopy(run.model).cpu(), with_features=with_features).eval()
    example = torch.zeros(2, *run.model.input_shape, dtype=torch.uint8)
    try:
        with _quiet():
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["probabilities", "features"][: 1 + with_features],
                dynamic_shapes={"images": {0: torch.export.Dim("N", min=1)}},
                verbose=False,
            )
        assert program is not None
        graph: onnx.ModelProto = program.model_proto
        if not graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
            raise ValueError("it depends on the number of pictures")
    except Exception as error:  # a network of the user's own may be anything
        raise GinghamError(
            f"the network {run.recipe.network} has no ONNX form ({one_line(error)}); use operations that torch.onnx.export knows, "
            "and none that depend on the pictures' number or values"
        ) from error
    _strip(graph)
    graph.producer_name, graph.producer_version = "gingham", __version__
    for name, value in _metadata(run).items():
        entry = graph.metadata_props.add()
        entry.key, entry.value = name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return graph


def _metadata(run: Run) -> dict[str, Any]:
    """What whoever uses the file must know, and where it comes from."""
    return {
        "classes": list(run.model.classes),
        "threshold": float(run.model.threshold),
        "temperature": float(run.model.temperature),
        "input_shape": list(run.model.input_shape),
        "preparation": "garment" if takes_garments(run) else "plain",  # which of prepare_garment and prepare_plain
        "background": run.data.get("background"),
        "recipe": run.recipe.name,
        "network": run.recipe.network,
        "seed": run.recipe.seed,
        "dataset": dataset_of(run),
        "fingerprint": run.data.get("fingerprint"),
        "gingham": __version__,
    }


def _strip(graph: "onnx.ModelProto") -> None:
    """Take out what the exporter notes of the code it came from: it names folders of this machine."""
    del graph.metadata_props[:]
    inside = graph.graph
    for part in (inside, *inside.node, *inside.input, *inside.output, *inside.value_info, *inside.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def _session(content: bytes) -> "InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # its threads would keep torch's waiting
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _answers(session: "InferenceSession", images: torch.Tensor) -> npt.NDArray[np.float32]:
    """A session's probabilities, (N, K), of batches of several sizes, as the file is for any."""
    parts = torch.tensor_split(images, [1, 8, *range(258, len(images), 250)])
    return np.concatenate([session.run(["probabilities"], {"images": part.numpy()})[0] for part in parts if len(part)])


def _compare(expected: npt.NDArray[np.float32], session: "InferenceSession", images: torch.Tensor) -> dict[str, Any]:
    got = _answers(session, images)
    rows = np.arange(len(expected))
    # Where two classes are equally probable either may come first.
    same = expected[rows, got.argmax(axis=1)] >= expected.max(axis=1) - TOLERANCE
    return {"max_difference": float(np.abs(expected - got).max()), "agreement": float(same.mean()), "pictures": len(images)}


def _cost(model: Classifier, session: "InferenceSession", split: Split) -> dict[str, Any]:
    places = evenly(len(split), MEASURED)
    images, labels = split.images[places].cpu(), split.labels[places].cpu().numpy()
    after = _answers(session, images).argmax(axis=1) == labels  # first: torch's threads stay busy for a while after their work
    before = model.predict(images, 125).labels.numpy() == labels
    return {
        "accuracy": float(before.mean()),
        "accuracy_int8": float(after.mean()),
        "measured": len(labels),
        "interval": paired_interval(int((before & ~after).sum()), int((after & ~before).sum()), len(labels)),
    }


class _Calibration:
    """Training pictures for ONNX Runtime's quantisation, in batches."""

    def __init__(self, images: torch.Tensor) -> None:
        self.parts = iter([{"images": part.numpy()} for part in torch.split(images, 100)])

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        return next(self.parts, None)


def _in_int8(graph: "onnx.ModelProto", train: Split) -> "onnx.ModelProto":
    """A graph with 8 bits for weights, a scale for each channel, and for activations, scaled by what training pictures give."""
    import onnx
    import onnx_ir as ir
    from onnx_ir.passes.common import DeduplicateHashedInitializersPass
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, _quiet():
        given, whole, small = (Path(folder, name) for name in ("given.onnx", "whole.onnx", "int8.onnx"))
        onnx.save(graph, given)
        quant_pre_process(given, whole, skip_symbolic_shape=True)
        calibration = _Calibration(train.images[evenly(len(train), CALIBRATED)].cpu())
        quantize_static(whole, small, calibration, per_channel=True, activation_type=QuantType.QUInt8)
        quantised = ir.load(small)
        DeduplicateHashedInitializersPass(size_limit=1 << 40)(quantised)  # the mirror image's branch got filters of its own
        result: onnx.ModelProto = ir.to_proto(quantised)
    del result.metadata_props[:]
    result.metadata_props.extend(graph.metadata_props)
    return result


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporters warn of, log and print: advice to themselves."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)
