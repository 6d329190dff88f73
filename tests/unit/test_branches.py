"""What the inputs of an export reach, and what happens where they do not."""

import re
import sys
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
        if x[0, 0].sin() == 0.12345:
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
    assert str(branch).endswith("(`if x[0, 0].sin() == 0.12345:`) when that is true")


def test_a_rare_branch_is_searched_for_and_found(tmp_path):
    certificate = export_model(define(Rare), tmp_path).certificate
    assert not [note for note in certificate.notes if "no input took" in note]
    assert not certificate.batching.independent
    assert "a row's answer changed" in certificate.batching.reason


class Sentinel(Net):
    """Branches that only a number in the code, or a size near one, leads to."""

    def forward(self, x: Tensor) -> Tensor:
        if bool((x == -999.0).any()):
            return self.two(x)
        if x.size(0) > 37 and bool(x[0, 0] == 0.5):
            return self.two(x) + 1
        return self.one(x)


def test_numbers_in_the_code_are_tried_as_values_and_as_sizes(tmp_path):
    certificate = export_model(define(Sentinel), tmp_path).certificate
    assert certificate.conditions[0].when_true > 0
    assert certificate.conditions[1].when_true > 0


def test_a_branch_that_nobody_took_is_neither_verified_nor_batched(tmp_path):
    certificate = export_model(define(Never), tmp_path).certificate
    [note] = [note for note in certificate.notes if "no input took" in note]
    assert "x[0, 0].sin() == 0.12345" in note
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


def shift(x: Tensor) -> Tensor:
    if bool((x.sin() == 0.777).any()):
        x = x + 1
    return x


class Helper(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.one(shift(x))


class Both(Net):
    def forward(self, x: Tensor) -> Tensor:
        if bool(x[0, 0] > 0) and bool(x[0, 1].sin() == 0.12345):
            return self.two(x)
        return self.one(x)


class While(Net):
    def forward(self, x: Tensor) -> Tensor:
        while bool((x.sin() == 0.12345).any()):
            x = x - x.mean(0)
        return self.one(x)


class Rounds(Net):
    def forward(self, x: Tensor) -> Tensor:
        n = int((x.sin() == 0.12345).sum())
        for _ in range(n):
            x = x - x.mean(0)
        return self.one(x)


class Comprehension(Net):
    def forward(self, x: Tensor) -> Tensor:
        rows = [float(v) for v in x[:, 0]]
        factors = [2.0 if v == 0.12345 else 1.0 for v in rows]
        return self.one(x) * max(factors)


class Kept(Net):
    def forward(self, x: Tensor) -> Tensor:
        kept = x[x[:, 0] > 0.12345]
        total = torch.zeros(3)
        for i in range(kept.size(0)):
            total = total + self.one(kept[i])
        return self.two(x) + total


class Chain(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.two(x) if -9 < float(x[0, 0]) < -8.999 else self.one(x)


class Bounded(Net):
    def forward(self, x: Tensor) -> Tensor:
        x, n = x.clamp(-9, 9), 0
        while bool(x.abs().max() > 1) and n < 1000:
            x = x / 2
            n += 1
        return self.one(x)


class NotIn(Net):
    def forward(self, x: Tensor) -> Tensor:
        if not int(x[0, 0] * 0) in [0]:  # noqa: E713
            return self.two(x)
        return self.one(x)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Helper, "(`if bool((x.sin() == 0.777).any()):`) when that is true"),
        (Both, "(`bool(x[0, 1].sin() == 0.12345)`) when that is true"),
        (While, "(`while bool((x.sin() == 0.12345).any()):`) when that is true"),
        (Rounds, "(`for _ in range(n):` has a round) when that is true"),
        (Comprehension, "(`v == 0.12345`) when that is true"),
        (Chain, "(`float(x[0, 0]) < -8.999`) when that is true"),
        (Bounded, "(`n < 1000`) when that is false"),
    ],
)
def test_every_form_of_a_condition_is_watched(tmp_path, kind, words):
    certificate = export_model(define(kind), tmp_path).certificate
    [note] = [note for note in certificate.notes if "no input took" in note]
    assert words in note
    assert note.count("when that is") == 1
    assert not certificate.batching.independent


