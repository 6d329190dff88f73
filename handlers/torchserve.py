"""TorchServe's API, and nothing else: the adapter between its worker and `handlers.service`."""

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import torch

from engine import keep_memory
from formats.internal import ARRIVAL, RECORD
from handlers import worker_protocol
from handlers.coding import MAX_REQUEST_BYTES
from handlers.datatypes import Buffer
from handlers.engines import use_engine
from handlers.errors import RequestError
from handlers.faults import DeviceLost
from handlers.jsontext import dumps
from handlers.log_settings import LogSettings
from handlers.media import JSON
from handlers.model import Model, use_threads
from handlers.record_header import RecordHeader
from handlers.recorded import RequestRecording
from handlers.recorder import Recorder
from handlers.recording_settings import RecordingSettings
from handlers.reply import respond
from handlers.service import Request, Response, Service

__all__ = ["TorchServeAdapter"]

# TorchServe sends the phrase on the status line, where it must be ASCII.
_PHRASES: Final = {
    400: "Bad Request",
    406: "Not Acceptable",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    507: "Insufficient Storage",
}
# TorchServe's max_response_size when nothing is configured. A batch that is larger breaks the
# worker's connection, and with it everybody's request.
_DEFAULT_LIMIT: Final = 6_553_500
_FRAME_BYTES: Final = 4096  # room for headers and ids of one answer
_BATCH_TIME_SECONDS: Final = 0.1
_LEAST_WITH_PLUS: Final = 1e16  # written as 1e+16
_BODY_PARTS: Final = ("body", "data")
_FORMS: Final = ("application/x-www-form", "multipart/form")


class TorchServeAdapter:
    """A TorchServe handler: `initialize` once in each worker, then `handle` for each batch."""

    def __init__(self) -> None:
        self._service: Service | None = None
        self._model: Model | None = None
        self._recorder: Recorder | None = None
        self._version = ""
        self._record_header = RecordHeader("", "")
        self._limit = _DEFAULT_LIMIT

    def initialize(self, context: Any) -> None:
        """Load the model of an unpacked archive.

        Args:
            context: TorchServe's; its `system_properties` name the folder and the GPU.

        Raises:
            Exception: whatever keeps the model from loading, after one line on stderr.
        """
        # The body must arrive as bytes: TorchServe would read JSON itself, slowly, and with
        # NaN and a parsed value where the error needs the text. Read on every request.
        os.environ["TS_DECODE_INPUT_REQUEST"] = "false"
        worker_protocol.install()
        context.metrics.add_time = _sparse(context.metrics.add_time)
        properties = context.system_properties
        self._limit = int(os.environ.get("VITRINE_MAX_RESPONSE_SIZE", _DEFAULT_LIMIT))
        settings = (context.model_yaml_config or {}).get("vitrine", {})
        try:
            keep_memory()
            threads = use_threads(settings.get("threads"))
            device = _device(properties.get("gpu_id"))
            engine = use_engine(settings.get("engine"))
            self._model = Model(Path(properties["model_dir"]), device, engine)
            log = LogSettings.from_config(settings.get("activation_log"), os.environ)
            self._recorder = Recorder(self._model.signature, log)
            kept = RecordingSettings.from_config(settings.get("recording"), os.environ)
            recording = RequestRecording(self._model.signature, kept)
        except Exception as error:
            print(
                f"vitrine: model {context.model_name} cannot be loaded: "
                f"{type(error).__name__}: {ascii(str(error))[1:-1]}",
                file=sys.stderr,
                flush=True,
            )
            raise
        most = int(os.environ.get("VITRINE_MAX_REQUEST_SIZE", MAX_REQUEST_BYTES))
        self._service = Service(self._model, self._recorder, most, recording)
        signature = self._model.signature
        self._version = signature.model_version
        self._record_header = RecordHeader(context.model_name, self._version)
        print(
            f"vitrine: {signature.model} {signature.model_version} is loaded and warm "
            f"on {device} with {threads} thread(s), run by {self._model.engine}",
            file=sys.stderr,
            flush=True,
        )
        if kept.mode != "off":
            print(
                f"vitrine: WARNING: {signature.model} {signature.model_version} records what "
                f"clients send, {kept.rate:.2%} of all requests, in {kept.folder}",
                file=sys.stderr,
                flush=True,
            )

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch: one body per request, with its own status and headers."""
        assert self._service is not None
        began = time.time()
        answers: dict[int, Response] = {}
        places: list[int] = []
        requests: list[Request] = []
        sent = [_headers(context, place) for place in range(len(data))]
        for place, (parts, headers) in enumerate(zip(data, sent, strict=True)):
            if not parts and headers.get("describe") is not None:
                answers[place] = Response(200, self._describe(), {"content-type": JSON})
                continue
            try:
                body = _body(parts, headers)
            except RequestError as error:
                answers[place] = respond(Request(b"", headers), error)
                continue
            requests.append(Request(body, headers, context.get_request_id(place) or ""))
            places.append(place)
        try:
            answers |= zip(places, self._service.handle(requests), strict=True)
        except DeviceLost as error:
            _end(error)
        self._measure(context)
        sizes = [len(answers[place].body) for place in range(len(data))]
        for place, refusal in too_large(sizes, self._limit).items():
            answers[place] = respond(Request(b"", sent[place]), refusal)
        for place, headers in enumerate(sent):
            arrival = headers.get(ARRIVAL)
            if arrival is not None:
                record = self._record_header.text(arrival, began, answers[place])
                context.set_response_header(place, RECORD, record)
        return [_send(context, place, answers[place], self._version) for place in range(len(data))]

    def _measure(self, context: Any) -> None:
        """Hand what the recorder counted to TorchServe's metrics, if anything was."""
        assert self._service is not None
        samples = self._service.take_samples()
        if not samples:
            return
        from ts.metrics.dimension import Dimension
        from ts.metrics.metric_type_enum import MetricTypes

        for sample in samples:
            dimensions = [Dimension(name, _label(value)) for name, value in sample.labels.items()]
            kind = MetricTypes.COUNTER if sample.counter else MetricTypes.GAUGE
            context.metrics.add_metric(
                sample.name,
                _plain(sample.value),
                unit="Count",
                dimensions=dimensions,
                metric_type=kind,
            )

    def _describe(self) -> bytes:
        assert self._model is not None
        assert self._service is not None
        signature = self._model.signature
        return dumps(
            {
                "model": signature.model,
                "version": signature.model_version,
                "description": signature.description,
                "inputs": [spec.to_json() for spec in signature.inputs],
                "outputs": [spec.to_json() for spec in signature.outputs],
                "observed_layers": [layer.name for layer in self._model.layers if layer.chosen],
                "units": self._service.units.report(),
            }
        )


