"""Which engine runs the model: what was asked for, and whether it can be had here."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from engine import processor
from formats.certificate import Certificate
from formats.engines import ENGINES, TORCHSCRIPT
from handlers.values import Array

__all__ = ["apart", "refusal", "say_fallen_back", "use_engine"]


def use_engine(configured: Any) -> str:
    """Return the name of the engine that is asked for.

    Args:
        configured: the archive's setting, or None. The environment's VITRINE_ENGINE goes before
            it; without either, TorchScript.

    Raises:
        ValueError: there is no engine of that name.
    """
    name = os.environ.get("VITRINE_ENGINE") or configured or TORCHSCRIPT
    if name not in ENGINES:
        where = "VITRINE_ENGINE" if os.environ.get("VITRINE_ENGINE") else "vitrine: engine"
        raise ValueError(f"{where} is {name!r}; expected one of {', '.join(ENGINES)}")
    return str(name)


def refusal(engine: str, certificate: Certificate, device: torch.device) -> str:
    """Say why a certified engine is no use here, or return nothing."""
    if not certificate.offers(engine):
        why = [one.detail for one in certificate.engines if one.name == engine]
        return f"it was not certified ({(why or ['not exported with it'])[0]})"
    if device.type != "cpu":
        return f"it runs on the CPU, not on {device}"
    versions = certificate.versions
    there, here = versions.get("torch", "unknown"), str(torch.__version__)
    if there != here:
        return f"it was certified with torch {there}; this is {here}"
    there, here = versions.get("processor", "unknown"), processor()
    if there != here:
        return f"it was certified on another processor: {there}; this is {here}"
    return ""


def apart(
    expected: Sequence[Array],
    actual: Sequence[Array],
    tolerance: Mapping[str, tuple[float, float]],
) -> str:
    """Say how answers differ beyond the certificate's tolerance, or return nothing."""
    for number, (left, right) in enumerate(zip(expected, actual, strict=True)):
        if left.shape != right.shape or left.dtype != right.dtype:
            return (
                f"output {number} of the warm-up example is {right.dtype}{list(right.shape)}, not "
                f"{left.dtype}{list(left.shape)}"
            )
        relative, absolute = tolerance.get(str(left.dtype), (0.0, 0.0))
        finite = left[np.isfinite(left)] if left.dtype.kind == "f" else left
        largest = float(np.abs(finite).max(initial=0))
        allowed = absolute * max(1.0, largest)
        if not np.allclose(right, left, rtol=relative, atol=allowed, equal_nan=True):
            both = np.isnan(left) & np.isnan(right) if left.dtype.kind == "f" else False
            gap = np.abs(left.astype(np.float64) - right.astype(np.float64))
            moved = np.where(both, 0.0, gap).max()
            return f"output {number} of the warm-up example moved by {moved:.3g}"
    return ""


def say_fallen_back(model: str, engine: str, why: str) -> None:
    """Print the line that says which engine serves instead."""
    text = ascii(f"model {model}: engine {engine} is not used, {TORCHSCRIPT} serves: {why}")[1:-1]
    print(f"vitrine: {text}", file=sys.stderr, flush=True)
