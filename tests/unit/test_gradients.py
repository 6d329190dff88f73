"""Custom gradients: the building blocks, the certificate's check, and how Functions are refused."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from export import gradients
from export.custom_functions import function_calls
from export.definition import from_model_file
from export.eager import reference
from export.errors import ExportError
from export.inputs import variants
from export.pipeline import export_model
from export.signature import infer
from export.torchscript import compile_module, save
from formats.certificate import Certificate
from models.gradients import (
    GradientScaling,
    StraightThroughArgmax,
    StraightThroughRound,
    StraightThroughSign,
    with_gradient_of,
)
from tests.conftest import MODEL_FILES, ROOT

INF, NAN = float("inf"), float("nan")
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SPECIAL = [INF, -INF, NAN, 0.0, -0.0, 0.3, -0.3, 0.5, 1.5, -2.5, 1.0, -1.0, 3.0, -7.25, 6e4, 1e-7]


def reload(module: nn.Module) -> torch.jit.ScriptModule:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def bits(x: Tensor) -> Tensor:
    return x.detach().view({4: torch.int32, 8: torch.int64, 2: torch.int16}[x.element_size()])


def one_hot(x: Tensor) -> Tensor:
    return nn.functional.one_hot(x.argmax(-1), x.shape[-1]).to(x.dtype)


def softmax_gradient(x: Tensor, incoming: Tensor) -> Tensor:
    source = x.detach().requires_grad_()
    soft = torch.softmax(torch.nan_to_num(source / 0.5), -1)
    return torch.autograd.grad(soft, source, incoming)[0]


Two = Callable[[Tensor, Tensor], Tensor]
BLOCKS: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor], Two]] = {
    "scaling": (GradientScaling(0.25), torch.clone, lambda x, g: 0.25 * g),
    "stopping": (GradientScaling(0.0), torch.clone, lambda x, g: 0.0 * g),
    "round": (StraightThroughRound(), torch.round, lambda x, g: g),
    "sign": (StraightThroughSign(), torch.sign, lambda x, g: torch.where(x.abs() <= 1, g, 0)),
    "any sign": (StraightThroughSign(INF), torch.sign, lambda x, g: torch.where(x.isnan(), 0, g)),
    "argmax": (StraightThroughArgmax(-1, 0.5), one_hot, softmax_gradient),
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loaded", [False, True])
def test_blocks_are_exact_and_keep_their_gradient(
    name: str, dtype: torch.dtype, loaded: bool
) -> None:
    block, forward, backward = BLOCKS[name]
    subject = reload(block) if loaded else block
    generator = torch.Generator().manual_seed(0)
    noise = [2 * torch.randn(shape, generator=generator) for shape in [(7,), (2, 5), (3, 2, 4)]]
    # Several calls: TorchScript optimises after it has profiled the first ones.
    for values in [torch.tensor(SPECIAL), *noise, *noise]:
        x = values.to(dtype).requires_grad_()
        incoming = torch.randn(x.shape, generator=generator).to(dtype)
        output = subject(x)
        assert output.dtype == dtype
        assert torch.equal(bits(output), bits(forward(x)))
        found = torch.autograd.grad(output, x, incoming)[0]
        assert torch.equal(found, backward(x.detach(), incoming))


@pytest.mark.parametrize("name", ["scaling", "round", "sign", "argmax"])
def test_freezing_loses_the_gradient_but_not_the_answer(name: str) -> None:
    block, forward, _ = BLOCKS[name]
    frozen = torch.jit.freeze(reload(block.eval()))
    x = torch.tensor([0.3, -0.4, 2.5, -1.5], requires_grad=True)
    incoming = torch.tensor([1.0, 2.0, 3.0, 4.0])
    output = frozen(x)
    assert torch.equal(bits(output), bits(forward(x)))
    kept = torch.autograd.grad(reload(block)(x), x, incoming)[0]
    lost = torch.autograd.grad(output, x, incoming, allow_unused=True)[0]
    assert lost is None or not torch.equal(lost, kept)


def test_a_carrier_that_its_backward_reads_again_is_left_alone() -> None:
    x = torch.tensor([0.2, -3.0], requires_grad=True)
    soft = torch.tanh(x)
    output = with_gradient_of(torch.full((2,), 9.0), soft)
    assert output.tolist() == [9.0, 9.0]
    assert torch.equal(soft, torch.tanh(x))
    expected = torch.autograd.grad(torch.tanh(x).sum(), x)[0]
    assert torch.equal(torch.autograd.grad(output.sum(), x)[0], expected)


def test_an_argmax_along_another_axis_ignores_what_is_masked() -> None:
    x = torch.tensor([[0.1, 5.0], [0.7, -INF], [0.2, 1.0]], requires_grad=True)
    output = reload(StraightThroughArgmax(dim=0))(x)
    assert output.tolist() == [[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]
    found = torch.autograd.grad(output, x, torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))[0]
    assert found.isfinite().all()
    assert found[1, 1] == 0.0
    assert found[0, 1] != 0.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GradientScaling(INF), "factor must be finite"),
        (lambda: GradientScaling(NAN), "factor must be finite"),
        (lambda: StraightThroughSign(0.0), "limit must be positive"),
        (lambda: StraightThroughSign(NAN), "limit must be positive"),
        (lambda: StraightThroughArgmax(temperature=0.0), "temperature must be"),
        (lambda: StraightThroughArgmax(temperature=INF), "temperature must be"),
    ],
)
def test_settings_are_checked(make: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_the_factor_can_be_set_after_loading() -> None:
    layer = reload(GradientScaling())
    layer.factor = 4.0
    x = torch.ones(2, requires_grad=True)
    assert torch.autograd.grad(layer(x).sum(), x)[0].tolist() == [4.0, 4.0]


# The certificate


def write(path: Path, body: str, header: str = "", examples: str = "torch.rand(2, 3)") -> Path:
    path.write_text(
        "import torch\nfrom torch import Tensor, nn\n\n"
        f"{header}\n\n"
        "class Net(nn.Module):\n"
        "    def forward(self, x: Tensor) -> Tensor:\n"
        f"        {body}\n\n\n"
        "def build():\n    return Net()\n\n\n"
        f"def examples():\n    torch.manual_seed(0)\n    return [({examples},)]\n"
    )
    return path


def checked(path: Path, tmp_path: Path, method: str = "script", freeze: bool = False):
    definition = from_model_file(path)
    observed = reference(definition, variants(definition))
    names = [spec.name for spec in infer(definition, observed).outputs]
    file = tmp_path / "module.pt"
    save(compile_module(definition, method).module, file, definition)
    graph = torch.jit.load(str(file))
    if freeze:
        graph = torch.jit.freeze(graph.eval())
    return gradients.check(graph, definition, observed, names)


@pytest.mark.parametrize("method", ["script", "trace"])
def test_a_reversed_gradient_is_certified_as_its_own(tmp_path: Path, method: str) -> None:
    check, note = checked(ROOT / "models" / "dann.py", tmp_path, method)
    assert (check.passed, check.cases, note) == (True, 12, "")
    assert check.max_difference < 1e-5
    assert "the gradient is not that of the forward function" in check.detail


def test_an_ordinary_gradient_is_that_of_the_forward_function(tmp_path: Path) -> None:
    check, _ = checked(MODEL_FILES / "two_inputs.py", tmp_path)
    assert check.passed
    assert check.detail.endswith("the gradient is that of the forward function")


def test_a_frozen_graph_falls(tmp_path: Path) -> None:
    check, note = checked(ROOT / "models" / "dann.py", tmp_path, freeze=True)
    assert not check.passed
    assert "the gradient of domain by image differs" in check.detail
    assert note.startswith("gradients must not be taken from this archive")


@pytest.mark.parametrize("factor", ["1e-9", "1.0", "1e9"])
def test_gradients_of_any_size_are_compared(tmp_path: Path, factor: str) -> None:
    body = f"return {factor} * with_gradient_of(x, -x)"
    path = write(tmp_path / "net.py", body, "from models.gradients import with_gradient_of")
    assert checked(path, tmp_path)[0].passed
    assert not checked(path, tmp_path, freeze=True)[0].passed


def test_a_trace_that_loses_no_grad_is_archived_with_a_warning(tmp_path: Path) -> None:
    body = "with torch.no_grad():\n            y = 2.0 * x\n        return y + x * x"
    path = write(tmp_path / "net.py", body)
    scripted = export_model(from_model_file(path), tmp_path).certificate
    assert scripted.checks[-1].name.startswith("gradients")
    assert all(check.passed for check in scripted.checks)
    exported = export_model(from_model_file(path), tmp_path, "trace")
    check = exported.certificate.checks[-1]
    assert not check.passed
    assert check.max_difference > 1.0
    assert "gradients must not be taken" in exported.certificate.notes[0]
    report = (tmp_path / "net.report.md").read_text()
    assert "- FELL: gradients" in report
    exported.certificate.write(tmp_path)
    assert Certificate.read(tmp_path) == exported.certificate


@pytest.mark.parametrize(
    ("body", "examples", "words"),
    [
        ("return x * 2", "torch.arange(6).reshape(2, 3)", "no input is floating-point"),
        ("return x.argmax(1)", "torch.rand(2, 3)", "no output depends"),
        ("return x.detach() * 2", "torch.rand(2, 3)", "no output depends"),
        (
            "y = torch.sigmoid(x)\n        y.mul_(2)\n        return y",
            "torch.rand(2, 3)",
            "inplace",
        ),
    ],
)
def test_no_gradient_is_no_error(tmp_path: Path, body: str, examples: str, words: str) -> None:
    check, note = checked(write(tmp_path / "net.py", body, examples=examples), tmp_path)
    assert (check.passed, check.cases, note) == (True, 0, "")
    assert check.detail.startswith("no gradient: ")
    assert words in check.detail


def test_an_input_written_to_and_one_unused_have_gradients(tmp_path: Path) -> None:
    path = write(tmp_path / "net.py", "x.mul_(3.0)\n        return x * x")
    assert checked(path, tmp_path)[0].cases == 12
    text = path.read_text().replace("x: Tensor)", "x: Tensor, y: Tensor)")
    path.write_text(text.replace("rand(2, 3),)", "rand(2, 3), torch.rand(2, 3))"))
    assert checked(path, tmp_path)[0].cases == 12


def test_gradcheck_is_left_out_where_it_cannot_be(tmp_path: Path) -> None:
    large = write(tmp_path / "large.py", "return 2 * x", examples="torch.rand(2, 99)")
    assert checked(large, tmp_path)[0].detail.endswith("too large for gradcheck")
    single = write(tmp_path / "single.py", "return 2 * x.float()")
    assert "gradcheck in float64 is not possible" in checked(single, tmp_path)[0].detail


def test_the_check_leaves_the_module_as_it_is(tmp_path: Path) -> None:
    definition = from_model_file(ROOT / "models" / "control_flow.py")
    before = {name: part.clone() for name, part in definition.module.state_dict().items()}
    observed = reference(definition, variants(definition))
    gradients.check(torch.jit.script(definition.module), definition, observed, ["y"])
    for name, part in definition.module.named_parameters():
        assert part.grad is None
        assert torch.equal(part, before[name])
        assert part.dtype == torch.float32
    assert not any(part.requires_grad for case in observed.cases for part in case)


# Functions


HEADER = '''
class Reverse(torch.autograd.Function):
    """Ganin's."""
    @staticmethod
    def forward(ctx, x, alpha):
        """Keep alpha."""
        ctx.alpha = alpha
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad.neg() * ctx.alpha, None


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


