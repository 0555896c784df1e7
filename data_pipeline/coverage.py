"""Which share of a data set's events each rule of a code map took, and which codes are lost to the model.

All of it is about the training split. Codes are named only where enough subjects have them: what few have can single
them out, and a manifest travels further than the data.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import polars as pl

from data_pipeline import tokenizer
from data_pipeline.code_maps import NO_RULE, ROLES_WITHOUT_EVENT, Concept
from data_pipeline.statistics import Statistics
from data_pipeline.vocabulary import Vocabulary

# The manifest stays small: so many codes of each list are named.
TOP = 20


def coverage(totals: Statistics, vocabulary: Vocabulary, min_subjects: int) -> dict[str, Any]:
    """What the manifest says about the training events: by rule, those that no rule took, and those unknown.

    Args:
        totals: counts over the training subjects.
        vocabulary: what the events are tokenized by.
        min_subjects: concepts of fewer training subjects are counted and not named.

    Returns:
        "rules": per rule that took something (NO_RULE for none) its number, distinct codes and events.
        "no_rule", "unknown": "codes" and "events" in all; "top", the concepts with most events (at most TOP); and
        "unnamed", how many concepts too few subjects have to be named. "unknown" has "by_system" as well.
    """
    subjects_of = dict(totals.concepts.group_by("concept").agg(pl.col("subjects").max()).iter_rows())
    codes_by_rule: Counter[int] = Counter()
    events_by_rule: Counter[int] = Counter()
    events_of: dict[Concept, int] = defaultdict(int)
    for rule, code, events in totals.rules.select("rule", "code", "events").iter_rows():
        codes_by_rule[rule] += 1
        events_by_rule[rule] += events
        events_of[vocabulary.code_map.concept_by_rule(code, rule)] += events
    untaken = {concept: events for concept, events in events_of.items() if concept.rule == NO_RULE}
    unknown = {concept: events for concept, events in events_of.items() if is_unknown(concept, vocabulary)}
    return {
        "events": sum(events_by_rule.values()),
        "rules": [
            {"rule": rule, "codes": codes_by_rule[rule], "events": events}
            for rule, events in sorted(events_by_rule.items(), key=lambda item: (-item[1], item[0]))
        ],
        "no_rule": _summary(untaken, subjects_of, min_subjects),
        "unknown": _summary(unknown, subjects_of, min_subjects) | {"by_system": _by_system(unknown)},
    }


def is_unknown(concept: Concept, vocabulary: Vocabulary) -> bool:
    """Does the concept become UNKNOWN//<kind>, none of its shorter forms being in the vocabulary?"""
    event = tokenizer.find_event(concept, vocabulary)
    return concept.role not in ROLES_WITHOUT_EVENT and vocabulary.events[event].concept.startswith("UNKNOWN//")


def _summary(events_of: Mapping[Concept, int], subjects_of: Mapping[str, int], min_subjects: int) -> dict[str, Any]:
    named = {
        concept: events for concept, events in events_of.items() if subjects_of.get(concept.name, 0) >= min_subjects
    }
    return {
        "codes": len(events_of),
        "events": sum(events_of.values()),
        "unnamed": len(events_of) - len(named),
        "top": [
            {"concept": concept.name, "subjects": subjects_of[concept.name], "events": events}
            for concept, events in sorted(named.items(), key=lambda item: (-item[1], item[0].name))[:TOP]
        ],
    }


def _by_system(events_of: Mapping[Concept, int]) -> list[dict[str, Any]]:
    """Codes and events of each kind and coding system: the code map's words, and none of the data's."""
    codes: Counter[tuple[str, str]] = Counter()
    events: Counter[tuple[str, str]] = Counter()
    for concept, count in events_of.items():
        key = (concept.kind, concept.parts[0].split("//")[0])
        codes[key] += 1
        events[key] += count
    return [
        {"kind": kind, "system": system, "codes": codes[kind, system], "events": count}
        for (kind, system), count in sorted(events.items(), key=lambda item: (-item[1], item[0]))
    ]
