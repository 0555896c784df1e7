"""The corpus format: records come back as they went in, and damage is told, with the file's name."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import corpus
from data_pipeline.corpus import Corpus, SubjectRecord
from data_pipeline.errors import UserError


@settings(deadline=None)
@given(
    st.integers(-(2**63), 2**63 - 1),
    st.lists(st.integers(0, 2**16 - 1), max_size=50),
    st.lists(st.tuples(*[st.integers(0, 2**16 - 1)] * 4), min_size=1, max_size=5),
)
def test_a_record_survives_its_bytes(subject_id, tokens, prefixes) -> None:
    record = SubjectRecord(
        subject_id,
        np.array(tokens, np.uint16),
        np.arange(len(prefixes), dtype=np.uint32) * 7,
        np.array(prefixes, np.uint16),
    )
    back = corpus.decode_record(corpus.encode_record(record))
    assert back.subject_id == subject_id
    for name in ("tokens_T", "prefix_starts", "prefixes"):
        np.testing.assert_array_equal(getattr(back, name), getattr(record, name))
    for start in (0, 6, 7, 100):
        np.testing.assert_array_equal(record.prefix_at(start), prefixes[min(start // 7, len(prefixes) - 1)])


def copy(source, target):
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())
    return target


def test_a_flipped_byte_in_a_record_is_found_when_it_is_read(world_corpus, tmp_path) -> None:
    root = copy(world_corpus, tmp_path / "c")
    shard = root / Corpus.open(root).manifest["splits"]["held_out"]["shards"][0]["file"]
    content = bytearray(shard.read_bytes())
    # The first record lies behind the head block of 64 KiB.
    content[2**16 + 100] ^= 1
    shard.write_bytes(content)
    reader = Corpus.open(root).split("held_out")
    with pytest.raises(UserError, match="array_record"):
        for index in range(len(reader)):
            reader.record(index)


def test_without_a_manifest_there_is_no_corpus(world_corpus, tmp_path) -> None:
    root = copy(world_corpus, tmp_path / "c")
    (root / "corpus.json").unlink()
    with pytest.raises(UserError, match=r"corpus\.json"):
        Corpus.open(root)


def test_another_vocabulary_is_refused(world_corpus, tmp_path) -> None:
    root = copy(world_corpus, tmp_path / "c")
    path = root / "vocabulary.json"
    path.write_text(path.read_text().replace("VALUE//10", "VALUE//11"))
    with pytest.raises(UserError, match=r"vocabulary\.json"):
        _ = Corpus.open(root).vocabulary


def test_an_unknown_split_and_version_are_refused(world_corpus, tmp_path) -> None:
    with pytest.raises(UserError, match="it has train, tuning, held_out"):
        Corpus.open(world_corpus).split("test")
    root = copy(world_corpus, tmp_path / "c")
    manifest = json.loads((root / "corpus.json").read_text()) | {"format_version": 99}
    (root / "corpus.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="format version 99"):
        Corpus.open(root)


def test_a_vocabulary_survives_its_json(world_corpus) -> None:
    vocabulary = Corpus.open(world_corpus).vocabulary
    assert type(vocabulary).from_json(vocabulary.to_json()) == vocabulary


@pytest.fixture(scope="module")
def small_shard(tmp_path_factory):
    """(shard file, its bytes, its records), of a split with one shard."""
    root = tmp_path_factory.mktemp("shard")
    random = np.random.default_rng(0)
    tokens = [random.integers(0, 500, random.integers(5, 3000)).astype(np.uint16) for _ in range(40)]
    records = [
        SubjectRecord(number, tokens_T, np.zeros(1, np.uint32), tokens_T[None, :4])
        for number, tokens_T in enumerate(tokens)
    ]
    (root / "train").mkdir()
    np.save(root / "train/lengths.npy", np.array([len(tokens_T) for tokens_T in tokens], np.uint32))
    path = root / "train/0.array_record"
    corpus.write_shard(path, records)
    return path, path.read_bytes(), records


def reads_right(path, records):
    """Whether every record comes back as it was; raises UserError where damage is seen."""
    shards = [{"file": "train/0.array_record", "records": len(records)}]
    back = corpus.SplitReader(path.parents[1], "train", shards).records(range(len(records)))
    return all(
        found.subject_id == record.subject_id and np.array_equal(found.tokens_T, record.tokens_T)
        for found, record in zip(back, records, strict=True)
    )


@pytest.mark.parametrize("seed", range(80))
def test_a_byte_flipped_anywhere_is_found_at_read_or_changes_no_record(small_shard, seed):
    # Padding and parts of the headers, which no reader looks at, are for `show --verify`.
    path, content, records = small_shard
    random = np.random.default_rng(seed)
    place = int(random.integers(len(content)))
    path.write_bytes(content[:place] + bytes([content[place] ^ 1 << random.integers(8)]) + content[place + 1 :])
    try:
        assert reads_right(path, records)
    except UserError as error:
        assert "0.array_record: damaged or incomplete" in str(error)


@pytest.mark.parametrize("seed", range(30))
def test_a_shard_cut_short_anywhere_is_found_at_read(small_shard, seed):
    path, content, records = small_shard
    path.write_bytes(content[: np.random.default_rng(seed).integers(len(content))])
    with pytest.raises(UserError, match=r"0\.array_record: damaged or incomplete"):
        reads_right(path, records)


def test_lengths_that_are_not_the_records_are_found_at_read(small_shard, tmp_path):
    _, content, records = small_shard
    (tmp_path / "train").mkdir()
    (tmp_path / "train/0.array_record").write_bytes(content)
    lengths_R = np.array([len(record.tokens_T) for record in records], np.uint32)
    lengths_R[7] += 1
    np.save(tmp_path / "train/lengths.npy", lengths_R)
    with pytest.raises(UserError, match=rf"record 7 has {lengths_R[7] - 1} tokens, lengths.npy says {lengths_R[7]}"):
        reads_right(tmp_path / "train/0.array_record", records)
