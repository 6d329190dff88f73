"""requirements/locked/: every file that pip may install has a sum, and no other is installed."""

import importlib.metadata
import re
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT

REQUIREMENTS = ROOT / "requirements"
LOCKED = REQUIREMENTS / "locked"
# Each with what is installed before it.
CHAIN = {
    "serve": [],
    "tracing": ["serve"],
    "export": ["serve"],
    "dev": ["serve", "tracing", "export"],
}
# From PyPI or from anywhere else: a name is all that a file of ours says.
HOST = re.compile(r"https?://|--(extra-)?index-url|--find-links|--trusted-host| @ ")


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(name):
    """Requirement and sums by the package's name."""
    text = (LOCKED / f"{name}.txt").read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            pin, *sums = re.split(r"\s+--hash=", line.strip())
            requirement = Requirement(pin)
            found[normal(requirement.name)] = (requirement, sums)
    return found


@pytest.mark.parametrize("name", ["torch", "torch-cpu", "cuda", *CHAIN])
def test_each_is_one_version_with_sums(name):
    found = locked(name)
    assert found
    for requirement, sums in found.values():
        assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), requirement
        assert sums
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in sums)


@pytest.mark.parametrize("name", CHAIN)
def test_what_is_asked_for_is_locked(name):
    known = {
        package: requirement
        for file in ("torch", *CHAIN[name], name)
        for package, (requirement, _) in locked(file).items()
    }
    for line in (REQUIREMENTS / f"{name}.txt").read_text().splitlines():
        if line and not line.startswith(("#", "-r")):
            asked = Requirement(line)
            assert asked.specifier == known[normal(asked.name)].specifier, line


@pytest.mark.parametrize("name", CHAIN)
def test_a_package_is_not_in_a_file_and_in_one_below_it(name):
    below = {package for file in ("torch", "cuda", *CHAIN[name]) for package in locked(file)}
    assert not below & locked(name).keys()


def test_a_package_has_one_version():
    pins = {}
    for file in CHAIN:
        for package, (requirement, _) in locked(file).items():
            assert pins.setdefault(package, str(requirement)) == str(requirement)


def test_both_files_of_torch_are_of_one_version():
    [(ours, _)] = locked("torch").values()
    [(cpu, _)] = locked("torch-cpu").values()
    assert str(cpu.specifier) == f"{ours.specifier}+cpu"


def test_no_registry_is_named():
    for path in (*REQUIREMENTS.rglob("*.txt"), ROOT / "scripts" / "bootstrap", ROOT / "Dockerfile"):
        assert not HOST.search(path.read_text().replace('--index-url "$TORCH_INDEX_URL"', ""))


def test_what_is_installed_here_is_what_is_locked():
    pins = {package: pin for file in CHAIN for package, (pin, _) in locked(file).items()}
    installed = {normal(one.name): one.version for one in importlib.metadata.distributions()}
    assert "torchserve" in pins.keys() & installed.keys()
    wrong = {
        package: f"{installed[package]}, not {pin.specifier}"
        for package, pin in pins.items()
        if package in installed and not pin.specifier.contains(installed[package])
    }
    assert wrong == {}


def bootstrap(folder, sum_of_wheel):
    """Run the script's step for torch with a pip that brings a wheel of any content."""
    scripts = folder / "scripts"
    locked_here = folder / "requirements" / "locked"
    binaries = folder / ".venv" / "bin"
    for made in (scripts, locked_here, binaries):
        made.mkdir(parents=True)
    (scripts / "bootstrap").write_bytes((ROOT / "scripts" / "bootstrap").read_bytes())
    for name in ("torch-cpu", "cuda", *CHAIN):
        (locked_here / f"{name}.txt").write_text("")
    (locked_here / "torch.txt").write_text(f"torch==2.13.0 --hash=sha256:{sum_of_wheel}\n")
    (binaries / "python").write_text(PIP)
    (binaries / "python").chmod(0o755)
    return subprocess.run(
        ["bash", str(scripts / "bootstrap"), "serve"],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(binaries / "python"), "CALLS": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# In place of the environment's Python: its pip downloads a wheel of four bytes, notes the rest.
PIP = """\
#!/bin/bash
case " $* " in
    *" pip show "*) exit 1 ;;
    *" pip download "*)
        while [[ $1 != --dest ]]; do shift; done
        printf fake > "$2/torch-2.13.0-py3-none-any.whl" ;;
    *" pip install "*) echo "$*" >> "$CALLS/installed" ;;
    *requires*) exit 1 ;;
esac
"""
FAKE = "b5d54c39e66671c9731b9f471e585d8262cd4f54963f0c93082d8dcf334d4c78"


def test_a_torch_with_a_known_sum_is_installed(tmp_path):
    done = bootstrap(tmp_path, FAKE)
    assert done.returncode == 0, done.stderr
    torch, serve = (tmp_path / "installed").read_text().splitlines()
    assert torch.endswith("torch-2.13.0-py3-none-any.whl")
    assert "--require-hashes" in serve


def test_a_torch_with_another_sum_is_not(tmp_path):
    done = bootstrap(tmp_path, "0" * 64)
    assert done.returncode == 2
    assert "has none of the SHA-256 sums" in done.stderr
    assert "TORCH_UNVERIFIED" in done.stderr
    assert not Path(tmp_path / "installed").exists()
