"""The packing plan: which piece of which record lies in which row, as a pure function of (seed, lengths).

A record of n tokens x[0..n-1] gives n-1 positions: input x[i], target x[i+1]. Positions are cut into segments of at
most a row; a later segment begins again with the static prefix, whose positions carry no loss, so that every position
is learnt exactly once. Segments are packed into rows by best fit on the histogram of their lengths: rows that hold the
same lengths are handled together, so the search grows with the number of distinct lengths and not of records (after
Krell et al., "Efficient Sequence Packing without Cross-contamination", arXiv 2107.02027).

R records   G segments   S segments of one row
"""

import concurrent.futures
import dataclasses
import functools
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.errors import UserError

# Changes with whatever changes a plan: stored plans of other versions are not used.
VERSION = 1
# Records packed together. Large enough that the histogram costs nothing per record, small enough that the temporary
# arrays stay at a tenth of a gigabyte.
BLOCK_RECORDS = 1 << 20
# Segments longer than a row's SPREAD-th part are dealt out evenly, one to the emptiest row, as long as that fills rows.
SPREAD = 16
SPREAD_FILL = 0.99
MAX_SEED = 2**32
_ARRAYS = ("row_offsets_R1", "record_G", "start_G", "length_G")


class RowPlan(NamedTuple):
    """The segments of one row, in order.

    Attributes:
        record_S: uint32, number of the record.
        start_S: uint32, first token (position) that the segment covers; where not 0, the static prefix goes before.
        length_S: uint32, positions in the row, the static prefix's included.
    """

    record_S: np.ndarray
    start_S: np.ndarray
    length_S: np.ndarray


@dataclasses.dataclass(frozen=True)
class PackingPlan:
    """Rows of segments; row i can be read without row i-1.

    Attributes:
        row_offsets_R1: int64 [num_rows + 1]: row i holds segments row_offsets_R1[i] up to row_offsets_R1[i + 1].
        record_G, start_G, length_G: uint32, as in `RowPlan`, of all segments.
        row_length: positions in a row.
        prefix_length: tokens of static prefix with which a later segment of a record begins.
        seed: the seed of the packing and of the order of rows in each epoch.
    """

    row_offsets_R1: np.ndarray
    record_G: np.ndarray
    start_G: np.ndarray
    length_G: np.ndarray
    row_length: int
    prefix_length: int
    seed: int

    @property
    def num_rows(self) -> int:
        """Rows in an epoch."""
        return len(self.row_offsets_R1) - 1

    @functools.cached_property
    def fill(self) -> float:
        """Share of the rows' positions that is not padding."""
        return float(self.length_G.sum(dtype=np.int64)) / (self.num_rows * self.row_length)

    @functools.cached_property
    def tokens_per_epoch(self) -> int:
        """Targets with weight 1 in an epoch: every position of every record once."""
        windows = np.count_nonzero(self.start_G)
        return int(self.length_G.sum(dtype=np.int64)) - self.prefix_length * int(windows)

    def row(self, index: int) -> RowPlan:
        """Row `index` of the plan (0 .. num_rows - 1)."""
        if not 0 <= index < self.num_rows:
            raise IndexError(f"row {index} of {self.num_rows}")
        segments = slice(int(self.row_offsets_R1[index]), int(self.row_offsets_R1[index + 1]))
        return RowPlan(self.record_G[segments], self.start_G[segments], self.length_G[segments])

    def save(self, folder: pathlib.Path) -> None:
        """Write the arrays to `folder`, so that several processes can map one copy (`load`)."""
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)
        scalars = np.array([self.row_length, self.prefix_length, self.seed], np.int64)
        np.save(folder / "scalars.npy", scalars, allow_pickle=False)

    @classmethod
    def load(cls, folder: pathlib.Path) -> "PackingPlan":
        """The plan that `save` wrote, memory-mapped."""
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS]
        # A memmap's slices cost several times a plain array's: keep the mapping, drop the subclass.
        scalars = np.load(folder / "scalars.npy", allow_pickle=False)
        return cls(*(array.view(np.ndarray) for array in arrays), *(int(scalar) for scalar in scalars))

    def stream(self, place: int) -> RowPlan:
        """The row at `place` of the endless stream of epochs (`stream_row`)."""
        return self.row(stream_row(self, place))

    @functools.cached_property
    def _epochs(self) -> Any:
        import grain  # brings JAX, three seconds; the loader's workers import this module and need neither

        # Element g is epoch (g // num_rows)'s permutation at g % num_rows, by a block cipher and so without a table.
        return grain.MapDataset.range(self.num_rows).shuffle(seed=self.seed)