def never(module, *inputs):
    """What no input took, each as in a note, without its place."""
    return [re.sub(r"^.*?\(", "(", str(way)) for way in watched(module, *inputs).never()]


def test_not_in_is_the_right_way_round():
    assert never(NotIn(), ONES) == ["(`if not int(x[0, 0] * 0) in [0]:`) when that is true"]


def kept(module, *inputs):
    """What the scripted graph decides of what no input took."""
    graph = torch.jit.freeze(torch.jit.script(module.eval())).graph
    return [way for way in undecided(watched(module, *inputs).branches(), graph) if not way.inputs]


def test_a_loop_over_as_many_as_the_values_say_is_a_branch():
    [way] = kept(Kept(), ONES)
    assert not way.when
    assert kept(Kept(), ONES, -ONES) == []


class Ordinary(Net):
    def __init__(self) -> None:
        super().__init__()
        self.token: Tensor | None = None
        self.layers = nn.ModuleList([self.one, self.two])

    def forward(
        self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0, causal: bool = False
    ) -> Tensor:
        if mask is not None:
            x = x * mask
        if causal or mask is not None:
            x = x + 1
        if self.token is not None and bool(x.sum() > -1e30):
            x = x + self.token
        rows = [float(v) for v in x[:, 0]]
        for row in rows:
            x = x + row
        for layer in self.layers:
            x = x + layer(x).sum() * 0
        if x.ndim - 1 == 2 or len(x.shape) > 2:
            x = x[0]
        with torch.no_grad():
            return self.one(x) * scale


class Parts(Net):
    def forward(self, x: Tensor) -> Tensor:
        parts: list[Tensor] = []
        if not self.skip:
            parts.append(x)
        if len(parts) > 0:
            x = torch.cat(parts)
        kept: list[Tensor] = []
        if bool(x[0, 0].sin() == 0.12345):
            kept.append(x)
        if len(kept) > 0:
            x = torch.cat(kept)
        return self.one(x)


def test_the_length_of_a_list_is_a_branch_where_an_input_decides_it():
    assert [way.source.text for way in kept(Parts(), ONES)] == [
        "if bool(x[0, 0].sin() == 0.12345):",
        "if len(kept) > 0:",
    ]


def test_what_attributes_types_defaults_and_sizes_decide_is_no_branch():
    assert kept(Ordinary(), ONES) == []
    assert undecided(watched(Ordinary(), ONES).branches(), None) == []


class ByNone(Net):
    def forward(self, x: Tensor) -> Tensor:
        best: Tensor | None = None
        if bool(x[0, 0].sin() == 0.12345):
            best = x
        if best is not None:
            x = x + best
        return self.one(x)


def test_none_that_an_input_decides_is_a_branch_the_right_way_round():
    first, second = kept(ByNone(), ONES)
    assert str(second).endswith("(`if best is not None:`) when that is true")
    assert first.when


def test_an_untaken_way_is_no_part_of_a_trace(tmp_path):
    class Equal(Net):
        def forward(self, x: Tensor) -> Tensor:
            if torch.equal(x[0], x[-1] * 1.0 + 0.25):
                return self.two(x)
            return self.one(x)

    certificate = export_model(define(Equal), tmp_path, "trace").certificate
    [note] = [note for note in certificate.notes if "no input took" in note]
    assert "when that is true" in note


def test_copies_of_a_condition_are_one_and_long_jumps_are_seen():
    lines = "".join(f"        x = x + {n}.5\n" for n in range(400))
    text = f"def f(x):\n    if x > 0:\n{lines}    while x < 0 and x != -3:\n        x = x + 1\n"
    values: dict = {}
    exec(text, values)
    ways = watched(values["f"], 1, -2, -3.5, -5).branches()
    # Without a source the two tests of `while` are known by where they are.
    assert [way.inputs for way in ways] == [3, 1, 3, 3, 1, 3]
    assert str(ways[0]) == "<string>:2 (`the condition in column 8`) when that is false"


def test_only_what_may_be_compiled_is_watched():
    def run(x):
        re.sub(r"a|b", lambda found: "c", "abc")
        return nn.functional.dropout(x, 0.5, training=False)

    files = {way.source.file for way in watched(run, ONES).branches()}
    assert files <= {__file__}
    assert sys.gettrace() is None or "coverage" in sys.modules


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
