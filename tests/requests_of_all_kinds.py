"""Hypothesis strategies: requests that are right, nearly right, and nothing of the kind."""

import gzip
import io
import json
import struct
import zlib

import numpy as np
from hypothesis import strategies as st

from handlers.service import Request

LENGTH = "inference-header-content-length"
WORDS = [
    "inputs", "instances", "x", "a", "b", "y", "sum", "even", "name", "shape", "datatype", "data",
    "parameters", "binary_data_size", "binary_data", "binary_data_output", "raw", "outputs", "id",
    "FP32", "FP64", "INT64", "BOOL", "BYTES", "BF16", "activations/relu", "activations/*",
    "activations/[", "classification", "shared_memory_region", "",
    ":", "\ud800", "[METRICS]", "\r\n",
]  # fmt: skip
NUMBERS = [
    0, 1, -1, 2, 3, 4, 8, 9, 10, 16, 255, 2**31, 2**53 + 1, 2**62, 2**63 - 1, 2**63, -(2**63),
    2**64, 10**30, 0.5, 1e38, 1e39, 1e308, -0.0, 5e-324,
]  # fmt: skip
HEADERS = {
    "content-type": [
        "", "application/json", "application/json; charset=utf-16", "application/x-npy",
        "application/octet-stream", "application/x-npz", "text/plain", "[METRICS]", "\u00fc",
    ],
    "content-encoding": ["", "identity", "gzip", "deflate", "br", "gzip, gzip", "\u00fc"],
    "accept": [
        "", "*/*", "application/json", "application/x-npy", "application/octet-stream", "image/png",
        "application/*;q=0.5, application/x-npy", "application/json;q=0", ";;q=,", "\r\n",
        "*/*;q=9",
    ],
    "accept-encoding": ["", "gzip", "*;q=0", "gzip;q=0", "\u00fc"],
    "x-activations": [
        "", "stats", "raw", "raw; layers=relu", "stats; layers=*", "stats; layers=[",
        "raw; layers=,",
        "stats; layers=" + "*a" * 200, "[METRICS]\n", "\u00fc",
    ],
    "traceparent": ["00-1-2-01", "a\r\nset-cookie: b", "x" * 9000, "\u00fc"],
    "x-correlation-id": ["mine", "\r\n[PID]1", "x" * 9000],
    "x-vitrine-errors": ["string", "object", ""],
    "describe": ["True"],
    "explain": ["True"],
    "x-explain": [
        "", "saliency", "integrated_gradients; steps=2", "gradient_flow", "saliency; target=[1, 0]",
        "saliency; target=[[[", "input_x_gradient; target=\"a\"; layers=*",
        "saliency; target=1e999",
        "saliency; baseline=-1e39; steps=1", "integrated_gradients; baseline=1e38", "[METRICS];;",
        "saliency; target=" + "[" * 9000, "saliency; steps=" + "9" * 5000, "\u00fc",
    ],
    LENGTH: ["", "0", "1", "-1", "99999999", "9" * 30, "1.0", "\u0661", " 5 ", "[PID]"],
}  # fmt: skip

