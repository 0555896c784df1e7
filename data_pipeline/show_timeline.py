"""One subject's timeline in words, from the tokens alone: encounters as blocks, values as deciles, times from gaps."""

import itertools
import re
from collections.abc import Iterator, Sequence

import numpy as np

from data_pipeline import grammar
from data_pipeline.corpus import SubjectRecord
from data_pipeline.intervals import DAY, HOUR, MINUTE
from data_pipeline.vocabulary import TIMELINE_END, Event, Vocabulary

# Systems whose parts are pieces of one code; the parts of others are words of their own.
_CODES_IN_PIECES = ("ICD10CM", "ICD9CM", "ICD10PCS", "ICD9PROC", "ATC")
_UNITS = (("y", 365.25 * DAY), ("mo", 365.25 * DAY / 12), ("d", DAY), ("h", HOUR), ("min", MINUTE))


def timeline(record: SubjectRecord, vocabulary: Vocabulary) -> Iterator[str]:
    """Lines of one subject's timeline, each with its time: since the first event, or · since the stay began."""
    about = _prefix_text(record.prefix_at(0), vocabulary)
    yield f"Subject {record.subject_id}: {about}; {len(record.tokens_T):,} tokens"
    yield "Left: time since the first event, or · since the outermost open encounter began; then, since the line above."
    yield "Times are about right: an interval token stands for its mean in the training data."
    yield ""
    yield from events(record, vocabulary)


def deidentified(record: SubjectRecord, vocabulary: Vocabulary, oldest_age: int) -> Iterator[str]:
    """As `timeline`, without subject id, calendar period and race; ages from `oldest_age` on are one group."""
    sex, _, age, _ = (text.split("//", 1)[1] for text in _prefix_texts(record.prefix_at(0), vocabulary))
    yield f"Sex {sex.lower() if sex == 'UNKNOWN' else sex}, age at first {_oldest_as_one(age, oldest_age).lower()}"
    for line in events(record, vocabulary):
        yield re.sub(r"\(age ([\d+-]+)\)$", lambda match: f"(age {_oldest_as_one(match[1], oldest_age)})", line)


def _oldest_as_one(age: str, oldest_age: int) -> str:
    first = re.match(r"\d+", age)
    return f"{oldest_age}+" if first and int(first[0]) >= oldest_age else age


def events(record: SubjectRecord, vocabulary: Vocabulary) -> Iterator[str]:
    """The lines of a timeline's events, each with its time."""
    clock: float | None = None
    for (now, stay, text), repeats in itertools.groupby(_entries(record, vocabulary)):
        times = sum(1 for _ in repeats)
        left, after = "", ""
        if now != clock:
            left = duration(now) if stay is None else f"· {duration(now - stay)}"
            after = f"+ {duration(now - clock)}" if clock is not None else ""
        yield f"{left:>14}  {after:>12}  {text}{f'  ({times} times)' if times > 1 else ''}".rstrip()
        clock = now


def _entries(record: SubjectRecord, vocabulary: Vocabulary) -> Iterator[tuple[float, float | None, str]]:
    """(seconds since the first event, those at which the outermost open encounter began, what happened)."""
    clock_T = np.cumsum(np.array(vocabulary.seconds_per_token())[record.tokens_T])
    clock_T -= clock_T[0] if len(clock_T) else 0.0
    open_encounters: list[tuple[str, float]] = []
    dead = False
    for parsed in grammar.parse(record.tokens_T.tolist(), vocabulary):
        now = float(clock_T[parsed.start])
        stay = open_encounters[0][1] if open_encounters else None
        dead = dead or (parsed.event != grammar.INVALID and vocabulary.events[parsed.event].role == "death")
        yield now, stay, _line(parsed, vocabulary, open_encounters, now, _age(record, parsed.start, vocabulary))
    if record.tokens_T[-1] == vocabulary.ids[TIMELINE_END]:
        text = "Not observed any longer" if vocabulary.knows_follow_up and not dead else "End of the record"
        yield float(clock_T[-1]), open_encounters[0][1] if open_encounters else None, text


