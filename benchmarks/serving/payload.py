"""The files that the load generators read: requests made beforehand, and what they should get."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.forms import Form
from benchmarks.serving.work import Floats

__all__ = ["Payload", "lua", "read", "write"]


@dataclass(frozen=True)
class Payload:
    """What is in a folder of `write`, for a reader in Python.

    Attributes:
        path, marker, tolerance: as in `Form`.
        headers: one set a request.
        bodies: one a request.
        expected: float32 [requests, outputs].
    """

    path: str
    headers: list[dict[str, str]]
    marker: str | None
    bodies: list[bytes]
    expected: Floats
    tolerance: float


def write(folder: Path, form: Form, expected: Floats, each: int) -> None:
    """Write bodies, expected answers and how to send them, for wrk's script and for `read`.

    Args:
        folder: where to; it is made.
        form: the requests.
        expected: float32 [requests, outputs].
        each: how many requests one connection sends in turn.
    """
    folder.mkdir(parents=True)
    (folder / "bodies.bin").write_bytes(b"".join(form.bodies))
    (folder / "expected.bin").write_bytes(expected.astype("<f4").tobytes())
    sizes = [len(body) for body in form.bodies]
    spec = {
        "path": form.path,
        "headers": [{**form.headers, **own} for own in form.own_headers or [{}] * len(form.bodies)],
        "marker": form.marker,
        "sizes": sizes,
        "offsets": [0, *np.cumsum(sizes).tolist()[:-1]],
        "outputs": expected.shape[1],
        "each": each,
        "tolerance": form.tolerance,
    }
    (folder / "payload.json").write_text(json.dumps(spec), encoding="utf-8")
    (folder / "payload.lua").write_text(f"return {lua(spec)}\n", encoding="utf-8")


def read(folder: Path) -> Payload:
    """Read what `write` wrote."""
    spec = json.loads((folder / "payload.json").read_text(encoding="utf-8"))
    whole = (folder / "bodies.bin").read_bytes()
    expected = np.frombuffer((folder / "expected.bin").read_bytes(), "<f4")
    return Payload(
        path=spec["path"],
        headers=spec["headers"],
        marker=spec["marker"],
        bodies=[
            whole[offset : offset + size]
            for offset, size in zip(spec["offsets"], spec["sizes"], strict=True)
        ],
        expected=expected.reshape(-1, spec["outputs"]),
        tolerance=spec["tolerance"],
    )


def lua(value: Any) -> str:
    """Return a value of JSON as Lua writes it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"[{lua(key)}]={lua(own)}" for key, own in value.items()) + "}"
    if isinstance(value, list):
        return "{" + ",".join(map(lua, value)) + "}"
    if isinstance(value, str):
        return '"' + "".join(_escaped(byte) for byte in value.encode()) + '"'
    return "nil" if value is None else repr(value)


def _escaped(byte: int) -> str:
    plain = 32 <= byte < 127 and byte not in b'"\\'
    return chr(byte) if plain else f"\\{byte:03d}"
