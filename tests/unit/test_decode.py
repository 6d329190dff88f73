import json

import numpy as np
import pytest

from formats import Signature, TensorSpec
from handlers import jsontext
from handlers.decode import decode
from handlers.errors import RequestError


def signature(*inputs: TensorSpec, row_axis: bool = True) -> Signature:
    return Signature("m", "1.0", "", inputs, (TensorSpec("y", "float32", (-1,)),), row_axis)


ONE = signature(TensorSpec("x", "float32", (-1, 2)))
TWO = signature(TensorSpec("a", "float32", (-1, 2)), TensorSpec("b", "int64", (-1,), 0, 9))
FLAG = signature(TensorSpec("f", "bool", (-1,)))
BYTE = signature(TensorSpec("u", "uint8", (-1, 2)))
WHOLE = signature(TensorSpec("x", "float32", (2, 2)), row_axis=False)
OWN_NAME = signature(TensorSpec("inputs", "float32", (-1, 2)))


@pytest.fixture(params=["orjson", "standard library"], autouse=True)
def json_library(request, monkeypatch):
    """Run every test here with and without the faster JSON library."""
    if request.param == "standard library":
        monkeypatch.setattr(jsontext, "orjson", None)


@pytest.mark.parametrize(
    ("body", "wanted", "single", "form"),
    [
        ("[1, 2]", [[1, 2]], True, "outputs"),
        ("[[1, 2], [3, 4.5]]", [[1, 2], [3, 4.5]], False, "outputs"),
        ('{"inputs": [1, 2]}', [[1, 2]], True, "outputs"),
        ('{"inputs": {"x": [[1, 2]]}}', [[1, 2]], False, "outputs"),
        ('{"x": [1, 2]}', [[1, 2]], True, "outputs"),
        ('{"instances": [[1, 2], [3, 4]]}', [[1, 2], [3, 4]], False, "predictions"),
        ('{"instances": [{"x": [1, 2]}]}', [[1, 2]], False, "predictions"),
        ('{"inputs": [1, 2], "id": "kept for later"}', [[1, 2]], True, "outputs"),
    ],
)
def test_every_form_of_one_input(body, wanted, single, form):
    question = decode(body.encode(), ONE)
    assert question.arrays[0].dtype == np.float32
    assert question.arrays[0].tolist() == wanted
    assert (question.single, question.form) == (single, form)
    assert question.rows == len(wanted)


def test_several_inputs_by_name():
    for body in (
        {"inputs": {"b": [3, 4], "a": [[1, 2], [3, 4]]}},
        {"a": [[1, 2], [3, 4]], "b": [3, 4]},
        {"instances": [{"a": [1, 2], "b": 3}, {"a": [3, 4], "b": 4}]},
    ):
        a, b = decode(json.dumps(body).encode(), TWO).arrays
        assert a.tolist() == [[1, 2], [3, 4]]
        assert b.tolist() == [3, 4]
        assert b.dtype == np.int64
    single = decode(b'{"a": [1, 2], "b": 3}', TWO)
    assert single.single
    assert [array.shape for array in single.arrays] == [(1, 2), (1,)]


def test_an_input_may_bear_the_name_of_a_key_of_the_protocol():
    assert decode(b'{"inputs": [1, 2]}', OWN_NAME).arrays[0].shape == (1, 2)
    assert decode(b'{"inputs": {"inputs": [1, 2]}}', OWN_NAME).arrays[0].shape == (1, 2)


def test_other_dtypes():
    assert decode(b"[true, false]", FLAG).arrays[0].tolist() == [True, False]
    assert decode(b"[0, 255]", BYTE).arrays[0].dtype == np.uint8
    assert decode(b"[[1, 2], [3, 4]]", WHOLE).rows == 1