def duration(seconds: float) -> str:
    """A length of time, cut to its two largest units: "2 y 3 mo", "15 min"."""
    rest = round(seconds / MINUTE) * MINUTE
    for (name, length), (next_name, next_length) in itertools.pairwise(_UNITS):
        if rest >= length:
            count, part = int(rest // length), int(rest % length // next_length)
            return f"{count} {name}" + (f" {part} {next_name}" if part else "")
    return f"{int(rest // MINUTE)} min"


def _line(
    parsed: grammar.ParsedEvent,
    vocabulary: Vocabulary,
    open_encounters: list[tuple[str, float]],
    now: float,
    age: str,
) -> str:
    """What one event says; encounters open and close blocks, kept in `open_encounters` as (type, start)."""
    depth = len(open_encounters)
    if parsed.event == grammar.INVALID:
        return "│ " * depth + f"tokens {parsed.start} to {parsed.stop - 1} spell no event"
    event = vocabulary.events[parsed.event]
    words = _words(event, vocabulary)
    if event.role == "start":
        # Some data sets never say that an encounter ends: the next of its type tells.
        open_encounters[:] = [entry for entry in open_encounters if entry[0] != words[0]]
        depth = len(open_encounters)
        open_encounters.append((words[0], now))
        return "│ " * depth + f"┌─ {' · '.join(words)}{f' (age {age})' if age else ''}"
    if event.role == "end":
        types = [encounter for encounter, _ in open_encounters]
        if words[0] in types:
            depth -= 1 + types[::-1].index(words[0])
            del open_encounters[depth]
        return "│ " * depth + f"└─ {words[0]} ends{''.join(f' · {word}' for word in words[1:])}"
    value = f"  about {event.means[parsed.decile - 1]:.4g} (decile {parsed.decile} of 10)" if parsed.decile else ""
    value = f"  {parsed.text}" if parsed.text else value
    return "│ " * depth + f"{_kind(event):<16}{_text(event, words)}{value}".rstrip()


def name(event: Event, vocabulary: Vocabulary) -> str:
    """What an event is called: its description and code, as far as there are any."""
    return _text(event, _words(event, vocabulary))


def _words(event: Event, vocabulary: Vocabulary) -> list[str]:
    """An event's parts, without system and place."""
    texts = [vocabulary.tokens[token].text for token in event.tokens]
    words = [texts[0].split("//", 1)[-1], *(text.split("//", 2)[-1] for text in texts[1:])]
    return [word.replace("//", " ") for word in words]


def _text(event: Event, words: Sequence[str]) -> str:
    if event.concept.startswith("UNKNOWN//"):
        return "(a code outside the vocabulary)"
    if event.role == "death":
        return ""
    system = event.concept.split("//")[1]
    code = "".join(words) if system in _CODES_IN_PIECES else " · ".join(words)
    named = code if system == event.kind else f"{system} {code}"
    # The line says the kind already.
    rest = event.description.removeprefix(f"{_kind(event)}: ")
    description = event.description if rest == event.description else rest[:1].upper() + rest[1:]
    return f"{description} ({named})" if description and description != named else named


def _kind(event: Event) -> str:
    return event.kind.replace("_", " ").capitalize()


def _prefix_texts(prefix: np.ndarray, vocabulary: Vocabulary) -> list[str]:
    return [vocabulary.tokens[token].text for token in prefix]


def _prefix_text(prefix: np.ndarray, vocabulary: Vocabulary) -> str:
    pairs = [text.split("//", 1) for text in _prefix_texts(prefix, vocabulary)]
    return ", ".join(f"{system.lower()} {'unknown' if value == 'UNKNOWN' else value}" for system, value in pairs)


def _age(record: SubjectRecord, start: int, vocabulary: Vocabulary) -> str:
    """The age bucket at a token, as the static prefix says it; empty where it is not known."""
    (age,) = [text for text in _prefix_texts(record.prefix_at(start), vocabulary) if text.startswith("AGE//")]
    return age.removeprefix("AGE//").replace("UNKNOWN", "")
