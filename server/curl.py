"""One command per model that can be pasted into a shell."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

__all__ = ["INLINE_LIMIT", "curl_line", "prediction_url"]

#: Longest request body, in characters, that is shown inside the command.
INLINE_LIMIT = 600


def prediction_url(base: str, name: str, version: str | None = None) -> str:
    """Where a model answers, in its default version if none is named."""
    url = f"{base}/predictions/{quote(name, safe='')}"
    return url if version is None else f"{url}/{quote(version, safe='')}"


def curl_line(
    base: str,
    name: str,
    sample: Path | None,
    version: str | None = None,
    *,
    options: Sequence[str] = (),
) -> str:
    """The command that sends a model's sample request; without a sample, only the URL.

    Args:
        base: Base URL of the inference API.
        name: The model's name.
        sample: A JSON file: the request body.
        version: One of its versions; None for the default.
        options: Of the command, as a shell takes them.
    """
    url = prediction_url(base, name, version)
    if sample is None:
        return url
    words = ["curl -s", *options, shlex.quote(url), "-H 'Content-Type: application/json'"]
    command = " ".join(words)
    body = _inline(sample)
    if body is not None:
        return f"{command} -d {shlex.quote(body)}"
    return f"{command} --data-binary {shlex.quote('@' + str(sample.resolve()))}"


def _inline(sample: Path) -> str | None:
    try:
        body = json.dumps(json.loads(sample.read_bytes()), separators=(",", ":"))
    except (OSError, ValueError):
        return None
    return body if len(body) <= INLINE_LIMIT else None
