"""Prediction tasks: declared by regexes over concepts, turned into MEDS labels.

A task asks, at each matching index event of a subject: does the outcome occur in (t, t + horizon]? Rows that cannot be
answered or would answer themselves are left out and counted by reason. All of it is columnar: codes are mapped to
concepts once per distinct code, never per event.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from data_pipeline import code_maps, meds
from data_pipeline.errors import UserError

MICROSECONDS_PER_DAY = 86_400_000_000
INDEX_CHOICES = ("all", "one", "last")
CENSORINGS = ("dataset_end", "assume_complete")
# Static rows have no time: they come before everything. Far enough from the int64 border that adding horizons is safe.
BEFORE_ALL_TIME_US = -(2**61)
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclasses.dataclass(frozen=True)
class Task:
    """One yes/no question about a subject's future.

    Attributes:
        name: letters, digits, `_`, `.`, `-`; names its files.
        description: one line for the report.
        index: regex that a concept name must match in full; each matching event is a candidate prediction time.
        horizon_days: the outcome counts in (t, t + horizon_days].
        outcome: regex that a concept name must match in full.
        index_choice: "all" candidates are rows; "one" per subject, drawn by a hash of (seed, subject, time); "last" of
            each subject (biased for outcomes that are index events themselves: the last has none after it).
        exclude_prior: subjects with the outcome at or before the prediction time are out (incident disease).
        censoring: "dataset_end": rows whose horizon passes the data set's last event are out, whatever the outcome, so
            that positives are not over-sampled. "assume_complete": what is not recorded did not happen; for data whose
            dates are shifted by subject, where no common end exists.
    """

    name: str
    index: str
    horizon_days: float
    outcome: str
    description: str = ""
    index_choice: str = "all"
    exclude_prior: bool = False
    censoring: str = "dataset_end"

    def __post_init__(self) -> None:
        where = f"task {self.name!r}"
        if not _NAME.fullmatch(self.name):
            raise UserError("a task's name names its files", where=where, fix="use letters, digits, _ . - only")
        for field in ("index", "outcome"):
            try:
                re.compile(getattr(self, field))
            except re.error as error:
                raise UserError(f"{field} is not a regular expression ({error})", where=where) from error
        if not self.horizon_days > 0:
            raise UserError(f"horizon_days is {self.horizon_days}", where=where, fix="give a positive number of days")
        for field, choices in (("index_choice", INDEX_CHOICES), ("censoring", CENSORINGS)):
            if getattr(self, field) not in choices:
                raise UserError(f"unknown {field} {getattr(self, field)!r}", where=where, fix=f"use one of {choices}")

    @property
    def horizon_us(self) -> int:
        """The horizon in microseconds."""
        return round(self.horizon_days * MICROSECONDS_PER_DAY)


@dataclasses.dataclass(frozen=True)
class Events:
    """Events of some subjects as concepts.

    Attributes:
        frame: [subject_id Int64, time_us Int64 (BEFORE_ALL_TIME_US for static rows), concept UInt32 (into `concepts`)],
            sorted by subject and time.
        concepts: the distinct concepts; `concept` indexes them.
        end_us: time of the last event of the whole data set, other subjects' included.
    """

    frame: pl.DataFrame
    concepts: tuple[code_maps.Concept, ...]
    end_us: int

    def matching(self, pattern: str) -> list[int]:
        """Indices of the concepts whose name matches the regex in full."""
        compiled = re.compile(pattern)
        return [index for index, concept in enumerate(self.concepts) if compiled.fullmatch(concept.name)]

    def in_role(self, role: str) -> list[int]:
        """Indices of the concepts that play this role ("birth", "death", ...)."""
        return [index for index, concept in enumerate(self.concepts) if concept.role == role]


@dataclasses.dataclass(frozen=True)
class Labels:
    """A task's rows: `frame` [subject_id, prediction_time Datetime(us), boolean_value], sorted; `excluded` counts the
    candidates left out by reason (the first that holds); `candidates` counts the index events (distinct in time).
    """

    frame: pl.DataFrame
    candidates: int
    excluded: Mapping[str, int]


def tasks_from_config(config: Mapping[str, Any]) -> tuple[Task, ...]:
    """The tasks of a task file: `config.tasks` maps each name to the other fields of Task."""
    fields = {field.name for field in dataclasses.fields(Task)} - {"name"}
    content = config.get("tasks", {})
    if not content:
        raise UserError("no tasks", where="tasks file", fix="get_config() must return ConfigDict(tasks={name: {...}})")
    tasks = []
    for name, values in content.items():
        if unknown := sorted(set(values) - fields):
            raise UserError(f"unknown key {unknown[0]!r}", where=f"task {name!r}", fix=f"known: {sorted(fields)}")
        if missing := sorted({"index", "horizon_days", "outcome"} - set(values)):
            raise UserError(f"{missing[0]} is missing", where=f"task {name!r}")
        tasks.append(Task(name=name, **dict(values)))
    return tuple(tasks)


def read_events(dataset: meds.MedsDataset, subjects: Sequence[int], code_map: code_maps.CodeMap) -> Events:
    """Read these subjects' events from all shards and name them by concept; memory holds these subjects only."""
    wanted = pl.Series("subject_id", list(subjects), dtype=pl.Int64)
    concepts: dict[str, code_maps.Concept] = {}
    frames, end_us = [], BEFORE_ALL_TIME_US
    for shard in dataset.shards:
        frame = meds.read_shard(shard)
        last = frame.select(pl.col("time").cast(pl.Int64).max()).item()
        end_us = end_us if last is None else max(end_us, last)
        frame = frame.filter(pl.col("subject_id").is_in(wanted.implode()))
        frames.append(_as_concepts(frame, code_map, concepts))
    columns = {"subject_id": pl.Int64, "time_us": pl.Int64, "concept": pl.UInt32}
    events = pl.concat(frames) if frames else pl.DataFrame(schema=columns)
    return Events(events.sort("subject_id", "time_us", maintain_order=True), tuple(concepts.values()), end_us)


