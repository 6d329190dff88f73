"""Looking inside a request: the numbers are those of eager hooks, whoever shares the batch."""

import json
import zipfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from engine import plain_graph
from export.definition import from_model_file
from export.layers import watch
from export.observed import TOLERANCE, apart
from export.pipeline import export_model
from formats.layers import Layers
from formats.statistics import LayerStatistics
from handlers import observe
from handlers.model import Model
from handlers.service import Request, Service
from tests.conftest import ROOT
from tests.networks import (
    Branching,
    Encoder,
    ManyTypes,
    Packed,
    Recurrent,
    ResidualNet,
    Transformer,
    define,
    definition,
)

CPU = torch.device("cpu")
NETWORKS = [ResidualNet, Transformer, Encoder, Recurrent, Branching, ManyTypes]


class Inside:
    """A network, exported with every layer observed, and served."""

    def __init__(self, kind, folder, layers=("*",), change=None) -> None:
        self.definition = definition(kind)
        if change is not None:
            change(self.definition.module)
        archive = export_model(self.definition, folder, layers=layers).archive
        with zipfile.ZipFile(archive) as content:
            content.extractall(folder / "unpacked")
        self.layers = Layers.read(folder / "unpacked")
        self.service = Service(Model(folder / "unpacked", CPU))

    def ask(self, *tensors, header="stats"):
        requests = [
            Request(json.dumps({"inputs": x.tolist()}).encode(), {"x-activations": header})
            if header
            else Request(json.dumps({"inputs": x.tolist()}).encode())
            for x in tensors
        ]
        answers = self.service.handle(requests)
        assert [answer.status for answer in answers] == [200] * len(tensors), answers
        return [json.loads(answer.body) for answer in answers]

    def eager(self, x):
        """What NumPy says of what ordinary hooks see of a request by itself."""
        names = [layer.name for layer in self.layers.hooked]
        with torch.no_grad(), watch(self.definition.module, names) as calls:
            self.definition.module(x.clone())
        parts = {layer.name: layer.parts for layer in self.layers.hooked}
        counts, seen = {}, {}
        for call in calls:
            number = counts[call.name] = counts.get(call.name, -1) + 1
            for label, (_, tensor) in zip(parts[call.name], call.parts, strict=True):
                key = f"{call.name}@{number}" if number else call.name
                if tensor is not None:
                    seen[f"{key}:{label}" if label else key] = tensor
        return seen


@pytest.fixture
def inside(tmp_path):
    return lambda *arguments, **options: Inside(*arguments, tmp_path, **options)


