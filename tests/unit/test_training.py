"""Hooks on a module while it trains."""

import copy
import gc
import json
import weakref
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from benchmarks.activations import ResNet18
from models.dann import DANN
from models.digits import DigitsNet
from tests import networks
from tests.conftest import ROOT
from training import append_record, clip_norm, drop_non_finite, observed, scale

SCHEMA = json.loads((ROOT / "docs" / "activation-record.schema.json").read_text())
INF, NAN = float("inf"), float("nan")


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


class Shared(nn.Module):
    """One layer under two names, called three times; another called twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first
        self.act = nn.Tanh()

    def forward(self, x):
        return self.second(self.act(self.first(self.act(self.first(x)))))


class Pair(nn.Module):
    def forward(self, x):
        return x * 2, x.exp()


class Tupled(nn.Module):
    def __init__(self):
        super().__init__()
        self.pair = Pair()
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        a, b = self.pair(x)
        return self.head(a + b)


class DannLogits(DANN):
    def forward(self, x):
        digit, domain = self.logits(x)
        return torch.cat([digit, domain], 1)


class BatchNormCNN(nn.Sequential):
    def __init__(self):
        super().__init__(
            *(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, bias=False)),
            *(nn.BatchNorm2d(8), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
        )


class Wide(nn.Sequential):
    """Its tensors are measured by themselves, not copied."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))


MLP = lambda: nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))  # noqa: E731
PLAIN = [
    (MLP, (8, 16)),
    (BatchNormCNN, (4, 1, 12, 12)),
    (Wide, (4, 1, 20, 20)),
    (networks.Transformer, (3, 5, 8)),
    (networks.Encoder, (3, 5, 8)),
    (Shared, (5, 4)),
    (Tupled, (5, 4)),
    (DannLogits, (6, 8, 8)),
    (DigitsNet, (6, 8, 8)),
    (ResNet18, (2, 3, 32, 32)),
]


def numbers(array, *, gradient=False):
    """Return what NumPy says."""
    values = array.detach().double().numpy()
    found = {
        "elements": values.size,
        "mean": values.mean(),
        "std": values.std(),
        "min": values.min(),
        "max": values.max(),
        "zero_fraction": (values == 0).mean(),
        "non_finite": int((~np.isfinite(values)).sum()),
    }
    return {**found, "norm": np.linalg.norm(values.ravel())} if gradient else found


def agrees(record, wanted):
    size = max(abs(wanted["min"]), abs(wanted["max"]))
    for field, value in wanted.items():
        assert getattr(record.total, field) == pytest.approx(value, rel=1e-5, abs=1e-6 * size), (
            field
        )


def full_backward(model, loss):
    """Return what register_full_backward_hook sees, by layer and call, and the outputs."""
    gradients, outputs, handles = defaultdict(list), defaultdict(list), []
    for name, layer in list(model.named_modules())[1:]:

        def backward(layer, _, grads, name=name):
            gradients[name].append(grads)

        def forward(layer, _, output, name=name):
            outputs[name].append(output)

        handles.append(layer.register_full_backward_hook(backward))
        handles.append(layer.register_forward_hook(forward))
    loss(model).backward()
    for handle in handles:
        handle.remove()
    return {name: own[::-1] for name, own in gradients.items()}, outputs


def tensors(output):
    return [output] if isinstance(output, torch.Tensor) else list(output)


@pytest.mark.parametrize(("make", "shape"), PLAIN)
def test_statistics_equal_those_of_full_backward_hooks(make, shape):
    model, x = make(), torch.randn(shape, requires_grad=True)
    model(x)  # lazy layers
    model.eval() if isinstance(model, networks.Encoder) else model.train()
    twin = copy.deepcopy(model)

    def loss(model):
        return model(x).square().mean()

    gradients, outputs = full_backward(twin, loss)
    with observed(model) as training:
        loss(model).backward()
        record = training.step()
    # Full backward hooks put nodes into the graph, and sums then round in another order.
    plain = copy.deepcopy(twin)
    plain.zero_grad()
    loss(plain).backward()
    assert all(
        torch.equal(a.grad, b.grad)
        for a, b in zip(model.parameters(), plain.parameters(), strict=True)
        if b.grad is not None
    )
    seen = 0
    for name, calls in outputs.items():
        for call, output in enumerate(calls):
            parts = tensors(output)
            for part, tensor in enumerate(parts):
                if tensor is None:
                    continue
                key = f"{name}@{call}" if call else name
                key = f"{key}:{part}" if len(parts) > 1 or isinstance(output, tuple) else key
                agrees(record.activations.layers[key], numbers(tensor))
                gradient = gradients[name][call][part]
                if key in record.gradients.layers:
                    agrees(record.gradients.layers[key], numbers(gradient, gradient=True))
                    seen += 1
                else:
                    assert gradient is None or not gradient.any()
    assert seen == len(record.gradients.layers) >= 3
    assert record.rows == shape[0] or isinstance(model, networks.Transformer)


