"""Show what is in a corpus, or one subject's timeline.

    python -m data_pipeline.show --corpus CORPUS
    python -m data_pipeline.show --corpus CORPUS --subject 10000032

The first prints tables: subjects, tokens and lengths of each split, tokens and vocabulary by kind, and which rule of
the code map took which share of the training events. The second prints a timeline as a clinician would read it, from
the tokens alone: encounters as blocks, values by decile with the decile's mean, times by their interval tokens' means.
It prints clinical content, as nothing else does here: use it where that may be seen.
"""

import itertools
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from data_pipeline import command_line, grammar
from data_pipeline.corpus import Corpus, SubjectRecord
from data_pipeline.errors import UserError
from data_pipeline.intervals import DAY, HOUR, MINUTE
from data_pipeline.vocabulary import KINDS, TIMELINE_END, Event, Vocabulary

_QUANTILES = {"shortest": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "99%": 0.99, "longest": 1.0}
# What becomes of rows that stand in a timeline, in the order of the manifest; the others do not.
_EVENT_ROWS = ("kept", "shortened_code", "unknown_code", "missing_value")
# Systems whose parts are pieces of one code; the parts of others are words of their own.
_CODES_IN_PIECES = ("ICD10CM", "ICD9CM", "ICD10PCS", "ICD9PROC", "ATC")
_UNITS = (("y", 365.25 * DAY), ("mo", 365.25 * DAY / 12), ("d", DAY), ("h", HOUR), ("min", MINUTE))


def overview(corpus: Corpus, splits: Sequence[str]) -> list[str]:
    """Lines that say what is in these splits of a corpus."""
    manifest = corpus.manifest
    source, config = manifest["source"], manifest["config"]
    return [
        f"{corpus.root}: {_join(source.get('name'), source.get('version'))}, MEDS {source.get('meds_version') or '?'}, "
        f"{source['shards']} shards",
        f"fingerprint {corpus.fingerprint}",
        "configuration: " + ", ".join(f"{key} {value}" for key, value in config.items()),
        "",
        *_splits_table(corpus, splits),
        "",
        *_kinds_table(corpus, splits),
        "",
        *_rows_table(manifest, splits),
        "",
        *_rules_table(corpus),
    ]


def _splits_table(corpus: Corpus, splits: Sequence[str]) -> list[str]:
    rows = []
    for name in splits:
        about, lengths_R = corpus.manifest["splits"][name], corpus.split(name).lengths_R
        # A cohort may leave a split without subjects.
        quantiles = [
            f"{np.quantile(lengths_R, q, method='lower'):,}" if len(lengths_R) else "" for q in _QUANTILES.values()
        ]
        rows.append([name, f"{about['subjects']:,}", f"{about['tokens']:,}", *quantiles])
    return _table(
        ["split", "subjects", "tokens", *_QUANTILES], rows, title="Splits; from 'shortest' on, tokens per subject"
    )


def _kinds_table(corpus: Corpus, splits: Sequence[str]) -> list[str]:
    kinds = [token.kind for token in corpus.vocabulary.tokens]
    about = corpus.manifest["splits"]
    total = max(1, sum(about[name]["tokens"] for name in splits))
    rows = []
    for kind in KINDS:
        tokens = [about[name]["tokens_by_kind"].get(kind, 0) for name in splits]
        if kind in kinds or any(tokens):
            counts = [f"{count:,}" for count in tokens]
            rows.append([kind, f"{kinds.count(kind):,}", *counts, f"{sum(tokens) / total:.2%}"])
    rows.append(["all", f"{len(kinds):,}", *(f"{about[name]['tokens']:,}" for name in splits), "100.00%"])
    return _table(["kind", "vocabulary", *(f"{name} tokens" for name in splits), "share"], rows)


