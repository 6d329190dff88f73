"""Virtual environments of the peers, made on first use and lent torch by Vitrine's own."""

import hashlib
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

from benchmarks.serving.running import NotRun

__all__ = ["FOLDER", "PEERS", "python_of"]

_ROOT: Final = Path(__file__).resolve().parents[2]
PEERS: Final = _ROOT / "benchmarks" / "peers"
FOLDER: Final = _ROOT / ".venv-peers"
_INSTALL_SECONDS: Final = 900.0


def python_of(name: str) -> Path:
    """Return the Python of a peer's environment, which is made or renewed where need be.

    Its own packages go before those of the environment that runs this, which it sees too: that
    spares a copy of torch for each peer, and makes sure that all run the same one.

    Raises:
        NotRun: its requirements cannot be installed.
    """
    folder = FOLDER / name
    python, stamp = folder / "bin" / "python", folder / ".installed"
    requirements = PEERS / name / "requirements.txt"
    wanted = hashlib.sha256(requirements.read_bytes() + sys.prefix.encode()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    packages = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    (packages / "site-packages" / "lent.pth").write_text(
        sysconfig.get_path("purelib") + "\n", encoding="utf-8"
    )
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    _run([*pip, "--quiet", "-r", str(requirements)])
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_INSTALL_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise NotRun(f"installing took more than {_INSTALL_SECONDS:.0f} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise NotRun("cannot be installed: " + " / ".join(lines[-3:]))
