import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from export.cli import main
from export.definition import from_model_file
from export.inputs import variants
from export.pipeline import export_model
from export.tensors import compare
from formats.layers import Layers
from handlers.model import Model
from handlers.service import Request, Service
from tests.conftest import MODEL_FILES, ROOT


def write(path: Path, body: str, header: str = "") -> Path:
    """Write a model file around a forward's body."""
    path.write_text(
        "import torch\nfrom torch import Tensor, nn\n\n"
        f"{header}\n\n"
        "class Net(nn.Module):\n"
        "    def forward(self, x: Tensor) -> Tensor:\n"
        f"        {body}\n\n\n"
        "def build():\n    return Net()\n\n\n"
        "def examples():\n    return [(torch.ones(2, 3),)]\n"
    )
    return path


def refusal(capsys, *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 1
    return capsys.readouterr().err


def test_the_archive_holds_what_it_must(exported):
    with zipfile.ZipFile(exported("token_lstm").archive) as archive:
        names = set(archive.namelist())
        manifest = json.loads(archive.read("MAR-INF/MANIFEST.json"))
        assert archive.testzip() is None
    assert {"model.pt", "signature.json", "certificate.json", "model-config.yaml"} <= names
    assert manifest["model"]["handler"] in names
    assert manifest["model"]["modelVersion"] == "2.1"
    assert {"handlers/service.py", "formats/signature.py"} <= names
    assert not any(name.startswith(("export", "models", "server")) for name in names)


def test_the_signature_is_found_by_running(exported):
    signature = exported("token_lstm").signature
    [tokens] = signature.inputs
    [logits] = signature.outputs
    assert (str(tokens), tokens.minimum, tokens.maximum) == ("int64[-1, -1]", 0, 49)
    assert (str(logits), logits.labels) == ("float32[-1, 3]", ("no", "yes", "maybe"))
    assert signature.row_axis
    states = exported("lstm_states").signature
    assert not states.row_axis
    assert [str(spec) for spec in states.outputs][1] == "float32[2, -1, 5]"


@pytest.mark.parametrize(
    ("name", "independent", "words"),
    [
        ("token_lstm", True, "24 rows"),
        ("two_inputs", True, "NaN"),
        ("digits", True, "NaN"),
        ("control_flow", False, "'y' moved by"),
        ("batch_softmax", False, "'share' moved by"),
        ("branch", False, "moved by"),
        ("lstm_states", False, "axis 0"),
    ],
)
def test_rows_share_a_batch_only_where_that_was_measured(exported, name, independent, words):
    result = exported(name)
    batching = result.certificate.batching
    assert batching.independent is independent
    assert words in batching.reason
    with zipfile.ZipFile(result.archive) as archive:
        config = archive.read("model-config.yaml").decode()
    assert f"batchSize: {16 if independent else 1}\n" in config


@pytest.mark.parametrize("name", ["control_flow", "dann", "digits", "activation_mlp"])
def test_the_examples_are_verified_over_many_inputs(exported, name):
    certificate = exported(name).certificate
    assert len(certificate.checks) == 4
    for check in certificate.checks:
        assert check.passed
        assert check.cases >= 10
        assert check.max_difference < 1e-5


def test_both_branches_are_taken_or_the_line_is_named(exported, tmp_path):
    certificate = exported("control_flow").certificate
    assert not certificate.notes
    [condition] = certificate.conditions
    assert re.fullmatch(r"control_flow\.py:\d+ \(`if x\.mean\(\) > 0:`\)", condition.place)
    assert condition.when_true + condition.when_false == certificate.checks[0].cases
    report = exported("control_flow").archive.with_name("control_flow.report.md").read_text()
    ways = f"true for {condition.when_true} inputs, false for {condition.when_false} inputs"
    assert f"- {condition.place}: {ways}\n" in report
    path = write(
        tmp_path / "rare.py",
        "if x.sum().sin() == 0.1:\n            x = x + 1\n        return x",
    )
    [note] = export_model(from_model_file(path), tmp_path).certificate.notes
    assert "rare.py:8 (`if x.sum().sin() == 0.1:`) when that is true" in note
    report = (tmp_path / "rare.report.md").read_text()
    assert "rare.py:8 (`if x.sum().sin() == 0.1:`): never true: NOT VERIFIED, false for " in report


def test_an_archive_is_the_same_whenever_it_is_written(exported, tmp_path):
    first = exported("two_inputs").archive
    definition = from_model_file(MODEL_FILES / "two_inputs.py")
    second = export_model(definition, tmp_path).archive
    with zipfile.ZipFile(first) as a, zipfile.ZipFile(second) as b:
        same = {name for name in a.namelist() if a.read(name) == b.read(name)}
        assert a.namelist() == b.namelist()
    # TorchScript numbers classes of one name through the process, and the certificate has the
    # module's digest. Two processes write the same bytes: see test_integrity.py.
    assert set(a.namelist()) - same <= {"model.pt", "certificate.json"}


def test_a_custom_function_is_refused_with_its_rewrite(tmp_path, capsys):
    error = refusal(capsys, MODEL_FILES / "custom_function.py", "--model-store", tmp_path)
    assert "custom_function.py:" in error
    assert "'Twice'" in error
    assert "f(x).detach()" in error
    assert not list(tmp_path.iterdir())


def test_a_line_that_cannot_be_compiled_is_named(tmp_path, capsys):
    error = refusal(capsys, MODEL_FILES / "unscriptable.py", "--model-store", tmp_path)
    assert "unscriptable.py:9" in error
    assert "try" in error


def test_a_parametrised_layer_is_refused_with_what_to_call(tmp_path, capsys):
    body = "return self.inner(x)"
    header = "from torch.nn.utils.parametrizations import weight_norm"
    file = write(tmp_path / "normed.py", body, header)
    lines = ("net = Net()", "net.inner = weight_norm(nn.Linear(3, 2))", "return net")
    made = "\n    ".join(("def build():", *lines))
    file.write_text(file.read_text().replace("def build():\n    return Net()", made))
    error = refusal(capsys, file, "--model-store", tmp_path)
    assert "layer inner computes its weight anew" in error
    assert "remove_parametrizations(layer, 'weight')" in error


def test_tracing_a_branch_is_refused(tmp_path, capsys):
    branch = MODEL_FILES / "branch.py"
    error = refusal(capsys, "--trace", branch, "--model-store", tmp_path)
    assert "branch.py:11: tracing baked in a value that depends on the data" in error
    assert "the smallest such input found is x float32[1, 3] = [[0, 0, 0]]" in error
    assert "leave --trace out" in error


def test_a_trace_that_differs_is_archived_if_that_is_asked_for_and_on_record(tmp_path, capsys):
    branch = MODEL_FILES / "branch.py"
    arguments = ["--trace", "--accept-mismatch", str(branch), "--model-store", str(tmp_path)]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert re.search(
        r"note: \S+branch\.py:11: tracing baked in a value .*; \d+ of \d+ inputs fell: .* "
        "the smallest such input found is x float32",
        told,
    )
    [report] = tmp_path.glob("*.report.md")
    assert "FELL: parity: saved and loaded in a fresh process" in report.read_text()
    # What is known to differ is no reason for a check elsewhere to fall.
    assert main(["verify", str(tmp_path / "branch.mar")]) == 0
    assert "--accept-mismatch goes with --trace" in refusal(
        capsys, "--accept-mismatch", branch, "--model-store", tmp_path
    )


def test_tracing_a_model_without_branches_works(tmp_path):
    definition = from_model_file(MODEL_FILES / "token_lstm.py")
    assert export_model(definition, tmp_path, "trace").certificate.method == "trace"


@pytest.mark.parametrize(
    ("body", "header", "words"),
    [
        ("return x + torch.rand(())", "", "differently the second time"),
        ("return torch.view_as_complex(x[:, :2].contiguous())", "", "complex64"),
        ("raise ValueError('no')", "", "raises on example 0"),
        ("return x", 'OUTPUTS = ["a", "b"]', "OUTPUTS names 2"),
        ("return x", 'INPUTS = ["a", "b"]', "INPUTS names 2"),
        ("return x", "INPUTS = 3", "INPUTS is neither"),
        ("return x", 'INPUTS = {"x": {"shape": [-1, 4]}}', "declared as [-1, 4]"),
        ("return x", 'INPUTS = {"x": {"least": 1}}', "least"),
        ("return x", 'OUTPUTS = ["y"]\nLABELS = {"y": ["a"]}', "1 labels"),
        ("return x", 'LABELS = {"z": ["a"]}', "which is no output"),
        ("return x", 'VERSION = "one"', "VERSION"),
        ("return x", "1 / 0", "ZeroDivisionError"),
        ("return x", "def broken(:", "SyntaxError"),
    ],
)
def test_what_cannot_be_served_is_refused_with_a_reason(tmp_path, capsys, body, header, words):
    path = write(tmp_path / "net.py", body, header)
    error = refusal(capsys, path, "--model-store", tmp_path / "store")
    assert words in error
    assert "net.py" in error
    assert not list((tmp_path / "store").glob("*.mar"))


def test_a_file_that_is_no_model_file_is_refused(tmp_path, capsys):
    assert "no such file" in refusal(capsys, tmp_path / "none.py", "--model-store", tmp_path)
    (tmp_path / "empty.py").write_text("")
    assert "no function build()" in refusal(
        capsys, tmp_path / "empty.py", "--model-store", tmp_path
    )
    bad_name = write(tmp_path / "a name.py", "return x")
    assert "cannot stand in a URL" in refusal(capsys, bad_name, "--model-store", tmp_path)


def test_a_module_with_weights_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n\n\ndef make():\n    return nn.Linear(3, 2)\n"
    )
    net = nn.Linear(3, 2)
    save_file(net.state_dict(), "net.safetensors")
    np.save("x.npy", np.ones((2, 3), np.float32))
    command = ["--module", "my_nets:make", "--weights", "net.safetensors"]
    command += ["--example", "x.npy", "--name", "mine", "--model-store", str(tmp_path)]
    assert main(command) == 0
    with zipfile.ZipFile("mine.mar") as archive:
        archive.extract("model.pt")
    x = torch.randn(4, 3)
    torch.testing.assert_close(torch.jit.load("model.pt")(x), net(x))
    save_file({"other": torch.ones(1)}, "net.safetensors")
    assert "do not fit" in refusal(capsys, *command)
    (tmp_path / "net.safetensors").write_bytes(b"garbage")
    assert "not a safetensors file" in refusal(capsys, *command)