def _rows_table(manifest: Mapping[str, Any], splits: Sequence[str]) -> list[str]:
    rows_of = {name: manifest["splits"][name]["rows"] for name in splits}
    reasons = list(dict.fromkeys(itertools.chain.from_iterable(rows_of.values())))
    rows = [[reason.replace("_", " "), *(f"{rows_of[name].get(reason, 0):,}" for name in splits)] for reason in reasons]
    unknown = ["unknown share of events"]
    for name in splits:
        events = sum(rows_of[name].get(reason, 0) for reason in _EVENT_ROWS)
        unknown.append(f"{rows_of[name].get('unknown_code', 0) / max(1, events):.2%}")
    return _table(["input rows", *splits], [*rows, unknown])


def _rules_table(corpus: Corpus) -> list[str]:
    """Which rule of the code map took how many training rows, the busiest first."""
    taken = {int(rule): count for rule, count in corpus.manifest["training_events_by_rule"].items()}
    total = max(1, sum(taken.values()))
    code_map = corpus.vocabulary.code_map
    rows = []
    for number, count in sorted(taken.items(), key=lambda item: (-item[1], item[0])):
        rule = code_map.rules[number] if number >= 0 else None
        labels = [str(number), rule.kind, rule.system, rule.role] if rule else ["-", "OTHER", "(no rule took it)", ""]
        rows.append([*labels, f"{count:,}", f"{count / total:.3%}"])
    header = ["rule", "kind", "system", "role", "training rows", "share"]
    return _table(header, rows, left=4, title=f"code map {code_map.name}")


def timeline(record: SubjectRecord, vocabulary: Vocabulary) -> Iterator[str]:
    """Lines of one subject's timeline, each with its time: since the first event, or · since the stay began."""
    about = _prefix_text(record.prefix_at(0), vocabulary)
    yield f"Subject {record.subject_id}: {about}; {len(record.tokens_T):,} tokens"
    yield "Left: time since the first event, or · since the outermost open encounter began; then, since the line above."
    yield "Times are about right: an interval token stands for its mean in the training data."
    yield ""
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
    now = 0.0
    for parsed in grammar.parse(record.tokens_T.tolist(), vocabulary):
        now = float(clock_T[parsed.start])
        stay = open_encounters[0][1] if open_encounters else None
        yield now, stay, _line(parsed, vocabulary, open_encounters, now, _age(record, parsed.start, vocabulary))
    if record.tokens_T[-1] == vocabulary.ids[TIMELINE_END]:
        yield now, open_encounters[0][1] if open_encounters else None, "End of the record"


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


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, title: str = "") -> list[str]:
    """Columns as wide as they must be; the first `left` of them flush left, numbers flush right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    return [*([title] if title else []), line(header), rule, *map(line, rows)]


def _join(*words: object) -> str:
    return " ".join(str(word) for word in words if word)


def find_subject(corpus: Corpus, splits: Sequence[str], subject_id: int) -> SubjectRecord:
    """A subject's record; raises UserError if none of these splits has it."""
    for name in splits:
        split = corpus.split(name)
        found = np.flatnonzero(split.subject_ids_R == subject_id)
        if len(found):
            return split.record(int(found[0]))
    raise UserError(
        f"no subject {subject_id} in {', '.join(splits)}",
        where=str(corpus.root),
        fix="subject ids are in <split>/subject_ids.npy",
    )


_CORPUS = flags.DEFINE_string("corpus", None, "folder of the corpus", required=True)
_SUBJECT = flags.DEFINE_integer("subject", None, "print this subject's timeline: clinical content, readable")
_SPLIT = flags.DEFINE_string("split", None, "only this split (default: all)")


def main() -> None:
    """Run the command line."""
    corpus = Corpus.open(pathlib.Path(_CORPUS.value))
    splits = list(corpus.manifest["splits"])
    if _SPLIT.value is not None:
        corpus.split(_SPLIT.value)
        splits = [_SPLIT.value]
    if _SUBJECT.value is None:
        lines: Sequence[str] | Iterator[str] = overview(corpus, splits)
    else:
        lines = timeline(find_subject(corpus, splits, _SUBJECT.value), corpus.vocabulary)
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has seen enough; what is left in the buffer goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    command_line.run(main)
