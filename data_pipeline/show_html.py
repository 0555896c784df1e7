"""A corpus on one HTML page that works offline: tables, inline SVG figures, five timelines without who and when.

The manifest's counts are exact; what needs the tokens themselves is of a sample (data_pipeline.corpus_sample), so that
a corpus of any size is shown in bounded time and memory.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import markupsafe
import numpy as np

from data_pipeline import corpus_sample, show_figures, show_tables, show_timeline
from data_pipeline.code_maps import NO_RULE
from data_pipeline.corpus import Corpus, SubjectRecord
from data_pipeline.corpus_sample import CorpusSample
from data_pipeline.html_templates import environment_beside
from data_pipeline.vocabulary import KINDS, PREFIX_LENGTH, Vocabulary

TEMPLATE = "show.html.j2"
# The safe harbour rule of HIPAA (45 CFR 164.514(b)(2)) makes one group of the ages from 90 on.
OLDEST_AGE = 90
MAX_LINES = 60
# Characters of a line; a wider screen shows no more.
MAX_WIDTH = 124
_VALUED_EVENTS = 20
_CONTEXT = 8_192
# A timeline of fewer events says little, and one that is cut short early says little of the rest.
_SHORTEST_TIMELINE = 40


def render(corpus: Corpus, splits: Sequence[str], timelines: int) -> str:
    """The HTML page about these splits, with so many timelines."""
    environment = environment_beside(__file__)
    environment.filters |= {
        "count": lambda value: f"{value:,}",
        "percent": lambda value: f"{value:.2%}",
        "short": lambda value: f"{value:.4g}",
        "words": lambda value: value.replace("_", " "),
    }
    vocabulary = corpus.vocabulary
    sample = corpus_sample.draw(corpus, "train" if "train" in splits else splits[0])
    lengths = {name: corpus_sample.lengths(corpus.split(name)) for name in splits}
    manifest = corpus.manifest
    return environment.get_template(TEMPLATE).render(
        manifest=manifest,
        corpus_name=corpus.root.resolve().name,
        fingerprint=corpus.fingerprint,
        settings=show_tables.settings(manifest["config"]),
        splits=splits,
        about={name: manifest["splits"][name] for name in splits},
        quantiles=show_tables.QUANTILES,
        lengths={name: _quantiles(values) for name, values in lengths.items()},
        few_subjects=show_figures.FEW_SUBJECTS,
        lengths_are_sampled=any(len(values) < manifest["splits"][name]["subjects"] for name, values in lengths.items()),
        knows_follow_up=vocabulary.knows_follow_up,
        how_records_end=show_tables.how_records_end(corpus, splits),
        kinds=_kinds(corpus, splits),
        rows=_rows(manifest, splits),
        rules=_rules(corpus),
        coverage=manifest["training_coverage"],
        sample=sample,
        parsed_tokens=sample.parsed_tokens,
        valued=_valued(sample, vocabulary),
        figures=_figures(corpus, splits, sample, lengths),
        timelines=[_timeline(record, vocabulary) for record in choose_timelines(sample, vocabulary, timelines)],
        oldest_age=OLDEST_AGE,
        max_lines=MAX_LINES,
    )


def choose_timelines(sample: CorpusSample, vocabulary: Vocabulary, count: int) -> list[SubjectRecord]:
    """The timelines to show: of the sample's ordinary lengths, those whose rarest token is the most common."""
    records = [record for record in sample.records if len(record.tokens_T) >= _SHORTEST_TIMELINE] or [*sample.records]
    if not records or not count:
        return []
    sizes = np.array([len(record.tokens_T) for record in records])
    low, high = np.quantile(sizes, (0.1, 0.6))
    ordinary = [record for record, size in zip(records, sizes, strict=True) if low <= size <= high]
    shown = [record.tokens_T[PREFIX_LENGTH : PREFIX_LENGTH + 4 * MAX_LINES] for record in ordinary]
    rarest = [int(sample.counts_V[tokens].min(initial=sample.tokens)) for tokens in shown]
    best = sorted(range(len(ordinary)), key=lambda place: (-rarest[place], place))[:count]
    return [ordinary[place] for place in sorted(best, key=lambda place: len(ordinary[place].tokens_T))]


