"""The rule on drift: the first layer that is no longer distributed as on the calibration inputs."""

from collections.abc import Iterator, Sequence

from observe.drift import LayerDrift
from observe.finding import Finding, number

__all__ = ["rules"]


def rules(layers: Sequence[LayerDrift]) -> Iterator[Finding]:
    """Say where drift begins: at the inputs, or in the model.

    Args:
        layers: in execution order, whether they have drifted or not.
    """
    drifted = [layer for layer in layers if layer.alarm]
    if not drifted:
        return
    first = drifted[0]
    worst = first.worst
    measure = (
        f"{first.key} is no longer distributed as at export ({worst.statistic}: Kolmogorov-Smirnov "
        f"distance {number(worst.distance)} in the latest {worst.rows:,} rows, alarm above "
        f"{number(worst.threshold)})"
    )
    after = len(drifted) - 1
    besides = f", nor {_are(after)} of the layers after it" if after else ""
    if first is layers[0]:
        text = (
            f"Already the first observed layer differs: {measure}{besides}. The inputs changed, "
            "or what lies before this layer."
        )
    else:
        before = layers[layers.index(first) - 1].key
        text = (
            f"{measure}{besides}. Everything before it, up to {before}, is as at export, so look "
            "at this layer, and at what lies between the two."
        )
    yield Finding("drift", "warning", first.key, text)


def _are(many: int) -> str:
    return "is one" if many == 1 else f"are {many}"
