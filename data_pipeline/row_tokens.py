"""Reading packed rows: the tokens of their segments, in the two bytes a token in which they are stored.

What a batch holds beside the tokens follows from the packing plan (`data_pipeline.loader` expands it), so this is all
that is read from disk, and all that travels from a worker process.

B rows   L row length   S segments of all B rows, in order
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from data_pipeline.corpus import SubjectRecord
from data_pipeline.packing import RowPlan


class RecordSource(Protocol):
    """What the loader needs of a split; `data_pipeline.corpus.SplitReader` is one."""

    name: str

    @property
    def lengths_R(self) -> np.ndarray:
        """uint32 tokens of each record."""

    def records(self, indices: Sequence[int]) -> list[SubjectRecord]:
        """The records of these numbers, in their order."""


class RowTokens(NamedTuple):
    """Tokens of packed rows.

    Attributes:
        tokens_BxL: uint16, 0 where a row is padded.
        last_target_S: uint16, what follows each segment's last token in its record. Elsewhere in a segment the target
            is the next token of the row.
    """

    tokens_BxL: np.ndarray
    last_target_S: np.ndarray


def read(split: RecordSource, rows: Sequence[RowPlan], row_length: int, prefix_length: int) -> RowTokens:
    """Read the segments of `rows`; raises UserError when a file is damaged."""
    records_S, starts_S, lengths_S = (
        np.concatenate([row[part] for row in rows]).tolist() if rows else [] for part in range(3)
    )
    tokens_BxL = np.zeros((len(rows), row_length), np.uint16)
    last_target_S = np.empty(len(records_S), np.uint16)
    contents = split.records(records_S)
    segment = 0
    for tokens_L, row in zip(tokens_BxL, rows, strict=True):
        begin = 0
        for _ in range(len(row.record_S)):
            record, start, end = contents[segment], starts_S[segment], begin + lengths_S[segment]
            if start:
                tokens_L[begin : begin + prefix_length] = record.prefix_at(start)
                begin += prefix_length
            stop = start + end - begin
            tokens_L[begin:end] = record.tokens_T[start:stop]
            last_target_S[segment] = record.tokens_T[stop]
            begin, segment = end, segment + 1
    return RowTokens(tokens_BxL, last_target_S)
