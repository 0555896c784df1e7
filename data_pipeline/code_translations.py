"""Tables that translate codes before a code map's rules read them: ICD-9 to ICD-10-CM, drug names to ATC.

A CSV file with a header and the columns `from` and `to`, one pair a row; other columns are not read. Each code of the
data that stands under `from` is read as if it were its `to`; codes that do not stand there stay as they are.
"""

import csv
import dataclasses
import pathlib
from typing import Any

from data_pipeline.errors import UserError

_FIX = "write a CSV file with the header from,to and one pair of codes a row"


@dataclasses.dataclass(frozen=True)
class TranslationFile:
    """A CSV file of pairs; the prefixes make MEDS codes of bare ones (4019 → DIAGNOSIS//ICD//9//4019)."""

    file: str
    from_prefix: str = ""
    to_prefix: str = ""

    @classmethod
    def from_json(cls, content: Any, where: str) -> "TranslationFile":
        """From a path, or an object with the fields of this class; raises UserError naming `where`."""
        fields = {"file": content} if isinstance(content, str) else content
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or not {"file"} <= set(fields) <= names:
            raise UserError("a path, or an object with 'file' and maybe 'from_prefix' and 'to_prefix'", where=where)
        if not all(isinstance(value, str) for value in fields.values()):
            raise UserError("'file', 'from_prefix' and 'to_prefix' must be text", where=where)
        return cls(**fields)

    def read(self, folder: pathlib.Path) -> dict[str, str]:
        """Code → code; a relative path starts at `folder`. Raises UserError naming the file and the row, from 1."""
        path = folder / self.file
        pairs: dict[str, str] = {}
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.reader(file, strict=True)
                columns = _columns(next(rows, []), path)
                for number, row in enumerate(rows, start=1):
                    old, new = _pair(row, columns, f"{path}: row {number}")
                    if old in pairs:
                        raise UserError(
                            "a 'from' that stands in an earlier row already",
                            where=f"{path}: row {number}",
                            fix="choose one 'to' for each code",
                        )
                    pairs[old] = new
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a CSV file in UTF-8"
            raise UserError(f"cannot be read ({reason})", where=str(path), fix=_FIX) from error
        if not pairs:
            raise UserError("no rows in it", where=str(path), fix=_FIX)
        return {self.from_prefix + old: self.to_prefix + new for old, new in pairs.items()}


def _columns(header: list[str], path: pathlib.Path) -> tuple[int, int]:
    names = [name.strip().lower() for name in header]
    if names.count("from") != 1 or names.count("to") != 1:
        raise UserError("its header does not have the columns from and to, once each", where=str(path), fix=_FIX)
    return names.index("from"), names.index("to")


def _pair(row: list[str], columns: tuple[int, int], where: str) -> tuple[str, str]:
    if len(row) <= max(columns):
        raise UserError("too few cells", where=where, fix=_FIX)
    old, new = (row[column].strip() for column in columns)
    if not old or not new:
        raise UserError("an empty cell", where=where, fix="leave out codes that have no counterpart")
    return old, new
