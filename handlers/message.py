"""A request and its answer, as any server has them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from handlers.datatypes import Buffer

__all__ = ["Request", "Response", "Run"]


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        body: the bytes that were sent; nobody may change them while the request is answered.
        headers: with lower-case names.
        id: the server's own id of the request.
    """

    body: Buffer
    headers: Mapping[str, str] = field(default_factory=dict)
    id: str = ""


@dataclass(frozen=True)
class Run:
    """The run of the model that a request was part of.

    Attributes:
        requests: how many shared it.
        began: when, in seconds since 1970.
        seconds: how long it took.
    """

    requests: int
    began: float
    seconds: float


@dataclass(frozen=True)
class Response:
    """One answer.

    Attributes:
        status: HTTP status.
        body: JSON, if the status is not 200; else what the request asked for.
        headers: to be set on the answer, the content type among them.
        error: the error's code; empty for a good answer.
        rows: how many rows the request had; 0 where that was never known.
        run: the run that answered it; None where the model did not run for it. It is for the log:
            answers are the same whoever shared the run.
    """

    status: int
    body: bytes
    headers: Mapping[str, str]
    error: str = ""
    rows: int = 0
    run: Run | None = field(default=None, compare=False)
