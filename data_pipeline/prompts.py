"""Prompts: a subject's tokens as of a prediction time, cut from MEDS so that nothing later can leak in."""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import polars as pl

from data_pipeline import grammar, meds, static_prefix
from data_pipeline.columns import BIRTH, changes, to_columns
from data_pipeline.corpus import SubjectRecord
from data_pipeline.errors import UserError
from data_pipeline.tokenizer import CodeTable, tokenize_columns
from data_pipeline.vocabulary import PREFIX_LENGTH, Vocabulary

# Events tokenized at once: each label row has a copy of its subject's, which bounds the memory.
EVENTS_AT_ONCE = 1_000_000


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The history of a subject up to and including a prediction time, without TIMELINE_END.

    Attributes:
        subject_id: the MEDS subject id.
        prediction_time_us: microseconds since 1970.
        record: tokens of the whole history, as in a corpus.
        last_time_us: time of the last event of the history; the prediction time where there is none.
        event_starts: token indices at which a window may begin: the first token of each entry (interval or event).
        birth_us: time of birth, NO_TIME where the history does not tell it.
    """

    subject_id: int
    prediction_time_us: int
    record: SubjectRecord
    last_time_us: int
    event_starts: np.ndarray
    birth_us: int

    def tokens(self, max_tokens: int) -> np.ndarray:
        """int32 tokens of the history; if longer than max_tokens, the static prefix and the latest whole entries."""
        tokens_T = self.record.tokens_T
        if len(tokens_T) <= max_tokens:
            return tokens_T.astype(np.int32)
        earliest = len(tokens_T) - (max_tokens - PREFIX_LENGTH)
        fitting = self.event_starts[self.event_starts >= earliest]
        start = int(fitting[0]) if len(fitting) else len(tokens_T)
        return np.concatenate((self.record.prefix_at(start), tokens_T[start:])).astype(np.int32)

    def prefix_before(self, tokens: int) -> np.ndarray:
        """The static prefix of a window that begins so many tokens before the end of the history."""
        return self.record.prefix_at(len(self.record.tokens_T) - tokens).astype(np.int32)

    def prefix_after(self, seconds: int, vocabulary: Vocabulary) -> np.ndarray:
        """The static prefix of a window that begins so many seconds after the prediction time."""
        time_us = self.prediction_time_us + 1_000_000 * seconds
        return static_prefix.later(self.record.prefixes[-1], time_us, self.birth_us, vocabulary).astype(np.int32)


def build_prompts(dataset: meds.MedsDataset, labels: pl.DataFrame, vocabulary: Vocabulary) -> list[Prompt]:
    """One prompt per row of `labels` (subject_id, prediction_time), in its order.

    A prompt holds the whole history: cohort filters choose what a model learns from, not what it may be asked.

    Raises UserError for a row whose subject has no data at or before its prediction time.
    """
    events = meds.read_subjects(dataset, labels["subject_id"].unique(), text_values=bool(vocabulary.texts))
    starts = _chunk_starts(events, labels)
    return [
        prompt
        for start, stop in itertools.pairwise([*starts, len(labels)])
        for prompt in _prompts(events, labels[start:stop], start, vocabulary)
    ]


def _chunk_starts(events: pl.DataFrame, labels: pl.DataFrame) -> list[int]:
    """The label rows at which a chunk begins: each has EVENTS_AT_ONCE events, and what its last row has beyond them."""
    of_subject = events.group_by("subject_id").len()
    sizes = labels.select("subject_id").join(of_subject, on="subject_id", how="left", maintain_order="left")
    events_n = sizes["len"].fill_null(0).to_numpy()
    before_n = np.cumsum(events_n, dtype=np.int64) - events_n
    return np.flatnonzero(changes(before_n // EVENTS_AT_ONCE)).tolist()


def _prompts(events: pl.DataFrame, labels: pl.DataFrame, first_row: int, vocabulary: Vocabulary) -> Iterator[Prompt]:
    labels = labels.select("subject_id", "prediction_time").with_row_index("row")
    # Each row becomes a subject of its own, whose events end at the prediction time: the tokenizer sees no later one.
    history = (
        labels.join(events, on="subject_id", how="inner", maintain_order="left_right")
        .filter(pl.col("time").is_null() | (pl.col("time") <= pl.col("prediction_time")))
        .drop("subject_id", "prediction_time")
        .rename({"row": "subject_id"})
        .with_columns(pl.col("subject_id").cast(pl.Int64))
    )
    columns = to_columns(history, vocabulary.code_map)
    tokenized = tokenize_columns(columns, CodeTable.build(columns.concepts, vocabulary), vocabulary, end=False)
    missing = np.setdiff1d(np.arange(len(labels)), tokenized.subject_ids_S)
    if len(missing):
        raise UserError(
            "the subject has no data at or before its prediction time",
            where=f"labels, row {first_row + int(missing[0])}",
            fix="remove the row",
        )
    starts_entry = grammar.entry_starts(tokenized.tokens_T, vocabulary)
    birth_us_S = static_prefix.first_time(columns, BIRTH)
    for index, (_, subject_id, _) in enumerate(labels.iter_rows()):
        begin, stop = tokenized.offsets_S1[index], tokenized.offsets_S1[index + 1]
        prediction_time_us = int(labels["prediction_time"].dt.epoch("us")[index])
        yield Prompt(
            subject_id=subject_id,
            prediction_time_us=prediction_time_us,
            record=dataclasses.replace(tokenized.record(index), subject_id=subject_id),
            last_time_us=int(tokenized.last_time_S[index]) if stop - begin > PREFIX_LENGTH else prediction_time_us,
            event_starts=np.flatnonzero(starts_entry[begin:stop]),
            birth_us=int(birth_us_S[index]),
        )
