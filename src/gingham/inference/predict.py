"""Predict the classes of image files and photos."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from gingham.data.decode import is_16_bit, to_8_bit
from gingham.display import Displayable, html_text
from gingham.errors import DataError, GinghamError, require_types
from gingham.inference.garments import prepare_garment
from gingham.inference.neighbours import features
from gingham.inference.preprocess import (
    PreparedPhoto,
    is_input_like,
    least_novel,
    open_photo,
    prepare_candidates,
    resize_photo,
)
from gingham.models.classifier import Classifier, evaluation_mode
from gingham.runs.run import Run
from gingham.text import format_threshold

Images = Sequence[str | Path | Image.Image]  # files, or images opened with Pillow
NUM_SHOWN = 3  # classes of an uncertain prediction
PREPARE_MODES = ("auto", "none", "photo")


@dataclass(frozen=True, repr=False)
class ImagePrediction(Displayable):
    """The prediction for one image file: `label` is the top class, `confidence` its probability, `probabilities` those
    of all classes by name, and `unsure` whether the confidence is below the `threshold` for such an image. `novel` is
    whether the image is unlike the training images: whether its score `novelty` is above the model's threshold.
    `prepared` is the model's input with the steps that led to it. For a file that cannot be read, `error` is the reason
    and the rest is empty.
    """

    image: str
    label: str = ""
    confidence: float = 0.0
    probabilities: dict[str, float] | None = None
    threshold: float = 0.0
    unsure: bool = False
    novel: bool = False
    novelty: float = 0.0
    prepared: PreparedPhoto | None = None
    error: str | None = None

    def __str__(self) -> str:
        if self.error is not None:
            return f"{self.image}: {self.error}"
        if not (self.novel or self.unsure):
            return f"{self.image}: {self.label} ({self.confidence:.0%})"
        limit = f"below {format_threshold(self.threshold)}" if self.threshold <= 1 else "this model is never sure"
        reason = "unlike anything it was trained on" if self.novel else f"not sure ({limit})"
        best = sorted((self.probabilities or {}).items(), key=lambda pair: -pair[1])[:NUM_SHOWN]
        return f"{self.image}: {reason}; " + ", ".join(f"{name} {share:.0%}" for name, share in best)

    def plot(self) -> Any:
        """Return a figure of the prepared image and the highest probabilities."""
        from gingham.plots import draw_prediction

        if self.prepared is None or self.probabilities is None:
            raise DataError(f"there is no prediction to draw: {self.error}")
        title = "not recognised" if self.novel else f"not sure, {self.label}?" if self.unsure else self.label
        return draw_prediction(torch.tensor(self.prepared.image), self.probabilities, self.threshold, title)

    def _repr_html_(self) -> str:
        return html_text(str(self)) if self.prepared is None else super()._repr_html_()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of a prediction without the images, or `image` and `error`, as plain JSON values."""
        if self.error is not None or self.prepared is None:
            return {"image": self.image, "error": self.error}
        names = ("image", "label", "confidence", "probabilities", "threshold", "unsure", "novel", "novelty")
        values = {name: getattr(self, name) for name in names}
        return values | {"steps": [{"step": step.name, "note": step.note} for step in self.prepared.steps]}


def predict(run: Run, images: Images, prepare: str = "auto", *, keep_steps: bool = True) -> list[ImagePrediction]:
    """Return a prediction for each image, a file or an image opened with Pillow, in order.

    `prepare` "auto" uses an image of the model's own size and colours unchanged, and prepares any other as the training
    images were; "photo" prepares every image; "none" only resizes, without keeping proportions. Without `keep_steps`
    the predictions have no preprocessing steps, whose images take half a megabyte for each photo.

        for prediction in gingham.predict(gingham.load_packaged(), ["shirt.jpg"]):
            print(prediction.label, prediction.confidence, prediction.unsure, prediction.novel)

    Raises
        GinghamError: `prepare` has another value. A file that cannot be read is not an error: its prediction has an
            `error`.
    """
    require_types("predict", run=(run, Run))
    results = _prepare_images(run, images, prepare, keep_steps=keep_steps)
    prepared = [result for result in results if isinstance(result, PreparedPhoto)]
    return to_predictions(run.model, _names(images), results, score_prepared(run.model, prepared))


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
        return prepared if keep_steps else replace(prepared, steps=())

    # Once, because threads that switched the mode would disturb each other.
    with evaluation_mode(run.model), ThreadPoolExecutor(min(8, torch.get_num_threads())) as pool:
        return list(pool.map(prepare_image, images))


def to_predictions(
    model: Classifier, names: Sequence[str], results: Sequence[PreparedPhoto | DataError], scores: torch.Tensor
) -> list[ImagePrediction]:
    """Return a prediction for each name; `scores` are those of `score_prepared` for the results without an error."""
    rows = iter(scores.tolist())
    predictions = []
    for name, result in zip(names, results, strict=True):
        if isinstance(result, PreparedPhoto):
            *probabilities, novelty = next(rows)
            by_class = dict(zip(model.classes, probabilities, strict=True))
            label, confidence = max(by_class.items(), key=lambda item: item[1])
            threshold, novelty_threshold = model.thresholds(for_photos=result.is_photo)
            unsure, novel = confidence < threshold, novelty > novelty_threshold
            flags = (threshold, unsure, novel, novelty)
            predictions.append(ImagePrediction(name, label, confidence, by_class, *flags, result))
        else:
            predictions.append(ImagePrediction(name, error=str(result)))
    return predictions


def score_prepared(model: Classifier, prepared: Sequence[PreparedPhoto]) -> torch.Tensor:
    """Return a model's probabilities and novelty score for prepared photos, float32 (N, K + 1): the mean over the
    framings of each."""
    if not prepared:
        return torch.empty(0, len(model.classes) + 1)
    predictions = model.predict(np.concatenate([photo.framings for photo in prepared]))
    scores = torch.cat([predictions.probabilities, predictions.novelty[:, None]], dim=1)
    return torch.stack([rows.mean(dim=0) for rows in torch.split(scores, [len(photo.framings) for photo in prepared])])


def preprocess(run: Run, photo: Image.Image, mode: str = "auto") -> PreparedPhoto:
    """Return a photo as input for a run's model, prepared as the training images were, with every step.

    `photo` is returned by `open_photo`. For a model of Fashion-MNIST the garment is cut out and put on black; for any
    other the whole photo is fitted into a square. For a grey model there may be several ways, such as both polarities;
    the result is the one with the lowest novelty score. `mode` is one of PREPARE_MODES, as in `predict`.
    """
    if is_16_bit(photo):  # opened by the caller, without `open_photo`
        photo = to_8_bit(photo, run.grey_bits)
    model, is_input = run.model, mode != "photo" and is_input_like(photo, run.model.input_shape)
    if mode == "none":
        return resize_photo(photo, model.input_shape)
    if run.is_of_garments and not is_input:
        return prepare_garment(photo, model.input_shape)
    background = run.data.get("background") if model.novelty else None
    candidates = prepare_candidates(photo, model.input_shape, background, run.data.get("object_share"), is_input)
    if len(candidates) == 1:
        return candidates[0]
    _, novelty = model.score(torch.from_numpy(np.concatenate([candidate.framings for candidate in candidates])))
    return least_novel(candidates, novelty.tolist())
