"""Bodies that are one array: `.npy` files and raw bytes."""

import io
import struct
import tracemalloc

import numpy as np
import pytest

from formats import Signature, TensorSpec
from handlers.arrays import from_npy, from_octets, to_npy
from handlers.errors import RequestError


def signature(*inputs: TensorSpec, row_axis: bool = True) -> Signature:
    return Signature("m", "1.0", "", inputs, (TensorSpec("y", "float32", (-1,)),), row_axis)


ONE = signature(TensorSpec("x", "float32", (-1, 2)))
TWO = signature(TensorSpec("a", "float32", (-1, 2)), TensorSpec("b", "int64", (-1,)))
FREE = signature(TensorSpec("x", "int64", (-1, -1)))
WHOLE = signature(TensorSpec("x", "float32", (2, 2)), row_axis=False)


def typed(dtype, shape=(-1, 2)):
    return signature(TensorSpec("x", dtype, shape))


def npy(array, **more):
    file = io.BytesIO()
    np.save(file, array, **more)
    return file.getvalue()


def header(text, version=(1, 0)):
    data = text.encode("latin-1")
    size = struct.pack("<H" if version == (1, 0) else "<I", len(data))
    return b"\x93NUMPY" + bytes(version) + size + data


# Files.


@pytest.mark.parametrize(
    ("dtype", "target"),
    [
        ("float32", "float32"),
        (">f4", "float32"),
        ("float16", "float32"),
        ("uint8", "float32"),
        ("int16", "float32"),
        ("float32", "float64"),
        ("int32", "float64"),
        ("float32", "bfloat16"),
        ("uint8", "int64"),
        ("int32", "int64"),
        ("bool", "bool"),
        ("int8", "float16"),
    ],
)
def test_a_file_of_a_dtype_that_fits(dtype, target):
    array = np.array([[0, 1], [1, 1], [0, 0]]).astype(dtype)
    for given in (array, np.asfortranarray(array), array[::-1][::-1]):
        question = from_npy(npy(given), typed(target))
        [found] = question.arrays
        assert found.dtype == np.dtype("float32" if target == "bfloat16" else target)
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, array)
        assert (question.rows, question.single) == (3, False)


@pytest.mark.parametrize(
    ("dtype", "target"),
    [
        ("float64", "float32"),
        ("int64", "float32"),
        ("int32", "float32"),
        ("int64", "float64"),
        ("float32", "float16"),
        ("float64", "bfloat16"),
        ("float32", "int64"),
        ("int64", "int32"),
        ("uint64", "int64"),
        ("int8", "uint8"),
        ("bool", "float32"),
        ("uint8", "bool"),
    ],
)
def test_a_dtype_that_could_lose_is_refused_with_the_cast_to_make(dtype, target):
    with pytest.raises(RequestError) as caught:
        from_npy(npy(np.zeros((1, 2), dtype)), typed(target))
    assert (caught.value.code, caught.value.input) == ("wrong_datatype", "x")
    assert dtype in caught.value.message
    assert "astype(" in caught.value.expected


def test_a_file_without_the_row_axis_is_one_row():
    question = from_npy(npy(np.array([1, 2], np.float32)), ONE)
    assert question.single
    assert question.arrays[0].tolist() == [[1, 2]]
    scalars = from_npy(npy(np.array(3)), typed("int64", (-1,)))
    assert scalars.single
    assert scalars.arrays[0].tolist() == [3]
    assert from_npy(npy(np.ones((2, 2), np.float32)), WHOLE).rows == 1


def test_what_cannot_be_sent_in_json_can_be_in_a_file():
    array = np.array([[np.nan, -np.inf]], np.float32)
    assert from_npy(npy(array), ONE).arrays[0].tobytes() == array.tobytes()


def test_a_file_is_used_where_it_lies():
    body = npy(np.ones((2, 2), np.float32))
    assert np.shares_memory(from_npy(body, ONE).arrays[0], np.frombuffer(body, np.uint8))