def test_layers_that_work_in_place():
    # A full backward hook breaks them, so the gradients are those of the network without.
    model, x = networks.ResidualNet(), torch.randn(4, 1, 6, 6, requires_grad=True)
    twin = copy.deepcopy(model)
    for layer in twin.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    with pytest.raises(RuntimeError, match="inplace"):
        full_backward(copy.deepcopy(model), lambda model: model(x).sum())
    gradients, outputs = full_backward(twin, lambda model: model(x).square().sum())
    with observed(model, ["type:*"]) as training:
        model(x).square().sum().backward()
        record = training.step()
    for name, calls in outputs.items():
        for call, output in enumerate(calls):
            key = f"{name}@{call}" if call else name
            agrees(record.activations.layers[key], numbers(output))
            agrees(record.gradients.layers[key], numbers(gradients[name][call][0], gradient=True))
    assert "blocks.0.relu@1" in record.gradients.layers


def test_in_place_work_on_what_a_layer_passed_on():
    def make(inplace):
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Linear(4, 4), nn.Dropout(0.5), nn.Identity(), nn.ReLU(inplace), nn.Identity()),
            nn.Linear(4, 2),
        ).eval()

    x, change = torch.randn(3, 4), {"*": scale(2.0)}
    found = []
    for model in (make(True), make(False)):
        with observed(model, change=change) as training:
            model(x).square().sum().backward()
            record = training.step()
        found.append(({key: layer.total for key, layer in record.gradients.layers.items()}, model))
    (own, worked), (wanted, plain) = found
    assert own.keys() == wanted.keys() == set("012345")
    assert all(own[key] == wanted[key] for key in own)
    assert torch.equal(worked[0].weight.grad, plain[0].weight.grad)


def test_parts_of_a_recurrent_layer():
    model, x = networks.Recurrent(), torch.randn(2, 4, 3)
    kept = {}

    def keep(layer, inputs, output):
        for path, tensor in {"0": output[0], "1_0": output[1][0], "1_1": output[1][1]}.items():
            tensor.retain_grad()
            kept.setdefault(path, []).append(tensor)

    handle = model.lstm.register_forward_hook(keep)
    with observed(model) as training:
        model(x).sum().backward()
        record = training.step()
    handle.remove()
    for path, calls in kept.items():
        for call, tensor in enumerate(calls):
            key = (f"lstm@{call}" if call else "lstm") + f":{path}"
            agrees(record.activations.layers[key], numbers(tensor))
            if tensor.grad is None:
                assert key not in record.gradients.layers
            else:
                agrees(record.gradients.layers[key], numbers(tensor.grad, gradient=True))
    assert "lstm:1_1" in record.gradients.layers


@pytest.mark.parametrize("kind", [networks.ManyTypes, networks.Packed, networks.Branching])
def test_other_outputs(kind):
    with observed(kind()) as training:
        record = training.step()
    assert (record.rows, record.activations.layers, record.gradients) == (0, {}, None)
    model = kind()
    with observed(model) as training:
        model(torch.randn(3, *networks.SHAPES[kind])).sum().backward()
        record = training.step()
    json.dumps(record.to_json(), allow_nan=False)
    assert record.gradients.layers
    if kind is networks.ManyTypes:
        assert {
            "parts:2_sign",
            "parts:2_half",
            "relu@1",
            "spectrum",
        } < record.activations.layers.keys()
        assert "spectrum" not in record.gradients.layers


# Hooks


def hooks(model):
    tables = [name for name in vars(nn.Module()) if "hooks" in name]
    assert "_forward_hooks" in tables
    return {
        (name, table): tuple(getattr(layer, table))
        for name, layer in model.named_modules()
        for table in tables
    }