def _timeline(record: SubjectRecord, vocabulary: Vocabulary) -> dict[str, Any]:
    title, *lines = itertools.islice(show_timeline.deidentified(record, vocabulary, OLDEST_AGE), MAX_LINES + 2)
    return {"title": title, "lines": [_shorten(line) for line in lines[:MAX_LINES]], "is_cut": len(lines) > MAX_LINES}


def _shorten(line: str) -> str:
    """A line that fits the page: a long description is cut before the code and value, which stay."""
    tail = re.search(r" \(\w+ [^()]*\)(?:  .*)?$", line)
    if len(line) <= MAX_WIDTH or tail is None:
        return line
    return line[: max(0, MAX_WIDTH - len(tail[0]) - 1)].rstrip() + "…" + tail[0]


def _quantiles(lengths: np.ndarray) -> list[int]:
    if not len(lengths):
        return []
    return [int(np.quantile(lengths, share, method="lower")) for share in show_tables.QUANTILES.values()]


def _kinds(corpus: Corpus, splits: Sequence[str]) -> list[dict[str, Any]]:
    known = [token.kind for token in corpus.vocabulary.tokens]
    table = []
    for kind in KINDS:
        tokens = [corpus.manifest["splits"][name]["tokens_by_kind"].get(kind, 0) for name in splits]
        if any(tokens) or kind in known:
            table.append({"kind": kind, "vocabulary": known.count(kind), "tokens": tokens})
    return table


def _rows(manifest: Any, splits: Sequence[str]) -> list[dict[str, Any]]:
    """Input rows by what became of them, in all and by split."""
    counts = [manifest["splits"][name]["rows"] for name in splits]
    reasons = dict.fromkeys(itertools.chain.from_iterable(counts))
    total = max(1, sum(sum(count.values()) for count in counts))
    table = []
    for reason in reasons:
        by_split = [count.get(reason, 0) for count in counts]
        table.append({"reason": reason, "by_split": by_split, "share": sum(by_split) / total})
    return table


def _rules(corpus: Corpus) -> list[dict[str, Any]]:
    covered = corpus.manifest["training_coverage"]
    most = max((rule["events"] for rule in covered["rules"]), default=1)
    return [
        {
            "rule": corpus.vocabulary.code_map.rules[taken["rule"]] if taken["rule"] != NO_RULE else None,
            "number": taken["rule"],
            "codes": taken["codes"],
            "events": taken["events"],
            "share": taken["events"] / max(1, covered["events"]),
            "bar": taken["events"] / most,
        }
        for taken in covered["rules"]
    ]


def _valued(sample: CorpusSample, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """The events with most values in the sample, with their decile cuts."""
    ordered = sorted(sample.deciles, key=lambda index: (-int(sample.deciles[index].sum()), index))
    return [
        {
            "name": show_timeline.name(vocabulary.events[index], vocabulary),
            "edges": vocabulary.events[index].edges,
            "values": int(sample.deciles[index].sum()),
        }
        for index in ordered[:_VALUED_EVENTS]
    ]


def _figures(
    corpus: Corpus, splits: Sequence[str], sample: CorpusSample, lengths: dict[str, np.ndarray]
) -> dict[str, markupsafe.Markup]:
    vocabulary = corpus.vocabulary
    by_kind = {entry["kind"]: sum(entry["tokens"]) for entry in _kinds(corpus, splits) if sum(entry["tokens"])}
    is_code_V = np.array([token.grammar == "first" for token in vocabulary.tokens])
    made = {
        "kinds": show_figures.kinds(by_kind),
        "vocabulary": show_figures.vocabulary_coverage(sample.counts_V, is_code_V),
        "lengths": show_figures.lengths(lengths, _CONTEXT),
        "gaps": show_figures.gaps(vocabulary.interval_preset.names, sample.counts_V[list(vocabulary.interval_ids)]),
    }
    if sample.deciles:
        made["deciles"] = show_figures.deciles(np.sum([*sample.deciles.values()], axis=0))
    # Figures are made here, from numbers and escaped text: safe as they are.
    return {name: markupsafe.Markup(svg) for name, svg in made.items()}
