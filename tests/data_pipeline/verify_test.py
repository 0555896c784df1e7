"""Integrity: a byte that changes anywhere in a corpus is found, at reading or by verify, which names its file."""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from data_pipeline import corpus as corpus_module
from data_pipeline.corpus import MANIFEST, Corpus
from data_pipeline.errors import UserError
from data_pipeline.verify import Fault, checksums, verify


@pytest.fixture
def copy(world_corpus, tmp_path) -> pathlib.Path:
    """A corpus of one's own to break."""
    return shutil.copytree(world_corpus, tmp_path / "corpus")


def flip(path: pathlib.Path, position: int, mask: int) -> bytes:
    """Flip bits of one byte; returns what the file was."""
    content = path.read_bytes()
    changed = bytearray(content)
    changed[position] ^= mask
    path.write_bytes(changed)
    return content


def test_a_corpus_as_built_is_whole_and_every_file_of_it_is_known(world_corpus) -> None:
    corpus = Corpus.open(world_corpus)
    assert verify(corpus) == []
    files = {path.relative_to(world_corpus).as_posix() for path in world_corpus.rglob("*") if path.is_file()}
    assert files == {*checksums(corpus), MANIFEST}


def test_a_flipped_byte_in_any_file_is_found_and_its_file_named(copy) -> None:
    rng = np.random.default_rng(0)
    for file in checksums(Corpus.open(copy)):
        path = copy / file
        size = path.stat().st_size
        for position in {0, size - 1, *rng.integers(0, size, 8).tolist()}:
            content = flip(path, position, 1 << int(rng.integers(8)))
            assert verify(Corpus.open(copy)) == [Fault(file, "damaged: not what its checksum says")], (file, position)
            path.write_bytes(content)
    assert verify(Corpus.open(copy)) == []


def test_a_flipped_byte_in_the_manifest_is_found_when_it_is_opened(copy) -> None:
    path = copy / MANIFEST
    content = path.read_bytes()
    # White space that becomes other white space is still JSON: the checksum is over bytes.
    spaces = [(position, 0x20 ^ 0x09) for position in range(0, len(content), 40) if content[position] == 0x20]
    others = [(position, 1 << position % 8) for position in (*range(90), *range(90, len(content), len(content) // 100))]
    for position, mask in spaces + others:
        flip(path, position, mask)
        with pytest.raises(UserError, match=r"corpus\.json"):
            Corpus.open(copy)
        path.write_bytes(content)
    assert spaces and Corpus.open(copy)


def test_reading_a_damaged_shard_gives_its_records_or_an_error_and_never_others(copy) -> None:
    corpus = Corpus.open(copy)
    shard = corpus.manifest["splits"]["tuning"]["shards"][0]
    path = copy / shard["file"]

    def records() -> list[bytes]:
        split = Corpus.open(copy).split("tuning")
        return [corpus_module.encode_record(split.record(index)) for index in range(shard["records"])]

    right, size, found = records(), path.stat().st_size, 0
    for position in range(0, size, max(1, size // 150)):
        content = flip(path, position, 0x10)
        try:
            assert records() == right, position
        except UserError as error:
            assert str(path) in str(error)
            found += 1
        path.write_bytes(content)
    # Padding aside, the bytes of a shard are all under ArrayRecord's own checksums.
    assert found > 10


def test_missing_strange_and_shortened_files_are_named(copy) -> None:
    (copy / "train" / "lengths.npy").unlink()
    (copy / "train" / "notes.txt").write_text("mine")
    (copy / "dangling").symlink_to(copy / "nowhere")
    shard = next(file for file in checksums(Corpus.open(copy)) if file.endswith(".array_record"))
    os.truncate(copy / shard, 100)
    assert verify(Corpus.open(copy), threads=1) == sorted(
        [
            Fault("dangling", "not a file of this corpus"),
            Fault(shard, "damaged: not what its checksum says"),
            Fault("train/lengths.npy", "missing"),
            Fault("train/notes.txt", "not a file of this corpus"),
        ],
        key=lambda fault: fault.file,
    )


def test_a_file_replaced_by_a_link_to_nowhere_is_missing(copy) -> None:
    (copy / "train" / "lengths.npy").unlink()
    (copy / "train" / "lengths.npy").symlink_to(copy / "nowhere")
    assert verify(Corpus.open(copy)) == [Fault("train/lengths.npy", "missing")]


def test_a_corpus_may_lie_in_several_places_by_links(copy, tmp_path) -> None:
    (copy / "train").rename(tmp_path / "elsewhere")
    (copy / "train").symlink_to(tmp_path / "elsewhere")
    assert verify(Corpus.open(copy)) == []
    (tmp_path / "elsewhere" / "notes.txt").write_text("mine")
    (tmp_path / "elsewhere" / "back").symlink_to(copy)
    assert verify(Corpus.open(copy)) == [Fault("train/notes.txt", "not a file of this corpus")]


def test_changed_lengths_are_found_when_they_are_read(copy) -> None:
    lengths_R = np.load(copy / "train" / "lengths.npy")
    lengths_R[len(lengths_R) // 2] += 1
    np.save(copy / "train" / "lengths.npy", lengths_R)
    with pytest.raises(UserError, match=r"train/lengths\.npy: the lengths add up to"):
        _ = Corpus.open(copy).split("train").lengths_R


@pytest.mark.parametrize("header", [b"(" * 40, b"[{'descr'", b"\x00" * 30])
def test_an_array_whose_header_is_damaged_cannot_be_read(copy, header) -> None:
    path = copy / "train" / "lengths.npy"
    content = path.read_bytes()
    path.write_bytes(content[:10] + header + content[10 + len(header) :])
    with pytest.raises(UserError, match=r"train/lengths\.npy: cannot be read"):
        _ = Corpus.open(copy).split("train").lengths_R


def run(root: pathlib.Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data_pipeline.show", "--corpus", str(root), "--verify"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_names_the_files_and_exits_with_2(copy) -> None:
    whole = run(copy)
    assert whole.returncode == 0 and "all as written" in whole.stdout
    flip(copy / "train" / "subject_ids.npy", 200, 1)
    broken = run(copy)
    assert broken.returncode == 2 and "subject_ids.npy: damaged" in broken.stdout
    assert broken.stderr.count("\n") == 1 and "1 files" in broken.stderr
