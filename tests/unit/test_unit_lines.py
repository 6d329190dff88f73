"""Which units fire, in the activation log: when it is written, and what an index makes of it."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from formats.document import FormatError
from formats.layers import Layer
from formats.signature import Signature
from formats.units import MOST_COUNTED, LayerUnits, UnitsRecord
from handlers.unit_lines import UnitLines
from handlers.units import ROWS_NEEDED, UnitWatch
from observe import queries
from observe.index import Index
from observe.lines import decode
from observe.queries import Window
from tests.conftest import ROOT

SCHEMA = json.loads((ROOT / "docs" / "units-record.schema.json").read_text())
MODEL = Signature("net", "1.0", "", (), (), row_axis=True)


class Written:
    """A log that keeps its lines, and a watch whose looking takes no time."""

    def __init__(self, *layers):
        self.now = 1000.0
        self.lines = []
        self.watch = UnitWatch(
            [Layer(name, "ReLU", True, (0,), ("",)) for name in layers], lambda: 0.0
        )
        self.writer = UnitLines(MODEL, lambda make: self.lines.append(make()), lambda: self.now)

    def count(self, **values):
        self.watch.look(lambda names: values)
        self.writer.note(self.watch, self.watch.dead())

    def records(self):
        found = [json.loads(line) for line in self.lines]
        for one in found:
            jsonschema.validate(one, SCHEMA)
        return [UnitsRecord.parse(one) for one in found]


def rows(count, *active):
    values = np.zeros((count, 4))
    values[:, active] = 1
    return values


def test_a_line_comes_when_the_dead_are_known_when_they_change_and_each_minute():
    log = Written("relu")
    log.count(relu=rows(ROWS_NEEDED - 1, 0))
    assert log.lines == []
    log.count(relu=rows(1, 0))
    assert log.records()[0].layers["relu"] == LayerUnits(200, 4, 0.25, (1, 2, 3), (200, 0, 0, 0))
    log.now += 9
    log.count(relu=rows(1, 1))
    assert len(log.lines) == 1
    log.now += 2
    log.count(relu=rows(1, 1))
    assert log.records()[1].layers["relu"].dead == (2, 3)
    log.now += 59
    log.count(relu=rows(1, 1))
    assert len(log.lines) == 2
    log.now += 2
    log.count(relu=rows(1, 1))
    assert log.records()[2].layers["relu"].active == (200, 4, 0, 0)
    assert len({record.worker for record in log.records()}) == 1


def test_what_was_counted_since_is_written_at_the_end():
    log = Written("relu")
    log.writer.close()
    log.count(relu=rows(5, 0))
    log.writer.close()
    log.writer.close()
    [record] = log.records()
    assert record.layers["relu"] == LayerUnits(5, 4, 0.25, None, (5, 0, 0, 0))


def test_many_units_take_several_lines_and_longer():
    names = [f"relu{number}" for number in range(4)]
    log = Written(*names)
    values = np.ones((ROWS_NEEDED, MOST_COUNTED))
    wide = np.zeros((ROWS_NEEDED, MOST_COUNTED + 1))
    log.count(**dict.fromkeys(names[:3], values), relu3=wide)
    found = log.records()
    assert [key for record in found for key in record.layers] == names
    assert max(map(len, log.lines)) < 100_000
    assert found[-1].layers["relu3"].active is None
    assert found[-1].layers["relu3"].dead == tuple(range(MOST_COUNTED))
    written, size = len(log.lines), sum(map(len, log.lines))
    log.now += size / 200 - 1
    log.count(relu0=values)
    assert len(log.lines) == written
    log.now += 2
    log.count(relu0=values)
    assert len(log.lines) > written


@pytest.mark.parametrize(
    "damage",
    [
        {"format": "vitrine.activation"},
        {"version": 2},
        {"worker": None},
        {"layers": []},
        {"layers": {"relu": {"rows": 1, "units": 2, "active_fraction": 0.5, "dead": [-1]}}},
        {"layers": {"relu": {"rows": 1, "units": 2, "active_fraction": "much", "dead": []}}},
        {
            "layers": {
                "relu": {"rows": 1, "units": 2, "active_fraction": 1, "dead": [], "active": [1]}
            }
        },
    ],
)
def test_what_is_no_line_about_units_is_refused(damage):
    fields = line(1, "w", 1, [1, 1])
    assert UnitsRecord.parse(fields).to_json() == fields
    with pytest.raises(FormatError):
        UnitsRecord.parse(fields | damage)


def line(second, worker, count, active, key="relu", **others):
    dead = tuple(np.flatnonzero(np.array(active) == 0).tolist())
    units = LayerUnits(count, len(active), 0.5, dead, tuple(active))
    if others:
        units = LayerUnits(count, others["units"], 0.5, others["dead"])
    time = f"2026-11-24T20:00:{second:02}.000Z"
    return UnitsRecord(time, "net", "1.0", worker, {key: units}).to_json()


@pytest.fixture
def indexed():
    made = []

    def make(*fields):
        index = Index()
        made.append(index)
        index.add(decode([json.dumps(one).encode() for one in fields]))
        return index

    yield make
    for index in made:
        index.close()


def start(second):
    return int(np.datetime64(f"2026-11-24T20:00:{second:02}", "ms").astype(int))


def test_workers_add_up_and_a_later_line_replaces_an_earlier_one(indexed):
    index = indexed(
        line(1, "a", 100, [100, 0, 0]),
        line(3, "a", 300, [300, 5, 0]),
        line(2, "b", 200, [10, 0, 0]),
    )
    assert index.skipped == {}
    [found] = queries.units(index, Window("net"))
    assert (found.key, found.rows, found.units) == ("relu", 500, 3)
    assert found.active == [310, 5, 0]
    assert found.dead == [2]
    assert found.active_fraction == pytest.approx(315 / 500 / 3)
    assert queries.units(index, Window("other")) == []
    assert queries.units(index, Window("net", "2.0")) == []


def test_a_unit_that_died_within_a_workers_life_shows_in_a_window(indexed):
    index = indexed(line(1, "a", 1000, [500, 900]), line(30, "a", 1400, [500, 1300]))
    [found] = queries.units(index, Window("net", since=start(20)))
    assert (found.rows, found.active, found.dead) == (400, [0, 400], [0])
    [found] = queries.units(index, Window("net", until=start(20)))
    assert (found.rows, found.dead) == (1000, [])


def test_nobody_is_accused_on_few_rows(indexed):
    [found] = queries.units(indexed(line(1, "a", 50, [0, 50])), Window("net"))
    assert found.dead is None
    assert found.active == [0, 50]


def test_of_layers_without_counts_those_are_dead_that_are_so_in_each_worker(indexed):
    index = indexed(
        line(1, "a", 300, [], units=9000, dead=(1, 2, 3)),
        line(1, "b", 300, [], units=9000, dead=(2, 3, 4)),
    )
    [found] = queries.units(index, Window("net"))
    assert (found.rows, found.units, found.dead, found.active) == (600, 9000, [2, 3], None)


def test_damaged_lines_are_counted_and_left_out(indexed):
    good = line(1, "a", 300, [300])
    index = indexed(
        good,
        good | {"version": 9},
        good | {"time": "yesterday"},
        good | {"time": "2026-13-24T20:00:00.000Z"},
        good | {"layers": {"relu": {"rows": 2**70}}},
        line(1, "a", 2**70, [2**70]),
    )
    assert index.skipped == {"of another version": 1, "damaged record": 4}
    assert len(queries.units(index, Window("net"))) == 1
    assert len(index) == 0


def test_the_schema_is_that_of_the_format():
    assert SCHEMA["$id"] == "urn:vitrine:units-record:1"
    assert Path(ROOT / "docs" / "activations.md").read_text().count("units-record.schema.json")


def test_lines_older_than_the_records_that_are_kept_are_forgotten():
    index = Index(keep=10)
    try:
        index.add(decode([json.dumps(line(1, "a", 300, [300, 0])).encode()]))
        assert len(queries.units(index, Window("net"))) == 1
        records = []
        for second in range(2, 50):
            fields = dict.fromkeys(("traceparent", "correlation_id"))
            fields |= {"format": "vitrine.activation", "version": 1, "reason": "error", "rows": 1}
            fields |= {"model": "net", "model_version": "1.0", "error": "internal"}
            fields |= {"time": f"2026-11-24T20:00:{second:02}.000Z", "request_id": str(second)}
            records.append(json.dumps(fields).encode())
        index.add(decode(records))
        assert len(index) == 10
        assert queries.units(index, Window("net")) == []
    finally:
        index.close()
