"""Gradient flow while the domain-adversarial network trains, with and without the reversal.

`Flow` observes one run, `write` compares two: a page with a table, and a figure beside it.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from training import observed

__all__ = ["Flow", "write"]

LAYERS: Final = ("type:Conv2d", "type:Linear", "reversal")
"""The layers of `models.dann.DANN` whose gradients are shown."""

_SMOOTHING: Final = 25
"""Steps in the running median of the figure."""


@dataclass
class Flow:
    """The gradients of one run, a number for each step.

    Attributes:
        norms: 2-norm of the gradient at each layer's output, by its name in forward order.
        cosines: cosine, -1 to 1, of the gradient that arrives at the features and the one that the
            domain head sends back, before the reversal.
        vanishing: layers that were flagged in some step.
        exploding: likewise.
    """

    norms: dict[str, list[float]] = field(default_factory=dict)
    cosines: list[float] = field(default_factory=list)
    vanishing: set[str] = field(default_factory=set)
    exploding: set[str] = field(default_factory=set)

    @contextmanager
    def observe(self, model: nn.Module) -> Iterator[Callable[[], None]]:
        """Observe a `models.dann.DANN`; yield what to call after each backward pass."""
        sent: list[Tensor] = []
        cosines: list[Tensor] = []

        def send(gradient: Tensor) -> None:
            sent.append(gradient.flatten())

        def arrive(gradient: Tensor) -> None:
            # Stays a tensor: to read it here would wait for the device in every step.
            cosines.append(cosine_similarity(gradient.flatten(), sent.pop(), dim=0))

        with observed(
            model, LAYERS, change={"reversal": send, "features": arrive}, name="dann"
        ) as training:

            def step() -> None:
                gradients = training.step().gradients
                assert gradients is not None
                for layer, record in gradients.layers.items():
                    norm = record.total.norm
                    self.norms.setdefault(layer, []).append(float("nan") if norm is None else norm)
                self.vanishing |= set(gradients.vanishing)
                self.exploding |= set(gradients.exploding)

            yield step
        self.cosines = torch.stack(cosines).tolist() if cosines else []


def write(folder: Path, without: Flow, adapted: Flow) -> Path:
    """Write `dann.training.md` and `dann.training.png`, and return the path of the page.

    Without matplotlib there is no figure, and the page says so.

    Args:
        folder: made if it is missing.
        without: the run without the reversal.
        adapted: the run with it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "dann.training.md"
    try:
        _draw(folder / "dann.training.png", without, adapted)
        figure = "![Gradient norms by layer, and the cosine over the steps](dann.training.png)"
    except ImportError:
        figure = "The figure needs matplotlib, which is not installed."
    page.write_text("\n".join([*_lines(without, adapted), "", figure, ""]), encoding="utf-8")
    return page


def _lines(without: Flow, adapted: Flow) -> list[str]:
    lines = [
        "# Gradient flow in the training of dann",
        "",
        f"Medians over {len(adapted.cosines)} steps of one seed, with the same first weights and "
        "batches. The norm is that of the gradient of the loss at the layer's output.",
        "",
        "| layer | norm without reversal | with |",
        "|---|---|---|",
    ]
    lines += [
        f"| `{layer}` | {statistics.median(without.norms[layer]):.4f} | "
        f"{statistics.median(norms):.4f} |"
        for layer, norms in adapted.norms.items()
    ]
    lines += [
        "",
        "Cosine of the gradient that arrives at the features and the one that the domain head "
        f"sends back: {statistics.median(without.cosines):+.2f} without, "
        f"{statistics.median(adapted.cosines):+.2f} with.",
        "",
    ]
    for name, flow in (("without", without), ("with", adapted)):
        lines.append(
            f"- {name} reversal: vanishing in some step: {_listed(flow.vanishing)}; "
            f"exploding: {_listed(flow.exploding)}"
        )
    return lines


def _listed(names: set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "none"


def _draw(path: Path, without: Flow, adapted: Flow) -> None:
    # Not pyplot: a figure by itself needs no display, and leaves nothing open.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for flow, label, color, aside in (
        (without, "without reversal", "tab:gray", -0.12),
        (adapted, "with reversal", "tab:red", 0.12),
    ):
        places = [place + aside for place in range(len(flow.norms))]
        low, median, high = zip(*(_quartiles(own) for own in flow.norms.values()), strict=True)
        left.plot(places, median, "o", color=color, label=label)
        left.vlines(places, low, high, color=color)
        right.plot(flow.cosines, color=color, alpha=0.15, linewidth=0.8)
        right.plot(_running_median(flow.cosines), color=color, label=label)
    left.set_yscale("log")
    left.set_title("How much gradient arrives at each layer", loc="left")
    left.set_ylabel("2-norm; median and quartiles over the steps")
    left.set_xticks(range(len(adapted.norms)), list(adapted.norms), rotation=35)
    right.axhline(0, color="black", linewidth=0.8)
    right.set_ylim(-1, 1)
    right.legend(loc="upper right")
    right.set_title("Do the features follow the domain head?", loc="left")
    right.set_xlabel("step")
    right.set_ylabel("cosine: −1 against it, 0 ignore it, +1 follow it")
    figure.savefig(path, dpi=110)


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    finite = torch.tensor(values, dtype=torch.float64)
    low, median, high = torch.nanquantile(finite, torch.tensor([0.25, 0.5, 0.75]).double()).tolist()
    return low, median, high


def _running_median(values: Sequence[float]) -> list[float]:
    half = _SMOOTHING // 2
    return [
        statistics.median(values[max(0, middle - half) : middle + half + 1])
        for middle in range(len(values))
    ]