def assert_statistics(found, tensor):
    values = tensor.abs().numpy() if tensor.is_complex() else tensor.double().numpy()
    assert found["elements"] == values.size
    wanted = {
        "mean": values.mean(),
        "std": values.std(),
        "min": values.min(),
        "max": values.max(),
        "zero_fraction": (values == 0).mean(),
        "non_finite": 0,
    }
    for name, number in wanted.items():
        assert found[name] == pytest.approx(number, rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize("kind", NETWORKS)
def test_statistics_are_those_of_eager_hooks_alone_and_in_any_batch(inside, kind):
    served = inside(kind)
    rows = [1, 2, 3, 1]
    requests = [torch.randn(n, *served.definition.examples[0][0].shape[1:]) for n in rows]
    requests += [-abs(requests[0]), abs(requests[0])]
    together = served.ask(*requests)
    for x, body in zip(requests, together, strict=True):
        eager = served.eager(x)
        layers = body["activations"]["layers"]
        assert list(layers) == [key for key in layers if key in eager]
        assert set(layers) == set(eager)
        for key, tensor in eager.items():
            assert_statistics(layers[key], tensor)
        [alone] = served.ask(x)
        assert alone["activations"]["layers"].keys() == layers.keys()
        assert body["activations"]["flags"]["non_finite"] is None


def test_each_row_of_a_request_has_its_own(inside):
    served = inside(ResidualNet)
    x = torch.randn(3, 1, 6, 6)
    [body] = served.ask(x)
    relu = body["activations"]["layers"]["blocks.0.relu@1"]
    assert len(relu["rows"]) == 3
    for row, found in enumerate(relu["rows"]):
        assert_statistics(found, served.eager(x[row : row + 1])["blocks.0.relu@1"])


def test_rows_are_found_behind_other_axes(inside):
    served = inside(Transformer)
    axes = {layer.name: layer.axes for layer in served.layers.hooked}
    assert axes["norm"] == (0,)
    assert axes["mlp.1"] == (1,)
    [body] = served.ask(torch.randn(3, 5, 8))
    assert len(body["activations"]["layers"]["mlp.1"]["rows"]) == 3


def test_a_branch_not_taken_is_absent(inside):
    served = inside(Branching)
    up, down = served.ask(torch.ones(1, 4), -torch.ones(1, 4))
    assert "tanh" not in up["activations"]["layers"]
    assert "relu" not in down["activations"]["layers"]


def test_the_default_layers_are_activations_and_what_feeds_the_output(tmp_path):
    served = Inside(ResidualNet, tmp_path, layers=())
    chosen = {layer.name for layer in served.layers.hooked if layer.chosen}
    assert chosen == {"blocks.0.relu", "blocks.1.relu", "head"}
    [body] = served.ask(torch.randn(1, 1, 6, 6))
    assert {key.partition("@")[0] for key in body["activations"]["layers"]} == chosen


def test_layers_that_no_hook_fits_are_named(inside):
    assert "PackedSequence" in inside(Packed).layers.left_out["lstm"]


def test_asking_changes_nothing_for_those_who_do_not_ask(inside):
    served = inside(ResidualNet)
    x, y = torch.randn(2, 1, 6, 6), torch.randn(1, 1, 6, 6)
    [plain] = served.ask(x, header=None)
    assert set(plain) == {"outputs"}
    body = json.dumps({"inputs": x.tolist()}).encode()
    asking = Request(json.dumps({"inputs": y.tolist()}).encode(), {"x-activations": "stats"})
    quiet, loud = served.service.handle([Request(body), asking])
    np.testing.assert_allclose(
        json.loads(quiet.body)["outputs"]["output"], plain["outputs"]["output"], atol=1e-5
    )
    assert set(json.loads(quiet.body)) == {"outputs"}
    assert "activations" in json.loads(loud.body)


def test_nobody_asking_runs_the_plain_graph(inside, monkeypatch):
    served = inside(Branching)
    monkeypatch.setattr(Model, "observe", None)
    served.ask(torch.ones(1, 4), header=None)


@pytest.mark.parametrize("planted", ["blocks.1.conv1", "blocks.0.bn2", "head"])
def test_the_layer_that_made_a_nan_is_named_and_no_other(tmp_path, planted):
    def plant(module):
        module.get_submodule(planted).bias.data[0] = float("nan")

    served = Inside(ResidualNet, tmp_path, layers=(), change=plant)
    x = torch.randn(2, 1, 6, 6)
    [body] = served.ask(x)
    assert body["activations"]["flags"]["non_finite"] == planted
    head = body["activations"]["layers"]["head"]
    assert head["mean"] is None
    assert head["non_finite"] == np.sum(~np.isfinite(served.eager(x)["head"].numpy()))


def test_one_request_with_a_nan_inside_leaves_its_neighbour_alone(tmp_path):
    def overflow(module):
        module.fc.weight.data.fill_(1e30)

    served = Inside(Branching, tmp_path, change=overflow)
    sick, well = served.ask(torch.full((1, 4), 1e20), torch.full((1, 4), 1e-20))
    assert sick["activations"]["flags"]["non_finite"] == "fc"
    assert sick["activations"]["layers"]["relu"]["non_finite"] == 4
    assert well["activations"]["flags"]["non_finite"] is None


def test_a_dead_layer_is_flagged(tmp_path):
    def kill(module):
        module.fc.bias.data.fill_(-100.0)

    served = Inside(Branching, tmp_path, change=kill)
    [body] = served.ask(torch.full((1, 4), 0.1))
    assert body["activations"]["flags"]["dead"] == ["relu"]


def test_raw_activations_of_any_layer(inside):
    served = inside(ResidualNet, layers=("head",))
    x = torch.randn(2, 1, 6, 6)
    [body] = served.ask(x, header="raw; layers=blocks.1, stem")
    raw = body["activations"]["raw"]
    assert set(raw) == {"stem", "blocks.1"}
    for key, values in raw.items():
        np.testing.assert_allclose(values, served.eager(x)[key], rtol=1e-5, atol=1e-5)


def test_raw_activations_are_those_of_the_moment(inside):
    """What the next layer does to them in place comes later."""
    served = inside(ResidualNet)
    x = torch.randn(2, *served.definition.examples[0][0].shape[1:])
    [body] = served.ask(x, header="raw; layers=blocks.0.bn1")
    values = np.asarray(body["activations"]["raw"]["blocks.0.bn1"])
    np.testing.assert_allclose(values, served.eager(x)["blocks.0.bn1"], rtol=1e-4, atol=1e-5)
    assert values.min() < 0


def test_raw_activations_have_a_limit(inside, monkeypatch):
    monkeypatch.setattr(observe, "RAW_LIMIT", 10)
    served = inside(Branching)
    body = json.dumps({"inputs": torch.ones(3, 4).tolist()}).encode()
    [answer] = served.service.handle([Request(body, {"x-activations": "raw; layers=fc"})])
    assert answer.status == 400
    assert "at most 10" in json.loads(answer.body)["error"]["expected"]


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("everything", "not understood"),
        ("stats; only=relu", "not understood"),
        ("stats; layers=nothing*", "'nothing*'"),
        ("raw", "which layers"),
    ],
)
def test_a_header_that_is_not_understood_is_refused_alone(inside, header, words):
    served = inside(Branching)
    body = json.dumps({"inputs": [1, 2, 3, 4]}).encode()
    bad, good = served.service.handle([Request(body, {"x-activations": header}), Request(body)])
    assert (bad.status, good.status) == (400, 200)
    assert words in json.loads(bad.body)["error"]["message"]


