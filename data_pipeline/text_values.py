"""Results that are words (NEG, POS, TRACE): which of them may become value tokens, and which are free text.

A text is compared in capitals, with single spaces. Free text must never reach a vocabulary, so a text becomes a value
only if it is short, if enough training subjects have it with that code, if the code has few of that kind, and if those
few make up at least half of the code's texts. What fails is left out of the tokens; its event is kept.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

LONGEST_TEXT = 32
# Beyond this many distinct texts a code's texts are free text, and none of them is kept in the counts.
MOST_DISTINCT_TEXTS = 1000
# The row that says so in the counts of texts.
FREE_TEXT = ""
# What every text that is too long to be a result counts as; no text is normalised to it.
LONG_TEXT = "\n"
_LEAST_COVERAGE = 0.5

SCHEMA = {"concept": pl.String, "text": pl.String, "subjects": pl.Int64, "events": pl.Int64}


def normalise(texts: Sequence[str]) -> list[str]:
    """Texts as they are compared; "" for those that are empty, LONG_TEXT for those that are too long to be a result."""
    # A note of a megabyte need not be read to the end.
    words = [" ".join(text.split()).upper() if len(text) <= 4 * LONGEST_TEXT else LONG_TEXT for text in texts]
    return [word if len(word) <= LONGEST_TEXT else LONG_TEXT for word in words]


def merge(tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Add counts of texts of disjoint subjects; codes with more than MOST_DISTINCT_TEXTS lose them all.

    How the subjects are parted does not matter: a part with too many distinct texts shows that the whole has too many.
    """
    table = pl.concat(tables).group_by("concept", "text").agg(pl.col("subjects", "events").sum())
    is_free = (pl.col("text") == FREE_TEXT).any() | (pl.len() > MOST_DISTINCT_TEXTS)
    table = table.with_columns(is_free=is_free.over("concept"))
    marks = (
        table.filter("is_free")
        .group_by("concept")
        .agg(text=pl.lit(FREE_TEXT), subjects=pl.lit(0, pl.Int64), events=pl.col("events").sum())
    )
    return pl.concat([table.filter(~pl.col("is_free")).drop("is_free"), marks]).sort("concept", "text")


def choose(texts: pl.DataFrame, min_subjects: int, most_per_code: int) -> dict[str, tuple[tuple[str, ...], int]]:
    """Concept → (the texts that become values, in order; how many events have one)."""
    common = texts.filter((pl.col("subjects") >= min_subjects) & ~pl.col("text").is_in([FREE_TEXT, LONG_TEXT]))
    total = dict(texts.group_by("concept").agg(pl.col("events").sum()).iter_rows())
    chosen = {}
    for (concept,), rows in common.sort("concept", "text").group_by("concept", maintain_order=True):
        events = int(rows["events"].sum())
        if len(rows) <= most_per_code and events >= _LEAST_COVERAGE * total[concept]:
            chosen[str(concept)] = (tuple(rows["text"]), events)
    return chosen


def number_texts(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """(the distinct normalised texts, sorted; the number of each text among them, -1 for what is empty)."""
    words = normalise(texts)
    distinct = sorted(set(words) - {""})
    number = {text: index for index, text in enumerate(distinct)} | {"": -1}
    return distinct, np.array([number[word] for word in words], np.int64)
