"""Prediction tasks: questions about subjects' futures, declared by regexes over concepts, and the events they read.

A task asks, at each matching index event of a subject: does the outcome occur in the window after it (`kind` "binary"),
how often ("count"), how long until then ("duration")? `cometjax.labels` makes its rows, `cometjax.estimators` answers
it from simulated futures. All of it is columnar: codes are mapped to concepts once per distinct code, never per event.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from data_pipeline import code_maps, follow_up, meds
from data_pipeline.columns import OBSERVATION_END, changes
from data_pipeline.errors import UserError

MICROSECONDS_PER_DAY = 86_400_000_000
KINDS = ("binary", "count", "duration")
INDEX_CHOICES = ("all", "one", "last")
CENSORINGS = ("dataset_end", "observation_end", "assume_complete")
# For --help, and for whoever gave another.
CENSORING_VALUES = f"{', '.join(CENSORINGS)}, or the date of the data's last day, YYYY-MM-DD"
# Static rows have no time: they come before everything. Far enough from the int64 border that adding horizons is safe.
BEFORE_ALL_TIME_US = -(2**61)
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
# Microseconds of more, added to a time, may pass the int64 border.
_MOST_DAYS = 10_000_000
_FIELDS_OF_DAYS = ("horizon_days", "washout_days", "history_days", "cohort_days")
_PATTERNS = ("index", "outcome", "until", "cohort", "exclude", "outside_start", "outside_end")


@dataclasses.dataclass(frozen=True)
class Task:
    """One question about a subject's future. Every pattern is a regex that a concept's name must match in full.

    Attributes:
        name: letters, digits, `_`, `.`, `-`; names its files.
        index: pattern; each matching event is a candidate prediction time t. What happens at t itself is history.
        horizon_days: the window is (t, t + horizon_days].
        outcome: pattern of what is asked for.
        kind: "binary": does the outcome occur in the window? "count": how many of its events? "duration": days until
            the first of them, or the window's length where none is in it (a restricted time, as no row may be left out
            for what happens after t).
        until: pattern; the window ends with the first such event after t ("during this encounter"), if that comes
            before the horizon. What happens at its instant still counts.
        cohort: pattern; only subjects are asked who have had such an event at or before t.
        cohort_days: and at most so many days before it; 0: at the very instant of t. None: ever.
        exclude: pattern; subjects who have had such an event at or before t are out.
        exclude_prior: subjects with the outcome at or before t are out (incident disease).
        washout_days: subjects with the outcome in the so many days up to t are out (a new episode).
        outside_start, outside_end: patterns; subjects are out whose last start at or before t has no end after it, at
            or before t: what is recorded of a hospital stay is in part known only at its end.
        history_days: t is at least so long after the subject's first event, birth aside.
        index_choice: "all" candidates are rows; "one" per subject, drawn by a hash of (seed, subject, time); "last" of
            each subject (biased for outcomes that are index events themselves: the last has none after it).
        censoring: "dataset_end": rows whose horizon passes the data set's last event are out, whatever the outcome, so
            that positives are not over-sampled. A date, YYYY-MM-DD: likewise, by the end of that day.
            "observation_end": rows whose horizon passes the end of the subject's own recorded observation are out,
            whatever the outcome; of subjects who have none recorded, and of the dead, whose record is whole, those that
            dataset_end leaves out. "assume_complete": what is not recorded did not happen; for data whose dates are
            shifted by subject, where no common end exists.
        family: group of tasks it belongs to.
        description: one line for the report. In a task file, {horizon_days} in it and other such fields in braces stand
            for their values in words (`described`).
    """

    name: str
    index: str
    horizon_days: float
    outcome: str
    description: str = ""
    index_choice: str = "all"
    exclude_prior: bool = False
    censoring: str = "dataset_end"
    kind: str = "binary"
    until: str = ""
    cohort: str = ""
    cohort_days: float | None = None
    exclude: str = ""
    washout_days: float = 0.0
    outside_start: str = ""
    outside_end: str = ""
    history_days: float = 0.0
    family: str = ""

    def __post_init__(self) -> None:
        where = f"task {self.name!r}"
        if not _NAME.fullmatch(self.name):
            raise UserError("a task's name names its files", where=where, fix="use letters, digits, _ . - only")
        for field in _PATTERNS:
            try:
                re.compile(getattr(self, field))
            except re.error as error:
                raise UserError(f"{field} is not a regular expression ({error})", where=where) from error
        if not self.horizon_days > 0:
            raise UserError(f"horizon_days is {self.horizon_days}", where=where, fix="give a positive number of days")
        for field in _FIELDS_OF_DAYS:
            if not 0 <= (getattr(self, field) or 0) <= _MOST_DAYS:
                raise UserError(
                    f"{field} is {getattr(self, field)}", where=where, fix=f"give days, from 0 to {_MOST_DAYS:,}"
                )
        if self.cohort_days is not None and not self.cohort:
            raise UserError("cohort_days without a cohort", where=where, fix="give cohort, the event to look for")
        if bool(self.outside_start) != bool(self.outside_end):
            raise UserError("outside_start and outside_end go together", where=where, fix="give both, or none")
        if self.exclude_prior and self.washout_days:
            raise UserError("washout_days with exclude_prior", where=where, fix="give one: exclude_prior is for ever")
        for field, choices in (("kind", KINDS), ("index_choice", INDEX_CHOICES)):
            if getattr(self, field) not in choices:
                raise UserError(f"unknown {field} {getattr(self, field)!r}", where=where, fix=f"use one of {choices}")
        check_censoring(self.censoring, where=where)

    @property
    def horizon_us(self) -> int:
        """The horizon in microseconds."""
        return microseconds(self.horizon_days)

    @property
    def timeline_end(self) -> str:
        """What the end of a record is to the futures that answer it (`futures.SimulationConfig.timeline_end`).

        Where what is not recorded did not happen, a timeline may end. Rows of other censorings are of subjects under
        observation, and leaving the data set must not pass for health: it is never drawn, or censors where the corpus
        knows follow-up.
        """
        return "stop" if self.censoring == "assume_complete" else ""

    @property
    def metric(self) -> str:
        """What it is mainly scored by."""
        return {"binary": "AUROC", "count": "RMSLE", "duration": "MAE (days)"}[self.kind]


def check_censoring(value: str, *, where: str) -> None:
    """Raise UserError unless this is one of CENSORINGS or a date."""
    if value in CENSORINGS:
        return
    if not (isinstance(value, str) and _DATE.fullmatch(value)):
        raise UserError(f"unknown censoring {value!r}", where=where, fix=f"use {CENSORING_VALUES}")
    follow_up.end_of_day(value, where=where)


@functools.lru_cache(maxsize=4096)
def compiled(pattern: str) -> re.Pattern[str]:
    """The regex; hundreds of patterns are asked again and again, more than `re` keeps."""
    return re.compile(pattern)


def in_words(days: float) -> str:
    """A number of days as one says it."""
    for length, unit in ((365, "year"), (1, "day")):
        if days >= length and days % length == 0:
            count = round(days / length)
            return f"{count} {unit}s" if count > 1 else f"a {unit}"
    return f"{days:g} days"


def described(task: Task) -> Task:
    """The task with its fields of days, in words, where its description names them in braces.

    So a description is true whatever has been overridden of these.
    """
    text = task.description
    for field in _FIELDS_OF_DAYS:
        text = text.replace(f"{{{field}}}", in_words(getattr(task, field) or 0))
    return dataclasses.replace(task, description=text)


def microseconds(days: float) -> int:
    """Days in whole microseconds."""
    return round(days * MICROSECONDS_PER_DAY)


@dataclasses.dataclass(frozen=True)
class Events:
    """Events of some subjects as concepts.

    Attributes:
        frame: [subject_id Int64, time_us Int64 (BEFORE_ALL_TIME_US for static rows), concept UInt32 (into `concepts`)],
            sorted by subject and time.
        concepts: the distinct concepts; `concept` indexes them.
        end_us: time of the last event of the whole data set, other subjects' included.
        usual_end_us: the day by which all but 0.1% of the data set's subjects, or all but one, have their last event;
            None where that was not read, or there are fewer than two.
        observed: [subject_id, observed_us Int64]: until when these subjects were observed, the living for whom the data
            say so; None where they say it of nobody.
    """

    frame: pl.DataFrame
    concepts: tuple[code_maps.Concept, ...]
    end_us: int
    usual_end_us: int | None = None
    observed: pl.DataFrame | None = None

    def matching(self, pattern: str) -> list[int]:
        """Indices of the concepts whose name matches the regex in full."""
        regex = compiled(pattern)
        return [index for index, concept in enumerate(self.concepts) if regex.fullmatch(concept.name)]

    def in_role(self, role: str) -> list[int]:
        """Indices of the concepts that play this role ("birth", "death", ...)."""
        return [index for index, concept in enumerate(self.concepts) if concept.role == role]


def tasks_from_config(
    config: Mapping[str, Any], only: Sequence[str] = (), *, where: str = "tasks file"
) -> tuple[Task, ...]:
    """The tasks of a task file, or those of these names: `config.tasks` maps each name to the other fields of Task.

    `where`: the file's name. Raises UserError for a task that is not there, or has other keys.
    """
    fields = {field.name for field in dataclasses.fields(Task)} - {"name"}
    content = config.get("tasks", {})
    if not content:
        raise UserError("no tasks", where=where, fix="get_config() must return ConfigDict(tasks={name: {...}})")
    if unknown := sorted(set(only) - set(content)):
        raise UserError(f"no task {unknown[0]!r}", where=where, fix=f"name some of {', '.join(sorted(content))}")
    tasks = []
    for name, values in content.items():
        if only and name not in only:
            continue
        if unknown := sorted(set(values) - fields):
            raise UserError(
                f"unknown key {unknown[0]!r}", where=f"{where}, task {name!r}", fix=f"known: {sorted(fields)}"
            )
        if missing := sorted({"index", "horizon_days", "outcome"} - set(values)):
            raise UserError(f"{missing[0]} is missing", where=f"{where}, task {name!r}")
        tasks.append(described(Task(name=name, **dict(values))))
    return tuple(tasks)


def read_events(dataset: meds.MedsDataset, subjects: Sequence[int], code_map: code_maps.CodeMap) -> Events:
    """Read these subjects' events from all shards and name them by concept; memory holds these subjects only."""
    wanted = pl.Series("subject_id", list(subjects), dtype=pl.Int64)
    concepts: dict[str, code_maps.Concept] = {}
    frames, ends, last_days, end_us, knows_observation = [], [], [], BEFORE_ALL_TIME_US, False
    for shard in dataset.shards:
        frame = meds.read_shard(shard)
        if len(codes := _observation_end_codes(frame, code_map)):
            is_end = pl.col("code").is_in(codes.implode())
            dated = frame.filter(is_end & pl.col("time").is_not_null()).select("subject_id", "time")
            knows_observation |= len(dated) > 0
            ends.append(dated.filter(pl.col("subject_id").is_in(wanted.implode())))
            frame = frame.filter(~is_end)
        last = frame.select(pl.col("time").cast(pl.Int64).max()).item()
        end_us = end_us if last is None else max(end_us, last)
        last_days.append(_days_of_last_events(frame))
        frame = frame.filter(pl.col("subject_id").is_in(wanted.implode()))
        frames.append(_as_concepts(frame, code_map, concepts))
    columns = {"subject_id": pl.Int64, "time_us": pl.Int64, "concept": pl.UInt32}
    frame = pl.concat(frames) if frames else pl.DataFrame(schema=columns)
    frame = frame.sort("subject_id", "time_us", maintain_order=True)
    events = Events(frame, tuple(concepts.values()), end_us, _usual_end(last_days))
    if not knows_observation:
        return events
    # As `data_pipeline.follow_up.ends`: the last one, and of the dead none.
    latest = pl.concat(ends).group_by("subject_id").agg(observed_us=pl.col("time").cast(pl.Int64).max())
    observed = latest.sort("subject_id")
    is_death = pl.col("concept").is_in(events.in_role("death")) & (pl.col("time_us") != BEFORE_ALL_TIME_US)
    observed = observed.join(events.frame.filter(is_death), on="subject_id", how="anti", maintain_order="left")
    return dataclasses.replace(events, observed=observed)


