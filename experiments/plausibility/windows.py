"""Windows: what tokens say of the time after a prediction time, generated or recorded, cut alike.

Both are cut at the horizon and at the same number of tokens, by the same clock: each interval token counts as its mean
duration in training. So a difference between them is the model's, and not one of bookkeeping. (Cut by its dates, the
truth of the synthetic world had 3% more events than by the clock: many visits come a year after another.)

T tokens of a window
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import polars as pl

from cometjax import grammar_states
from cometjax.futures import Future, Prompt, clock
from cometjax.tasks import BEFORE_ALL_TIME_US, Events
from data_pipeline import grammar, meds, prompts
from data_pipeline.vocabulary import TIMELINE_END, Event, Vocabulary

# What is recorded is read so many horizons far, for the clock may be behind the dates.
READ_HORIZONS = 1.25
US_PER_YEAR = 365.25 * 86_400e6


@dataclasses.dataclass(frozen=True)
class Window:
    """Attributes:
    subject_id: the MEDS subject id.
    sex: the name of the subject's sex concept; "" where unknown.
    age_years: at the prediction time; NaN where unknown.
    tokens_T: int32.
    seconds_T: the clock after each token, since the prediction time.
    is_cut: did it run out of tokens before the horizon?
    """

    subject_id: int
    sex: str
    age_years: float
    tokens_T: np.ndarray
    seconds_T: np.ndarray
    is_cut: bool

    def events(self, vocabulary: Vocabulary) -> list[tuple[int, Event, float]]:
        """The window's valid events: (index into the vocabulary's events, event, days since the prediction time)."""
        return [
            (parsed.event, vocabulary.events[parsed.event], self.seconds_T[parsed.start] / 86_400)
            for parsed in grammar.parse(self.tokens_T.tolist(), vocabulary)
            if parsed.event != grammar.INVALID
        ]


@dataclasses.dataclass(frozen=True)
class People:
    """Who the subjects are: by id, the name of the sex concept, and the time of birth in microseconds."""

    sexes: dict[int, str]
    births_us: dict[int, int]

    @classmethod
    def of(cls, events: Events) -> "People":
        """From their events."""
        sexes = events.frame.filter(pl.col("concept").is_in(events.in_role("sex"))).unique("subject_id", keep="first")
        is_birth = pl.col("concept").is_in(events.in_role("birth")) & (pl.col("time_us") > BEFORE_ALL_TIME_US)
        births = events.frame.filter(is_birth).group_by("subject_id").agg(pl.col("time_us").min())
        named = {subject: events.concepts[concept].name for subject, _, concept in sexes.iter_rows()}
        return cls(named, dict(births.iter_rows()))

    def age_years(self, subject_id: int, time_us: int) -> float:
        """Age at a time; NaN where no birth is recorded."""
        born_us = self.births_us.get(subject_id)
        return float("nan") if born_us is None else (time_us - born_us) / US_PER_YEAR


def generated(
    futures: Sequence[Future], people: People, vocabulary: Vocabulary, *, horizon_seconds: float
) -> list[Window]:
    """The windows of simulated futures, in their order."""
    return [_window(future, people, vocabulary, horizon_seconds) for future in futures]


def recorded(
    dataset: meds.MedsDataset,
    histories: Sequence[Prompt],
    people: People,
    vocabulary: Vocabulary,
    *,
    horizon_seconds: float,
    max_tokens: int,
) -> list[Window]:
    """What followed each history within the horizon, as the tokenizer tells it."""
    later = pl.DataFrame(
        {
            "subject_id": [prompt.subject_id for prompt in histories],
            "prediction_time": [
                prompt.prediction_time_us + round(READ_HORIZONS * horizon_seconds * 1e6) for prompt in histories
            ],
        },
        schema={"subject_id": pl.Int64, "prediction_time": pl.Int64},
    ).cast({"prediction_time": pl.Datetime("us")})
    windows = []
    for before, after in zip(histories, prompts.build_prompts(dataset, later, vocabulary), strict=True):
        known_T = before.tokens(1 << 30)
        whole_T = after.tokens(1 << 30)
        if not np.array_equal(whole_T[: len(known_T)], known_T):
            raise ValueError("a history's tokens changed with what came later")
        suffix_T = whole_T[len(known_T) :]
        future = Future(
            subject_id=before.subject_id,
            prediction_time_us=before.prediction_time_us,
            sample=0,
            tokens_T=suffix_T[:max_tokens],
            stop="length" if len(suffix_T) > max_tokens else "horizon",
            start_seconds=-round((before.prediction_time_us - before.last_time_us) / 1e6),
        )
        windows.append(_window(future, people, vocabulary, horizon_seconds))
    return windows


def _window(future: Future, people: People, vocabulary: Vocabulary, horizon_seconds: float) -> Window:
    seconds_T = clock(future, vocabulary)
    tokens_T = future.tokens_T[: int(np.searchsorted(seconds_T, horizon_seconds, side="right"))]
    is_cut = future.stop == "length" and len(tokens_T) == len(future.tokens_T)
    if is_cut:
        tokens_T = grammar_states.whole_events(tokens_T, vocabulary)
    # Time that leads to no event, but to TIMELINE_END at most, is none between events.
    tokens_T = tokens_T[: len(tokens_T) - int((tokens_T[-1:] == vocabulary.ids[TIMELINE_END]).sum())]
    is_interval_T = np.isin(tokens_T, vocabulary.interval_ids)
    tokens_T = tokens_T[: int(np.flatnonzero(~is_interval_T).max(initial=-1)) + 1]
    return Window(
        future.subject_id,
        people.sexes.get(future.subject_id, ""),
        people.age_years(future.subject_id, future.prediction_time_us),
        np.asarray(tokens_T, np.int32),
        seconds_T[: len(tokens_T)],
        is_cut,
    )