def test_update_exports_what_changed_and_only_that(tmp_path, capsys):
    shutil.copy(MODEL_FILES / "branch.py", tmp_path / "branch.py")
    (tmp_path / "weights.safetensors").write_bytes(b"old")
    command = [str(tmp_path / "branch.py"), "--model-store", str(tmp_path), "--update"]
    assert main(command) == 0
    capsys.readouterr()
    assert main(command) == 0
    assert "up to date" in capsys.readouterr().out
    with (tmp_path / "branch.py").open("a") as file:
        file.write("# changed\n")
    assert main(command) == 0
    assert "wrote" in capsys.readouterr().out
    (tmp_path / "branch.mar").unlink()
    assert main(command) == 0
    assert "wrote" in capsys.readouterr().out
    (tmp_path / "weights.safetensors").write_bytes(b"new")
    assert main(command) == 0
    assert "wrote" in capsys.readouterr().out


def test_inspect_shows_what_is_inside(exported, capsys):
    assert main(["inspect", str(exported("control_flow").archive)]) == 0
    shown = capsys.readouterr().out
    for words in ("float32[-1, 10]", "fc1", "Linear", "prim::If", "torch 2", "model.pt", "def for"):
        assert words in shown
    assert "no such file" in refusal(capsys, "inspect", "none.mar")
    assert "not an archive" in refusal(capsys, "inspect", MODEL_FILES / "branch.py")


