"""Headers that the server's own parts send each other; no client sends them through the front."""

from typing import Final

__all__ = ["ARRIVAL", "PROBE", "RECORD", "record_of_error"]

PROBE: Final = "x-vitrine-probe"
"""Marks a request of the server's own, which is nobody's: neither logged nor measured."""

ARRIVAL: Final = "x-vitrine-arrival"
"""The header in which the front says when a request arrived: microseconds since 1970."""

RECORD: Final = "x-vitrine-record"
"""The header of an answer, for the front's log, which takes it away. It is a JSON list:
[MODEL,VERSION,ROWS,REQUESTS,QUEUED,BEGAN,RUN,ERROR].

Any may be null: ROWS where the request could not be read; REQUESTS, how many shared the model's
run, and RUN, the microseconds that it took, where the model did not run; ERROR, a code, of a good
answer. QUEUED and BEGAN are microseconds from the arrival until the worker had the batch, and until
the model began.
"""


def record_of_error(code: str | None) -> list[str | None]:
    """Return what stands in `RECORD` where no model had the request.

    Args:
        code: the error's code; None where there is none.
    """
    return [*[None] * 7, code]
