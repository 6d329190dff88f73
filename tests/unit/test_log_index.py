"""A log while it is written, put aside, copied, emptied and full of garbage: every record once."""

import json
import os
import random
import shutil
import threading
import time

import duckdb
import pandas
import pytest

from formats.document import FormatError
from observe import log_files, queries
from observe.index import Index
from observe.lines import Moved, decode, merge_order, read_part
from observe.log_files import LogFiles
from observe.reader import Reader


def line(number, layers=("a", "b"), model="m", rows=1, **more):
    """Return one record of the log, of which every number is different."""
    statistics = {
        key: {
            "elements": 4,
            "mean": number + place / 10,
            "std": 0.5,
            "min": -float(number),
            "max": float(number),
            "zero_fraction": 0.25,
            "non_finite": 0,
        }
        for place, key in enumerate(layers)
    }
    if rows > 1:
        for layer in statistics.values():
            layer["rows"] = [dict(layer, mean=layer["mean"] + row) for row in range(rows)]
    seconds, milliseconds = divmod(number, 1000)
    record = {
        "format": "vitrine.activation",
        "version": 1,
        "time": f"2026-01-31T12:{seconds // 60:02}:{seconds % 60:02}.{milliseconds:03}Z",
        "model": model,
        "model_version": "1.0",
        "request_id": f"id-{number}",
        "traceparent": None,
        "correlation_id": None,
        "reason": "sampled",
        "rows": rows,
        "error": None,
        "layers": statistics,
        "flags": {"non_finite": None, "dead": []},
    } | more
    return json.dumps(record).encode() + b"\n"


@pytest.fixture
def log(tmp_path):
    return tmp_path / "m.jsonl"


@pytest.fixture
def index():
    index = Index()
    yield index
    index.close()


def read(files, index):
    for part in files.poll():
        index.add(read_part(part))


def ids(index):
    with index.cursor() as cursor:
        return sorted(
            int(found[0][3:])
            for found in cursor.execute("SELECT request_id FROM record").fetchall()
        )


def append(path, *numbers, **more):
    with path.open("ab") as file:
        for number in numbers:
            file.write(line(number, **more))


def test_a_line_counts_when_it_is_whole(log, index):
    whole = line(2)
    log.write_bytes(line(1) + whole[:50])
    files = LogFiles(log)
    read(files, index)
    assert ids(index) == [1]
    with log.open("ab") as file:
        file.write(whole[50:-1])
    read(files, index)
    assert ids(index) == [1]
    with log.open("ab") as file:
        file.write(b"\n")
    read(files, index)
    assert ids(index) == [1, 2]
    assert not index.skipped


def test_files_put_aside_are_read_once(log, index):
    files = LogFiles(log)
    append(log, 1, 2)
    read(files, index)
    append(log, 3)  # Written before it is put aside, and not yet read.
    log.rename(log.with_name("m.1.jsonl"))
    append(log, 4)
    read(files, index)
    log.with_name("m.1.jsonl").rename(log.with_name("m.2.jsonl"))
    log.rename(log.with_name("m.1.jsonl"))
    append(log, 5)
    read(files, index)
    read(files, index)
    assert ids(index) == [1, 2, 3, 4, 5]
    assert files.truncated == 0


def test_a_deleted_file_whose_inode_is_given_out_again(log, index):
    files = LogFiles(log)
    append(log, 1, 2, 3)
    read(files, index)
    content = line(4) + line(5)
    with log.open("r+b") as file:  # The same inode, another file.
        file.truncate(0)
        file.write(content)
    read(files, index)
    assert ids(index) == [1, 2, 3, 4, 5]


def test_a_file_copied_and_emptied(log, index):
    files = LogFiles(log)
    append(log, 1, 2)
    read(files, index)
    shutil.copy(log, log.with_name("m.1.jsonl"))
    os.truncate(log, 0)
    read(files, index)
    append(log, 3)
    read(files, index)
    assert ids(index) == [1, 2, 3]


def test_a_file_cut_short_is_said(log, index):
    files = LogFiles(log)
    append(log, 1, 2, 3)
    read(files, index)
    os.truncate(log, len(line(1)))
    read(files, index)
    append(log, 4)
    read(files, index)
    assert ids(index) == [1, 2, 3, 4]
    assert files.truncated == 1


def test_a_file_missed_while_it_was_renamed_is_not_read_twice(log, index):
    files = LogFiles(log)
    append(log, 1)
    read(files, index)
    elsewhere = log.with_name("hidden")
    log.rename(elsewhere)
    append(log, 2)
    read(files, index)
    elsewhere.rename(log.with_name("m.1.jsonl"))
    read(files, index)
    assert ids(index) == [1, 2]