def test_dann_reverses_the_gradient_in_a_fresh_python_without_the_project(exported, tmp_path):
    with zipfile.ZipFile(exported("dann").archive) as archive:
        archive.extract("model.pt", tmp_path)
    alpha = from_model_file(ROOT / "models" / "dann.py").module.reversal.alpha
    program = (
        "import torch, sys\n"
        "m = torch.jit.load('model.pt')\n"
        "x = torch.randn(4, 7, requires_grad=True)\n"
        "g = torch.randn(4, 7)\n"
        "y = m.reversal(x)\n"
        "assert torch.equal(y, x)\n"
        "y.backward(g)\n"
        "assert torch.allclose(x.grad, -float(sys.argv[1]) * g), x.grad / g\n"
    )
    subprocess.run(
        [sys.executable, "-I", "-c", program, str(alpha)], cwd=tmp_path, check=True, timeout=120
    )


MODELS = {
    "padded to the longest of the batch": (
        "n = int(length.max())\n        return x[:, :n].mean(1)",
        "x: Tensor, length: Tensor",
        "[(torch.randn(3, 5), torch.tensor([5, 5, 5]))]",
    ),
    "one number of rows only": (
        "return x.softmax(0) if x.shape[0] == 37 else x",
        "x: Tensor",
        "[(torch.randn(2, 3),)]",
    ),
    "rows that are left out": (
        "return x[x.sum(1) > 0]",
        "x: Tensor",
        "[(torch.ones(2, 3),)]",
    ),
}


