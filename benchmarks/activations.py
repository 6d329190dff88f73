"""What looking inside costs: `scripts/benchmark activations`.

Times one network as a compiled graph without hooks, with hooks that are off, with hooks that are
asked, and as Python runs it with forward hooks. Each round times every variant once, in an order
of its own, so that what else the machine does meets all of them; figures are medians over rounds,
and ratios and differences are taken within a round. Before anything is timed, the answers of all
variants and the statistics of the compiled and the eager hooks are compared.

What is timed of an asked request is the graph and the transfer of its vectors to the host. Their
merging into an activation record and its JSON are the handler's, and not part of this.
"""

import argparse
import copy
import gc
import io
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from engine import Engine, make, observed_graph, plain_graph
from engine.statistics import summarise_rows
from export.aot import compile_graphs
from export.definition import Definition, InputOptions
from export.eager import reference
from export.layers import watch
from export.observed import compile_hooks
from export.signature import infer
from export.timing import threads_of
from formats import engines
from formats.layers import Layer
from formats.observation import STATISTICS, cut, read
from formats.signature import Signature
from handlers.observe import to_lists
from models import activation_mlp, digits

__all__ = [
    "COMPILED_VARIANTS",
    "NETWORKS",
    "VARIANTS",
    "Agreement",
    "BlockMLP",
    "Network",
    "Prepared",
    "ResNet18",
    "Result",
    "Settings",
    "agreement",
    "build",
    "derived",
    "main",
    "measure",
    "prepare",
    "render",
    "run",
]

PLAIN, NOT_ASKED, ASKED = "plain", "not asked", "asked"
EAGER, EAGER_TUTORIAL, EAGER_SAME = "eager", "eager, tutorial hooks", "eager, same statistics"
FLOOR = "floor"
ONEDNN, ONEDNN_ASKED, AOT, AOT_ASKED = "onednn", "onednn, asked", "aot", "aot, asked"
VARIANTS: Final = {
    PLAIN: "frozen graph, compiled without hooks",
    NOT_ASKED: "frozen graph, hooks compiled in, all off",
    ASKED: "frozen observed graph, and its vectors as lists",
    EAGER: "Python, no hooks",
    EAGER_TUTORIAL: "Python, forward hooks: mean, std, zero fraction, each with item()",
    EAGER_SAME: "Python, forward hooks: the statistics of `asked`, and as lists",
    FLOOR: "one `sum` over each observed activation, nothing else",
    ONEDNN: "engine onednn",
    ONEDNN_ASKED: "engine onednn, observed graph, and its vectors as lists",
}
"""What is timed, in the order of the table."""

COMPILED_VARIANTS: Final = {
    AOT: "engine aot",
    AOT_ASKED: "engine aot, observed graph, and its vectors as lists",
}
"""What `--aot` times as well."""

ANSWER_TOLERANCE: Final = 1e-5
# One pass over many values leaves rounding of its own, and two graphs round differently.
STATISTICS_TOLERANCE: Final = 1e-4
_WARM_UP_CALLS: Final = 6
_SEED: Final = 0


class BlockMLP(nn.Module):
    """Map features, float32 [rows, 16], through blocks of Linear, ReLU, Linear to [rows, 16]."""

    def __init__(self, blocks: int = 8, width: int = 32) -> None:
        """Draw the weights from torch's global generator."""
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 16))
            for _ in range(blocks)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return features, float32 [rows, 16], unbounded."""
        for block in self.blocks:
            features = block(features)
        return features


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut, as in He et al., arXiv 1512.03385."""

    def __init__(self, channels: int, wider: int, stride: int) -> None:
        """Draw the weights from torch's global generator."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels, wider, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(wider)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(wider, wider, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(wider)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != wider:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, wider, 1, stride, bias=False), nn.BatchNorm2d(wider)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 [rows, wider, height / stride, width / stride]."""
        inner = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        output: Tensor = self.relu2(inner + self.shortcut(x))
        return output


class ResNet18(nn.Module):
    """A network of ResNet-18's shape: 17 ReLUs, each a module of its own; random weights."""

    def __init__(self) -> None:
        """Draw the weights from torch's global generator."""
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )
        blocks: list[nn.Module] = []
        channels = 64
        for wider, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [BasicBlock(channels, wider, stride), BasicBlock(wider, wider, 1)]
            channels = wider
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(512, 1000)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """Map image, float32 [rows, 3, height, width], to scores, float32 [rows, 1000]."""
        scores: Tensor = self.head(self.pool(self.blocks(self.stem(image))).flatten(1))
        return scores


