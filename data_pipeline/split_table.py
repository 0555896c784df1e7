"""Which split each subject is in, as sorted arrays that any number of workers look up without holding them."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Iterable

import numpy as np
import polars as pl

from data_pipeline import build_job, corpus, meds, pieces
from data_pipeline.build_folder import BuildFolder
from data_pipeline.errors import UserError

NO_SPLIT = 255
# A split has a folder of that name in the corpus.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


@dataclasses.dataclass(frozen=True)
class SplitTable:
    """Splits of N subjects.

    Attributes:
        names: of the splits, the standard ones first.
        subject_ids_N: int64, rising.
        split_N: uint8, index into names.
    """

    names: tuple[str, ...]
    subject_ids_N: np.ndarray
    split_N: np.ndarray

    @classmethod
    def of(cls, splits: pl.DataFrame, where: pathlib.Path) -> "SplitTable":
        """From a data set's [subject_id, split].

        Raises UserError naming `where` when there are too many splits, or one whose name cannot be a folder's.
        """
        there = set(splits["split"].unique())
        if not all(_NAME.fullmatch(name) and name not in (corpus.MANIFEST, corpus.VOCABULARY) for name in there):
            raise UserError(
                "a split's name cannot be a folder's",
                where=str(where),
                fix="use train, tuning and held_out, or letters, digits, _, - and .",
            )
        names = (*meds.SPLITS, *sorted(there - set(meds.SPLITS)))
        if len(names) >= NO_SPLIT:
            raise UserError(f"{len(there)} different splits", where=str(where), fix="use train, tuning and held_out")
        ordered = splits.sort("subject_id")
        split_N = ordered["split"].replace_strict(names, range(len(names)), return_dtype=pl.UInt8)
        return cls(names, ordered["subject_id"].to_numpy(), split_N.to_numpy())

    def refuse_misnamed(self, where: pathlib.Path) -> None:
        """Raise UserError where subjects are in other splits while a standard one has nobody: a "test", say, that the
        evaluation would look for as held_out. Splits besides the standard ones are fine."""
        there = {self.names[index] for index in np.unique(self.split_N)}
        absent = [name for name in meds.SPLITS if name not in there]
        others = sorted(there - set(meds.SPLITS))
        if absent and others:
            raise UserError(
                f"nobody is in {' or '.join(absent)}; its splits are {', '.join(sorted(there))}",
                where=str(where / "metadata" / "subject_splits.parquet"),
                fix=f"rename them to {', '.join(meds.SPLITS[:-1])} and {meds.SPLITS[-1]}",
            )

    def count_without(self, ids_of_files: Iterable[np.ndarray]) -> int:
        """How many subjects of the table are in none of the arrays: without events, or in a file that is missing."""
        found_N = np.zeros(len(self.subject_ids_N), bool)
        for ids in ids_of_files:
            place = np.searchsorted(self.subject_ids_N, ids)
            place = place[place < len(found_N)]
            found_N[place[np.isin(self.subject_ids_N[place], ids)]] = True
        return int(len(found_N) - found_N.sum())

    @functools.cached_property
    def key(self) -> str:
        """Digest of the content."""
        return build_job.key(self.names, build_job.array_key(self.subject_ids_N, self.split_N))

    def save(self, folder: BuildFolder) -> None:
        """Write the arrays where `look_up` finds them."""
        for name, array in (("subject_ids", self.subject_ids_N), ("splits", self.split_N)):
            path = folder.subjects("splits", self.key, name)
            if not path.exists():
                save_array(folder, path, array)


def look_up(folder: BuildFolder, key: str, subject_ids_S: np.ndarray) -> np.ndarray:
    """uint8 [S]: index into the table's names of each subject's split; NO_SPLIT where it has none."""
    ids_N = np.load(folder.subjects("splits", key), mmap_mode="r")
    split_N = np.load(folder.subjects("splits", key, "splits"), mmap_mode="r")
    if not len(ids_N):
        return np.full(len(subject_ids_S), NO_SPLIT)
    place_S = np.minimum(np.searchsorted(ids_N, subject_ids_S), len(ids_N) - 1)
    return np.where(ids_N[place_S] == subject_ids_S, split_N[place_S], NO_SPLIT)


def save_array(folder: BuildFolder, path: pathlib.Path, array: np.ndarray) -> None:
    """Write an .npy file, whole or not at all."""
    temporary = folder.temporary()
    with temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    pieces.install(temporary, path)