def _as_concepts(
    frame: pl.DataFrame, code_map: code_maps.CodeMap, concepts: dict[str, code_maps.Concept]
) -> pl.DataFrame:
    """The events with their concept's number in `concepts` (by name), which grows by what is new."""
    codes = frame.get_column("code").unique().sort()
    mapped = code_map.map_codes(codes.to_list())
    for concept in mapped:
        concepts.setdefault(concept.name, concept)
    numbers = {name: number for number, name in enumerate(concepts)}
    kept = [
        (code, numbers[concept.name]) for code, concept in zip(codes, mapped, strict=True) if concept.role != "drop"
    ]
    table = pl.DataFrame(kept, schema={"code": pl.String, "concept": pl.UInt32}, orient="row")
    time_us = pl.col("time").cast(pl.Int64).fill_null(BEFORE_ALL_TIME_US).alias("time_us")
    return frame.join(table, on="code", how="inner", maintain_order="left").select("subject_id", time_us, "concept")


def label(events: Events, subjects: Sequence[int], task: Task, *, seed: int = 0, end_us: int | None = None) -> Labels:
    """The task's rows for these subjects.

    A row is out when the subject is dead at the index (`dead_at_index`), already had the outcome (`prior_outcome`, with
    exclude_prior), or the horizon passes `end_us` (`horizon_past_data`, censoring "dataset_end"; default: the data's
    end). `not_chosen` counts what index_choice left out of the rest.
    """
    frame = events.frame.filter(pl.col("subject_id").is_in(pl.Series(list(subjects), dtype=pl.Int64).implode()))
    is_static = pl.col("time_us") == BEFORE_ALL_TIME_US
    candidates = _times_of(frame.filter(~is_static), events.matching(task.index), "time_us")
    outcomes = _times_of(frame, events.matching(task.outcome), "outcome_us")
    deaths = _times_of(frame, events.in_role("death"), "death_us")
    rows = (
        candidates.join(deaths.group_by("subject_id").agg(pl.col("death_us").min()), on="subject_id", how="left")
        .join(outcomes.group_by("subject_id").agg(first_us=pl.col("outcome_us").min()), on="subject_id", how="left")
        .sort("subject_id", "time_us")
        .join_asof(
            outcomes,
            left_on="time_us",
            right_on="outcome_us",
            by="subject_id",
            strategy="forward",
            allow_exact_matches=False,
            coalesce=False,
            check_sortedness=False,
        )
        .with_columns(boolean_value=(pl.col("outcome_us") <= pl.col("time_us") + task.horizon_us).fill_null(False))
    )
    reasons = {"dead_at_index": pl.col("death_us") <= pl.col("time_us")}
    if task.exclude_prior:
        reasons["prior_outcome"] = pl.col("first_us") <= pl.col("time_us")
    if task.censoring == "dataset_end":
        last_us = events.end_us if end_us is None else end_us
        reasons["horizon_past_data"] = pl.col("time_us") + task.horizon_us > last_us
    excluded = {}
    for reason, is_out in reasons.items():
        kept = rows.filter(~is_out.fill_null(False))
        excluded[reason] = len(rows) - len(kept)
        rows = kept
    chosen = _choose(rows, task.index_choice, seed)
    excluded["not_chosen"] = len(rows) - len(chosen)
    prediction_time = pl.col("time_us").cast(pl.Datetime("us")).alias("prediction_time")
    return Labels(chosen.select("subject_id", prediction_time, "boolean_value"), len(candidates), excluded)


def labels(
    dataset: meds.MedsDataset, subjects: Sequence[int], task: Task, code_map: code_maps.CodeMap, *, seed: int = 0
) -> Labels:
    """Read the subjects' events and label one task; for several tasks, `read_events` once and `label` each."""
    return label(read_events(dataset, subjects, code_map), subjects, task, seed=seed)


def draw_rows(frame: pl.DataFrame, rows: int, *, seed: int) -> pl.DataFrame:
    """At most `rows` of a label frame, by the hash of (seed, subject, time): tasks that share rows keep sharing."""
    if len(frame) <= rows:
        return frame
    keys = row_hash(frame.get_column("subject_id"), frame.get_column("prediction_time").cast(pl.Int64), seed)
    return frame[np.sort(np.argsort(keys, kind="stable")[:rows])]


def row_hash(subject_ids: pl.Series, times_us: pl.Series, seed: int) -> np.ndarray:
    """uint64 per row, a function of (seed, subject, time) alone (splitmix64): the same in every version and order."""
    state = np.uint64(seed % 2**64) * np.ones(len(subject_ids), np.uint64)
    for column in (subject_ids, times_us):
        state = _mix(state + column.to_numpy().astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return state


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _times_of(frame: pl.DataFrame, concepts: list[int], name: str) -> pl.DataFrame:
    matching = frame.filter(pl.col("concept").is_in(concepts)).select("subject_id", pl.col("time_us").alias(name))
    return matching.unique().sort("subject_id", name)


def _choose(rows: pl.DataFrame, choice: str, seed: int) -> pl.DataFrame:
    if choice == "last":
        return rows.group_by("subject_id", maintain_order=True).last()
    if choice == "one":
        keys = row_hash(rows.get_column("subject_id"), rows.get_column("time_us"), seed)
        drawn = rows.with_columns(key=pl.Series(keys, dtype=pl.UInt64)).sort("subject_id", "key")
        return drawn.group_by("subject_id", maintain_order=True).first()
    return rows
