"""The pure parts of `scripts/benchmark serve`: requests, checks, figures, tables."""

import json
import os
import shutil
import socket
import struct
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from benchmarks import growth, serve
from benchmarks.serving import closed, forms, opened, payload, plot, report, sender, servers, work
from benchmarks.serving.figures import Measured, percentiles
from benchmarks.serving.measure import Found, Plan, WorkFound
from benchmarks.serving.points import AXES
from benchmarks.serving.processor import Shares, busy_seconds
from benchmarks.serving.reading import matches
from benchmarks.serving.running import free_ports
from benchmarks.serving.vitrine import VARIANTS, Variant, read_variants
from models import activation_mlp
from tests.conftest import ROOT

MLP = replace(work.WORKS["mlp"], distinct=8, each=2)
IMAGES = work.WORKS["resnet18"]
EXPECTED = np.array([0.5, -1.25, 3e-7, 1234.5], np.float32)
ABOUT = {"processor": "P", "cores": 2, "load_average": 0.1, "torch": "2"}


def test_percentiles_are_those_of_the_values_and_nan_without_any():
    assert percentiles([*range(1, 102)]) == {"p50": 51, "p90": 91, "p99": 100}
    assert all(np.isnan(value) for value in percentiles([]).values())


@pytest.mark.parametrize(
    ("body", "right"),
    [
        (b'{"outputs": {"scores": [0.5, -1.25, 3e-07, 1234.5]}}', True),
        (b'{"outputs": {"scores": [\n  0.50001,\n -1.25, 0, 1234.55\n]}, "labels": 3}', True),
        (b'{"outputs": {"scores": [0.5, -1.25, 3e-07, 1235.5]}}', False),
        (b'{"outputs": {"scores": [0.5, -1.25, 3e-07]}}', False),
        (b'{"outputs": {"scores": [null, -1.25, 3e-07, 1234.5, 0.5]}}', False),
        (b'{"outputs": {"other": [0.5, -1.25, 3e-07, 1234.5]}}', False),
        (b'{"outputs": {"scores": [0.5, -1.25, -, 1234.5]}}', False),
    ],
)
def test_numbers_of_json_are_compared(body, right):
    assert matches(body, EXPECTED, '"scores":') is right


def test_the_last_bytes_are_compared_where_an_answer_is_binary():
    assert matches(EXPECTED.tobytes(), EXPECTED, None)
    assert matches(b'{"outputs": []}' + EXPECTED.tobytes(), EXPECTED, None)
    assert not matches(EXPECTED[::-1].tobytes(), EXPECTED, None)
    assert not matches(EXPECTED.tobytes()[:-1], EXPECTED, None)
    assert not matches(np.full(4, np.nan, np.float32).tobytes(), EXPECTED, None)


def test_rows_too_close_to_an_earlier_one_are_left_out():
    rows = np.array([[0, 0], [0, 0.001], [1000, 0], [1000.001, 0], [0, 1]], np.float32)
    assert work.told_apart(rows, 0.0005) == [0, 1, 2, 4]
    assert work.told_apart(rows, 0.002) == [0, 2, 4]


def test_the_inputs_of_each_work_are_rows_of_its_shape_and_differ():
    for one in work.WORKS.values():
        rows = one.draw(3)
        assert rows.dtype == np.float32
        assert rows.shape == (3, *one.shape)
        assert len({row.tobytes() for row in rows}) == 3
        assert one.distinct % one.each == 0


def test_json_says_the_very_numbers_of_the_row():
    rows = MLP.draw(2)
    form = forms.plain_json("/p/{model}", '"{output}":')(MLP, rows)
    assert (form.path, form.marker) == ("/p/activation_mlp", '"scores":')
    for row, body in zip(rows, form.bodies, strict=True):
        assert np.array_equal(np.array(json.loads(body)["inputs"], np.float32), row)


