"""Exported models in C++: the answers, statistics and gradients of Python, without Python."""

import copy
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from export.definition import from_model_file
from export.pipeline import export_model
from tests.conftest import ROOT, model_file
from tests.cpp.cases import Cases, cases_of
from tests.cpp.conftest import run
from tests.networks import Recurrent, Transformer, definition

pytestmark = pytest.mark.cpp

EXAMPLES = ["control_flow", "dann", "activation_mlp", "digits"]
OTHERS = ["dict_output", "lstm_states", "half"]
SECONDS = 300


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cases(exported, tmp_path_factory) -> Callable[[str], Cases]:
    """What Python makes of a model, made once."""
    done: dict[str, Cases] = {}

    def make(name: str) -> Cases:
        if name not in done:
            path = model_file(name)
            done[name] = cases_of(
                from_model_file(path), exported(name), tmp_path_factory.mktemp(name)
            )
        return done[name]

    return make


def compare(program: Path, *arguments: Path) -> subprocess.CompletedProcess[str]:
    """Run the program where it finds no Python, even if it looked for one."""
    return subprocess.run(
        [program, *arguments],
        env={"PATH": ""},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_the_program_has_no_python_in_it(verify):
    libraries = subprocess.run(["ldd", verify], capture_output=True, text=True, check=True).stdout
    assert "libtorch_cpu" in libraries
    assert "not found" not in libraries
    assert "python" not in re.sub(r"=>.*", "", libraries).lower()


@pytest.mark.parametrize("name", EXAMPLES + OTHERS)
def test_a_model_gives_in_cpp_what_it_gives_in_python(verify, cases, name, tmp_path):
    made = cases(name)
    done = compare(verify, made.model, made.write(tmp_path / "cases.pt"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(made.summary), (done.stdout, made.summary)


@pytest.mark.parametrize("kind", [Transformer, Recurrent])
def test_every_layer_records_in_cpp_what_it_records_in_python(verify, kind, tmp_path):
    network = definition(kind)
    made = cases_of(network, export_model(network, tmp_path, layers=("*",)), tmp_path / "unpacked")
    assert len(made.document["layers"]) >= 4
    done = compare(verify, made.model, made.write(tmp_path / "cases.pt"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(made.summary), (done.stdout, made.summary)


@pytest.mark.parametrize("name", EXAMPLES)
def test_there_is_something_to_compare(cases, name):
    document = cases(name).document
    assert len(document["layers"]) >= 2
    assert all(one["vectors"] for one in document["cases"])
    assert any(gradient.any() for one in document["gradients"] for gradient in one["gradients"])
    reversed_ones = [one for one in document["gradients"] if "unreversed" in one]
    assert len(reversed_ones) == (len(document["cases"]) if name == "dann" else 0)
    for one in reversed_ones:
        for found, plain in zip(one["gradients"], one["unreversed"], strict=True):
            torch.testing.assert_close(found, -0.3 * plain)


@pytest.mark.parametrize(
    ("key", "what", "words"),
    [
        ("cases", "outputs", r"output 0: moved by 0\.01"),
        ("cases", "codes", r"codes of layer \d+: not equal"),
        ("cases", "vectors", r"statistics vector 0: moved by 0\.0(1|0999)"),
        ("gradients", "gradients", r"gradient of input 0: moved by"),
        ("gradients", "unreversed", r"frozen gradient of input 0: moved by"),
    ],
)
def test_any_other_number_is_a_difference(verify, cases, key, what, words, tmp_path):
    made = cases("dann")
    document = copy.deepcopy(made.document)
    last = document[key][-1]
    step = 1 if what == "codes" else 0.01
    last[what] = [tensor + step for tensor in last[what]]
    changed = Cases(made.model, document)
    done = compare(verify, made.model, changed.write(tmp_path / "cases.pt"))
    assert done.returncode == 1, done.stdout
    place = f"{key} {len(document[key]) - 1}"
    assert re.match(f"dann: differs from Python: {place}: {words}", done.stderr), done.stderr


def test_a_missing_case_is_a_difference_too(verify, cases, tmp_path):
    made = cases("control_flow")
    document = copy.deepcopy(made.document)
    document["cases"][0]["vectors"].pop()
    done = compare(verify, made.model, Cases(made.model, document).write(tmp_path / "cases.pt"))
    assert done.returncode == 1
    assert "tensors became" in done.stderr


def test_a_model_that_is_not_there_is_an_error(verify, cases, tmp_path):
    path = cases("control_flow").write(tmp_path / "cases.pt")
    done = compare(verify, tmp_path / "none.pt", path)
    assert done.returncode == 2
    assert "none.pt" in done.stderr


def test_the_program_in_the_documentation(toolchain, exported, tmp_path):
    """docs/cpp.md as written: its files saved, its commands run, its output compared."""
    text = (ROOT / "docs" / "cpp.md").read_text()
    found = re.findall(r"^```(\w+) ([\w.]+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    blocks = {role: block for _, role, block in found}
    assert set(blocks) == {"look.cpp", "CMakeLists.txt", "build", "output"}
    assert len(re.findall(r"^```", text, flags=re.MULTILINE)) == 2 * len(found)
    for name in ("look.cpp", "CMakeLists.txt"):
        (tmp_path / name).write_text(blocks[name])
    (tmp_path / "model_store").mkdir()
    archive = exported("activation_mlp").archive
    (tmp_path / "model_store" / archive.name).symlink_to(archive)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    printed = run(
        *("bash", "-euo", "pipefail", "-c", blocks["build"]),
        folder=tmp_path,
        environment=toolchain,
    )
    printed = printed[printed.index("scores\n") :]
    assert _words(printed) == _words(blocks["output"])
    assert _numbers(printed) == pytest.approx(_numbers(blocks["output"]), abs=2e-4)


_NUMBER = r"-?\d+\.\d+"


def _words(text: str) -> list[str]:
    return re.sub(_NUMBER, " ", text).split()


def _numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(_NUMBER, text)]
