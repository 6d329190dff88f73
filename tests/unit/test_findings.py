"""What is said of a log: each rule, on logs made for it."""

import json
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from formats.baseline import Baseline, Summary
from formats.document import FormatError
from formats.units import LayerUnits, UnitsRecord
from observe import finding
from observe.drift import Distance, LayerDrift
from observe.findings import find
from observe.index import Index
from observe.lines import decode
from observe.queries import Window

START = 1_795_000_000_000
HEALTHY = {"first": 1.0, "second": 2.0, "third": 1.5}


def layer(size=1.0, at=0, **others):
    """Statistics of a layer of this size that differ from request to request."""
    wave = 1 + 0.1 * (at % 7) / 7
    return {
        "elements": 100,
        "mean": 0.3 * size * wave,
        "std": 0.4 * size * wave,
        "min": 0.0,
        "max": size * wave,
        "zero_fraction": 0.4,
        "non_finite": 0,
        **others,
    }


ZEROS = {"mean": 0.0, "std": 0.0, "min": 0.0, "max": 0.0, "zero_fraction": 1.0}
LOST = {"mean": None, "std": None, "min": None, "max": None, "non_finite": 50}


def record(number, sizes=HEALTHY, *, error=None, non_finite=None, reason="sampled", **changed):
    """Make a request's record; `changed` replaces statistics of a layer."""
    layers = {key: layer(size, number) | changed.get(key, {}) for key, size in sizes.items()}
    fields = {
        "format": "vitrine.activation",
        "version": 1,
        "time": time(number),
        "model": "net",
        "model_version": "1.0",
        "request_id": f"r{number}",
        "traceparent": None,
        "correlation_id": None,
        "reason": reason if error is None else "error",
        "rows": 1,
        "error": error,
    }
    if error is not None:
        return fields
    dead = [key for key, own in layers.items() if own["zero_fraction"] == 1]
    return fields | {"layers": layers, "flags": {"non_finite": non_finite, "dead": dead}}


def gradients(number, vanishing=(), exploding=(), **others):
    own = {"elements": 9, "norm": 1, "mean": 0, "std": 1, "min": -1, "max": 1}
    own |= {"zero_fraction": 0, "non_finite": 0}
    flags = {"vanishing": list(vanishing), "exploding": list(exploding)}
    flow = {"of": "loss", "layers": dict.fromkeys(HEALTHY, own), "flags": flags}
    return record(number, **others) | {"gradients": flow}


def units(active, rows=400, key="second"):
    dead = tuple(place for place, count in enumerate(active) if not count)
    counted = LayerUnits(rows, len(active), 0.5, dead, tuple(active))
    return UnitsRecord(time(0), "net", "1.0", "w", {key: counted}).to_json()


