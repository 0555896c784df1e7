"""The vocabulary: token ids, the events they spell, decile edges, interval means, and the grammar they obey.

A vocabulary is all that is needed to tokenize a MEDS data set and to read tokens back: it carries the code map and the
interval preset too. It is saved as one JSON file, byte for byte a function of its content.
"""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from data_pipeline import code_maps, intervals, spelling
from data_pipeline.errors import UserError

FORMAT_VERSION = 2
PAD = 0
DECILES = 10
VALUE_ENCODINGS = ("split", "fused")

# Kinds in the order in which events of one instant stand in a timeline.
KINDS = (
    "SPECIAL",
    "DEMOGRAPHIC",
    "INTERVAL",
    "ENCOUNTER",
    "DEPARTMENT",
    "CHIEF_COMPLAINT",
    "DIAGNOSIS",
    "LAB",
    "MEDICATION",
    "PROCEDURE",
    "OTHER",
    "VALUE",
    "DEATH",
)
# What a token may do: stand in the static prefix; pass time; begin an event; continue the event before it; give the
# value of the event before it; end the timeline; fill a row.
GRAMMAR_CLASSES = ("pad", "static", "interval", "first", "part", "value", "end")
# The static prefix of every timeline, in order; each has an UNKNOWN token.
PREFIX_SYSTEMS = ("SEX", "RACE", "AGE", "PERIOD")
PREFIX_LENGTH = len(PREFIX_SYSTEMS)
TIMELINE_END = "TIMELINE_END"
DEATH = "DEATH"


@dataclasses.dataclass(frozen=True)
class Token:
    """One vocabulary entry: `text` is unique, `kind` is one of KINDS, `grammar` one of GRAMMAR_CLASSES."""

    text: str
    kind: str
    grammar: str
    description: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.grammar not in GRAMMAR_CLASSES:
            raise ValueError(f"token {self.text!r}: unknown kind {self.kind!r} or grammar class {self.grammar!r}")


