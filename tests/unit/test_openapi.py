"""The OpenAPI document: valid, true to the signatures, and the one in docs/."""

import json
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from formats.datatypes import DATATYPES
from formats.error import error_to_json
from formats.signature import Signature, TensorSpec
from server.__main__ import main
from server.archives import read_archive
from server.catalog import Catalog, Served, read_served
from server.openapi import document
from server.security import with_keys
from tests.conftest import ROOT
from tests.errors import is_oip

EXAMPLES = ("activation_mlp", "control_flow", "dann", "digits")
PAGE = ROOT / "docs" / "openapi.json"
LIMIT = 1_000_000
TWO = Signature(
    model="two",
    model_version="2.0",
    description="",
    inputs=(
        TensorSpec("a", "int64", (-1, 2), minimum=0, maximum=9),
        TensorSpec("b", "bool", (-1,)),
    ),
    outputs=(TensorSpec("y", "float16", (-1,)), TensorSpec("z", "bfloat16", (-1, 3))),
    row_axis=True,
)
WHOLE = Signature("whole", "1.0", "", (TensorSpec("x", "uint8", (-1, 3)),), TWO.outputs, False)


@pytest.fixture(scope="module")
def catalog(exported):
    return Catalog(read_served(read_archive(exported(name).archive)) for name in EXAMPLES)


@pytest.fixture(scope="module")
def examples(catalog):
    return document(catalog, 16_777_216)


def fits(whole, name, value):
    schema = {"$ref": f"#/components/schemas/{name}", "components": whole["components"]}
    return jsonschema.Draft202012Validator(schema).is_valid(value)


def test_the_page_in_docs_is_this_document(examples):
    """`python -m server openapi -o docs/openapi.json` writes it anew."""
    assert json.loads(PAGE.read_text()) == json.loads(json.dumps(examples))


def test_the_document_is_valid(examples):
    OpenAPIV31SpecValidator(examples).validate()
    others = [Served("two", "2.0", TWO), Served("whole", "1.0", WHOLE), Served("foreign", "1.0")]
    OpenAPIV31SpecValidator(document(Catalog(others), LIMIT)).validate()


def test_where_keys_are_asked_for_the_document_says_so(examples):
    whole = with_keys(examples)
    OpenAPIV31SpecValidator(whole).validate()
    assert "security" not in examples
    for path, methods in whole["paths"].items():
        is_open = path == "/ping" or path.startswith("/v2/health/")
        for operation in methods.values():
            assert (operation.get("security") == []) == is_open
            assert ({"401", "403"} <= set(operation["responses"])) == (not is_open)
            for status in {"401", "403"} & set(operation["responses"]):
                name = operation["responses"][status]["$ref"].rpartition("/")[2]
                schema = whole["components"]["responses"][name]["content"]["application/json"]
                form = "OipError" if is_oip(path) else "Error"
                assert schema == {"schema": {"$ref": f"#/components/schemas/{form}"}}


def test_every_sample_fits_and_what_is_out_of_bounds_does_not(catalog, examples):
    for served in catalog.defaults():
        assert fits(examples, f"{served.name}.request", served.sample)
        post = examples["paths"][f"/predictions/{served.name}"]["post"]
        assert post["requestBody"]["content"]["application/json"]["example"] == served.sample
    image = np.zeros((8, 8))
    assert fits(examples, "digits.request", image.tolist())
    assert fits(examples, "digits.request", {"instances": [image.tolist()] * 3})
    image[0, 0] = 17
    assert not fits(examples, "digits.request", image.tolist())
    assert not fits(examples, "digits.request", {"inputs": image[:7].tolist()})


def test_errors_have_the_form_of_their_path(examples):
    for path, operations in examples["paths"].items():
        for operation in operations.values():
            refs = [
                answer["$ref"] for answer in operation["responses"].values() if "$ref" in answer
            ]
            for ref in refs:
                assert is_oip(path) == ref.startswith("#/components/responses/Oip"), (path, ref)
    for flat, name in ((False, "Error"), (True, "OipError")):
        error = error_to_json("wrong_shape", "no", input="x", expected="y", flat=flat)
        assert fits(examples, name, error)
        assert not fits(examples, "Error" if flat else "OipError", error)
        answer = examples["components"]["responses"]["OipNotFound" if flat else "NotFound"]
        schema = answer["content"]["application/json"]["schema"]
        assert schema == {"$ref": f"#/components/schemas/{name}"}


