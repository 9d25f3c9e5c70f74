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
from gingham.inference.preprocess import PreparedPhoto, Step, is_grey, on_white, open_photo, prepare_garment, prepare_plain
from gingham.models.classifier import Classifier
from gingham.runs.run import Run

GARMENTS = set(REGISTRY["fashion-mnist"].classes)
PREPARE_MODES = ("auto", "none", "photo")


@dataclass(frozen=True)
class ImagePrediction:
    """What a model says of one image file: `label` is its top class, `confidence` that class's probability, `probabilities`
    all of them by class name, and `unsure` whether the confidence is below the model's threshold. `prepared` is the
    picture that the model saw, with the steps that led to it. For a file that cannot be read `error` says why, and the
    rest is empty.
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
    """Return what a run's model says of images: files, or pictures opened with Pillow; an answer each, in order.

    `prepare` "auto" leaves a picture of the model's own size and colours alone and prepares anything else as the pictures
    were that the model has learned; "photo" prepares every one; "none" shrinks only, without keeping proportions.

        for answer in gingham.predict(gingham.load_packaged(), ["shirt.jpg"]):
            print(answer.label, answer.confidence, answer.unsure)

    Raises
        GinghamError: another `prepare`. A file that cannot be read gets an answer with its `error`.
    """
    if prepare not in PREPARE_MODES:
        raise GinghamError(f"--prepare got {prepare!r}; allowed: {', '.join(PREPARE_MODES)}")
    names = [str(image) if isinstance(image, (str, Path)) else f"picture {number}" for number, image in enumerate(images, 1)]
    results = preprocess_all(run, images, prepare)
    read = [result for result in results if isinstance(result, PreparedPhoto)]
    return to_predictions(run.model, names, results, mean_probabilities(run.model, read))


def to_predictions(
    model: Classifier, names: Sequence[str], results: Sequence[PreparedPhoto | DataError], probabilities: torch.Tensor
) -> list[ImagePrediction]:
    """Return an answer for each name: from the probabilities (M, K) of the M results that could be prepared, in their order."""
    top, labels = probabilities.max(dim=1) if len(probabilities) else (torch.empty(0), torch.empty(0))
    unsure = top < model.threshold.cpu()
    said = zip(probabilities.tolist(), top.tolist(), labels.tolist(), unsure.tolist(), strict=True)
    found = []
    for name, result in zip(names, results, strict=True):
        if not isinstance(result, PreparedPhoto):
            found.append(ImagePrediction(name, error=str(result)))
            continue
        shares, confidence, label, doubt = next(said)
        by_name = dict(zip(model.classes, shares, strict=True))
        found.append(ImagePrediction(name, model.classes[label], confidence, by_name, doubt, result))
    return found


def mean_probabilities(model: Classifier, prepared: Sequence[PreparedPhoto]) -> torch.Tensor:
    """Return a model's probabilities for prepared photographs, float32 (N, K): the mean over the framings of each."""
    if not prepared:
        return torch.empty(0, len(model.classes))
    said = model.predict(np.concatenate([one.framings for one in prepared])).probabilities
    if len(said) == len(prepared):
        return said
    parts = torch.split(said, [len(one.framings) for one in prepared])
    return torch.stack([part.mean(dim=0) for part in parts])


def preprocess_all(
    run: Run, images: Sequence[str | Path | Image.Image], way: str, *, steps: bool = True
) -> list[PreparedPhoto | DataError]:
    def one(image: str | Path | Image.Image) -> PreparedPhoto | DataError:
        try:
            prepared = preprocess(run, image if isinstance(image, Image.Image) else open_photo(Path(image)), way)
        except DataError as error:
            return error
        return prepared if steps else PreparedPhoto(prepared.framings, ())  # the steps of thousands would fill the memory

    with silence_pillow():
        if len(images) == 1:
            return [one(images[0])]
        with ThreadPoolExecutor(min(8, torch.get_num_threads())) as pool:
            return list(pool.map(one, images))


def preprocess(run: Run, photo: Image.Image, way: str = "auto") -> PreparedPhoto:
    """Return a photograph as a run's model takes it: as the pictures were made that it was trained on, each step kept.

    `photo` is what `open_photo` gives. A model of Fashion-MNIST is shown the garment, cut out, on black; any other one the
    whole picture in a square.
    """
    channels, height, width = run.model.input_shape
    grey = channels == 1
    if way == "none" or (way == "auto" and photo.size == (width, height) and is_grey(photo) == grey):
        note = "taken as it is" if photo.size == (width, height) else f"shrunk to {width}x{height}, and nothing else"
        small = on_white(photo).convert("L" if grey else "RGB").resize((width, height), Image.Resampling.BOX)
        pixels = np.asarray(small)
        picture = pixels[None] if grey else pixels.transpose(2, 0, 1)
        return PreparedPhoto(np.ascontiguousarray(picture)[None], (Step("size", note, np.asarray(small.convert("RGB"))),))
    if is_garment_model(run):
        return prepare_garment(photo, run.model.input_shape)
    background = run.data.get("background")
    return prepare_plain(photo, run.model.input_shape, background if isinstance(background, (int, float)) else None)


def is_garment_model(run: Run) -> bool:
    """Return whether a run's model knows garments, light on black, as Fashion-MNIST has them."""
    named = run.data.get("name") == "fashion-mnist" or set(run.model.classes) == GARMENTS
    return run.model.input_shape[0] == 1 and named
