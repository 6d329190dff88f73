"""The recording: requests with what was sent, to be replayed on another version of the model."""

import random
from collections.abc import Mapping, Sequence

from formats.activation import now
from formats.recording import HEADERS, Recording, Tensor
from formats.signature import Signature
from handlers.datatypes import Buffer
from handlers.jsontext import dumps
from handlers.line_log import Counts, LineLog, file_of
from handlers.recording_settings import RecordingSettings
from handlers.sample import LogCounters, Sample
from handlers.values import Array

__all__ = ["RequestRecording"]


class RequestRecording:
    """Hands a sample of the requests to a process that writes them.

    The worker never waits for a disk: see `handlers.line_log`. A request that is larger than the
    channel holds is dropped and counted.

    Args:
        signature: of the model; its name is the file's, `MODEL.jsonl`.
        settings: with mode "off" nothing is started and nothing is written.

    Raises:
        OSError: the writer cannot be started.
    """

    def __init__(self, signature: Signature, settings: RecordingSettings | None = None) -> None:
        self._signature = signature
        self._settings = settings or RecordingSettings()
        self._left = 0
        path = None
        if self._settings.mode != "off":
            assert self._settings.folder is not None
            path = file_of(self._settings.folder, signature.model)
            self._left = self._settings.most
        self._log = LineLog(path, self._settings.limits)
        self._counters = LogCounters("vitrine_recorded_requests", self._log.counts)
        self._random = random.Random()  # noqa: S311 (sampling is no secret)

    def picks(self) -> bool:
        """Tell whether a request is to be recorded."""
        return self._left > 0 and self._random.random() < self._settings.rate

    def record(
        self,
        request_id: str,
        headers: Mapping[str, str],
        body: Buffer,
        outputs: Sequence[Array],
        error: str | None,
    ) -> None:
        """Record a request that was answered. Never waits, never raises.

        Args:
            request_id: the server's own id.
            headers: of the request, with lower-case names.
            body: of the request.
            outputs: one array per output of the signature, holding this request's rows only; none
                for a request that ended in an error.
            error: the code of the error it ended in, or None.
        """
        if self._left <= 0:
            return
        self._left -= 1

        def line() -> bytes:
            names = [spec.name for spec in self._signature.outputs]
            record = Recording(
                time=now(),
                model=self._signature.model,
                model_version=self._signature.model_version,
                request_id=request_id,
                headers={name: headers[name] for name in HEADERS if name in headers},
                body=bytes(body),
                # Of an error there are no outputs.
                outputs=tuple(
                    Tensor(name, array.dtype.name, array.shape, _little(array))
                    for name, array in zip(names, outputs, strict=False)
                ),
                error=error,
            )
            return dumps(record.to_json()) + b"\n"

        self._log.put(line)

    def counts(self) -> Counts:
        """Count what was sent, written and dropped so far."""
        return self._log.counts()

    def take_samples(self) -> list[Sample]:
        """Return what there is for the metrics since the last call; nothing when it is off."""
        return self._counters.take_samples() if self._settings.mode != "off" else []

    def close(self) -> None:
        """Stop recording; what was handed to the writer is still written."""
        self._log.close()


def _little(array: Array) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
