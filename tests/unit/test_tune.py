"""What tuning chooses, and what it writes."""

import shutil
import zipfile

import numpy as np
import pytest
import torch
import yaml

from export.cli import main
from export.contention import Load, Plan, measure
from export.errors import ExportError
from export.freshness import is_fresh, renew, write_sources
from export.tune import choose, describe, plans, setting_of, table, tune
from export.verify import verify
from handlers.model import Model


def settings(cores, *loads):
    """Settings of (workers, threads, rows, milliseconds)."""
    made = [Load(w, t, rows, ms, 2 * ms, w * rows / ms * 1e3) for w, t, rows, ms in loads]
    alone = {(one.workers, one.threads): one for one in made if one.rows == 1}
    return [setting_of(one, alone[one.workers, one.threads], cores) for one in made]


SMALL = settings(
    2,
    *((1, 1, 1, 0.01), (1, 1, 8, 0.012), (1, 1, 16, 0.014), (1, 1, 32, 0.02)),
    *((1, 2, 1, 0.01), (1, 2, 8, 7.7), (1, 2, 16, 8.0)),
    *((2, 1, 1, 0.01), (2, 1, 8, 0.012), (2, 1, 16, 0.014), (2, 1, 32, 0.02)),
)
LARGE = settings(
    2,
    *((1, 1, 1, 24.0), (1, 1, 8, 170.0)),
    *((1, 2, 1, 14.0), (1, 2, 8, 100.0)),
    *((2, 1, 1, 25.0), (2, 1, 8, 172.0)),
)


def chosen(goal, of, limit=None):
    load = choose(of, goal, limit).load
    return load.workers, load.threads, load.rows


def test_a_small_model_is_batched_in_one_worker_for_throughput_and_not_for_latency():
    assert chosen("throughput", SMALL) == (1, 1, 16)
    assert chosen("latency", SMALL) == (1, 1, 1)
    # What each request costs the server bounds it: not one row in 0.02 / 32 ms.
    assert choose(SMALL, "throughput").requests_per_second < 2 / 0.00013


def test_a_large_model_has_a_worker_for_each_core_or_all_threads_in_one():
    assert chosen("throughput", LARGE)[:2] == (2, 1)
    assert chosen("latency", LARGE) == (1, 2, 1)


def test_a_limit_gives_up_throughput_for_time():
    free = choose(LARGE, "throughput")
    bound = choose(LARGE, "throughput", limit_ms=60)
    assert bound.busy_ms <= 60 < free.busy_ms
    with pytest.raises(ExportError, match=r"within 5 ms on a busy server; the shortest is 2"):
        choose(LARGE, "throughput", limit_ms=5)


def test_a_lone_request_waits_for_company_only_where_there_are_batches():
    alone, batched = SMALL[0], SMALL[1]
    assert batched.alone_ms - alone.alone_ms == pytest.approx(batched.delay)
    # A slow batch may wait longer to fill up.
    assert LARGE[1].delay > SMALL[1].delay == 1


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        (1, [(1, 1)]),
        (2, [(1, 1), (1, 2), (2, 1)]),
        (6, [(1, 1), (1, 2), (1, 4), (3, 2), (6, 1)]),
    ],
)
def test_no_plan_takes_more_threads_than_cores(cores, expected):
    assert plans(cores) == expected


def test_the_table_marks_what_was_chosen_and_the_sentence_names_the_trade():
    best = choose(SMALL, "latency")
    marked = [line for line in table(SMALL, best).splitlines() if line.startswith("→")]
    assert len(marked) == 1
    assert marked[0].split()[1:4] == ["1", "1", "1"]
    assert "with the goal throughput it would be" in describe(SMALL, best)


@pytest.fixture(scope="module")
def archive(exported, tmp_path_factory):
    copy = tmp_path_factory.mktemp("tune") / "elementwise.mar"
    shutil.copy(exported("elementwise").archive, copy)
    return copy


