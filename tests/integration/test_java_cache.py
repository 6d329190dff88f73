"""Java's cache of TorchServe: made by a real run, and used by a server."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server import java, java_cache
from server.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A Python environment without a cache."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    return tmp_path


def test_it_is_made_once_and_java_takes_it(elsewhere):
    found, home = java.find_java(), java.torchserve_home()
    assert java_cache.flags(found, home) == []
    cache = make_in(elsewhere)
    assert cache == java_cache.location(found, home)
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]
    made = cache.stat().st_mtime_ns
    assert make_in(elsewhere).stat().st_mtime_ns == made
    flags = java_cache.flags(found, home)
    assert flags[0] == f"-XX:AOTCache={cache}"
    # With this mode Java fails where the cache does not fit it.
    command = java.command(
        found,
        home=home,
        config=ROOT / "config.properties",
        store=elsewhere,
        archives=[],
        scratch=elsewhere,
        vmargs="-Xms64m -Xmx1g -XX:+UseSerialGC",
        flags=[*flags, "-XX:AOTMode=on"],
    )
    asked = [*command[: command.index("org.pytorch.serve.ModelServer")], "-version"]
    assert version(asked).returncode == 0
    cache.write_bytes(b"no cache")
    assert version(asked).returncode != 0
    # A server starts all the same, and without a word.
    asked.remove("-XX:AOTMode=on")
    started = version(asked)
    assert started.returncode == 0
    assert started.stdout.lower().startswith("openjdk")


def make_in(environment):
    """Make it in a process of its own, which may end every child that it has."""
    program = "import sys; sys.prefix = sys.argv[1]; from server import java_cache as own\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}print(own.make())", str(environment)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return Path(done.stdout.strip())


def version(command):
    return subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )


def test_where_it_cannot_be_written_the_error_says_so(elsewhere, monkeypatch):
    (elsewhere / "share").write_text("a file")
    with pytest.raises(UsageError, match=r"cannot be written: .*"):
        java_cache.make()


def test_an_older_java_has_none(elsewhere, monkeypatch):
    old = java.Java(Path(os.devnull), 21)
    monkeypatch.setattr(java, "find_java", lambda: old)
    with pytest.raises(UsageError, match="is Java 21; the cache needs 25"):
        java_cache.make()
    assert java_cache.flags(old, java.torchserve_home()) == []