class Guilty(nn.Module):
    """Raises in the forward or backward pass."""

    def __init__(self, error, backward):
        super().__init__()
        self.error, self.backward = error, backward

    def forward(self, x):
        def fail(gradient):
            raise self.error

        if not self.backward:
            raise self.error
        y = x * 1
        y.register_hook(fail)
        return y


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("where", ["forward", "backward", "user", "change"])
def test_no_hook_is_left_after_an_error(error, where):
    def change(gradient):
        if where == "change":
            raise error

    guilty = Guilty(error, where == "backward") if where in ("forward", "backward") else nn.Tanh()
    model = nn.Sequential(nn.Linear(3, 3), guilty, nn.ReLU())
    mine = model[2].register_forward_hook(lambda *_: None)
    before = hooks(model)
    with pytest.raises(type(error)), observed(model, change={"*": change}):  # noqa: PT012
        assert hooks(model) != before
        loss = model(torch.randn(2, 3)).sum()
        loss.backward()
        if where == "user":
            raise error
    assert hooks(model) == before
    mine.remove()


def test_no_hook_is_left_by_a_generator_or_a_bad_pattern():
    model = MLP()
    before = hooks(model)

    def steps():
        with observed(model, change={"0": scale(2.0)}) as training:
            while True:
                model(torch.randn(2, 16)).sum().backward()
                yield training.step()

    running = steps()
    assert next(running).request_id == "step 0"
    assert next(running).request_id == "step 1"
    running.close()
    assert hooks(model) == before
    forgotten = steps()
    next(forgotten)
    del forgotten
    assert hooks(model) == before
    words = "'nope' fits no layer; the layers are 0, 1, 2"
    with pytest.raises(ValueError, match=words), observed(model, ["*", "nope"]):
        pass
    with pytest.raises(ValueError, match="'nope'"), observed(model, change={"nope": scale(1)}):
        pass
    assert hooks(model) == before


def test_a_graph_that_was_kept_is_left_alone():
    model, x = MLP(), torch.randn(2, 16)
    seen = []
    with observed(model, change={"*": [seen.append, scale(0.0)]}) as training:
        kept = model(x).sum()
        training.step()
        late = model(x).sum()
    kept.backward()
    late.backward()
    assert not seen
    assert model[0].weight.grad.any()
    with pytest.raises(RuntimeError, match="inside the with block"):
        training.step()


def test_a_parameter_that_a_layer_returns_keeps_no_hook():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self):
            return self.weight

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = Table()

        def forward(self):
            return self.table().square().sum()

    model = Whole()
    with observed(model, change={"table": scale(3.0)}) as training:
        model().backward()
        assert training.step().gradients.layers["table"].total.max == 2.0
    assert model.table.weight.grad.tolist() == [6.0] * 3
    assert not model.table.weight._backward_hooks


def test_nothing_is_kept_alive():
    model, x = MLP(), torch.randn(2, 16)
    gc.disable()
    try:
        context = observed(model)
        training = context.__enter__()
        output = model(x)
        inner, outer = weakref.ref(output), weakref.ref(model)
        output.sum().backward()
        del output
        assert inner() is None
        training.step()
        assert training._step.meter._copies == {}
        context.__exit__(None, None, None)
        del model, context
        assert outer() is None
    finally:
        gc.enable()


def test_changes_alone_pile_nothing_up():
    model = MLP()
    with observed(model, (), change={"0": scale(1.0)}) as training:
        for _ in range(3):
            model(torch.randn(2, 16)).sum().backward()
        gc.collect()
        step = training._step
        assert (len(step._taps), len(step._seen), step.parts) == (0, 0, [])


def test_a_deep_copy_is_not_observed():
    model, x = MLP(), torch.randn(2, 16)
    with observed(model) as training:
        copy.deepcopy(model)(x).sum().backward()
        assert not training.step().activations.layers


# Costs


class Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[function.overloadpacket._qualified_op_name] += 1
        return function(*args, **(kwargs or {}))


WAITS = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero"}
COPIES = {"aten::_to_copy", "aten::copy_"}


