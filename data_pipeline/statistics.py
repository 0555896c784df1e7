"""What the vocabulary is made from: exact, mergeable counts over the training subjects of each MEDS shard."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import polars as pl

from data_pipeline import static_prefix, text_values
from data_pipeline.code_maps import Concept
from data_pipeline.columns import RACE, SEX, Columns, changes

CONCEPT_KEYS = ("concept", "kind", "role", "parts")


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Counts over some training subjects; `merge` adds those of disjoint subjects, exactly.

    Attributes:
        subjects: how many.
        concepts: [concept, kind, role, parts, subjects, events]: a code and each of its shorter forms, with how many
            subjects have it and how many events fall to it.
        values: [concept, value, events]: exact histogram of numeric values.
        texts: [concept, text, subjects, events]: texts in place of numbers (see text_values); no row unless read.
        static: [token, subjects]: sex, race and calendar-period tokens.
        rules: [rule, code, events]: what each code-map rule took; rule -1 is none.
    """

    subjects: int
    concepts: pl.DataFrame
    values: pl.DataFrame
    texts: pl.DataFrame
    static: pl.DataFrame
    rules: pl.DataFrame


def count(columns: Columns) -> Statistics:
    """Count the subjects of one shard."""
    made = np.flatnonzero(columns.makes_event())
    code_n, subject_n = columns.code_E[made], columns.subject_E[made]
    forms = _Forms.of(columns.concepts)
    return Statistics(
        subjects=len(columns.subject_ids_S),
        concepts=_count_concepts(subject_n, code_n, forms),
        values=_count_values(forms.exact_C[code_n], columns.value_E[made], forms),
        texts=_count_texts(columns, made, forms),
        static=_count_static(columns, columns.time_E[made], subject_n),
        rules=_count_rules(columns),
    )


def merge(parts: Sequence[Statistics]) -> Statistics:
    """Add the counts of disjoint sets of subjects; the result does not depend on how they were parted."""
    return Statistics(
        subjects=sum(part.subjects for part in parts),
        concepts=_add([part.concepts for part in parts], CONCEPT_KEYS),
        values=_add([part.values for part in parts], ("concept", "value")),
        texts=text_values.merge([part.texts for part in parts]),
        static=_add([part.static for part in parts], ("token",)),
        rules=_add([part.rules for part in parts], ("rule", "code")),
    )


def _add(tables: Sequence[pl.DataFrame], keys: Sequence[str]) -> pl.DataFrame:
    return pl.concat(tables).group_by(keys).agg(pl.exclude(keys).sum()).sort(keys)


@dataclasses.dataclass(frozen=True)
class _Forms:
    """The F forms that a shard's codes (C) can take, sorted by name: each code as itself, and its shorter ones."""

    concepts: Sequence[Concept]
    exact_C: np.ndarray  # the code as itself
    form_Cx3: np.ndarray  # the code, then its ever shorter forms; -1 where there is none

    @classmethod
    def of(cls, concepts: Sequence[Concept]) -> "_Forms":
        keys_C = [[form.key for form in concept.forms] for concept in concepts]
        by_key = {form.key: form for concept in concepts for form in concept.forms}
        keys = sorted(by_key)
        number = {key: index for index, key in enumerate(keys)}
        numbers = [[*(number[key] for key in own), -1, -1][:3] for own in keys_C]
        form_Cx3 = np.array(numbers, np.int64).reshape(-1, 3)
        return cls([by_key[key] for key in keys], form_Cx3[:, 0], form_Cx3)

    def names(self, indices: np.ndarray) -> pl.Series:
        """The names of some forms."""
        return pl.Series([form.name for form in self.concepts], dtype=pl.String).gather(indices)


def _count_concepts(subject_n: np.ndarray, code_n: np.ndarray, forms: _Forms) -> pl.DataFrame:
    num_codes, num_forms = len(forms.exact_C), len(forms.concepts)
    # Distinct (subject, code) first: there are far fewer of them than events, and only they need their shorter forms.
    pairs, _ = _runs(subject_n * num_codes + code_n)
    subject_p, code_p = np.divmod(pairs, max(num_codes, 1))
    form_px3 = forms.form_Cx3[code_p]
    distinct, _ = _runs((subject_p[:, None] * num_forms + form_px3)[form_px3 >= 0])
    subjects_F = np.bincount(distinct % max(num_forms, 1), minlength=num_forms)
    events_C = np.bincount(code_n, minlength=num_codes)
    has_form = forms.form_Cx3 >= 0
    events_F = np.zeros(num_forms, np.int64)
    np.add.at(events_F, forms.form_Cx3[has_form], np.repeat(events_C, has_form.sum(axis=1)))
    seen = np.flatnonzero(events_F).tolist()
    keys = [forms.concepts[form].key for form in seen]
    columns = {name: pl.Series(name, [key[i] for key in keys], pl.String) for i, name in enumerate(CONCEPT_KEYS)}
    return pl.DataFrame(
        [*columns.values(), pl.Series("subjects", subjects_F[seen]), pl.Series("events", events_F[seen])]
    )


