"""Tokenizer: validated MEDS events in, token sequences out, by columns and never event by event.

A subject's timeline is: static prefix (sex, race, age and calendar period at the first event), then for each event the
interval token that leads to it (where the gap is long enough), its code's one to three tokens, and its decile token if
it has a value; then TIMELINE_END. Events of one instant stand in order of kind, then concept, then value, so that the
tokens are a function of the data alone and not of the order of its rows.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import polars as pl

from data_pipeline import static_prefix
from data_pipeline.code_maps import Concept
from data_pipeline.columns import BIRTH, DROP, NO_TIME, RACE, SEX, Columns, ancestors, changes, per_code, to_columns
from data_pipeline.corpus import SubjectRecord
from data_pipeline.vocabulary import DECILES, KINDS, PREFIX_LENGTH, TIMELINE_END, Vocabulary

_US_PER_SECOND = 1_000_000


@dataclasses.dataclass(frozen=True)
class TokenizedSubjects:
    """Tokens of S subjects, end to end, with what the corpus manifest counts.

    Attributes:
        subject_ids_S: int64.
        offsets_S1: subject s owns tokens [offsets[s], offsets[s + 1]).
        tokens_T: uint16.
        times_T: int64 microseconds of the event that each token belongs to (an interval belongs to the event it leads
            to, the prefix to the first event), NO_TIME where the subject has no event.
        prefix_offsets_S1, prefix_starts, prefixes: each subject's rows of corpus.SubjectRecord's fields.
        interval_us_I, interval_tokens_I: per interval of the preset, time spanned and tokens used.
        row_counts: the input's rows by what became of them; they sum to the number of rows.
    """

    subject_ids_S: np.ndarray
    offsets_S1: np.ndarray
    tokens_T: np.ndarray
    times_T: np.ndarray
    prefix_offsets_S1: np.ndarray
    prefix_starts: np.ndarray
    prefixes: np.ndarray
    interval_us_I: np.ndarray
    interval_tokens_I: np.ndarray
    row_counts: Mapping[str, int]

    def record(self, index: int) -> SubjectRecord:
        """The corpus record of the index-th subject."""
        tokens = slice(self.offsets_S1[index], self.offsets_S1[index + 1])
        prefix = slice(self.prefix_offsets_S1[index], self.prefix_offsets_S1[index + 1])
        return SubjectRecord(
            int(self.subject_ids_S[index]), self.tokens_T[tokens], self.prefix_starts[prefix], self.prefixes[prefix]
        )

    def records(self) -> Iterator[SubjectRecord]:
        """Every subject's corpus record, in order."""
        return (self.record(index) for index in range(len(self.subject_ids_S)))


def tokenize(events: pl.DataFrame, vocabulary: Vocabulary, *, end: bool = True) -> TokenizedSubjects:
    """Tokenize whole subjects.

    Args:
        events: as meds.read_shard returns them: subjects contiguous, static rows first, then by time.
        vocabulary: the corpus's; codes that it lacks become a shorter code that it has, or UNKNOWN//<kind>.
        end: whether TIMELINE_END closes each timeline; False for prompts, whose future is open.
    """
    columns = to_columns(events, vocabulary.code_map)
    codes = _CodeTable.build(columns.concepts, vocabulary)
    timeline = _order_events(columns, codes)
    spelling = _spell(timeline, codes, vocabulary)
    return _lay_out(columns, timeline, spelling, vocabulary, end, _count_rows(columns, timeline))


@dataclasses.dataclass(frozen=True)
class _CodeTable:
    """What each of a shard's codes (C) becomes, and what each vocabulary event (V) is spelt with."""

    event_C: np.ndarray  # index into vocabulary.events; -1 where the code makes no event
    whole_C: np.ndarray  # whether the vocabulary has the whole code, not only a shorter one
    order_C: np.ndarray  # rank within an instant
    tokens_Vx3: np.ndarray  # -1 where there is no further part
    edges_Vx9: np.ndarray
    takes_value_V: np.ndarray
    wants_value_V: np.ndarray
    unknown_V: np.ndarray  # the UNKNOWN event of the event's kind

    @classmethod
    def build(cls, concepts: Sequence[Concept], vocabulary: Vocabulary) -> "_CodeTable":
        events = vocabulary.events
        by_order = sorted(range(len(concepts)), key=lambda code: (instant_rank(concepts[code]), concepts[code].name))
        order_C = np.empty(len(concepts), np.int64)
        order_C[by_order] = np.arange(len(concepts))
        tokens_Vx3 = np.full((len(events), 3), -1, np.int64)
        edges_Vx9 = np.full((len(events), DECILES - 1), np.inf)
        for index, event in enumerate(events):
            tokens_Vx3[index, : len(event.tokens)] = event.tokens
            if event.edges:
                edges_Vx9[index] = event.edges
        unknown_of_kind = {
            event.kind: index for index, event in enumerate(events) if event.concept == f"UNKNOWN//{event.kind}"
        }
        return cls(
            event_C=per_code([find_event(concept, vocabulary) for concept in concepts], np.int64),
            whole_C=per_code([concept.name in vocabulary.event_of_concept for concept in concepts], bool),
            order_C=order_C,
            tokens_Vx3=tokens_Vx3,
            edges_Vx9=edges_Vx9,
            takes_value_V=np.array([event.value != "never" for event in events]),
            wants_value_V=np.array([event.value == "always" for event in events]),
            unknown_V=np.array([unknown_of_kind.get(event.kind, -1) for event in events]),
        )


