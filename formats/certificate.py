"""The certificate: what the export verified, on what, and what follows for serving."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from formats.document import FormatError, read_document, write_document

VERSION: Final = 1
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
class Certificate:
    """What is known of an exported model.

    Attributes:
        method: "script" or "trace".
        versions: of torch, Python and the platform that did the work.
        tolerance: dtype name to (relative, absolute) tolerance of the comparisons.
        checks: in the order they ran.
        batching: may requests share a batch?
        notes: what a user should know before trusting the model, one sentence each.
    """

    method: Literal["script", "trace"]
    versions: dict[str, str]
    tolerance: dict[str, tuple[float, float]]
    checks: tuple[Check, ...]
    batching: Batching
    notes: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Write `certificate.json` into `folder`."""
        write_document(folder / FILE_NAME, "certificate", VERSION, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Certificate":
        """Read `certificate.json` from `folder`.

        Raises:
            FormatError: the file is missing, damaged, or of another version.
        """
        fields = read_document(folder / FILE_NAME, "certificate", VERSION)
        try:
            return cls(
                method=fields["method"],
                versions=fields["versions"],
                tolerance={name: (pair[0], pair[1]) for name, pair in fields["tolerance"].items()},
                checks=tuple(Check(**check) for check in fields["checks"]),
                batching=Batching(**fields["batching"]),
                notes=tuple(fields["notes"]),
            )
        except (KeyError, TypeError) as error:
            raise FormatError(f"{FILE_NAME} is damaged: {error}") from None
