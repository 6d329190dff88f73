"""What HAProxy says of itself."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from server.admin import Admin

__all__ = ["FrontState", "front_state"]


@dataclass(frozen=True)
class FrontState:
    """The front, now.

    Attributes:
        in_flight: Requests that wait for TorchServe's answer.
        dropped_lines: Lines for the request log that did not fit into the pipe.
    """

    in_flight: int
    dropped_lines: int


def front_state(admin: Path) -> FrontState:
    """Ask HAProxy, over its stats socket.

    Raises:
        Refused: It does not answer.
        ValueError: Its answer is another than expected.
    """
    asked = Admin(admin)
    lines = asked.ask("show info").splitlines()
    info = dict(line.split(": ", 1) for line in lines if ": " in line)
    table = csv.DictReader(io.StringIO(asked.ask("show stat").lstrip("# ")))
    for row in table:
        if (row["pxname"], row["svname"]) == ("torchserve", "BACKEND"):
            return FrontState(int(row["scur"]), int(info["DroppedLogs"]))
    raise ValueError("HAProxy knows no backend `torchserve`")
