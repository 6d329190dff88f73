"""Java's cache of TorchServe: made once, it halves the time until TorchServe listens.

The classes that TorchServe loads, linked, and what was learnt of its hot methods (JEP 483, 515).
It is made by a short run under load, of a model that does nothing. Java takes no notice of a cache
that does not fit it.
"""

import hashlib
import http.client
import json
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from server import java, ports
from server.config import DEFAULT_CONFIG, Addresses, Config
from server.errors import ServingError, UsageError
from server.process import ChildProcess
from server.readiness import NotListening, model_state

__all__ = ["flags", "location", "make"]

_OLDEST: Final = 25
_MODEL: Final = "nothing"
# Called once without data, to load the model.
_HANDLER: Final = "def handle(data, context):\n    return [b'{}'] * len(data or [])\n"
_REQUESTS: Final = 3000
_START_SECONDS: Final = 60.0
# Java writes the cache when it ends, which takes seconds.
_STOP_SECONDS: Final = 120.0
_POLL_SECONDS: Final = 0.1


def location(found: java.Java, home: Path) -> Path:
    """Return where the cache is, or would be: in the Python environment that has TorchServe.

    Args:
        found: the Java it is for.
        home: the folder that holds the `ts` package.
    """
    jars = sorted((home / "ts" / "frontend").glob("*.jar"))
    parts = [str(found.executable), str(found.major)]
    parts += [f"{jar.name} {jar.stat().st_size}" for jar in jars]
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return Path(sys.prefix) / "share" / "vitrine" / f"torchserve-{name}.aot"


def flags(found: java.Java, home: Path) -> list[str]:
    """Return the flags that let Java use the cache, where there is one."""
    cache = location(found, home)
    if found.major is None or found.major < _OLDEST or not os.access(cache, os.R_OK):
        return []
    # Without the second, Java says on every start that another configuration does not fit.
    return [f"-XX:AOTCache={cache}", "-Xlog:aot*=off,cds*=off"]


def make(config_path: Path = DEFAULT_CONFIG) -> Path:
    """Make the cache, unless there is one.

    Args:
        config_path: the configuration whose flags of the virtual machine it is for.

    Returns:
        Where it is.

    Raises:
        UsageError: there is no Java, an older one, or no TorchServe; or it cannot be written.
        ServingError: TorchServe did not start, or Java wrote none.
    """
    found, home = java.find_java(), java.torchserve_home()
    if found.major is None or found.major < _OLDEST:
        raise UsageError(f"{found.executable} is Java {found.major}; the cache needs {_OLDEST}.")
    cache = location(found, home)
    if cache.exists():
        return cache
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        # Java refuses to write where something is, and another process may be making it too.
        with tempfile.TemporaryDirectory(dir=cache.parent) as folder:
            made = Path(folder) / "cache.aot"
            _run(Config.read(config_path), found, home, made)
            os.replace(made, cache)
    except OSError as error:
        raise UsageError(f"{cache} cannot be written: {error.strerror or error}.") from None
    return cache


def _run(config: Config, found: java.Java, home: Path, cache: Path) -> None:
    """Run TorchServe with a model that does nothing, and let Java write down what it learnt."""
    with tempfile.TemporaryDirectory(prefix="vitrine-") as scratch:
        store = Path(scratch) / "store"
        store.mkdir()
        _write_model(store / f"{_MODEL}.mar")
        addresses = ports.choose(config.addresses(), 0, "127.0.0.1")
        written = Path(scratch) / "config.properties"
        written.write_text(config.merged(addresses.overrides()), encoding="utf-8")
        lines: list[str] = []
        child = ChildProcess(
            java.command(
                found,
                home=home,
                config=written,
                store=store,
                archives=[f"{_MODEL}.mar"],
                scratch=Path(scratch),
                vmargs=config.settings.get("vmargs", ""),
                flags=[f"-XX:AOTCacheOutput={cache}", "-Xlog:aot*=off,cds*=off"],
            ),
            environment=java.environment(Path(scratch), config.settings),
            directory=Path(scratch),
            on_line=lines.append,
        )
        try:
            _wait(child, addresses, lines)
            _load(addresses)
        finally:
            child.stop(_STOP_SECONDS)
    if not cache.exists():
        raise ServingError("Java wrote no cache; it said:\n" + "\n".join(lines[-5:]))


def _write_model(archive: Path) -> None:
    manifest = {
        "runtime": "python",
        "model": {
            "modelName": _MODEL,
            "modelVersion": "1.0",
            "handler": "nothing.py",
            "configFile": "model-config.yaml",
        },
        "archiverVersion": "0.12.0",
    }
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        packed.writestr("nothing.py", _HANDLER)
        packed.writestr("model-config.yaml", "batchSize: 8\nmaxBatchDelay: 1\n")


def _wait(child: ChildProcess, addresses: Addresses, lines: Sequence[str]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if child.poll() is not None:
            break
        try:
            if model_state(addresses.management_url, _MODEL).ready:
                return
        except NotListening:
            pass
        time.sleep(_POLL_SECONDS)
    raise ServingError("TorchServe did not start; it said:\n" + "\n".join(lines[-5:]))


def _load(addresses: Addresses) -> None:
    host = addresses.inference_url.removeprefix("http://")
    connections = [http.client.HTTPConnection(host, timeout=10) for _ in range(4)]
    try:
        for _ in range(_REQUESTS // len(connections)):
            for connection in connections:
                headers = {"Content-Type": "application/json"}
                connection.request("POST", f"/predictions/{_MODEL}", b"[1, 2, 3]", headers)
            for connection in connections:
                connection.getresponse().read()
    except (OSError, http.client.HTTPException) as error:
        raise ServingError(f"TorchServe did not answer: {error}") from None
    finally:
        for connection in connections:
            connection.close()
