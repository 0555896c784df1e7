"""Signs that what a task takes for the end of the data, or of a subject's observation, is none.

Rows whose horizon lies past the true end count as "did not happen", or rows are out because nothing happened to them;
either way without any other sign.
"""

import datetime
from collections.abc import Sequence

import polars as pl

from cometjax.tasks import BEFORE_ALL_TIME_US, CENSORINGS, MICROSECONDS_PER_DAY, Events, Task
from data_pipeline import follow_up

# A data set's last events are spread over some weeks, as subjects come and go.
FAR_DAYS = 90


def warnings(events: Events, tasks: Sequence[Task]) -> list[str]:
    """One line for each sign that these tasks' censoring misleads on these events; dates are of the whole data set."""
    asked = dict.fromkeys(task.censoring for task in tasks)
    if events.end_us == BEFORE_ALL_TIME_US:
        return []
    found = [] if "assume_complete" in asked and len(asked) == 1 else _of_last_event(events, list(asked))
    return found + (_of_observation(events) if "observation_end" in asked else [])


def _of_last_event(events: Events, asked: Sequence[str]) -> list[str]:
    found = []
    goes_by_it = "dataset_end" in asked or "observation_end" in asked
    if goes_by_it and events.usual_end_us is not None and _days_between(events.usual_end_us, events.end_us) > FAR_DAYS:
        found.append(
            f"the data's last event is of {_date(events.end_us)}, and nearly all subjects have their last one by "
            f"{_date(events.usual_end_us)}: rows whose horizon nobody saw may count as 'did not happen'; set censoring "
            "to the data's last day (YYYY-MM-DD), or to assume_complete where dates are shifted by subject"
        )
    for date in sorted(set(asked) - set(CENSORINGS)):
        if follow_up.end_of_day(date) - events.end_us > FAR_DAYS * MICROSECONDS_PER_DAY:
            found.append(
                f"censoring {date} is long after the data's last event, of {_date(events.end_us)}: rows whose horizon "
                "nobody saw count as 'did not happen'; give the data's last day"
            )
    return found


def _of_observation(events: Events) -> list[str]:
    if events.observed is None or events.observed.is_empty():
        return []
    dated = events.frame.filter(pl.col("time_us") != BEFORE_ALL_TIME_US)
    last = dated.group_by("subject_id").agg(last_us=pl.col("time_us").max())
    known = events.observed.join(last, on="subject_id", how="left")
    far = known.filter(pl.col("observed_us") - events.end_us > FAR_DAYS * MICROSECONDS_PER_DAY)
    # By days: the end of an observation period is often a date, that is midnight before what the day has.
    observed, last_event = (pl.col(name) // MICROSECONDS_PER_DAY for name in ("observed_us", "last_us"))
    share = len(known.filter((observed - last_event).is_between(0, 1))) / len(known)
    found = []
    if len(far):
        found.append(
            f"observation_end: the observation of {len(far):,} of {len(known):,} subjects ends long after the data's "
            f"last event, of {_date(events.end_us)}: rows whose horizon nobody saw count as 'did not happen'; set "
            "censoring to the data's last day (YYYY-MM-DD)"
        )
    if share > 0.5:
        found.append(
            f"observation_end: the observation of {share:.0%} of {len(known):,} subjects ends with their last event: "
            "rows are out where nothing happens later, and risks are too high; set censoring to dataset_end or a date"
        )
    return found


def _days_between(first_us: int, last_us: int) -> int:
    return last_us // MICROSECONDS_PER_DAY - first_us // MICROSECONDS_PER_DAY


def _date(time_us: int) -> str:
    return str((datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=time_us)).date())