GOOD = npy(np.ones((1, 2), np.float32))
SMALL = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }\n"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (GOOD[:-1], "wrong_size"),
        (GOOD + b"\0", "wrong_size"),
        (GOOD[:60], "not_npy"),
        (b"PK\x03\x04" + GOOD, "not_npy"),
        (b"\x93NUMPY", "not_npy"),
        (b"\x93NUMPY\x09\x00" + GOOD[8:], "not_npy"),
        (header(SMALL, (3, 0)) + b"\0" * 8, "not_npy"),
        (header("\\"), "not_npy"),
        (header("'\\d'"), "not_npy"),
        (header("(" * 4000), "not_npy"),
        (header("-" * 4000 + "1"), "not_npy"),
        (header("{'descr': '<f4'}"), "not_npy"),
        (header("__import__('os').abort()"), "not_npy"),
        (header(SMALL.replace("(1, 2)", "(1, -2)")), "not_npy"),
        (header(SMALL.replace("(1, 2)", "(True, 2)")), "not_npy"),
        (header(SMALL.replace("(1, 2)", "(1.0, 2)")), "not_npy"),
        (header(SMALL.replace("(1, 2)", f"({'9' * 3000}, 2)")), "wrong_size"),
        (header(SMALL.replace("(1, 2)", f"({'9' * 60000}, 2)")), "not_npy"),
        (header(SMALL.replace("(1, 2)", "(4611686018427387904, 2)")), "wrong_size"),
        (header(SMALL.replace("(1, 2)", "(0, 2)")), "empty_input"),
        (header(SMALL.replace("(1, 2)", "(1, 3)")) + b"\0" * 12, "wrong_shape"),
        (header(SMALL.replace("(1, 2)", "(1, 1, 2)")) + b"\0" * 8, "wrong_shape"),
        (header(SMALL.replace("<f4", "O")) + b"\0" * 16, "not_npy"),
        (header(SMALL.replace("<f4", "|V4")) + b"\0" * 8, "not_npy"),
        (header(SMALL.replace("<f4", "<U1")) + b"\0" * 8, "not_npy"),
        (header(SMALL.replace("<f4", "<c8")) + b"\0" * 16, "not_npy"),
        (header(SMALL.replace("<f4", "<M8[s]")) + b"\0" * 16, "not_npy"),
        (header(SMALL.replace("'<f4'", "[('a', '<f4')]")) + b"\0" * 8, "not_npy"),
        (header(SMALL.replace("'<f4'", "('<f4', (2,))")) + b"\0" * 16, "not_npy"),
        (npy(np.array([[None, 1]]), allow_pickle=True), "not_npy"),
        (header("#" * 60000), "not_npy"),
        (header(" " * 5000 + SMALL) + b"\0" * 8, "not_npy"),
    ],
)
def test_a_file_that_is_none_is_refused_before_anything_is_made(body, code):
    tracemalloc.start()
    try:
        with pytest.raises(RequestError) as caught:
            from_npy(body, ONE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.code == code
    assert caught.value.message.isascii()
    assert len(caught.value.message) < 5000
    assert peak < 3_000_000


def test_versions_of_the_header():
    for version in ((1, 0), (2, 0)):
        assert from_npy(header(SMALL, version) + b"\0" * 8, ONE).rows == 1


def test_bounds_hold():
    bounded = signature(TensorSpec("x", "float32", (-1, 2), 0, 1))
    for value in (2, np.nan):
        with pytest.raises(RequestError) as caught:
            from_npy(npy(np.array([[0.5, value]], np.float32)), bounded)
        assert caught.value.code == "out_of_range"


# Raw bytes.


def test_raw_bytes_take_their_shape_from_the_signature():
    x = np.arange(6, dtype="<f4")
    question = from_octets(x.tobytes(), ONE)
    assert question.arrays[0].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert (question.rows, question.single) == (3, False)
    assert from_octets(x[:4].tobytes(), WHOLE).arrays[0].tolist() == [[0, 1], [2, 3]]
    half = from_octets(b"\xc0\x3f\x00\x40", typed("bfloat16"))
    assert half.arrays[0].tolist() == [[1.5, 2]]


@pytest.mark.parametrize(
    ("body", "model", "code", "status"),
    [
        (b"\0" * 12, ONE, "wrong_size", 400),
        (b"\0" * 7, ONE, "wrong_size", 400),
        (b"", ONE, "wrong_size", 400),
        (b"\0" * 8, WHOLE, "wrong_size", 400),
        (b"\0" * 32, WHOLE, "wrong_size", 400),
        (b"\0" * 16, FREE, "unknown_shape", 400),
        (b"\0" * 8, TWO, "unsupported_media_type", 415),
        (b"\2\0", typed("bool"), "wrong_type", 400),
        (b"", typed("float32", (-1, 0)), "wrong_size", 400),
    ],
)
def test_bytes_that_make_no_input(body, model, code, status):
    with pytest.raises(RequestError) as caught:
        from_octets(body, model)
    assert (caught.value.code, caught.value.status) == (code, status)
    assert caught.value.expected


def test_several_inputs_are_told_what_to_send():
    for read in (from_npy, from_octets):
        with pytest.raises(RequestError) as caught:
            read(GOOD, TWO)
        assert caught.value.status == 415
        assert "the inputs a, b" in caught.value.message
        assert "binary tensors" in caught.value.expected


def test_an_answer_is_what_numpy_reads():
    for array in (np.ones((2, 3), np.float16), np.array(True), np.zeros((0, 2), np.int64)):
        found = np.load(io.BytesIO(to_npy(array)), allow_pickle=False)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