def _observation_end_codes(frame: pl.DataFrame, code_map: code_maps.CodeMap) -> pl.Series:
    """The codes that say until when a subject was observed; they are no events."""
    if not any(rule.role == OBSERVATION_END for rule in code_map.rules):
        return pl.Series(dtype=pl.String)
    codes = frame.get_column("code").unique()
    roles = [concept.role for concept in code_map.map_codes(codes.to_list())]
    return codes.filter(pl.Series(roles, dtype=pl.String) == OBSERVATION_END)


def _days_of_last_events(frame: pl.DataFrame) -> pl.DataFrame:
    """[day Int64, since 1970; subjects]: how many of a shard's subjects have their last event on it.

    Of a data set these are no more than it has days, however many its subjects.
    """
    # A subject's rows are together and rise in time, those without time first.
    is_last = np.ascontiguousarray(changes(frame.get_column("subject_id").to_numpy()[::-1])[::-1])
    times_us = frame.get_column("time").filter(pl.Series(is_last)).drop_nulls().cast(pl.Int64)
    return (times_us // MICROSECONDS_PER_DAY).alias("day").to_frame().group_by("day").agg(subjects=pl.len())


def _usual_end(last_days: Sequence[pl.DataFrame]) -> int | None:
    """Events.usual_end_us, from `_days_of_last_events` of every shard."""
    if not any(map(len, last_days)):
        return None
    days = pl.concat(last_days).group_by("day").agg(pl.col("subjects").sum()).sort("day", descending=True)
    subjects = days.get_column("subjects").sum()
    if subjects < 2:
        return None
    rank = max(2, -(-subjects // 1000))
    return days.filter(pl.col("subjects").cum_sum() >= rank).get_column("day")[0] * MICROSECONDS_PER_DAY


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