def _count_values(form_n: np.ndarray, value_n: np.ndarray, forms: _Forms) -> pl.DataFrame:
    valued = ~np.isnan(value_n)
    # One integer orders by form, then value: integers sort many times faster than rows of two columns.
    keys, events = _runs(form_n[valued] << 32 | _sortable(value_n[valued]))
    return pl.DataFrame(
        {
            "concept": forms.names(keys >> 32),
            "value": _unsortable(keys & 0xFFFF_FFFF).astype(np.float64),
            "events": events,
        },
        schema={"concept": pl.String, "value": pl.Float64, "events": pl.Int64},
    )


def _count_texts(columns: Columns, made: np.ndarray, forms: _Forms) -> pl.DataFrame:
    if columns.text_E is None:
        return pl.DataFrame(schema=text_values.SCHEMA)
    worded = made[columns.text_E[made] >= 0]
    num_texts, num_subjects = max(len(columns.texts), 1), max(len(columns.subject_ids_S), 1)
    of_form = forms.exact_C[columns.code_E[worded]] * num_texts + columns.text_E[worded]
    pairs, events = _runs(of_form * num_subjects + columns.subject_E[worded])
    keys = pairs // num_subjects
    starts = np.flatnonzero(changes(keys))
    table = {
        "concept": forms.names(keys[starts] // num_texts),
        "text": pl.Series(columns.texts, dtype=pl.String).gather(keys[starts] % num_texts),
        "subjects": np.diff(starts, append=len(keys)),
        "events": np.add.reduceat(events, starts) if len(starts) else events,
    }
    return text_values.merge([pl.DataFrame(table, schema=text_values.SCHEMA)])


def _sortable(value_n: np.ndarray) -> np.ndarray:
    """int64 in [0, 2^32), in the order of the float32 values; both zeros are one."""
    bits = (value_n + np.float32(0)).view(np.int32).astype(np.int64)
    # Negative floats grow with their magnitude's bits: turn those round.
    return np.where(bits < 0, ~bits & 0x7FFF_FFFF, bits | 0x8000_0000)


def _unsortable(keys: np.ndarray) -> np.ndarray:
    """float32: the inverse of `_sortable`."""
    bits = np.where(keys & 0x8000_0000, keys & 0x7FFF_FFFF, ~keys & 0xFFFF_FFFF)
    return bits.astype(np.uint32).view(np.float32)


def _runs(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(distinct keys in order, how often each occurs); numpy's unique is slower, for it sorts by hashing or argsort."""
    ordered = np.sort(keys)
    starts = np.flatnonzero(changes(ordered))
    return ordered[starts], np.diff(starts, append=len(ordered))


def _count_static(columns: Columns, time_n: np.ndarray, subject_n: np.ndarray) -> pl.DataFrame:
    subjects: dict[str, set[int]] = {}
    texts = [concept.parts[0] for concept in columns.concepts]
    rows = np.flatnonzero(columns.has_role(SEX, RACE))
    for code, subject in zip(columns.code_E[rows].tolist(), columns.subject_E[rows].tolist(), strict=True):
        subjects.setdefault(texts[code], set()).add(subject)
    # Periods change rarely along a subject's events: look only where the time does.
    moments = np.flatnonzero(changes(subject_n) | changes(time_n))
    starts = static_prefix.period_start(time_n[moments])
    first_year = starts.min(initial=0)
    pairs, _ = _runs(subject_n[moments] * 100_000 + (starts - first_year))
    tokens = [(text, len(members)) for text, members in subjects.items()]
    years, counts = _runs(pairs % 100_000)
    tokens += [
        (static_prefix.period_token(int(year + first_year)), int(n)) for year, n in zip(years, counts, strict=True)
    ]
    schema = {"token": pl.String, "subjects": pl.Int64}
    return pl.DataFrame(sorted(tokens), schema=schema, orient="row")


def _count_rules(columns: Columns) -> pl.DataFrame:
    events_C = np.bincount(columns.code_E, minlength=len(columns.codes))
    seen = np.flatnonzero(events_C).tolist()
    content = {
        "rule": [columns.concepts[code].rule for code in seen],
        "code": [columns.codes[code] for code in seen],
        "events": events_C[seen],
    }
    return pl.DataFrame(content, schema={"rule": pl.Int64, "code": pl.String, "events": pl.Int64})
