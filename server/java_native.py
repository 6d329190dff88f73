"""The native libraries of TorchServe's Java part, laid out once.

Netty needs one to listen on a socket in a folder, and carries it in its archive. Left to itself it
unpacks it into the temporary folder at each start and loads it from there, which a folder mounted
`noexec` refuses. Where Java finds it in a folder of its library path, it does not unpack it.
"""

import platform
import sys
import zipfile
from pathlib import Path
from typing import Final

from server.errors import UsageError
from server.files import replace_file

__all__ = ["flags", "lay_out", "location"]

_ARCHIVE: Final = Path("ts", "frontend", "model-server.jar")
_FOLDER: Final = "META-INF/native/"
# Netty's own, and the one that gRPC carries under another name.
_STEMS: Final = (
    "libnetty_transport_native_epoll_",
    "libio_grpc_netty_shaded_netty_transport_native_epoll_",
)
_ARCHITECTURES: Final = {"x86_64": "x86_64", "aarch64": "aarch_64"}


def location() -> Path:
    """Return the folder where they are, or would be: in the Python environment."""
    return Path(sys.prefix) / "share" / "vitrine" / "native"


def flags() -> list[str]:
    """Return the flag that lets Java look there, where there is something."""
    folder = location()
    return [f"-Djava.library.path={folder}"] if folder.is_dir() else []


def lay_out(home: Path) -> Path:
    """Unpack them, unless they are there.

    Args:
        home: the folder that holds the `ts` package.

    Returns:
        The folder.

    Raises:
        UsageError: it cannot be written.
    """
    folder = location()
    ending = f"{_ARCHITECTURES.get(platform.machine(), platform.machine())}.so"
    try:
        with zipfile.ZipFile(home / _ARCHIVE) as archive:
            wanted = {f"{_FOLDER}{stem}{ending}" for stem in _STEMS} & set(archive.namelist())
            folder.mkdir(parents=True, exist_ok=True)
            for name in sorted(wanted):
                path = folder / Path(name).name
                if not path.exists():
                    # Another process may be at it too, or may load it.
                    replace_file(path, archive.read(name))
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror or error}.") from None
    return folder