@pytest.mark.parametrize(
    ("spec", "body", "code", "words"),
    [
        (ONE, "", "empty_body", "no body"),
        (ONE, "  ", "empty_body", "no body"),
        (ONE, "{", "not_json", "not JSON"),
        (ONE, "[1, NaN]", "not_json", "NaN"),
        (ONE, "[1, -Infinity]", "not_json", "Infinity"),
        (ONE, "\xff", "not_json", "not JSON"),
        (ONE, "[" * 100_000, "wrong_shape", "too deeply"),
        (ONE, "[" * 900 + "1" + "]" * 900, "wrong_shape", "nested"),
        (ONE, "[" * 100 + "1" + "]" * 100, "wrong_shape", "nested 100 deep"),
        (ONE, "[" * 1000 + "true" + "]" * 1000, "wrong_shape", "nested"),
        (ONE, "[1, 1e999]", "out_of_range", "[1]"),
        (ONE, "[1, 1e39]", "out_of_range", "float32"),
        (ONE, "[]", "empty_input", "empty"),
        (ONE, "[[]]", "empty_input", "empty"),
        (ONE, '{"instances": []}', "empty_input", "at least one row"),
        (ONE, "[1, null]", "wrong_type", "[1] is null"),
        (ONE, '[1, "2"]', "wrong_type", "[1] is the string '2'"),
        (ONE, "[1.5, true]", "wrong_type", "[1] is true"),
        (ONE, "[[1, 2], [true, 2.5]]", "wrong_type", "[1][0] is true"),
        (ONE, "null", "wrong_type", "null"),
        (ONE, '"text"', "wrong_type", "the string"),
        (ONE, '{"inputs": [[1, 2], [3]]}', "ragged", "ragged"),
        (ONE, "[1, 2, 3]", "wrong_shape", "[3]"),
        (ONE, "[[[1, 2]]]", "wrong_shape", "[1, 1, 2]"),
        (ONE, "5", "wrong_shape", "[]"),
        (ONE, "{}", "missing_input", "'x'"),
        (ONE, '{"inputs": {"x": [1, 2], "z\\ud800": 1}}', "unknown_input", "z"),
        (TWO, "[1, 2]", "missing_input", "2 inputs"),
        (TWO, '{"inputs": {"a": [1, 2]}}', "missing_input", "'b'"),
        (TWO, '{"instances": [{"a": [1, 2]}]}', "missing_input", "row 0"),
        (TWO, '{"instances": [[1, 2]]}', "wrong_type", "row 0"),
        (TWO, '{"a": [1, 2], "b": 2.0}', "wrong_type", "2.0"),
        (TWO, '{"a": [1, 2], "b": 10}', "out_of_range", "outside [0, 9]"),
        (TWO, '{"a": [1, 2], "b": -1}', "out_of_range", "-1"),
        (TWO, '{"a": [1, 2], "b": 9223372036854775808}', "out_of_range", "int64"),
        (TWO, '{"a": [1, 2], "b": 99999999999999999999}', "wrong_type", "b"),
        (TWO, '{"a": [[1, 2], [3, 4]], "b": [1]}', "wrong_shape", "numbers of rows"),
        (TWO, '{"a": [[1, 2]], "b": 1}', "wrong_shape", "row axis left out"),
        (BYTE, "[0, 256]", "out_of_range", "uint8"),
        (FLAG, "[1, 0]", "wrong_type", "true or false"),
        (WHOLE, '{"instances": [[1, 2]]}', "no_rows", "rows"),
        (WHOLE, "[1, 2]", "wrong_shape", "[2]"),
    ],
)
def test_a_bad_request_is_told_what_was_wrong(spec, body, code, words):
    with pytest.raises(RequestError) as caught:
        decode(body.encode("latin-1"), spec)
    error = caught.value
    assert error.code == code
    assert error.status == 400
    assert words in error.message + str(error.expected)
    # Whatever was sent, the answer can be written.
    assert json.loads(jsontext.dumps(error.to_json()))["error"]["code"] == code


def test_json_writers_agree_on_what_is_not_finite():
    value = {"a": np.array([1.5, np.nan, np.inf], np.float32), "b": [float("nan"), np.array(2)]}
    assert json.loads(jsontext.dumps(value)) == {"a": [1.5, None, None], "b": [None, 2]}
