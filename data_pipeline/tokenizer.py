"""Tokenizer: validated MEDS events in, token sequences out, by columns and never event by event.

A subject's timeline is: static prefix (sex, race, age and calendar period, as known at the first event), then for each
event the interval token that leads to it (where the gap is long enough), its code's one to three tokens, and its decile
token if it has a value; then TIMELINE_END, led by the interval since the last event where it is known until when the
subject was observed (data_pipeline.follow_up). Events of one instant stand in order of kind, then concept, then value,
so that the tokens are a function of the data alone and not of the order of its rows.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import polars as pl

from data_pipeline import follow_up, static_prefix
from data_pipeline.code_maps import ROLES_WITHOUT_EVENT, Concept
from data_pipeline.columns import (
    BIRTH,
    DROP,
    NO_TIME,
    OBSERVATION_END,
    RACE,
    SEX,
    Columns,
    changes,
    per_code,
    to_columns,
)
from data_pipeline.corpus import SubjectRecord
from data_pipeline.vocabulary import KINDS, PREFIX_LENGTH, TIMELINE_END, Vocabulary

_US_PER_SECOND = 1_000_000
# What becomes of a row that makes an event, in the order in which `CodeTable.fate_L` numbers it.
_EVENT_FATES = ("kept", "shortened_code", "unknown_code", "missing_value")
_RANKS = {kind: rank for rank, kind in enumerate(KINDS)}


@dataclasses.dataclass(frozen=True)
class TokenizedSubjects:
    """Tokens of S subjects, end to end, with what the corpus manifest counts.

    Attributes:
        subject_ids_S: int64.
        offsets_S1: subject s owns tokens [offsets[s], offsets[s + 1]).
        tokens_T: uint16.
        last_time_S: int64 microseconds of each subject's last event, NO_TIME where it has none.
        prefix_offsets_S1, prefix_starts, prefixes: each subject's rows of corpus.SubjectRecord's fields.
        interval_us_I, interval_tokens_I: per interval of the preset, time spanned and tokens used between events.
        interval_histogram: `IntervalPreset.histogram` of the gaps between events.
        row_counts: the input's rows by what became of them; they sum to the number of rows.
        open_ended: living subjects of whom no end of observation is told, or one before their last event, though the
            vocabulary knows follow-up.
    """

    subject_ids_S: np.ndarray
    offsets_S1: np.ndarray
    tokens_T: np.ndarray
    last_time_S: np.ndarray
    prefix_offsets_S1: np.ndarray
    prefix_starts: np.ndarray
    prefixes: np.ndarray
    interval_us_I: list[int]
    interval_tokens_I: list[int]
    interval_histogram: np.ndarray
    row_counts: Mapping[str, int]
    open_ended: int = 0

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
    """`tokenize_columns` of events as meds.read_shard returns them: subjects contiguous, static rows first, by time."""
    columns = to_columns(events, vocabulary.code_map)
    return tokenize_columns(columns, CodeTable.build(columns.concepts, vocabulary), vocabulary, end=end)


def tokenize_columns(
    columns: Columns,
    codes: "CodeTable",
    vocabulary: Vocabulary,
    *,
    end: bool = True,
    observed_until: str = follow_up.AUTO,
    latest_us_S: np.ndarray | None = None,
) -> TokenizedSubjects:
    """Tokenize whole subjects.

    Args:
        columns: their rows, made with the vocabulary's code map.
        codes: what the vocabulary makes of `columns.concepts`.
        vocabulary: the corpus's; codes that it lacks become a shorter code that it has, or UNKNOWN//<kind>.
        end: whether TIMELINE_END closes each timeline; False for prompts, whose future is open.
        observed_until: as of `follow_up.ends`, where the vocabulary knows follow-up.
        latest_us_S: no subject is observed later than this; None: that is not bounded.
    """
    timeline = _order_events(columns, codes, vocabulary)
    last_time_S = _last_times(timeline, len(columns.subject_ids_S))
    silence = _Silence.none(len(last_time_S))
    open_ended = 0
    if end and vocabulary.knows_follow_up:
        end_S = follow_up.ends(columns, observed_until)
        # Later than any end that is told: NO_TIME comes before all times.
        open_ended = int(((end_S < last_time_S) & ~follow_up.dead(columns)).sum())
        end_S = end_S if latest_us_S is None else np.minimum(end_S, latest_us_S)
        silence = _Silence.between(last_time_S, end_S, vocabulary)
    instants = _place_instants(timeline, vocabulary, silence.repeats_S + end)
    tokens_T = _write_tokens(timeline, instants, vocabulary)
    _write_intervals(
        tokens_T, instants.offsets_S1[1:] - silence.repeats_S - end, silence.interval_S, silence.repeats_S, vocabulary
    )
    prefix = static_prefix.prefixes(columns, timeline.subject_i, timeline.time_i, vocabulary)
    tokens_T[instants.offsets_S1[:-1, None] + np.arange(PREFIX_LENGTH)] = prefix.tokens[prefix.offsets_S1[:-1]]
    if end:
        tokens_T[instants.offsets_S1[1:] - 1] = vocabulary.ids[TIMELINE_END]
    # A change of prefix holds from the first token of the event that brings it; a subject's first holds from 0.
    starts = np.append(instants.start_i, 0)[prefix.event] - instants.offsets_S1[prefix.subject]
    starts[prefix.offsets_S1[:-1]] = 0
    num_intervals = len(vocabulary.interval_ids)
    passed = instants.interval_i >= 0
    interval_passed = instants.interval_i[passed]
    return TokenizedSubjects(
        subject_ids_S=columns.subject_ids_S,
        offsets_S1=instants.offsets_S1,
        tokens_T=tokens_T,
        last_time_S=last_time_S,
        prefix_offsets_S1=prefix.offsets_S1,
        prefix_starts=starts.astype(np.uint32),
        prefixes=prefix.tokens,
        interval_us_I=_sum_by(interval_passed, instants.gap_us_i[passed], num_intervals),
        interval_tokens_I=_sum_by(interval_passed, instants.repeats_i[passed], num_intervals),
        interval_histogram=vocabulary.interval_preset.histogram(
            instants.interval_i, instants.repeats_i, instants.gap_us_i / _US_PER_SECOND
        ),
        row_counts=_count_rows(columns, timeline, codes),
        open_ended=open_ended,
    )


def instant_rank(concept: Concept) -> int:
    """Rank of a concept's kind within one instant: an encounter's start before all it holds, its end after."""
    return _RANKS["VALUE" if concept.role == "end" else concept.kind]


def find_event(concept: Concept, vocabulary: Vocabulary) -> int:
    """Vocabulary event of a concept: itself, else a shorter code, else UNKNOWN//<kind>; -1 if it makes no event."""
    if concept.role in ROLES_WITHOUT_EVENT:
        return -1
    for form in concept.forms:
        if form.parts in vocabulary.event_of_parts:
            return vocabulary.event_of_parts[form.parts]
    return vocabulary.unknown_event(concept.kind)


