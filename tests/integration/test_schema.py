"""The running server is what its own /openapi.json says: schemathesis makes the requests.

A few of each operation, the same every time; `scripts/fuzz schema` makes new ones, and more.
"""

import io
import json
import os
import shutil

import numpy as np
import pytest
import schemathesis
from hypothesis import event, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    AcceptedNegativeData,
    negative_data_rejection,
    positive_data_acceptance,
)

from tests.conftest import ROOT
from tests.errors import told

pytestmark = pytest.mark.skipif(
    "VITRINE_URL" not in os.environ and shutil.which("haproxy") is None,
    reason="no haproxy: without the front there is no /openapi.json",
)
PATHS = json.loads((ROOT / "docs" / "openapi.json").read_text())["paths"]
OPERATIONS = [(method, path) for path, item in PATHS.items() for method in item]
PICTURE = (ROOT / "docs" / "images" / "seven.png").read_bytes()


def npy(*shape):
    file = io.BytesIO()
    np.save(file, np.ones(shape, np.float32))
    return file.getvalue()


for media_type, bodies in {
    "application/octet-stream": [bytes(64), bytes(256), bytes(257)],
    "application/x-npy": [npy(2, 8, 8), npy(16), npy(2, 10), npy()],
    "image/png": [PICTURE, PICTURE[:-9]],
    "image/jpeg": [PICTURE],
}.items():
    schemathesis.openapi.media_type(media_type, st.sampled_from(bodies) | st.binary(max_size=300))


@pytest.fixture(scope="module")
def described(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def form(context, response, case):
    """Errors have their path's form, also where the request was bent to another path or method."""
    if response.status_code >= 400 and "ready" not in response.json():
        told(response.request.url, response.json())


def refused(context, response, case):
    """What does not fit is refused, but what float32 rounds to a bound is that bound."""
    try:
        return negative_data_rejection(context, response, case)
    except AcceptedNegativeData as accepted:
        if "violates `maximum`" in str(accepted) or "violates `minimum`" in str(accepted):
            return None
        raise


def test_the_operations_asked_below_are_those_of_the_server(described):
    assert described.raw_schema["paths"] == PATHS


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
@settings(max_examples=settings().max_examples // 15)
@given(data=st.data())
def test_every_answer_is_as_documented(described, method, path, data):
    mode = data.draw(st.sampled_from(GenerationMode))
    case = data.draw(described[path][method].as_strategy(mode))
    answer = case.call_and_validate(
        timeout=30,
        additional_checks=[form, refused],
        # A schema cannot say that a shape and the number of values agree, or what a header holds.
        excluded_checks=[positive_data_acceptance, negative_data_rejection],
    )
    event(f"{mode.value} {answer.status_code}")
