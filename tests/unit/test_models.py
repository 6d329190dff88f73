"""The example models: the layer's algebra, the contract of a model file, training, accuracy."""

import importlib.util
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models import control_flow, dann, data, digits, train
from models.gradient_report import Flow, write
from models.gradient_reversal import GradientReversal, GradientReversalFunction

ROOM = Path(train.__file__).parent
FILES = ["control_flow", "activation_mlp", "digits", "dann"]
INF, NAN = float("inf"), float("nan")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def reload(module: nn.Module) -> torch.jit.ScriptModule:
    """Script, save and load `module`."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def model_file(name: str) -> ModuleType:
    """Load a model file from its path, as the export stage does."""
    spec = importlib.util.spec_from_file_location(f"loaded_{name}", ROOM / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bits(x: Tensor) -> Tensor:
    return x.detach().view({4: torch.int32, 8: torch.int64, 2: torch.int16}[x.element_size()])


def gradient(output: Tensor, x: Tensor, incoming: Tensor) -> Tensor:
    return torch.autograd.grad(output, x, incoming)[0]


# The gradient reversal layer


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 7.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scripted", [False, True])
def test_reversal_equals_the_function(alpha: float, dtype: torch.dtype, scripted: bool) -> None:
    layer = reload(GradientReversal(alpha)) if scripted else GradientReversal(alpha)
    generator = torch.Generator().manual_seed(0)
    # Several calls: TorchScript optimises after it has profiled the first ones.
    for shape in [(3,), (2, 5), (2, 3, 4), (2, 5), (2, 5)]:
        x = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
        incoming = torch.randn(shape, generator=generator).to(dtype)
        output = layer(x)
        reference = cast(Tensor, GradientReversalFunction.apply(x, alpha))
        assert torch.equal(bits(output), bits(reference))
        assert torch.equal(gradient(output, x, incoming), gradient(reference, x, incoming))


@pytest.mark.parametrize("scripted", [False, True])
def test_reversal_is_exact_where_floats_are_special(scripted: bool) -> None:
    layer = reload(GradientReversal(2.0)) if scripted else GradientReversal(2.0)
    x = torch.tensor([INF, -INF, NAN, 0.0, -0.0, 3.4e38, -3.4e38, 1e-45], requires_grad=True)
    output = layer(x)
    assert torch.equal(bits(output), bits(x))
    assert torch.equal(gradient(output, x, torch.ones(8)), torch.full((8,), -2.0))


def test_alpha_can_be_set_after_loading() -> None:
    layer = reload(GradientReversal(1.0))
    layer.alpha = 0.25
    x = torch.ones(3, requires_grad=True)
    assert gradient(layer(x), x, torch.ones(3)).tolist() == [-0.25] * 3


def test_freezing_loses_the_reversal() -> None:
    frozen = torch.jit.freeze(reload(GradientReversal(1.0).eval()))
    x = torch.tensor([1.0, -INF, -0.0], requires_grad=True)
    output = frozen(x)
    assert torch.equal(bits(output), bits(x))
    assert gradient(output, x, torch.ones(3)).tolist() != [-1.0] * 3


@pytest.mark.parametrize("alpha", [-0.1, INF, NAN])
def test_alpha_is_checked(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be finite"):
        GradientReversal(alpha)


# Model files


@pytest.mark.parametrize("name", FILES)
def test_contract(name: str) -> None:
    file = model_file(name)
    assert (file.__doc__ or "").splitlines()[0]
    assert isinstance(file.VERSION, str)
    before = torch.random.get_rng_state()
    model, examples = file.build(), file.examples()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(module.training for module in model.modules())
    assert len({example[0].shape[0] for example in examples}) >= 3
    loaded = reload(model)
    for example in examples:
        assert len(example) == len(file.INPUTS)
        for tensor, declared in zip(example, file.INPUTS.values(), strict=True):
            assert tensor.dtype == torch.float32
            assert list(tensor.shape[1:]) == declared["shape"][1:]
            assert tensor.min() >= declared.get("minimum", -INF)
            assert tensor.max() <= declared.get("maximum", INF)
        with torch.no_grad():
            output, scripted = model(*example), loaded(*example)
        outputs = output if isinstance(output, tuple) else (output,)
        scripts = scripted if isinstance(scripted, tuple) else (scripted,)
        assert len(outputs) == len(scripts) == len(file.OUTPUTS)
        labels = getattr(file, "LABELS", {})
        for key, eager, graph in zip(file.OUTPUTS, outputs, scripts, strict=True):
            torch.testing.assert_close(graph, eager)
            assert eager.shape[0] == example[0].shape[0]
            if key in labels:
                assert eager.shape[1] == len(labels[key])
                torch.testing.assert_close(eager.sum(dim=1), torch.ones(len(eager)))


@pytest.mark.parametrize("name", FILES)
def test_build_is_deterministic(name: str) -> None:
    first, second = (model_file(name).build().state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_control_flow_takes_both_branches() -> None:
    model = control_flow.build()
    taken: set[str] = set()
    cast(nn.Module, model.relu).register_forward_hook(lambda *_: taken.add("relu"))
    cast(nn.Module, model.tanh).register_forward_hook(lambda *_: taken.add("tanh"))
    counts: dict[str, set[int]] = {"relu": set(), "tanh": set()}
    for (x,) in control_flow.examples():
        taken.clear()
        model(x)
        (branch,) = taken
        counts[branch].add(len(x))
    assert all(len(rows) >= 3 for rows in counts.values())


def test_control_flow_rows_influence_each_other() -> None:
    model = control_flow.build()
    row = torch.full((1, 10), 0.1)
    with torch.no_grad():
        together = model(torch.cat([row, -10.0 * row]))[:1]
        assert not torch.allclose(model(row), together)


# Data


def test_split_is_disjoint_stratified_and_complete() -> None:
    split = data.split()
    assert (len(split.train), len(split.held_out)) == (1347, 450)
    for label in range(10):
        share = (split.held_out.labels == label).sum() / (data.digits().labels == label).sum()
        assert abs(float(share) - data.HELD_OUT) < 0.005
    joined = torch.cat([split.train.images, split.held_out.images]).flatten(1)
    whole = data.digits().images.flatten(1)
    assert torch.equal(joined.unique(dim=0), whole.unique(dim=0))
    assert len(joined) == len(whole)


def test_domains_share_no_image() -> None:
    domains = data.domains()
    assert abs(len(domains.source) - len(domains.target)) < 10
    assert domains.target.min() >= 0.0
    assert domains.target.max() <= 16.0
    shifted = data.shift(domains.source.images).flatten(1)
    assert torch.cdist(shifted, domains.target.flatten(1)).min() > 0.0


# Training


@pytest.mark.parametrize("scripted", [False, True])
def test_dann_reverses_the_domain_gradient(scripted: bool) -> None:
    """With respect to the features' weights: -alpha times what a plain identity gives."""
    alpha = 0.7
    model = dann.build()
    plain = dann.build()
    plain.reversal = nn.Identity()
    model.reversal.alpha = alpha
    subject = reload(model) if scripted else model
    images = dann.examples()[-1][0]
    labels = torch.arange(len(images)) % 2

    def gradients(module: nn.Module) -> list[Tensor]:
        _, domain = module.logits(images)
        weights = [p for name, p in module.named_parameters() if name.startswith("features")]
        loss = nn.functional.cross_entropy(domain, labels)
        return list(torch.autograd.grad(loss, weights))

    for _ in range(3):
        for found, identity in zip(gradients(subject), gradients(plain), strict=True):
            torch.testing.assert_close(found, -alpha * identity)
            assert found.abs().max() > 0.0