names = st.sampled_from(WORDS)
numbers = st.sampled_from(NUMBERS) | st.integers(-3, 12) | st.floats(width=32, allow_nan=False)
scalars = st.none() | st.booleans() | numbers | names | st.text(max_size=5)
flags = st.sampled_from([True, True, False, None, 1, "true"])
flat = st.lists(st.integers(0, 9) | st.floats(-9, 9, width=16), max_size=6)
documents = st.recursive(
    scalars | flat | st.lists(flat, max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def arrays(draw, dtype, shape):
    """Draw an array without regard for its values."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    values = rng.normal(size=shape) if np.dtype(dtype).kind == "f" else rng.integers(0, 9, shape)
    array = values.astype(dtype)
    if array.size and array.dtype.kind == "f" and draw(st.booleans()):
        array.flat[0] = draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -0.0]))
    return array


@st.composite
def entries(draw, array, name, datatype):
    """Draw an entry of the protocol and the bytes behind it, now and then with a wrong field."""
    entry = {"name": name, "shape": list(array.shape), "datatype": datatype}
    raw = b""
    if draw(st.booleans()):
        raw = array.tobytes()
        entry["parameters"] = {"binary_data_size": len(raw)}
    else:
        entry["data"] = np.nan_to_num(array).ravel().tolist()
    if draw(st.integers(0, 9)) == 0:
        entry[draw(st.sampled_from(sorted(entry)))] = draw(documents)
    return entry, raw


@st.composite
def protocol(draw, tensors):
    """Draw a request of the Open Inference Protocol."""
    drawn = [draw(entries(array, name, datatype)) for name, datatype, array in tensors]
    document = {"inputs": [entry for entry, _ in drawn]}
    if draw(st.booleans()):
        document["parameters"] = {"binary_data_output": draw(flags)}
    if draw(st.integers(0, 3)) == 0:
        document["outputs"] = draw(
            st.lists(requested(), max_size=3) | st.lists(requested(), max_size=1) | documents
        )
    if draw(st.integers(0, 3)) == 0:
        document["id"] = draw(st.text() | names | scalars)
    start = json.dumps(document).encode()
    headers = {LENGTH: str(len(start))} if draw(st.integers(0, 9)) else {}
    return start + b"".join(raw for _, raw in drawn), headers


@st.composite
def requested(draw):
    """Draw an entry among the outputs that are asked for."""
    keys = st.sampled_from(["binary_data", "raw", "classification"])
    parameters = draw(st.dictionaries(keys, flags, max_size=2))
    own = st.sampled_from(["y", "sum", "even", "activations/relu"])
    return {"name": draw(own | own | names), "parameters": parameters}


@st.composite
def files(draw, array):
    """Draw a `.npy` file, or one with a header of its own making."""
    if draw(st.integers(0, 3)):
        file = io.BytesIO()
        np.save(file, array if draw(st.booleans()) else np.asfortranarray(array))
        return file.getvalue()
    descr = draw(st.sampled_from(["'<f4'", "'>i8'", "'O'", "'|b1'", "[('a', '<f4')]", "'<U9'"]))
    shape = draw(st.lists(numbers, max_size=3))
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {tuple(shape)}, }}\n".encode()
    version = draw(st.sampled_from([b"\1\0", b"\2\0", b"\3\0", b"\0\0"]))
    size = struct.pack("<H" if version == b"\1\0" else "<I", len(text))
    return b"\x93NUMPY" + version + size + text + draw(st.binary(max_size=32))


@st.composite
def damaged(draw, body):
    """Change a few bytes of a body."""
    body = bytearray(body)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(body)))
        kind = draw(st.sampled_from(["cut", "drop", "put", "double"]))
        if kind == "cut":
            del body[place:]
        elif kind == "drop":
            del body[place : place + draw(st.integers(1, 8))]
        elif kind == "put":
            body[place:place] = draw(st.binary(min_size=1, max_size=4) | PIECES)
        else:
            body += body[place : place + 64]
    return bytes(body)


PIECES = st.sampled_from(
    [b'"', b"[", b"{", b",", b":", b"NaN", b"1e999", b"\\ud800", b"\xff", b"\0"]
)


@st.composite
def requests(draw, tensors):
    """Draw a request.

    Args:
        draw: Hypothesis's.
        tensors: name, datatype and NumPy dtype of each input, and its shape but for the rows.
    """
    rows = draw(st.sampled_from([1, 2, 3, 1, 2, 3, 1, 0]))
    values = [
        (name, datatype, draw(arrays(dtype, (rows, *shape))))
        for name, datatype, dtype, shape in tensors
    ]
    headers = {}
    kind = draw(
        st.sampled_from(
            ["json", "form", "form", "protocol", "protocol", "protocol", "npy", "raw", "bytes"]
        )
    )
    if kind == "json":
        body = json.dumps(draw(documents)).encode()
    elif kind == "form":
        columns = {name: np.nan_to_num(array).tolist() for name, _, array in values}
        each = [{key: column[row] for key, column in columns.items()} for row in range(rows)]
        forms = [{"inputs": columns}, columns, {"instances": each}, {"instances": columns}]
        forms += [{"inputs": draw(documents)}, {"instances": [draw(documents)]}]
        body = json.dumps(draw(st.sampled_from(forms))).encode()
        if draw(st.integers(0, 7)) == 0:
            key = draw(names | st.sampled_from(sorted(columns)))
            body = body.replace(b"{", f"{{{json.dumps(key)}: 1, ".encode(), draw(st.integers(1, 2)))
    elif kind == "protocol":
        body, headers = draw(protocol(values))
    elif kind == "npy":
        body, headers = draw(files(values[0][2])), {"content-type": "application/x-npy"}
    elif kind == "raw":
        body, headers = values[0][2].tobytes(), {"content-type": "application/octet-stream"}
    else:
        body = draw(st.binary(max_size=64))
    if draw(st.integers(0, 5)) == 0:
        body = draw(damaged(body))
    if draw(st.integers(0, 7)) == 0:
        name = draw(st.sampled_from(["gzip", "deflate"]))
        if draw(st.integers(0, 3)) == 0:
            body += b" " * draw(st.sampled_from([90_000, 200_000]))
        body = gzip.compress(body, 1) if name == "gzip" else zlib.compress(body, 1)
        headers["content-encoding"] = name
    most = draw(st.sampled_from([0, 0, 0, 1, 1, 3]))
    for name in draw(st.lists(st.sampled_from(sorted(HEADERS)), max_size=most)):
        headers[name] = draw(st.sampled_from(HEADERS[name]))
    return Request(bytearray(body), headers)