def time(number):
    moment = datetime.fromtimestamp(START / 1000 + number, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def baseline(units=None, **changed):
    """Make a baseline without sketches of the layers' deviation and zeros."""
    layers = {
        key: {"std": [0.42 * size, 0.05 * size], "zero_fraction": [0.4, 0.05]}
        | changed.get(key, {})
        for key, size in HEALTHY.items()
    }
    known = {
        key: {name: Summary(500, *numbers, "") for name, numbers in own.items()}
        for key, own in layers.items()
    }
    return Baseline("calibration", 500, known, units=units or {})


@pytest.fixture
def look(monkeypatch):
    """Look at lines; without what drift has to say, which takes sketches."""
    monkeypatch.setattr("observe.findings.drift", lambda index, window, baseline: [])

    def told(lines, known=None, window=None):
        index = Index()
        index.add(decode([json.dumps(line).encode() for line in lines]))
        assert index.skipped == {}
        try:
            return find(index, window or Window("net"), known)
        finally:
            index.close()

    return told


def wrong(told):
    return [(one.severity, one.kind, one.layer) for one in told if one.severity != "note"]


def of(told, kind):
    return next(one for one in told if one.kind == kind)


def test_a_healthy_log_is_told_what_was_looked_at(look):
    told = look([record(number) for number in range(40)], baseline())
    assert [one.kind for one in told] == ["nothing"]
    assert told[0].text == (
        "Nothing wrong was found in 40 requests, 3 layers (first to third), compared with 500 rows "
        "at export."
    )
    told = look([record(number) for number in range(5)])
    assert [one.kind for one in told] == ["nothing", "few_records", "no_baseline"]
    assert "Only 5 requests were answered" in told[1].text
    assert [one.kind for one in look([], baseline())] == ["nothing"]


def test_only_the_window_counts(look):
    lines = [record(number, second=ZEROS) for number in range(30)]
    lines += [record(number) for number in range(30, 60)]
    assert wrong(look(lines, window=Window("net", since=START + 30_000))) == []
    told = look(lines, window=Window("net", until=START + 30_000))
    assert wrong(told) == [("fault", "dead_layer", "second")]
    assert "all 30 requests" in told[0].text
    [only] = look(lines, window=Window("net", "2.0"))
    assert only.text == "There is no record in this window."


def test_the_layer_that_made_nan_is_named_with_since_when(look):
    lines = [record(number) for number in range(30)]
    lines += [
        record(number, non_finite="hidden", second=LOST, third=LOST) for number in range(30, 40)
    ]
    told = look(lines)
    assert wrong(told) == [("fault", "non_finite", "hidden")]
    assert "in 10 of 40 requests (25 %), first at 2026-11-18" in told[0].text
    assert told[0].requests == ("r39", "r38", "r37")


def test_nan_that_came_in_is_no_fault_of_a_layer(look):
    lines = [record(number) for number in range(30)]
    lines.append(record(30, first=LOST, second=LOST, third=LOST))
    told = look(lines)
    assert wrong(told) == [("warning", "non_finite", None)]
    assert "came in with the inputs in 1 of 31 requests (3 %)" in told[0].text
    assert told[0].requests == ("r30",)


def test_a_dead_layer_is_judged_by_how_often_and_by_what_it_was(look):
    some = [record(number, second=ZEROS if number % 4 == 0 else {}) for number in range(40)]
    told = look(some, baseline())
    assert wrong(told) == [("warning", "dead_layer", "second")]
    assert "10 of 40 requests (25 %); at export, 40 % of its values were zero" in told[0].text
    assert told[0].requests == ("r36", "r32", "r28")
    usual = baseline(second={"zero_fraction": [0.9, 0.2]})
    assert wrong(look(some, usual)) == []
    always = [record(number, second=ZEROS) for number in range(40)]
    told = look(always, baseline(second={"zero_fraction": [1.0, 0.0]}))
    assert wrong(told) == [("warning", "dead_layer", "second")]
    assert "so it did at export: look at the exported weights" in told[0].text
    fixed = layer(1.5)
    lines = [record(number, second=ZEROS, third=fixed) for number in range(40)]
    told = look(lines, baseline(second={"zero_fraction": [1.0, 0.0]}))
    assert wrong(told) == [("fault", "dead_layer", "second")]
    assert wrong(look(lines[:3])) == [("warning", "dead_layer", "second")]


def test_a_layer_that_does_not_look_at_its_input(look):
    fixed = layer(2.0)
    lines = [record(number, second=fixed, third=fixed) for number in range(40)]
    told = look(lines)
    assert wrong(told) == [("fault", "constant", "second")]
    assert "the model answers the same whatever it is asked" in told[0].text
    aside = [record(number, second=fixed) for number in range(40)]
    assert wrong(look(aside)) == [("warning", "constant", "second")]
    known = baseline(second={"mean": [0.6, 0.0], "std": [0.8, 0.0]})
    told = look(aside, known)
    assert wrong(told) == []
    assert "as at export" in of(told, "constant").text
    alike = [record(0) | {"time": time(number)} for number in range(40)]
    told = look(alike)
    assert wrong(told) == [("warning", "constant", "first")]
    assert "either all of these requests were alike" in told[0].text


def test_zeros_and_ones_look_the_same_whatever_they_say(look):
    decided = layer() | {"mean": 0.1, "std": 0.3, "min": 0.0, "max": 1.0}
    told = look([record(number, third=decided) for number in range(40)])
    assert wrong(told) == []
    assert "saturated" in of(told, "constant").text


def test_a_damaged_baseline_is_told_of(look, monkeypatch):
    def damaged(index, window, baseline):
        raise FormatError("a sketch is damaged")

    monkeypatch.setattr("observe.findings.drift", damaged)
    told = look([record(number) for number in range(40)], baseline())
    assert wrong(told) == []
    assert of(told, "drift").text == (
        "Drift cannot be told: a sketch is damaged; export the model again."
    )


def test_layers_that_explode(look):
    def sizes(*values):
        return look([record(number, dict(zip("abcdef", values))) for number in range(40)])  # noqa: B905

    told = sizes(1, 2, 3e4, 4e4)
    assert wrong(told) == [("fault", "exploding", "c")]
    assert "times b before it" in told[0].text
    told = sizes(1, 20, 400, 8e3, 1.6e5)
    assert wrong(told) == [("fault", "exploding", "b")]
    assert "grow with each layer from a" in told[0].text
    assert "20 times a layer" in told[0].text
    assert wrong(sizes(1e7, 1e7, 1e7)) == [("fault", "exploding", "a")]
    # Large, but no larger than what comes before; or far larger, but small.
    assert wrong(sizes(1e5, 2e5, 1e5)) == []
    assert wrong(sizes(1e-4, 5, 1)) == []
    told = sizes(1e5, 2e5, 1e5)
    assert "float16 overflows" in of(told, "overflow").text


def test_what_is_close_to_overflow_is_a_fault_in_a_single_request(look):
    lines = [record(number) for number in range(39)]
    lines.append(record(39, second={"max": 2e38}))
    assert wrong(look(lines)) == [("fault", "overflow", "second")]


def test_a_layer_that_collapses(look):
    lines = [record(number, {"a": 1, "b": 1e-7, "c": 1e-7}) for number in range(40)]
    told = look(lines)
    assert wrong(told) == [("fault", "vanishing", "b")]
    assert wrong(look([record(number, {"a": 5e5, "b": 0.4}) for number in range(40)])) == []


@pytest.mark.parametrize(
    ("factor", "severity", "kind"),
    [
        (45, "fault", "exploding"),
        (30, "fault", "exploding"),
        (20, "warning", "exploding"),
        (0.05, "warning", "vanishing"),
        (0.03, "fault", "vanishing"),
        (0.001, "fault", "vanishing"),
    ],
)
def test_a_layer_of_another_scale_than_at_export(look, factor, severity, kind):
    sizes = {"first": 1, "second": 2 * factor, "third": 1.5 * factor}
    lines = [record(number, sizes) for number in range(40)]
    assert wrong(look(lines, baseline())) == [(severity, kind, "second")]
    assert wrong(look(lines)) == []


def test_a_hidden_layer_that_is_far_larger_than_the_one_before_it(look):
    def sizes(*values, **changed):
        order = dict(zip("abcd", values, strict=False))
        return look([record(number, order, **changed) for number in range(40)])

    told = sizes(2, 400, 600)
    assert wrong(told) == [("warning", "exploding", "b")]
    assert "200 times the layer before it (2.08" in told[0].text
    # An answer may be of any size; and so may a layer be that is not large.
    assert wrong(sizes(2, 2, 400)) == []
    assert wrong(sizes(0.1, 90, 60)) == []
    decided = {"mean": 0.1, "std": 0.3, "min": 4e-6, "max": 0.999995}
    told = sizes(2e4, 3e4, 1, c=decided)
    assert wrong(told) == [("warning", "exploding", "a")]
    assert "c after it puts out nothing but 0 and 1" in told[0].text
    assert wrong(sizes(20, 30, 1, c=decided)) == []


def test_what_is_told_twice_is_told_as_the_graver(look):
    lines = [record(number, {"first": 1, "second": 400, "third": 300}) for number in range(40)]
    told = look(lines, baseline())
    assert wrong(told) == [("fault", "exploding", "second")]
    assert "198 times what it was at export" in told[0].text


def test_an_infinity_in_all_requests(look):
    lines = [record(n, non_finite="second", second=LOST | {"min": -3.0}) for n in range(40)]
    assert wrong(look(lines)) == [("fault", "non_finite", "second")]


def test_a_layer_that_varied_at_export_is_not_the_same_as_then(look):
    lines = [record(number, second=layer(2.0)) for number in range(40)]
    # The mean of a softmax is always the same.
    known = baseline(second={"mean": [0.6, 0.0], "std": [0.8, 0.1]})
    assert wrong(look(lines, known)) == [("warning", "constant", "second")]


def test_more_zeros_than_at_export(look):
    lines = [record(number, third={"zero_fraction": 0.7}) for number in range(40)]
    told = look(lines, baseline())
    assert wrong(told) == [("warning", "zeros", "third")]
    assert told[0].text.startswith("70 % of the values of third are zero, at export 40 %")
    assert wrong(look(lines)) == []
    lines = [record(number, third={"zero_fraction": 0.995}) for number in range(40)]
    assert wrong(look(lines)) == [("warning", "zeros", "third")]


def test_units_that_fired_at_export_and_never_since(look):
    lines = [record(number) for number in range(40)]
    lines.append(units([400, 0, 0, 0, 300]))
    known = baseline({"second": [1.0, 0.9, 0.06, 0.02, 0.7]})
    told = look(lines, known)
    assert wrong(told) == [("fault", "dead_units", "second")]
    assert told[0].text.startswith(
        "Units 1, 2 of second never fired in 400 rows, although at export each fired in 6 % "
    )
    assert told[0].requests
    # Rare at export: 0.02 of 400 rows are 8, which may well stay away.
    assert len(told) == 1
    seldom = baseline({"second": [1.0, 0.2, 0.0, 0.0, 0.7]})
    assert wrong(look(lines, seldom)) == [("warning", "dead_units", "second")]


def test_units_that_died_with_others_changing_follow_from_the_inputs(look):
    known = baseline({"second": [1.0, 0.9, 0.5, 0.5, 0.5]})
    lines = [record(number) for number in range(40)]
    told = look([*lines, units([400, 0, 200, 200, 20])], known)
    assert wrong(told) == [("fault", "dead_units", "second")]
    told = look([*lines, units([400, 0, 200, 20, 380])], known)
    assert wrong(told) == []
    assert "Other units changed as well" in of(told, "dead_units").text
    # A unit that dies adds zeros: where there are fewer, it is not the only one that changed.
    fewer = [record(number, second={"zero_fraction": 0.3}) for number in range(40)]
    told = look([*fewer, units([400, 0, 200, 200, 200])], known)
    assert wrong(told) == []
    alike = [record(0) | {"time": time(number)} for number in range(40)]
    told = look([*alike, units([400, 0, 200, 200, 200])], known)
    assert wrong(told) == [("warning", "constant", "first")]
    assert "All requests looked alike" in of(told, "dead_units").text


@pytest.mark.parametrize("strange", [0, 15, 16, 60])
def test_a_part_of_the_requests_that_is_unlike_the_others(look, monkeypatch, strange):
    found = [(SimpleNamespace(request_id=f"r{number}"), None) for number in range(strange)]
    monkeypatch.setattr("observe.unusual_rule.unusual", lambda *asked: found)
    lines = [record(number) for number in range(200)]
    told = look(lines, baseline())
    # Of 200 requests, 0.02 · 200 and 5 √4 + 2 more.
    assert wrong(told) == ([("warning", "unusual", None)] if strange > 16 else [])
    if strange > 16:
        assert told[0].text.startswith("60 of the latest 200 requests (30 %) are unlike")
        assert told[0].requests == ("r0", "r1", "r2")
    ill = [record(number, second=ZEROS) for number in range(200)]
    assert "unusual" not in {one.kind for one in look(ill, baseline())}


def test_units_that_never_fired_are_a_fault_where_the_others_always_fire(look):
    lines = [record(number) for number in range(40)]
    apart = [*lines, units([400, 0, 399, 400, 390, 400])]
    often = [*lines, units([400, 0, 39, 200, 390, 100])]
    most = [*lines, units([400, 0, 0, 0, 0, 100])]
    for known in (None, baseline({"second": [0.5, 0, 0, 0, 0, 0.5]})):
        told = look(most, known)
        assert wrong(told) == [("warning", "dead_units", "second")]
        assert "That is more than half of the layer" in told[0].text
        assert ("not at export either" in told[0].text) == (known is not None)
    told = look(apart)
    assert wrong(told) == [("warning", "dead_units", "second")]
    assert "1 of the 6 units of second never fired in 400 rows: 1." in told[0].text
    told = look(often)
    assert wrong(told) == []
    assert "Training leaves some behind" in of(told, "dead_units").text
    # Another model's units, by their number: they cannot be held against each other.
    assert wrong(look(often, baseline({"second": [1.0] * 7}))) == []
    assert "dead_units" not in {one.kind for one in look([*lines, units([0] * 6)])}


def test_what_follows_from_a_fault_is_a_note_that_says_so(look):
    fixed = layer(1.5)
    lines = [record(number, second=ZEROS, third=fixed) for number in range(40)]
    lines.append(units([400, 0, 0, 0], key="third"))
    told = look(lines, baseline({"third": [1.0, 1.0, 1.0, 1.0]}))
    assert wrong(told) == [("fault", "dead_layer", "second")]
    assert of(told, "dead_units").text.endswith("It may follow from the fault at second.")


def test_nan_in_few_requests_excuses_nothing(look):
    lines = [record(number, third=ZEROS) for number in range(40)]
    lines[0] = record(0, non_finite="first", first=LOST, second=LOST, third=LOST)
    assert wrong(look(lines)) == [
        ("fault", "non_finite", "first"),
        ("warning", "dead_layer", "third"),
    ]


def test_drift_is_told_by_where_it_begins(look, monkeypatch):
    def moved(*alarms):
        def found(index, window, baseline):
            return [
                LayerDrift(key, one := Distance("std", 0.5 if alarm else 0.1, 0.2, 40), (one,))
                for key, alarm in zip(HEALTHY, alarms, strict=True)
            ]

        monkeypatch.setattr("observe.findings.drift", found)

    lines = [record(number) for number in range(40)]
    moved(False, True, True)
    told = look(lines, baseline())
    assert wrong(told) == [("warning", "drift", "second")]
    assert "distance 0.5 in the latest 40 rows, alarm above 0.2), nor is one of" in told[0].text
    assert "Everything before it, up to first, is as at export" in told[0].text
    moved(True, False, False)
    told = look(lines, baseline())
    assert wrong(told) == [("warning", "drift", "first")]
    assert "The inputs changed, or what lies before" in told[0].text
    # A layer that is known to be wrong drifts, which is nothing new.
    moved(False, True, True)
    told = look([*lines, units([400, 0, 399, 400])], baseline({"second": [1.0] * 4}))
    assert wrong(told) == [("fault", "dead_units", "second")]
    assert of(told, "drift").text.endswith("It may follow from the fault at this layer.")
    moved(False, False, False)
    assert wrong(look(lines, baseline())) == []


def test_gradients_are_told_of_where_the_flow_first_breaks(look):
    lines = [
        gradients(number, vanishing=["first", "second"] if number < 10 else ["first"])
        for number in range(40)
    ]
    told = look(lines)
    assert wrong(told) == [("warning", "gradient_vanishing", "second")]
    assert "in 10 of 40 requests that were explained (25 %)" in told[0].text
    assert told[0].requests == ("r9", "r8", "r7")
    steps = [gradients(number, exploding=["third"], reason="training") for number in range(40)]
    told = look(steps)
    assert wrong(told) == [("warning", "gradient_exploding", "third")]
    assert "in all 40 steps of training" in told[0].text
    rare = [gradients(number, vanishing=["first"] if number == 3 else []) for number in range(40)]
    assert wrong(look(rare)) == []


def test_errors_are_told_by_code(look):
    lines = [record(number) for number in range(30)]
    lines += [record(number, error="wrong_shape") for number in range(30, 40)]
    lines += [record(number, error="internal") for number in range(40, 42)]
    told = look(lines)
    assert wrong(told) == [("warning", "errors", None)]
    assert "2 of 42 requests (5 %)" in told[0].text
    assert told[0].requests == ("r41", "r40")
    note = next(one for one in told if "wrong_shape" in one.text)
    assert (note.severity, note.requests) == ("note", ("r39", "r38", "r37"))


def test_the_worst_comes_first_then_what_comes_first_in_the_model(look):
    lines = [
        record(
            number,
            {"a": 1, "b": 1, "c": 1},
            b={"max": 2e38} if number == 3 else {},
            c=ZEROS if number % 2 else {},
            a={"zero_fraction": 0.995},
            error="internal" if number == 7 else None,
        )
        for number in range(40)
    ]
    told = look(lines)
    assert wrong(told) == [
        ("fault", "overflow", "b"),
        ("warning", "zeros", "a"),
        ("warning", "errors", None),
    ]
    assert [one.kind for one in told[3:]] == ["dead_layer", "no_baseline"]


def test_how_things_are_written():
    assert finding.share(3, 3) == "all 3 requests"
    assert finding.share(1, 1) == "the only request"
    assert finding.share(1, 3000) == "1 of 3,000 requests (0.03 %)"
    assert finding.listed(range(10), 3) == "0, 1, 2 and 7 more"
    assert finding.moment(0) == "1970-01-01 00:00:00 UTC"
    assert finding.number(1234567.0) == "1.23e+06"
