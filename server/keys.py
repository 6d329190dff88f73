"""API keys: a file with a line for each, and the map of digests that HAProxy compares with.

A line is `[NAME:]KEY [MODEL ...]`; what follows a `#` is a comment. Without models a key may use
all of them. Names tell keys apart where requests are counted or logged; they are no secret.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["BadKeys", "Key", "map_lines", "parse_keys", "read_keys"]

#: Characters that a key has at least.
SHORTEST: Final = 16
_LARGEST_FILE: Final = 1_000_000
# What may stand behind `Bearer` (RFC 6750, b64token): no colon, so a name can stand before it.
_KEY: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_COMMENT: Final = re.compile(r"(^|\s)#.*")
_AFTER_NAME: Final = re.compile(r":\s+")
_UNNAMED: Final = "-"


class BadKeys(ValueError):
    """The file holds no keys; the text says in which line and why, and never shows a key."""


@dataclass(frozen=True)
class Key:
    """A key, of which only the digest is kept.

    Attributes:
        name: Whose it is; "-" where the file does not say.
        digest: SHA-256, in upper-case hexadecimal as HAProxy writes it.
        models: Names of the models that it may use; empty for all.
    """

    name: str
    digest: str
    models: tuple[str, ...] = ()


def read_keys(path: Path) -> list[Key]:
    """Read a file of keys.

    Raises:
        BadKeys: It cannot be read, or a line is not one.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise BadKeys(f"it cannot be read ({error.strerror})") from None
    if len(text) > _LARGEST_FILE:
        raise BadKeys(f"it has more than {_LARGEST_FILE} bytes")
    try:
        return parse_keys(text.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise BadKeys("it is not UTF-8 text") from None


def parse_keys(text: str) -> list[Key]:
    """Read the lines of a file of keys.

    Raises:
        BadKeys: A line is not one, a key comes twice, or there is none.
    """
    keys: list[Key] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        said = _AFTER_NAME.sub(":", _COMMENT.sub("", line), count=1)
        words = said.replace(",", " ").split()
        if not words:
            continue
        key = _key(number, words)
        first = lines.setdefault(key.digest, number)
        if first != number:
            raise BadKeys(f"lines {first} and {number} hold the same key")
        keys.append(key)
    if not keys:
        raise BadKeys("there is no key in it; expected a line `[NAME:]KEY [MODEL ...]` for each")
    return keys


def map_lines(keys: list[Key]) -> Iterator[str]:
    """The lines of HAProxy's map.

    `DIGEST NAME|MODELS` for each key, and `DIGEST/MODEL 1` for each model of a key that may not
    use all.
    """
    for key in keys:
        yield f"{key.digest} {key.name}|{','.join(key.models)}"
        for model in key.models:
            yield f"{key.digest}/{model} 1"


def _key(number: int, words: list[str]) -> Key:
    name, separator, secret = words[0].rpartition(":")
    if not separator:
        name = _UNNAMED
    if not _NAME.fullmatch(name):
        raise BadKeys(f"line {number}: before the colon, expected a name of letters, digits, . _ -")
    if not _KEY.fullmatch(secret):
        raise BadKeys(
            f"line {number}: a key is made of letters, digits and . _ ~ + / -, with = at the end; "
            "expected `[NAME:]KEY [MODEL ...]`"
        )
    if len(secret) < SHORTEST:
        raise BadKeys(
            f"line {number}: the key has {len(secret)} characters, expected at least {SHORTEST}"
        )
    models = tuple(dict.fromkeys(words[1:]))
    if not all(map(_NAME.fullmatch, models)):
        raise BadKeys(f"line {number}: after the key, expected names of models")
    return Key(name, hashlib.sha256(secret.encode()).hexdigest().upper(), models)