class Surrogate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).float()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad / (1 + x.abs()) ** 2


reverse = Reverse.apply


def helper(x: Tensor) -> Tensor:
    return Round.apply(x)


def half(module):
    module.strength = 0.5
    module.round = Round.apply
    return module
'''


@pytest.mark.parametrize("method", ["script", "trace"])
@pytest.mark.parametrize(
    ("body", "name", "rewrite"),
    [
        ("return Reverse.apply(x, 0.3)", "Reverse", "is GradientReversal(0.3) of models/grad"),
        ("return reverse(x, 2.0)", "Reverse", "reverse(x, 2.0) is GradientReversal(2.0)"),
        (
            "return Reverse.apply(x, self.strength)",
            "Reverse",
            "is GradientReversal(self.strength)",
        ),
        ("return Round.apply(2 * x)", "Round", "Round.apply(2 * x) is StraightThroughRound()"),
        ("return helper(x)", "Round", "Round.apply(x) is StraightThroughRound()"),
        ("return self.round(x)", "Round", "self.round(x) is StraightThroughRound()"),
        ("return Surrogate.apply(x)", "Surrogate", "f is what Surrogate.forward returns"),
    ],
)
def test_a_custom_function_is_named_with_its_rewrite(
    tmp_path: Path, body: str, name: str, rewrite: str, method: str
) -> None:
    path = write(tmp_path / "net.py", body, HEADER)
    path.write_text(path.read_text().replace("return Net()", "return half(Net())"))
    definition = from_model_file(path)
    lines = path.read_text().splitlines()
    with pytest.raises(ExportError) as caught:
        save(compile_module(definition, method).module, tmp_path / "module.pt", definition)
    error = caught.value
    called = "Round.apply(x)" if body == "return helper(x)" else body
    number = next(number for number, line in enumerate(lines, 1) if called in line)
    assert error.where == f"{path}:{number}"
    assert f"'{name}' ({path}:{lines.index(f'class {name}(torch.autograd.Function):') + 1})" in str(
        error
    )
    assert rewrite in str(error)
    assert "f(x).detach() + (g(x) - g(x).detach())" in str(error)


def test_the_rewrite_that_is_shown_works(tmp_path: Path) -> None:
    definition = from_model_file(MODEL_FILES / "custom_function.py")
    [call] = function_calls(definition.module)
    shown = call.rewrite.partition("Twice.apply(x) is ")[2]
    assert shown == "with_gradient_of(x * 2, x * 3)"
    header = "from models.gradients import with_gradient_of"
    check, _ = checked(write(tmp_path / "net.py", f"return {shown}", header), tmp_path)
    assert check.passed
    assert "the gradient is not that of the forward function" in check.detail
    rewritten = from_model_file(tmp_path / "net.py")
    x = torch.tensor([[1.0, -2.0]], requires_grad=True)
    for module in (definition.module, reload(rewritten.module)):
        output = module(x)
        assert output.tolist() == [[2.0, -4.0]]
        assert torch.autograd.grad(output.sum(), x)[0].tolist() == [[3.0, 3.0]]


def test_several_functions_are_all_named(tmp_path: Path) -> None:
    path = write(tmp_path / "net.py", "return Round.apply(Surrogate.apply(x))", HEADER)
    definition = from_model_file(path)
    assert [call.name for call in function_calls(definition.module)] == ["Round", "Surrogate"]
    with pytest.raises(ExportError, match=r"so is '(Round|Surrogate)', called at "):
        save(compile_module(definition, "script").module, tmp_path / "module.pt", definition)
