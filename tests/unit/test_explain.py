"""Explanations of a scripted, exported model: those of captum and of hooks on the eager one."""

import copy
import io
import json
import sys
import zipfile
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients, Saliency
from torch import nn

from export.definition import InputOptions, from_model_file
from export.pipeline import export_model
from formats.layers import Layers
from handlers.model import Model
from handlers.service import Request, Service
from tests.conftest import model_file
from tests.networks import (
    Branching,
    Encoder,
    Recurrent,
    ResidualNet,
    Transformer,
    define,
    definition,
)

CPU = torch.device("cpu")
CAPTUM = {
    "saliency": Saliency,
    "input_x_gradient": InputXGradient,
    "integrated_gradients": IntegratedGradients,
}
NETWORKS = [ResidualNet, Transformer, Encoder, Recurrent, Branching]


class Served:
    """An exported model and its service."""

    def __init__(self, own, folder) -> None:
        self.definition = own
        self.module = own.module.eval()
        with zipfile.ZipFile(export_model(own, folder).archive) as content:
            content.extractall(folder / "unpacked")
        self.layers = Layers.read(folder / "unpacked")
        self.model = Model(folder / "unpacked", CPU)
        self.service = Service(self.model)

    def answer(self, document, header="", **headers):
        request = Request(
            json.dumps(document).encode(), {"explain": "True", "x-explain": header, **headers}
        )
        return self.service.handle([request])[0]

    def explain(self, document, header="", **headers):
        answer = self.answer(document, header, **headers)
        assert answer.status == 200, answer.body
        return json.loads(answer.body)

    def refusal(self, document, header="", **headers):
        answer = self.answer(document, header, **headers)
        return answer.status, json.loads(answer.body)["error"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    made = {}

    def serve(kind):
        if kind not in made:
            own = from_model_file(model_file(kind)) if isinstance(kind, str) else definition(kind)
            made[kind] = Served(own, tmp_path_factory.mktemp("explained"))
        return made[kind]

    return serve


def without_in_place(module):
    """The same module, so that full backward hooks can be registered on it."""
    module = copy.deepcopy(module)
    for part in module.modules():
        if isinstance(part, nn.ReLU):
            part.inplace = False
    return module


@pytest.mark.parametrize("method", CAPTUM)
@pytest.mark.parametrize("kind", NETWORKS)
def test_attributions_are_those_of_captum_on_the_eager_module(served, kind, method):
    own = served(kind)
    for rows in (1, 3):
        x = torch.randn(rows, *own.definition.examples[0][0].shape[1:])
        if kind is Branching:
            x = x.abs()
        body = own.explain({"inputs": x.tolist()}, method)
        places = [entry["target"] for entry in body["explanations"]]
        targets = [tuple(place) if isinstance(place, list) else place for place in places]
        tool = CAPTUM[method](lambda *given: own.module(*(one.clone() for one in given)))
        more = {"internal_batch_size": rows} if method == "integrated_gradients" else {}
        wanted = tool.attribute(x.clone().requires_grad_(), target=targets, **more)
        wanted = wanted.detach()
        found = np.array([entry["attributions"]["x"] for entry in body["explanations"]])
        scale = float(wanted.abs().max())
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4 * scale, rtol=1e-4)
        scores = [entry["score"] for entry in body["explanations"]]
        greatest = own.module(x.clone()).detach().reshape(rows, -1).amax(1)
        np.testing.assert_allclose(scores, greatest, rtol=1e-4, atol=1e-5)


def hooked_gradients(module, x, target):
    """What full backward hooks of an eager module see, by layer and call."""
    seen = {}
    calls = {}

    def hook(name):
        def forward(part, _, output):
            number = calls[name] = calls.get(name, -1) + 1
            key = f"{name}@{number}" if number else name
            tensors = output if isinstance(output, tuple) else (output,)
            for tensor in tensors:
                if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                    tensor.retain_grad()
                    seen.setdefault(key, tensor)

        return forward

    handles = [
        part.register_forward_hook(hook(name)) for name, part in module.named_modules() if name
    ]
    output = module(x.clone().requires_grad_())
    output.reshape(len(x), -1)[:, target].sum().backward()
    for handle in handles:
        handle.remove()
    return {key: tensor.grad for key, tensor in seen.items() if tensor.grad is not None}