ROW = {"a": [1, 2], "b": True}


@pytest.mark.parametrize(
    ("value", "right"),
    [
        (ROW, True),
        ({"inputs": ROW}, True),
        ({"inputs": {"a": [[1, 2], [3, 4]], "b": [True, False]}}, True),
        ({"instances": [ROW, ROW]}, True),
        ({"instances": []}, False),
        ({"inputs": {"a": [], "b": []}}, False),
        ({"a": [1, 2]}, False),
        ({"a": [1, 10], "b": True}, False),
        ({"a": [1, 2.5], "b": True}, False),
        ({"a": [1, 2], "b": 1}, False),
        ([[1, 2]], False),
    ],
)
def test_requests_of_two_inputs(value, right):
    whole = document(Catalog([Served("two", "2.0", TWO)]), LIMIT)
    assert fits(whole, "two.request", value) is right


@pytest.mark.parametrize(
    ("shape", "right"),
    [([1, 2], True), ([9, 2], True), ([0, 2], False), ([1, 3], False), ([2], False)],
)
def test_shapes_in_the_protocol(shape, right):
    whole = document(Catalog([Served("two", "2.0", TWO)]), LIMIT)
    inputs = [
        {"name": "a", "datatype": "INT64", "shape": shape, "data": [1, 2]},
        {"name": "b", "datatype": "BOOL", "shape": [1], "data": [True]},
    ]
    assert fits(whole, "two.infer.request", {"inputs": inputs}) is right


def test_bytes_sent_to_infer_may_be_answered_as_an_array(examples):
    answers = examples["paths"]["/v2/models/digits/infer"]["post"]["responses"]["200"]["content"]
    names = [
        one["$ref"].rpartition("/")[2] for one in answers["application/json"]["schema"]["anyOf"]
    ]
    assert names == ["digits.infer.answer", "digits.answer"]


def test_answers_of_two_outputs():
    whole = document(Catalog([Served("two", "2.0", TWO), Served("whole", "1.0", WHOLE)]), LIMIT)
    row = {"y": 0.5, "z": [1, None, 3]}
    assert fits(whole, "two.answer", {"outputs": row})
    assert fits(whole, "two.answer", {"predictions": [row]})
    assert not fits(whole, "two.answer", {"outputs": {"y": "1", "z": [1, 2, 3]}})
    assert fits(whole, "whole.answer", {"outputs": {"y": [1], "z": [[1, 2, 3]]}})
    assert not fits(whole, "whole.request", {"instances": [[1, 2, 3]]})


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        ("float32", "FP32"),
        ("float16", "FP16"),
        ("bfloat16", "BF16"),
        ("float64", "FP64"),
        ("bool", "BOOL"),
        ("int8", "INT8"),
        ("uint8", "UINT8"),
        ("int64", "INT64"),
    ],
)
def test_datatypes_of_the_protocol(dtype, name):
    assert DATATYPES[dtype] == name


def test_versions_have_types_of_their_own_and_the_default_may_be_any():
    former = replace(TWO, model_version="1.0", inputs=TWO.inputs[:1])
    catalog = Catalog([Served("two", "1.0", former), Served("two", "2.0", TWO)])
    whole = document(catalog, LIMIT)
    OpenAPIV31SpecValidator(whole).validate()
    assert {"/predictions/two", "/predictions/two/1.0", "/v2/models/two/versions/2.0/infer"} <= set(
        whole["paths"]
    )
    one = {"inputs": {"a": [[1, 2]]}}
    assert fits(whole, "two-1.0.request", one)
    assert not fits(whole, "two-2.0.request", one)
    assert fits(whole, "two.request", one)
    switched = document(catalog, LIMIT, [Served("two", "2.0", TWO)])
    assert not fits(switched, "two.request", one)


def test_the_command_writes_the_document_of_a_store(exported, tmp_path, capsys):
    store = exported("digits").archive.parent
    arguments = ["openapi", "--model-store", str(store), "--models", "digits"]
    assert main([*arguments, "-o", str(tmp_path / "o.json")]) == 0
    written = json.loads((tmp_path / "o.json").read_text())
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == written
    assert "/v2/models/digits/infer" in written["paths"]
    assert main(["openapi", "--model-store", str(store), "--models", "nobody"]) == 2