@pytest.mark.parametrize(("make", "shape"), [(MLP, (8, 16)), (Wide, (4, 1, 20, 20))])
def test_one_transfer_a_step(make, shape):
    model, x = make(), torch.randn(shape)
    model(x)
    change = {"*": [drop_non_finite(), clip_norm(1.0), scale(0.5)]}
    with observed(model, change=change) as training, Counting() as counting:
        model(x).sum().backward()
        assert not counting.calls.keys() & (WAITS | COPIES)
        read = []
        tolist = torch.Tensor.tolist
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "tolist", lambda own: read.append(own) or tolist(own))
            training.step()
    assert len(read) == 1
    assert not counting.calls.keys() & (WAITS | COPIES)


def test_observing_does_not_change_training():
    def trained(watched):
        torch.manual_seed(1)
        model = networks.ResidualNet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def steps(training):
            for _ in range(3):
                optimizer.zero_grad()
                model(torch.randn(4, 1, 6, 6)).square().mean().backward()
                optimizer.step()
                if training:
                    training.step()

        if watched:
            with observed(model) as training:
                steps(training)
        else:
            steps(None)
        return model.state_dict()

    plain, watched = trained(False), trained(True)
    assert all(torch.equal(plain[name], watched[name]) for name in plain)


# What runs when


def test_several_passes_in_one_step():
    model, x = MLP(), torch.randn(2, 16)
    with observed(model) as training:
        with torch.no_grad():
            model(x)
        with torch.inference_mode():
            model(x)
        for _ in range(2):
            model(x).sum().backward()
        record = training.step()
        assert list(record.gradients.layers) == ["0", "1", "2", "0@1", "1@1", "2@1"]
        loss = model(x).sum()
        loss.backward(retain_graph=True)
        (loss * 3).backward()
        assert training.step().gradients.layers["2"].total.mean == 3.0
        model.eval()
        model(torch.randn(7, 16))
        record = training.step()
    assert (record.rows, record.gradients, record.request_id) == (7, None, "step 2")


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_is_seen_once(reentrant):
    model, x = MLP(), torch.randn(2, 16, requires_grad=True)
    with observed(model) as training:
        model(x).sum().backward()
        plain = training.step()
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
        record = training.step()
    assert record.gradients == plain.gradients
    assert record.activations == plain.activations


def test_modules_that_cannot_be_observed_are_refused():
    model = MLP()
    compiled = MLP()
    compiled[1].compile()
    for other, word in [
        (torch.jit.script(model), "scripted"),
        (torch.compile(model), "compiled"),
        (compiled, "1 .ReLU. is compiled"),
        (nn.DataParallel(model), "DistributedDataParallel"),
    ]:
        with pytest.raises(ValueError, match=word), observed(other):
            pass


# Changes


def gradients(model, x, change, layers=("*",)):
    with observed(model, layers, change=change) as training:
        x.grad = None
        model(x).sum().backward()
        return x.grad, training.step()