@pytest.mark.parametrize("kind", NETWORKS)
def test_gradient_flow_is_what_hooks_of_the_eager_module_see(served, kind):
    own = served(kind)
    x = torch.randn(3, *own.definition.examples[0][0].shape[1:]).abs()
    target = "[0, 1]" if kind is Encoder else "1"
    body = own.explain({"inputs": x.tolist()}, f"gradient_flow; target={target}")
    module = without_in_place(own.module)
    wanted = hooked_gradients(module, x, 1)
    found = body["gradients"]["layers"]
    assert body["gradients"]["of"] == body["output"]
    names = {layer.name for layer in own.layers.hooked}
    compared = 0
    for key, gradient in wanted.items():
        name = key.partition("@")[0]
        if name not in names or f"{key}:0" in found:
            continue
        layer = next(layer for layer in own.layers.hooked if layer.name == name)
        compared += 1
        assert_gradient(found[key], gradient)
        if layer.axes[0] == 0 and len(gradient) == 3:
            for row in range(3):
                assert_gradient(found[key]["rows"][row], gradient[row])
    assert compared >= 2


def assert_gradient(found, gradient):
    values = gradient.double().numpy()
    assert found["elements"] == values.size
    scale = float(np.abs(values).max())
    for name, number in {
        "norm": np.linalg.norm(values),
        "mean": values.mean(),
        "std": values.std(),
        "min": values.min(),
        "max": values.max(),
    }.items():
        assert found[name] == pytest.approx(number, rel=1e-4, abs=1e-5 * scale), name
    assert found["zero_fraction"] == pytest.approx((np.abs(values) == 0).mean(), abs=0.02)
    assert found["non_finite"] == 0


def test_gradients_equal_those_of_full_backward_hooks(served):
    own = served(Transformer)
    x = torch.randn(2, 5, 8)
    wanted = {}
    module = copy.deepcopy(own.module)
    for name, part in module.named_modules():
        if name and not isinstance(part, nn.MultiheadAttention):
            part.register_full_backward_hook(
                lambda part, inner, outer, name=name: wanted.update({name: outer[0]})
            )
    module(x.requires_grad_())[:, 0].sum().backward()
    found = own.explain({"inputs": x.tolist()}, "gradient_flow; target=0")["gradients"]["layers"]
    shared = wanted.keys() & found.keys()
    assert {"norm", "mlp", "mlp.0", "mlp.1", "mlp.2", "head"} <= shared
    for name in shared:
        assert_gradient(found[name], wanted[name])


def test_the_reversed_gradient_shows_at_the_reversal_and_in_the_attribution(served):
    own = served("dann")
    image = torch.rand(8, 8) * 16
    body = own.explain({"inputs": image.tolist()}, "saliency; output=domain; target=1")
    layers = body["gradients"]["layers"]
    before, after = layers["features"], layers["reversal"]
    alpha = own.module.reversal.alpha
    assert after["norm"] > 0
    assert before["norm"] == pytest.approx(alpha * after["norm"], rel=1e-5)
    assert before["mean"] == pytest.approx(-alpha * after["mean"], rel=1e-4)
    assert before["max"] == pytest.approx(-alpha * after["min"], rel=1e-5)
    # Other heads get nothing of it.
    assert not any(name.startswith("digit") for name in layers)
    x = image[None].requires_grad_()
    own.module(x)[1][0, 1].backward()
    signed = own.explain({"inputs": image.tolist()}, "input_x_gradient; output=domain; target=1")
    found = np.array(signed["explanations"][0]["attributions"]["image"])
    np.testing.assert_allclose(found, (x * x.grad)[0].detach(), rtol=1e-3, atol=1e-9)


def test_explanations_and_predictions_of_one_batch_each_get_their_own(served):
    own = served(ResidualNet)
    xs = [torch.randn(n, 1, 6, 6) for n in (1, 2, 1, 3, 1, 1)]
    headers = [{}, {"explain": "True", "x-explain": "saliency"}, {}, {"x-explain": "gradient_flow"}]
    headers += [{"explain": "True", "x-explain": "nonsense"}, {"x-activations": "stats"}]
    requests = [
        Request(json.dumps({"inputs": x.tolist()}).encode(), one)
        for x, one in zip(xs, headers, strict=True)
    ]
    together = own.service.handle(requests)
    for request, answer in zip(requests, together, strict=True):
        [alone] = own.service.handle([request])
        assert answer.status == alone.status
        first, second = json.loads(answer.body), json.loads(alone.body)
        assert first.keys() == second.keys()
    bodies = [json.loads(answer.body) for answer in together]
    assert [answer.status for answer in together] == [200, 200, 200, 200, 400, 200]
    assert "outputs" in bodies[0]
    assert len(bodies[1]["explanations"]) == 2
    assert "attributions" not in bodies[3]["explanations"][0]
    assert bodies[4]["error"]["code"] == "bad_explanation"
    assert "activations" in bodies[5]
    np.testing.assert_allclose(
        bodies[2]["outputs"]["output"], own.module(xs[2]).detach(), rtol=1e-4, atol=1e-5
    )


