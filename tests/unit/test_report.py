"""`observe report`: one file whose numbers are the log's, that asks nobody and obeys nobody."""

import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas
import pytest

from formats.baseline import Baseline
from formats.signature import Signature, TensorSpec
from observe import __main__ as command
from observe import report
from observe.words import number, spreads
from tests import activation_logs as logs
from tests.conftest import ROOT

VOID = {"meta", "link", "br", "path", "rect", "img", "input"}


class Page(HTMLParser):
    """Takes a page apart: its tables by id, its ids, its attributes, its text."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.attributes = []
        self.tables = {}
        self.text = ""
        self._open = []
        self._table = None
        self._cell = None
        self.feed(text)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID and not (self.get_starttag_text() or "").endswith("/>"):
            self._open.append(tag)
        if tag == "table":
            self._table = self.tables[dict(attrs).get("id", len(self.tables))] = []
        elif tag == "tr" and self._table is not None:
            self._table.append([])
        elif tag in ("td", "th") and self._table:
            self._cell = []

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        if tag in ("path", "rect"):
            return
        assert self._open, f"{tag} closes nothing"
        assert self._open.pop() == tag
        if tag in ("td", "th") and self._cell is not None:
            self._table[-1].append(" ".join("".join(self._cell).split()))
            self._cell = None

    def handle_data(self, data):
        if self._open and self._open[-1] in ("style", "script"):
            return
        self.text += data
        if self._cell is not None:
            self._cell.append(data)

    def ids(self):
        return [value for _, name, value in self.attributes if name == "id"]

    def rows(self, table):
        return {row[0]: row[1:] for row in self.tables[table][1:]}


@pytest.fixture(autouse=True)
def no_store(tmp_path, monkeypatch):
    """The archives of whoever runs the tests are not compared with."""
    monkeypatch.setattr("observe.options._STORE", tmp_path / "no store")


def made(log, target, *arguments):
    assert command.main(["report", str(log), "-o", str(target), *map(str, arguments)]) == 0
    text = target.read_text(encoding="utf-8")
    return text, Page(text)


def baseline_file(folder, layers=logs.LAYERS):
    found = folder / "baseline"
    found.mkdir(exist_ok=True)
    logs.baseline(layers).write(found)
    return found / "baseline.json"


def frame(path):
    found = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        for key, layer in record.get("layers", {}).items():
            dead = key in record["flags"]["dead"]
            for row in layer.get("rows") or [layer]:
                found.append({"time": record["time"], "key": key, "all_zeros": dead, **row})
    return pandas.DataFrame(found)


FAULTS = (
    logs.Fault("shifted", "block.0.relu", 200),
    logs.Fault("dead", "block.1.relu", 300, 320),
    logs.Fault("nan", "block.2.relu", 350, 353),
)


def faulty(path, count=500, **fields):
    fields = {"faults": FAULTS, "errors": [7, 9], "gradients": range(0, count, 50)} | fields
    return logs.write(path, logs.records(count, **fields))


def test_its_numbers_are_those_of_the_log(tmp_path):
    log = faulty(tmp_path / "digits.jsonl")
    text, page = made(log, tmp_path / "r.html", "--baseline", f"digits={baseline_file(tmp_path)}")
    rows = frame(log)
    known = logs.baseline().layers
    layers, zeros = page.rows("m1-layers"), page.rows("m1-zeros")
    assert list(layers) == list(zeros) == list(logs.LAYERS)
    for key, own in rows.groupby("key"):
        cells = layers[key]
        assert cells[0] == f"{len(own):,}"
        assert cells[1] == f"{own['mean'].count():,}"
        away = (own["mean"].mean() - known[key]["mean"].mean) / known[key]["mean"].spread
        assert cells[2] == number(own["mean"].mean())
        assert cells[3].split()[0] == spreads(away)
        assert cells[4] == number(own["std"].mean())
        assert cells[6] == number(own["min"].min())
        assert cells[7] == number(own["max"].max())
        assert cells[8] == f"{own['non_finite'].sum():,}"
        cells = zeros[key]
        assert cells[0] == number(own["zero_fraction"].mean())
        assert cells[1] == number(known[key]["zero_fraction"].mean)
        assert cells[3] == f"{own['all_zeros'].sum()}"
        # All digits of a number are behind it.
        titles = [float(v) for t, n, v in page.attributes if n == "title" and _number(v)]
        assert any(value == pytest.approx(own["mean"].mean(), rel=1e-12) for value in titles)
    assert page.rows("m1-producers") == {
        "block.2.relu": [
            "3",
            "2026-11-28 10:40:35.000",
            "2026-11-28 10:40:35.200",
            ", ".join(_ids(log)[350:353]),
        ]
    }
    norms = [json.loads(line).get("gradients") for line in log.read_text().splitlines()]
    flow = pandas.DataFrame(
        {key: layer["norm"] for key, layer in one["layers"].items()} for one in norms if one
    )
    for key, cells in page.rows("m1-norms").items():
        assert cells[0] == "10"
        assert cells[1:4] == [number(f(flow[key])) for f in (_median, min, max)]
    assert "block.2.relu made NaN or an infinity out of finite inputs" in _plain(page.text)
    assert "block.1.relu put out nothing but zeros in 20 of 498 requests" in _plain(page.text)
    assert "They vanish (less than a thousandth" in page.text
    distances = page.rows("m1-distances")
    assert next(iter(distances)) == "block.0.relu"
    assert [cells[0] for cells in distances.values()] == ["yes", "no", "no", "no", "no"]
    assert len(text.encode()) < 1_000_000
    assert "500 records in the log; 500 records in this report" in page.text


def _median(values):
    return values.median()


def _number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def _ids(log):
    return [json.loads(line)["request_id"] for line in log.read_text().splitlines()]


def _plain(text):
    return " ".join(text.split())


def test_the_heat_maps_numbers_are_those_of_the_log(tmp_path):
    log = faulty(tmp_path / "digits.jsonl", step=1000)
    _, page = made(log, tmp_path / "r.html")
    rows = frame(log)
    table = next(
        table for name, table in page.tables.items()
        if isinstance(name, int) and table[0][0] == "from (UTC)" and "requests" in table[0]
        and table[1][1] not in ("0", "–")
    )  # fmt: skip
    assert table[0][1:-1] == list(logs.LAYERS)
    starts = [row[0].replace(" ", "T") + "Z" for row in table[1:]]
    for row, start, end in zip(table[1:], starts, [*starts[1:], "3"], strict=True):
        own = rows[(rows["time"] >= start) & (rows["time"] < end)]
        expected = own.groupby("key")["mean"].mean()
        for key, cell in zip(logs.LAYERS, row[1:-1], strict=True):
            assert cell == number(expected[key])


def test_it_needs_and_calls_nothing_else(tmp_path):
    log = faulty(tmp_path / "digits.jsonl")
    text, page = made(log, tmp_path / "r.html", "--baseline", f"digits={baseline_file(tmp_path)}")
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(page.tags)
    for tag, name, value in page.attributes:
        if name in ("href", "src", "action", "xlink:href", "srcset"):
            assert value.startswith("#"), (tag, name, value)
        assert not name.startswith("on")
    assert "://" not in text
    assert not re.search(r"url\(|@import", text)
    assert "default-src 'none'" in text
    ids = page.ids()
    assert len(ids) == len(set(ids))
    for tag, name, value in page.attributes:
        if name == "href":
            assert value[1:] in ids, (tag, value)


def test_what_the_log_says_is_text(tmp_path):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}\u202e</style>"
    layers = (evil, "head")
    original = logs.records(
        60, layers=layers, model=evil, version=evil, gradients=range(30), errors=[5],
        faults=[logs.Fault("nan", evil, 40), logs.Fault("dead", evil, 30, 35)],
    )  # fmt: skip
    log = logs.write(
        tmp_path / "evil.jsonl",
        (
            replace(one, request_id=evil, correlation_id=evil, reason=evil,
                    error=one.error and evil)
            for one in original
        ),
    )  # fmt: skip
    file = baseline_file(tmp_path, layers)
    text, page = made(log, tmp_path / "r.html", "--baseline", f"{evil}={file}", "--title", evil)
    assert not {"script", "img"} & set(page.tags)
    assert text.count("</style>") == 1
    assert page.text.count("<script>alert(1)</script>") > 10
    assert "49" not in page.tables["m1-layers"][0]
    for _, name, _ in page.attributes:
        assert not name.startswith("on")


@pytest.mark.parametrize("compared", [False, True])
def test_with_and_without_a_baseline_or_gradients(tmp_path, compared):
    log = logs.write(tmp_path / "digits.jsonl", logs.records(300))
    arguments = ["--baseline", f"digits={baseline_file(tmp_path)}"] if compared else []
    _, page = made(log, tmp_path / "r.html", *arguments)
    said = _plain(page.text)
    assert "no record has gradients" in said
    assert "X-Explain: gradient_flow" in said
    assert "Every value of 5 layers was finite in 300 requests." in said
    assert "None was seen. No layer was all zeros in any request" in said
    assert ("no baseline to compare with" in said) is not compared
    assert ("m1-distances" in page.tables) is compared
    assert ("distributed as the baseline's, within the thresholds" in said) is compared


def test_an_empty_log_garbage_and_one_record(tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    _, page = made(folder, tmp_path / "r.html")
    assert "There is nothing to report." in page.text
    (folder / "digits.jsonl").write_text("garbage\n{}\n\x00\n" + "x" * 100_000 + "\n")
    _, page = made(folder, tmp_path / "r.html")
    assert "There is nothing to report." in page.text
    assert "3 lines not JSON, 1 line no activation record" in page.text
    logs.write(folder / "digits.jsonl", logs.records(1))
    _, page = made(folder, tmp_path / "r.html", "--baseline", f"digits={baseline_file(tmp_path)}")
    assert page.rows("m1-layers")["head"][0] == "1"
    assert "enough rows here for a verdict" in _plain(page.text)
    only_errors = logs.write(tmp_path / "e.jsonl", logs.records(2, errors=range(2), model="e"))
    _, page = made(only_errors, tmp_path / "r.html")
    assert "no record has layers" in page.text


def test_nothing_finite_anywhere(tmp_path):
    log = logs.write(
        tmp_path / "digits.jsonl", logs.records(30, faults=[logs.Fault("nan", "stem")])
    )
    _, page = made(log, tmp_path / "r.html", "--baseline", f"digits={baseline_file(tmp_path)}")
    for cells in page.rows("m1-layers").values():
        assert cells[1] == "0"
        assert cells[2:8] == ["–"] * 6
        assert cells[8] == "1,920"
    assert page.rows("m1-producers")["stem"][0] == "30"


def test_not_finite_without_a_layer_that_began_it(tmp_path):
    bad = logs.records(4, faults=[logs.Fault("nan", "stem", 2)])
    log = logs.write(
        tmp_path / "digits.jsonl",
        (
            replace(one, activations=one.activations and replace(one.activations, non_finite=None))
            for one in bad
        ),
    )
    _, page = made(log, tmp_path / "r.html")
    assert "In 2 requests values were NaN or infinite, but no layer made them" in _plain(page.text)


def test_three_hundred_layers_stay_readable(tmp_path):
    layers = tuple(f"stage.{n}.relu" for n in range(300))
    log = logs.write(
        tmp_path / "digits.jsonl",
        logs.records(60, layers=layers, faults=[logs.Fault("shifted", layers[210], 10)],
                     gradients=[3, 4]),
    )  # fmt: skip
    text, page = made(
        log, tmp_path / "r.html", "--baseline", f"digits={baseline_file(tmp_path, layers)}"
    )
    assert len(text.encode()) < 1_000_000
    assert layers[210] in page.rows("m1-layers")
    assert "The strangest 100 of 300 layers." in page.text
    assert len(page.tables["m1-layers"]) == 101
    assert layers[210] in page.rows("m1-mean")


def test_units_that_never_fired(tmp_path):
    log = logs.write(tmp_path / "digits.jsonl", logs.records(20))
    with log.open("a") as file:
        active = [0, 250, 0, 3]
        line = {
            "format": "vitrine.units", "version": 1, "time": logs.rfc3339(logs.START + 1500),
            "model": "digits", "model_version": "1.0", "worker": "1-1",
            "layers": {"block.0.relu": {"rows": 300, "units": 4, "active_fraction": 0.2,
                                        "dead": [0, 2], "active": active}},
        }  # fmt: skip
        file.write(json.dumps(line) + "\n")
    folder = tmp_path / "b"
    folder.mkdir()
    known = logs.baseline()
    Baseline(known.source, known.rows, known.layers, {"block.0.relu": [0.0, 0.5, 0.4, 0.1]}).write(
        folder
    )
    _, page = made(log, tmp_path / "r.html", "--baseline", f"digits={folder / 'baseline.json'}")
    assert page.rows("m1-zeros")["block.0.relu"][-1] == "2 of 4: 0, 2"
    assert (
        "block.0.relu: 2 of 4 units never fired in 300 rows, and 1 of these did on the calibration"
        in _plain(page.text)
    )


@pytest.mark.parametrize(("last", "answer"), [(20, "Perhaps."), (150, "Yes.")])
def test_a_layer_dies_when_it_is_silent_in_half_of_the_requests(tmp_path, last, answer):
    dead = [logs.Fault("dead", "block.1.relu", 0, last)]
    log = logs.write(tmp_path / "digits.jsonl", logs.records(300, faults=dead))
    _, page = made(log, tmp_path / "r.html")
    said = f"{answer} block.1.relu put out nothing but zeros in {last} of 300 requests."
    assert said in _plain(page.text)


def test_versions_models_and_times_can_be_chosen(tmp_path, capsys):
    folder = tmp_path / "log"
    folder.mkdir()
    for model, version, start in (("a", "1", 0), ("b", "1", 60_000), ("b", "2", 120_000)):
        fields = {"model": model, "version": version, "start": logs.START + start}
        logs.write(folder / f"{model}.jsonl", logs.records(30, **fields))
    target = tmp_path / "r.html"

    def sections(*arguments):
        _, page = made(folder, target, *arguments)
        return re.findall(r"^(\w \d)$", page.text, flags=re.MULTILINE)

    assert sections() == ["a 1", "b 1", "b 2"]
    assert sections("--model", "b") == ["b 1", "b 2"]
    assert sections("--model", "b", "--version", "1") == ["b 1"]
    assert sections("--since", "2026-11-28T10:41", "--until", "2026-11-28T10:42+00:00") == ["b 1"]
    _, page = made(folder, target, "--until", "2026-11-28T10:40:01")
    assert page.rows("m1-layers")["stem"][0] == "10"
    assert sections("--since", "100000d") == ["a 1", "b 1", "b 2"]
    assert command.main(["report", str(folder), "-o", str(target), "--model", "x"]) == 2
    assert "has nothing of x there; it has: a 1, b 1, b 2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["report", str(folder), "-o", str(target), "--since", "yesterday"])
    assert "is no time; expected" in capsys.readouterr().err


def test_where_it_is_written(tmp_path, capsysbinary):
    log = logs.write(tmp_path / "digits.jsonl", logs.records(5))
    for wrong, message in (
        (tmp_path, "is no file"),
        ("/dev/null", "is no file"),
        (tmp_path / "nowhere" / "r.html", "expected a folder for the report"),
    ):
        assert command.main(["report", str(log), "-o", str(wrong)]) == 2
        assert message in capsysbinary.readouterr().err.decode()
    assert command.main(["report", str(tmp_path / "no.jsonl"), "-o", str(tmp_path / "r")]) == 2
    assert not (tmp_path / "r").exists()
    capsysbinary.readouterr()
    assert command.main(["report", str(log), "-o", "-"]) == 0
    assert capsysbinary.readouterr().out.startswith(b"<!doctype html>")
    real, link = tmp_path / "real.html", tmp_path / "link.html"
    real.write_text("old")
    link.symlink_to(real)
    made(log, link)
    assert link.is_symlink()
    assert real.read_text().startswith("<!doctype html>")
    assert real.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    target = tmp_path / "r.html"
    target.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(report.FormatError, match="No space left"):
        report.write(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(browser, tmp_path, scheme):
    layers = ("a.very.long.name.of.a.layer.without.any.space" * 3, *logs.LAYERS[1:])
    log = faulty(
        tmp_path / "digits.jsonl",
        layers=layers,
        model="model_with_a_long_name_" * 5,
        faults=[logs.Fault("nan", layers[0], 350)],
    )
    target = tmp_path / "r.html"
    made(log, target)
    for width in (360, 1280):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        told, asked = [], []
        page.on("console", lambda message, told=told: told.append(message.text))
        page.on("pageerror", lambda error, told=told: told.append(str(error)))
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(target.as_uri())
        assert told == []
        assert asked == [target.as_uri()]
        assert page.evaluate(
            "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        )
        colours = page.evaluate(
            "[getComputedStyle(document.documentElement).backgroundColor,"
            " getComputedStyle(document.body).color]"
        )
        light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours]
        assert (light[0] > light[1]) is (scheme == "light")
        assert page.locator("svg.histogram").count() >= 10
        assert page.locator("table.heat").count() >= 6
        page.close()
    printed = browser.new_page()
    printed.goto(target.as_uri())
    assert printed.pdf(format="A4").startswith(b"%PDF")
    printed.close()


def test_the_lines_of_the_page_work(tmp_path, monkeypatch):
    (tmp_path / "activations").mkdir()
    (tmp_path / "model_store").mkdir()
    for model in ("digits", "patient"):
        logs.write(tmp_path / "activations" / f"{model}.jsonl", logs.records(30, model=model))
    archive(tmp_path / "model_store" / "digits.mar", logs.baseline())
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    page = (ROOT / "docs" / "observe.md").read_text()
    printed = {}
    for role, text in re.findall(r"^```sh (top|report)\n(.*?)^```$", page, re.M | re.S):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text.replace(".venv/bin/python", sys.executable)],
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        printed[role] = done.stdout
    assert printed["top"].startswith("patient 1.0 · ")
    assert "baseline: 800 rows of calibration" in printed["top"]
    assert printed["report"] == ""
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def archive(path, baseline):
    """Write as much of an archive as its baseline is read from."""
    folder = path.parent / "parts"
    folder.mkdir()
    baseline.write(folder)
    tensor = TensorSpec("x", "float32", (-1, 2))
    Signature("digits", "1.0", "", (tensor,), (tensor,), row_axis=True).write(folder)
    with zipfile.ZipFile(path, "w") as file:
        for part in folder.iterdir():
            file.write(part, part.name)
