"""The page about a corpus: works offline, tells what the corpus holds, and not whose timelines it shows or when."""

import html.parser
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from data_pipeline import corpus_sample, show, show_html, show_timeline
from data_pipeline.corpus import Corpus, SubjectRecord
from data_pipeline.errors import UserError


@pytest.fixture(scope="module")
def corpus(world_corpus) -> Corpus:
    return Corpus.open(world_corpus)


@pytest.fixture(scope="module")
def page(corpus) -> str:
    return show_html.render(corpus, list(corpus.manifest["splits"]), 5)


class _Tags(html.parser.HTMLParser):
    """Checks that tags close in order, and collects attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "br", "link", "img", "hr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_needs_no_network(page) -> None:
    tags = _Tags()
    tags.feed(page)
    assert not tags.open
    assert "<script" not in page and "http://" not in page and "https://" not in page and "@import" not in page
    references = [value for name, value in tags.attributes if name in ("src", "href")]
    assert all(value.startswith("#") for value in references)
    ids = [value for name, value in tags.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_the_page_shows_every_part(page) -> None:
    assert page.count("<svg") == 5 and page.count("<pre") == 5
    for heading in ("Subjects and tokens", "Kinds and vocabulary", "Every input row accounted for", "Values"):
        assert heading in page
    assert "nan" not in re.sub(r"[a-z]nan|nan[a-z]", "", page)


def test_the_page_holds_the_manifests_counts(page, corpus) -> None:
    for split in corpus.manifest["splits"].values():
        for count in (split["subjects"], split["tokens"], *split["rows"].values()):
            assert f"<td>{count:,}</td>" in page
    for rule in corpus.manifest["training_coverage"]["rules"]:
        assert f"<td>{rule['codes']:,}</td><td>{rule['events']:,}</td>" in page


def test_the_timelines_tell_neither_who_nor_when(corpus) -> None:
    sample = corpus_sample.draw(corpus, "train")
    vocabulary = corpus.vocabulary
    races = {token.text.split("//")[1] for token in vocabulary.tokens if token.text.startswith("RACE//")}
    for record in sample.records[:40]:
        marked = SubjectRecord(987_654_321_987, record.tokens_T, record.prefix_starts, record.prefixes)
        lines = list(show_timeline.deidentified(marked, vocabulary, 90))
        text = "\n".join(lines)
        assert "987654321987" not in text and "period" not in text
        assert not re.search(r"\b(19|20)\d\d-(19|20)?\d\d\b", text) and "race" not in lines[0]
        assert not any(race in lines[0] for race in races - {"UNKNOWN"})
        assert lines[1:] == [*show_timeline.events(record, vocabulary)] or "(age 90+)" in text


@pytest.mark.parametrize("age", ["90-94", "95-99", "100+"])
def test_ages_from_ninety_on_are_one_group(corpus, age) -> None:
    vocabulary = corpus.vocabulary
    record = corpus_sample.draw(corpus, "train").records[0]
    prefixes = record.prefixes.copy()
    prefixes[:, 2] = vocabulary.ids[f"AGE//{age}"]
    old = SubjectRecord(1, record.tokens_T, record.prefix_starts, prefixes)
    text = "\n".join(show_timeline.deidentified(old, vocabulary, 90))
    assert "age at first 90+" in text and set(re.findall(r"\(age (.+?)\)", text)) == {"90+"}


def test_a_sample_is_bounded_and_the_same_each_time(corpus, monkeypatch) -> None:
    for name, value in (("MAX_SHARDS", 2), ("MAX_SUBJECTS", 30), ("MAX_TOKENS", 6_000), ("MAX_PARSED_TOKENS", 500)):
        monkeypatch.setattr(corpus_sample, name, value)
    sample = corpus_sample.draw(corpus, "train")
    again = corpus_sample.draw(corpus, "train")
    subjects = [record.subject_id for record in sample.records]
    assert subjects == [record.subject_id for record in again.records] and len(set(subjects)) == len(subjects)
    assert 0 < len(subjects) <= 30 and sample.parsed_tokens == 500 and not sample.is_whole
    assert sample.tokens - len(sample.records[-1].tokens_T) < 6_000
    page = show_html.render(corpus, ["train"], 2)
    assert f"a random sample: {len(subjects)} of {sample.of_subjects}" in page


def test_lengths_of_a_large_split_are_sampled(corpus, monkeypatch) -> None:
    reader = corpus.split("train")
    assert np.array_equal(corpus_sample.lengths(reader), reader.lengths_R)
    monkeypatch.setattr(corpus_sample, "MAX_LENGTHS", 50)
    assert len(corpus_sample.lengths(reader)) == 50
    assert "lengths are of a random sample" in show_html.render(corpus, ["train"], 0)


def test_the_timelines_shown_are_the_most_common(corpus) -> None:
    sample = corpus_sample.draw(corpus, "train")
    chosen = show_html.choose_timelines(sample, corpus.vocabulary, 3)
    assert len(chosen) == 3 and show_html.choose_timelines(sample, corpus.vocabulary, 0) == []
    rarest = [sample.counts_V[record.tokens_T[4:244]].min() for record in chosen]
    all_rarest = [sample.counts_V[record.tokens_T[4:244]].min() for record in sample.records]
    assert min(rarest) >= np.median(all_rarest)


def test_the_command_writes_the_page_or_says_why_not(corpus, tmp_path) -> None:
    def run(path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "data_pipeline.show", "--corpus", str(corpus.root), "--html", str(path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    done = run(tmp_path / "page.html")
    assert done.returncode == 0 and (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")
    refused = run(tmp_path / "nowhere" / "page.html")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "page.html" in refused.stderr


@pytest.mark.parametrize("place", [".", "/"])
def test_a_page_cannot_take_a_folders_place(corpus, place) -> None:
    with pytest.raises(UserError, match="a folder; give the name of a file"):
        show._written(corpus, ["train"], pathlib.Path(place), 0)


def test_long_lines_lose_their_description_and_keep_their_value(corpus) -> None:
    tail = " (LOINC 2345-7)  about 5 (decile 7 of 10)"
    line = "  · 3 h  + 3 h  │ Lab  " + "very long " * 20 + tail.strip()
    short = show_html._shorten(line)
    assert len(short) <= show_html.MAX_WIDTH and short.endswith("…" + tail)
    assert show_html._shorten("short" + tail) == "short" + tail
