"""The one kind of failure a user is meant to read."""


class TarnError(Exception):
    """A failure told in three parts: what happened, where, and what to do about it.

    Raise it for anything a user can mend. A bug is any other exception.
    """

    def __init__(self, what: str, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        fix = f"\n  → {self.fix}" if self.fix else ""
        return f"{where}{self.what}{fix}"