@dataclasses.dataclass(frozen=True)
class CodeTable:
    """What each of a shard's codes (C) becomes, alone and with each value (W) that an event can have.

    A code's place among those of one instant and its value make one number, `place * W + value`, which both sorts the
    events of an instant and says what is to be written: the tables over it (L) are all that a row needs.
    """

    event_C: np.ndarray  # index into vocabulary.events; -1 where the code makes no event
    place_C: np.ndarray  # by kind, then concept; codes of one concept share it
    row_L: np.ndarray  # row of the vocabulary's spelling table
    length_L: np.ndarray  # how many tokens that are
    fate_L: np.ndarray  # index into _EVENT_FATES

    @classmethod
    def build(cls, concepts: Sequence[Concept], vocabulary: Vocabulary) -> "CodeTable":
        """The table of a shard's codes, whose concepts these are."""
        spelling = vocabulary.spelling
        keys = [(instant_rank(concept), concept.name, concept.parts) for concept in concepts]
        order = {key: place for place, key in enumerate(sorted(set(keys)))}
        place_C = per_code([order[key] for key in keys], np.int64)
        event_C = per_code([find_event(concept, vocabulary) for concept in concepts], np.int64)
        whole_C = per_code([concept.parts in vocabulary.event_of_parts for concept in concepts], bool)
        # Codes of one concept agree on all of this, so whichever writes last is right; those without event have no row.
        made_C = event_C >= 0
        event_P, whole_P = np.full(len(order), -1), np.zeros(len(order), bool)
        event_P[place_C[made_C]], whole_P[place_C[made_C]] = event_C[made_C], whole_C[made_C]
        unknown_V = np.array(
            [vocabulary.event_of_concept.get(f"UNKNOWN//{event.kind}", -1) for event in vocabulary.events]
        )
        is_unknown_P = event_P == unknown_V[event_P]
        # A code that always had a value in training and has none here can't be spelt: the grammar wants its value.
        row_PxW = spelling.row_VxW[event_P]
        lacks_PxW = row_PxW < 0
        row_PxW = np.where(lacks_PxW, spelling.row_VxW[unknown_V[event_P], -1:], row_PxW)
        fate_P = np.select([is_unknown_P, ~whole_P], [2, 1], 0)
        fate_PxW = np.where(lacks_PxW, 3, fate_P[:, None])
        return cls(event_C, place_C, row_PxW.ravel(), spelling.length_R[row_PxW.ravel()], fate_PxW.ravel())


