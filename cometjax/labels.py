"""A task's rows: which (subject, prediction time) are asked, and the answers, as MEDS labels.

Rows are made from a task's definition, or read from label files (such as ACES writes). Rows that cannot be answered or
would answer themselves are left out and counted by reason. Who is asked depends on nothing after the prediction time,
but for the end of the data, or of the subject's observation (`Task.censoring`). What is recorded after a death answers
nothing: futures end there.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import polars as pl

from cometjax.tasks import BEFORE_ALL_TIME_US, MICROSECONDS_PER_DAY, Events, Task, microseconds, read_events
from data_pipeline import code_maps, follow_up, meds
from data_pipeline.errors import UserError

# The column of a MEDS label file that holds a task's answer.
VALUE_COLUMN = {"binary": "boolean_value", "count": "integer_value", "duration": "float_value"}
# The increment of splitmix64 (Steele, Lea and Flood 2014).
_GAMMA = np.uint64(0x9E3779B97F4A7C15)


@dataclasses.dataclass(frozen=True)
class Labels:
    """A task's rows.

    Attributes:
        frame: sorted; [subject_id, prediction_time Datetime(us), boolean_value (the outcome is in the window),
            integer_value (of counts: its events in the window) or float_value (of durations: days until it, at most the
            window's length), prior_outcome (it has happened at or before the prediction time: not the first)].
        candidates: index events (distinct in time).
        excluded: candidates left out, by reason (the first that holds).
    """

    frame: pl.DataFrame
    candidates: int
    excluded: Mapping[str, int]


def label(events: Events, subjects: Sequence[int], task: Task, *, seed: int = 0) -> Labels:
    """The task's rows for these subjects.

    A row is out when the subject is dead at the index (`dead_at_index`), in the midst of what it should be outside of
    (`inside`), is not of the cohort (`not_in_cohort`), has what is excluded (`excluded`), too short a history
    (`short_history`), had the outcome before (`prior_outcome`, with exclude_prior) or of late (`washout`), or the
    horizon passes the end of the subject's own observation (`horizon_past_observation`, censoring "observation_end") or
    of the data (`horizon_past_data`; not with "assume_complete"). `not_chosen` counts what index_choice left out of the
    rest.

    Raises UserError for "observation_end" where the data say of nobody until when they were observed.
    """
    frame = events.frame.filter(pl.col("subject_id").is_in(pl.Series(list(subjects), dtype=pl.Int64).implode()))
    dated = frame.filter(pl.col("time_us") != BEFORE_ALL_TIME_US)
    candidates = _times_of(dated, events.matching(task.index), "time_us")
    rows = candidates.sort("subject_id", "time_us")
    sought = {name: getattr(task, name) for name in ("outcome", "cohort", "exclude", "outside_start", "outside_end")}
    for name, pattern in sought.items():
        rows = _seek(rows, _times_of(frame, events.matching(pattern), f"last_{name}_us"), "time_us", "backward")
    deaths = _deaths(frame, events)
    is_birth = pl.col("concept").is_in(events.in_role("birth"))
    starts = dated.filter(~is_birth).group_by("subject_id").agg(start_us=pl.col("time_us").min())
    rows = rows.join(deaths, on="subject_id", how="left").join(starts, on="subject_id", how="left")
    if task.censoring == "observation_end":
        rows = rows.join(_known_observation(events, task), on="subject_id", how="left")
    rows = rows.sort("subject_id", "time_us")
    excluded = {}
    for reason, is_out in _reasons(task, events.end_us).items():
        kept = rows.filter(~is_out.fill_null(False))
        excluded[reason] = len(rows) - len(kept)
        rows = kept
    chosen = _choose(rows, task.index_choice, seed)
    excluded["not_chosen"] = len(rows) - len(chosen)
    return Labels(_answer(chosen, _in_life(dated, events), events, task), len(candidates), excluded)


def labels(
    dataset: meds.MedsDataset, subjects: Sequence[int], task: Task, code_map: code_maps.CodeMap, *, seed: int = 0
) -> Labels:
    """Read the subjects' events and label one task; for several tasks, `read_events` once and `label` each."""
    return label(read_events(dataset, subjects, code_map), subjects, task, seed=seed)


def label_files(
    folder: str | pathlib.Path, tasks: Sequence[Task], dataset: meds.MedsDataset
) -> dict[str, pl.DataFrame]:
    """Every task's rows from FOLDER/TASK.parquet, or the parquet files in FOLDER/TASK: the MEDS label schema.

    Returns frames [subject_id, prediction_time, VALUE_COLUMN[task.kind]], sorted, of whichever subjects they are.
    Raises UserError for a task without a file, one without its value, a row that is there twice, and whatever
    `data_pipeline.meds.read_labels` refuses.
    """
    frames, subjects, begins = {}, dataset.splits.get_column("subject_id"), meds.first_events(dataset)
    for task in tasks:
        path = pathlib.Path(folder) / f"{task.name}.parquet"
        path = path if path.is_file() else path.with_suffix("")
        if not path.exists():
            raise UserError(f"no labels of task {task.name!r}", where=str(folder), fix=f"write {task.name}.parquet")
        frame, column = meds.read_labels(path, subjects, begins), VALUE_COLUMN[task.kind]
        if column not in frame.columns or frame.get_column(column).null_count():
            raise UserError(
                f"a row without {column}, which task {task.name!r} (kind {task.kind!r}) asks for",
                where=str(path),
                fix="write that column in every row, or change the task's kind",
            )
        frame = frame.select("subject_id", "prediction_time", column).sort("subject_id", "prediction_time")
        if frame.select("subject_id", "prediction_time").is_duplicated().any():
            raise UserError("a subject and prediction time twice", where=str(path), fix="keep one row of each")
        frames[task.name] = frame
    return frames


def complete(frame: pl.DataFrame, events: Events, task: Task) -> pl.DataFrame:
    """`label_files`' rows, of subjects in `events`, with all that `Labels.frame` has.

    A duration does not say whether it ends with the outcome or the window: that is as the events have it.
    """
    outcomes = _times_of(events.frame, events.matching(task.outcome), "last_outcome_us")
    rows = _seek(frame.with_columns(time_us=pl.col("prediction_time").cast(pl.Int64)), outcomes, "time_us", "backward")
    if task.kind == "duration":
        dated = _in_life(events.frame.filter(pl.col("time_us") != BEFORE_ALL_TIME_US), events)
        rows = rows.with_columns(_answer(rows, dated, events, task).get_column("boolean_value"))
    if task.kind == "count":
        rows = rows.with_columns(boolean_value=pl.col("integer_value") > 0)
    rows = rows.with_columns(prior_outcome=pl.col("last_outcome_us").is_not_null())
    return rows.select(*_columns(task)).sort("subject_id", "prediction_time")


def observed_in_part(frame: pl.DataFrame, events: Events, task: Task) -> int:
    """How many of a label frame's rows say "did not happen" of a time when nobody looked.

    Of these the subject's recorded observation ended, alive, before the window did, and the outcome is not in it. (The
    count of a count is then too low whatever it is.) 0 where nothing is known of anybody's observation.
    """
    if events.observed is None:
        return 0
    rows = frame.with_columns(time_us=pl.col("prediction_time").cast(pl.Int64)).sort("subject_id", "time_us")
    rows = rows.join(events.observed, on="subject_id", maintain_order="left")
    is_in_part = pl.col("observed_us") < pl.col("end_us")
    is_answered = pl.lit(False) if task.kind == "count" else pl.col("boolean_value")
    return len(_with_ends(rows, events.frame, events, task).filter(is_in_part & ~is_answered))


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
        state = _mix(state + column.to_numpy().astype(np.int64).view(np.uint64) + _GAMMA)
    return state


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _deaths(frame: pl.DataFrame, events: Events) -> pl.DataFrame:
    """[subject_id, death_us]: each dead subject's first death."""
    return _times_of(frame, events.in_role("death"), "death_us").group_by("subject_id", maintain_order=True).first()


def _in_life(dated: pl.DataFrame, events: Events) -> pl.DataFrame:
    """The events up to each subject's death, and those of its instant."""
    known = dated.join(_deaths(dated, events), on="subject_id", how="left", maintain_order="left")
    return known.filter((pl.col("time_us") <= pl.col("death_us")).fill_null(True)).drop("death_us")


def _known_observation(events: Events, task: Task) -> pl.DataFrame:
    if events.observed is None:
        raise UserError(
            "the data say of nobody until when they were observed",
            where=f"task {task.name!r}, censoring {task.censoring}",
            fix="use dataset_end or a date, or give the codes that say it the role observation_end (docs/code_maps.md)",
        )
    return events.observed


def _reasons(task: Task, end_us: int) -> dict[str, pl.Expr]:
    """Why a candidate is no row, in the order in which they are asked; null is no. `end_us`: of the data."""
    now = pl.col("time_us")
    reasons = {"dead_at_index": pl.col("death_us") <= now}
    if task.outside_start:
        ended = pl.col("last_outside_end_us") >= pl.col("last_outside_start_us")
        reasons["inside"] = pl.col("last_outside_start_us").is_not_null() & ~ended.fill_null(False)
    if task.cohort:
        last = pl.col("last_cohort_us")
        is_old = pl.lit(False) if task.cohort_days is None else last < now - microseconds(task.cohort_days)
        reasons["not_in_cohort"] = last.is_null() | is_old
    if task.exclude:
        reasons["excluded"] = pl.col("last_exclude_us").is_not_null()
    if task.history_days:
        reasons["short_history"] = now - pl.col("start_us") < microseconds(task.history_days)
    if task.exclude_prior:
        reasons["prior_outcome"] = pl.col("last_outcome_us").is_not_null()
    if task.washout_days:
        reasons["washout"] = pl.col("last_outcome_us") >= now - microseconds(task.washout_days)
    if task.censoring == "observation_end":
        reasons["horizon_past_observation"] = now + task.horizon_us > pl.col("observed_us")
        reasons["horizon_past_data"] = pl.col("observed_us").is_null() & (now + task.horizon_us > end_us)
    elif task.censoring != "assume_complete":
        # The day's last instant: a window that ends with midnight holds the next day's first events.
        last_us = end_us if task.censoring == "dataset_end" else follow_up.end_of_day(task.censoring) - 1
        reasons["horizon_past_data"] = now + task.horizon_us > last_us
    return reasons


def _with_ends(rows: pl.DataFrame, frame: pl.DataFrame, events: Events, task: Task) -> pl.DataFrame:
    """Rows, sorted by subject and `time_us`, with `end_us`: when their window ends, as these events have it."""
    rows = rows.with_columns(end_us=pl.col("time_us") + task.horizon_us)
    if task.until:
        rows = _seek(rows, _times_of(frame, events.matching(task.until), "until_us"), "time_us", "forward")
        rows = rows.with_columns(end_us=pl.min_horizontal("end_us", "until_us"))
    return rows


def _answer(rows: pl.DataFrame, dated: pl.DataFrame, events: Events, task: Task) -> pl.DataFrame:
    """Rows [subject_id, time_us, last_outcome_us] with their answers: Labels.frame."""
    matching = dated.filter(pl.col("concept").is_in(events.matching(task.outcome)))
    outcomes = matching.group_by("subject_id", pl.col("time_us").alias("first_us")).len().sort("subject_id", "first_us")
    rows = _with_ends(rows.select("subject_id", "time_us", "last_outcome_us"), dated, events, task)
    rows = _seek(rows, outcomes.drop("len"), "time_us", "forward")
    totals = outcomes.with_columns(total=pl.col("len").cast(pl.Int64).cum_sum().over("subject_id")).drop("len")
    for column, at in (("before", "time_us"), ("after", "end_us")):
        counted = totals.rename({"first_us": f"{column}_us", "total": column})
        rows = _seek(rows, counted, at, "backward")
    elapsed_us = pl.min_horizontal("first_us", "end_us") - pl.col("time_us")
    rows = rows.with_columns(
        prediction_time=pl.col("time_us").cast(pl.Datetime("us")),
        boolean_value=(pl.col("first_us") <= pl.col("end_us")).fill_null(False),
        integer_value=pl.col("after").fill_null(0) - pl.col("before").fill_null(0),
        float_value=elapsed_us / MICROSECONDS_PER_DAY,
        prior_outcome=pl.col("last_outcome_us").is_not_null(),
    )
    return rows.select(*_columns(task))


def _columns(task: Task) -> list[str]:
    values = dict.fromkeys(("boolean_value", VALUE_COLUMN[task.kind]))
    return ["subject_id", "prediction_time", *values, "prior_outcome"]


def _seek(rows: pl.DataFrame, times: pl.DataFrame, at: str, strategy: Literal["backward", "forward"]) -> pl.DataFrame:
    """Each row with the subject's last of `times` at or before its `at`, or the first after it; both sorted by them.

    `times`: [subject_id, a time, ...], the time's name ends in `_us`.
    """
    (time,) = [name for name in times.columns if name.endswith("_us")]
    return rows.join_asof(
        times,
        left_on=at,
        right_on=time,
        by="subject_id",
        strategy=strategy,
        allow_exact_matches=strategy == "backward",
        coalesce=False,
        check_sortedness=False,
    )


def _times_of(frame: pl.DataFrame, concepts: list[int], name: str) -> pl.DataFrame:
    matching = frame.filter(pl.col("concept").is_in(concepts)).select("subject_id", pl.col("time_us").alias(name))
    return matching.unique().sort("subject_id", name)


def _choose(rows: pl.DataFrame, choice: str, seed: int) -> pl.DataFrame:
    if choice == "last":
        return rows.group_by("subject_id", maintain_order=True).last()
    if choice == "one":
        # Not the hash that draw_rows goes by: the least of many is small, so those with many would crowd out others.
        keys = _mix(row_hash(rows.get_column("subject_id"), rows.get_column("time_us"), seed) + _GAMMA)
        drawn = rows.with_columns(key=pl.Series(keys, dtype=pl.UInt64)).sort("subject_id", "key")
        return drawn.group_by("subject_id", maintain_order=True).first()
    return rows
