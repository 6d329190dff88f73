"""What the front learns of a request for its log: one header of the answer, which it takes away."""

import json
from typing import Final

from handlers.message import Response

__all__ = ["RecordHeader"]

_MICRO: Final = 1_000_000
_LONGEST: Final = 18  # digits; a client can say it where there is no front


class RecordHeader:
    """Writes the header for one model.

    Args:
        model: its name.
        version: its version.
    """

    def __init__(self, model: str, version: str) -> None:
        self._model = json.dumps([model, version], separators=(",", ":"))[:-1]

    def text(self, arrival: str, began: float, response: Response) -> str:
        """Write `formats.internal.RECORD`.

        Args:
            arrival: the request's `ARRIVAL`.
            began: when the worker had the batch, in seconds since 1970.
            response: the answer.
        """
        rows, run = response.rows or "null", response.run
        error = f'"{response.error}"' if response.error else "null"
        if not (arrival.isdecimal() and arrival.isascii() and len(arrival) <= _LONGEST):
            return f"{self._model},{rows},null,null,null,null,{error}]"
        arrived = int(arrival)
        queued = max(0, int(began * _MICRO) - arrived)
        if run is None:
            return f"{self._model},{rows},null,{queued},null,null,{error}]"
        # Of a clock that is set meanwhile, nobody gets to see a negative time.
        waited = max(queued, int(run.began * _MICRO) - arrived)
        ran = int(run.seconds * _MICRO)
        return f"{self._model},{rows},{run.requests},{queued},{waited},{ran},{error}]"
