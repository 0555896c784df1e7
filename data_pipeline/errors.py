"""The one error type for users' mistakes: bad input, bad configuration, bad command lines."""


class UserError(Exception):
    """A mistake that the user can mend: says what is wrong, where (file, row, key) and what to do.

    The message is one line and never holds clinical content (codes, values, times): only file, row and column.
    Entry points print it to stderr and exit with code 2 (`data_pipeline.command_line`). `what` alone is kept too.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        parts = [f"{where}: {what}" if where else what]
        if fix:
            parts.append(fix)
        self.what = what
        super().__init__("; ".join(" ".join(part.split()) for part in parts))
