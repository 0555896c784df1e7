"""Simulated tokens as events with times and values, and as MEDS rows.

The rows follow MEDS-trajectory-evaluation's `GeneratedTrajectorySchema`: MEDS data (`subject_id`, `time`, `code`,
`numeric_value`, `text_value`) plus `prediction_time`, not null, in microseconds. That package reads a folder of parquet
files, each of them one trajectory for every (subject_id, prediction_time): one file per sample index.
"""

import pathlib
from collections.abc import Iterable, Iterator, Sequence

import meds
import polars as pl
import pyarrow as pa
import pyarrow.parquet

from cometjax.futures import Future, clock
from data_pipeline import grammar
from data_pipeline.vocabulary import Event, Vocabulary

SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "subject_id": pl.Int64,
    "prediction_time": pl.Datetime("us"),
    "time": pl.Datetime("us"),
    "code": pl.String,
    "numeric_value": pl.Float32,
    "text_value": pl.String,
}
_ARROW_SCHEMA = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("prediction_time", pa.timestamp("us"), nullable=False),
        pa.field("time", pa.timestamp("us")),
        pa.field("code", pa.string(), nullable=False),
        pa.field("numeric_value", pa.float32()),
        pa.field("text_value", pa.large_string()),
    ]
)
# A trajectory's last row: when it stopped, and why. So a trajectory without events is still there to be counted.
END_CODE = "TRAJECTORY_END"


def events_of(future: Future, vocabulary: Vocabulary) -> list[tuple[str, str, int, float | None]]:
    """The future's valid events, in order: (concept, kind, time in microseconds since 1970, value or None).

    The value is the mean of the training values in the decile; results in words are only in `to_meds`. Tokens that
    spell no event are left out; `count_invalid` counts them.
    """
    return [
        (event.concept, event.kind, time_us, _value(event, parsed.decile))
        for event, time_us, parsed in _parse(future, vocabulary)
    ]


def count_invalid(future: Future, vocabulary: Vocabulary) -> tuple[int, int]:
    """(events that break the grammar, all events). A last event cut off by stop "length" counts as broken."""
    parsed = grammar.parse(future.tokens_T.tolist(), vocabulary)
    return sum(event.event == grammar.INVALID for event in parsed), len(parsed)


def to_meds(futures: Iterable[Future], vocabulary: Vocabulary) -> pl.DataFrame:
    """MEDS rows of futures (module docstring), in the futures' order; each ends with a row `TRAJECTORY_END//<stop>`.

    `code` is the concept, and MEDS_DEATH for deaths, the name that the standard reserves.
    """
    deaths = {event.concept for event in vocabulary.events if event.role == "death"}
    rows: list[tuple[int, int, int, str, float | None, str | None]] = []
    for future in futures:
        key = (future.subject_id, future.prediction_time_us)
        for event, time_us, parsed in _parse(future, vocabulary):
            code = meds.death_code if event.concept in deaths else event.concept
            rows.append((*key, time_us, code, _value(event, parsed.decile), parsed.text or None))
        end_us = future.prediction_time_us + _last_second(future, vocabulary) * 1_000_000
        rows.append((*key, end_us, f"{END_CODE}//{future.stop}", None, None))
    integers = {name: pl.Int64 if dtype == pl.Datetime("us") else dtype for name, dtype in SCHEMA.items()}
    return pl.DataFrame(rows, schema=integers, orient="row").cast(pl.Schema(SCHEMA))


def write_parquet(rows: pl.DataFrame, path: pathlib.Path) -> None:
    """Write `to_meds`'s rows with the exact Arrow types of the schema (polars alone would write large strings)."""
    pyarrow.parquet.write_table(rows.to_arrow().cast(_ARROW_SCHEMA), path)


def _parse(future: Future, vocabulary: Vocabulary) -> Iterator[tuple[Event, int, grammar.ParsedEvent]]:
    """(event, time in microseconds since 1970, how it was spelt) of the future's valid events."""
    seconds_T = clock(future, vocabulary)
    for parsed in grammar.parse(future.tokens_T.tolist(), vocabulary):
        if parsed.event != grammar.INVALID:
            time_us = future.prediction_time_us + int(seconds_T[parsed.start]) * 1_000_000
            yield vocabulary.events[parsed.event], time_us, parsed


def _last_second(future: Future, vocabulary: Vocabulary) -> int:
    seconds_T: Sequence[int] = clock(future, vocabulary).tolist()
    return seconds_T[-1] if seconds_T else 0


def _value(event: Event, decile: int) -> float | None:
    return float(event.means[decile - 1]) if decile and event.means else None
