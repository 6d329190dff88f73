"""The activation log: one JSON line for a request, which costs it microseconds and nothing else."""

from dataclasses import replace

from formats.activation import ActivationRecord
from handlers.jsontext import dumps
from handlers.line_log import Counts, LineLog, file_of
from handlers.log_settings import LogSettings

__all__ = ["ActivationLog", "Counts"]


class ActivationLog(LineLog):
    """Hands records to a process that writes them, so that a worker never waits for a disk.

    Args:
        settings: with mode "off" nothing is started and nothing is written.
        model: names the file, `MODEL.jsonl`. All workers of the model write to it.

    Raises:
        OSError: the writer cannot be started.
    """

    def __init__(self, settings: LogSettings, model: str) -> None:
        path = None
        if settings.mode != "off":
            assert settings.folder is not None
            path = file_of(settings.folder, model)
        super().__init__(path, settings.limits)

    def write(self, record: ActivationRecord) -> None:
        """Send a record to the writer, or drop and count it. Never waits, never raises."""
        self.put(lambda: _line(record))


def _line(record: ActivationRecord) -> bytes:
    # JSON escapes newlines in a client's text; the one at the end is the only one.
    try:
        return dumps(record.to_json()) + b"\n"
    except (TypeError, ValueError):
        # A client's text may hold lone surrogates, which have no UTF-8.
        record = replace(
            record,
            request_id=_encodable(record.request_id),
            traceparent=record.traceparent and _encodable(record.traceparent),
            correlation_id=record.correlation_id and _encodable(record.correlation_id),
        )
        return dumps(record.to_json()) + b"\n"


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