def test_every_server_is_sent_the_same_row():
    rows = IMAGES.draw(1)
    for server in servers.all_servers(VARIANTS):
        (body,) = server.encode(IMAGES, rows).bodies
        if server.kind == "reference":
            continue
        assert body.endswith(rows.tobytes()) or forms.base64_of(rows[0]).encode() in body
    protocol = forms.open_inference(IMAGES, rows)
    start = int(protocol.headers["Inference-Header-Content-Length"])
    head = json.loads(protocol.bodies[0][:start])
    assert head["inputs"][0]["shape"] == [1, 3, 224, 224]
    assert head["inputs"][0]["parameters"]["binary_data_size"] == rows.nbytes


def test_a_payload_is_read_as_it_was_written(tmp_path):
    rows = MLP.draw(4)
    form = forms.plain_json("/p", '"scores":')(MLP, rows)
    expected = np.arange(16, dtype=np.float32).reshape(4, 4)
    payload.write(tmp_path / "own", form, expected, 2)
    found = payload.read(tmp_path / "own")
    assert found.bodies == form.bodies
    assert np.array_equal(found.expected, expected)
    assert (found.path, found.headers, found.marker) == (form.path, [form.headers] * 4, form.marker)


def test_values_are_written_as_lua_reads_them():
    value = {"a": [1, 0.5], "b": None, 'c"\\\n': "é"}
    assert payload.lua(value) == '{["a"]={1,0.5},["b"]=nil,["c\\"'.replace('\\"', "\\034") + (
        '\\092\\010"]="\\195\\169"}'
    )


def test_ports_are_free_and_differ():
    ports = free_ports(5)
    assert len(set(ports)) == 5
    for port in ports:
        with socket.socket() as trial:
            trial.bind(("127.0.0.1", port))


@pytest.mark.parametrize(
    ("received", "found"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", (200, b"{}")),
        (b"HTTP/1.1 503 No\r\ncontent-length:0\r\nA: b\r\n\r\n", (503, b"")),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}", None),
        (b"HTTP/1.1 200 OK\r\nContent-Le", None),
    ],
)
def test_an_answer_is_whole_when_its_bytes_are_there(received, found):
    assert sender.split(bytearray(received)) == found


def test_an_answer_without_a_length_is_refused():
    with pytest.raises(ValueError, match="no Content-Length"):
        sender.split(bytearray(b"HTTP/1.1 200 OK\r\n\r\n"))


