"""Training runs as points (parameters N, tokens D, compute C, final loss), from a table of any origin."""

import csv
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipeline.errors import UserError

FLOPS_PER_PARAMETER_AND_TOKEN = 6.0  # C = 6 N D (arXiv 2001.08361, section 2.1)


@dataclasses.dataclass(frozen=True)
class Points:
    """P training runs.

    Attributes:
        n_P: parameters.
        d_P: training tokens.
        c_P: training compute, FLOPs.
        loss_P: final loss, nats per token.
        weight_P: weight of each run in a fit; 1 where nothing else is known.
    """

    n_P: np.ndarray
    d_P: np.ndarray
    c_P: np.ndarray
    loss_P: np.ndarray
    weight_P: np.ndarray

    def __post_init__(self) -> None:
        for name in ("n_P", "d_P", "c_P", "loss_P", "weight_P"):
            values = getattr(self, name)
            if values.shape != self.n_P.shape or not np.all(np.isfinite(values) & (values > 0)):
                raise ValueError(f"{name} must have one finite, positive value for each run")

    def __len__(self) -> int:
        return len(self.n_P)

    def take(self, index: np.ndarray) -> "Points":
        """The runs at `index` (integers or booleans)."""
        return Points(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))

    def weighted(self, weight_P: np.ndarray) -> "Points":
        """The runs of positive weight, under these weights."""
        return dataclasses.replace(self.take(weight_P > 0), weight_P=weight_P[weight_P > 0])

    def with_loss(self, loss_P: np.ndarray) -> "Points":
        """The same runs with other losses."""
        return dataclasses.replace(self, loss_P=loss_P)


def make_points(n: Sequence[float], d: Sequence[float], loss: Sequence[float]) -> Points:
    """Points of equal weight whose compute is 6 N D."""
    n_P, d_P, loss_P = (np.asarray(values, np.float64) for values in (n, d, loss))
    return Points(n_P, d_P, FLOPS_PER_PARAMETER_AND_TOKEN * n_P * d_P, loss_P, np.ones_like(n_P))


def load(
    path: pathlib.Path,
    *,
    n: str,
    loss: str,
    d: str | None = None,
    c: str | None = None,
    weight: str | None = None,
    drop_highest: int = 0,
) -> Points:
    """Read runs from a CSV file with a header, or from JSON lines, by the names of their columns.

    Args:
        path: a .csv or .jsonl file.
        n, loss, d, c, weight: names of columns. Of tokens `d` and compute `c` one may be left out: C = 6 N D.
        drop_highest: how many of the highest losses are left out, as outliers.

    Raises UserError naming the line and the column of the first value that is not a finite, positive number.
    """
    rows = _read(path)
    if d is None and c is None:
        known = ", ".join(repr(column) for column in rows[0][1] if column)
        fix = f"name the column of one of them: {path} has {known}"
        raise UserError("neither tokens nor compute is named", where="--d, --c", fix=fix)
    columns = {name: _column(path, rows, name) for name in (n, d, c, loss, weight) if name is not None}
    n_P, loss_P = columns[n], columns[loss]
    d_P = columns[d] if d is not None else columns[str(c)] / (FLOPS_PER_PARAMETER_AND_TOKEN * n_P)
    c_P = columns[c] if c is not None else FLOPS_PER_PARAMETER_AND_TOKEN * n_P * d_P
    points = Points(n_P, d_P, c_P, loss_P, columns[weight] if weight is not None else np.ones_like(n_P))
    if not 0 <= drop_highest < len(points):
        raise UserError(
            f"{drop_highest} of {len(points)} runs", where="--drop_highest", fix="leave some runs to be fitted"
        )
    # Stable: of equal losses the later runs go.
    return points.take(np.sort(np.argsort(loss_P, kind="stable")[: len(points) - drop_highest]))


def _read(path: pathlib.Path) -> list[tuple[int, Mapping[str, Any]]]:
    """(line number, row) pairs."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            if path.suffix == ".jsonl":
                rows = [(number, _json(path, number, line)) for number, line in enumerate(file, 1) if line.strip()]
            else:
                reader = csv.DictReader(file)
                rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else type(error).__name__
        fix = "give a .csv file with a header, or a .jsonl file"
        raise UserError(f"cannot be read ({reason})", where=str(path), fix=fix) from error
    if not rows:
        raise UserError("no runs in it", where=str(path), fix="give a line for each run, in a .csv below a header")
    return rows


def _json(path: pathlib.Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError("not JSON", where=f"{path}, line {number}") from error
    if not isinstance(row, dict):
        raise UserError("not a JSON object", where=f"{path}, line {number}")
    return row


def _column(path: pathlib.Path, rows: Sequence[tuple[int, Mapping[str, Any]]], name: str) -> np.ndarray:
    values = []
    for number, row in rows:
        if name not in row:
            known = ", ".join(repr(column) for column in rows[0][1] if column)
            raise UserError(f"no column {name!r}", where=f"{path}, line {number}", fix=f"it has {known}")
        try:
            value = float(row[name])
        except (TypeError, ValueError):
            value = float("nan")
        if not (np.isfinite(value) and value > 0):
            raise UserError("not a finite, positive number", where=f"{path}, line {number}, column {name!r}")
        values.append(value)
    return np.array(values)
