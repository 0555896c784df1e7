"""A build that is stopped, by whatever: the next run takes up what is finished, and the bytes are the same."""

import contextlib
import glob
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from data_pipeline import build_config, pieces
from data_pipeline.build import build_corpus
from data_pipeline.errors import UserError
from data_pipeline.world import write_world

SHARDS = 12


@pytest.fixture(scope="module")
def meds_root(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("resume") / "meds"
    write_world(root, patients=150, seed=3, shards=10)
    return root


def config(**changes):
    content = build_config.get_config()
    content.update(code_map="world", min_subjects_per_code=3, min_values_per_code=20)
    content.update(**changes)
    return content


@pytest.fixture(scope="module")
def expected(meds_root) -> dict[str, bytes]:
    """Every file of a corpus that was built without interruption."""
    return content_of(build_corpus(meds_root, meds_root.parent / "whole", config(), workers=1).root)


def content_of(root: pathlib.Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def start(meds_root: pathlib.Path, out: pathlib.Path, *args: str) -> subprocess.Popen[str]:
    flags = [f"--meds={meds_root}", f"--out={out}", "--config.code_map=world", "--config.min_subjects_per_code=3"]
    flags += ["--config.min_values_per_code=20", *args]
    command = [sys.executable, "-m", "data_pipeline.build", *flags]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finished_work(out: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Path → inode and time of each finished file: a file that was written again would have others.

    A shard's ArrayRecord files are finished when its tokenized piece, which is written after them, names them: a run
    that is killed between the two has that shard still to do.
    """
    partial = out.with_name(out.name + ".partial")
    # Not Path.glob, which fails where the build removes a folder meanwhile.
    pieces = [pathlib.Path(path) for path in glob.glob(f"{partial}/*/*.zip")]
    finished = {f"{path.parent.name}/{path.name}": path for path in pieces}
    if out.exists():
        files = [path.relative_to(out).as_posix() for path in out.rglob("*.array_record")]
    else:
        files = [file for path in pieces if path.parent.name == "tokenized" for file in array_records(path)]
    finished |= {f"corpus/{file}": (out if out.exists() else partial / "corpus") / file for file in files}
    stats = {name: status(path) for name, path in finished.items()}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items() if stat}


def array_records(piece: pathlib.Path) -> list[str]:
    """The ArrayRecord files that a tokenized piece names; none where the build has removed the piece meanwhile."""
    try:
        return [split["file"] for split in pieces.read(piece, ["splits"])["splits"]]
    except pieces.DamagedPieceError:
        return []


def status(path: pathlib.Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # a build that ends moves and removes files
        return None


def process_tree(pid: int) -> list[int]:
    try:
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return []
    return [pid, *(below for child in children for below in process_tree(int(child)))]


def is_alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def kill_again_and_again(meds_root, out, expected, kills: int, draw: random.Random) -> list[int]:
    """Kill a build that often, at random moments; returns how many files were finished each time.

    What a run finishes before it can be killed is removed, and the next starts anew.
    """
    stopped_at: list[int] = []
    before: dict[str, tuple[int, int]] = {}
    while True:
        run = start(meds_root, out, "--workers=2")
        if len(stopped_at) < kills:
            # More than what is there already: a run is killed after some work of its own, or ends.
            aim = len(before) + draw.randint(1, SHARDS)
            wait_for(lambda aim=aim, run=run: len(finished_work(out)) >= aim or run.poll() is not None)
            time.sleep(draw.uniform(0, 0.1))
            family = process_tree(run.pid)
            run.kill()
            wait_for(lambda family=family: not any(map(is_alive, family)), seconds=30)
        status = run.wait()
        assert status in (0, -signal.SIGKILL), run.stderr.read()
        if status == -signal.SIGKILL:
            stopped_at.append(len(finished_work(out)))
        after = finished_work(out)
        kept = [path for path in before if path.startswith("corpus/")] if out.exists() else before
        assert {path: before[path] for path in kept} == {path: after.get(path) for path in kept}
        before = after
        if status == 0 or out.exists():  # killed as it left, its work was done
            if status != 0 and len(os.listdir(out.parent)) > 1:  # killed as it cleared up: the next run does that
                again = start(meds_root, out, "--workers=2")
                _, said = again.communicate(timeout=200)
                assert again.returncode == 0 or (again.returncode == 2 and "already exists" in said), said
            assert content_of(out) == expected and sorted(os.listdir(out.parent)) == [out.name]
            if len(stopped_at) == kills:
                return stopped_at
            shutil.rmtree(out)
            before = {}


def test_a_build_killed_three_times_ends_with_the_same_bytes_and_does_nothing_twice(
    meds_root, expected, tmp_path
) -> None:
    kill_again_and_again(meds_root, tmp_path / "corpus", expected, 3, random.Random(0))


@pytest.mark.slow
def test_a_build_killed_twenty_times_ends_with_the_same_bytes_and_does_nothing_twice(
    meds_root, expected, tmp_path
) -> None:
    stopped_at = kill_again_and_again(meds_root, tmp_path / "corpus", expected, 20, random.Random(1))
    print("finished files at each kill:", stopped_at)
    assert len(set(stopped_at)) > 5  # the kills did fall into the work


def test_a_run_says_what_it_takes_up(meds_root, expected, tmp_path) -> None:
    out = tmp_path / "corpus"
    run = start(meds_root, out, "--workers=1")
    wait_for(lambda: len(finished_work(out)) >= 3)
    run.kill()
    run.wait()
    done = start(meds_root, out, "--workers=1")
    _, errors = done.communicate()
    assert done.returncode == 0 and f"of {SHARDS} shards are counted already" in errors


def test_another_configuration_starts_over_and_says_so(meds_root, expected, tmp_path, capsys) -> None:
    out = tmp_path / "corpus"
    run = start(meds_root, out, "--workers=1", "--config.interval_preset=ethos19")
    wait_for(lambda: len(finished_work(out)) >= 3)
    run.kill()
    run.wait()
    build_corpus(meds_root, out, config(), workers=1)
    assert "config.interval_preset changed since: starting over" in capsys.readouterr().err
    assert content_of(out) == expected


def test_after_a_mended_file_the_others_are_not_read_again(meds_root, expected, tmp_path, capsys) -> None:
    root = tmp_path / "meds"
    shutil.copytree(meds_root, root, copy_function=shutil.copy2)
    bad = sorted(root.glob("data/*/*.parquet"))[6]
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"not a readable parquet file.*finished shards are kept in .*corpus\.partial"):
        build_corpus(root, tmp_path / "corpus", config(), workers=1)
    bad.write_bytes(whole)
    build_corpus(root, tmp_path / "corpus", config(), workers=1)
    assert f"6 of {SHARDS} shards are counted already" in capsys.readouterr().err
    assert content_of(tmp_path / "corpus") == expected


def test_a_damaged_piece_is_made_again(meds_root, expected, tmp_path, capsys) -> None:
    out = tmp_path / "corpus"
    run = start(meds_root, out, "--workers=1")
    wait_for(lambda: len(finished_work(out)) >= 6)
    run.kill()
    run.wait()
    for path in sorted((tmp_path / "corpus.partial" / "counted").iterdir())[:3]:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
        assert not pieces.is_whole(path)
    build_corpus(meds_root, out, config(), workers=1)
    assert content_of(out) == expected


def test_a_piece_with_any_bit_of_its_directory_flipped_is_damaged_or_reads_as_it_was(tmp_path) -> None:
    """A flip there can hide a member, or have one unpacked that was never packed."""
    content = {"rows": 7, "aside": []}
    path = tmp_path / "piece.zip"
    pieces.write(path, content, tmp_path / "temporary")
    whole = path.read_bytes()
    for position in range(whole.index(b"PK\x01\x02"), len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << bit
            path.write_bytes(flipped)
            if pieces.is_whole(path):  # a flip in a date, say
                assert pieces.read(path) == content, (position, bit)
            else:
                with pytest.raises(pieces.DamagedPieceError):
                    pieces.read(path)


def test_a_second_build_of_one_corpus_is_refused(meds_root, tmp_path) -> None:
    out = tmp_path / "corpus"
    first = start(meds_root, out, "--workers=1")
    wait_for(lambda: finished_work(out))
    first.send_signal(signal.SIGSTOP)
    second = start(meds_root, out)
    _, errors = second.communicate()
    first.kill()
    first.wait()
    assert second.returncode == 2
    assert errors == f"error: {out}.partial: another build is writing here; wait for it or choose another --out\n"


def test_ctrl_c_ends_in_one_line_and_130_and_the_next_run_goes_on(meds_root, expected, tmp_path) -> None:
    out = tmp_path / "corpus"
    run = start(meds_root, out, "--workers=2")
    wait_for(lambda: len(finished_work(out)) >= 3)
    for pid in process_tree(run.pid):  # as a terminal does: to all of them
        with contextlib.suppress(ProcessLookupError):  # one may have ended since, but for the first
            os.kill(pid, signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    said = "keeps the shards that are finished: the same command goes on from there"
    assert errors == f"interrupted; {out}.partial {said}\n"
    build_corpus(meds_root, out, config(), workers=1)
    assert content_of(out) == expected


def test_a_run_that_was_killed_while_it_cleared_up_is_recognized(meds_root, expected, tmp_path, monkeypatch) -> None:
    out = tmp_path / "corpus"
    monkeypatch.setattr("data_pipeline.build_folder._remove", lambda folder: None)
    build_corpus(meds_root, out, config(), workers=1)
    monkeypatch.undo()
    assert (tmp_path / "corpus.partial").exists()
    build_corpus(meds_root, out, config(), workers=1)
    assert content_of(out) == expected and not (tmp_path / "corpus.partial").exists()


def test_a_folder_of_someone_else_is_left_alone(meds_root, tmp_path) -> None:
    (tmp_path / "corpus.partial").mkdir()
    (tmp_path / "corpus.partial" / "mine").write_text("precious")
    with pytest.raises(UserError, match="holds what is not of a build"):
        build_corpus(meds_root, tmp_path / "corpus", config(), workers=1)
    assert os.listdir(tmp_path / "corpus.partial") == ["mine"]
