"""The folder that an evaluation writes: it appears once, whole."""

import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import polars as pl

from cometjax import workdir
from cometjax.estimators import KEYS
from cometjax.labels import VALUE_COLUMN
from data_pipeline.errors import UserError

_ROW = list(KEYS)
_AMOUNTS = ("mean", "standard_error", "low", "median", "high")


def refuse_taken(out: pathlib.Path) -> None:
    """Raise UserError where the folder holds something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("is not an empty folder", where=str(out), fix="give a new folder, or remove this one")


def write(
    out: pathlib.Path,
    results: Mapping[str, Any],
    risks: Mapping[str, pl.DataFrame],
    amounts: Mapping[str, pl.DataFrame],
    page: str,
) -> None:
    """Write results.json, report.html, and of each task (by name: its rows with what was estimated) labels and
    predictions, to a folder beside `out` that is renamed when whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "labels").mkdir(parents=True)
    (partial / "predictions").mkdir()
    for name, table in risks.items():
        labels = table.select(*_ROW, "boolean_value")
        labels.write_parquet(partial / "labels" / f"{name}.parquet")
        # The schema of meds-evaluation; no threshold is chosen here, so no predicted class.
        labels.with_columns(
            pl.lit(None, pl.Boolean).alias("predicted_boolean_value"),
            table.get_column("risk").alias("predicted_boolean_probability"),
        ).write_parquet(partial / "predictions" / f"{name}.parquet")
    for name, table in amounts.items():
        columns = [*_ROW, VALUE_COLUMN[results["amounts"][name]["kind"]]]
        table.select(columns).write_parquet(partial / "labels" / f"{name}.parquet")
        # meds-evaluation has no schema for amounts: the label's columns, and what `cometjax.amounts` estimates.
        table.select(*columns, *_AMOUNTS).write_parquet(partial / "predictions" / f"{name}.parquet")
    workdir.write_json(partial / "results.json", results)
    workdir.write_text(partial / "report.html", page)
    if out.exists():
        out.rmdir()
    partial.rename(out)
