"""What training subjects show of a code: whether one sex alone has it, and at which ages.

E events of the vocabulary
"""

import dataclasses

import numpy as np
import polars as pl

from cometjax.tasks import BEFORE_ALL_TIME_US, Events
from data_pipeline.tokenizer import find_event
from data_pipeline.vocabulary import Vocabulary
from experiments.plausibility.windows import US_PER_YEAR, People

# A code is of one sex if so many subjects, drawn whatever their sex, would all be of it by chance this rarely.
CHANCE = 1e-6
# A code's ages are told by at least so many subjects.
MIN_SUBJECTS_FOR_AGES = 100
_SEXES = {"subject_id": pl.Int64, "sex": pl.String}
_BIRTHS = {"subject_id": pl.Int64, "birth_us": pl.Int64}


@dataclasses.dataclass(frozen=True)
class Profile:
    """Attributes:
    only_sex: event of the vocabulary → the sex that alone has it in training.
    youngest_E, oldest_E: years, the range of ages in training; infinite where too few subjects tell.
    """

    only_sex: dict[int, str]
    youngest_E: np.ndarray
    oldest_E: np.ndarray


def of_training(events: Events, subjects: pl.Series, people: People, vocabulary: Vocabulary) -> Profile:
    """The profile of these subjects' events, each told as the tokenizer tells it."""
    told = [find_event(concept, vocabulary) for concept in events.concepts]
    table = pl.DataFrame(
        {"concept": range(len(told)), "event": told}, schema={"concept": pl.UInt32, "event": pl.Int64}
    ).filter(pl.col("event") >= 0)
    sexes = pl.DataFrame({"subject_id": list(people.sexes), "sex": list(people.sexes.values())}, schema=_SEXES)
    births = pl.DataFrame(
        {"subject_id": list(people.births_us), "birth_us": list(people.births_us.values())}, schema=_BIRTHS
    )
    timed = (
        events.frame.filter(pl.col("subject_id").is_in(subjects.implode()) & (pl.col("time_us") > BEFORE_ALL_TIME_US))
        .join(table, on="concept", how="inner")
        .join(sexes, on="subject_id", how="left")
        .join(births, on="subject_id", how="left")
        .with_columns(years=(pl.col("time_us") - pl.col("birth_us")) / US_PER_YEAR)
    )
    youngest_E = np.full(len(vocabulary.events), -np.inf)
    oldest_E = np.full(len(vocabulary.events), np.inf)
    ages = (
        timed.drop_nulls("years")
        .group_by("event")
        .agg(pl.col("subject_id").n_unique(), pl.col("years").min().alias("low"), pl.col("years").max().alias("high"))
    )
    for event, count, low, high in ages.iter_rows():
        if count >= MIN_SUBJECTS_FOR_AGES:
            youngest_E[event], oldest_E[event] = low, high
    known = sexes.filter(pl.col("subject_id").is_in(subjects.implode()))
    shares = dict(known.group_by("sex").len().with_columns(pl.col("len") / max(1, len(known))).iter_rows())
    only_sex = {}
    by_sex = (
        timed.drop_nulls("sex")
        .unique(["event", "subject_id"])
        .group_by("event")
        .agg(pl.col("sex").first(), pl.col("sex").n_unique().alias("sexes"), pl.len())
    )
    for event, sex, distinct, count in by_sex.iter_rows():
        if distinct == 1 and shares[sex] ** count < CHANCE:
            only_sex[event] = sex
    return Profile(only_sex, youngest_E, oldest_E)
