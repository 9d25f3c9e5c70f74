"""Convert a run's model to an ONNX graph, in float32 or int8."""

import contextlib
import copy
import io
import json
import logging
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from gingham._version import __version__
from gingham.data.sampler import evenly_spaced, limit_count
from gingham.data.splits import SAMPLE_PIXELS, Split
from gingham.deploy.page import model_metadata
from gingham.errors import GinghamError, one_line
from gingham.inference.neighbours import capture_features
from gingham.models.classifier import MAX_BATCH_PIXELS, Classifier
from gingham.runs.run import Run

if TYPE_CHECKING:
    import onnx
    from onnxruntime import InferenceSession


OPSET = 18  # supported by ONNX Runtime from 1.14 (2023) and by ONNX Runtime for browsers
_QUIET_LOCK = threading.Lock()
NUM_CALIBRATION = 1000  # training images from which the ranges of int8 activations are measured


class _OnnxModule(torch.nn.Module):
    """The module to export: from images to probabilities, novelty scores (N,) and, with `with_features`, the input of
    the last layer."""

    def __init__(self, model: Classifier, *, with_features: bool) -> None:
        super().__init__()
        self.model, self.with_features = model, with_features

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with capture_features(self.model) as captured:
            logits, novelty = self.model.forward_with_novelty(images)
        outputs = logits.softmax(dim=1), novelty.squeeze(1)
        return (*outputs, captured[0] if captured else logits) if self.with_features else outputs


def to_onnx(run: Run, *, with_features: bool = False) -> "onnx.ModelProto":
    """Return a run's model as an ONNX graph with metadata; `with_features` adds an output `features` (N, D), as
    returned by `features` in inference/neighbours.py.

    Raises
        GinghamError: the network cannot be converted to ONNX.
    """
    import onnx

    model = _OnnxModule(copy.deepcopy(run.model).cpu(), with_features=with_features).eval()
    example = torch.zeros(2, *run.model.input_shape, dtype=torch.uint8)
    try:
        with _quiet():
            program = torch.onnx.export(
                model,
                (example,),
                opset_version=OPSET,
                input_names=["images"],
                output_names=["probabilities", "novelty", "features"][: 2 + with_features],
                dynamic_shapes={"images": {0: torch.export.Dim("N", min=1)}},
            )
        assert program is not None
        graph: onnx.ModelProto = program.model_proto
        if not graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
            raise ValueError("it depends on the number of images")
    except Exception as error:  # the user's own network may raise anything
        raise GinghamError(
            f"the network {run.recipe.network} cannot be converted to ONNX ({one_line(error)}); use operations that "
            "torch.onnx.export supports, and none that depend on the number of images or on their values"
        ) from error
    _strip_source(graph)
    graph.producer_name, graph.producer_version = "gingham", __version__
    onnx.helper.set_model_props(graph, _metadata(run))
    return graph


def _metadata(run: Run) -> dict[str, str]:
    """Return the metadata that a program needs to use the file, and the model's origin: text as it is, else JSON."""
    metadata = model_metadata(run) | {"gingham": __version__}
    for name in ("parameters", "validation_accuracy", "test_openings"):
        del metadata[name]
    metadata["preparation"] = "garment" if metadata.pop("garments") else "plain"  # prepare_garment or prepare_plain
    texts = {name: value for name, value in metadata.items() if isinstance(value, str)}
    return {name: json.dumps(value, ensure_ascii=False) for name, value in metadata.items()} | texts


def _strip_source(graph: "onnx.ModelProto") -> None:
    """Remove the exporter's notes about the source code, which include paths of this machine."""
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


def session_outputs(session: "InferenceSession", images: torch.Tensor) -> list[npt.NDArray[np.float32]]:
    """Return a session's probabilities (N, K) and novelty scores (N,).

    Batches have several sizes, because the file must work with any size.
    """
    size = limit_count(250, images, MAX_BATCH_PIXELS)
    parts = torch.tensor_split(images, [1, 8, *range(8 + size, len(images), size)])
    outputs = [session.run(["probabilities", "novelty"], {"images": part.numpy()}) for part in parts if len(part)]
    return [np.concatenate(arrays) for arrays in zip(*outputs, strict=True)]


def quantize_int8(graph: "onnx.ModelProto", train: Split) -> "onnx.ModelProto":
    """Return a graph with int8 weights, scaled per channel, and uint8 activations scaled by ranges of training data.

    The novelty score is computed in float32, from activations that are rounded to 8 bits: with its own values rounded,
    nearly half of Fashion-MNIST's validation images would be novel.
    """
    import onnx
    import onnx_ir as ir
    from onnx_ir.passes.common import DeduplicateHashedInitializersPass
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, _quiet():
        original, preprocessed, small = (Path(folder, f"{name}.onnx") for name in ("original", "preprocessed", "int8"))
        onnx.save(graph, original)
        quant_pre_process(original, preprocessed, skip_symbolic_shape=True)
        count = limit_count(NUM_CALIBRATION, train.images, SAMPLE_PIXELS)
        images = train.images[evenly_spaced(len(train), count)].cpu()
        size = limit_count(100, images, MAX_BATCH_PIXELS // 4)  # it keeps every activation
        batches = iter([{"images": part.numpy()} for part in torch.split(images, size)])
        calibration = SimpleNamespace(get_next=lambda: next(batches, None))  # the only method that is called
        quantize_static(
            preprocessed,
            small,
            calibration,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            nodes_to_exclude=novelty_nodes(onnx.load(preprocessed)),
        )
        quantised = ir.load(small)
        # The branch for the mirrored image has copies of the filters.
        DeduplicateHashedInitializersPass(size_limit=1 << 40)(quantised)
        result: onnx.ModelProto = ir.to_proto(quantised)
    onnx.helper.set_model_props(result, {entry.key: entry.value for entry in graph.metadata_props})
    return result


def novelty_nodes(graph: "onnx.ModelProto") -> list[str]:
    """Return the names of the nodes that only the output `novelty` depends on."""
    needed = {output.name for output in graph.graph.output} - {"novelty"}
    names = []
    for node in reversed(graph.graph.node):  # a node comes after those it depends on
        if needed.isdisjoint(node.output):
            names.append(node.name)
        else:
            needed.update(node.input)
    return names


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' warnings, logs and prints, which are not for users. One thread at a time."""
    sink, hide_stdout, hide_stderr = io.StringIO(), contextlib.redirect_stdout, contextlib.redirect_stderr
    with _QUIET_LOCK, warnings.catch_warnings(action="ignore"), hide_stdout(sink), hide_stderr(sink):
        disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)