@dataclasses.dataclass(frozen=True)
class _Timeline:
    """The events that become tokens, n of them in the order in which they do, at I instants of subjects."""

    low_n: np.ndarray  # index into CodeTable's tables
    length_n: np.ndarray
    row_n: np.ndarray
    first_i: np.ndarray  # the instant's first event
    subject_i: np.ndarray
    time_i: np.ndarray


def _order_events(columns: Columns, codes: CodeTable, vocabulary: Vocabulary) -> _Timeline:
    made = columns.rows(columns.makes_event())
    new_n = changes(made.subject_E) | changes(made.time_E)
    first_i = np.flatnonzero(new_n)
    value_n = vocabulary.spelling.value_codes(codes.event_C[made.code_E], made.value_E, made.text_E, made.texts)
    low_n = codes.place_C[made.code_E] * vocabulary.spelling.num_values + value_n
    # Rows come sorted by subject and time. One integer holds instant, place and value, and sorting integers by
    # themselves, not what they point to, is an order of magnitude faster than a sort by several columns.
    bits = len(codes.row_L).bit_length()
    key_n = (np.cumsum(new_n) << bits) | low_n
    key_n.sort()
    low_n = key_n & ((1 << bits) - 1)
    return _Timeline(
        low_n=low_n,
        length_n=codes.length_L[low_n],
        row_n=codes.row_L[low_n],
        first_i=first_i,
        subject_i=made.subject_E[first_i],
        time_i=made.time_E[first_i],
    )


@dataclasses.dataclass(frozen=True)
class _Instants:
    """Where each instant's tokens stand: its interval, then its events."""

    interval_i: np.ndarray  # index into the preset; -1 = no interval before this instant
    repeats_i: np.ndarray
    gap_us_i: np.ndarray
    start_i: np.ndarray  # first token
    start_n: np.ndarray  # first token of each event
    offsets_S1: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Silence:
    """The interval from each subject's last event to the end of its observation."""

    interval_S: np.ndarray  # index into the preset
    repeats_S: np.ndarray  # 0 where there is none

    @classmethod
    def none(cls, num_subjects: int) -> "_Silence":
        return cls(np.full(num_subjects, -1), np.zeros(num_subjects, np.int64))

    @classmethod
    def between(cls, last_time_S: np.ndarray, end_S: np.ndarray, vocabulary: Vocabulary) -> "_Silence":
        is_known_S = (last_time_S != NO_TIME) & (end_S != NO_TIME)
        # A record that goes on after its end of observation ends with its last event.
        silent_us_S = np.where(is_known_S, np.maximum(end_S - np.where(is_known_S, last_time_S, end_S), 0), 0)
        return cls(*vocabulary.interval_preset.classify(silent_us_S / _US_PER_SECOND))