def test_nothing_is_left_of_an_explanation(served):
    own = served(ResidualNet)
    x = torch.randn(2, 1, 6, 6).tolist()
    before = own.service.handle([Request(json.dumps(x).encode())])[0].body
    own.explain({"inputs": x}, "saliency")
    own.refusal({"inputs": x}, "saliency; target=9")
    for part in own.model._whole.modules():
        if hasattr(part, "_vitrine_mode"):
            assert part._vitrine_mode == 0
            assert list(part._vitrine_found) == []
    assert own.service.handle([Request(json.dumps(x).encode())])[0].body == before
    assert all(weight.grad is None for weight in own.model._whole.parameters())


def test_targets(served):
    own = served("digits")
    images = (torch.rand(2, 8, 8) * 16).tolist()
    each = own.explain({"inputs": images}, "saliency; target=[3, 5]")["explanations"]
    assert [(one["target"], one["label"]) for one in each] == [(3, "3"), (5, "5")]
    both = own.explain({"inputs": images}, 'saliency; target="4"')["explanations"]
    assert [one["target"] for one in both] == [4, 4]
    for target in ("10", "-1", "[1]", "[1, 2, 3]", "1.5", "true", '"ten"', "{}", "[[1], [2, 3]]"):
        status, error = own.refusal({"inputs": images}, f"saliency; target={target}")
        assert (status, error["code"]) == (400, "bad_target"), target
        assert error["expected"]


@pytest.mark.parametrize(
    ("header", "word"),
    [
        ("shap", "shap"),
        ("method=saliency; method=saliency", "method=saliency"),
        ("saliency; output=nothing", "nothing"),
        ("saliency; steps=0", "steps"),
        ("saliency; steps=1e3", "steps"),
        ("saliency; baseline=nan", "baseline"),
        ("saliency; target=[1", "target"),
        ("saliency; layers=nowhere", "nowhere"),
        ("saliency; colour=red", "colour"),
        ("saliency; target=", "target="),
        ("saliency; \N{SNOWMAN}=1", "2603"),
    ],
)
def test_what_is_not_understood_is_named(served, header, word):
    own = served("activation_mlp")
    status, error = own.refusal({"inputs": [[0.0] * 4]}, header)
    assert status == 400
    assert word in error["message"]
    assert error["message"].isascii()
    assert error["expected"]


def test_too_many_gradients_are_refused(served):
    own = served("activation_mlp")
    size = own.model.signature.inputs[0].shape[-1]
    rows = [[0.0] * size] * 201
    status, error = own.refusal({"inputs": rows}, "integrated_gradients; steps=100")
    assert (status, error["code"]) == (400, "explanation_too_large")
    assert own.answer({"inputs": rows}, "saliency").status == 200


def test_several_inputs_and_outputs_without_a_row_axis(served):
    own = served("lstm_states")
    x = torch.randn(2, 5, 4)
    with torch.no_grad():
        out, _ = own.module(x.clone())
        start = float(own.module(torch.zeros_like(x))[0][1, 2, 3])
    body = own.explain({"inputs": x.tolist()}, "integrated_gradients; target=[1, 2, 3]; steps=20")
    [entry] = body["explanations"]
    assert entry["score"] == pytest.approx(float(out[1, 2, 3]), rel=1e-4)
    found = np.array(entry["attributions"]["x"])
    assert found.shape == x.shape
    assert found.sum() - entry["convergence_delta"] == pytest.approx(
        entry["score"] - start, abs=1e-4
    )


