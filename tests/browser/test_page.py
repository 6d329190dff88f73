"""The page in a real Chromium: what it shows is what the log says."""

import json
import subprocess
import sys
from urllib.parse import urlsplit

import pandas as pd
import pytest
from playwright.sync_api import expect

from tests import activation_logs as logs
from tests.conftest import ROOT

LONG = "encoder.layers.0.self_attention.output.dense." + "very_long_name_" * 12 + "relu"
LAYERS = ("stem", "block.0.relu", "block.1.relu", LONG, "head")
NAMES = ("mean", "std", "min", "max", "zero_fraction")
FAULTS = (
    logs.Fault("dead", "stem", 100, 160),
    logs.Fault("nan", "block.1.relu", 400, 420),
    logs.Fault("exploding", "block.0.relu", 520),
)
WIDTH = 1000
"""600 records, 100 ms apart: a second is the narrowest column that makes no more than 60."""


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "digits.jsonl"
    made = logs.records(
        600, layers=LAYERS, faults=FAULTS, gradients=range(0, 600, 60), errors=[7, 300]
    )
    logs.write(path, made)
    later = logs.START + 60_000 - 100
    return logs.write(path, logs.records(1, layers=LAYERS, rows=3, start=later, seed=9))


@pytest.fixture(scope="module")
def address(log, tmp_path_factory):
    folder = tmp_path_factory.mktemp("baseline")
    logs.baseline(LAYERS).write(folder)
    command = [sys.executable, "-m", "observe", "page", log, "--port", "0", "--every", "0.2"]
    command += ["--baseline", f"digits={folder / 'baseline.json'}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
            assert process.wait(60) == 0


@pytest.fixture
def opened(browser, address):
    """Give a function that opens a page; nothing may come from elsewhere, nor fail in it."""
    contexts, wrong = [], []

    def watch(request):
        if urlsplit(request.url).netloc != urlsplit(address).netloc:
            wrong.append(request.url)

    def open_page(path="m/digits", **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", watch)
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"{address}{path}")
        if context.pages and options.get("java_script_enabled", True):
            expect(page.locator("#state")).to_contain_text("601 records from")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture(scope="module")
def table(log):
    """Totals of the layers of every request, as pandas has them."""
    rows = []
    for line in log.read_text().splitlines():
        record = json.loads(line)
        for key, layer in record.get("layers", {}).items():
            numbers = {name: layer[name] for name in (*NAMES, "non_finite")}
            dead = key in record["flags"]["dead"]
            rows.append({"time": record["time"], "key": key, "dead": dead, **numbers})
    found = pd.DataFrame(rows)
    milliseconds = pd.to_datetime(found["time"]).dt.as_unit("ms").astype("int64")
    found["column"] = (milliseconds - logs.START) // WIDTH
    return found.astype(dict.fromkeys(NAMES, "float64"))


def together(name):
    return {"min": "min", "max": "max", "non_finite": "sum"}.get(name, "mean")


@pytest.mark.parametrize("statistic", [*NAMES, "non_finite"])
def test_the_cells_of_the_heat_map_are_what_pandas_computes(opened, table, statistic):
    page = opened(f"m/digits?statistic={statistic}")
    shown = page.eval_on_selector_all(
        "#heat tbody tr",
        "rows => rows.map(row => [row.querySelector('th').textContent.trim(), "
        "[...row.querySelectorAll('td')].map(cell => cell.title)])",
    )
    wanted = table.groupby(["key", "column"])[statistic].agg(together(statistic))
    counts = table.groupby(["key", "column"]).size()
    assert [key for key, _ in shown] == list(LAYERS)
    for key, cells in shown:
        assert len(cells) == 60
        for column, words in enumerate(cells):
            said = words.split(f": {statistic} ")[1].split(", ")
            value = wanted[key, column]
            if pd.isna(value):
                assert said[0] == "none"
            else:
                assert float(said[0]) == pytest.approx(value, rel=1e-12, abs=1e-12)
            assert f", {counts[key, column]} request" in words


def test_the_overview_and_its_marks_are_what_pandas_computes(opened, table):
    page = opened()
    rows = page.eval_on_selector_all(
        "#overview tbody tr",
        "rows => rows.map(row => [...row.children].map(cell => [cell.textContent, cell.title]))",
    )
    for row, (key, layer) in zip(rows, table.groupby("key", sort=False), strict=True):
        assert row[0][0] == key
        assert row[2][0] == str(len(layer))
        for (_, exact), name in zip(row[3:8], NAMES, strict=True):
            assert float(exact) == pytest.approx(layer[name].agg(together(name)), rel=1e-12)
        assert int(row[8][0].replace(",", "")) == layer["non_finite"].sum()
        dead = layer["dead"].sum()
        assert row[9][0].strip() == (f"{dead} requests" if dead else "0")


def test_the_flagged_requests_are_those_of_the_log(opened, log):
    records = [json.loads(line) for line in log.read_text().splitlines()]
    bad = [one for one in records if one.get("flags", {}).get("non_finite")]
    page = opened()
    expect(page.locator("#flag-non_finite")).to_have_text(f"NaN or infinite: {len(bad)}")
    page.locator("#flag-non_finite").click()
    section = page.locator("section[aria-labelledby=flagged-title]")
    ids = section.locator("tbody th").all_text_contents()
    assert ids == [one["request_id"] for one in reversed(bad)]
    assert section.get_by_text("NaN or infinite from block.1.relu").count() == len(bad)
    page.locator("#flag-error").click()
    expect(section.locator("tbody tr")).to_have_count(2)
    expect(section.locator("tbody td.what").first).to_contain_text("error: invalid_input")


def test_a_request_shows_its_numbers_and_where_the_first_nan_was(opened, log):
    record = json.loads(log.read_text().splitlines()[410])
    page = opened()
    page.get_by_label("Request id or correlation id").fill(record["correlation_id"])
    page.get_by_role("button", name="Find").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(record["request_id"])
    rows = page.locator("#layers tbody tr")
    assert rows.locator("th").all_text_contents() == list(record["layers"])
    for place, layer in enumerate(record["layers"].values()):
        titles = [
            cell.get_attribute("title") for cell in rows.nth(place).locator("td[title]").all()
        ]
        assert [None if text == "none" else float(text) for text in titles] == [
            layer[name] for name in NAMES
        ]
    marked = page.locator("#layers tr", has_text="first NaN or infinity")
    expect(marked).to_have_count(1)
    expect(marked.locator("th")).to_have_text("block.1.relu")
    expect(page.locator("main")).to_contain_text(
        "The first layer that made a NaN or an infinity is block.1.relu"
    )


def test_the_rows_of_a_request_and_its_gradients_are_shown(opened, log):
    records = [json.loads(line) for line in log.read_text().splitlines()]
    page = opened(f"m/digits/r/{records[-1]['request_id']}")
    part = page.locator("#layers tbody").first.locator("tr.part")
    expect(part).to_have_count(3)
    means = [row.locator("td[title]").first.get_attribute("title") for row in part.all()]
    assert [float(mean) for mean in means] == [
        row["mean"] for row in records[-1]["layers"]["stem"]["rows"]
    ]
    page = opened(f"m/digits/r/{records[60]['request_id']}")
    norms = page.locator("#gradients tbody tr td:nth-of-type(3)").all()
    assert [float(norm.get_attribute("title")) for norm in norms] == [
        layer["norm"] for layer in records[60]["gradients"]["layers"].values()
    ]
    vanishing = page.locator("#gradients tr", has_text="vanishing").locator("th")
    assert vanishing.all_text_contents() == records[60]["gradients"]["flags"]["vanishing"]


def test_two_requests_side_by_side_are_subtracted(opened, log):
    a, b = (json.loads(log.read_text().splitlines()[number]) for number in (20, 540))
    page = opened(f"m/digits/r/{a['request_id']}")
    page.get_by_label("with").fill(b["request_id"])
    page.get_by_role("button", name="Compare").click()
    for place, key in enumerate(LAYERS):
        cells = page.locator("#pairs tbody tr").nth(place).locator("td")
        for number, name in enumerate(NAMES):
            found = [
                float(cells.nth(3 * number + side).get_attribute("title")) for side in range(3)
            ]
            first, second = a["layers"][key][name], b["layers"][key][name]
            assert found == [first, second, pytest.approx(second - first)]
    expect(page.locator("table").first).to_contain_text("block.0.relu")


def test_arrow_keys_walk_over_the_cells_and_say_what_is_there(opened):
    page = opened()
    page.locator("#heat tbody td").first.focus()
    told = page.locator("output[data-of=heat]")
    expect(told).to_contain_text("stem, 2026-11-28 10:40:00.000 to 2026-11-28 10:40:01.000: mean")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("End")
    expect(told).to_contain_text("block.0.relu, 2026-11-28 10:40:59.000")
    expect(told).to_contain_text("spreads from the baseline, 11 requests")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    page.wait_for_url("**since=*until=*")
    expect(page.locator("main")).to_contain_text("11 requests in this window")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"


def test_columns_that_are_dragged_over_are_looked_at_closer(opened, table):
    page = opened()
    heads = page.locator("#heat thead th.time")
    heads.nth(10).hover()
    page.mouse.down()
    heads.nth(12).hover()
    expect(page.locator("th.chosen")).to_have_count(3)
    heads.nth(14).hover()
    page.mouse.up()
    page.wait_for_url("**since=*")
    expect(page.locator("main")).to_contain_text("50 requests in this window")
    cells = page.locator("#heat tbody tr").first.locator("td.dead")
    assert cells.count() > 0


@pytest.mark.parametrize("width", [360, 1280])
def test_no_view_is_wider_than_the_window(opened, log, width):
    record = json.loads(log.read_text().splitlines()[410])
    one = f"m/digits/r/{record['request_id']}"
    pair = f"m/digits/compare?a={record['request_id']}&b={record['request_id']}"
    views = ["m/digits", "?all", one, pair, "m/digits?statistic=max&scale=value&layers=enc"]
    for path in views:
        page = opened(path, viewport={"width": width, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path


def test_dark_as_the_system_has_it_or_as_somebody_chose(opened):
    def ground(page):
        return page.evaluate("getComputedStyle(document.documentElement).backgroundColor")

    light, dark = opened(color_scheme="light"), opened(color_scheme="dark")
    assert ground(light) == "rgb(255, 255, 255)"
    assert ground(dark) != ground(light)
    light.get_by_role("button", name="Theme").click()
    light.get_by_role("button", name="Theme").click()
    assert ground(light) == ground(dark)
    light.reload()
    assert ground(light) == ground(dark)


def test_what_is_broken_has_a_pattern_and_not_only_a_colour(opened):
    page = opened()
    for kind in ("bad", "dead"):
        picture = page.eval_on_selector(
            f"#heat td.{kind}", "cell => getComputedStyle(cell).backgroundImage"
        )
        assert "repeating-linear-gradient" in picture


def test_it_reads_without_javascript(opened):
    page = opened(java_script_enabled=False)
    assert page.locator("#heat tbody tr").count() == len(LAYERS)
    assert not page.locator("#pause").is_visible()


def test_an_empty_log_is_waited_for_and_then_shown(browser, tmp_path):
    command = [sys.executable, "-m", "observe", "page", tmp_path, "--port", "0", "--every", "0.2"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            page = browser.new_page()
            page.goto(process.stdout.readline().strip())
            expect(page.locator("main")).to_contain_text("This page waits for them")
            logs.write(tmp_path / "digits.jsonl", logs.records(5))
            page.wait_for_url("**/m/digits")
            expect(page.locator("main")).to_contain_text("5 requests in this window")
        finally:
            process.terminate()
            process.wait(60)


def test_it_looks_again_and_keeps_the_place(browser, tmp_path):
    path = logs.write(tmp_path / "digits.jsonl", logs.records(20))
    command = [sys.executable, "-m", "observe", "page", path, "--port", "0", "--every", "0.2"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            page = browser.new_page()
            page.goto(process.stdout.readline().strip() + "m/digits")
            expect(page.locator("#state")).to_contain_text("20 records from")
            page.locator("#heat tbody td").first.focus()
            page.keyboard.press("ArrowDown")
            page.locator("#layers").evaluate("input => { input.value = 'half ty'; }")
            page.evaluate("scrollTo(0, 150)")
            logs.write(path, logs.records(5, start=logs.START + 2000, seed=3))
            expect(page.locator("#state")).to_contain_text("25 records from")
            assert page.evaluate("scrollY") == 150
            assert page.evaluate("document.activeElement.closest('tr').rowIndex") == 2
            assert page.locator("#layers").input_value() == "half ty"
            page.get_by_role("button", name="Pause").click()
            logs.write(path, logs.records(5, start=logs.START + 4000, seed=4))
            page.wait_for_timeout(1000)
            expect(page.locator("#state")).to_contain_text("25 records from")
            page.get_by_role("button", name="Go on").click()
            expect(page.locator("#state")).to_contain_text("30 records from")
        finally:
            process.terminate()
            process.wait(60)
