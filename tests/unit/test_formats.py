import ast
import json
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from formats import Batching, Certificate, Check, FormatError, Signature, TensorSpec, flatten
from formats import certificate as certificates
from tests.conftest import ROOT

SIGNATURE = Signature(
    model="m",
    model_version="1.2",
    description="Ünïcode is kept.",
    inputs=(TensorSpec("x", "float32", (-1, 3), minimum=0.0),),
    outputs=(TensorSpec("y", "int64", (-1,), labels=("a", "b")),),
    row_axis=True,
)
CERTIFICATE = Certificate(
    method="script",
    versions={"torch": "2"},
    tolerance={"float32": (1e-5, 1e-5)},
    checks=(Check("parity", True, 3, 0.0, "equal"),),
    batching=Batching(False, 1, "beside another row, y moved"),
    notes=("a note",),
)


def test_documents_come_back_as_they_were(tmp_path):
    SIGNATURE.write(tmp_path)
    CERTIFICATE.write(tmp_path)
    assert Signature.read(tmp_path) == SIGNATURE
    assert Certificate.read(tmp_path) == CERTIFICATE


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "vitrine.certificate"}, "not a vitrine.signature"),
        ({"version": 99}, "export the model again"),
        ({"inputs": [{"name": "x", "dtype": "complex64", "shape": []}]}, "complex64"),
    ],
)
def test_a_signature_of_another_kind_is_refused(tmp_path, change, words):
    SIGNATURE.write(tmp_path)
    path = tmp_path / "signature.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FormatError, match=words):
        Signature.read(tmp_path)


def test_a_change_anywhere_in_a_certificate_is_found(tmp_path):
    CERTIFICATE.write(tmp_path)
    path = tmp_path / "certificate.json"
    written = path.read_bytes()
    for place in range(len(written)):
        changed = bytearray(written)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(FormatError, match=r"certificate\.json"):
            Certificate.read(tmp_path)
    document = json.loads(written) | {"version": 1}
    path.write_text(json.dumps(document))
    with pytest.raises(
        FormatError, match=f"has version 1; this Vitrine reads {certificates.VERSION}: export"
    ):
        Certificate.read(tmp_path)


def test_a_missing_or_broken_document_is_named(tmp_path):
    with pytest.raises(FormatError, match=r"signature\.json is missing"):
        Signature.read(tmp_path)
    (tmp_path / "certificate.json").write_text("{")
    with pytest.raises(FormatError, match=r"certificate\.json is not JSON"):
        Certificate.read(tmp_path)


class Pair(NamedTuple):
    left: int
    right: int


def test_flatten_names_every_leaf():
    nested = {"a": (1, [2, 3]), "b": Pair(4, 5)}
    assert flatten(nested) == [
        ("a_0", 1),
        ("a_1_0", 2),
        ("a_1_1", 3),
        ("b_left", 4),
        ("b_right", 5),
    ]
    assert flatten(7) == [("", 7)]


FORBIDDEN = {
    "models": {"handlers", "observe", "export", "server"},
    "export": {"handlers", "observe", "models", "server", "training"},
    "handlers": {"export", "observe", "models", "server", "training"},
    "engine": {"export", "handlers", "models", "server", "observe", "training"},
    "formats": {"engine", "export", "handlers", "models", "server", "torch", "numpy", "training"},
    "server": {"engine", "export", "handlers", "models", "torch", "training"},
    "training": {"export", "handlers", "models", "server", "observe"},
    "replay": {"export", "models", "server", "training"},
    "observe": {"engine", "export", "handlers", "models", "server", "torch", "training"},
}
# Nobody imports these.
FORBIDDEN = {room: names | {"observe", "replay"} - {room} for room, names in FORBIDDEN.items()}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_import_only_what_they_may(room):
    for path in sorted((ROOT / room).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            tops = {name.partition(".")[0] for name in names}
            assert not tops & FORBIDDEN[room], f"{path}:{node.lineno}"


def test_what_travels_needs_only_torch_and_numpy():
    rooms = ("handlers", "engine", "formats")
    allowed = {"torch", "numpy", "orjson", *rooms, *sys.stdlib_module_names}
    for room in rooms:
        for path in sorted(Path(ROOT / room).glob("*.py")):
            # TorchServe is known to its adapter and the reader of its messages only; Pillow and
            # captum may be missing.
            own = {
                "torchserve.py": {"ts"},
                "worker_protocol.py": {"ts"},
                "images.py": {"PIL"},
                "heatmap.py": {"PIL"},
                "attribution.py": {"captum"},
            }.get(path.name, set())
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module:
                    assert node.module.partition(".")[0] in allowed | own, path
                elif isinstance(node, ast.Import):
                    assert {a.name.partition(".")[0] for a in node.names} <= allowed | own, path
