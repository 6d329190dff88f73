import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from export.definition import from_model_file
from export.pipeline import export_model
from formats.certificate import Certificate
from formats.integrity import sha256
from handlers import jsontext
from handlers.__main__ import main
from handlers.batch import groups
from handlers.decode import Question
from handlers.model import Model, use_threads
from handlers.service import Request, Service
from handlers.torchserve import too_large
from tests.conftest import model_file

CPU = torch.device("cpu")


@pytest.fixture
def service(exported, tmp_path):
    """A service over a freshly exported model file."""

    def make(name: str) -> Service:
        with zipfile.ZipFile(exported(name).archive) as archive:
            archive.extractall(tmp_path)
        return Service(Model(tmp_path, CPU))

    return make


def eager(name: str, *values):
    definition = from_model_file(model_file(name))
    with torch.no_grad():
        return definition.module(*values)


def ask(service: Service, *documents) -> list[tuple[int, dict]]:
    bodies = [d if isinstance(d, bytes) else json.dumps(d).encode() for d in documents]
    answers = service.handle([Request(body) for body in bodies])
    return [(answer.status, json.loads(answer.body)) for answer in answers]


def test_two_inputs(service):
    left, right = torch.randn(3, 3), torch.randn(3)
    [(status, body)] = ask(service("two_inputs"), {"left": left.tolist(), "right": right.tolist()})
    assert status == 200
    np.testing.assert_allclose(
        body["outputs"]["score"], eager("two_inputs", left, right), rtol=1e-5, atol=1e-5
    )


def test_a_dict_of_outputs_keeps_names_and_dtypes(service):
    x = torch.randn(2, 4)
    [(status, body)] = ask(service("dict_output"), x.tolist())
    wanted = eager("dict_output", x)
    assert status == 200
    assert list(body["outputs"]) == list(wanted)
    assert body["outputs"]["best"] == wanted["best"].tolist()
    assert body["outputs"]["positive"] == wanted["positive"].tolist()
    np.testing.assert_allclose(body["outputs"]["hidden"], wanted["hidden"], rtol=1e-5, atol=1e-5)


def test_nested_states_without_a_row_axis(service):
    x = torch.randn(2, 5, 4)
    [(status, body)] = ask(service("lstm_states"), {"inputs": x.tolist()})
    out, (hidden, cell) = eager("lstm_states", x)
    assert status == 200
    for name, wanted in (("output_0", out), ("output_1_0", hidden), ("output_1_1", cell)):
        np.testing.assert_allclose(body["outputs"][name], wanted, rtol=1e-5, atol=1e-5)


def test_bfloat16_and_bool(service):
    [(status, body)] = ask(service("half"), {"x": [[1, 2, 3], [1, 2, 3]], "flag": [True, False]})
    assert status == 200
    assert body["outputs"]["y"] == [[1.5, 3.0, 4.5], [1.0, 2.0, 3.0]]


def test_labels_follow_the_form_of_the_answer(service):
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    names = ["no", "yes", "maybe"]
    wanted = [names[i] for i in eager("token_lstm", tokens).argmax(-1)]
    model = service("token_lstm")
    many, one, rows = ask(
        model, tokens.tolist(), tokens[0].tolist(), {"instances": tokens.tolist()}
    )
    assert many[1]["labels"] == {"logits": wanted}
    assert one[1]["labels"] == {"logits": wanted[0]}
    assert np.shape(one[1]["outputs"]["logits"]) == (3,)
    assert rows[1]["labels"] == {"logits": wanted}
    assert np.shape(rows[1]["predictions"]) == (2, 3)


def test_good_and_bad_in_one_batch_each_get_their_own(service):
    tokens = [[1, 2, 3], [7, 8], [4, 5, 6], [9]]
    model = service("token_lstm")
    documents = [tokens[0], b"not json", tokens[1], [1, 99], tokens[2], {"x": 1}, tokens[3]]
    answers = ask(model, *documents)
    assert [status for status, _ in answers] == [200, 400, 200, 400, 200, 400, 200]
    good = [body["outputs"]["logits"] for status, body in answers if status == 200]
    for own, values in zip(good, tokens, strict=True):
        np.testing.assert_allclose(
            own, eager("token_lstm", torch.tensor([values]))[0], rtol=1e-5, atol=1e-5
        )
    codes = [body["error"]["code"] for status, body in answers if status == 400]
    assert codes == ["not_json", "out_of_range", "missing_input"]


def test_a_branch_over_the_batch_answers_as_alone(service):
    model = service("control_flow")
    inputs = [torch.full((1, 10), value) for value in (1.0, -1.0, 0.5, -0.1)]
    answers = ask(model, *(x.tolist() for x in inputs))
    alone = [ask(model, x.tolist())[0] for x in inputs]
    assert answers == alone
    for (_, body), x in zip(answers, inputs, strict=True):
        np.testing.assert_allclose(
            body["outputs"]["y"], eager("control_flow", x), rtol=1e-5, atol=1e-5
        )


def test_only_the_guilty_of_a_group_gets_the_models_error(service, monkeypatch):
    model = service("two_inputs")
    run = Model.run

    def refuse_thirteen(self, arrays):
        if (arrays[1] == 13).any():
            raise ValueError("thirteen")
        return run(self, arrays)

    monkeypatch.setattr(Model, "run", refuse_thirteen)
    answers = ask(model, *({"left": [1, 2, 3], "right": r} for r in (1, 13, 2)))
    assert [status for status, _ in answers] == [200, 500, 200]
    assert answers[0][1]["outputs"]["score"] * 2 == pytest.approx(answers[2][1]["outputs"]["score"])


