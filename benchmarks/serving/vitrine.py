"""Vitrine as a user runs it, and variants of it."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.serving.prepared import Prepared, export
from benchmarks.serving.running import Launch
from benchmarks.serving.work import TOLERANCE

__all__ = ["VARIANTS", "Variant", "launch", "read_variants"]

_ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Variant:
    """One way to run Vitrine.

    Attributes:
        name: in the table, and for `--servers`.
        arguments: of `python -m server`, besides port, model store and state.
        environment: variables besides those of this process.
        model_store: a folder with the archive; None for one that is exported here.
        export_options: of `python -m export`; with them, an archive of its own is exported.
        tune: options of `python -m export tune`, run on an archive of its own; None for none.
        tolerance: how far an answer may be from the float32 one, relative to it above 1.
        config: lines that are added to a copy of config.properties, by key.
    """

    name: str
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    model_store: Path | None = None
    export_options: Sequence[str] = ()
    tune: Sequence[str] | None = None
    tolerance: float = TOLERANCE
    config: Mapping[str, str] = field(default_factory=dict)


VARIANTS: Final = (
    Variant("vitrine"),
    Variant("vitrine-latency", tune=("--goal", "latency")),
    Variant("vitrine-throughput", tune=("--goal", "throughput")),
    Variant(
        "vitrine-bfloat16",
        export_options=("--precision", "bfloat16"),
        tune=("--goal", "throughput"),
        tolerance=5e-3,
    ),
    Variant("vitrine-no-front", ("--no-front",)),
)
"""What is measured unless other variants are named."""


def read_variants(path: Path) -> list[Variant]:
    """Read variants from a JSON file: a list of objects with the fields of `Variant`.

    Raises:
        ValueError: it is not such a list.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return [_variant(one) for one in found]
    except (OSError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: a JSON list of variants is expected ({error})") from None


def _variant(fields: Mapping[str, Any]) -> Variant:
    store = fields.get("model_store")
    return Variant(**{**fields, "model_store": Path(store) if store else None})


def launch(variant: Variant, prepared: Prepared) -> Launch:
    """Say how to start a variant.

    Raises:
        RuntimeError: its archive cannot be exported.
    """
    folder = prepared.folder(variant.name)
    state = folder / "state.json"
    command = [sys.executable, "-m", "server", "--port", "0", "--state", str(state)]
    command += ["--model-store", str(_store(variant, prepared).resolve())]
    command += ["--models", prepared.work.model]
    if variant.config:
        config = folder / "config.properties"
        added = "\n".join(f"{key}={value}" for key, value in variant.config.items())
        text = (_ROOT / "config.properties").read_text(encoding="utf-8")
        config.write_text(f"{text}\n{added}\n", encoding="utf-8")
        command += ["--config", str(config)]

    def address() -> str | None:
        if not state.exists():
            return None
        url: str = json.loads(state.read_text(encoding="utf-8"))["inference"]
        return url.removeprefix("http://")

    return Launch([*command, *variant.arguments], _ROOT, dict(variant.environment), address)


def _store(variant: Variant, prepared: Prepared) -> Path:
    if variant.model_store is not None:
        return variant.model_store
    if variant.export_options or variant.tune is not None:
        return export(prepared.work.model_file, variant.export_options, variant.tune)
    return prepared.store
