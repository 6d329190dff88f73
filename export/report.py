"""The export report: signature and certificate as people read them."""

from collections.abc import Iterator

from export.timing import Choice, gain
from formats.certificate import Certificate, Condition, Precision
from formats.engines import TORCHSCRIPT
from formats.layers import Layers
from formats.signature import Signature, TensorSpec

__all__ = ["render"]


def render(
    signature: Signature,
    certificate: Certificate,
    layers: Layers | None = None,
    choice: Choice | None = None,
) -> str:
    """Return the report as Markdown; `choice` is known right after an export only."""
    lines = [f"# {signature.model} {signature.model_version}", ""]
    if signature.description:
        lines += [signature.description, ""]
    lines += ["## Signature", ""]
    lines += [f"- input `{spec.name}`: {_described(spec)}" for spec in signature.inputs]
    lines += [f"- output `{spec.name}`: {_described(spec)}" for spec in signature.outputs]
    axis = "counts rows; leave it out to send one" if signature.row_axis else "does not count rows"
    lines += [f"- axis 0 {axis}", "", "## Verified", ""]
    for check in certificate.checks:
        verdict = "passed" if check.passed else "FELL"
        lines.append(
            f"- {verdict}: {check.name}: {check.cases} inputs, "
            f"largest difference {check.max_difference:.3g} ({check.detail})"
        )
    batching = certificate.batching
    verdict = "may share a batch" if batching.independent else "are served one at a time"
    lines += [f"- requests {verdict}: {batching.reason}", ""]
    if certificate.conditions:
        lines += ["## Branches", ""]
        lines += [f"- {_ways(condition)}" for condition in certificate.conditions]
        lines += [""]
    if layers is not None:
        chosen = [f"`{layer.name}` ({layer.type})" for layer in layers.hooked if layer.chosen]
        lines += ["## Observed layers", "", f"- {', '.join(chosen) or 'none'}", ""]
        lines += ["- what is called as a function (`F.relu`, `torch.relu`) is no layer", ""]
    if certificate.precision is not None:
        lines += ["## Precision", "", *_precision(certificate.precision), ""]
    lines += ["## Engines", "", *_engines(certificate, choice), ""]
    if certificate.notes:
        lines += ["## Notes", "", *(f"- {note}" for note in certificate.notes), ""]
    versions = ", ".join(f"{name} {version}" for name, version in certificate.versions.items())
    lines += ["## Made", "", f"- by {certificate.method}, with {versions}"]
    for dtype, (relative, absolute) in certificate.tolerance.items():
        lines.append(f"- tolerance for {dtype}: relative {relative:g}, absolute {absolute:g}")
    return "\n".join(lines) + "\n"


def _precision(precision: Precision) -> Iterator[str]:
    yield (
        f"- computed in {precision.dtype}; from the module as it was given, {precision.cases} "
        "inputs differ at most by:"
    )
    for cost in precision.costs:
        labels = ""
        if cost.changed_labels is not None:
            labels = f"; {cost.changed_labels:.2%} of rows get another label"
        yield (
            f"- output `{cost.output}`: {cost.max_absolute:.3g}, or {cost.max_relative:.2%} of the "
            f"answer's largest value{labels}"
        )


def _engines(certificate: Certificate, choice: Choice | None) -> Iterator[str]:
    yield f"- `{TORCHSCRIPT}`: the frozen graph, verified above"
    for one in certificate.engines:
        if one.offered:
            yield (
                f"- `{one.name}`: certified: largest difference {one.max_difference:.3g} "
                f"({one.detail})"
            )
        else:
            yield f"- `{one.name}`: not offered: {one.detail}"
    if choice is None:
        return
    for timing in choice.timings:
        times = ", ".join(
            f"{own:.3g} ms for {rows} row{'s' * (rows != 1)}"
            for rows, own in timing.milliseconds.items()
        )
        gained = gain(choice.timings[0], timing)
        yield f"- `{timing.engine}` takes {times}: {gained:.2f} times as fast as `{TORCHSCRIPT}`"
    why = ", as measured here" if choice.timings else ""
    yield f"- `{choice.engine}` serves{why}"


def _ways(condition: Condition) -> str:
    counts = {"true": condition.when_true, "false": condition.when_false}
    ways = [
        f"{when} for {count} input{'s' * (count != 1)}" if count else f"never {when}: NOT VERIFIED"
        for when, count in counts.items()
        if count is not None
    ]
    ways += [f"{when} leads to an error" for when, count in counts.items() if count is None]
    return f"{condition.place}: {', '.join(ways)}"


def _described(spec: TensorSpec) -> str:
    text = str(spec)
    if spec.minimum is not None or spec.maximum is not None:
        low = "-inf" if spec.minimum is None else f"{spec.minimum:g}"
        high = "inf" if spec.maximum is None else f"{spec.maximum:g}"
        text += f" in [{low}, {high}]"
    if spec.image is not None:
        text += f", or a PNG or JPEG ({spec.image.mode}, {spec.image.fit})"
    if spec.labels:
        shown = ", ".join(spec.labels[:10])
        text += f", labels {shown}{', ...' if len(spec.labels) > 10 else ''}"
    return text