@dataclasses.dataclass(frozen=True)
class Event:
    """An event that tokens can spell: `tokens` are its ids (first, part, part), then one value token if it has a value.

    `value` is "never", "optional" or "always". Where it is not "never", the value is a number, a text or either:
    `edges` are the nine decile cuts of the training values (a value v is decile 1 + #(edges < v)) and `means` the ten
    means of the training values between them, which the simulator writes as the event's value; `texts` are the
    results in words, in order.
    """

    concept: str
    kind: str
    role: str
    tokens: tuple[int, ...]
    value: str = "never"
    edges: tuple[float, ...] = ()
    means: tuple[float, ...] = ()
    texts: tuple[str, ...] = ()
    description: str = ""

    def __post_init__(self) -> None:
        if self.value not in ("never", "optional", "always"):
            raise ValueError(f"event {self.concept!r}: value must be never, optional or always, not {self.value!r}")
        if (self.value == "never") != (not self.edges and not self.texts):
            raise ValueError(f"event {self.concept!r}: value {self.value!r} without any, or values with none to take")
        if (len(self.edges), len(self.means)) not in ((0, 0), (DECILES - 1, DECILES)):
            raise ValueError(f"event {self.concept!r}: {len(self.edges)} decile edges, {len(self.means)} means")
        if not 1 <= len(self.tokens) < spelling.LONGEST_SPELLING:
            raise ValueError(f"event {self.concept!r}: spelt with {len(self.tokens)} tokens")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Tokens (index = id), events, intervals and code map of one corpus.

    `interval_seconds[i]` is the mean duration of interval token i of the preset, in the training split, and
    `interval_quantiles[i]` are durations in whole seconds, rising, each of which equally many of its single tokens
    have; a row more is of the repeats of the last one (`IntervalPreset.duration_ranges`). The simulator advances its
    clock by these; without them, by the mean. `value_encoding` "split" gives a value a token of its own, which all
    codes share; "fused" has one token for a code's last part and its value together. Where it
    `knows_follow_up`, TIMELINE_END says that observation ends, after the silence since the last event
    (data_pipeline.follow_up); else that nothing more is recorded.
    """

    tokens: tuple[Token, ...]
    events: tuple[Event, ...]
    interval_preset: intervals.IntervalPreset
    interval_seconds: tuple[float, ...]
    code_map: code_maps.CodeMap
    value_encoding: str = "split"
    interval_quantiles: tuple[tuple[int, ...], ...] = ()
    knows_follow_up: bool = False

    def __post_init__(self) -> None:
        if len(self.tokens) > 2**16:
            raise UserError(
                f"the vocabulary has {len(self.tokens)} tokens, and a token id must fit in 16 bits",
                fix="raise min_subjects_per_code",
            )
        if len(self.ids) != len(self.tokens):
            raise ValueError("two tokens of the vocabulary have the same text")
        if self.tokens[PAD].grammar != "pad":
            raise ValueError("token 0 must be PAD")
        if len(self.interval_seconds) != len(self.interval_preset.names):
            raise ValueError("one mean duration is needed for each interval token")
        if not all(0 < seconds < math.inf for seconds in self.interval_seconds):
            raise ValueError("an interval's mean duration must be positive")
        if len({len(quantiles) for quantiles in self.interval_quantiles}) > 1 or (
            self.interval_quantiles and len(self.interval_quantiles) != len(self.interval_seconds) + 1
        ):
            raise ValueError("equally many quantiles of the duration are needed for each interval and repeats, or none")
        if any(list(quantiles) != sorted(quantiles) for quantiles in self.interval_quantiles):
            raise ValueError("an interval's quantiles must not fall")
        if self.value_encoding not in VALUE_ENCODINGS:
            raise ValueError(f"value encoding {self.value_encoding!r}")

    def __len__(self) -> int:
        return len(self.tokens)

    @functools.cached_property
    def ids(self) -> Mapping[str, int]:
        """Token text → id."""
        return {token.text: index for index, token in enumerate(self.tokens)}

    @functools.cached_property
    def grammar_of(self) -> tuple[str, ...]:
        """What each token is in the grammar (`Token.grammar`)."""
        return tuple(token.grammar for token in self.tokens)

    @functools.cached_property
    def kind_V(self) -> np.ndarray:
        """The kind of each token, as its place in KINDS."""
        place = {kind: index for index, kind in enumerate(KINDS)}
        return np.array([place[token.kind] for token in self.tokens])

    @functools.cached_property
    def event_of_concept(self) -> Mapping[str, int]:
        """Concept → index into `events`."""
        return {event.concept: index for index, event in enumerate(self.events)}

    @functools.cached_property
    def event_of_parts(self) -> Mapping[tuple[str, ...], int]:
        """A concept's parts → index into `events`. Its name is no spelling, for the parts run together there."""
        return {tuple(self.tokens[token].text for token in event.tokens): i for i, event in enumerate(self.events)}

    @functools.cached_property
    def texts(self) -> tuple[str, ...]:
        """Every result in words that some event takes, in order."""
        return tuple(sorted({text for event in self.events for text in event.texts}))

    @functools.cached_property
    def no_value(self) -> int:
        """The number of the value of an event that has none. Decile d is d - 1, an event's i-th text 10 + i."""
        return DECILES + max((len(event.texts) for event in self.events), default=0)

    def spellings(self, index: int) -> dict[int, tuple[int, ...]]:
        """How an event is spelt: number of the value → token ids."""
        event = self.events[index]
        spellings = {self.no_value: event.tokens} if event.value != "always" else {}
        for value, text in self._values_of(event):
            if self.value_encoding == "split":
                spellings[value] = (*event.tokens, self.ids[text])
            else:
                fused = fused_text(self.tokens[event.tokens[-1]].text, text)
                spellings[value] = (*event.tokens[:-1], self.ids[fused])
        return spellings

    def _values_of(self, event: Event) -> Iterator[tuple[int, str]]:
        """(number of the value, value token's text) of all values that an event can have."""
        for decile in range(1, DECILES + 1) if event.edges else ():
            yield decile - 1, f"VALUE//{decile}"
        for number, text in enumerate(event.texts, DECILES):
            yield number, f"TEXT//{text}"

    @functools.cached_property
    def readings(self) -> Mapping[tuple[int, ...], tuple[int, int]]:
        """Token ids that spell an event, value included → (index into `events`, number of the value)."""
        return {
            tokens: (index, value)
            for index in reversed(range(len(self.events)))
            for value, tokens in self.spellings(index).items()
        }

    @functools.cached_property
    def spelling(self) -> spelling.SpellingTable:
        """`spellings` of all events as tables."""
        texts = ((index, *pair) for index, event in enumerate(self.events) for pair in enumerate(event.texts, DECILES))
        return spelling.build_table(
            [self.spellings(index) for index in range(len(self.events))],
            [event.edges for event in self.events],
            {(index, text): number for index, number, text in texts},
            self.no_value + 1,
        )

    def unknown_event(self, kind: str) -> int:
        """Index of the event that stands for a code of `kind` outside the vocabulary."""
        return self.event_of_concept[f"UNKNOWN//{kind}"]

    @functools.cached_property
    def interval_ids(self) -> tuple[int, ...]:
        """Ids of the interval tokens, shortest first."""
        return tuple(self.ids[f"INTERVAL//{name}"] for name in self.interval_preset.names)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the vocabulary's JSON: two vocabularies with one fingerprint tokenize alike."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def seconds_per_token(self) -> list[float]:
        """For each id, by how many seconds it advances the clock: the mean duration for intervals, 0 for others."""
        seconds = [0.0] * len(self.tokens)
        for token, duration in zip(self.interval_ids, self.interval_seconds, strict=True):
            seconds[token] = duration
        return seconds

    def to_json(self) -> str:
        """The canonical JSON text: keys sorted, one line per token and event."""
        return self._json

    @functools.cached_property
    def _json(self) -> str:
        lines = [
            f'"format_version": {FORMAT_VERSION}',
            f'"code_map": {_dump(self.code_map.to_dict())}',
            f'"interval_preset": {_dump(dataclasses.asdict(self.interval_preset))}',
            f'"interval_seconds": {_dump(self.interval_seconds)}',
            *([f'"interval_quantiles": {_dump(self.interval_quantiles)}'] if self.interval_quantiles else []),
            f'"value_encoding": {_dump(self.value_encoding)}',
            *(['"knows_follow_up": true'] if self.knows_follow_up else []),
            '"tokens": [\n' + ",\n".join(_dump(vars(token)) for token in self.tokens) + "\n]",
            '"events": [\n' + ",\n".join(_dump(vars(event)) for event in self.events) + "\n]",
        ]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str, where: str = "vocabulary") -> "Vocabulary":
        """Parse `to_json`'s text; raises UserError naming `where` when it is no vocabulary."""
        try:
            content: dict[str, Any] = json.loads(text)
            if content["format_version"] != FORMAT_VERSION:
                raise UserError(
                    f"format version {content['format_version']}, this program reads {FORMAT_VERSION}",
                    where=where,
                    fix="rebuild the corpus",
                )
            vocabulary = cls(
                tokens=tuple(Token(**token) for token in content["tokens"]),
                events=tuple(_event_from_dict(event) for event in content["events"]),
                interval_preset=intervals.IntervalPreset.from_dict(content["interval_preset"]),
                interval_seconds=tuple(content["interval_seconds"]),
                code_map=code_maps.CodeMap.from_dict(content["code_map"]),
                value_encoding=content["value_encoding"],
                interval_quantiles=tuple(tuple(own) for own in content.get("interval_quantiles", ())),
                knows_follow_up=bool(content.get("knows_follow_up", False)),
            )
            # Every event must be spelt in tokens that there are.
            _ = vocabulary.spelling, vocabulary.interval_ids
            return vocabulary
        except (ValueError, LookupError, OverflowError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"not a readable vocabulary ({type(error).__name__})", where=where, fix="rebuild the corpus"
            ) from error

    def save(self, path: pathlib.Path) -> None:
        """Write the JSON file."""
        path.write_text(self.to_json())

    @classmethod
    def load(cls, path: pathlib.Path) -> "Vocabulary":
        """Read `save`'s file; raises UserError when it is missing or broken."""
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError("cannot be read", where=str(path), fix="rebuild the corpus") from error
        return cls.from_json(text, where=str(path))


def fused_text(part: str, value: str) -> str:
    """Text of the token that stands for a code's last part and its value together."""
    return f"{part}//{value}"


def _event_from_dict(content: dict[str, Any]) -> Event:
    arrays = {key: tuple(content[key]) for key in ("tokens", "edges", "means", "texts")}
    return Event(**{**content, **arrays})


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