def _end(error: DeviceLost) -> NoReturn:
    """End this worker: TorchServe starts another, and tells those who wait to try again."""
    print(f"vitrine: the GPU is lost to this worker, which ends: {error}", file=sys.stderr)
    sys.stderr.flush()
    # Nothing is left that could be tidied up: taking CUDA down would fail too, or hang.
    os._exit(1)


def _sparse(add_time: Callable[..., None]) -> Callable[..., None]:
    """Let TorchServe write a batch's time ten times a second at most.

    It is a gauge, so that nobody sees the values in between; writing one takes longer than a
    small model's batch.
    """
    due = 0.0

    def add(name: str, value: float, *arguments: Any, **options: Any) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due:
            due = now + _BATCH_TIME_SECONDS
            add_time(name, value, *arguments, **options)

    return add


def _label(text: str) -> str:
    """Write a metric's label so that TorchServe reads it back: its lines split at `:`, `,`, `|`."""
    return re.sub(r"[^\w.@/-]", "_", text.replace(":", "/"))


def _plain(value: float) -> float:
    """Return a number that Python writes without a "+", which TorchServe does not read."""
    return value if abs(value) < _LEAST_WITH_PLUS else int(value)


def _device(gpu_id: Any) -> torch.device:
    if gpu_id is not None and torch.cuda.is_available():
        return torch.device("cuda", int(gpu_id))
    return torch.device("cpu")


def _headers(context: Any, place: int) -> dict[str, str]:
    # Names arrive in the client's case; beside them stand the parts, whose values are dicts.
    return {
        name.lower(): value
        for name, value in context.get_all_request_header(place).items()
        if isinstance(value, str)
    }


def _body(parts: dict[str, Any], headers: dict[str, str]) -> Buffer:
    """Return the request's body, where TorchServe received it.

    A form's part of that name is a body too; what it says of itself TorchServe does not pass on
    reliably, so it is read as JSON.

    Raises:
        RequestError: it came as a form without one.
    """
    form = headers.get("content-type", "").lower().startswith(_FORMS)
    for name in _BODY_PARTS:
        if name in parts:
            if form:
                del headers["content-type"]
            value = parts[name]
            if isinstance(value, (bytes, bytearray)):
                return value
            return value.encode() if isinstance(value, str) else dumps(value)
    if form:
        raise RequestError(
            "unsupported_media_type",
            "the body came as a form (curl does that without a Content-Type header)",
            status=415,
            expected="Content-Type: application/json",
        )
    return b""


def too_large(sizes: Sequence[int], limit: int) -> dict[int, RequestError]:
    """Choose the answers of a batch that must be withheld for the rest to be sent.

    Args:
        sizes: bytes of each answer.
        limit: bytes that the batch may have.
    """
    refused: dict[int, RequestError] = {}
    total = sum(sizes) + _FRAME_BYTES * len(sizes)
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        if total <= limit:
            break
        total -= sizes[place]
        alone = sizes[place] + _FRAME_BYTES > limit
        refused[place] = RequestError(
            "answer_too_large",
            f"the answer has {sizes[place]} bytes"
            + ("" if alone else ", too many beside the others of its batch: try again"),
            status=413 if alone else 503,
            expected=f"at most {limit} bytes (max_response_size); send fewer rows at a time",
        )
    return refused


def _send(context: Any, place: int, response: Response, version: str) -> bytes:
    if response.status != 200:
        phrase = _PHRASES.get(response.status, "Error")
        context.set_response_status(response.status, phrase, idx=place)
    for name, value in response.headers.items():
        context.set_response_header(place, name, value)
    # A request that named none is told which one answered, while the default is being switched too.
    context.set_response_header(place, "x-model-version", version)
    return response.body
