"""What the inputs of an export reach, and what happens where they do not."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from export.branches import BranchWatch, conditions, undecided
from export.definition import Definition, InputOptions, from_model_file
from export.errors import ExportError
from export.pipeline import export_model
from export.shrink import show, shrink


class Net(nn.Module):
    """Two layers, for others to choose among."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(5, 3)
        self.two = nn.Linear(5, 3)
        self.skip = False


class Rare(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.two(x) if x[0, 0] > 50 else self.one(x)


class Never(Net):
    def forward(self, x: Tensor) -> Tensor:
        if x[0, 0] == 0.12345:
            return self.two(x)
        return self.one(x)


class Decided(Net):
    def forward(self, x: Tensor) -> Tensor:
        if self.skip:
            return x
        if x.dim() == 1:
            x = x.unsqueeze(0)
        if x.shape[1] != 5:
            raise ValueError("five values")
        assert x.shape[1] == 5
        return self.one(x)


class Loop(Net):
    def forward(self, x: Tensor) -> Tensor:
        i = 0
        while bool(x.abs().max() > 1) and i < 3:
            x = x / 2
            i += 1
        return self.one(x)


ONES = torch.ones(1, 5)


def define(kind, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, example = kind().eval(), torch.randn(4, 5)
    return Definition(
        name=kind.__name__,
        version="1.0",
        description="",
        source=Path(__file__),
        module=module,
        examples=((example,),),
        inputs=(InputOptions("x"),),
        **options,
    )


def watched(module, *inputs):
    watch = BranchWatch()
    for x in inputs:
        with watch.one_input() as seen:
            module(x)
        watch.keep(seen)
    return watch


def counted(watch):
    """How many ways were taken, and how many there are."""
    ways = watch.branches()
    return sum(way.inputs > 0 for way in ways), len(ways)


def test_ways_are_counted_for_statements_expressions_and_loops():
    low, high = torch.zeros(1, 5), torch.full((1, 5), 100.0)
    assert counted(watched(Rare(), low)) == (1, 2)
    assert counted(watched(Rare(), low, high)) == (2, 2)
    assert counted(watched(Loop(), low)) == (1, 4)
    # Both ends of the loop: small at once, small after a while, and never small enough.
    assert counted(watched(Loop(), low, high, torch.full((1, 5), 2.0))) == (4, 4)


class Refusing(Net):
    def forward(self, x: Tensor) -> Tensor:
        if x[0, 0] > 50:
            return self.two(x[:, :4])
        return self.one(x)


def test_a_way_that_only_inputs_without_an_answer_took_is_not_verified(tmp_path):
    certificate = export_model(define(Refusing), tmp_path).certificate
    [note] = [note for note in certificate.notes if "no input took" in note]
    assert "(`if x[0, 0] > 50:`) when that is true" in note


def test_what_was_never_taken_is_named():
    [branch] = watched(Never(), torch.zeros(1, 5)).never()
    assert str(branch).startswith("test_branches.py:")
    assert str(branch).endswith("(`if x[0, 0] == 0.12345:`) when that is true")


def test_a_rare_branch_is_searched_for_and_found(tmp_path):
    certificate = export_model(define(Rare), tmp_path).certificate
    assert not [note for note in certificate.notes if "no input took" in note]
    assert not certificate.batching.independent
    assert "a row's answer changed" in certificate.batching.reason


def test_a_branch_that_nobody_took_is_neither_verified_nor_batched(tmp_path):
    certificate = export_model(define(Never), tmp_path).certificate
    [note] = [note for note in certificate.notes if "no input took" in note]
    assert "x[0, 0] == 0.12345" in note
    assert not certificate.batching.independent
    assert "whether rows influence each other there is not known" in certificate.batching.reason


def test_conditions_that_no_input_decides_are_no_branches_of_the_graph(tmp_path):
    definition = define(Decided)
    assert [str(way).partition("(")[2] for way in watched(definition.module, ONES).never()] == [
        "`if x.shape[1] != 5:`) when that is true"
    ]
    certificate = export_model(definition, tmp_path).certificate
    assert not [note for note in certificate.notes if "no input took" in note]
    assert certificate.batching.independent


class Two(Net):
    def forward(self, x: Tensor) -> Tensor:
        if x[0, 0] > 0 and x[0, 1] > 0:
            return self.two(x)
        if x[0, 2] > 1e6:
            raise ValueError("too large")
        return self.one(x)


def test_conditions_are_counted_by_input_each_by_itself():
    inputs = [torch.tensor([row]) for row in ([1.0, 1, 0, 0, 0], [1.0, -1, 0, 0, 0], [-1.0] * 5)]
    found = conditions(watched(Two(), *inputs).branches())
    assert [re.sub(r"^.*\(`|`\)$", "", one.place) for one in found] == [
        "x[0, 0] > 0",
        "x[0, 1] > 0",
        "if x[0, 2] > 1e6:",
    ]
    assert [(one.when_true, one.when_false) for one in found[:2]] == [(2, 1), (1, 1)]
    kept = conditions(branch for branch in watched(Two(), *inputs).branches() if not branch.raises)
    assert (kept[2].when_true, kept[2].when_false) == (None, 2)


def test_a_loop_counts_as_a_branch_once(tmp_path):
    certificate = export_model(define(Loop), tmp_path).certificate
    assert not [note for note in certificate.notes if "no input took" in note]


def test_a_graph_without_the_branch_has_nothing_undecided():
    never = watched(Never(), torch.zeros(1, 5)).never()
    plain = torch.jit.freeze(torch.jit.script(nn.Linear(5, 3).eval()))
    assert undecided(never, plain.graph) == []


MODEL_FILE = """
import torch
from torch import nn

BATCHING = {batching}


class Net(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean()


def build():
    return Net()


def examples():
    return [torch.arange(12.0).reshape(4, 3)]
"""


def test_a_model_file_may_decide_and_the_certificate_says_so(tmp_path):
    file = tmp_path / "centred.py"
    file.write_text(
        MODEL_FILE.format(batching={"independent": True, "reason": "rows are always centred"})
    )
    batching = export_model(from_model_file(file), tmp_path).certificate.batching
    assert batching.independent
    assert batching.max_rows == 64
    assert "the model file decides so (rows are always centred)" in batching.reason
    assert "a row's answer changed" in batching.reason


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (True, "BATCHING is True"),
        ({"independent": True}, "BATCHING is"),
        ({"independent": 1, "reason": "x"}, "BATCHING is"),
        ({"independent": True, "reason": " "}, "no reason"),
        ({"independent": True, "reason": "x", "size": 3}, "BATCHING is"),
    ],
)
def test_a_wrong_decision_is_refused(tmp_path, value, words):
    file = tmp_path / "centred.py"
    file.write_text(MODEL_FILE.format(batching=value))
    with pytest.raises(ExportError, match=words):
        from_model_file(file)