def _place_instants(timeline: _Timeline, vocabulary: Vocabulary, tail_S: np.ndarray) -> _Instants:
    """`tail_S`: how many tokens follow a subject's last event."""
    later_i = ~changes(timeline.subject_i)
    gap_us_i = np.where(later_i, np.diff(timeline.time_i, prepend=timeline.time_i[:1]), 0)
    interval_i, repeats_i = vocabulary.interval_preset.classify(gap_us_i / _US_PER_SECOND)
    # An event starts after all tokens of the subjects, instants and events before: prefixes, intervals, events, ends.
    upto_S = PREFIX_LENGTH * np.arange(1, len(tail_S) + 1) + np.cumsum(tail_S)
    before_i = np.cumsum(repeats_i) + (upto_S - tail_S)[timeline.subject_i]
    stop_n = np.cumsum(timeline.length_n, dtype=np.int64)
    start_n = stop_n - timeline.length_n
    start_i = before_i - repeats_i + start_n[timeline.first_i]
    count_i = np.diff(timeline.first_i, append=len(start_n))
    start_n += np.repeat(before_i, count_i)
    last_i = np.searchsorted(timeline.subject_i, np.arange(len(tail_S)), side="right") - 1
    # Tokens of the events and intervals of all subjects up to this one.
    written_i = np.append(np.cumsum(repeats_i) + stop_n[timeline.first_i + count_i - 1], 0)
    stop_S = written_i[last_i] + upto_S
    return _Instants(interval_i, repeats_i, gap_us_i, start_i, start_n, np.append(0, stop_S))


def _write_tokens(timeline: _Timeline, instants: _Instants, vocabulary: Vocabulary) -> np.ndarray:
    """uint16 [T] tokens of intervals and events; those of prefixes and ends are left 0."""
    tokens_T = np.zeros(instants.offsets_S1[-1], np.uint16)
    _write_intervals(tokens_T, instants.start_i, instants.interval_i, instants.repeats_i, vocabulary)
    row_n, start_n, length_n = timeline.row_n, instants.start_n, timeline.length_n
    for tokens_R in vocabulary.spelling.tokens_4xR:
        tokens_T[start_n] = tokens_R[row_n]
        longer = np.flatnonzero(length_n > 1)
        row_n, start_n, length_n = row_n[longer], start_n[longer] + 1, length_n[longer] - 1
    return tokens_T


def _write_intervals(
    tokens_T: np.ndarray, start_n: np.ndarray, interval_n: np.ndarray, repeats_n: np.ndarray, vocabulary: Vocabulary
) -> None:
    interval_ids = np.array(vocabulary.interval_ids)
    for repeat in range(int(repeats_n.max(initial=0))):
        longer = np.flatnonzero(repeats_n > repeat)
        tokens_T[start_n[longer] + repeat] = interval_ids[interval_n[longer]]


def _last_times(timeline: _Timeline, num_subjects: int) -> np.ndarray:
    times_S = np.full(num_subjects, NO_TIME)
    # Of several writes to one place the last one stays.
    times_S[timeline.subject_i] = timeline.time_i
    return times_S


def _sum_by(index: np.ndarray, values: np.ndarray, size: int) -> list[int]:
    """Exact sums of values by index: floating sums would depend on the order of the shards, and int64 holds no more
    than 292,000 years of microseconds, which one file of patients may span."""
    high, low = np.zeros((2, size), np.int64)
    np.add.at(high, index, values >> 32)
    np.add.at(low, index, values & 0xFFFFFFFF)
    return [(int(above) << 32) + int(below) for above, below in zip(high, low, strict=True)]


def _count_rows(columns: Columns, timeline: _Timeline, codes: CodeTable) -> dict[str, int]:
    by_fate = np.zeros(len(_EVENT_FATES), np.int64)
    np.add.at(by_fate, codes.fate_L, np.bincount(timeline.low_n, minlength=len(codes.fate_L)))
    rows = {
        "static": columns.has_role(SEX, RACE),
        "birth": columns.has_role(BIRTH),
        "dropped_by_rule": columns.has_role(DROP),
        "observation_end": columns.has_role(OBSERVATION_END),
        "undated": (columns.time_E == NO_TIME) & ~columns.has_role(*ROLES_WITHOUT_EVENT),
    }
    counts = dict(zip(_EVENT_FATES, by_fate.tolist(), strict=True))
    return counts | {reason: int(chosen_E.sum()) for reason, chosen_E in rows.items()}