class Apart(nn.Module):
    """Two inputs, each with an output of its own, and one that has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(3, 2)
        self.right = nn.Linear(4, 2)

    def forward(
        self, a: torch.Tensor, b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        left = self.left(a)
        return left, self.right(b), (left > 0).float()


def test_an_input_that_the_score_does_not_depend_on_gets_zeros(tmp_path):
    own = define(Apart, torch.randn(4, 3))
    both = (torch.randn(4, 3), torch.randn(4, 4))
    own = replace(own, examples=(both,), inputs=(InputOptions("a"), InputOptions("b")))
    served = Served(own, tmp_path)
    given = {"a": both[0].tolist(), "b": both[1].tolist()}
    entry = served.explain(given, "saliency; output=output_1; target=1")["explanations"][0]
    assert not np.any(entry["attributions"]["a"])
    np.testing.assert_allclose(
        entry["attributions"]["b"], served.module.right.weight[1].detach().abs(), rtol=1e-6
    )
    status, error = served.refusal(given, "saliency; output=output_2")
    assert (status, error["code"]) == (400, "not_differentiable")
    assert "output_2" in error["message"]


def test_whole_numbers_have_no_gradient_but_the_layers_do(served):
    own = served("token_lstm")
    tokens = own.definition.examples[0][0].tolist()
    status, error = own.refusal({"inputs": tokens})
    assert (status, error["code"]) == (400, "bad_explanation")
    assert "gradient_flow" in error["expected"]
    body = own.explain({"inputs": tokens}, "gradient_flow")
    assert body["gradients"]["layers"]


def test_a_file_and_a_picture(served):
    own = served("digits")
    image = torch.rand(8, 8) * 16
    body = own.explain({"inputs": image.tolist()}, "input_x_gradient; target=3")
    wanted = np.array(body["explanations"][0]["attributions"]["image"], np.float32)
    header = "input_x_gradient; target=3"
    answer = own.answer({"inputs": image.tolist()}, header, accept="application/x-npy")
    np.testing.assert_array_equal(np.load(io.BytesIO(answer.body)), wanted)
    said = json.loads(answer.headers["X-Explained"])
    assert said["explanations"][0]["target"] == 3
    answer = own.answer({"inputs": image.tolist()}, header, accept="image/png")
    assert answer.headers["content-type"] == "image/png"
    picture = np.asarray(PIL.Image.open(io.BytesIO(answer.body))).astype(int)
    assert picture.shape == (256, 256, 3)
    small = picture[::32, ::32]
    assert (
        (small[..., 0] > small[..., 2]) == (np.round(wanted / abs(wanted).max() * 255) > 0)
    ).all()
    strongest = np.unravel_index(abs(wanted).argmax(), wanted.shape)
    assert small[strongest].tolist() == ([255, 0, 0] if wanted[strongest] > 0 else [0, 0, 255])
    two = {"inputs": [image.tolist()] * 2}
    status, error = own.refusal(two, header, accept="image/png")
    assert (status, error["code"]) == (406, "not_acceptable")


def test_a_model_of_numbers_has_no_picture(served):
    own = served("activation_mlp")
    size = own.model.signature.inputs[0].shape[-1]
    status, error = own.refusal({"inputs": [0.0] * size}, accept="image/png")
    assert (status, error["code"]) == (406, "not_acceptable")
    assert "image/png" not in error["expected"]


def test_without_captum_the_gradients_at_the_layers_remain(served, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    own = served("activation_mlp")
    size = own.model.signature.inputs[0].shape[-1]
    status, error = own.refusal({"inputs": [0.0] * size})
    assert (status, error["code"]) == (501, "not_available")
    assert own.explain({"inputs": [0.0] * size}, "gradient_flow")["gradients"]["layers"]


def test_activations_come_with_an_explanation_that_asks_for_them(served):
    own = served("digits")
    body = own.explain({"inputs": [[0.0] * 8] * 8}, "saliency", **{"x-activations": "stats"})
    assert body["activations"]["layers"]
    assert body["gradients"]["layers"]


class Saturated(nn.Module):
    """A deep network of sigmoids, whose gradient vanishes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(part for _ in range(12) for part in (nn.Linear(6, 6), nn.Sigmoid()))
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x))


def test_a_vanishing_gradient_is_flagged_where_it_is_lost(tmp_path):
    own = Served(define(Saturated, torch.randn(4, 6)), tmp_path)
    body = own.explain({"inputs": torch.randn(6).tolist()}, "gradient_flow")
    flags = body["gradients"]["flags"]
    assert "layers.0" in flags["vanishing"]
    assert "layers.22" not in flags["vanishing"]
    assert flags["exploding"] == []
