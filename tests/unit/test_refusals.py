"""Modules that TorchScript treats in its own way: exported all the same, or refused in words."""

import textwrap
import zipfile
from pathlib import Path

import pytest
import torch

from export.cli import main
from export.custom_functions import function_calls
from export.definition import from_model_file
from export.errors import ExportError
from export.instances import adopt_forwards, unshare
from export.pipeline import Exported, export_model
from formats.layers import Layers
from formats.structure import answered

HEADER = """
import types
from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn
import torch.nn.functional as F

"""
FOOTER = """

def examples():
    torch.manual_seed(1)
    return [(torch.randn(3, 8),)]
"""
LINEAR = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        {extra}
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)
def build():
    return Net()
"""
SUB = """
class Sub(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)
"""
BRANCHING = """
class Sub(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if bool((x[:, 0] == 0.375).any()):
            return x - x.mean(0)
        return x
"""


def write(folder: Path, body: str, footer: str = FOOTER) -> Path:
    path = folder / "net.py"
    path.write_text(HEADER + textwrap.dedent(body) + footer)
    return path


def export(folder: Path, body: str, **options: object) -> Exported:
    return export_model(from_model_file(write(folder, body)), folder, **options)  # type: ignore[arg-type]


def refused(folder: Path, body: str, footer: str = FOOTER, **options: object) -> ExportError:
    with pytest.raises(ExportError) as caught:
        export_model(from_model_file(write(folder, body, footer)), folder, **options)  # type: ignore[arg-type]
    assert caught.value.hint
    return caught.value


def layers_of(exported: Exported, folder: Path) -> Layers:
    with zipfile.ZipFile(exported.archive) as archive:
        archive.extract("layers.json", folder)
    return Layers.read(folder)


def test_a_part_that_was_scripted_before_is_one_layer(tmp_path):
    body = SUB + (
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.sub = torch.jit.script(Sub())\n"
        "        self.same = self.sub\n"
        "    def forward(self, x: Tensor) -> Tensor:\n"
        "        return self.same(self.sub(x)) * 2\n"
        "def build():\n"
        "    return Net()\n"
    )
    exported = export(tmp_path, body, layers=["type:Sub"])
    layers = layers_of(exported, tmp_path)
    assert [(one.name, one.type, one.chosen) for one in layers.hooked] == [
        ("sub", "Sub", True),
        ("same", "Sub", True),
    ]
    assert "scripted before" in layers.left_out["sub.fc"]
    assert exported.certificate.batching.independent
    assert any("layer sub.fc is not observed" in note for note in exported.certificate.notes)


def test_a_scripted_part_that_is_used_for_more_than_its_forward_takes_no_hook(tmp_path):
    body = SUB + (
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.sub = torch.jit.script(Sub())\n"
        "        self.fc = nn.Linear(8, 8)\n"
        "    def forward(self, x: Tensor) -> Tensor:\n"
        "        return self.fc(self.sub(x)) + self.sub.fc.weight.sum()\n"
        "def build():\n"
        "    return Net()\n"
    )
    layers = layers_of(export(tmp_path, body), tmp_path)
    assert [one.name for one in layers.hooked] == ["fc"]
    assert "its hook does not compile" in layers.left_out["sub"]


def test_conditions_in_a_part_that_was_scripted_before_are_not_known(tmp_path):
    body = BRANCHING + (
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.sub = torch.jit.script(Sub())\n"
        "    def forward(self, x: Tensor) -> Tensor:\n"
        "        return self.sub(x) * 2\n"
        "def build():\n"
        "    return Net()\n"
    )
    exported = export(tmp_path, body)
    assert not exported.certificate.batching.independent
    assert "net.py:12 (`if bool(" in exported.certificate.batching.reason
    assert any("is not known" in note for note in exported.certificate.notes)


def test_a_module_that_was_scripted_as_a_whole(tmp_path):
    exported = export(tmp_path, SUB + "def build():\n    return torch.jit.script(Sub())\n")
    layers = layers_of(exported, tmp_path)
    assert not layers.hooked
    assert "scripted before" in layers.left_out["fc"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_dynamic_quantization(tmp_path):
    body = SUB + (
        "def build():\n"
        "    return torch.ao.quantization.quantize_dynamic(Sub(), {nn.Linear}, dtype=torch.qint8)\n"
    )
    assert export(tmp_path, body).signature.row_axis


def test_complex_examples(tmp_path):
    footer = "\ndef examples():\n    return [(torch.ones(2, 8, dtype=torch.complex64),)]\n"
    error = refused(tmp_path, LINEAR.format(extra="pass"), footer)
    assert "an example is complex64" in error.what
    assert "view_as_real" in error.hint


def test_a_module_that_returns_other_things_when_scripted(tmp_path):
    body = """
        class Out(NamedTuple):
            logits: Tensor
            aux: Optional[Tensor]
        class Net(nn.Module):
            @torch.jit.unused
            def eager(self, x: Tensor) -> Out:
                return x
            def forward(self, x: Tensor) -> Out:
                if torch.jit.is_scripting():
                    return Out(x, None)
                return self.eager(x)
        def build():
            return Net()
    """
    error = refused(tmp_path, body)
    assert error.what == (
        "the compiled module returns Out(logits: tensor, aux: None) where the eager one returns "
        "tensor"
    )
    assert "is_scripting" in error.hint
    cured = """
        class Wrapped(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = Net()
            def forward(self, x: Tensor) -> Tensor:
                out = self.inner(x)
                if torch.jit.is_scripting():
                    return out[0]
                return out
        def build():
            return Wrapped()
    """
    assert export(tmp_path, textwrap.dedent(body) + textwrap.dedent(cured)).signature.row_axis


def test_an_output_that_is_none_is_left_out(tmp_path):
    assert answered((1, None, {"a": None, "b": 2})) == [("0", 1), ("2_b", 2)]
    body = """
        class Net(nn.Module):
            def forward(self, x: Tensor) -> Tuple[Optional[Tensor], Tensor]:
                return None, x * 2
        def build():
            return Net()
    """
    assert [spec.name for spec in export(tmp_path, body).signature.outputs] == ["output_1"]


def test_attention_that_returns_no_weights(tmp_path):
    body = """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            def forward(self, x: Tensor) -> Tuple[Tensor, Optional[Tensor]]:
                x = x.unsqueeze(1)
                return self.attention(x, x, x, need_weights=False)
        def build():
            return Net()
    """
    error = refused(tmp_path, body)
    assert "returns a tensor that is not defined where the eager one returns" in error.what
    assert "y, _ = " in error.hint
    # Without the fused form, TorchScript returns None as well.
    slow = body.replace(", batch_first=True", "")
    assert len(export(tmp_path, slow).signature.outputs) == 1


def test_outputs_that_cannot_be_served(tmp_path):
    body = """
        class Net(nn.Module):
            def forward(self, x: Tensor) -> Dict[str, str]:
                return {"a": "b"}
        def build():
            return Net()
    """
    error = refused(tmp_path, body)
    assert "output a is a str" in error.what
    assert "return tensors only" in error.hint
    sparse = body.replace('{"a": "b"}', "x.to_sparse()").replace("Dict[str, str]", "Tensor")
    assert "to_dense()" in refused(tmp_path, sparse).hint


@pytest.mark.parametrize(
    ("call", "cure"),
    [
        ("(x > 0).bool()", ".to(torch.bool)"),
        ("x.bfloat16()", ".to(torch.bfloat16)"),
        ("torch.from_numpy(x.numpy())", "nothing of NumPy"),
    ],
)
def test_methods_that_tensors_lack_in_torchscript(tmp_path, call, cure):
    body = f"""
        class Net(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return {call}
        def build():
            return Net()
    """
    error = refused(tmp_path, body)
    assert cure in error.hint
    assert error.where.endswith("net.py:12")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("extra", "cure"),
    [
        ("nn.utils.weight_norm(self.fc)", "remove_weight_norm(layer, 'weight')"),
        ("nn.utils.spectral_norm(self.fc)", "remove_spectral_norm(layer, 'weight')"),
        (
            "nn.utils.parametrizations.orthogonal(self.fc)",
            "remove_parametrizations(layer, 'weight')",
        ),
        (
            "import torch.nn.utils.prune as p; p.l1_unstructured(self.fc, 'bias', 2)",
            "prune.remove(layer, 'bias')",
        ),
    ],
)
def test_weights_that_are_computed_in_each_call(tmp_path, extra, cure):
    error = refused(tmp_path, LINEAR.format(extra=extra))
    assert error.what.startswith("layer fc computes its ")
    assert cure in error.hint


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_trace_keeps_a_weight_norm_and_no_spectral_norm(tmp_path):
    norm = LINEAR.format(extra="nn.utils.weight_norm(self.fc)")
    assert export(tmp_path, norm, method="trace").signature.row_axis
    assert "remove_spectral_norm" in refused(tmp_path, norm.replace("weight_", "spectral_")).hint


def test_a_function_with_two_outputs(tmp_path):
    body = """
        class Split(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, k):
                return x[:, :k].clone(), x[:, k:].clone()
            @staticmethod
            def backward(ctx, g, h):
                return torch.cat([g, h], 1), None
        split = Split.apply
        class Net(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                parts = split(x, 4)
                a, b = parts
                return a + b
        def build():
            return Net()
    """
    for code in (body, body.replace("parts = split(x, 4)", "").replace("= parts", "= split(x, 4)")):
        error = refused(tmp_path, code)
        assert "'Split'" in error.what
        assert "torch.autograd.Function" in error.what
        assert "once for each of its 2 outputs" in error.hint
    [call] = function_calls(from_model_file(tmp_path / "net.py").module)
    assert call.outputs == 2


def test_a_forward_replaced_on_the_object(tmp_path):
    body = SUB + (
        "def other(self, x: Tensor) -> Tensor:\n"
        "    return -self.fc(x)\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = Sub(), Sub()\n"
        "        self.b.forward = types.MethodType(other, self.b)\n"
        "    def forward(self, x: Tensor) -> Tensor:\n"
        "        return self.a(x) + 2 * self.b(x)\n"
        "def build():\n"
        "    return Net()\n"
    )
    exported = export(tmp_path, body)
    assert [layer.name for layer in layers_of(exported, tmp_path).hooked] == [
        *("a.fc", "a", "b.fc", "b"),
    ]
    bare = body.replace("types.MethodType(other, self.b)", "lambda x: -x")
    error = refused(tmp_path, bare)
    assert "layer b had its forward replaced" in error.what
    assert "subclass" in error.hint


def test_adopted_forwards_answer_as_before():
    class Sub(torch.nn.Module):
        def forward(self, x):
            return x

    def other(self, x):
        return -x

    module = torch.nn.Sequential(Sub(), Sub())
    module[1].forward = other.__get__(module[1])
    adopt_forwards(module, "net.py")
    assert [type(part).__name__ for part in module] == ["Sub", "Sub"]
    assert module(torch.ones(1)).item() == -1.0
    assert isinstance(module[1], Sub)


def test_a_scripted_part_with_two_names_becomes_two():
    part = torch.jit.script(torch.nn.Linear(2, 2))
    module = torch.nn.ModuleList([part, part])
    unshare(module)
    assert module[0] is not module[1]
    assert module[0].weight.data_ptr() == module[1].weight.data_ptr()


@pytest.mark.parametrize(
    ("extra", "kind"),
    [
        ("register_forward_pre_hook(lambda m, a: (a[0] * 2,))", "register_forward_pre_hook"),
        ("register_forward_hook(lambda m, a, out: out * 2)", "register_forward_hook"),
        ("register_forward_hook(double)", "register_forward_hook"),
    ],
)
def test_hooks_of_the_author(tmp_path, extra, kind):
    body = "def double(module, args, out):\n    return out * 2\n"
    error = refused(tmp_path, body + LINEAR.format(extra=f"self.fc.{extra}"))
    assert "layer fc has a hook that TorchScript cannot compile" in error.what
    assert kind in error.what
    assert "handle.remove()" in error.hint
    assert "net.py:" in error.where


def test_a_hook_with_types_is_compiled_and_observed(tmp_path):
    body = (
        "def double(self, inputs: Tuple[Tensor], output: Tensor) -> Tensor:\n"
        "    return output * 2\n"
    )
    extra = "self.fc.register_forward_hook(double)"
    exported = export(tmp_path, body + LINEAR.format(extra=extra), layers=["fc"])
    assert all(check.passed for check in exported.certificate.checks)


def test_another_error_is_not_blamed_on_a_hook(tmp_path):
    body = (
        "def double(self, inputs: Tuple[Tensor], output: Tensor) -> Tensor:\n"
        "    return output * 2\n"
    ) + LINEAR.format(extra="self.fc.register_forward_hook(double)")
    error = refused(tmp_path, body.replace("return self.fc(x)", "return self.fc(x).bfloat16()"))
    assert "hook" not in error.what


def test_random_dropout(tmp_path):
    body = LINEAR.format(extra="pass").replace("return self.fc(x)", "return F.dropout(x, 0.5)")
    assert "training=self.training" in refused(tmp_path, body).hint


@pytest.mark.parametrize(
    "line",
    [
        "self.limit.copy_(torch.maximum(self.limit, x.abs().max().nan_to_num(0.0).clamp(max=1e6)))",
        "self.limit.view(-1)[0].add_((x.abs().max() > 900).to(torch.float32))",
    ],
)
def test_a_rare_write_into_a_buffer(tmp_path, line):
    body = f"""
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("limit", torch.tensor(1000.0))
            def forward(self, x: Tensor) -> Tensor:
                {line}
                return x / self.limit
        def build():
            return Net()
    """
    error = refused(tmp_path, body)
    assert "'limit' when it runs" in error.what
    assert "net.py" in error.where


def test_a_write_in_training_is_no_state(tmp_path):
    extra = "self.norm = nn.BatchNorm1d(8)"
    body = LINEAR.format(extra=extra).replace("return self.fc(x)", "return self.norm(self.fc(x))")
    assert export(tmp_path, body).certificate.batching.independent


def test_the_command_line_says_all_of_it(tmp_path, capsys):
    path = write(tmp_path, LINEAR.format(extra="nn.utils.parametrizations.weight_norm(self.fc)"))
    assert main([str(path), "--model-store", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "did not expect" not in said
    assert "  → in build()" in said