def instant_rank(concept: Concept) -> int:
    """Rank of a concept's kind within one instant: an encounter's start before all it holds, its end after."""
    return KINDS.index("VALUE") if concept.role == "end" else KINDS.index(concept.kind)


def find_event(concept: Concept, vocabulary: Vocabulary) -> int:
    """Vocabulary event of a concept: itself, else a shorter code, else UNKNOWN//<kind>; -1 if it makes no event."""
    if concept.role in (SEX, RACE, BIRTH, DROP):
        return -1
    for ancestor in ancestors(concept):
        if ancestor.name in vocabulary.event_of_concept:
            return vocabulary.event_of_concept[ancestor.name]
    return vocabulary.unknown_event(concept.kind)


@dataclasses.dataclass(frozen=True)
class _Timeline:
    """The events that become tokens, n of them, in the order in which they do."""

    row_n: np.ndarray  # row of the input
    subject_n: np.ndarray
    time_n: np.ndarray
    event_n: np.ndarray  # index into vocabulary.events
    whole_n: np.ndarray
    decile_n: np.ndarray  # 0 = no value token
    lacks_value_n: np.ndarray
    unknown_n: np.ndarray


def _order_events(columns: Columns, codes: _CodeTable) -> _Timeline:
    row_n = np.flatnonzero(columns.makes_event())
    instant_n = np.cumsum(changes(columns.subject_E[row_n]) | changes(columns.time_E[row_n]))
    rank_n = instant_n * len(columns.concepts) + codes.order_C[columns.code_E[row_n]]
    # Rows come sorted by subject and time; the value breaks ties between readings of one thing at one instant.
    row_n = row_n[np.lexsort((columns.value_E[row_n], rank_n))]
    code_n, value_n = columns.code_E[row_n], columns.value_E[row_n]
    event_n = codes.event_C[code_n]
    decile_n = np.zeros(len(row_n), np.int64)
    valued = np.flatnonzero(codes.takes_value_V[event_n] & ~np.isnan(value_n))
    decile_n[valued] = 1 + (value_n[valued, None] > codes.edges_Vx9[event_n[valued]]).sum(axis=1)
    # A code that always had a value in training and has none here can't be spelt: the grammar wants its decile.
    lacks_value_n = codes.wants_value_V[event_n] & (decile_n == 0)
    event_n = np.where(lacks_value_n, codes.unknown_V[event_n], event_n)
    return _Timeline(
        row_n=row_n,
        subject_n=columns.subject_E[row_n],
        time_n=columns.time_E[row_n],
        event_n=event_n,
        whole_n=codes.whole_C[code_n],
        decile_n=decile_n,
        lacks_value_n=lacks_value_n,
        unknown_n=event_n == codes.unknown_V[event_n],
    )


@dataclasses.dataclass(frozen=True)
class _Spelling:
    """How many tokens each event takes, and which."""

    interval_n: np.ndarray  # index into the preset; -1 = no interval before this event
    repeats_n: np.ndarray
    gap_us_n: np.ndarray
    parts_nx4: np.ndarray  # code parts and decile; -1 = nothing
    length_n: np.ndarray


def _spell(timeline: _Timeline, codes: _CodeTable, vocabulary: Vocabulary) -> _Spelling:
    first_n = changes(timeline.subject_n)
    gap_us_n = np.where(first_n, 0, np.diff(timeline.time_n, prepend=timeline.time_n[:1]))
    interval_n, repeats_n = vocabulary.interval_preset.classify(gap_us_n / _US_PER_SECOND)
    value_ids = np.array([-1, *vocabulary.value_ids])
    parts_nx4 = np.column_stack((codes.tokens_Vx3[timeline.event_n], value_ids[timeline.decile_n]))
    return _Spelling(interval_n, repeats_n, gap_us_n, parts_nx4, repeats_n + (parts_nx4 >= 0).sum(axis=1))


