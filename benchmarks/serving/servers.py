"""Everything that is measured side by side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from benchmarks.serving import forms, torchserve, trivial, vitrine
from benchmarks.serving.environments import PEERS, python_of
from benchmarks.serving.forms import Encoder, Form
from benchmarks.serving.prepared import Prepared, write_settings
from benchmarks.serving.running import Launch, free_ports
from benchmarks.serving.vitrine import Variant
from benchmarks.serving.work import Floats, Work

__all__ = ["LIMIT", "STOCK", "TRIVIAL", "Server", "all_servers"]

STOCK: Final = "torchserve"
TRIVIAL: Final = "haproxy"
LIMIT: Final = "limit"
_BATCH: Final = 16
_DELAY_MS: Final = 1


@dataclass(frozen=True)
class Server:
    """Something to measure.

    Attributes:
        name: in the table, and for `--servers`.
        title: what it is, in a line.
        kind: "vitrine", "peer", or "reference" for what is no alternative.
        encode: makes its requests.
        launch: says how to start it with that many workers.
        workers: by work, where they are not 1.
    """

    name: str
    title: str
    kind: str
    encode: Encoder
    launch: Callable[[Prepared, int], Launch]
    workers: Mapping[str, int] = field(default_factory=dict)

    def workers_for(self, work: Work) -> int:
        """Worker processes for a work."""
        return self.workers.get(work.name, 1)


def all_servers(variants: Sequence[Variant]) -> list[Server]:
    """Return every server, in the order of the table."""
    return [*map(_vitrine, variants), *_PEERS, _TRIVIAL]


def _by_kind(json_form: Encoder, binary_form: Encoder) -> Encoder:
    def encode(work: Work, inputs: Floats) -> Form:
        return (binary_form if work.binary else json_form)(work, inputs)

    return encode


def _vitrine(variant: Variant) -> Server:
    path = "/predictions/{model}"
    plain = _by_kind(forms.plain_json(path, '"{output}":'), forms.raw(path, accept=True))

    def encode(work: Work, inputs: Floats) -> Form:
        return replace(plain(work, inputs), tolerance=variant.tolerance)

    return Server(
        variant.name,
        "Vitrine: " + _described(variant),
        "vitrine",
        encode,
        lambda prepared, workers: vitrine.launch(variant, prepared),
    )


def _described(variant: Variant) -> str:
    settings = [
        f"{key}={value}" for key, value in {**variant.environment, **variant.config}.items()
    ]
    settings += [*variant.arguments, *variant.export_options]
    if variant.tune is not None:
        settings.append(f"tuned with {' '.join(variant.tune)}")
    if variant.model_store is not None:
        settings.append(f"archives of {variant.model_store.name}")
    return " ".join(settings) or "as `python -m server` starts it"


def _peer(name: str, prepared: Prepared, workers: int, *, entry: str = "") -> Launch:
    python = python_of(name)
    folder, work = prepared.folder(entry or name), prepared.work
    port, *spare = free_ports(4)
    settings: dict[str, object] = {
        "model": str(prepared.model),
        "name": work.model,
        "input": work.input,
        "shape": list(work.shape),
        "output": work.output,
        "outputs": work.outputs,
        "binary": work.binary,
        "batch": _BATCH,
        "delay_ms": _DELAY_MS,
        "workers": workers,
        "port": port,
        "spare_ports": spare,
    }
    environment = write_settings(folder / "peer.json", settings)
    environment |= {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    command = [str(python), str(PEERS / name / "server.py")]
    return Launch(command, folder, environment, lambda: f"127.0.0.1:{port}")


_TORCHSERVE_FORM: Final = _by_kind(
    forms.plain_json("/predictions/{model}", "["), forms.raw("/predictions/{model}")
)

_PEERS: Final = (
    Server(
        STOCK,
        "TorchServe, stock settings, a BaseHandler",
        "peer",
        _TORCHSERVE_FORM,
        torchserve.stock,
    ),
    Server(
        "torchserve-tuned",
        "TorchServe, batches of 16 after 1 ms, quiet",
        "peer",
        _TORCHSERVE_FORM,
        torchserve.tuned,
        {"resnet18": 2},
    ),
    Server(
        "litserve",
        "LitServe, batches of 16 after 1 ms",
        "peer",
        _by_kind(
            forms.plain_json("/predict", '"outputs":'), forms.base64_json("/predict", '"outputs":')
        ),
        partial(_peer, "litserve"),
        {"resnet18": 2},
    ),
    Server(
        "mlserver",
        "MLServer, batches of 16 after 1 ms",
        "peer",
        forms.open_inference_base64,
        partial(_peer, "mlserver"),
        {"mlp": 0, "digits": 0, "resnet18": 2},
    ),
    Server(
        "bentoml",
        "BentoML, adaptive batches of up to 16",
        "peer",
        _by_kind(
            forms.plain_json("/predict", "[", rows=True),
            forms.base64_json("/predict_base64", "[", rows=True),
        ),
        partial(_peer, "bentoml"),
        {"resnet18": 2},
    ),
    Server(
        "bentoml-unbatched",
        "BentoML, no batching",
        "peer",
        _by_kind(
            forms.plain_json("/predict_one", "["),
            forms.base64_json("/predict_one_base64", "["),
        ),
        partial(_peer, "bentoml", entry="bentoml-unbatched"),
        {"resnet18": 2},
    ),
    Server(
        "triton",
        "Triton (PyTriton), HTTP, batches of up to 16",
        "peer",
        forms.open_inference,
        partial(_peer, "triton"),
        {"resnet18": 2},
    ),
    Server(
        "fastapi",
        "FastAPI and uvicorn by hand, no batching",
        "peer",
        _by_kind(forms.plain_json("/predict", '"outputs":'), forms.raw("/predict")),
        partial(_peer, "fastapi"),
        {"resnet18": 2},
    ),
)

_TRIVIAL: Final = Server(
    TRIVIAL,
    "no model: HAProxy answers the same at once, so this is the load generator's limit",
    "reference",
    trivial.encode,
    trivial.launch,
)
