"""The one error of the export stage."""

__all__ = ["ExportError"]


class ExportError(Exception):
    """A model cannot be exported; says where, what, and what to do.

    Args:
        what: what is wrong, one sentence.
        where: the file, and the line if there is one, e.g. "models/mine.py:12".
        hint: what to do about it.
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        """Return `where: what` and the hint on a line of its own."""
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  → {self.hint}" if self.hint else text
