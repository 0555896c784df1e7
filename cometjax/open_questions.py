"""When all that is asked of a future is answered: simulating it any further would change nothing.

A question is open until its window is closed (the clock is past the horizon, or past the event that closes it) or,
where whether and when is asked and not how often, until the outcome has happened. Some events are certain only with the
token after them (`cometjax.grammar_states`), whose probability counts too. So a future ends with the event or interval
after the outcome's event, or with the interval that closes the last window: its answers are those of the longer future.

K questions   T tokens of a future
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipeline import grammar
from data_pipeline.vocabulary import Vocabulary

_NEVER = np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True)
class Question:
    """One question: the concepts that are its outcome, those that close its window, its horizon in microseconds, and
    whether the first outcome is all that is asked for."""

    outcome: frozenset[str]
    until: frozenset[str]
    horizon_us: int
    first_only: bool


class Questions:
    """The questions that are asked of some prompts' futures; `watch` follows one future.

    Args:
        vocabulary: of the futures.
        questions: all that are asked.
    """

    def __init__(self, vocabulary: Vocabulary, questions: Sequence[Question]) -> None:
        self.vocabulary = vocabulary
        self.horizon_us_K = np.array([question.horizon_us for question in questions], np.int64)
        self.answering = places([question.outcome if question.first_only else frozenset() for question in questions])
        self.closing = places([question.until for question in questions])

    def watch(self, asks_K: np.ndarray) -> "Watch":
        """Follow a future of a prompt that is asked these (bool) of the questions."""
        return Watch(self, asks_K)


class Watch:
    """Reads a future's tokens as they come."""

    def __init__(self, questions: Questions, asks_K: np.ndarray) -> None:
        self._questions = questions
        self._asked_K = np.flatnonzero(asks_K)
        self._end_us_K = questions.horizon_us_K.copy()
        self._answered_K = np.where(asks_K, _NEVER, 0)  # after how many tokens
        self._read = 0  # tokens whose events are read
        self._unread: list[int] = []
        self._unread_clock_T = np.zeros(0, np.int64)

    def read(self, tokens_T: np.ndarray, clock_T: np.ndarray) -> int | None:
        """Read on: tokens, and the clock after each in seconds from the prediction time.

        Returns how many tokens have come since all was answered; None: something is still open.
        """
        questions = self._questions
        fresh = self._unread + tokens_T.tolist()
        clock_T = np.concatenate([self._unread_clock_T, clock_T.astype(np.int64)])
        clock_us_T = 1_000_000 * clock_T
        settled = len(fresh)
        events = grammar.parse(fresh, questions.vocabulary)
        for event, following in itertools.zip_longest(events, events[1:]):
            next_stop = self._stop_after(event, following, fresh)
            if next_stop is None:
                settled = event.start
                break
            time_us = int(clock_us_T[event.start])
            if event.event == grammar.INVALID or time_us < 0:
                continue
            concept = questions.vocabulary.events[event.event].concept
            for k in questions.answering.get(concept, ()):
                if time_us <= self._end_us_K[k]:
                    self._answered_K[k] = min(self._answered_K[k], self._read + next_stop)
            for k in questions.closing.get(concept, ()):
                self._end_us_K[k] = min(self._end_us_K[k], time_us)
        for k in self._asked_K[self._answered_K[self._asked_K] == _NEVER]:
            past = int(np.searchsorted(clock_us_T, self._end_us_K[k], side="right"))
            if past < len(clock_us_T):
                self._answered_K[k] = self._read + past + 1
        answered, read = int(self._answered_K.max(initial=0)), self._read + len(fresh)
        self._read += settled
        self._unread, self._unread_clock_T = fresh[settled:], clock_T[settled:]
        return None if answered == _NEVER else read - answered

    def _stop_after(
        self, event: grammar.ParsedEvent, following: grammar.ParsedEvent | None, tokens: Sequence[int]
    ) -> int | None:
        """Where the event or interval after an event ends; None where more of them may come."""
        if event.stop == len(tokens):
            return None
        if following is None or following.start > event.stop:  # an interval, which is one token
            return event.stop + 1
        return following.stop if following.stop < len(tokens) else None


def places(concepts: Sequence[frozenset[str]]) -> Mapping[str, Sequence[int]]:
    """By concept, the places of the sets that it is in."""
    found: dict[str, list[int]] = {}
    for place, names in enumerate(concepts):
        for name in names:
            found.setdefault(name, []).append(place)
    return found