class Floor(Net):
    """Answers otherwise when scripted."""

    def forward(self, x: Tensor) -> Tensor:
        count = 0
        if not torch.jit.is_scripting() and bool((x[:, 2] > 0.5).any()):
            count = 1
        return self.one(x) + count


def test_a_difference_is_shown_with_a_small_input(tmp_path):
    with pytest.raises(ExportError) as caught:
        export_model(define(Floor), tmp_path)
    message = str(caught.value)
    assert "the smallest such input found is x float32[1, 5] = [[0, 0, 1, 0, 0]]" in message


def test_shrinking_keeps_what_fails():
    case = (torch.arange(40.0).reshape(8, 5), torch.ones(8, 2, dtype=torch.int64))
    small = shrink(case, lambda c: bool((c[0] == 13).any()) and bool(c[1].any()))
    assert [tuple(part.shape) for part in small] == [(1, 5), (1, 2)]
    assert small[0].tolist() == [[0, 0, 0, 13, 0]]
    assert int(small[1].count_nonzero()) == 1
    same = (torch.ones(3),)
    assert torch.equal(shrink(same, lambda c: torch.equal(c[0], same[0]))[0], same[0])


def test_a_large_input_is_shown_by_what_is_not_zero():
    x = torch.zeros(10, 10)
    x[3, 4] = 2.5
    assert show((x,), ("x",)) == (
        "x float32[10, 10] of zeros but for [34] 2.5 (positions row by row)"
    )
    assert show((torch.ones(10, 10),), ("x",)) == "x float32[10, 10] with mean 1"
