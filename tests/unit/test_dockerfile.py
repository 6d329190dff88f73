"""The Dockerfiles: what hadolint says of them, and what the image's labels say."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT

DOCKERFILES = ("Dockerfile", "deploy/balancer/Dockerfile")


def hadolint():
    own = Path(sys.executable).parent / "hadolint"
    found = str(own) if own.exists() else shutil.which("hadolint")
    assert found, "hadolint is not installed; requirements/dev.txt names it"
    return found


def read(dockerfile):
    """What hadolint says of a file."""
    return subprocess.run(
        [hadolint(), dockerfile], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_hadolint_has_nothing_to_say(dockerfile):
    done = read(dockerfile)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_has_where_there_is_something(tmp_path):
    wrong = tmp_path / "Dockerfile"
    wrong.write_text("FROM debian:bookworm-slim\nRUN cd /tmp\nUSER root\n")
    assert "DL3003" in read(str(wrong)).stdout


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_the_last_user_is_not_root(dockerfile):
    users = re.findall(r"^USER (\S+)$", (ROOT / dockerfile).read_text(), flags=re.MULTILINE)
    assert users[-1] == "10001"


def test_the_label_of_the_version_is_the_projects():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "Dockerfile").read_text()
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', text))
    assert labels["version"] == project["version"]
    assert labels["licenses"] == project["license"]
    assert labels["description"].startswith("Serves PyTorch models over HTTP")


def test_what_is_copied_is_sent_to_the_engine():
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    copied = [
        source
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    ]
    assert copied
    for source in copied:
        parts = Path(source).parts
        assert any("/".join(parts[:n]) in allowed for n in range(1, len(parts) + 1)), source