def test_dann_reverses_at_the_layer() -> None:
    model = dann.build()
    model.reversal.alpha = 0.7
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        seen.extend([inputs[0], output])
        inputs[0].retain_grad()
        output.retain_grad()

    model.reversal.register_forward_hook(keep)
    model.logits(dann.examples()[-1][0])[1].square().sum().backward()
    features, reversed_features = seen
    assert features.grad is not None
    assert reversed_features.grad is not None
    assert torch.equal(features.grad, -0.7 * reversed_features.grad)


def test_training_is_reproducible(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("first", "second"):
        torch.rand(7)  # the state of the global generator must not matter
        out = str(tmp_path / name)
        options = ["--epochs", "1", "--seeds", "5", "--out", out, "--report", out]
        train.main(["all", *options])
    for name in ("digits.safetensors", "dann.safetensors"):
        first, second = load_file(tmp_path / "first" / name), load_file(tmp_path / "second" / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    captured = capsys.readouterr()
    assert "held-out accuracy, %" in captured.out
    assert "dann with reversal, seed 5: epoch 1/1" in captured.err


def test_observing_changes_no_weight() -> None:
    flow = Flow()
    observed = train.train_dann(3, True, epochs=2, flow=flow).state_dict()
    plain = train.train_dann(3, True, epochs=2).state_dict()
    assert all(torch.equal(bits(observed[key]), bits(plain[key])) for key in plain)
    steps = len(flow.cosines)
    assert steps > 10
    assert {len(norms) for norms in flow.norms.values()} == {steps}
    assert list(flow.norms)[-2:] == ["domain.0", "domain.2"]


def test_the_report_shows_both_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--epochs", "3", "--seeds", "0", "--out", str(tmp_path), "--report"]
    train.main(["dann", *options, str(tmp_path / "new")])
    page = tmp_path / "new" / "dann.training.md"
    assert f"gradient flow: {page}" in capsys.readouterr().out
    assert "| `features.0` | " in page.read_text()
    assert "vanishing in some step: none; exploding: none" in page.read_text()
    assert (tmp_path / "new" / "dann.training.png").read_bytes().startswith(b"\x89PNG")
    found = re.search(r"back: (\S+) without, (\S+) with\.", page.read_text())
    assert found is not None
    without, adapted = map(float, found.groups())
    assert adapted < without - 0.03
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    write(tmp_path, Flow({"a": [1.0]}, [0.5]), Flow({"a": [2.0]}, [0.5]))
    assert "needs matplotlib" in (tmp_path / "dann.training.md").read_text()


def test_seeds_differ() -> None:
    first, second = (train.train_digits(seed, epochs=1).head.weight for seed in (0, 1))
    assert not torch.equal(first, second)


def test_without_reversal_the_domain_head_leaves_the_features_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = train.train_dann(0, reversal=False, epochs=1)
    domains = data.domains()
    noise = torch.rand(domains.target.shape, generator=torch.Generator().manual_seed(0))
    other = data.Domains(domains.source, 16.0 * noise)
    monkeypatch.setattr(data, "domains", lambda: other)
    noisy = train.train_dann(0, reversal=False, epochs=1)
    for found, expected in zip(
        noisy.features.parameters(), plain.features.parameters(), strict=True
    ):
        torch.testing.assert_close(found, expected)


# The shipped weights


def test_digits_reads_held_out_digits() -> None:
    held_out = data.split().held_out
    assert train.accuracy(digits.build(), held_out.images, held_out.labels) >= 0.97


def test_dann_reads_the_target_better_than_source_only() -> None:
    row = train.compare(0, train.train_dann(0, reversal=False), dann.build())
    assert row.target_without < 0.85
    assert row.gain > 0.05
    assert row.source_with > 0.94
