"""The tables that data_pipeline.show prints: what is in a corpus, and what its code map made of the data."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipeline import build_config
from data_pipeline.code_maps import NO_RULE
from data_pipeline.corpus import Corpus
from data_pipeline.vocabulary import KINDS

QUANTILES = {"shortest": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "99%": 0.99, "longest": 1.0}
# What becomes of rows that stand in a timeline, in the order of the manifest; the others do not.
_EVENT_ROWS = ("kept", "shortened_code", "unknown_code", "missing_value")
_NOBODY = ["-", "OTHER", "(no rule took it)", ""]


def overview(corpus: Corpus, splits: Sequence[str]) -> list[str]:
    """Lines that say what is in these splits of a corpus."""
    manifest = corpus.manifest
    source, config = manifest["source"], manifest["config"]
    return [
        f"{corpus.root}: {_join(source.get('name'), source.get('version'))}, MEDS {source.get('meds_version') or '?'}, "
        f"{source['shards']} shards",
        f"fingerprint {corpus.fingerprint}",
        "configuration: " + ", ".join(f"{key} {value}" for key, value in settings(config).items()),
        how_records_end(corpus, splits),
        "",
        *_splits_table(corpus, splits),
        "",
        *_kinds_table(corpus, splits),
        "",
        *_rows_table(manifest, splits),
        *_left_out_table(manifest, splits),
        "",
        *_rules_table(corpus),
        *_lost_codes(corpus),
    ]


def how_records_end(corpus: Corpus, splits: Sequence[str]) -> str:
    """A line that says whether the corpus knows until when subjects were observed."""
    if not corpus.vocabulary.knows_follow_up:
        return "records end with the last event: until when subjects were observed is not known"
    unknown = sum(corpus.manifest["splits"][name].get("subjects_without_observation_end", 0) for name in splits)
    return "records end with observation" + (f", but for {unknown:,} whose end is not known" if unknown else "")


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A build's settings by flag (cohort.min_age): those that differ from the defaults, and the main ones."""
    default = dict(build_config.flat(build_config.get_config().to_dict()))
    return {
        key: value
        for key, value in build_config.flat(config)
        if key in ("code_map", "min_subjects_per_code") or value != default.get(key)
    }


def _splits_table(corpus: Corpus, splits: Sequence[str]) -> list[str]:
    rows = []
    for name in splits:
        about, lengths_R = corpus.manifest["splits"][name], corpus.split(name).lengths_R
        # A cohort may leave a split without subjects.
        quantiles = [
            f"{np.quantile(lengths_R, q, method='lower'):,}" if len(lengths_R) else "" for q in QUANTILES.values()
        ]
        rows.append([name, f"{about['subjects']:,}", f"{about['tokens']:,}", *quantiles])
    return table(
        ["split", "subjects", "tokens", *QUANTILES], rows, title="Splits; from 'shortest' on, tokens per subject"
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
    return table(["kind", "vocabulary", *(f"{name} tokens" for name in splits), "share"], rows)


def _rows_table(manifest: Mapping[str, Any], splits: Sequence[str]) -> list[str]:
    rows_of = {name: manifest["splits"][name]["rows"] for name in splits}
    reasons = list(dict.fromkeys(itertools.chain.from_iterable(rows_of.values())))
    rows = [[reason.replace("_", " "), *(f"{rows_of[name].get(reason, 0):,}" for name in splits)] for reason in reasons]
    unknown = ["unknown share of events"]
    for name in splits:
        events = sum(rows_of[name].get(reason, 0) for reason in _EVENT_ROWS)
        unknown.append(f"{rows_of[name].get('unknown_code', 0) / max(1, events):.2%}")
    return table(["input rows", *splits], [*rows, unknown])


def _left_out_table(manifest: Mapping[str, Any], splits: Sequence[str]) -> list[str]:
    """Subjects whom the cohort has no place for, by reason; nothing of a corpus without a cohort."""
    left_out = {name: manifest["splits"][name].get("subjects_left_out", {}) for name in splits}
    reasons = list(dict.fromkeys(itertools.chain.from_iterable(left_out.values())))
    rows = [
        [reason.replace("_", " "), *(f"{left_out[name].get(reason, 0):,}" for name in splits)] for reason in reasons
    ]
    return ["", *table(["subjects left out by the cohort", *splits], rows)] if rows else []


def _rules_table(corpus: Corpus) -> list[str]:
    """Which rule of the code map took how many training rows, the busiest first."""
    covered = corpus.manifest["training_coverage"]
    total = max(1, covered["events"])
    code_map = corpus.vocabulary.code_map
    rows = []
    for taken in covered["rules"]:
        rule = code_map.rules[taken["rule"]] if taken["rule"] != NO_RULE else None
        labels = [str(taken["rule"]), rule.kind, rule.system, rule.role] if rule else _NOBODY
        rows.append([*labels, f"{taken['codes']:,}", f"{taken['events']:,}", f"{taken['events'] / total:.3%}"])
    header = ["rule", "kind", "system", "role", "codes", "training rows", "share"]
    return table(header, rows, left=4, title=f"code map {code_map.name}")


def _lost_codes(corpus: Corpus) -> list[str]:
    """The codes that no rule took, then those that are unknown: the most frequent, and how many are not named."""
    covered, min_subjects = corpus.manifest["training_coverage"], corpus.manifest["config"]["min_subjects_per_code"]
    lines = []
    for name, title in (("no_rule", "codes that no rule took"), ("unknown", "codes that became UNKNOWN")):
        lost = covered[name]
        share = lost["events"] / max(1, covered["events"])
        lines += ["", f"{title}: {lost['codes']:,}, in {lost['events']:,} training rows ({share:.2%})"]
        if lost.get("by_system"):
            rows = [[e["kind"], e["system"], f"{e['codes']:,}", f"{e['events']:,}"] for e in lost["by_system"]]
            lines += table(["kind", "system", "codes", "training rows"], rows, left=2)
        if lost["top"]:
            rows = [[e["concept"], f"{e['subjects']:,}", f"{e['events']:,}"] for e in lost["top"]]
            lines += table(["the most frequent", "subjects", "training rows"], rows)
        if lost["unnamed"]:
            lines.append(f"{lost['unnamed']:,} of them, which fewer than {min_subjects} subjects have, are not named")
    return lines


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, title: str = "") -> list[str]:
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