def test_an_input_that_the_model_itself_refuses_is_the_clients_error(exported, tmp_path):
    # The signature of this copy no longer bounds the ids, so that the embedding sees a bad one.
    with zipfile.ZipFile(exported("token_lstm").archive) as archive:
        archive.extractall(tmp_path)
    path = tmp_path / "signature.json"
    document = json.loads(path.read_text())
    del document["inputs"][0]["maximum"]
    path.write_text(json.dumps(document))
    certificate = Certificate.read(tmp_path)
    files = certificate.files | {path.name: sha256(path.read_bytes())}
    replace(certificate, files=files).write(tmp_path)
    good, bad = ask(Service(Model(tmp_path, CPU)), [1, 2], [1, 50])
    assert good[0] == 200
    assert bad[0] == 400
    assert bad[1]["error"]["code"] == "model_refused"
    assert "index out of range" in bad[1]["error"]["message"]


def test_what_the_models_own_code_raises_is_told_to_its_client(exported, tmp_path):
    path = tmp_path / "picky.py"
    path.write_text(
        "import torch\nfrom torch import Tensor, nn\n\n\n"
        "class Picky(nn.Module):\n"
        "    def forward(self, x: Tensor) -> Tensor:\n"
        "        if bool((x < 0).any()):\n"
        "            raise ValueError('negative values are not allowed')\n"
        "        return x\n\n\n"
        "def build():\n    return Picky()\n\n\n"
        "def examples():\n    return [(torch.ones(2, 3),)]\n"
    )
    archive = export_model(from_model_file(path), tmp_path).archive
    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path / "unpacked")
    good, bad = ask(Service(Model(tmp_path / "unpacked", CPU)), [1, 2, 3], [1, -2, 3])
    assert good[0] == 200
    assert bad[0] == 400
    assert "negative values are not allowed" in bad[1]["error"]["message"]


def test_answers_too_large_for_a_batch_are_withheld_largest_first():
    assert too_large([10, 20, 30], 1_000_000) == {}
    refused = too_large([100_000, 900_000, 300_000], 700_000)
    assert {place: error.status for place, error in refused.items()} == {1: 413}
    refused = too_large([400_000, 500_000], 700_000)
    assert {place: error.status for place, error in refused.items()} == {1: 503}
    assert "try again" in refused[1].message


def test_identifiers_are_echoed_unless_they_are_not_text(service):
    model = service("two_inputs")
    body = b'{"left": [1, 2, 3], "right": 1}'
    sent = {"x-correlation-id": "abc", "traceparent": "00-1-2-01", "cookie": "secret"}
    [answer] = model.handle([Request(body, sent)])
    assert answer.headers["x-correlation-id"] == "abc"
    assert answer.headers["traceparent"] == "00-1-2-01"
    assert "cookie" not in answer.headers
    [answer] = model.handle([Request(body, {"x-correlation-id": "a\r\nset-cookie: b"})])
    assert "x-correlation-id" not in answer.headers


def test_the_same_answers_without_orjson(service, monkeypatch):
    model = service("dict_output")
    fast = ask(model, [0.1, 0.2, 0.3, 0.4])
    monkeypatch.setattr(jsontext, "orjson", None)
    slow = ask(model, [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(fast[0][1]["outputs"]["hidden"], slow[0][1]["outputs"]["hidden"])


def question(rows: int, width: int = 2) -> Question:
    return Question((np.zeros((rows, width)),), rows, False, "outputs")


def test_groups_hold_no_more_rows_than_were_certified():
    questions = [question(3), question(3), question(1, width=5), question(3), question(20)]
    found = [sorted(group) for group in groups(questions, True, 8)]
    assert sorted(found) == [[0, 1], [2], [3], [4]]
    assert list(groups(questions, False, 1)) == [[0], [1], [2], [3], [4]]


def test_threads_are_one_unless_set(monkeypatch):
    before = torch.get_num_threads()
    try:
        monkeypatch.delenv("VITRINE_THREADS", raising=False)
        assert use_threads(None) == 1
        assert use_threads(2) == 2
        monkeypatch.setenv("VITRINE_THREADS", "3")
        assert use_threads(2) == torch.get_num_threads() == 3
        monkeypatch.setenv("VITRINE_THREADS", "many")
        with pytest.raises(ValueError, match="many"):
            use_threads(None)
    finally:
        torch.set_num_threads(before)


def test_the_handler_runs_without_a_server(exported, tmp_path, capsys):
    archive = exported("two_inputs").archive
    sample = archive.with_name("two_inputs.sample.json")
    assert main([str(archive), "--input", str(sample)]) == 0
    assert "score" in json.loads(capsys.readouterr().out)["outputs"]
    bad = tmp_path / "bad.json"
    bad.write_text("[]")
    one = tmp_path / "one.npy"
    np.save(one, np.ones(3, np.float32))
    assert main([str(archive), "--input", str(one)]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "unsupported_media_type"
    assert main([str(archive), "--input", str(bad)]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "missing_input"
    assert main([str(tmp_path / "none.mar"), "--input", str(bad)]) == 2
    assert "none.mar is not there" in capsys.readouterr().err