@dataclass(frozen=True)
class Network:
    """A network and what to run it on.

    Attributes:
        name: as on the command line.
        title: as in the table.
        module: in evaluation mode.
        input: one batch; axis 0 counts rows.
        patterns: the layers to observe, as for `export.layers.choose`; empty for its default.
    """

    name: str
    title: str
    module: nn.Module
    input: Tensor
    patterns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        rounds: how often every variant is timed.
        least_ms: a timing repeats the call until it takes this long.
        threads: intra-op threads of torch.
        pixels: height and width of the ResNet's images.
        aot: compile the networks ahead of time, too: one or two minutes each.
    """

    rounds: int = 30
    least_ms: float = 20.0
    threads: int = 1
    pixels: int = 224
    aot: bool = False


@dataclass(frozen=True)
class Prepared:
    """A network, compiled and with hooks.

    Attributes:
        observed: the layers that statistics are taken of.
        hooked: how many layers have a hook compiled in.
        answers: the calls whose answers must agree; each returns the network's output.
        statistics: the two calls that make the same statistics; each returns the vectors.
        timed: what is timed, by variant.
    """

    observed: tuple[Layer, ...]
    hooked: int
    answers: dict[str, Callable[[], Tensor]]
    statistics: dict[str, Callable[[], Sequence[Sequence[float]]]]
    timed: dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Agreement:
    """The largest difference from `plain`, relative where the numbers are above 1.

    Attributes:
        answers: by variant.
        statistics: of `asked` from those of eager hooks.
    """

    answers: dict[str, float]
    statistics: float

    @property
    def holds(self) -> bool:
        """Whether all differences are within the tolerances."""
        # Written so that a NaN fails.
        return (
            all(apart <= ANSWER_TOLERANCE for apart in self.answers.values())
            and self.statistics <= STATISTICS_TOLERANCE
        )


@dataclass(frozen=True)
class Spread:
    """A median over rounds with its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarise the values of all rounds."""
        low, median, high = np.percentile(np.asarray(values), [25, 50, 75]).tolist()
        return cls(median, low, high)


@dataclass(frozen=True)
class Result:
    """What was measured of one network.

    Attributes:
        name: of the network.
        title: of the network.
        observed: how many layers statistics are taken of.
        hooked: how many layers have a hook compiled in.
        agreement: what was compared before timing.
        milliseconds: by variant, one number per round.
    """

    name: str
    title: str
    observed: int
    hooked: int
    agreement: Agreement
    milliseconds: dict[str, list[float]]


def build(name: str, settings: Settings) -> Network:
    """Make a network of `NETWORKS`, with seeded weights and input."""
    return NETWORKS[name](settings)


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_SEED)
        return make().eval()


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(_SEED))


def _tutorial(settings: Settings) -> Network:
    return Network("mlp", "tutorial MLP, batch 4", activation_mlp.build(), _noise(4, 16))


def _blocks(settings: Settings) -> Network:
    return Network("mlp8", "8-block MLP, batch 4", _seeded(BlockMLP), _noise(4, 16))


def _blocks_all(settings: Settings) -> Network:
    return Network(
        "mlp8-all",
        "8-block MLP, batch 4, every Linear and ReLU",
        _seeded(BlockMLP),
        _noise(4, 16),
        ("type:Linear", "type:ReLU"),
    )


def _digits(settings: Settings) -> Network:
    images = digits.examples()[-1][0][:8]
    return Network("digits", "digits CNN, batch 8", digits.build(), images)


def _resnet(settings: Settings) -> Network:
    side = settings.pixels
    title = f"ResNet-18 shape, batch 8, 3×{side}×{side}"
    return Network("resnet18", title, _seeded(ResNet18), _noise(8, 3, side, side))


NETWORKS: Final[Mapping[str, Callable[[Settings], Network]]] = {
    "mlp": _tutorial,
    "mlp8": _blocks,
    "mlp8-all": _blocks_all,
    "digits": _digits,
    "resnet18": _resnet,
}


def prepare(network: Network, aot: bool = False) -> Prepared:
    """Compile a network as an export does, load it as a worker does, and hook it in Python.

    Raises:
        ValueError: it is to be compiled ahead of time, and cannot be.
    """
    module, batch = network.module, network.input
    example = (batch[:2].clone(),)
    definition = Definition(
        name=network.name,
        version="1.0",
        description="",
        source=Path(__file__),
        module=module,
        examples=(example,),
        inputs=(InputOptions("x"),),
    )
    signature = infer(definition, reference(definition, [example]))
    scripted = torch.jit.script(module)
    observable = compile_hooks(
        definition, scripted, signature, [example], patterns=network.patterns, independent=True
    )
    chosen = tuple(layer for layer in observable.layers.hooked if layer.chosen)

    plain = torch.jit.freeze(_reloaded(scripted))
    whole = _reloaded(observable.module)
    off = plain_graph(whole)
    observed = observed_graph(whole, chosen)

    tutorial = copy.deepcopy(module)
    _hook(tutorial, chosen, lambda layer: _tutorial_hook)
    same = copy.deepcopy(module)
    found: list[Tensor] = []
    _hook(same, chosen, lambda layer: _same_hook(layer, found))

    with torch.inference_mode(), watch(module, [layer.name for layer in chosen]) as calls:
        module(batch)
    activations = [part for call in calls for _, part in call.parts if part is not None]

    def looking(summary: Any) -> Callable[[], tuple[Any, list[Sequence[float]]]]:
        def call() -> tuple[Any, list[Sequence[float]]]:
            answer, codes, joined = summary(batch)
            records = read(observable.layers.hooked, codes, STATISTICS)
            return answer, cut(joined.tolist(), records, STATISTICS)

        return call

    asked = looking(observed.summary)
    onednn = make(engines.ONEDNN, whole, chosen)
    compiled: dict[str, Callable[[], Any]] = {}
    if aot:
        made = _ahead(definition, signature, observable.layers.hooked)
        compiled = {AOT: partial(made.plain, batch), AOT_ASKED: looking(made.summary)}

    def eager_same() -> list[list[float]]:
        found.clear()
        same(batch)
        return to_lists([found])

    return Prepared(
        observed=chosen,
        hooked=len(observable.layers.hooked),
        answers={
            PLAIN: lambda: plain(batch),
            NOT_ASKED: lambda: off(batch),
            ASKED: lambda: asked()[0],
            EAGER: lambda: module(batch),
            ONEDNN: lambda: onednn.plain(batch),
            **({AOT: lambda: compiled[AOT]()[""]} if aot else {}),
        },
        statistics={ASKED: lambda: asked()[1], EAGER_SAME: eager_same},
        timed={
            PLAIN: lambda: plain(batch),
            NOT_ASKED: lambda: off(batch),
            ASKED: asked,
            EAGER: lambda: module(batch),
            EAGER_TUTORIAL: lambda: tutorial(batch),
            EAGER_SAME: eager_same,
            FLOOR: lambda: [activation.flatten(1).sum(1) for activation in activations],
            ONEDNN: lambda: onednn.plain(batch),
            ONEDNN_ASKED: looking(onednn.summary),
            **compiled,
        },
    )


def _ahead(definition: Definition, signature: Signature, layers: Sequence[Layer]) -> Engine:
    # Gone at the end of the process: what is loaded from the folder no longer needs it.
    with tempfile.TemporaryDirectory(prefix="vitrine-") as name:
        folder = Path(name)
        for refused in compile_graphs(definition, signature, [""], layers, folder):
            raise ValueError(f"{definition.name}: {refused.detail}")
        return make(engines.AOT, None, layers, folder)


def _reloaded(module: torch.jit.ScriptModule) -> Any:
    stored = io.BytesIO()
    torch.jit.save(module, stored)
    stored.seek(0)
    return torch.jit.load(stored).eval()


def _hook(
    module: nn.Module, layers: Sequence[Layer], hook_for: Callable[[Layer], Callable[..., None]]
) -> None:
    parts = dict(module.named_modules())
    for layer in layers:
        parts[layer.name].register_forward_hook(hook_for(layer))


def _tutorial_hook(layer: nn.Module, inputs: Any, output: Tensor) -> None:
    output.mean().item()
    output.std().item()
    (output == 0).float().mean().item()


def _same_hook(layer: Layer, found: list[Tensor]) -> Callable[..., None]:
    axis = layer.axes[0]

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        summarise_rows(output, axis, found, [])

    return hook


def agreement(prepared: Prepared) -> Agreement:
    """Compare what the variants answer, once each has run often enough to be compiled."""
    answers = {}
    with torch.inference_mode():
        wanted = prepared.answers[PLAIN]().double().numpy()
        for name, call in prepared.answers.items():
            for _ in range(_WARM_UP_CALLS):
                got = call()
            answers[name] = _apart(got.double().numpy(), wanted)
        ours, theirs = (call() for call in prepared.statistics.values())
    if [len(vector) for vector in ours] != [len(vector) for vector in theirs]:
        return Agreement(answers, float("inf"))
    apart = [_apart(np.array(a), np.array(b)) for a, b in zip(ours, theirs, strict=True)]
    return Agreement(answers, float(np.max(apart)))


def _apart(got: "np.ndarray[Any, Any]", wanted: "np.ndarray[Any, Any]") -> float:
    if got.shape != wanted.shape:
        return float("inf")
    return float(np.abs(got - wanted).max() / max(1.0, float(np.abs(wanted).max())))


def measure(
    calls: Mapping[str, Callable[[], Any]],
    settings: Settings,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, list[float]]:
    """Time calls in turn, round by round.

    Args:
        calls: by name.
        settings: how many rounds, and how long one timing takes at least.
        progress: called with the number of rounds done.

    Returns:
        Milliseconds per call by name, one number per round.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode(), _without_gc():
        repeats = {name: _repeats(call, settings.least_ms) for name, call in calls.items()}
        names = list(calls)
        shuffle = random.Random(_SEED).shuffle  # noqa: S311 (an order, not a secret)
        for number in range(settings.rounds):
            # In a new order each round, so that none always follows the same neighbour, or itself.
            shuffle(names)
            for name in names:
                times[name].append(_time(calls[name], repeats[name]) / repeats[name])
            progress(number + 1)
    return times


