"""The archive: what a `.mar` holds, and how it is written.

A `.mar` is a zip with a manifest. It is written here rather than with torch-model-archiver,
which works in a folder shared by all of a machine's users and stamps the time into the bytes.
"""

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import yaml

from export.cases import FILE_NAME as CASES_FILE
from export.cases import write_cases
from export.eager import Reference
from export.inputs import Example
from export.work import Work
from formats import certificate as certificates
from formats.certificate import Certificate
from formats.compiled import OBSERVED_FILE, PLAIN_FILE
from formats.integrity import UNSEALED, seal, sha256
from formats.signature import Signature
from formats.workload import LARGE, OPERATIONS

__all__ = [
    "CONFIG_FILE",
    "MODULE_FILE",
    "TRAVELLERS",
    "WARM_UP_FILE",
    "configure",
    "sample_request",
    "write_archive",
    "write_sample",
]

ROOT: Final = Path(__file__).resolve().parent.parent
MODULE_FILE: Final = "model.pt"
WARM_UP_FILE: Final = "warmup.npz"
CONFIG_FILE: Final = "model-config.yaml"
HANDLER_FILE: Final = "vitrine_handler.py"
_MANIFEST_FILE: Final = "MAR-INF/MANIFEST.json"
TRAVELLERS: Final = ("handlers", "engine", "formats")
"""The rooms whose code travels in every archive."""

_BATCH_SIZE: Final = 16
# With a batch size above 1, TorchServe lets a lone request wait this long; 1 ms is its least.
_BATCH_DELAY_MS: Final = 1
_MOST_DELAY_MS: Final = 20
_LARGE_BATCH_SIZE: Final = 4
_DELAY_SHARE: Final = 0.05
"""Of a large model's batch, that it may wait to fill up: so much does a fuller one gain."""
_OPERATIONS_PER_MS: Final = 100_000_000
"""What a core does in float32, roughly: it only decides how long a batch may wait."""
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


def write_archive(
    target: Path,
    folder: Path,
    signature: Signature,
    certificate: Certificate,
    *,
    example: Example,
    observed: Reference,
    records: Mapping[str, Mapping[str, Any]],
    engine: str,
    work: Work,
) -> Certificate:
    """Write a `.mar`, whole or not at all.

    Args:
        target: the archive's path.
        folder: a working folder that holds the saved module as `MODULE_FILE`.
        signature: goes in as signature.json.
        certificate: goes in as certificate.json, with the digests of all other files; decides
            batch size and delay.
        example: one input, for warming up.
        observed: eager answers, some of which go in.
        records: settings of the activation log and of the recording, for model-config.yaml.
        engine: the one that serves, for model-config.yaml.
        work: what a row costs; decides batch size and delay.

    Returns:
        The certificate with the digests.
    """
    signature.write(folder)
    _write_warm_up(folder / WARM_UP_FILE, signature, example)
    write_cases(folder / CASES_FILE, observed)
    config = yaml.safe_dump(_config(certificate, records, engine, work), sort_keys=False)
    (folder / CONFIG_FILE).write_text(config, encoding="utf-8")
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    for room in TRAVELLERS:
        files |= {f"{room}/{path.name}": path for path in sorted((ROOT / room).glob("*.py"))}
    files[HANDLER_FILE] = ROOT / "handlers" / HANDLER_FILE
    entries = {_MANIFEST_FILE: json.dumps(_manifest(signature), indent=2).encode()}
    entries |= {name: path.read_bytes() for name, path in files.items()}
    complete = replace(
        certificate, files={name: sha256(content) for name, content in entries.items()}
    )
    entries[certificates.FILE_NAME] = complete.text().encode()
    _pack(target, entries)
    return complete


