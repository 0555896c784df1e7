"""What data_pipeline.show prints: the tables add up, and a timeline says what happened and when."""

import datetime
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from data_pipeline import build_config, grammar, show, show_tables, show_timeline
from data_pipeline.build import build_corpus
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError

T0 = datetime.datetime(2020, 1, 1)
BIRTH = datetime.datetime(1958, 6, 1)


def after(**amount: float) -> datetime.datetime:
    return T0 + datetime.timedelta(**amount)


SUBJECT = [
    (1, None, "SEX//F", None),
    (1, BIRTH, "MEDS_BIRTH", None),
    (1, T0, "ICD10CM//E11.65", None),
    (1, after(days=100), "ENCOUNTER_START//EMERGENCY", None),
    (1, after(days=100, minutes=30), "LOINC//2345-7", 5.0),
    (1, after(days=100, hours=4), "ENCOUNTER_START//INPATIENT", None),
    (1, after(days=100, hours=4, minutes=3), "ENCOUNTER_END//EMERGENCY", None),
    (1, after(days=102), "LOINC//2345-7", 1.0),
    (1, after(days=102), "LOINC//2345-7", 1.0),
    (1, after(days=107), "ENCOUNTER_END//INPATIENT//HOME", None),
    (1, after(days=1000), "MEDS_DEATH", None),
]


@pytest.fixture
def corpus(write_meds, tmp_path) -> Corpus:
    """Subject 1 in train, subject 2 in tuning with a code that training never saw."""
    tuning = [(2, T0, "ICD10CM//I10", None), (2, T0, "ICD10CM//I11.0", None), (2, T0, "CPT//99213", None)]
    root = write_meds({"train/0": SUBJECT, "tuning/0": tuning}, {1: "train", 2: "tuning"})
    codes = {"code": ["ICD10CM//E11.65", "LOINC//2345-7"], "description": ["Diabetes with high glucose", "Glucose"]}
    pl.DataFrame(codes).write_parquet(root / "metadata" / "codes.parquet")
    config = build_config.get_config()
    config.update(code_map="world", min_subjects_per_code=1, min_values_per_code=2)
    return build_corpus(root, tmp_path / "corpus", config, workers=1)


def text_of(corpus: Corpus, split: str, subject: int) -> list[str]:
    record = show.find_subject(corpus, [split], subject)
    return list(show_timeline.timeline(record, corpus.vocabulary))


def test_a_timeline_tells_what_happened_when(corpus) -> None:
    lines = text_of(corpus, "train", 1)
    assert lines[0].startswith("Subject 1: sex F, race unknown, age 60-64, period 2020-2024; ")
    # Each interval range holds one gap of this subject's, so its mean is that gap.
    assert "\n".join(lines[4:]).splitlines() == [
        "         0 min                Diagnosis       Diabetes with high glucose (ICD10CM E1165)",
        "      3 mo 8 d    + 3 mo 8 d  ┌─ EMERGENCY (age 60-64)",
        "      · 30 min      + 30 min  │ Lab             Glucose (LOINC 2345-7)  about 5 (decile 7 of 10)",
        "         · 4 h  + 3 h 30 min  │ ┌─ INPATIENT (age 60-64)",
        "   · 4 h 3 min       + 3 min  └─ EMERGENCY ends",
        "    · 1 d 20 h    + 1 d 19 h  │ Lab             Glucose (LOINC 2345-7)  about 1 (decile 1 of 10)  (2 times)",
        "    · 6 d 20 h         + 5 d  └─ INPATIENT ends · HOME",
        "      2 y 8 mo    + 2 y 5 mo  Death",
        "                              End of the record",
    ]


def test_rare_codes_are_told_and_shortened_ones_have_no_description_of_their_own(corpus) -> None:
    lines = "\n".join(text_of(corpus, "tuning", 2))
    assert "Diagnosis       (a code outside the vocabulary)  (2 times)" in lines
    assert "Procedure       (a code outside the vocabulary)" in lines
    assert "age unknown" in lines and "I10" not in lines


def test_a_description_does_not_say_twice_what_the_line_says(corpus, world_corpus) -> None:
    world = Corpus.open(world_corpus)
    split = world.split("train")
    lines = [line for index in range(20) for line in show_timeline.timeline(split.record(index), world.vocabulary)]
    visits = [line.split("│ ")[-1] for line in lines if "(PRIMARY_CARE)" in line]
    assert visits and set(visits) == {"Department      Primary care (PRIMARY_CARE)"}
    assert any(line.endswith("Procedure       CPT 99213") for line in lines)


def test_every_event_of_a_record_has_its_line(world_corpus) -> None:
    corpus = Corpus.open(world_corpus)
    split = corpus.split("train")
    for index in range(20):
        record = split.record(index)
        events = grammar.parse(record.tokens_T.tolist(), corpus.vocabulary)
        lines = list(show_timeline.timeline(record, corpus.vocabulary))[4:]
        told = sum(int(line.rsplit("(", 1)[1].split()[0]) if line.endswith(" times)") else 1 for line in lines)
        assert told == len(events) + 1
        assert not any("spell no event" in line for line in lines)


def test_an_encounter_that_never_ends_gives_way_to_the_next_of_its_type(corpus) -> None:
    vocabulary = corpus.vocabulary
    start = vocabulary.events[vocabulary.event_of_concept["ENCOUNTER//ENCOUNTER_START//EMERGENCY"]].tokens
    record = show.find_subject(corpus, ["train"], 1)
    twice = type(record)(1, np.array([*record.tokens_T[:4], *start, *start], np.uint16), *_prefixes(record))
    assert [line[30:] for line in show_timeline.timeline(twice, vocabulary)][4:] == ["┌─ EMERGENCY (age 60-64)"] * 2


