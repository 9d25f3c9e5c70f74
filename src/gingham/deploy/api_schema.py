"""The schemas of the HTTP API, as its documentation shows them."""

from typing import Any

from pydantic import BaseModel


class Step(BaseModel):
    """One step of the preparation; with `explain`, `picture` is the picture after it, a PNG in a data URL."""

    step: str
    note: str
    picture: str | None = None


class Neighbour(BaseModel):
    """A training picture and its class."""

    label: str
    picture: str


class Explanation(BaseModel):
    """`moved`: how much the probability drops while a place is hidden, by rows. `neighbours`: the training pictures
    most like it, out of `among`."""

    moved: list[list[float]]
    among: int
    neighbours: list[Neighbour]


class Prediction(BaseModel):
    """The prediction for one picture; only `image` and `error` if it could not be read."""

    image: str
    label: str
    confidence: float
    probabilities: dict[str, float]
    unsure: bool
    steps: list[Step]
    explanation: Explanation | None = None


class Predictions(BaseModel):
    """One entry per picture, in the order in which they were sent."""

    predictions: list[Prediction]


class Refusal(BaseModel):
    """What was given, what is allowed, what to do; and the predictions for the pictures that could be read."""

    error: str
    predictions: list[dict[str, Any]] | None = None


class Health(BaseModel):
    """The server answers."""

    status: str


PREDICT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": Predictions, "description": "every picture is answered"},
    408: {"model": Refusal, "description": "the body came too slowly"},
    413: {"model": Refusal, "description": "too many bytes or pictures"},
    415: {"model": Refusal, "description": "no form and no picture"},
    422: {"model": Refusal, "description": "some pictures cannot be read; the others are answered"},
    503: {"model": Refusal, "description": "too much at once"},
}
_FILE = {"type": "string", "format": "binary"}
_FILES = {"type": "array", "items": _FILE, "minItems": 1}
_FORM = {"type": "object", "properties": {"images": _FILES}, "required": ["images"]}
_SCHEMAS = {"multipart/form-data": _FORM, "image/jpeg": _FILE, "image/png": _FILE, "image/webp": _FILE}
PREDICT_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {kind: {"schema": schema} for kind, schema in _SCHEMAS.items()}}
}
