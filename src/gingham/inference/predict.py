"""Predict the classes of image files and photos."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gingham.data.decode import silence_pillow
from gingham.data.registry import REGISTRY
from gingham.errors import DataError, GinghamError
from gingham.inference.preprocess import (
    PreparedPhoto,
    Step,
    is_grey,
    on_white,
    open_photo,
    prepare_garment,
    prepare_plain,
)
from gingham.models.classifier import Classifier
from gingham.runs.run import Run

GARMENTS = set(REGISTRY["fashion-mnist"].classes)
PREPARE_MODES = ("auto", "none", "photo")


@dataclass(frozen=True)
class ImagePrediction:
    """The prediction for one image file: `label` is the top class, `confidence` its probability, `probabilities` those
    of all classes by name, and `unsure` whether the confidence is below the model's threshold. `prepared` is the
    model's input with the steps that led to it. For a file that cannot be read, `error` says why and the rest is empty.
    """

    image: str
    label: str = ""
    confidence: float = 0.0
    probabilities: dict[str, float] | None = None
    unsure: bool = False
    prepared: PreparedPhoto | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return `image label confidence probabilities unsure steps`, or `image error`, as plain JSON values."""
        if self.error is not None or self.prepared is None:
            return {"image": self.image, "error": self.error}
        return {
            "image": self.image,
            "label": self.label,
            "confidence": self.confidence,
            "probabilities": self.probabilities,
            "unsure": self.unsure,
            "steps": [{"step": step.name, "note": step.note} for step in self.prepared.steps],
        }


def predict(run: Run, images: Sequence[str | Path | Image.Image], prepare: str = "auto") -> list[ImagePrediction]:
    """Return a prediction for each image, a file or an image opened with Pillow, in order.

    `prepare` "auto" uses an image of the model's own size and colours unchanged, and prepares any other as the training
    images were; "photo" prepares every image; "none" only resizes, without keeping proportions.

        for prediction in gingham.predict(gingham.load_packaged(), ["shirt.jpg"]):
            print(prediction.label, prediction.confidence, prediction.unsure)

    Raises
        GinghamError: another `prepare`. A file that cannot be read gets a prediction with an `error` instead.
    """
    if prepare not in PREPARE_MODES:
        raise GinghamError(f"--prepare got {prepare!r}; allowed: {', '.join(PREPARE_MODES)}")
    names = [
        str(image) if isinstance(image, (str, Path)) else f"picture {number}" for number, image in enumerate(images, 1)
    ]
    results = preprocess_all(run, images, prepare)
    prepared = [result for result in results if isinstance(result, PreparedPhoto)]
    return to_predictions(run.model, names, results, mean_probabilities(run.model, prepared))


def to_predictions(
    model: Classifier, names: Sequence[str], results: Sequence[PreparedPhoto | DataError], probabilities: torch.Tensor
) -> list[ImagePrediction]:
    """Return a prediction for each name; `probabilities` (M, K) are those of the M results that are not errors, in order."""
    top, labels = probabilities.max(dim=1) if len(probabilities) else (torch.empty(0), torch.empty(0))
    below_threshold = top < model.threshold.cpu()
    rows = zip(probabilities.tolist(), top.tolist(), labels.tolist(), below_threshold.tolist(), strict=True)
    predictions = []
    for name, result in zip(names, results, strict=True):
        if not isinstance(result, PreparedPhoto):
            predictions.append(ImagePrediction(name, error=str(result)))
            continue
        values, confidence, label, unsure = next(rows)
        by_name = dict(zip(model.classes, values, strict=True))
        predictions.append(ImagePrediction(name, model.classes[label], confidence, by_name, unsure, result))
    return predictions


def mean_probabilities(model: Classifier, prepared: Sequence[PreparedPhoto]) -> torch.Tensor:
    """Return a model's probabilities for prepared photos, float32 (N, K): the mean over the framings of each."""
    if not prepared:
        return torch.empty(0, len(model.classes))
    probabilities = model.predict(np.concatenate([photo.framings for photo in prepared])).probabilities
    if len(probabilities) == len(prepared):
        return probabilities
    by_photo = torch.split(probabilities, [len(photo.framings) for photo in prepared])
    return torch.stack([rows.mean(dim=0) for rows in by_photo])


def preprocess_all(
    run: Run, images: Sequence[str | Path | Image.Image], mode: str, *, steps: bool = True
) -> list[PreparedPhoto | DataError]:
    """Return each image as prepared by `preprocess`, or the error of its file. Without `steps`, only the framings are kept."""

    def prepare(image: str | Path | Image.Image) -> PreparedPhoto | DataError:
        try:
            prepared = preprocess(run, image if isinstance(image, Image.Image) else open_photo(Path(image)), mode)
        except DataError as error:
            return error
        return (
            prepared if steps else PreparedPhoto(prepared.framings, ())
        )  # the steps of thousands would fill the memory

    with silence_pillow():
        if len(images) == 1:
            return [prepare(images[0])]
        with ThreadPoolExecutor(min(8, torch.get_num_threads())) as pool:
            return list(pool.map(prepare, images))


def preprocess(run: Run, photo: Image.Image, mode: str = "auto") -> PreparedPhoto:
    """Return a photo as input for a run's model, prepared as the training images were, with every step.

    `photo` is returned by `open_photo`. For a model of Fashion-MNIST the garment is cut out and put on black; for any
    other the whole photo is fitted into a square. `mode` is one of PREPARE_MODES, as in `predict`.
    """
    channels, height, width = run.model.input_shape
    grey = channels == 1
    if mode == "none" or (mode == "auto" and photo.size == (width, height) and is_grey(photo) == grey):
        note = "taken as it is" if photo.size == (width, height) else f"shrunk to {width}x{height}, and nothing else"
        small = on_white(photo).convert("L" if grey else "RGB").resize((width, height), Image.Resampling.BOX)
        pixels = np.asarray(small)
        image = pixels[None] if grey else pixels.transpose(2, 0, 1)
        return PreparedPhoto(np.ascontiguousarray(image)[None], (Step("size", note, np.asarray(small.convert("RGB"))),))
    if is_garment_model(run):
        return prepare_garment(photo, run.model.input_shape)
    background = run.data.get("background")
    return prepare_plain(photo, run.model.input_shape, background if isinstance(background, (int, float)) else None)


def is_garment_model(run: Run) -> bool:
    """Return whether a run's model classifies garments that are light on black, as in Fashion-MNIST."""
    is_fashion = run.data.get("name") == "fashion-mnist" or set(run.model.classes) == GARMENTS
    return run.model.input_shape[0] == 1 and is_fashion
