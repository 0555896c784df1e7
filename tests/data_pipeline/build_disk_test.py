"""A disk that is full or cannot be written: one line, nothing half written, and a rerun with room completes."""

import contextlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from data_pipeline import build_config
from data_pipeline.build import build_corpus
from data_pipeline.world import write_world

CONFIG = {"code_map": "world", "min_subjects_per_code": 3, "min_values_per_code": 20}
ROOM = "64m"


@pytest.fixture(scope="module")
def meds_root(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("disk") / "meds"
    write_world(root, patients=150, seed=3, shards=6)
    return root


@pytest.fixture(scope="module")
def expected(meds_root) -> dict[str, bytes]:
    config = build_config.get_config()
    config.update(**CONFIG)
    return content_of(build_corpus(meds_root, meds_root.parent / "whole", config, workers=1).root)


def content_of(root: pathlib.Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@contextlib.contextmanager
def mounted(place: pathlib.Path, options: str) -> Iterator[pathlib.Path]:
    place.mkdir()
    tried = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"SKIPPED FOR LACK OF RIGHTS: cannot mount a small tmpfs: {tried.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def remount(place: pathlib.Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)


def build(meds_root: pathlib.Path, out: pathlib.Path, workers: int) -> subprocess.CompletedProcess[str]:
    flags = [f"--meds={meds_root}", f"--out={out}", f"--workers={workers}"]
    flags += [f"--config.{key}={value}" for key, value in CONFIG.items()]
    command = [sys.executable, "-m", "data_pipeline.build", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def check_a_full_disk(meds_root, expected, place: pathlib.Path, kilobytes: int, workers: int) -> str:
    """Build on a disk of that size, then with room; returns what the first build said."""
    with mounted(place, f"size={kilobytes}k") as disk:
        out = disk / "corpus"
        first = build(meds_root, out, workers)
        assert first.returncode == 2, first.stderr
        said = first.stderr.splitlines()
        assert len(said) == 1 and said[0].startswith("error: "), first.stderr
        assert "cannot be written (No space left on device)" in said[0] and str(out) in said[0]
        assert not out.exists()
        remount(disk, f"size={ROOM}")
        again = build(meds_root, out, workers)
        assert again.returncode == 0, again.stderr
        assert content_of(out) == expected and os.listdir(disk) == ["corpus"]
    return said[0]


# What a build of these data writes takes a megabyte and a half, counts first and the manifest last.
@pytest.mark.parametrize(("kilobytes", "workers"), [(64, 1), (1300, 2)])
def test_a_full_disk_is_one_line_and_a_rerun_with_room_completes(
    meds_root, expected, tmp_path, kilobytes, workers
) -> None:
    check_a_full_disk(meds_root, expected, tmp_path / "disk", kilobytes, workers)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_is_full_at_any_size_is_one_line(meds_root, expected, tmp_path, workers) -> None:
    with mounted(tmp_path / "measured", f"size={ROOM}") as disk:
        build(meds_root, disk / "corpus", 1)
        whole = sum(path.stat().st_blocks for path in disk.rglob("*")) // 2
    for step, kilobytes in enumerate(range(4, whole, whole // 25)):
        print(kilobytes, check_a_full_disk(meds_root, expected, tmp_path / str(step), kilobytes, workers))


def test_a_place_that_is_read_only_is_one_line(meds_root, expected, tmp_path) -> None:
    with mounted(tmp_path / "disk", f"size={ROOM}") as disk:
        remount(disk, "ro")
        refused = build(meds_root, disk / "corpus", 2)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1
        assert f"error: {disk}/corpus.partial: cannot be written (Read-only file system)" in refused.stderr
        remount(disk, "rw")
        assert build(meds_root, disk / "corpus", 1).returncode == 0
        assert content_of(disk / "corpus") == expected
