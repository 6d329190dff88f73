"""A request that a model is known to answer, from its archive, sent to see whether it does."""

import ast
import http.client
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast
from urllib.parse import quote

from formats.datatypes import DATATYPES
from formats.document import FormatError
from formats.internal import PROBE
from formats.signature import Signature
from server.archives import Archive
from server.unix_http import UnixConnection

__all__ = ["Outcome", "SampleRequest", "Target", "sample_request", "try_model"]

_JSON_LENGTH: Final = "Inference-Header-Content-Length"
_WARM_UP: Final = "warmup.npz"
_NPY_PREFIX: Final = b"\x93NUMPY"


@dataclass(frozen=True)
class SampleRequest:
    """A body, and the headers that say what it is."""

    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Target:
    """Where TorchServe's inference API listens: at a Unix socket, or at a host's port."""

    socket: Path | None = None
    host: str = ""
    port: int = 0

    def connection(self, timeout: float) -> http.client.HTTPConnection:
        """A connection, not made yet, for which everything may take so many seconds."""
        if self.socket is not None:
            return UnixConnection(str(self.socket), timeout)
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout)


@dataclass(frozen=True)
class Outcome:
    """What became of a sample request.

    Attributes:
        works: Whether the model answered it; None where that says nothing about the model: it is
            busy, or its worker ended meanwhile.
        said: The same in words.
    """

    works: bool | None
    said: str


def sample_request(archive: Archive) -> SampleRequest | None:
    """The sample beside an archive, or what it warms up with; None where it has neither.

    Raises:
        OSError, ValueError: It cannot be read.
    """
    if archive.sample is not None:
        return SampleRequest(archive.sample.read_bytes(), {"Content-Type": "application/json"})
    try:
        if archive.path.is_dir():
            return _warm_up(archive.path)
        with zipfile.ZipFile(archive.path) as packed:
            # Has what reading needs of a folder: `/`, `name`, `open` and `read_bytes`.
            return _warm_up(cast(Path, zipfile.Path(packed)))
    except (FormatError, KeyError, FileNotFoundError, zipfile.BadZipFile):
        return None


def try_model(target: Target, archive: Archive, timeout: float) -> Outcome:
    """Send a model its sample request.

    Args:
        target: TorchServe.
        archive: The model's.
        timeout: Seconds that the answer may take.
    """
    try:
        request = sample_request(archive)
    except (OSError, ValueError) as error:
        return Outcome(True, f"not tried: its sample request cannot be read ({error})")
    if request is None:
        return Outcome(True, "not tried: its archive has no sample request")
    connection = target.connection(timeout)
    try:
        headers = {**request.headers, PROBE: "1", "Connection": "close"}
        path = f"/predictions/{quote(archive.name, safe='')}/{quote(archive.version, safe='')}"
        connection.request("POST", path, request.body, headers)
        answer = connection.getresponse()
        return _outcome(answer.status, answer.read())
    except TimeoutError:
        return Outcome(None, f"its sample request was not answered within {timeout:g} seconds")
    except (OSError, http.client.HTTPException) as error:
        return Outcome(None, f"its sample request was not answered ({error})")
    finally:
        connection.close()


def _outcome(status: int, body: bytes) -> Outcome:
    if status == 200:
        return Outcome(True, "answered")
    kind, message = _error(body)
    said = f"its sample request was answered {status}: {message}"
    # A full queue, or a worker that died with it: what became of the worker is seen elsewhere. A
    # handler that raises is 503 to TorchServe too.
    busy = status == 503 and kind != "InternalServerException"
    busy = busy or message.startswith("Worker died")
    return Outcome(None if busy else False, said)


def _error(body: bytes) -> tuple[str, str]:
    """TorchServe's type of an error, if it is one of its own, and what it says."""
    try:
        document = json.loads(body)
        error = document.get("error", document)
        message = str(error["message"] if isinstance(error, dict) else error)[:300]
        return str(document.get("type")), message
    except (ValueError, KeyError, AttributeError):
        return "", ascii(body[:300].decode("utf-8", "replace"))[1:-1]


def _warm_up(folder: Path) -> SampleRequest:
    """What a model warms up with, as a request with binary tensors."""
    signature = Signature.read(folder)
    inputs, tensors = [], []
    with (folder / _WARM_UP).open("rb") as file, zipfile.ZipFile(file) as stored:
        for number, spec in enumerate(signature.inputs):
            shape, data = _array(stored.read(f"input_{number}.npy"))
            if spec.dtype == "bfloat16":
                data = _halves(data)
            inputs.append(
                {
                    "name": spec.name,
                    "datatype": DATATYPES[spec.dtype],
                    "shape": shape,
                    "parameters": {"binary_data_size": len(data)},
                }
            )
            tensors.append(data)
    header = json.dumps({"inputs": inputs}).encode()
    headers = {"Content-Type": "application/octet-stream", _JSON_LENGTH: str(len(header))}
    return SampleRequest(b"".join([header, *tensors]), headers)


def _halves(data: bytes) -> bytes:
    """The upper halves of float32 numbers: numpy has no bfloat16, and stores them as these."""
    halves = bytearray(len(data) // 2)
    halves[0::2], halves[1::2] = data[2::4], data[3::4]
    return bytes(halves)


def _array(npy: bytes) -> tuple[list[int], bytes]:
    """Shape and data of an array in C order, from a `.npy` file of version 1."""
    if not npy.startswith(_NPY_PREFIX + b"\x01") or len(npy) < 10:
        raise ValueError(f"{_WARM_UP} holds something else than arrays of numpy")
    start = 10 + int.from_bytes(npy[8:10], "little")
    header = ast.literal_eval(npy[10:start].decode("latin-1"))
    if header["fortran_order"]:
        raise ValueError(f"{_WARM_UP} holds an array in Fortran order")
    return list(header["shape"]), npy[start:]