def test_a_changed_gradient_flows_on_and_the_record_has_the_one_that_arrived():
    model = nn.Sequential(nn.Identity(), nn.Sequential(nn.Identity(), nn.Identity()), nn.Identity())
    x = torch.ones(2, 2, requires_grad=True)
    doubled = {"1": scale(2.0), "1.1": scale(5.0), "type:Identity": [scale(1.0), lambda g: None]}
    found, record = gradients(model, x, doubled)
    means = {key: layer.total.mean for key, layer in record.gradients.layers.items()}
    assert means == {"0": 10.0, "1.0": 10.0, "1.1": 2.0, "1": 1.0, "2": 1.0}
    assert found.unique().item() == 10.0
    found, record = gradients(model, x, {"0": scale(-1.0)}, layers=["2"])
    assert found.unique().item() == -1.0
    assert list(record.gradients.layers) == ["2"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_clip_norm(dtype):
    clip = clip_norm(2.0)
    long, short = torch.full((100,), 300.0, dtype=dtype), torch.rand(4).to(dtype)
    assert clip(long).dtype == dtype
    assert clip(long).double().norm().item() == pytest.approx(2.0, rel=1e-2)
    assert torch.equal(clip(short), short)
    assert torch.equal(clip(torch.zeros(3, dtype=dtype)), torch.zeros(3, dtype=dtype))
    assert torch.equal(clip_norm(0.0)(long), torch.zeros_like(long))
    with pytest.raises(ValueError, match="at least 0"):
        clip_norm(-1.0)
    with pytest.raises(ValueError, match="nan"):
        clip_norm(NAN)


def test_drop_non_finite():
    gradient = torch.tensor([NAN, INF, -INF, -0.0, 3e38])
    assert drop_non_finite()(gradient).tolist() == [0.0, 0.0, 0.0, 0.0, gradient[4].item()]
    assert drop_non_finite()(torch.complex(gradient, gradient)).isfinite().all()


# Flags


@pytest.mark.parametrize("width", [4, 20_000])
def test_what_is_not_finite_is_counted_and_traced_to_its_producer(width):
    class Root(nn.Module):
        def forward(self, x):
            return x.sqrt()

    class Plus(nn.Module):
        def forward(self, x):
            return x + 1

    model = nn.Sequential(nn.Identity(), nn.Tanh(), Root(), Plus(), nn.ReLU(inplace=True))
    x = torch.full((2, width), -1.0)
    x[0, :3] = torch.tensor([1.0, 2.0, 0.0])
    x.requires_grad_()
    with observed(model) as training:
        model(x)[0, :3].sum().backward()
        record = training.step()
    strange = 2 * width - 3
    layers = {key: layer.total for key, layer in record.activations.layers.items()}
    assert record.activations.non_finite == "2"
    assert layers["1"].non_finite == 0
    assert (layers["2"].non_finite, layers["2"].zero_fraction) == (strange, 1 / (2 * width))
    assert (layers["3"].non_finite, layers["3"].max) == (strange, None)
    # The derivative of the root at 0, where 0.5 / 0 is infinite, and NaN where it is not real.
    assert record.gradients.layers["1"].total.non_finite == strange + 1
    assert record.gradients.exploding == ("0", "1")


def deep(width, act, gain):
    layers = []
    for _ in range(20):
        linear = nn.Linear(width, width)
        nn.init.normal_(linear.weight, std=gain / width**0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, act()]
    return nn.Sequential(*layers)


def flow(model, x, steps=1):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with observed(model) as training:
        for _ in range(steps):
            output = model(x)
            nn.functional.cross_entropy(output, torch.arange(len(x)) % output.size(1)).backward()
            optimizer.step()
            optimizer.zero_grad()
            record = training.step()
    return record.gradients


def test_vanishing_and_exploding():
    x = torch.randn(32, 64)
    vanishing = flow(deep(64, nn.Sigmoid, 1.0), x)
    assert {"0", "1", "2"} <= set(vanishing.vanishing)
    assert "38" not in vanishing.vanishing
    assert not vanishing.exploding
    exploding = flow(deep(64, nn.ReLU, 4.0), x)
    assert {"0", "1", "2"} <= set(exploding.exploding)
    assert not exploding.vanishing


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: deep(64, nn.ReLU, 2**0.5), (32, 64)),
        (DigitsNet, (32, 8, 8)),
        (ResNet18, (4, 3, 64, 64)),
    ],
)
def test_healthy_networks_neither_vanish_nor_explode(make, shape):
    found = flow(make(), torch.randn(shape))
    assert (found.vanishing, found.exploding) == ((), ())


# The log


def test_records_are_lines_that_the_schema_allows(tmp_path):
    model, path = MLP(), tmp_path / "mlp.jsonl"
    with observed(model, ["type:ReLU", "2"], name="mlp", version="1.0") as training:
        for value in (1.0, NAN):
            model(torch.full((3, 16), value)).sum().backward()
            append_record(path, training.step())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        Draft202012Validator(SCHEMA).validate(line)
    assert [line["request_id"] for line in lines] == ["step 0", "step 1"]
    assert {line["reason"] for line in lines} == {"training"}
    assert lines[0]["gradients"]["of"] == "loss"
    assert lines[1]["layers"]["2"]["mean"] is None
    assert list(lines[0]["layers"]) == ["1", "2"]
    assert (lines[0]["model"], lines[0]["model_version"], lines[0]["rows"]) == ("mlp", "1.0", 3)


def test_the_example_in_the_docs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "gradients.md").read_text().partition("## During training")[2]
    exec(page.partition("```python\n")[2].partition("```")[0], {})
    lines = (tmp_path / "digits.jsonl").read_text().splitlines()
    assert list(json.loads(lines[-1])["gradients"]["layers"])[-1] == "head"
    assert len(capsys.readouterr().out.splitlines()) == len(lines) == 3