def test_garbage_is_counted_by_reason(log, index):
    good = line(1)
    damaged = json.loads(good)
    del damaged["layers"]["a"]["mean"]
    text = json.loads(good) | {"request_id": "id-7"}
    text["layers"]["a"]["mean"] = "a word"
    log.write_bytes(
        good
        + b"\n"
        + b"\x00\xff garbage\n"
        + b'{"format": "something else"}\n'
        + b"[1, 2]\n"
        + good.replace(b'"version": 1', b'"version": 99')
        + json.dumps(damaged).encode()
        + b"\n"
        + json.dumps(text).encode()
        + b"\n"
        + line(9, time="yesterday, 10 o'clock Z")
        + line(2)
        + good[: len(good) // 2]
        + b"\n"
        + line(3)
    )
    read(LogFiles(log), index)
    assert ids(index) == [1, 2, 3]
    assert index.skipped == {
        "not JSON": 2,
        "no activation record": 2,
        "of another version": 1,
        "damaged record": 3,
    }
    with index.cursor() as cursor:
        assert cursor.execute("SELECT count(*) FROM value").fetchone() == (6,)


@pytest.mark.parametrize(
    "damage",
    [
        {"time": "1969-12-31T23:59:59.999Z"},
        {"time": "2200-01-01T00:00:00.000Z"},
        {"time": "-0001-01-01T00:00:00.00Z"},
        {"time": "12345678-01-01T00:00:00Z"},
        {"rows": 1e30},
        {"rows": -1},
        {"elements": 1e300},
        {"non_finite": 2**62},
        {"non_finite": -1},
    ],
)
def test_what_no_index_holds_is_damaged(log, index, damage):
    bad = json.loads(line(7))
    place = bad if damage.keys() & bad.keys() else bad["layers"]["a"]
    place |= damage
    log.write_bytes(line(1) + json.dumps(bad).encode() + b"\n" + line(2))
    read(LogFiles(log), index)
    assert ids(index) == [1, 2]
    assert index.skipped == {"damaged record": 1}


def test_times_far_apart(log, index):
    times = ("1970-01-01T00:00:00.000Z", "2199-12-31T23:59:59.999Z")
    log.write_bytes(b"".join(line(number, time=time) for number, time in enumerate(times)))
    read(LogFiles(log), index)
    found = queries.heatmap(index, queries.Window("m"), "mean")
    assert [sum(found.records), found.records[0], found.records[-1]] == [2, 1, 1]
    assert found.starts[0] == 0


def test_a_file_that_may_not_be_read_is_said(log, index, monkeypatch):
    append(log, 1)
    other = log.with_name("other.jsonl")
    append(other, 2)
    opened = type(log).open

    def refusing(path, *mode):
        if path == other:
            raise PermissionError(13, "Permission denied")
        return opened(path, *mode)

    with monkeypatch.context() as patch:
        patch.setattr(type(log), "open", refusing)
        reader = Reader(log.parent, index)
        assert reader.state().problem == f"{other} cannot be read: Permission denied"
        assert reader.read_all().problem == f"{other} cannot be read: Permission denied"
    assert reader.read_all().problem is None
    assert ids(index) == [1, 2]

    def closed(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("os.listdir", closed)
    assert reader.read_all().problem == f"{log.parent} cannot be read: Permission denied"


def test_a_file_renamed_between_two_looks_in_one_poll_is_read_once(log, index):
    append(log, 1, 2)
    os.link(log, log.with_name("m.1.jsonl"))
    assert Reader(log, index).read_all().records == 2


def test_a_file_that_is_renamed_again_and_again_is_found(log, index, monkeypatch):
    append(log, 1, 2)
    reader = Reader(log, index)
    calls = []

    def elusive(part):
        calls.append(part)
        if len(calls) < 4:
            raise Moved(str(part.path))
        return read_part(part)

    monkeypatch.setattr("observe.reader.read_part", elusive)
    monkeypatch.setattr("observe.reader._PAUSE", 0)
    assert reader.read_all().records == 2
    append(log, 3)
    monkeypatch.setattr("observe.reader.read_part", lambda part: elusive(calls.clear() or part))
    assert reader.read_all().skipped == {"deleted before it was read": 1}


def test_records_without_room_are_counted_and_the_next_are_read(log, index, monkeypatch):
    append(log, 1, 2)
    reader = Reader(log, index)

    def full(*asked):
        raise duckdb.OutOfMemoryException("no room")

    with monkeypatch.context() as patch:
        patch.setattr(index, "_insert", full)
        assert reader.read_all().skipped == {"no room to keep it": 2}
    append(log, 3)
    assert reader.read_all().records == 1
    assert ids(index) == [3]


def test_a_line_too_long_for_memory_is_one_line_skipped(log, index, monkeypatch):
    monkeypatch.setattr("observe.lines._LONGEST_LINE", 10_000)
    monkeypatch.setattr(log_files, "_PART", 5_000)
    log.write_bytes(line(1) + b'{"x": "' + b"x" * 25_000 + b'"}\n' + line(2))
    read(LogFiles(log), index)
    assert ids(index) == [1, 2]
    assert index.skipped == {"not JSON": 1}


@pytest.mark.parametrize("size", [1, 97, 700, 701, 5_000])
def test_parts_share_the_lines_among_them(log, index, monkeypatch, size):
    monkeypatch.setattr(log_files, "_PART", size)
    append(log, *range(20))
    parts = LogFiles(log).poll()
    assert len(parts) == -(-log.stat().st_size // size)
    for part in parts:
        index.add(read_part(part))
    assert ids(index) == list(range(20))
    assert not index.skipped


def test_an_empty_folder_waits_and_no_folder_is_an_error(tmp_path, index):
    files = LogFiles(tmp_path)
    assert files.poll() == []
    append(tmp_path / "late.jsonl", 1)
    read(files, index)
    assert ids(index) == [1]
    with pytest.raises(FormatError, match=r"nothing\.jsonl is not there"):
        LogFiles(tmp_path / "nothing.jsonl").poll()
    with pytest.raises(FormatError, match="is not there"):
        LogFiles(tmp_path / "no" / "nothing.jsonl").poll()


def test_one_file_of_a_folder_brings_only_those_put_aside_of_it(tmp_path, index):
    append(tmp_path / "m.jsonl", 1)
    append(tmp_path / "m.1.jsonl", 2)
    append(tmp_path / "m.x.jsonl", 3)
    append(tmp_path / "other.jsonl", 4)
    read(LogFiles(tmp_path / "m.jsonl"), index)
    assert ids(index) == [1, 2]


def test_every_record_once_while_a_log_is_written_and_put_aside(log, index):
    """As the server's writer does it, with a reader that looks all the time."""
    many = 3_000
    done = threading.Event()

    def write():
        generator = random.Random(3)
        for number in range(many):
            data = line(number)
            with log.open("ab", buffering=0) as file:
                cut = generator.randrange(len(data))
                file.write(data[:cut])
                file.write(data[cut:])
            if number % 251 == 250:
                for older in range(40, 0, -1):
                    path = log.with_name(f"m.{older}.jsonl")
                    if path.exists():
                        path.rename(log.with_name(f"m.{older + 1}.jsonl"))
                log.rename(log.with_name("m.1.jsonl"))
        done.set()

    append(log, many)
    reader = Reader(log, index)
    reader.start(every=0.001)
    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert done.is_set()
    deadline = time.monotonic() + 30
    while len(index) <= many and time.monotonic() < deadline:
        time.sleep(0.02)
    reader.close()
    assert ids(index) == list(range(many + 1))
    assert reader.state().complete
    assert reader.state().truncated == 0


def test_a_large_log_is_read_in_other_processes(log, index):
    append(log, *range(8_000), rows=2)
    reader = Reader(log, index)
    assert log.stat().st_size > 6 << 20
    state = reader.read_all()
    assert state.records == 8_000
    assert state.complete
    assert ids(index) == list(range(8_000))
    reader.close()


def test_layers_of_records_without_room_are_known_when_they_come_again(log, index, monkeypatch):
    append(log, 1, layers=("late",))
    files = LogFiles(log)
    with monkeypatch.context() as patch:
        patch.setattr(index, "_append", lambda *_: (_ for _ in ()).throw(OSError("no room")))
        with pytest.raises(OSError, match="no room"):
            read(files, index)
    append(log, 2, layers=("late",))
    read(files, index)
    assert [one.key for one in queries.overview(index, queries.Window("m"))] == ["late"]


def test_the_oldest_records_go_first(log):
    index = Index(keep=100)
    files = LogFiles(log)
    for start in range(0, 300, 20):
        append(log, *range(start, start + 20))
        read(files, index)
    assert ids(index)[-1] == 299
    assert 100 <= len(index) <= 110
    assert ids(index) == list(range(300 - len(index), 300))
    index.close()


def frame(log):
    records = [json.loads(one) for one in log.read_text().splitlines()]
    return pandas.DataFrame(
        {"time": pandas.Timestamp(record["time"]), "key": key, **layer}
        for record in records
        for key, layer in record["layers"].items()
    )


def test_numbers_are_those_that_pandas_computes(log, index):
    generator = random.Random(5)
    with log.open("wb") as file:
        for number in sorted(generator.sample(range(600_000), 500)):
            file.write(line(number, layers=("a", "b") if number % 3 else ("a",)))
    read(LogFiles(log), index)
    window = queries.Window("m")
    expected = frame(log)
    for one in queries.overview(index, window):
        rows = expected[expected.key == one.key]
        assert one.records == len(rows)
        assert one.statistics["mean"] == pytest.approx(rows["mean"].mean())
        assert one.statistics["max"] == rows["max"].max()
        assert one.statistics["min"] == rows["min"].min()
    found = queries.heatmap(index, window, "mean", columns=50)
    assert found.layers == ["a", "b"]
    assert len(found.starts) <= 50
    since = (expected.time - pandas.Timestamp(0, tz="UTC")) // pandas.Timedelta(1, "ms")
    grouped = expected.groupby(["key", since // found.width])["mean"].mean()
    for key, values in zip(found.layers, found.values, strict=True):
        for start, value in zip(found.starts, values, strict=True):
            if value is None:
                assert (key, start // found.width) not in grouped
            else:
                assert value == pytest.approx(grouped[key, start // found.width])


def test_a_window_of_time_and_version(log, index):
    append(log, 1_000, 2_000)
    append(log, 3_000, model_version="2.0")
    read(LogFiles(log), index)
    first = int(pandas.Timestamp("2026-01-31T12:00:01Z").timestamp() * 1000)
    for window, count in (
        (queries.Window("m"), 3),
        (queries.Window("m", "2.0"), 1),
        (queries.Window("m", since=first + 1), 2),
        (queries.Window("m", until=first + 1_000), 1),
        (queries.Window("other"), 0),
    ):
        assert sum(one.records for one in queries.overview(index, window)[:1]) == count
        assert len(queries.recent(index, window)) == count
    assert [(one.version, one.records) for one in queries.models(index)] == [("1.0", 2), ("2.0", 1)]


def test_rows_are_those_of_single_rows(log, index):
    append(log, 5)
    append(log, 6, rows=3)
    read(LogFiles(log), index)
    found = queries.rows_of(index, queries.Window("m"), "mean")
    assert sorted(found["a"]) == [5, 6, 7, 8]
    assert sorted(queries.rows_of(index, queries.Window("m"), "mean", latest=3)["b"]) == [
        pytest.approx(6.1),
        pytest.approx(7.1),
        pytest.approx(8.1),
    ]


def test_one_request_with_what_was_not_finite(log, index):
    append(log, 1, flags={"non_finite": "a", "dead": ["b"]}, correlation_id="mine")
    broken = json.loads(line(2))
    broken["layers"]["a"] |= {"mean": None, "max": None, "non_finite": 3}
    with log.open("ab") as file:
        file.write(json.dumps(broken).encode() + b"\n")
    append(log, 3)
    read(LogFiles(log), index)
    found = queries.request(index, "mine")
    assert found is not None
    assert found.row.request_id == "id-1"
    assert found.row.non_finite == "a"
    assert [(layer.key, layer.flag) for layer in found.layers] == [("a", None), ("b", "dead")]
    found = queries.request(index, "id-2")
    assert found.layers[0].statistics["mean"] is None
    assert found.layers[0].statistics["non_finite"] == 3
    assert queries.request(index, "id-4") is None
    assert [row.request_id for row in queries.flagged(index, queries.Window("m"))] == ["id-1"]


def test_gradients(log, index):
    statistics = {"elements": 4, "norm": 2.0, "mean": 0, "std": 1, "min": 0, "max": 1,
                  "zero_fraction": 0, "non_finite": 0}  # fmt: skip
    gradients = {
        "of": "probabilities",
        "layers": {"a": statistics | {"norm": 1e-9}, "b": statistics},
        "flags": {"vanishing": ["a"], "exploding": []},
    }
    append(log, 1, 2, gradients=gradients)
    read(LogFiles(log), index)
    found = queries.request(index, "id-1")
    assert [(one.key, one.flag) for one in found.gradients] == [("a", "vanishing"), ("b", None)]
    assert found.row.gradient_of == "probabilities"
    assert len(queries.flagged(index, queries.Window("m"))) == 2
    assert queries.gradient_heatmap(index, queries.Window("m"), "norm").values == [
        [1e-9, 1e-9],
        [2.0, 2.0],
    ]


def test_layers_keep_the_order_they_ran_in():
    order = ["a", "c"]
    merge_order(order, ["a", "b", "c"])
    merge_order(order, ["a", "c", "d"])
    merge_order(order, ["z", "d"])
    assert order.index("a") < order.index("b") < order.index("c") < order.index("d")
    assert "z" in order
    merge_order(order, ["n", "a", "m", "c"])
    assert order == ["n", "z", "a", "m", "b", "c", "d"]


def test_decode_takes_nothing():
    assert len(decode([]).record["time"]) == 0