def test_tokens_that_spell_nothing_are_told(corpus) -> None:
    vocabulary = corpus.vocabulary
    record = show.find_subject(corpus, ["train"], 1)
    part = vocabulary.ids["ICD10CM//2//6"]
    broken = type(record)(1, np.array([*record.tokens_T[:4], part], np.uint16), *_prefixes(record))
    assert list(show_timeline.timeline(broken, vocabulary))[-1].endswith("tokens 4 to 4 spell no event")


def _prefixes(record) -> tuple[np.ndarray, np.ndarray]:
    return record.prefix_starts, record.prefixes


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 min"),
        (29, "0 min"),
        (31, "1 min"),
        (15 * 60, "15 min"),
        (3600, "1 h"),
        (5400, "1 h 30 min"),
        (86_400 + 3 * 3600 + 59, "1 d 3 h"),
        (45 * 86_400, "1 mo 14 d"),
        (365.25 * 86_400, "1 y"),
        (2.25 * 365.25 * 86_400, "2 y 3 mo"),
        (30 * 365.25 * 86_400, "30 y"),
    ],
)
def test_durations_read_in_their_two_largest_units(seconds: float, text: str) -> None:
    assert show_timeline.duration(seconds) == text


def test_an_unknown_subject_is_refused(corpus) -> None:
    with pytest.raises(UserError, match="no subject 2 in train"):
        show.find_subject(corpus, ["train"], 2)
    assert show.find_subject(corpus, ["train", "tuning"], 2).subject_id == 2


def numbers(line: str) -> list[int]:
    return [int(word.replace(",", "")) for word in line.split() if word.replace(",", "").isdigit()]


def test_the_tables_say_what_the_corpus_holds(corpus) -> None:
    lines = show_tables.overview(corpus, ["train", "tuning"])
    train = corpus.split("train").record(0)
    (split_line,) = [line for line in lines if line.startswith("train ")]
    assert numbers(split_line) == [1, *[len(train.tokens_T)] * 7]
    kinds = [corpus.vocabulary.tokens[token].kind for token in train.tokens_T]
    (lab_line,) = [line for line in lines if line.startswith("LAB ")]
    labs = sum(token.kind == "LAB" for token in corpus.vocabulary.tokens)
    assert numbers(lab_line) == [labs, kinds.count("LAB"), 0]
    (all_line,) = [line for line in lines if line.startswith("all ")]
    assert numbers(all_line) == [
        len(corpus.vocabulary),
        len(train.tokens_T),
        len(corpus.split("tuning").record(0).tokens_T),
    ]
    (unknown_line,) = [line for line in lines if line.startswith("unknown share")]
    assert unknown_line.split()[-2:] == ["0.00%", "100.00%"]
    (loinc_line,) = [line for line in lines if " LOINC " in line]
    assert numbers(loinc_line)[1:] == [1, 3]
    assert any(corpus.fingerprint in line for line in lines)


def test_a_split_can_be_shown_alone(corpus) -> None:
    lines = show_tables.overview(corpus, ["tuning"])
    assert not any(line.startswith("train ") for line in lines)


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data_pipeline.show", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_prints_tables_or_a_timeline(corpus) -> None:
    tables = run("--corpus", str(corpus.root))
    assert tables.returncode == 0 and tables.stdout.splitlines() == show_tables.overview(corpus, ["train", "tuning"])
    one = run("--corpus", str(corpus.root), "--subject", "1", "--split", "train")
    assert one.returncode == 0 and one.stdout.splitlines() == text_of(corpus, "train", 1)
    assert one.stderr == tables.stderr == ""


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--subject", "77"], "no subject 77"),
        (["--split", "dev"], "no split 'dev'"),
        (["--subject", "x"], "--subject"),
        (["--unknown", "3"], "--unknown and --meds go together"),
        (["--step", "3"], "--run and --step go together"),
        (["--subject_ids"], "--subject_ids is of a step"),
        (["--subject", "1", "--verify"], "--verify and --subject are two things"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(corpus, args: list[str], complaint: str) -> None:
    done = run("--corpus", str(corpus.root), *args)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and complaint in done.stderr


def test_the_settings_shown_are_those_that_were_chosen(corpus) -> None:
    (line,) = [line for line in show_tables.overview(corpus, ["train"]) if line.startswith("configuration")]
    assert line == "configuration: code_map world, min_subjects_per_code 1, min_values_per_code 2"


def test_the_codes_that_are_unknown_are_told_to_who_has_the_data(corpus, tmp_path) -> None:
    done = run("--corpus", str(corpus.root), "--meds", str(tmp_path / "meds"), "--unknown", "2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    # SEX//F has no time and MEDS_BIRTH no event: 9 of subject 1's rows and 3 of subject 2's are events.
    assert lines[0].startswith("3 codes of") and "in 3 of 12 events (25.00%)" in lines[0]
    assert [line.split() for line in lines[3:]] == [
        ["CPT//99213", "PROCEDURE", "1", "1"],
        ["ICD10CM//I10", "DIAGNOSIS", "1", "1"],
    ]


def test_a_reader_that_stops_reading_is_no_error(corpus) -> None:
    command = [sys.executable, "-m", "data_pipeline.show", "--corpus", str(corpus.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
