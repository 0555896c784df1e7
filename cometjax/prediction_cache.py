"""Predictions of fitted baselines on disk, so that evaluating a model again does not fit them again.

<cache>/baseline_predictions/<key>/   predictions.npy, float64, one for each scored row; about.json, how it was fitted

The key hashes all that predictions are a function of. There are no subject ids and no times in the files. What was not
read for UNUSED_DAYS is removed when the next is written.
"""

import hashlib
import json
import os
import pathlib
import shutil
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from data_pipeline import cache, meds

FOLDER = "baseline_predictions"
UNUSED_DAYS = 90


def key(parts: Mapping[str, Any], *frames: pl.DataFrame) -> str:
    """Hash of a JSON object and of label frames, their order of rows included."""
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for frame in frames:
        for column in ("subject_id", "prediction_time", "boolean_value"):
            values = frame.get_column(column).to_physical().cast(pl.Int64).to_numpy()
            digest.update(f"{column} {len(values)} ".encode())
            digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()[:32]


def stamp(dataset: meds.MedsDataset) -> list[tuple[str, int, int]]:
    """Name, size and time of each file of events: they stand for its content, as they do for make and rsync."""
    return [
        (path.relative_to(dataset.root).as_posix(), path.stat().st_size, path.stat().st_mtime_ns)
        for path in dataset.shards
    ]


def load(name: str, rows: int) -> tuple[np.ndarray, dict[str, Any]] | None:
    """(predictions of so many rows, how they were made) under a key; None where missing or damaged."""
    stored = cache.folder(FOLDER) / name
    try:
        predictions_N = np.load(stored / "predictions.npy", allow_pickle=False)
        about = json.loads((stored / "about.json").read_text())
        os.utime(stored)
    except (OSError, ValueError, EOFError):
        return None
    usable = predictions_N.shape == (rows,) and predictions_N.dtype == np.float64 and isinstance(about, dict)
    return (predictions_N, about) if usable else None


def save(name: str, predictions_N: np.ndarray, about: Mapping[str, Any]) -> None:
    """Keep them; they appear whole or not at all. Raises UserError when the cache cannot be written."""
    folder = cache.folder(FOLDER)
    with cache.locked(folder):
        _remove_unused(folder)
        with cache.being_made(folder / name) as temporary:
            np.save(temporary / "predictions.npy", predictions_N.astype(np.float64), allow_pickle=False)
            (temporary / "about.json").write_text(json.dumps(dict(about)))


def _remove_unused(folder: pathlib.Path) -> None:
    oldest = time.time() - UNUSED_DAYS * 86_400
    for path in folder.iterdir():
        if path.is_dir() and path.stat().st_mtime < oldest:
            shutil.rmtree(path)