def made(tmp_path: Path, body: str, parameters: str, examples: str, init: str = "pass") -> Path:
    path = tmp_path / "made.py"
    path.write_text(
        "import torch\nfrom torch import Tensor, nn\n\n\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        f"        super().__init__()\n        {init}\n\n"
        f"    def forward(self, {parameters}):\n        {body}\n\n\n"
        f"def build():\n    return Net()\n\n\ndef examples():\n    return {examples}\n"
    )
    return path


@pytest.mark.parametrize("name", MODELS)
def test_rows_that_depend_on_each_other_are_found(tmp_path, name):
    path = made(tmp_path, *MODELS[name])
    result = export_model(from_model_file(path), tmp_path)
    assert not result.certificate.batching.independent


@pytest.mark.parametrize(
    ("body", "init", "words"),
    [
        ("self.n += 1\n        return x + 0 * self.n", "self.n = 0", "'n'"),
        (
            "self.n += 1\n        return x + 0 * self.n",
            'self.register_buffer("n", torch.zeros(1))',
            "'n'",
        ),
        (
            "if x.sum() > 1e30:\n            self.n = 1\n        return x",
            "self.n = 0",
            "'n' when it runs",
        ),
        (
            'return {"a": x} if x.sum() > 0 else {"b": x}',
            "pass",
            "returns b for one input and a for another",
        ),
    ],
)
def test_state_and_changing_outputs_are_refused(tmp_path, capsys, body, init, words):
    path = made(tmp_path, body, "x: Tensor", "[(torch.ones(2, 3),)]", init)
    error = refusal(capsys, path, "--model-store", tmp_path / "store")
    assert words in error


def test_outputs_in_another_order_are_put_in_order(tmp_path):
    body = (
        'if x.sum() > 0:\n            return {"a": x, "b": x + 1}\n'
        '        return {"b": x + 1, "a": x}'
    )
    path = made(tmp_path, body, "x: Tensor", "[(torch.ones(2, 3),)]")
    result = export_model(from_model_file(path), tmp_path)
    with zipfile.ZipFile(result.archive) as archive:
        archive.extractall(tmp_path / "unpacked")
    service = Service(Model(tmp_path / "unpacked", torch.device("cpu")))
    [answer] = service.handle([Request(b"[-1, -2, -3]")])
    outputs = json.loads(answer.body)["outputs"]
    assert outputs == {"a": [-1.0, -2.0, -3.0], "b": [0.0, -1.0, -2.0]}


def test_any_name_of_an_input_can_be_archived(tmp_path):
    path = made(tmp_path, "return file * 2", "file: Tensor", "[(torch.ones(2, 3),)]")
    assert export_model(from_model_file(path), tmp_path).signature.inputs[0].name == "file"


def test_a_helper_beside_the_model_file_may_be_imported_late(tmp_path):
    (tmp_path / "helper_of_made.py").write_text("SIZE = 3\n")
    examples = "[(torch.ones(2, __import__('helper_of_made').SIZE),)]"
    path = made(tmp_path, "return x", "x: Tensor", examples)
    assert export_model(from_model_file(path), tmp_path).archive.exists()