class _Swapping(BaseHTTPRequestHandler):
    """Answers what was asked, but every fourth request with another's answer, every fifth 503."""

    protocol_version = "HTTP/1.1"
    count = 0
    lock = threading.Lock()

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"]
        with self.lock:
            type(self).count += 1
            number = self.count
        numbers = [2 * value for value in asked[:4]]
        body = json.dumps({"outputs": numbers[::-1] if number % 4 == 0 else numbers}).encode()
        self.send_response(503 if number % 5 == 0 else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def swapping(tmp_path):
    _Swapping.count = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Swapping)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    rows = MLP.draw(8)
    form = forms.plain_json("/", '"outputs":')(MLP, rows)
    payload.write(tmp_path / "payload", form, 2 * rows[:, :4], 2)
    yield f"127.0.0.1:{server.server_port}", tmp_path / "payload"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_sender_sees_swapped_and_refused_answers(swapping):
    address, folder = swapping
    host, port = address.split(":")
    own = sender.Sender(payload.read(folder), host, int(port), 4)
    own.run(rate=400, seconds=0.1)
    own.close()
    tally = own.tally
    # Of 40: every fifth is refused, of the others every fourth is wrong.
    assert (tally.right, tally.wrong, tally.refused, tally.broken) == (24, 8, 8, 0)
    assert len(tally.latency_ms) == 40
    assert tally.sample.startswith(("200 {", "503 {"))
    found = opened.parse(
        json.dumps(vars(tally) | {"seconds": 2.0, "client_seconds": 0.5}),
        400,
        Shares(1.0, 0.7, 0.2),
    )
    assert (found.per_second, found.client_cores, found.server_cores) == (12, 0.25, 0.5)
    assert found.failures == 16


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_wrk_sees_swapped_and_refused_answers(swapping, tmp_path):
    address, folder = swapping
    result = tmp_path / "result.json"
    closed.run(address, folder, result, connections=2, seconds=1)
    found = closed.parse(result.read_text(), Shares(1.0, 0.5, 0.0))
    total = _Swapping.count
    # One request a connection may be under way at the end.
    assert abs(found.refused - total // 5) <= 2
    assert abs(found.wrong - (total // 4 - total // 20)) <= 2
    assert found.broken == 0
    assert found.right == pytest.approx(0.6 * total, abs=4)
    assert found.sample.startswith(("200 {", "503 {"))
    assert found.failures == found.wrong + found.refused


def test_what_wrk_found_is_read():
    text = json.dumps(
        {
            "seconds": 2.0,
            "right": 90,
            "wrong": 2,
            "refused": 3,
            "broken": 1,
            "sample": b"503 busy".hex(),
            "milliseconds": [1.0] * 50 + [2.0] * 50,
        }
    )
    found = closed.parse(text, Shares(server=3.0, client=0.5, others=0.2))
    assert (found.per_second, found.server_cores, found.client_cores) == (45, 1.5, 0.25)
    assert found.other_cores == 0.1
    assert (found.failures, found.sample) == (6, "503 busy")
    assert found.latency_ms["p50"] == 1.5


def _found(name, kind, speeds):
    text = {"seconds": 1.0, "wrong": 0, "refused": 0, "broken": 0, "sample": ""}
    rounds = [
        closed.parse(
            json.dumps({**text, "right": right, "milliseconds": [1.0]}), Shares(1.0, 0.1, 0.0)
        )
        for right in speeds
    ]
    return Found(name, name, kind, 1, closed={8: rounds})


def _work():
    return WorkFound(
        "mlp",
        "the MLP",
        [
            _found("vitrine", "vitrine", [300, 400, 100]),
            _found("torchserve", "peer", [100, 200, 50]),
            _found("fastapi", "peer", [600, 100, 100]),
            _found("haproxy", "reference", [9000, 9000, 9000]),
            Found("triton", "Triton", "peer", 1, not_run="no | such\nthing"),
        ],
        limit={16: [5000.0, 6000.0, 7000.0]},
    )


def test_ratios_are_taken_within_a_round():
    found = report.ratios(_work(), 8)
    assert found["vitrine"]["stock"].median == 2
    # The best peer is another one in the second round.
    assert found["vitrine"]["best"].median == 1
    assert found["vitrine"]["best"].high == pytest.approx(1.5)
    assert found["torchserve"]["stock"].median == 1


def test_the_table_leaves_nobody_out():
    lines = report.render([_work()], Plan(rounds=3), ABOUT).splitlines()
    rows = {line.split(" | ")[0]: line for line in lines if line.startswith("| ")}
    assert "300 [200, 350]" in next(line for line in lines if line.startswith("| vitrine"))
    assert "not run: no \\| such thing" in rows["| triton"]
    reference = next(line for line in lines if line.startswith("| haproxy"))
    assert reference.split(" | ")[2:4] == ["–", "–"]
    assert any("16 rows 6,000 [5,500, 6,500]" in line for line in lines)
    tables = [line for line in lines if line.startswith("|---")]
    for head in tables:
        columns = head.count("---")
        at = lines.index(head)
        assert lines[at - 1].count(" | ") + 1 == columns
        own = lines[at + 1 : at + 6]
        assert all(line.replace("\\|", "").count("|") == columns + 1 for line in own)


def test_the_document_is_json_with_every_round():
    written = json.loads(json.dumps(report.document([_work()], Plan(rounds=3), {"cores": 2})))
    (own,) = written["works"]
    assert [one["per_second"] for one in own["servers"][0]["closed"]["8"]] == [300, 400, 100]
    assert own["ratios"]["8"]["vitrine"]["stock"]["median"] == 2
    assert own["servers"][4]["not_run"] == "no | such\nthing"


def test_variants_are_read(tmp_path):
    file = tmp_path / "variants.json"
    file.write_text('[{"name": "fast", "arguments": ["--no-front"], "model_store": "s"}]')
    (variant,) = read_variants(file)
    assert (variant.name, variant.arguments, variant.model_store.name) == (
        "fast",
        ["--no-front"],
        "s",
    )
    assert "--no-front" in servers.all_servers([variant])[0].title
    for wrong in ('[{"name": "x", "speed": 9}]', "[1]", "{", '[{"arguments": []}]'):
        file.write_text(wrong)
        with pytest.raises(ValueError, match="a JSON list of variants is expected"):
            read_variants(file)
    with pytest.raises(ValueError, match=r"missing\.json"):
        read_variants(tmp_path / "missing.json")


def test_no_two_servers_share_a_name_and_each_has_its_files():
    found = servers.all_servers([*VARIANTS, Variant("other")])
    assert len({one.name for one in found}) == len(found)
    peers = {path.name for path in servers.PEERS.iterdir() if path.is_dir()}
    assert {"bentoml", "fastapi", "litserve", "mlserver", "torchserve", "triton"} <= peers
    for folder in peers - {"torchserve"}:
        assert (servers.PEERS / folder / "server.py").exists()
        pins = (servers.PEERS / folder / "requirements.txt").read_text().splitlines()
        assert all("==" in line for line in pins if not line.startswith("#"))
        assert "torch==2.13.0" in pins


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--servers", "nothing"], "there is no server 'nothing'"),
        (["--rounds", "0"], "must be at least 1"),
        (["--connections", "0"], "must be at least 1"),
        (["--variants", "/nowhere.json"], "a JSON list of variants is expected"),
    ],
)
def test_bad_options_are_refused(options, words, capsys):
    with pytest.raises(SystemExit) as raised:
        serve.main(options)
    assert raised.value.code == 2
    assert words in capsys.readouterr().err


def test_expected_answers_are_little_endian(tmp_path):
    form = forms.raw("/p")(IMAGES, IMAGES.draw(1))
    payload.write(tmp_path / "own", form, np.array([[1.5, 2.5]]), 1)
    assert struct.unpack("<2f", (tmp_path / "own" / "expected.bin").read_bytes()) == (1.5, 2.5)


def test_a_picture_has_every_server_that_was_measured(tmp_path):
    plot.draw([_work()], tmp_path / "serve.png")
    rounds = _found("v", "vitrine", [1, 2]).closed[8]
    points = [Measured("JSON", at, rounds) for at in ("1", "4")]
    plot.draw_growth({"rows": points}, tmp_path / "growth.png")
    for name in ("serve.png", "growth.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_every_axis_has_points_whose_requests_and_answers_fit(tmp_path):
    module = torch.jit.script(activation_mlp.build())
    torch.jit.save(module, tmp_path / "model.pt")
    inputs = MLP.draw(8)
    cases = work.Cases(inputs, work.answers(tmp_path / "model.pt", inputs))
    for point in [*AXES["rows"].points, *AXES["connections"].points]:
        case = point.make(tmp_path / "model.pt", cases)
        rows = int(point.at) if point in AXES["rows"].points else 1
        assert len(case.form.bodies) == len(case.expected)
        assert case.expected.shape[1] == 4 * rows
        assert len(set(case.form.bodies)) == min(8, len(case.form.bodies))


def test_activations_are_asked_for_by_the_share_of_the_requests():
    digits = replace(work.WORKS["digits"], distinct=40)
    cases = work.Cases(digits.draw(40), np.zeros((40, 10), np.float32))
    found = {
        point.at: point.make(ROOT, cases).form.own_headers for point in AXES["activations"].points
    }
    asked = {at: sum("X-Activations" in own for own in headers) for at, headers in found.items()}
    assert [*asked.values()] == [0, 4, 40, 40]


def test_the_table_of_growth_has_a_line_a_point():
    rounds = _found("v", "vitrine", [1, 3]).closed[8]
    points = [Measured("JSON", at, rounds) for at in ("1", "4")]
    lines = growth.render({"rows": points}, ABOUT, 2, 1.0).splitlines()
    assert lines[-1].startswith("| 4 | JSON | 2.00 [1.50, 2.50] | 1.00")
    assert lines[-1].count("|") == lines[-3].count("|")


def test_a_machines_busy_time_is_all_but_idling_and_waiting():
    stat = "cpu  100 20 30 9000 800 4 5 6 7 8\ncpu0 1 1 1 1 1 1 1 1 1 1\n"
    assert busy_seconds(stat) * os.sysconf("SC_CLK_TCK") == pytest.approx(165)
