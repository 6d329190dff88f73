"""The certificate: what the export verified, on what, and what follows for serving."""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from formats.document import FormatError, document_text, parse_document
from formats.engines import TORCHSCRIPT, Engine

VERSION: Final = 4
FILE_NAME: Final = "certificate.json"


@dataclass(frozen=True)
class Check:
    """One thing that was compared.

    Attributes:
        name: e.g. "parity: reloaded".
        passed: whether every case held.
        cases: how many inputs were compared.
        max_difference: largest absolute difference over all cases and outputs.
        detail: one sentence on what was compared, or on what fell.
    """

    name: str
    passed: bool
    cases: int
    max_difference: float
    detail: str


@dataclass(frozen=True)
class Condition:
    """A condition in the model's code that the saved graph still decides for every input.

    Attributes:
        place: file, line and text.
        when_true: how many of the verified inputs had it true; None where that leads to an error.
        when_false: the same for false.
    """

    place: str
    when_true: int | None
    when_false: int | None


@dataclass(frozen=True)
class Batching:
    """Whether requests may share a batch, as measured.

    Attributes:
        independent: each row's answer is the same alone and in any company that was tried.
        max_rows: the most rows that were tried together; a shared batch holds no more.
        reason: one sentence: what was tried, or which output moved by how much.
    """

    independent: bool
    max_rows: int
    reason: str


@dataclass(frozen=True)
class Cost:
    """What a lower precision changed in one output, over all verified inputs.

    Attributes:
        output: its name.
        max_absolute: the largest difference from the module as it was given.
        max_relative: the same as a share of the largest value of that answer.
        changed_labels: for outputs with labels, the share of rows that get another label.
    """

    output: str
    max_absolute: float
    max_relative: float
    changed_labels: float | None


@dataclass(frozen=True)
class Precision:
    """The precision that weights and computation were brought to, and what that cost.

    Attributes:
        dtype: e.g. "bfloat16".
        cases: how many inputs were compared.
        costs: one for each output.
    """

    dtype: str
    cases: int
    costs: tuple[Cost, ...]


@dataclass(frozen=True)
class Certificate:
    """What is known of an exported model.

    Attributes:
        method: "script" or "trace".
        versions: of torch, Python and the platform that did the work, and the processor's name.
        tolerance: dtype name to (relative, absolute) tolerance of the comparisons.
        checks: in the order they ran.
        batching: may requests share a batch?
        conditions: where the graph branches; a way that no input took is not verified.
        notes: what a user should know before trusting the model, one sentence each.
        precision: what was lowered on demand; None for the module as it was given.
        engines: those beside the frozen TorchScript graph, and whether they may serve.
        files: SHA-256, in hex, of every other file of the archive, by its name there.
    """

    method: Literal["script", "trace"]
    versions: dict[str, str]
    tolerance: dict[str, tuple[float, float]]
    checks: tuple[Check, ...]
    batching: Batching
    conditions: tuple[Condition, ...] = ()
    notes: tuple[str, ...] = ()
    precision: Precision | None = None
    engines: tuple[Engine, ...] = ()
    files: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """Return the content of `certificate.json`, which holds a digest of itself."""
        fields = asdict(self)
        blank = document_text("certificate", VERSION, {**fields, "digest": ""})
        return document_text("certificate", VERSION, {**fields, "digest": _sha256(blank.encode())})

    def offers(self, engine: str) -> bool:
        """Tell whether an engine was certified; the frozen TorchScript graph always is."""
        return engine == TORCHSCRIPT or any(
            one.offered for one in self.engines if one.name == engine
        )

    def write(self, folder: Path) -> None:
        """Write `certificate.json` into `folder`."""
        (folder / FILE_NAME).write_bytes(self.text().encode())

    @classmethod
    def read(cls, folder: Path) -> "Certificate":
        """Read `certificate.json` from `folder`.

        Raises:
            FormatError: the file is missing, damaged, changed, or of another version.
        """
        try:
            content = (folder / FILE_NAME).read_bytes()
        except FileNotFoundError:
            raise FormatError(
                f"{FILE_NAME} is missing; expected a vitrine.certificate document"
            ) from None
        return cls.parse(content)

    @classmethod
    def parse(cls, content: bytes) -> "Certificate":
        """Read the content of `certificate.json`.

        Raises:
            FormatError: as `read` does.
        """
        fields = parse_document(content, FILE_NAME, "certificate", VERSION)
        _check_digest(content, fields.get("digest"))
        try:
            return cls(
                method=fields["method"],
                versions=fields["versions"],
                tolerance={name: (pair[0], pair[1]) for name, pair in fields["tolerance"].items()},
                checks=tuple(Check(**check) for check in fields["checks"]),
                batching=Batching(**fields["batching"]),
                conditions=tuple(Condition(**one) for one in fields["conditions"]),
                notes=tuple(fields["notes"]),
                precision=_precision(fields["precision"]),
                engines=tuple(Engine(**one) for one in fields["engines"]),
                files=fields["files"],
            )
        except (KeyError, TypeError) as error:
            raise FormatError(f"{FILE_NAME} is damaged: {error}") from None


def _precision(fields: Any) -> Precision | None:
    if fields is None:
        return None
    return Precision(
        fields["dtype"], fields["cases"], tuple(Cost(**cost) for cost in fields["costs"])
    )


def _check_digest(content: bytes, digest: Any) -> None:
    # The digest is that of the exact bytes with the digest itself left out, so that a change
    # anywhere in them shows, be it in a space.
    found = digest if isinstance(digest, str) else ""
    actual = _sha256(content.replace(f'"digest": "{found}"'.encode(), b'"digest": ""'))
    if actual != found:
        raise FormatError(
            f"{FILE_NAME} is not what the export wrote: sha256 {actual[:16]}... of its content, "
            f"expected {found[:16] or 'none'}...; export the model again"
        )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
