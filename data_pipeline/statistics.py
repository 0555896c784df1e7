"""What the vocabulary is made from: exact, mergeable counts over the training subjects of each MEDS shard."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import polars as pl

from data_pipeline import static_prefix
from data_pipeline.columns import NO_TIME, RACE, SEX, Columns, ancestors


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Counts over some training subjects; `merge` adds those of disjoint subjects, exactly.

    Attributes:
        subjects: how many.
        concepts: [concept, kind, role, parts, subjects, events]: a code and each of its shorter forms, with how many
            subjects have it and how many events fall to it.
        values: [concept, value, events]: exact histogram of numeric values.
        static: [token, subjects]: sex, race and calendar-period tokens.
        rules: [rule, code, events]: what each code-map rule took; rule -1 is none.
    """

    subjects: int
    concepts: pl.DataFrame
    values: pl.DataFrame
    static: pl.DataFrame
    rules: pl.DataFrame


def count(columns: Columns) -> Statistics:
    """Count the subjects of one shard."""
    made = np.flatnonzero(columns.makes_event())
    code_n, subject_n = columns.code_E[made].astype(np.int64), columns.subject_E[made]
    exact = pl.DataFrame({"code": code_n, "subject": subject_n, "value": columns.value_E[made]})
    levels = _levels(columns)
    return Statistics(
        subjects=len(columns.subject_ids_S),
        concepts=_count_concepts(exact, levels),
        values=exact.filter(pl.col("value").is_not_nan())
        .group_by("code", "value")
        .agg(events=pl.len().cast(pl.Int64))
        .join(levels.filter(pl.col("level") == 0).select("code", "concept"), on="code")
        .group_by("concept", "value")
        .agg(pl.col("events").sum())
        .sort("concept", "value"),
        static=_count_static(columns, columns.time_E[made], subject_n),
        rules=_count_rules(columns),
    )


def merge(parts: Sequence[Statistics]) -> Statistics:
    """Add the counts of disjoint sets of subjects; the result does not depend on how they were parted."""
    keys = ("concept", "kind", "role", "parts")
    return Statistics(
        subjects=sum(part.subjects for part in parts),
        concepts=_add([part.concepts for part in parts], keys),
        values=_add([part.values for part in parts], ("concept", "value")),
        static=_add([part.static for part in parts], ("token",)),
        rules=_add([part.rules for part in parts], ("rule", "code")),
    )


def _add(tables: Sequence[pl.DataFrame], keys: Sequence[str]) -> pl.DataFrame:
    return pl.concat(tables).group_by(keys).agg(pl.exclude(keys).sum()).sort(keys)


def _levels(columns: Columns) -> pl.DataFrame:
    """[code, level, concept, kind, role, parts]: each code (by index) as itself (level 0) and as its shorter forms."""
    rows = [
        (code, level, form.name, form.kind, form.role, "\n".join(form.parts))
        for code, concept in enumerate(columns.concepts)
        for level, form in enumerate(ancestors(concept))
    ]
    schema = {"code": pl.Int64, "level": pl.Int64, "concept": pl.String, "kind": pl.String, "role": pl.String}
    return pl.DataFrame(rows, schema=schema | {"parts": pl.String}, orient="row")


def _count_concepts(exact: pl.DataFrame, levels: pl.DataFrame) -> pl.DataFrame:
    # Distinct (subject, code) first: there are far fewer of them than events.
    pairs = exact.group_by("subject", "code").agg(events=pl.len().cast(pl.Int64)).join(levels, on="code")
    keys = ("concept", "kind", "role", "parts")
    return pairs.group_by(keys).agg(subjects=pl.col("subject").n_unique().cast(pl.Int64), events=pl.col("events").sum())


def _count_static(columns: Columns, time_n: np.ndarray, subject_n: np.ndarray) -> pl.DataFrame:
    rows = np.flatnonzero(columns.has_role(SEX, RACE))
    texts = [concept.parts[0] for concept in columns.concepts]
    starts, inverse = np.unique(static_prefix.period_start(time_n[time_n != NO_TIME]), return_inverse=True)
    periods = [static_prefix.period_token(int(start)) for start in starts]
    tokens = [texts[code] for code in columns.code_E[rows]] + [periods[i] for i in inverse]
    subjects = np.concatenate((columns.subject_E[rows], subject_n))
    table = pl.DataFrame({"token": tokens, "subject": subjects}, schema={"token": pl.String, "subject": pl.Int64})
    return table.group_by("token").agg(subjects=pl.col("subject").n_unique().cast(pl.Int64))


def _count_rules(columns: Columns) -> pl.DataFrame:
    events_C = np.bincount(columns.code_E, minlength=len(columns.codes))
    content = {
        "rule": [concept.rule for concept in columns.concepts],
        "code": list(columns.codes),
        "events": events_C.tolist(),
    }
    return pl.DataFrame(content, schema={"rule": pl.Int64, "code": pl.String, "events": pl.Int64})
