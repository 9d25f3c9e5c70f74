"""The schemas of the HTTP API, as its documentation shows them."""

from typing import Any

from pydantic import BaseModel


class Step(BaseModel):
    """One step of a preparation, in words; with `explain`, the picture after it as a PNG in a data URL."""

    step: str
    note: str
    picture: str | None = None


class Neighbour(BaseModel):
    """A training picture, and its class."""

    label: str
    picture: str


class Explanation(BaseModel):
    """Why: what is lost of the probability while a place is hidden, by rows, and the training pictures most like it, of how many."""

    moved: list[list[float]]
    among: int
    neighbours: list[Neighbour]


class Prediction(BaseModel):
    """What the model says of one picture; `image` and `error` alone where it could not be read."""

    image: str
    label: str
    confidence: float
    probabilities: dict[str, float]
    unsure: bool
    steps: list[Step]
    explanation: Explanation | None = None


class Predictions(BaseModel):
    """An entry a picture, in the order they were sent."""

    predictions: list[Prediction]


class Refusal(BaseModel):
    """What was got, what is allowed, what to do. The pictures of the request that could be read are answered beside it."""

    error: str
    predictions: list[dict[str, Any]] | None = None


class Health(BaseModel):
    """That the server answers."""

    status: str


PREDICT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": Predictions, "description": "every picture is answered"},
    408: {"model": Refusal, "description": "the body came too slowly"},
    413: {"model": Refusal, "description": "too many bytes or pictures"},
    415: {"model": Refusal, "description": "no form and no picture"},
    422: {"model": Refusal, "description": "some pictures cannot be read; the others are answered"},
    503: {"model": Refusal, "description": "too much at once"},
}
PREDICT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
            **{
                kind: {"schema": {"type": "string", "format": "binary"}}
                for kind in ("image/jpeg", "image/png", "image/webp")
            },
        },
    }
}
