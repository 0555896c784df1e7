"""Prompts whose futures are drawn, kept on disk as they finish: what a kill can't take.

FOLDER/NNNNNN.parquet                of prompts that finished about together, a row for each sample: its tokens, and
                                     what it adds to risks; each file written whole under another name, then renamed
FOLDER/part_I_of_N_NNNNNN.parquet    the same, of one of several processes that draw the prompts together
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from cometjax.anticipation import Terms
from cometjax.futures import Future, Prompt
from data_pipeline.errors import UserError

# A part holds the prompts that finished within so many seconds: what a kill may cost.
PART_SECONDS = 30.0
_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "prompt": pl.Int64,
    "sample": pl.Int64,
    "stop": pl.String,
    "start_seconds": pl.Int64,
    "tokens": pl.List(pl.Int32),
    "clock": pl.List(pl.Int64),
    "share": pl.List(pl.Float64),
    "cut": pl.List(pl.Boolean),
    "time": pl.List(pl.Int64),
    "term": pl.List(pl.Float64),
    "end": pl.List(pl.Int64),
}


@dataclasses.dataclass(frozen=True)
class Finished:
    """A prompt's S futures, without hazards, and what each adds to K risks (`cometjax.anticipation`; K may be 0).
    Where more samples may follow, the terms of that too, which are to be weighed with theirs."""

    futures: Sequence[Future]
    share_SxK: np.ndarray
    cut_SxK: np.ndarray
    terms_S: Sequence[Terms] = ()


class FinishedPrompts:
    """The finished prompts of a folder, which the first file makes; without a folder, only those of this process.

    `writer` begins the names of the files that are written: processes that share a folder have one each.

    Attributes:
        by_index: by number of the prompt, as the folder was when this was made; `add` adds to it.
    """

    def __init__(self, folder: pathlib.Path | None, prompts: Sequence[Prompt], writer: str = "") -> None:
        self._folder, self._prompts, self._writer = folder, prompts, writer
        self._part: dict[int, Finished] = {}
        self._written = time.monotonic()
        self.by_index: dict[int, Finished] = {}
        for path in sorted(folder.glob("*.parquet")) if folder else ():
            self.by_index |= self._read(path)

    def add(self, index: int, finished: Finished) -> None:
        """Keep a prompt's futures; on disk at the next part. Raises UserError where that cannot be written."""
        self.by_index[index] = finished
        if self._folder is None:
            return
        self._part[index] = finished
        if time.monotonic() - self._written >= PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is not yet on disk."""
        if self._folder and self._part:
            self._write_part(self._folder, self._part)
        self._part, self._written = {}, time.monotonic()

    def _write_part(self, folder: pathlib.Path, part: dict[int, Finished]) -> None:
        rows = [
            (index, f.sample, f.stop, f.start_seconds, *_lists_of(f), share_K.tolist(), cut_K.tolist(), *terms)
            for index, finished in part.items()
            for f, share_K, cut_K, terms in zip(
                finished.futures, finished.share_SxK, finished.cut_SxK, _columns_of_terms(finished), strict=True
            )
        ]
        number = sum(1 for _ in folder.glob(f"{self._writer}*.parquet"))
        table = pl.DataFrame(rows, schema=_SCHEMA, orient="row")
        write_whole(folder / f"{self._writer}{number:06d}.parquet", table.write_parquet)

    def _read(self, path: pathlib.Path) -> dict[int, Finished]:
        found = {}
        for (index,), rows in pl.read_parquet(path).group_by("prompt", maintain_order=True):
            prompt = self._prompts[index]
            columns = rows.select("sample", "stop", "start_seconds", "tokens", "clock")
            futures = [
                Future(
                    prompt.subject_id,
                    prompt.prediction_time_us,
                    sample,
                    np.array(tokens, np.int32),
                    stop,
                    start,
                    drawn_clock_T=None if clock is None else np.array(clock, np.int64),
                )
                for sample, stop, start, tokens, clock in columns.iter_rows()
            ]
            share_SxK, cut_SxK = (np.array(rows.get_column(name).to_list()) for name in ("share", "cut"))
            cut_SxK = cut_SxK.astype(bool)
            terms_S = [
                Terms(np.array(time, np.int64), np.reshape(term, (len(time), len(end))), np.array(end, np.int64), cut_K)
                for cut_K, (time, term, end) in zip(
                    cut_SxK, rows.select("time", "term", "end").iter_rows(), strict=True
                )
                if time is not None
            ]
            found[index] = Finished(futures, share_SxK.astype(np.float64), cut_SxK, terms_S)
        return found


def _lists_of(future: Future) -> tuple[list[int], list[int] | None]:
    return future.tokens_T.tolist(), None if future.drawn_clock_T is None else future.drawn_clock_T.tolist()


def _columns_of_terms(finished: Finished) -> list[tuple[list[int] | None, ...]]:
    if not finished.terms_S:
        return [(None, None, None)] * len(finished.futures)
    return [(own.time_I.tolist(), own.term_IxK.ravel().tolist(), own.end_K.tolist()) for own in finished.terms_S]


def write_whole(path: pathlib.Path, write: Callable[[pathlib.Path], object]) -> None:
    """Write a file under another name and rename it. Raises UserError where that fails, and leaves nothing behind."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        partial.rename(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"cannot be written ({error.strerror})", where=str(path), fix="check space and rights; then start again"
        ) from error