def _lay_out(
    columns: Columns,
    timeline: _Timeline,
    spelling: _Spelling,
    vocabulary: Vocabulary,
    end: bool,
    row_counts: Mapping[str, int],
) -> TokenizedSubjects:
    num_subjects = len(columns.subject_ids_S)
    # Tokens of a subject: prefix, its events, end. An event starts after all tokens of the subjects and events before.
    events_S = np.bincount(timeline.subject_n, weights=spelling.length_n, minlength=num_subjects).astype(np.int64)
    offsets_S1 = np.concatenate(([0], np.cumsum(PREFIX_LENGTH + events_S + end)))
    own_n = PREFIX_LENGTH + (PREFIX_LENGTH + end) * timeline.subject_n
    start_n = own_n + np.cumsum(spelling.length_n) - spelling.length_n

    tokens_T = np.zeros(offsets_S1[-1], np.uint16)
    interval_ids = np.array(vocabulary.interval_ids)
    for repeat in range(int(spelling.repeats_n.max(initial=0))):
        longer = np.flatnonzero(spelling.repeats_n > repeat)
        tokens_T[start_n[longer] + repeat] = interval_ids[spelling.interval_n[longer]]
    position_n = start_n + spelling.repeats_n
    for part_n in spelling.parts_nx4.T:
        there = np.flatnonzero(part_n >= 0)
        tokens_T[position_n[there]] = part_n[there]
        position_n[there] += 1
    if end:
        tokens_T[offsets_S1[1:] - 1] = vocabulary.ids[TIMELINE_END]

    prefix = static_prefix.prefixes(columns, timeline.subject_n, timeline.time_n, vocabulary)
    first_S1 = np.searchsorted(timeline.subject_n, np.arange(num_subjects + 1))
    tokens_T[offsets_S1[:-1, None] + np.arange(PREFIX_LENGTH)] = prefix.tokens[prefix.offsets_S1[:-1]]
    # A change of prefix holds from the first token of the event that brings it; a subject's first holds from 0.
    starts = np.where(prefix.event >= 0, start_n[prefix.event] if len(start_n) else 0, 0)
    starts = np.maximum(starts - offsets_S1[prefix.subject], 0)
    starts[prefix.offsets_S1[:-1]] = 0

    num_intervals = len(vocabulary.interval_ids)
    passed = spelling.interval_n >= 0
    return TokenizedSubjects(
        subject_ids_S=columns.subject_ids_S,
        offsets_S1=offsets_S1,
        tokens_T=tokens_T,
        times_T=_token_times(timeline, spelling, first_S1, end),
        prefix_offsets_S1=prefix.offsets_S1,
        prefix_starts=starts.astype(np.uint32),
        prefixes=prefix.tokens,
        interval_us_I=_sum_by(spelling.interval_n[passed], spelling.gap_us_n[passed], num_intervals),
        interval_tokens_I=_sum_by(spelling.interval_n[passed], spelling.repeats_n[passed], num_intervals),
        row_counts=row_counts,
    )


def _token_times(timeline: _Timeline, spelling: _Spelling, first_S1: np.ndarray, end: bool) -> np.ndarray:
    """Time of the event that each token belongs to: the prefix has the first event's, TIMELINE_END the last's."""
    has_events = first_S1[1:] > first_S1[:-1]
    time_or_none = np.append(timeline.time_n, NO_TIME)
    first_S = np.where(has_events, time_or_none[first_S1[:-1]], NO_TIME)
    last_S = np.where(has_events, time_or_none[first_S1[1:] - 1], NO_TIME)
    pieces = np.insert(timeline.time_n, first_S1[:-1], first_S) if len(first_S) else timeline.time_n
    lengths = np.insert(spelling.length_n, first_S1[:-1], PREFIX_LENGTH) if len(first_S) else spelling.length_n
    if end:
        ends = first_S1[1:] + np.arange(1, len(first_S) + 1)
        pieces, lengths = np.insert(pieces, ends, last_S), np.insert(lengths, ends, 1)
    return np.repeat(pieces, lengths)


def _sum_by(index: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """Exact int64 sums of values by index: floating sums would depend on the order of the shards."""
    sums = np.zeros(size, np.int64)
    np.add.at(sums, index, values.astype(np.int64))
    return sums


def _count_rows(columns: Columns, timeline: _Timeline) -> dict[str, int]:
    unknown = timeline.unknown_n & ~timeline.lacks_value_n
    static = columns.has_role(SEX, RACE)
    other_roles = columns.has_role(SEX, RACE, BIRTH, DROP)
    return {
        "kept": int((timeline.whole_n & ~timeline.unknown_n).sum()),
        "shortened_code": int((~timeline.whole_n & ~timeline.unknown_n).sum()),
        "unknown_code": int(unknown.sum()),
        "missing_value": int(timeline.lacks_value_n.sum()),
        "static": int(static.sum()),
        "birth": int(columns.has_role(BIRTH).sum()),
        "dropped_by_rule": int(columns.has_role(DROP).sum()),
        "undated": int(((columns.time_E == NO_TIME) & ~other_roles).sum()),
    }
