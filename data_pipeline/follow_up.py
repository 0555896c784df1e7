"""Until when subjects are observed, which tells the silence after a last event from nobody looking.

A record that ends with its last event tells nothing of the time after it: a model of such records sees long gaps less
often than they occur, the more so the shorter subjects are followed, and its risks are too high. Where it is known how
long subjects were observed, the time from the last event to that end is written as interval tokens before TIMELINE_END.
A simulation may then draw TIMELINE_END, and takes a future that ends with it for censored.
"""

import datetime

import numpy as np

from data_pipeline.columns import DEATH, NO_TIME, OBSERVATION_END, Columns
from data_pipeline.errors import UserError

# What a corpus may say of where records end, beside a date: with an event of the role "observation_end" where there are
# any, else with the last event; with the last event.
AUTO, LAST_EVENT = "auto", "last_event"
US_PER_DAY = 86_400_000_000


def ends(columns: Columns, observed_until: str = AUTO) -> np.ndarray:
    """int64 [S] microseconds at which each subject's observation ends, by its own event or, if `observed_until` is one,
    a date; NO_TIME where nothing says so, and for the dead, whose record is whole."""
    end_S = np.full(len(columns.subject_ids_S), NO_TIME)
    if observed_until == AUTO:
        rows = np.flatnonzero(columns.has_role(OBSERVATION_END) & (columns.time_E != NO_TIME))
        # Rows rise in time, and of several writes to one place the last one stays.
        end_S[columns.subject_E[rows]] = columns.time_E[rows]
    else:
        end_S[:] = end_of_day(observed_until)
    end_S[dead(columns)] = NO_TIME
    return end_S


def dead(columns: Columns) -> np.ndarray:
    """bool [S]: has the subject a dated death?"""
    dead_S = np.zeros(len(columns.subject_ids_S), bool)
    dead_S[columns.subject_E[columns.has_role(DEATH) & (columns.time_E != NO_TIME)]] = True
    return dead_S


def end_of_day(date: str, where: str = "") -> int:
    """Microseconds since 1970 at which a day (YYYY-MM-DD) is over; raises UserError with `where` if it is no date."""
    try:
        day = datetime.date.fromisoformat(date)
    except ValueError as error:
        raise UserError(f"{date!r} is not a date", where=where, fix="write YYYY-MM-DD") from error
    return ((day - datetime.date(1970, 1, 1)).days + 1) * US_PER_DAY