def _repeats(call: Callable[[], Any], least_ms: float) -> int:
    """Warm a call up, and return how many of it take `least_ms`."""
    one = min(_time(call, 1) for _ in range(_WARM_UP_CALLS))
    return max(1, int(np.ceil(least_ms / one)))


def _time(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(repeats):
        call()
    return (time.perf_counter_ns() - start) / 1e6


@contextmanager
def _without_gc() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def derived(result: Result) -> dict[str, Spread]:
    """Return the figures made from the times, each taken within a round.

    They are: `asked` and `not asked` over `plain`, less 1, in %; the time that `asked` adds to
    `plain` over the time that the same statistics add to `eager`; `floor` in % of `plain`.
    """
    ms = {name: np.array(times) for name, times in result.milliseconds.items()}
    added = ms[ASKED] - ms[PLAIN]
    added_eager = ms[EAGER_SAME] - ms[EAGER]
    figures = {
        "asked_over_plain_percent": (ms[ASKED] / ms[PLAIN] - 1) * 100,
        "not_asked_over_plain_percent": (ms[NOT_ASKED] / ms[PLAIN] - 1) * 100,
        "added_ms": added,
        "added_eager_ms": added_eager,
        "floor_percent_of_plain": ms[FLOOR] / ms[PLAIN] * 100,
    }
    spreads = {name: Spread.of(values.tolist()) for name, values in figures.items()}
    # A difference of a noisy round can be about 0, and a quotient with it anything: of medians.
    of_medians = spreads["added_ms"].median / (spreads["added_eager_ms"].median or float("nan"))
    spreads["added_over_added_eager"] = Spread(of_medians, of_medians, of_medians)
    return spreads


def run(
    names: Sequence[str], settings: Settings, progress: Callable[[str], None] = lambda line: None
) -> list[Result]:
    """Prepare, compare and time networks.

    Args:
        names: of `NETWORKS`.
        settings: how to measure.
        progress: called with a line that says what is being done.

    Raises:
        ValueError: answers or statistics do not agree; nothing of that network is timed.
    """
    results = []
    with threads_of(settings.threads):
        for name in names:
            progress(f"{name}: compiling")
            network = build(name, settings)
            prepared = prepare(network, settings.aot)
            progress(f"{name}: comparing answers")
            compared = agreement(prepared)
            if not compared.holds:
                raise ValueError(f"{name}: answers do not agree: {compared}")
            rounds = partial(_report_round, progress, name, settings.rounds)
            milliseconds = measure(prepared.timed, settings, rounds)
            results.append(
                Result(
                    name,
                    network.title,
                    len(prepared.observed),
                    prepared.hooked,
                    compared,
                    milliseconds,
                )
            )
    return results


def _report_round(progress: Callable[[str], None], name: str, rounds: int, done: int) -> None:
    progress(f"{name}: round {done}/{rounds}")


def _machine() -> dict[str, Any]:
    return {
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def render(results: Sequence[Result], settings: Settings, machine: Mapping[str, Any]) -> str:
    """Return the measurements as two Markdown tables."""
    lines = [
        f"{machine['machine']}, {machine['cores']} cores, load {machine['load_average']} at the "
        f"start; torch {machine['torch']}, {settings.threads} thread(s); {settings.rounds} rounds, "
        f"medians [quartiles]; ratios are taken within a round.",
        "",
        "| network | variant | ms | over plain |",
        "|---|---|---|---|",
    ]
    for result in results:
        plain = np.array(result.milliseconds[PLAIN])
        for name in result.milliseconds:
            times = result.milliseconds[name]
            ratios = (np.array(times) / plain).tolist()
            lines.append(
                f"| {result.title} | {name} | {_shown(Spread.of(times), 3)} "
                f"| {_shown(Spread.of(ratios), 3)} |"
            )
    lines += [
        "",
        "| network | layers observed / hooked | not asked − plain, % | asked − plain, % "
        "| asked adds, ms | same in eager adds, ms | quotient | floor, % of plain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        figures = derived(result)
        lines.append(
            f"| {result.title} | {result.observed} / {result.hooked} "
            f"| {_shown(figures['not_asked_over_plain_percent'], 1)} "
            f"| {_shown(figures['asked_over_plain_percent'], 1)} "
            f"| {_shown(figures['added_ms'], 3)} "
            f"| {_shown(figures['added_eager_ms'], 3)} "
            f"| {figures['added_over_added_eager'].median:.2f} "
            f"| {_shown(figures['floor_percent_of_plain'], 1)} |"
        )
    known = VARIANTS | (COMPILED_VARIANTS if settings.aot else {})
    lines += ["", *(f"- **{name}**: {what}" for name, what in known.items()), ""]
    for result in results:
        answers = max(result.agreement.answers.values())
        lines.append(
            f"{result.title}: the answers of {', '.join(result.agreement.answers)} agree within "
            f"{answers:.1e} (allowed {ANSWER_TOLERANCE:.0e}); the statistics of asked and of eager "
            f"hooks within {result.agreement.statistics:.1e} (allowed {STATISTICS_TOLERANCE:.0e})."
        )
    return "\n".join(lines)


def _shown(spread: Spread, digits_shown: int) -> str:
    middle, low, high = (
        f"{value:.{digits_shown}f}" for value in (spread.median, spread.low, spread.high)
    )
    return f"{middle} [{low}, {high}]"


def _document(
    results: Sequence[Result], settings: Settings, machine: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "machine": dict(machine),
        "settings": asdict(settings),
        "networks": [
            {
                **asdict(result),
                "medians_ms": {
                    name: asdict(Spread.of(times)) for name, times in result.milliseconds.items()
                },
                "derived": {name: asdict(spread) for name, spread in derived(result).items()},
            }
            for result in results
        ],
    }


def _progress(line: str) -> None:
    """Show a line on stderr: kept up to date on a terminal, else one at each tenth round."""
    if sys.stderr.isatty():
        print(f"\r{line}\033[K", end="", file=sys.stderr, flush=True)
    elif ": round " not in line or line.partition("/")[0].endswith("0"):
        print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or 1 when answers do not agree.
    """
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark activations",
        description="Measure what statistics of activations cost.",
    )
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=list(NETWORKS),
        default=list(NETWORKS),
        metavar="NAME",
        help=f"only these of {', '.join(NETWORKS)}",
    )
    parser.add_argument("--rounds", type=int, default=Settings.rounds, help="default: 30")
    parser.add_argument("--threads", type=int, default=Settings.threads, help="default: 1")
    parser.add_argument(
        "--least-ms", type=float, default=Settings.least_ms, help="per timing (default: 20)"
    )
    parser.add_argument("--aot", action="store_true", help="compile ahead of time as well")
    parser.add_argument("--quick", action="store_true", help="64×64 images for the ResNet")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to this file")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.threads < 1 or options.least_ms < 0:
        parser.error("--rounds and --threads must be at least 1, --least-ms at least 0")
    settings = Settings(
        options.rounds,
        options.least_ms,
        options.threads,
        64 if options.quick else 224,
        options.aot,
    )
    machine = _machine()
    try:
        results = run(options.networks, settings, _progress)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        if sys.stderr.isatty():
            print(file=sys.stderr)
    print(render(results, settings, machine))
    if options.json is not None:
        text = json.dumps(_document(results, settings, machine), indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
