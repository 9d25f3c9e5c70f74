"""Every response of the server conforms to its OpenAPI schema, for any request."""

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import gingham
from gingham.deploy import server as serving
from http_requests import FORM_HEADERS, PNG_HEADERS, encode_form, random_png

schemathesis = pytest.importorskip("schemathesis")
schemathesis.openapi.format("binary", st.sampled_from([random_png(seed) for seed in range(3)]))
app = serving.create_app(gingham.load_packaged())
schema = schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_answers_conform_to_the_schema(case):
    """Valid requests get predictions and others an error, and both responses have the form in the schema."""
    case.call_and_validate()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "request_arguments"),
    [
        (200, {"content": encode_form([("a.png", random_png()), ("b.png", random_png(1))]), "headers": FORM_HEADERS}),
        (422, {"content": encode_form([("a.png", random_png()), ("b.png", b"no image")]), "headers": FORM_HEADERS}),
        (422, {"content": b"no image", "headers": PNG_HEADERS}),
        (422, {"content": b"no form", "headers": FORM_HEADERS}),
        (422, {"files": {}, "data": {"images": "no file"}, "headers": FORM_HEADERS}),
        (413, {"content": bytes(33 << 20), "headers": PNG_HEADERS}),
        (415, {"content": b"a letter", "headers": {"content-type": "text/plain"}}),
    ],
)
def test_refusals_conform_to_the_schema(status, request_arguments):
    with TestClient(app) as client:
        response = client.post("/predict?explain=true", **request_arguments)
    assert response.status_code == status
    schema["/predict"]["POST"].validate_response(response)