def test_a_tuned_archive_is_whole_and_serves(archive, tmp_path):
    before = zipfile.ZipFile(archive).read("model-config.yaml")
    record = archive.with_suffix(".sources.json")
    write_sources(record, [], [archive], {})
    assert main(["tune", str(archive), "--goal", "latency", "--cores", "1"]) == 0
    config = yaml.safe_load(zipfile.ZipFile(archive).read("model-config.yaml"))
    assert yaml.safe_load(before)["batchSize"] > 1
    assert (config["batchSize"], config["minWorkers"], config["maxWorkers"]) == (1, 1, 1)
    assert config["vitrine"]["threads"] == 1
    assert config["vitrine"]["tuned"]["goal"] == "latency"
    # An update of the store leaves it alone.
    assert is_fresh(record, [archive], {})
    (tmp_path / "verify").mkdir()
    assert all(verdict.held for verdict in verify(archive, tmp_path / "verify"))
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path / "model")
    [answer] = Model(tmp_path / "model", torch.device("cpu")).run(
        [np.array([[1, -2, 3, 0.5]], np.float32)]
    )
    assert answer.tolist() == [[2, 2, 6, 1]]


def test_processes_run_at_once_and_each_number_of_rows_is_timed(archive, tmp_path):
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path)
    loads = measure(Plan(tmp_path, "torchscript", (1, 4), 0.05), workers=2, threads=1)
    assert [(one.workers, one.threads, one.rows) for one in loads] == [(2, 1, 1), (2, 1, 4)]
    assert all(0 < one.milliseconds <= one.slow_milliseconds for one in loads)


def test_what_cannot_be_tuned_is_refused_in_words(archive, tmp_path):
    other = tmp_path / "other.mar"
    other.write_text("no zip")
    with pytest.raises(ExportError, match="not a zip"):
        tune(other, tmp_path, "latency")
    with pytest.raises(ExportError, match="'warp' was not certified"):
        tune(archive, tmp_path, "latency", engine="warp")
    with pytest.raises(ExportError, match="No such file"):
        tune(tmp_path / "none.mar", tmp_path, "latency")


@pytest.mark.parametrize(
    "wrong",
    [
        ["--goal", "latency", "--within", "5"],
        ["--within", "-1"],
        ["--within", "nan"],
        ["--cores", "0"],
    ],
)
def test_contradictions_are_refused_before_anything_is_measured(archive, wrong, capsys):
    before = archive.read_bytes()
    with pytest.raises(SystemExit) as ended:
        main(["tune", str(archive), *wrong])
    assert ended.value.code == 2
    assert "--within goes with" in (said := capsys.readouterr().err) or "expected 1 or more" in said
    assert archive.read_bytes() == before


def test_a_record_that_is_damaged_stays_as_it_is(tmp_path):
    record = tmp_path / "x.sources.json"
    record.write_text("[")
    renew(record, tmp_path / "x.mar")
    assert record.read_text() == "["
    renew(tmp_path / "none.json", tmp_path / "x.mar")
    assert not (tmp_path / "none.json").exists()


def test_large_bodies_count_and_little_more_throughput_is_not_worth_twice_the_batch():
    # As measured for a ResNet-18 on two cores: rows of 602,112 bytes.
    measured = [
        *((1, 1, 1, 41.2), (1, 1, 4, 136.1), (1, 1, 16, 511.0)),
        *((1, 2, 1, 22.6), (1, 2, 4, 71.3), (1, 2, 16, 264.0)),
        *((2, 1, 1, 40.9), (2, 1, 4, 134.2), (2, 1, 8, 259.4), (2, 1, 16, 506.0)),
    ]
    made = [Load(w, t, rows, ms, 2 * ms, w * rows / ms * 1e3) for w, t, rows, ms in measured]
    alone = {(one.workers, one.threads): one for one in made if one.rows == 1}
    several = [
        setting_of(one, alone[one.workers, one.threads], 2, row_bytes=602_112) for one in made
    ]
    assert chosen("throughput", several) == (2, 1, 4)
    without = settings(2, *measured)
    pairs = zip(several, without, strict=True)
    assert all(own.requests_per_second < other.requests_per_second for own, other in pairs)