def _nodes(graph):
    """How often each kind of node is in a graph and in its branches and loops."""
    found = Counter()
    for node in graph.nodes():
        found[node.kind()] += 1
        for block in node.blocks():
            found += _nodes(block)
    del found["prim::Constant"]
    return found


@pytest.mark.parametrize("kind", NETWORKS)
def test_nothing_of_the_hooks_is_left_in_the_graph_of_those_who_do_not_ask(kind, tmp_path):
    torch.jit.script(definition(kind).module).save(str(tmp_path / "never_hooked.pt"))
    never_hooked = plain_graph(torch.jit.load(str(tmp_path / "never_hooked.pt")))
    served = Inside(kind, tmp_path).service._model._engine.plain
    assert not _nodes(served.graph) - _nodes(never_hooked.graph)


def test_batch_norm_is_folded_into_convolutions(inside):
    model = inside(ResidualNet, layers=("*relu",)).service._model
    for graph in (model._engine.plain.graph, model._engine.summary.graph):
        kinds = _nodes(graph)
        assert "aten::conv2d" in kinds
        assert "aten::batch_norm" not in kinds


def test_no_hook_is_left_on_the_eager_module(inside):
    served = inside(ManyTypes)
    for name, layer in served.definition.module.named_modules():
        assert not layer._forward_hooks, name
        assert not [key for key in vars(layer) if key.startswith("_vitrine")], name
        assert type(layer).forward is not None
        assert "_vitrine_forward" not in vars(type(layer)), name


def _tensors(graph):
    """Where the tensors are that a graph holds."""
    return {
        node.t("value").data_ptr()
        for node in graph.findAllNodes("prim::Constant", recurse=True)
        if node.hasAttribute("value")
        and node.kindOf("value") == "t"
        and node.t("value").numel() > 1
    }


def test_both_graphs_share_their_weights(inside):
    model = inside(Recurrent).service._model
    weights = {p.data_ptr() for p in model._whole.parameters()}
    for graph in (model._engine.plain.graph, model._engine.summary.graph):
        assert _tensors(graph)
        assert _tensors(graph) <= weights


def test_both_graphs_share_what_was_folded(inside):
    model = inside(ResidualNet, layers=("*relu",)).service._model
    weights = {p.data_ptr() for p in model._whole.parameters()}
    folded = _tensors(model._engine.plain.graph) - weights
    assert len(folded) >= 4
    assert _tensors(model._engine.summary.graph) <= weights | folded


class Capping(nn.Module):
    """Takes another way for a whole batch when one value in it is large; rows stay independent."""

    def __init__(self) -> None:
        super().__init__()
        self.cap = nn.Hardtanh(-3.0, 3.0)
        self.out = nn.Tanh()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x.abs() > 3).any()):
            x = self.cap(x)
        return self.out(x)


def test_nobody_gets_the_statistics_of_others_where_a_branch_depends_on_the_batch(tmp_path):
    own = define(Capping, torch.randn(6, 2), torch.full((3, 2), 4.0))
    archive = export_model(own, tmp_path, layers=("*",)).archive
    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path / "unpacked")
    model = Model(tmp_path / "unpacked", CPU)
    assert model.certificate.batching.independent
    rows = [[[0.5, 0.1]], [[4.0, 5.0]], [[0.2, 0.3], [0.1, 0.1]]]
    headers = {"x-activations": "stats"}
    requests = [Request(json.dumps({"inputs": one}).encode(), headers) for one in rows]
    together = [json.loads(answer.body) for answer in Service(model).handle(requests)]
    alone = [json.loads(Service(model).handle([one])[0].body) for one in requests]
    assert together == alone
    assert [one["activations"]["layers"]["out"]["elements"] for one in together] == [2, 2, 4]
    assert ["cap" in one["activations"]["layers"] for one in together] == [False, True, False]


def test_rows_are_told_apart_on_both_sides_of_a_branch(tmp_path):
    own = from_model_file(ROOT / "models" / "control_flow.py")
    archive = export_model(own, tmp_path, layers=("*",)).archive
    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path / "unpacked")
    service = Service(Model(tmp_path / "unpacked", CPU))
    width = own.examples[0][0].shape[-1]
    for sign in (1.0, -1.0):
        body = json.dumps({"inputs": [[sign] * width, [2 * sign] * width]}).encode()
        answer = json.loads(service.handle([Request(body, {"x-activations": "stats"})])[0].body)
        for name, layer in answer["activations"]["layers"].items():
            assert len(layer["rows"]) == 2, name


def test_a_value_that_rounding_puts_beyond_zero_is_no_difference():
    values = np.maximum(np.linspace(-1, 1, 20_000), 0)
    counted = LayerStatistics(
        elements=values.size,
        mean=float(values.mean()),
        std=float(values.std()),
        min=0.0,
        max=1.0,
        zero_fraction=float((values == 0).mean()),
        non_finite=0,
    )
    one = replace(counted, zero_fraction=counted.zero_fraction + 1 / values.size)
    some = replace(counted, zero_fraction=counted.zero_fraction + 10 / values.size)
    assert apart(counted, values) <= TOLERANCE
    assert apart(one, values) <= TOLERANCE
    assert apart(some, values) > TOLERANCE
