"""One subject's past, sampled futures and recorded future, in days from the prediction time: no id, no date.

What the report draws of a subject; times are relative, so that the page holds neither subject id nor calendar date.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from cometjax import trajectories
from cometjax.engine import Future
from cometjax.estimators import KEYS
from cometjax.risks import Simulation
from cometjax.tasks import BEFORE_ALL_TIME_US, MICROSECONDS_PER_DAY, Events, Task
from data_pipeline.vocabulary import Vocabulary

LANES = ("ENCOUNTER", "DIAGNOSIS", "LAB", "MEDICATION", "PROCEDURE")
OTHER_LANE = "OTHER"
# More tasks than these make a subject's picture unreadable.
_MOST_TASKS = 6
_KEYS = list(KEYS)


@dataclasses.dataclass(frozen=True)
class DatedEvent:
    """An event: days from the prediction time (negative before), and the lane (kind) it is drawn in."""

    days: float
    lane: str


@dataclasses.dataclass(frozen=True)
class Strip:
    """One future: its events, the first day of each task's outcome, why it stopped, and the days it covers."""

    events: tuple[DatedEvent, ...]
    outcomes: Mapping[str, float]
    stop: str
    days: float


@dataclasses.dataclass(frozen=True)
class Story:
    """A subject at one prediction time.

    Attributes:
        tasks: by name the horizon in days.
        risks: by name the risk that is scored.
        horizon_days: the longest of the horizons.
        history: events up to the prediction time.
        recorded: what did happen, as recorded.
        futures: what was simulated.
    """

    tasks: Mapping[str, float]
    risks: Mapping[str, float]
    horizon_days: float
    history: tuple[DatedEvent, ...]
    recorded: Strip
    futures: tuple[Strip, ...]

    @property
    def lanes(self) -> tuple[str, ...]:
        """The lanes that the history needs, in order."""
        used = {event.lane for event in self.history}
        return tuple(lane for lane in (*LANES, OTHER_LANE) if lane in used or lane == "ENCOUNTER")


def choose(
    events: Events,
    tasks: Sequence[Task],
    risks: Mapping[str, pl.DataFrame],
    simulations: Mapping[str, Simulation],
    vocabulary: Vocabulary,
) -> Story | None:
    """The story of the prompt that answers most tasks of one simulation; of such, that whose risks are least certain.

    Its tasks are those of plain yes or no, and where they are many, the least certain of them.
    """
    group = max(simulations, key=lambda timeline_end: len(simulations[timeline_end].futures))
    candidates = [t for t in tasks if t.timeline_end == group and t.kind == "binary" and not t.until]
    if not candidates:
        return None
    spread = pl.col("risk") * (1 - pl.col("risk"))
    every = pl.concat([risks[task.name].select(*_KEYS, spread.alias("spread")) for task in candidates])
    if every.is_empty():
        return None
    ranked = every.group_by(_KEYS).agg(tasks=pl.len(), spread=pl.col("spread").sum())
    chosen = ranked.sort("tasks", "spread", *_KEYS, descending=[True, True, False, False]).head(1)
    own = {task.name: risks[task.name].join(chosen, on=_KEYS) for task in candidates}
    asked = [task for task in candidates if len(own[task.name])]
    uncertain = sorted(asked, key=lambda task: abs(own[task.name].get_column("risk")[0] - 0.5))[:_MOST_TASKS]
    asked = [task for task in asked if task in uncertain]
    times = simulations[group].times.with_row_index().join(chosen.select(_KEYS), on=_KEYS, maintain_order="left")
    futures = [simulations[group].futures[index] for index in times.get_column("index")]
    subject_id, time_us = chosen.select("subject_id", pl.col("prediction_time").dt.epoch("us")).row(0)
    scored = {task.name: own[task.name].get_column("risk")[0] for task in asked}
    return tell(events, subject_id, time_us, asked, scored, times, futures, vocabulary)


def tell(
    events: Events,
    subject_id: int,
    time_us: int,
    tasks: Sequence[Task],
    risks: Mapping[str, float],
    times: pl.DataFrame,
    futures: Sequence[Future],
    vocabulary: Vocabulary,
) -> Story:
    """The story of one prompt.

    `risks` are those scored of it, by task; `futures` its samples, `times` their rows of estimators.outcome_times.
    """
    horizon_days = max(task.horizon_days for task in tasks)
    own = events.frame.filter((pl.col("subject_id") == subject_id) & (pl.col("time_us") != BEFORE_ALL_TIME_US))
    relative = own.select((pl.col("time_us") - time_us) / MICROSECONDS_PER_DAY, "concept")
    dated = [(days, events.concepts[concept]) for days, concept in relative.iter_rows()]
    history: list[DatedEvent] = []
    recorded: list[DatedEvent] = []
    for days, concept in dated:
        if concept.role not in ("birth", "end") and days <= horizon_days:
            (history if days <= 0 else recorded).append(DatedEvent(days, _lane(concept.kind)))
    last_day = max((days for days, _ in dated), default=0.0)
    return Story(
        tasks={task.name: task.horizon_days for task in tasks},
        risks=risks,
        horizon_days=horizon_days,
        history=tuple(history),
        recorded=Strip(tuple(recorded), _recorded_outcomes(events, dated, tasks), "", min(last_day, horizon_days)),
        futures=tuple(
            _strip(future, times.row(index, named=True), tasks, horizon_days, vocabulary)
            for index, future in enumerate(futures)
        ),
    )


def _recorded_outcomes(events: Events, dated: Sequence[tuple], tasks: Sequence[Task]) -> dict[str, float]:
    outcomes = {}
    for task in tasks:
        wanted = {events.concepts[index] for index in events.matching(task.outcome)}
        days = [day for day, concept in dated if concept in wanted and 0 < day <= task.horizon_days]
        if days:
            outcomes[task.name] = min(days)
    return outcomes


def _strip(
    future: Future, row: Mapping[str, Any], tasks: Sequence[Task], horizon_days: float, vocabulary: Vocabulary
) -> Strip:
    shown = []
    for concept, kind, time_us, _ in trajectories.events_of(future, vocabulary):
        event = vocabulary.event_of_concept.get(concept)
        days = (time_us - future.prediction_time_us) / MICROSECONDS_PER_DAY
        if 0 <= days <= horizon_days and (event is None or vocabulary.events[event].role != "end"):
            shown.append(DatedEvent(days, _lane(kind)))
    outcomes = {}
    for task in tasks:
        first_us = row[task.name]
        if first_us is not None and first_us <= task.horizon_us:
            outcomes[task.name] = first_us / MICROSECONDS_PER_DAY
    return Strip(tuple(shown), outcomes, future.stop, min(row["elapsed_us"] / MICROSECONDS_PER_DAY, horizon_days))


def _lane(kind: str) -> str:
    return kind if kind in LANES else OTHER_LANE