def stream_row(plan: PackingPlan, global_row: int) -> int:
    """Row of the plan at place `global_row` of the endless stream, in O(1).

    Each num_rows places are an epoch, which visits every row once, in an order of its own.
    """
    return int(plan._epochs[global_row])


def plan(lengths_R: np.ndarray, *, row_length: int, prefix_length: int, seed: int) -> PackingPlan:
    """Pack records of `lengths_R` tokens into rows of `row_length` positions.

    Args:
        lengths_R: tokens of each record, any integer type.
        row_length: positions in a row.
        prefix_length: tokens of static prefix that every later segment of a record begins with.
        seed: 0 .. 2**32 - 1.

    Raises:
        UserError: no records, a record of fewer than two tokens (nothing to predict: no tokenizer of ours writes one),
            a row that the prefix fills, or a seed out of range.
    """
    _validate(lengths_R, row_length, prefix_length, seed)
    # RandomState's streams are frozen for good (NEP 19), Generator's are not: the plan outlives a numpy release.
    random = np.random.RandomState(seed)
    order_R = np.arange(len(lengths_R), dtype=np.uint32)
    random.shuffle(order_R)
    num_segments = sum(
        int((1 + _num_windows(block - 1, row_length, prefix_length)).sum())
        for block in _blocks(lengths_R, BLOCK_RECORDS)
    )
    record_G, start_G, length_G = (np.empty(num_segments, np.uint32) for _ in range(3))
    sizes = [np.zeros(1, np.int64)]
    first = 0
    for block in _fitted_blocks(order_R, lengths_R, row_length, prefix_length):
        place, sizes_of_rows = _order_rows(block, random)
        for out_G, values in ((record_G, block.record), (start_G, block.start), (length_G, block.length)):
            out_G[first : first + len(place)][place] = values
        sizes.append(sizes_of_rows)
        first += len(place)
    return PackingPlan(np.cumsum(np.concatenate(sizes)), record_G, start_G, length_G, row_length, prefix_length, seed)


class _FittedBlock(NamedTuple):
    """Segments of one block (record, start, length), and the row and place in it that best fit found for each."""

    record: np.ndarray
    start: np.ndarray
    length: np.ndarray
    row: np.ndarray
    depth: np.ndarray
    num_rows: int


def _fitted_blocks(
    order_R: np.ndarray, lengths_R: np.ndarray, row_length: int, prefix_length: int
) -> Iterator[_FittedBlock]:
    """Cut and fit each block of records; the next one is fitted in a second thread while the caller uses this one."""

    def fit(records: np.ndarray) -> _FittedBlock:
        record, start, length = _cut(records, lengths_R[records].astype(np.int64) - 1, row_length, prefix_length)
        return _FittedBlock(record, start, length, *_pack(length, row_length))

    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        ahead = None
        for records in _blocks(order_R, BLOCK_RECORDS):
            current, ahead = ahead, thread.submit(fit, records)
            if current is not None:
                yield current.result()
        if ahead is not None:
            yield ahead.result()


def _validate(lengths_R: np.ndarray, row_length: int, prefix_length: int, seed: int) -> None:
    if row_length <= prefix_length:
        raise UserError(
            f"rows of {row_length} leave no room after a static prefix of {prefix_length} tokens",
            where="row_length",
            fix=f"make it at least {prefix_length + 1}",
        )
    if not 0 <= seed < MAX_SEED:
        raise UserError(f"{seed} is out of range", where="seed", fix="choose one from 0 to 2**32 - 1")
    if len(lengths_R) == 0:
        raise UserError("no records to pack", fix="choose a split that has subjects")
    for number, block in enumerate(_blocks(lengths_R, BLOCK_RECORDS)):
        if block.min() < 2:
            row = number * BLOCK_RECORDS + int(np.argmax(block < 2))
            raise UserError("has fewer than 2 tokens", where=f"record {row}", fix="rebuild the corpus")


