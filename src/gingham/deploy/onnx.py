"""Convert a run's model to an ONNX graph, in float32 or int8."""

import contextlib
import copy
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from gingham._version import __version__
from gingham.data.sampler import evenly_spaced
from gingham.data.splits import Split
from gingham.deploy.page import dataset_of
from gingham.errors import GinghamError, one_line
from gingham.inference.neighbours import capture_features
from gingham.inference.predict import is_garment_model
from gingham.models.classifier import Classifier
from gingham.runs.run import Run

if TYPE_CHECKING:
    import onnx
    from onnxruntime import InferenceSession


OPSET = 18  # supported by ONNX Runtime from 1.14 (2023) and by ONNX Runtime for browsers
NUM_CALIBRATION = 1000  # training images from which the ranges of int8 activations are measured


class _OnnxModule(torch.nn.Module):
    """The module to export: from images to probabilities and, with `with_features`, the input of the last layer."""

    def __init__(self, model: Classifier, *, with_features: bool) -> None:
        super().__init__()
        self.model, self.with_features = model, with_features

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if not self.with_features:
            probabilities: torch.Tensor = self.model(images).softmax(dim=1)
            return probabilities
        with capture_features(self.model) as captured:
            logits = self.model(images)
        return logits.softmax(dim=1), captured[0] if captured else logits


def to_onnx(run: Run, *, with_features: bool = False) -> "onnx.ModelProto":
    """Return a run's model as an ONNX graph with metadata; `with_features` adds an output `features` (N, D), as
    returned by `features` in inference/neighbours.py.

    Raises
        GinghamError: the network cannot be converted to ONNX.
    """
    model = _OnnxModule(copy.deepcopy(run.model).cpu(), with_features=with_features).eval()
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
    except Exception as error:  # the user's own network may raise anything
        raise GinghamError(
            f"the network {run.recipe.network} has no ONNX form ({one_line(error)}); use operations that "
            "torch.onnx.export knows, and none that depend on the pictures' number or values"
        ) from error
    _strip_source(graph)
    graph.producer_name, graph.producer_version = "gingham", __version__
    for name, value in _metadata(run).items():
        entry = graph.metadata_props.add()
        entry.key, entry.value = name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return graph


def _metadata(run: Run) -> dict[str, Any]:
    """Return what a program needs to use the file, and the origin of the model."""
    return {
        "classes": list(run.model.classes),
        "threshold": float(run.model.threshold),
        "temperature": float(run.model.temperature),
        "input_shape": list(run.model.input_shape),
        "preparation": "garment" if is_garment_model(run) else "plain",  # which of prepare_garment and prepare_plain
        "background": run.data.get("background"),
        "recipe": run.recipe.name,
        "network": run.recipe.network,
        "seed": run.recipe.seed,
        "dataset": dataset_of(run),
        "fingerprint": run.data.get("fingerprint"),
        "gingham": __version__,
    }


def _strip_source(graph: "onnx.ModelProto") -> None:
    """Remove the exporter's notes about the source code, which include paths of this machine."""
    del graph.metadata_props[:]
    content = graph.graph
    for part in (content, *content.node, *content.input, *content.output, *content.value_info, *content.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def create_session(content: bytes) -> "InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning threads would slow down torch's
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def session_probabilities(session: "InferenceSession", images: torch.Tensor) -> npt.NDArray[np.float32]:
    """Return a session's probabilities (N, K), computed in batches of several sizes, because the file must work for any."""
    parts = torch.tensor_split(images, [1, 8, *range(258, len(images), 250)])
    return np.concatenate([session.run(["probabilities"], {"images": part.numpy()})[0] for part in parts if len(part)])


class _Calibration:
    """A data reader for ONNX Runtime's quantisation: training images in batches."""

    def __init__(self, images: torch.Tensor) -> None:
        self.batches = iter([{"images": part.numpy()} for part in torch.split(images, 100)])

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        return next(self.batches, None)


def quantize_int8(graph: "onnx.ModelProto", train: Split) -> "onnx.ModelProto":
    """Return a graph with int8 weights, scaled per channel, and uint8 activations, scaled by their ranges on training images."""
    import onnx
    import onnx_ir as ir
    from onnx_ir.passes.common import DeduplicateHashedInitializersPass
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, _quiet():
        original, preprocessed, small = (
            Path(folder, name) for name in ("original.onnx", "preprocessed.onnx", "int8.onnx")
        )
        onnx.save(graph, original)
        quant_pre_process(original, preprocessed, skip_symbolic_shape=True)
        calibration = _Calibration(train.images[evenly_spaced(len(train), NUM_CALIBRATION)].cpu())
        quantize_static(preprocessed, small, calibration, per_channel=True, activation_type=QuantType.QUInt8)
        quantised = ir.load(small)
        DeduplicateHashedInitializersPass(size_limit=1 << 40)(
            quantised
        )  # the flipped view's branch got copies of the filters
        result: onnx.ModelProto = ir.to_proto(quantised)
    del result.metadata_props[:]
    result.metadata_props.extend(graph.metadata_props)
    return result


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' warnings, logs and prints, which are not for the user."""
    disabled = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)
