"""Packing plans of large splits on disk: planned once, then mapped by every process of a host and by every restart.

<cache>/packing_plans/<key>/   one plan (`PackingPlan.save`); the key hashes all that the plan is a function of

118 million records are 40 s of planning and 1.6 GB. A plan that was not opened for UNUSED_DAYS is removed when the
next one is written.
"""

import hashlib
import os
import pathlib
import shutil
import time

import numpy as np

from data_pipeline import cache, packing
from data_pipeline.packing import PackingPlan

FOLDER = "packing_plans"
# Below, planning takes about as long as looking it up, and each process has a plan of its own.
STORED_RECORDS = packing.BLOCK_RECORDS
UNUSED_DAYS = 90


def plan(lengths_R: np.ndarray, *, row_length: int, prefix_length: int, seed: int) -> PackingPlan:
    """`packing.plan` of the same arguments, for more than STORED_RECORDS records from the cache.

    Of several processes that ask for the same plan at once, one plans, and the others wait and map its file.

    Raises UserError as `packing.plan` does, or when the cache cannot be written.
    """
    if len(lengths_R) <= STORED_RECORDS:
        return packing.plan(lengths_R, row_length=row_length, prefix_length=prefix_length, seed=seed)
    folder = cache.folder(FOLDER)
    stored = folder / _key(lengths_R, row_length, prefix_length, seed)
    found = _load(stored)
    if found is not None:
        return found
    with cache.locked(folder):
        found = _load(stored)  # written while this process waited
        if found is None:
            _remove_unused(folder)
            made = packing.plan(lengths_R, row_length=row_length, prefix_length=prefix_length, seed=seed)
            with cache.being_made(stored) as temporary:
                made.save(temporary)
            found = PackingPlan.load(stored)
    return found


def _key(lengths_R: np.ndarray, row_length: int, prefix_length: int, seed: int) -> str:
    digest = hashlib.sha256(f"{packing.VERSION} {row_length} {prefix_length} {seed} {lengths_R.dtype.str} ".encode())
    digest.update(np.ascontiguousarray(lengths_R).data)
    return digest.hexdigest()[:32]


def _load(stored: pathlib.Path) -> PackingPlan | None:
    """The plan in a folder, or None where it is missing or damaged."""
    try:
        plan = PackingPlan.load(stored)
        os.utime(stored)
    except (OSError, ValueError, EOFError):
        return None
    return plan


def _remove_unused(folder: pathlib.Path) -> None:
    oldest = time.time() - UNUSED_DAYS * 86_400
    for path in folder.iterdir():
        if path.is_dir() and path.stat().st_mtime < oldest:
            shutil.rmtree(path)
