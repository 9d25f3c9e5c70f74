"""Predict the classes of image files and photos."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from gingham.data.decode import is_16_bit, to_8_bit
from gingham.data.registry import REGISTRY
from gingham.errors import DataError, GinghamError, require_types
from gingham.inference.neighbours import features
from gingham.inference.preprocess import PreparedPhoto, open_photo, prepare_garment, prepare_plain, resize_photo
from gingham.models.classifier import Classifier
from gingham.runs.run import Run

GARMENTS = set(REGISTRY["fashion-mnist"].classes)
Images = Sequence[str | Path | Image.Image]  # files, or images opened with Pillow
PREPARE_MODES = ("auto", "none", "photo")


@dataclass(frozen=True)
class ImagePrediction:
    """The prediction for one image file: `label` is the top class, `confidence` its probability, `probabilities` those
    of all classes by name, and `unsure` whether the confidence is below the model's threshold. `prepared` is the
    model's input with the steps that led to it. For a file that cannot be read, `error` is the reason and the rest is
    empty.
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
        values = {name: getattr(self, name) for name in ("image", "label", "confidence", "probabilities", "unsure")}
        return values | {"steps": [{"step": step.name, "note": step.note} for step in self.prepared.steps]}


def predict(run: Run, images: Images, prepare: str = "auto", *, keep_steps: bool = True) -> list[ImagePrediction]:
    """Return a prediction for each image, a file or an image opened with Pillow, in order.

    `prepare` "auto" uses an image of the model's own size and colours unchanged, and prepares any other as the training
    images were; "photo" prepares every image; "none" only resizes, without keeping proportions. Without `keep_steps`
    the predictions have no preprocessing steps, whose images take half a megabyte for each photo.

        for prediction in gingham.predict(gingham.load_packaged(), ["shirt.jpg"]):
            print(prediction.label, prediction.confidence, prediction.unsure)

    Raises
        GinghamError: `prepare` has another value. A file that cannot be read is not an error: its prediction has an
            `error`.
    """
    require_types("predict", run=(run, Run))
    results = _prepare_images(run, images, prepare, keep_steps=keep_steps)
    prepared = [result for result in results if isinstance(result, PreparedPhoto)]
    return to_predictions(run.model, _names(images), results, mean_probabilities(run.model, prepared))


def embed(run: Run, images: Images, prepare: str = "auto") -> tuple[npt.NDArray[np.float32], list[str], list[str]]:
    """Return the features of images, float32 (N, D), with their names, and the errors of the files left out.

    The features are the inputs of the network's last linear layer. Images that it treats as similar have similar ones.
    The arguments are those of `predict`.

        features, names, errors = gingham.embed(run, ["shirt.jpg", "coat.jpg"])
    """
    require_types("embed", run=(run, Run))
    results = _prepare_images(run, images, prepare, keep_steps=False)
    pairs = zip(_names(images), results, strict=True)
    found = [(name, photo) for name, photo in pairs if isinstance(photo, PreparedPhoto)]
    rows = [features(run.model, torch.tensor(photo.framings)).mean(dim=0) for _, photo in found]
    array = torch.stack(rows).numpy() if rows else np.empty((0, 0), np.float32)
    return array, [name for name, _ in found], [str(error) for error in results if isinstance(error, DataError)]


def _names(images: Images) -> list[str]:
    return [f"image {k}" if isinstance(image, Image.Image) else str(image) for k, image in enumerate(images, 1)]


def _prepare_images(run: Run, images: Images, prepare: str, *, keep_steps: bool) -> list[PreparedPhoto | DataError]:
    """Return each image prepared as the model's input, in threads, or its error."""
    if prepare not in PREPARE_MODES:
        raise GinghamError(f"prepare got {prepare!r}; allowed: {', '.join(PREPARE_MODES)}")

    def prepare_image(image: str | Path | Image.Image) -> PreparedPhoto | DataError:
        try:
            photo = image if isinstance(image, Image.Image) else open_photo(Path(image), grey_bits=run.grey_bits)
            prepared = preprocess(run, photo, prepare)
        except DataError as error:
            return error
        return prepared if keep_steps else PreparedPhoto(prepared.framings, ())

    with ThreadPoolExecutor(min(8, torch.get_num_threads())) as pool:
        return list(pool.map(prepare_image, images))


def to_predictions(
    model: Classifier, names: Sequence[str], results: Sequence[PreparedPhoto | DataError], probabilities: torch.Tensor
) -> list[ImagePrediction]:
    """Return a prediction for each name; `probabilities` (M, K) are those of the results without an error, in order."""
    rows = iter(probabilities.tolist())
    threshold = float(model.threshold)
    predictions = []
    for name, result in zip(names, results, strict=True):
        if isinstance(result, PreparedPhoto):
            by_class = dict(zip(model.classes, next(rows), strict=True))
            label, confidence = max(by_class.items(), key=lambda item: item[1])
            predictions.append(ImagePrediction(name, label, confidence, by_class, confidence < threshold, result))
        else:
            predictions.append(ImagePrediction(name, error=str(result)))
    return predictions


def mean_probabilities(model: Classifier, prepared: Sequence[PreparedPhoto]) -> torch.Tensor:
    """Return a model's probabilities for prepared photos, float32 (N, K): the mean over the framings of each."""
    if not prepared:
        return torch.empty(0, len(model.classes))
    probabilities = model.predict(np.concatenate([photo.framings for photo in prepared])).probabilities
    by_photo = torch.split(probabilities, [len(photo.framings) for photo in prepared])
    return torch.stack([rows.mean(dim=0) for rows in by_photo])


def preprocess(run: Run, photo: Image.Image, mode: str = "auto") -> PreparedPhoto:
    """Return a photo as input for a run's model, prepared as the training images were, with every step.

    `photo` is returned by `open_photo`. For a model of Fashion-MNIST the garment is cut out and put on black; for any
    other the whole photo is fitted into a square. `mode` is one of PREPARE_MODES, as in `predict`.
    """
    if is_16_bit(photo):  # opened by the caller, without `open_photo`
        photo = to_8_bit(photo, run.grey_bits)
    channels, height, width = run.model.input_shape
    is_model_input = photo.size == (width, height) and _is_grey(photo) == (channels == 1)
    if mode == "none" or (mode == "auto" and is_model_input):
        return resize_photo(photo, run.model.input_shape)
    if is_garment_model(run):
        return prepare_garment(photo, run.model.input_shape)
    return prepare_plain(photo, run.model.input_shape, run.data.get("background"))


def _is_grey(image: Image.Image) -> bool:
    pixels = np.asarray(image.convert("RGB"))
    return bool((pixels == pixels[..., :1]).all())


def is_garment_model(run: Run) -> bool:
    """Return whether a run's model classifies garments that are light on black, as in Fashion-MNIST."""
    is_fashion = run.data.get("name") == "fashion-mnist" or set(run.model.classes) == GARMENTS
    return run.model.input_shape[0] == 1 and is_fashion