def configure(target: Path, config: Mapping[str, Any]) -> None:
    """Replace the model-config.yaml of an archive, whole or not at all.

    Args:
        target: a `.mar` that `write_archive` wrote.
        config: what is to stand there.
    """
    with zipfile.ZipFile(target) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries[CONFIG_FILE] = yaml.safe_dump(dict(config), sort_keys=False).encode()
    certificate = Certificate.parse(entries[certificates.FILE_NAME])
    files = {**certificate.files, CONFIG_FILE: sha256(entries[CONFIG_FILE])}
    entries[certificates.FILE_NAME] = replace(certificate, files=files).text().encode()
    _pack(target, entries)


def _pack(target: Path, entries: Mapping[str, bytes]) -> None:
    partial = target.with_name(f".{target.name}.partial")
    with zipfile.ZipFile(partial, "w") as archive:
        for name, content in entries.items():
            _add(archive, name, content)
        archive.comment = UNSEALED
    seal(partial)
    os.replace(partial, target)


def sample_request(signature: Signature, example: Example) -> dict[str, Any]:
    """Return a request body that holds one row of an example (all of it without a row axis)."""
    values = {
        spec.name: _plain((tensor[0] if signature.row_axis else tensor).tolist())
        for spec, tensor in zip(signature.inputs, example, strict=True)
    }
    return {"inputs": next(iter(values.values())) if len(values) == 1 else values}


def write_sample(path: Path, signature: Signature, example: Example) -> None:
    """Write `sample_request` as a file that curl can send."""
    body = json.dumps(sample_request(signature, example), separators=(",", ":"))
    path.write_text(body + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """Shorten numbers for people: 5.0 becomes 5, and float32 loses its binary tail."""
    if isinstance(value, list):
        return [_plain(child) for child in value]
    if isinstance(value, float):
        short = float(f"{value:.6g}")
        return int(short) if short.is_integer() and abs(short) < 1e15 else short
    return value


def _write_warm_up(path: Path, signature: Signature, example: Example) -> None:
    arrays = {}
    for number, tensor in enumerate(example):
        first = tensor[:1] if signature.row_axis else tensor
        wide = first.float() if first.dtype == torch.bfloat16 else first
        # By number: NumPy takes names as keyword arguments, and has some of its own.
        arrays[f"input_{number}"] = wide.numpy()
    np.savez(path, **arrays)  # type: ignore[arg-type]


def _config(
    certificate: Certificate, records: Mapping[str, Mapping[str, Any]], engine: str, work: Work
) -> dict[str, Any]:
    own: dict[str, Any] = {"threads": 1, "engine": engine, OPERATIONS: work.operations}
    own |= {name: dict(settings) for name, settings in records.items() if settings}
    return {
        **_batches(certificate, work),
        "vitrine": own,
    }


def _batches(certificate: Certificate, work: Work) -> dict[str, int]:
    if not certificate.batching.independent:
        return {"batchSize": 1, "maxBatchDelay": _BATCH_DELAY_MS}
    if work.operations < LARGE:
        return {"batchSize": _BATCH_SIZE, "maxBatchDelay": _BATCH_DELAY_MS}
    # There is one worker for each core. What the first one leaves is for the others, and more rows
    # in a batch bring it next to nothing.
    batch_ms = _LARGE_BATCH_SIZE * work.operations / _OPERATIONS_PER_MS
    delay = min(_MOST_DELAY_MS, max(_BATCH_DELAY_MS, round(batch_ms * _DELAY_SHARE)))
    return {"batchSize": _LARGE_BATCH_SIZE, "maxBatchDelay": delay}


def _manifest(signature: Signature) -> dict[str, Any]:
    return {
        "runtime": "python",
        "model": {
            "modelName": signature.model,
            "modelVersion": signature.model_version,
            "serializedFile": MODULE_FILE,
            "handler": HANDLER_FILE,
            "configFile": CONFIG_FILE,
        },
        "archiverVersion": "0.12.0",
    }


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    # They are zips of weights already: packing them again costs time and saves nothing.
    packed = name in (MODULE_FILE, PLAIN_FILE, OBSERVED_FILE)
    method = zipfile.ZIP_STORED if packed else zipfile.ZIP_DEFLATED
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.compress_type = method
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content)
