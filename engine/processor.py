"""The processor by name: what an engine's speed, and machine code, depend on."""

import platform
import re
from pathlib import Path
from typing import Final

__all__ = ["processor"]

_CPUINFO: Final = Path("/proc/cpuinfo")
_NAME: Final = ("model name", "CPU part")
_FLAGS: Final = ("flags", "Features")
# Extensions that a compiler uses for this processor, or oneDNN chooses its kernels by.
_USED: Final = re.compile(
    r"(sse4|avx|fma|f16c|bmi|amx|vaes|vpclmul|gfni|asimd|fphp|sve|bf16|i8mm).*|sme2?"
)


def processor() -> str:
    """Return the processor's model and its vector extensions, as Linux tells them.

    Elsewhere it is what Python knows, without extensions.
    """
    try:
        return describe(_CPUINFO.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return platform.processor() or platform.machine()


def describe(cpuinfo: str) -> str:
    """Return the same of the content of `/proc/cpuinfo`."""
    first: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        first.setdefault(key.strip(), value.strip())
    name = next((first[key] for key in _NAME if key in first), platform.machine())
    flags = next((first[key] for key in _FLAGS if key in first), "")
    used = sorted(flag for flag in set(flags.split()) if _USED.fullmatch(flag))
    return f"{name} ({' '.join(used)})" if used else name
