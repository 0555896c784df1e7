"""The grammar of a timeline: reading tokens back as events, and telling whether they obey it.

    timeline := prefix (SEX RACE AGE PERIOD)  entry*  (interval? TIMELINE_END)?
    entry    := interval? event               (the longest interval may repeat)
    event    := first part* value?            as one of the vocabulary's events spells it

A value stands exactly where the event takes one: never, optionally, or always. Where values are fused, the last first
or part is the value's too, and there is no value token. An interval before TIMELINE_END is the time up to the end of
observation, where the vocabulary knows it (data_pipeline.follow_up).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipeline.vocabulary import DECILES, PREFIX_LENGTH, PREFIX_SYSTEMS, Vocabulary

INVALID = -1


@dataclasses.dataclass(frozen=True)
class ParsedEvent:
    """One event read back: tokens [start, stop) spell vocabulary.events[event].

    Its value is a decile 1..10 (0 for none), or a text ("" for none). `event` is INVALID for tokens that spell nothing:
    a part without its first, an unfinished code, a stray value.
    """

    event: int
    decile: int
    start: int
    stop: int
    text: str = ""


def parse(tokens: Sequence[int], vocabulary: Vocabulary) -> list[ParsedEvent]:
    """Events of a token sequence (a timeline or a continuation of one), in order; intervals and prefix are skipped."""
    grammar = vocabulary.grammar_of
    no_value = vocabulary.no_value
    parsed = []
    index, size = 0, len(tokens)
    while index < size:
        kind = grammar[tokens[index]]
        if kind in ("interval", "static", "pad", "end"):
            index += 1
            continue
        start = index
        index += 1
        while index < size and grammar[tokens[index]] == "part":
            index += 1
        if index < size and grammar[tokens[index]] == "value":
            index += 1
        event, value = vocabulary.readings.get(tuple(int(token) for token in tokens[start:index]), (INVALID, no_value))
        decile = value + 1 if value < DECILES else 0
        text = vocabulary.events[event].texts[value - DECILES] if DECILES <= value < no_value else ""
        parsed.append(ParsedEvent(event, decile, start, index, text))
    return parsed


def entry_starts(tokens_T: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """bool [T]: does an entry begin here: an interval not led by another, or an event not led by an interval?"""
    grammar = np.array(vocabulary.grammar_of)
    is_interval = (grammar == "interval")[tokens_T]
    after_interval = np.zeros(len(tokens_T), bool)
    after_interval[1:] = is_interval[:-1]
    return (is_interval | (grammar == "first")[tokens_T]) & ~after_interval


def is_valid(tokens: Sequence[int], vocabulary: Vocabulary) -> bool:
    """Does a whole timeline obey the grammar?"""
    texts = [vocabulary.tokens[token].text for token in tokens[:PREFIX_LENGTH]]
    if [text.split("//")[0] for text in texts] != list(PREFIX_SYSTEMS):
        return False
    body = list(tokens[PREFIX_LENGTH:])
    grammar = [vocabulary.grammar_of[token] for token in body]
    may_be_silent = False
    if grammar and grammar[-1] == "end":
        body, grammar = body[:-1], grammar[:-1]
        may_be_silent = vocabulary.knows_follow_up
    if any(kind in ("static", "pad", "end") for kind in grammar):
        return False
    if grammar and grammar[-1] == "interval" and not may_be_silent:
        return False
    longest = vocabulary.interval_ids[-1]
    for index in range(1, len(body)):
        if grammar[index] == grammar[index - 1] == "interval" and (
            body[index] != longest or body[index - 1] != longest
        ):
            return False
    return all(event.event != INVALID for event in parse(body, vocabulary))