def _blocks(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for begin in range(0, len(array), size):
        yield array[begin : begin + size]


def _num_windows(positions: np.ndarray, row_length: int, prefix_length: int) -> np.ndarray:
    """Segments that records of `positions` need after their first."""
    rest = np.maximum(positions.astype(np.int64) - row_length, 0)
    return -(-rest // (row_length - prefix_length))


def _cut(
    records: np.ndarray, positions: np.ndarray, row_length: int, prefix_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut records into segments: number of the record, start, length (prefix included) of each segment."""
    segments = 1 + _num_windows(positions, row_length, prefix_length)
    record = np.repeat(records, segments)
    # Number of the segment within its record: 0, 1, 2, ...
    window = np.arange(len(record)) - np.repeat(np.cumsum(segments) - segments, segments)
    fresh = row_length - prefix_length
    start = np.where(window > 0, row_length + (window - 1) * fresh, 0)
    prefix = np.where(window > 0, prefix_length, 0)
    length = np.minimum(np.repeat(positions, segments) - start + prefix, row_length)
    return record, start, length


def _pack(length_G: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Pack segments into rows: each segment's row, its place among the row's segments, and the number of rows."""
    # Radix sort, which numpy has for 16 bits, when they suffice. Stable: equal lengths stay in shuffled order.
    shorter_G = (row_length - length_G).astype(np.uint16 if row_length < 1 << 16 else np.uint32)
    order_G = np.argsort(shorter_G, kind="stable")
    counts = np.bincount(length_G, minlength=row_length + 1)
    runs, num_rows = _fit(counts, row_length, spread_above=row_length // SPREAD)
    if int(length_G.sum()) < SPREAD_FILL * num_rows * row_length:
        runs, num_rows = _fit(counts, row_length, spread_above=row_length)
    first, number, depth = (np.array(column) for column in zip(*runs, strict=True))
    # Runs lie in order of falling length, as order_G does: expand them to the row of each segment.
    row_G, depth_G = np.empty(len(length_G), np.int64), np.empty(len(length_G), np.int64)
    row_G[order_G] = np.repeat(first - (np.cumsum(number) - number), number) + np.arange(len(length_G))
    depth_G[order_G] = np.repeat(depth, number)
    return row_G, depth_G, num_rows


def _order_rows(block: _FittedBlock, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Put a block's rows in random order: each segment's place in that order, and segments per row."""
    size_of_row = np.bincount(block.row, minlength=block.num_rows)
    rows = random.permutation(np.flatnonzero(size_of_row))
    sizes = size_of_row[rows]
    begin_of_row = np.zeros(block.num_rows, np.int64)
    begin_of_row[rows] = np.cumsum(sizes) - sizes
    return begin_of_row[block.row] + block.depth, sizes


def _fit(counts: np.ndarray, row_length: int, *, spread_above: int) -> tuple[list[tuple[int, int, int]], int]:
    """Best fit, longest first, of counts[l] segments of each length l.

    Segments longer than `spread_above` go to the emptiest row instead, of as many rows as all segments need at the
    least. So rows resemble each other in mean length and attention cost, where best fit alone would lay like beside
    like.

    Returns:
        Runs (first row, number of rows, segments already in each of them), one segment to each row of a run, by falling
        length; and the number of rows, of which some may be empty.
    """
    # All rows of a chunk (first, end, segments in each) have had the same history. chunks[r]: those with r places free.
    chunks: list[list[tuple[int, int, int]]] = [[] for _ in range(row_length + 1)]
    # open_[r] is 1 where chunks[r] has any: a byte string searches faster than any tree does.
    open_ = bytearray(row_length + 1)
    num_rows = 0
    if spread_above < row_length:
        num_rows = -(-int(counts @ np.arange(row_length + 1)) // row_length)
        chunks[row_length].append((0, num_rows, 0))
        open_[row_length] = 1
    runs = []
    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        find = open_.rfind if length > spread_above else open_.find
        while left:
            free = find(1, length)
            if free < 0:
                free = row_length
                opened = max(1, left // (row_length // length))
                chunks[free].append((num_rows, num_rows + opened, 0))
                open_[free] = 1
                num_rows += opened
            first, end, depth = chunks[free].pop()
            number = min(left, end - first)
            if number < end - first:
                chunks[free].append((first + number, end, depth))
            open_[free] = bool(chunks[free])
            if free > length:
                chunks[free - length].append((first, first + number, depth + 1))
                open_[free - length] = 1
            runs.append((first, number, depth))
            left -= number
    return runs, num_rows
