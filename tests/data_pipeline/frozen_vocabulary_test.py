"""--vocabulary CORPUS: other data, read with the vocabulary of a corpus that is there."""

import datetime

import pytest

from data_pipeline import build_config
from data_pipeline.build import build_corpus
from data_pipeline.errors import UserError

DAY = datetime.datetime(2020, 1, 1)


def rows_of(subject: int, code: str = "LOINC//2345-7", count: int = 3, minutes: int = 60):
    yield (subject, None, "SEX//F", None)
    for index in range(count):
        yield (subject, DAY + datetime.timedelta(minutes=minutes * index), code, float(index))


def config(**changes):
    content = build_config.get_config()
    content.update(code_map="world", min_subjects_per_code=1, min_values_per_code=2)
    content.update(**changes)
    return content


@pytest.fixture
def source(write_meds, tmp_path):
    root = write_meds({"train/0": [*rows_of(1), *rows_of(2)]}, {1: "train", 2: "train"}, tmp_path / "source_meds")
    return build_corpus(root, tmp_path / "source", config(), workers=1)


@pytest.fixture
def other(write_meds, tmp_path):
    """Data without a training split, with a code that the source lacks."""
    rows = [*rows_of(7, minutes=90), *rows_of(8, "CPT//99213")]
    return write_meds({"a": rows}, {7: "held_out", 8: "held_out"}, tmp_path / "other_meds")


def test_the_vocabulary_is_the_sources_byte_for_byte(source, other, tmp_path) -> None:
    corpus = build_corpus(other, tmp_path / "c", build_config.get_config(), workers=1, vocabulary=source.root)
    assert (corpus.root / "vocabulary.json").read_bytes() == (source.root / "vocabulary.json").read_bytes()
    assert corpus.manifest["vocabulary_source"] == {"corpus_fingerprint": source.fingerprint, "name": "hand-made"}
    assert list(corpus.manifest["splits"]) == ["held_out"]
    assert corpus.manifest["config"] == source.manifest["config"]


def test_codes_that_it_lacks_are_unknown_and_counted(source, other, tmp_path) -> None:
    corpus = build_corpus(other, tmp_path / "c", build_config.get_config(), workers=1, vocabulary=source.root)
    rows = corpus.manifest["splits"]["held_out"]["rows"]
    assert (rows["kept"], rows["unknown_code"], rows["static"]) == (3, 3, 2)


def test_interval_means_stay_those_of_the_source(source, other, tmp_path) -> None:
    corpus = build_corpus(other, tmp_path / "c", build_config.get_config(), workers=1, vocabulary=source.root)
    hour = corpus.vocabulary.ids["INTERVAL//1h-2h"]
    assert corpus.vocabulary.seconds_per_token()[hour] == 60 * 60


def test_a_data_set_gives_itself_the_same_tokens(source, tmp_path) -> None:
    again = build_corpus(tmp_path / "source_meds", tmp_path / "again", config(), workers=1, vocabulary=source.root)
    assert again.fingerprint == source.fingerprint


@pytest.mark.parametrize(
    ("changes", "explicit", "says"),
    [
        ({"interval_preset": "ethos19"}, [], r"config.interval_preset: 'ethos19', but the vocabulary .* 'comet13'"),
        ({"max_codes": {"LAB": 7}}, [], r"config.max_codes.LAB: 7, but the vocabulary was made with 0"),
        ({"code_map": "mimic"}, [], r"config.code_map: 'mimic', but the vocabulary was made with 'world'"),
        # As the default has it, but named: the user means it.
        ({"code_map": "generic"}, ["code_map"], r"config.code_map: 'generic', but .* 'world'"),
    ],
)
def test_a_key_that_the_vocabulary_decides_is_refused_with_both_values(
    source, other, tmp_path, changes, explicit, says
) -> None:
    asked = build_config.get_config()
    asked.update(changes)
    with pytest.raises(UserError, match=says):
        build_corpus(other, tmp_path / "c", asked, workers=1, vocabulary=source.root, explicit=explicit)
    assert not list(tmp_path.glob("c*"))


def test_the_cohort_is_free(source, other, tmp_path) -> None:
    asked = build_config.get_config()
    asked.cohort.last_date = "2020-01-01"
    corpus = build_corpus(other, tmp_path / "c", asked, workers=1, vocabulary=source.root)
    assert corpus.manifest["config"]["cohort"]["last_date"] == "2020-01-01"


def test_what_is_no_corpus_is_refused(other, tmp_path) -> None:
    with pytest.raises(UserError, match=r"no corpus\.json"):
        build_corpus(other, tmp_path / "c", config(), workers=1, vocabulary=tmp_path / "none")
