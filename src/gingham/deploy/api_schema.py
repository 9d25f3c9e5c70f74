"""The schemas of the HTTP API, for its OpenAPI documentation."""

from typing import Any

from pydantic import BaseModel


class Step(BaseModel):
    """One step of the preparation. With `explain`, `picture` is the image after the step: a PNG as a data URL."""

    step: str
    note: str
    picture: str | None = None


class Neighbour(BaseModel):
    """A training image (a PNG as a data URL) and its class."""

    label: str
    picture: str


class Explanation(BaseModel):
    """What the prediction is based on.

    `moved` is an occlusion map, row by row: how much the probability of the predicted class drops when a square of the
    image is hidden. `neighbours` are the most similar of `among` training images.
    """

    moved: list[list[float]]
    among: int
    neighbours: list[Neighbour]


class Prediction(BaseModel):
    """The prediction for one image. An image that cannot be read has only `image` and `error`.

    `unsure` is whether the confidence is below `threshold`, which may differ between photos and other images. `novel`
    is whether the image is unlike the training images, and `novelty` the score by which this is decided; higher means
    less like them.
    """

    image: str
    label: str
    confidence: float
    probabilities: dict[str, float]
    threshold: float
    unsure: bool
    novel: bool
    novelty: float
    steps: list[Step]
    explanation: Explanation | None = None


class Predictions(BaseModel):
    """One prediction per image, in the order of the request."""

    predictions: list[Prediction]


class Refusal(BaseModel):
    """What was received, what is allowed and what to do. If some images could be read, also all predictions."""

    error: str
    predictions: list[dict[str, Any]] | None = None


class Health(BaseModel):
    """The status of the server: `ok`."""

    status: str


PREDICT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": Predictions, "description": "all images are classified"},
    408: {"model": Refusal, "description": "the body arrived too slowly"},
    413: {"model": Refusal, "description": "too many bytes or images"},
    415: {"model": Refusal, "description": "the body is neither a form nor an image"},
    422: {"model": Refusal, "description": "an image cannot be read (others are classified), or the form is malformed"},
    503: {"model": Refusal, "description": "too many bytes in all requests, or the server is shutting down"},
}
_FILE = {"type": "string", "format": "binary"}
_FILES = {"type": "array", "items": _FILE, "minItems": 1}
_FORM = {"type": "object", "properties": {"images": _FILES}, "required": ["images"]}
_SCHEMAS = {"multipart/form-data": _FORM} | {
    f"image/{kind}": _FILE for kind in ("jpeg", "png", "webp", "bmp", "gif", "tiff", "avif", "heic")
}
PREDICT_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {kind: {"schema": schema} for kind, schema in _SCHEMAS.items()}}
}
