"""C++ programs, built once a session against the LibTorch inside the installed torch."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).resolve().parent
BUILD_SECONDS = 600


def run(*command: str | Path, folder: Path, environment: dict[str, str]) -> str:
    """Run a command that must succeed; return what it printed."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def toolchain() -> dict[str, str]:
    """An environment to build in; the tests are skipped without a compiler, and fail in CI."""
    # Where requirements/dev.txt puts CMake and Ninja; a system's own are as good.
    environment = os.environ | {
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    }
    missing = _missing(environment)
    if missing:
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    if shutil.which("ninja", path=environment["PATH"]):
        environment["CMAKE_GENERATOR"] = "Ninja"
    return environment


def _missing(environment: dict[str, str]) -> str:
    compilers = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    if not any(shutil.which(name, path=environment["PATH"]) for name in compilers if name):
        return "no C++ compiler was found; on Debian: apt-get install g++"
    if not shutil.which("cmake", path=environment["PATH"]):
        return "no CMake was found; requirements/dev.txt names it"
    # The CMake package of a CUDA build refuses without the toolkit.
    if torch.version.cuda and not shutil.which("nvcc", path=environment["PATH"]):
        return "linking against a CUDA build of torch needs the CUDA toolkit (nvcc)"
    return ""


@pytest.fixture(scope="session")
def verify(toolchain: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that compares a model in C++ with what Python gave."""
    folder = tmp_path_factory.mktemp("cpp")
    run(
        "cmake",
        *("-S", SOURCE, "-B", folder),
        f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}",
        "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON",
        folder=folder,
        environment=toolchain,
    )
    run("cmake", "--build", folder, folder=folder, environment=toolchain)
    return folder / "verify"
