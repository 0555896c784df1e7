"""What baselines see of a history: counts of concepts by time window, and age. Sex is a concept, counted like others.

N rows   C concepts   F features   W windows

The history of a row is what the prompt holds: every event up to and including its prediction time. A window of d days
holds the events of (t - d, t]; static events (sex, race), which have no time, are in "ever" alone.
"""

import dataclasses

import numpy as np
import polars as pl
import scipy.sparse

from cometjax.tasks import BEFORE_ALL_TIME_US, MICROSECONDS_PER_DAY, Events

MICROSECONDS_PER_DECADE = 3652.5 * MICROSECONDS_PER_DAY
# Days before the prediction time, both shorter than ever.
WINDOW_DAYS = (30, 365)
# A feature that fewer training subjects have cannot be told from noise.
MIN_SUBJECTS_PER_FEATURE = 3


@dataclasses.dataclass(frozen=True)
class CountFeatures:
    """The features of a fitted baseline: log1p counts of the chosen (window, concept) columns, then age in decades.

    `columns` indexes the W x C counts of `window_counts`, ascending.
    """

    columns: np.ndarray

    @classmethod
    def choose(cls, counts_NxF: scipy.sparse.csr_array, subjects_N: np.ndarray) -> "CountFeatures":
        """Those of `window_counts` that enough training subjects have in some row's history."""
        present = scipy.sparse.coo_array(counts_NxF)
        pairs = np.unique(np.stack([present.col.astype(np.int64), subjects_N[present.row]]), axis=1)
        columns, subjects = np.unique(pairs[0], return_counts=True)
        enough = columns[subjects >= MIN_SUBJECTS_PER_FEATURE]
        return cls(enough if len(enough) else columns)

    def __len__(self) -> int:
        return len(self.columns) + 1

    def of(self, events: Events, rows: pl.DataFrame) -> scipy.sparse.csr_array:
        """float64 sparse [N, F] for these rows."""
        return self.of_counts(window_counts(events, rows), events, rows)

    def of_counts(
        self, counts_NxF: scipy.sparse.csr_array, events: Events, rows: pl.DataFrame
    ) -> scipy.sparse.csr_array:
        """float64 sparse [N, F] where `window_counts` of the rows is at hand."""
        chosen_NxF = counts_NxF[:, self.columns].astype(np.float64)
        chosen_NxF.data = np.log1p(chosen_NxF.data)
        return scipy.sparse.csr_array(scipy.sparse.hstack([chosen_NxF, age_decades(events, rows)[:, None]]))


def window_counts(events: Events, rows: pl.DataFrame) -> scipy.sparse.csr_array:
    """Counts of each concept in each window and ever, int64 sparse [N, W C] (the windows' columns one after another).

    An event in (t - d, t] is one at or before t, and not at or before t - d.
    """
    ever_NxC = count_history(events, rows)
    windows = []
    for days in WINDOW_DAYS:
        earlier = rows.with_columns(pl.col("prediction_time") - pl.duration(days=days))
        window_NxC = scipy.sparse.csr_array(ever_NxC - count_history(events, earlier))
        # What is not stored is 0: trees must not take a stored 0 for something else.
        window_NxC.eliminate_zeros()
        windows.append(window_NxC)
    return scipy.sparse.csr_array(scipy.sparse.hstack([*windows, ever_NxC]))


def count_history(events: Events, rows: pl.DataFrame) -> scipy.sparse.csr_array:
    """How often each concept occurs at or before each row's prediction time, int64 sparse [N, C] in row order.

    Each event is counted once, at the first row that sees it, and the counts are then summed along the subject's rows:
    memory grows with events + counts, not with events x rows.
    """
    times = rows.select(
        "subject_id", pl.col("prediction_time").cast(pl.Int64).alias("time_us"), row=pl.int_range(pl.len())
    ).sort("subject_id", "time_us")
    first_seen = (
        events.frame.filter(pl.col("subject_id").is_in(times.get_column("subject_id").implode()))
        .sort("time_us")
        .join_asof(
            times.with_columns(position=pl.int_range(pl.len())).sort("time_us"),
            on="time_us",
            by="subject_id",
            strategy="forward",
            check_sortedness=False,
        )
        .drop_nulls("position")
        .group_by("position", "concept")
        .len()
    )
    shape = (len(rows), len(events.concepts))
    where = (first_seen.get_column("position").to_numpy(), first_seen.get_column("concept").to_numpy().astype(np.int64))
    increments_NxC = scipy.sparse.csr_array((first_seen.get_column("len").to_numpy().astype(np.int64), where), shape)
    counts_NxC = _running_sums(times.get_column("subject_id").to_numpy()) @ increments_NxC
    # From (subject, time) order back to the order of `rows`.
    return scipy.sparse.csr_array(counts_NxC[np.argsort(times.get_column("row").to_numpy())])


def _running_sums(sorted_subjects_N: np.ndarray) -> scipy.sparse.csr_array:
    """Sparse [N, N]: row i adds up the rows of its own subject up to and including i."""
    rows = len(sorted_subjects_N)
    starts_N = np.searchsorted(sorted_subjects_N, sorted_subjects_N, side="left")
    lengths_N = np.arange(rows) - starts_N + 1
    offsets = np.concatenate(([0], np.cumsum(lengths_N)))
    columns = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths_N) + np.repeat(starts_N, lengths_N)
    return scipy.sparse.csr_array((np.ones(len(columns), np.int64), columns, offsets), (rows, rows))


def age_decades(events: Events, rows: pl.DataFrame) -> np.ndarray:
    """Age at the prediction time in decades, float64 [N]; 0 where no birth is recorded."""
    is_birth = pl.col("concept").is_in(events.in_role("birth")) & (pl.col("time_us") > BEFORE_ALL_TIME_US)
    births = events.frame.filter(is_birth).group_by("subject_id").agg(birth_us=pl.col("time_us").min())
    joined = rows.join(births, on="subject_id", how="left", maintain_order="left")
    age = (pl.col("prediction_time").cast(pl.Int64) - pl.col("birth_us")) / MICROSECONDS_PER_DECADE
    return joined.select(age.fill_null(0.0)).to_series().to_numpy()
