"""Java's native libraries, laid out where Java finds them."""

import platform
import sys

import pytest

from server import java, java_native
from server.errors import UsageError

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="Netty carries none for this machine"
)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A Python environment without them."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    return tmp_path


def test_they_are_laid_out_once(elsewhere):
    assert java_native.flags() == []
    folder = java_native.lay_out(java.torchserve_home())
    assert java_native.flags() == [f"-Djava.library.path={folder}"]
    libraries = sorted(path.name for path in folder.iterdir())
    assert [name.partition("_native_")[0] for name in libraries] == [
        "libio_grpc_netty_shaded_netty_transport",
        "libnetty_transport",
    ]
    assert all(path.read_bytes()[:4] == b"\x7fELF" for path in folder.iterdir())
    made = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    java_native.lay_out(java.torchserve_home())
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == made


def test_where_they_cannot_be_written_the_error_says_so(elsewhere):
    (elsewhere / "share").write_text("a file")
    with pytest.raises(UsageError, match=r"cannot be written: "):
        java_native.lay_out(java.torchserve_home())