def test_options_that_would_be_ignored_are_refused(tmp_path, capsys):
    branch = MODEL_FILES / "branch.py"
    store = ("--model-store", tmp_path)
    assert "go with --module" in refusal(capsys, branch, "--weights", "w", *store)
    assert "two model files" in refusal(capsys, branch, branch, *store)
    assert "cannot be made" in refusal(capsys, branch, "--model-store", branch)
    assert "cannot stand in a URL" in refusal(capsys, branch, "--name", "a..b", *store)
    assert "--model-version) is '../2'" in refusal(
        capsys, branch, "--model-version", "../2", *store
    )


def test_a_version_beside_another_has_files_of_its_own(tmp_path, capsys):
    branch, store = str(MODEL_FILES / "branch.py"), ["--model-store", str(tmp_path)]
    (tmp_path / "branch.mar").write_bytes(b"the other")
    for told in ("wrote", "up to date"):
        assert main([branch, "--model-version", "2.10", "--update", *store]) == 0
        assert told in capsys.readouterr().out
    assert (tmp_path / "branch.mar").read_bytes() == b"the other"
    with zipfile.ZipFile(tmp_path / "branch-2.10.mar") as archive:
        model = json.loads(archive.read("MAR-INF/MANIFEST.json"))["model"]
    assert (model["modelName"], model["modelVersion"]) == ("branch", "2.10")
    assert (tmp_path / "branch-2.10.sample.json").exists()


def test_a_model_file_chooses_its_layers_and_its_log(tmp_path):
    path = write(
        tmp_path / "net.py",
        "return self.two(self.one(x))",
        'LAYERS = ["one"]\nACTIVATION_LOG = {"mode": "asked", "folder": "/logs"}\n'
        'RECORDING = {"mode": "sampled", "folder": "/kept"}',
    )
    source = path.read_text().replace(
        "    def forward",
        "    def __init__(self):\n        super().__init__()\n"
        "        self.one, self.two = nn.ReLU(), nn.Tanh()\n\n    def forward",
    )
    path.write_text(source)
    archive = export_model(from_model_file(path), tmp_path).archive
    with zipfile.ZipFile(archive) as content:
        config = yaml.safe_load(content.read("model-config.yaml"))
        content.extract("layers.json", tmp_path)
    assert config["vitrine"]["activation_log"] == {"mode": "asked", "folder": "/logs"}
    assert config["vitrine"]["recording"] == {"mode": "sampled", "folder": "/kept"}
    assert [layer.name for layer in Layers.read(tmp_path).hooked if layer.chosen] == ["one"]


def test_activations_called_as_functions_are_named(tmp_path):
    path = made(tmp_path, "return torch.relu(x)", "x: Tensor", "[(torch.ones(2, 3),)]")
    notes = export_model(from_model_file(path), tmp_path).certificate.notes
    assert any("torch.relu at" in note and "made.py:11" in note for note in notes)


def test_variants_keep_to_what_the_model_file_declares():
    definition = from_model_file(MODEL_FILES / "token_lstm.py")
    made = variants(definition)
    assert len(made) > len(definition.examples)
    assert all(int(case[0].min()) >= 0 and int(case[0].max()) <= 49 for case in made)
    digits = variants(from_model_file(ROOT / "models" / "digits.py"))
    assert all(float(case[0].min()) >= 0 and float(case[0].max()) <= 16 for case in digits)


def test_comparison_knows_nan_and_size():
    nan = torch.tensor([float("nan"), 1.0])
    assert compare([nan], [nan.clone()], ["y"]).equal
    assert not compare([nan], [torch.tensor([0.0, 1.0])], ["y"]).equal
    inf = torch.tensor([float("inf")])
    assert not compare([inf], [-inf], ["y"]).equal
    assert compare([torch.tensor([1000.0, 0.0])], [torch.tensor([1000.001, 0.001])], ["y"]).equal
    assert not compare([torch.tensor([1.0])], [torch.tensor([1.001])], ["y"]).equal
    assert "int64[1]" in compare([torch.ones(1)], [torch.ones(1, dtype=torch.int64)], ["y"]).detail
