"""The files of an evaluation's folder."""

import pathlib
from collections.abc import Mapping
from typing import Any

import polars as pl

from cometjax import output_folder, workdir
from cometjax.estimators import KEYS
from cometjax.labels import VALUE_COLUMN

_ROW = list(KEYS)
# Of the model's own risk, before `cometjax.shrinkage` makes a prediction of it.
_RISK = ("standard_error", "samples", "truncated", "reliability")
_AMOUNTS = ("mean", "standard_error", "low", "median", "high")


def write(
    out: pathlib.Path,
    results: Mapping[str, Any],
    risks: Mapping[str, pl.DataFrame],
    amounts: Mapping[str, pl.DataFrame],
    page: str,
) -> None:
    """Write results.json, report.html, and of each task (by name: its rows with what was estimated) labels,
    predictions and, where these are of a risk, that with its standard error. Raises UserError where the folder cannot
    be written."""
    with output_folder.whole(out) as partial:
        for folder in ("labels", "predictions", *(["risks"] if risks else [])):
            (partial / folder).mkdir()
        for name, table in risks.items():
            labels = table.select(*_ROW, "boolean_value")
            labels.write_parquet(partial / "labels" / f"{name}.parquet")
            # The schema of meds-evaluation; no threshold is chosen here, so no predicted class.
            labels.with_columns(
                pl.lit(None, pl.Boolean).alias("predicted_boolean_value"),
                table.get_column("risk").alias("predicted_boolean_probability"),
            ).write_parquet(partial / "predictions" / f"{name}.parquet")
            # A file of its own: that schema refuses columns beyond its own.
            own = table.select(*_ROW, pl.col("estimate").alias("risk"), *_RISK)
            own.write_parquet(partial / "risks" / f"{name}.parquet")
        for name, table in amounts.items():
            columns = [*_ROW, VALUE_COLUMN[results["amounts"][name]["kind"]]]
            table.select(columns).write_parquet(partial / "labels" / f"{name}.parquet")
            # meds-evaluation has no schema for amounts: the label's columns, and what `cometjax.amounts` estimates.
            table.select(*columns, *_AMOUNTS).write_parquet(partial / "predictions" / f"{name}.parquet")
        workdir.write_json(partial / "results.json", results)
        workdir.write_text(partial / "report.html", page)
