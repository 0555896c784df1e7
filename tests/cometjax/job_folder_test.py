"""One job, several processes: each part has one of them, and one of them all writes the output."""

import errno
import fcntl
import json
import os

import pytest

from cometjax import job_folder
from cometjax.job_folder import EVERYTHING, Part, opened
from data_pipeline import file_lock
from data_pipeline.errors import UserError

IDENTITY = {"weights": "w", "settings": {"seed": 0}}


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_prompt_is_of_one_part_and_parts_cost_alike(count) -> None:
    sizes = [50, 3, 3, 900, 20, 20, 7, 800, 1, 40, 60]
    shares = [Part(index, count).share(sizes) for index in range(count)]
    assert sorted(index for share in shares for index in share) == list(range(len(sizes)))
    costs = [sum(sizes[index] for index in share) for share in shares]
    assert max(costs) - min(costs) <= max(sizes)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["3", "1/0", "3/3", "-1/3", "1/3/5", "a/b", "0.5/2"])
def test_what_is_no_part_is_refused(text) -> None:
    with pytest.raises(UserError, match="--part: "):
        Part.parse(text)


def test_parts_are_counted_from_0_and_none_is_everything() -> None:
    assert Part.parse("2/3") == Part(2, 3) and Part.parse("") == Part.parse("0/1") == EVERYTHING


def test_the_last_part_writes_and_the_others_say_what_is_missing(tmp_path, capsys) -> None:
    out = tmp_path / "out"
    out.mkdir()  # as one may: an empty folder is no output
    for index, missing in ((2, "parts 0, 1 (from 0) not yet"), (0, "part 1 (from 0) not yet")):
        with opened(out, Part(index, 3), IDENTITY) as folder:
            assert not folder.finish_part()
        assert missing in capsys.readouterr().out
    with opened(out, Part(1, 3), IDENTITY) as folder:
        assert folder.finish_part()
        (out / "result").touch()
        folder.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_part_has_one_process_and_who_works_alone_has_no_other(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(job_folder, "JOIN_SECONDS", 0.0)
    out = tmp_path / "out"
    with opened(out, Part(0, 2), IDENTITY), opened(out, Part(1, 2), IDENTITY):
        with pytest.raises(UserError, match="another process draws part 0 of 2"), opened(out, Part(0, 2), IDENTITY):
            pass
        with pytest.raises(UserError, match="another process draws or writes here"), opened(out, EVERYTHING, IDENTITY):
            pass
    alone = opened(out, EVERYTHING, IDENTITY)
    with alone, pytest.raises(UserError, match="without --part draws here"), opened(out, Part(0, 2), IDENTITY):
        pass


def test_who_comes_with_something_else_is_refused_by_name(tmp_path) -> None:
    out, other = tmp_path / "out", IDENTITY | {"settings": {"seed": 1}}
    with opened(out, Part(0, 2), IDENTITY):
        for part in (Part(1, 2), Part(0, 3)):
            with pytest.raises(UserError, match="of other settings is there"), opened(out, part, other):
                pass
    with pytest.raises(UserError, match="of other settings is there"), opened(out, EVERYTHING, other):
        pass


def test_who_draws_everything_binds_later_starts_unless_it_is_not_to(tmp_path) -> None:
    out, other = tmp_path / "out", IDENTITY | {"settings": {"seed": 1}}
    with opened(out, EVERYTHING, IDENTITY, keep_identity=False), opened(tmp_path / "kept", EVERYTHING, IDENTITY):
        pass
    with opened(out, EVERYTHING, other):  # binds to this
        pass
    for place, identity in ((out, IDENTITY), (tmp_path / "kept", other), (out, other | {"labels": "l"})):
        with pytest.raises(UserError, match="an unfinished simulation of other"), opened(place, EVERYTHING, identity):
            pass


def test_nobody_says_what_the_job_is_while_others_draw(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(job_folder, "JOIN_SECONDS", 0.0)
    with opened(tmp_path / "out", Part(0, 2), IDENTITY) as folder:
        (folder.path / "job.json").unlink()
        with pytest.raises(UserError, match="without --part draws here"), opened(folder._out, Part(1, 2), IDENTITY):
            pass
        assert not (folder.path / "job.json").exists()


def test_where_the_folder_cannot_be_made_a_line_says_so(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"), opened(tmp_path / "file" / "out", EVERYTHING, IDENTITY):
        pass


def test_two_that_end_together_leave_the_output_to_one_of_them(tmp_path, capsys, monkeypatch) -> None:
    """Of both the share is drawn before either looks; the first still writes while the second asks."""
    shared, flock = set(), fcntl.flock

    def lock_that_cannot_grow(descriptor, operation):  # as over NFS, where another shares it
        if operation & fcntl.LOCK_EX and descriptor in shared:
            raise BlockingIOError
        flock(descriptor, operation)
        (shared.add if operation & fcntl.LOCK_SH else shared.discard)(descriptor)

    monkeypatch.setattr(fcntl, "flock", lock_that_cannot_grow)
    monkeypatch.setattr(os, "close", lambda descriptor, close=os.close: (shared.discard(descriptor), close(descriptor)))
    out = tmp_path / "out"
    with opened(out, Part(0, 2), IDENTITY) as first, opened(out, Part(1, 2), IDENTITY) as second:
        for index in (0, 1):
            (first.path / f"part_{index}_of_2.drawn").touch()
        assert not first.finish_part()  # the second is still at it, and has yet to look
        assert second.finish_part()
    assert "another process that is at work" in capsys.readouterr().out


def test_who_ends_or_begins_after_the_output_was_written_leaves_it_and_nothing_else(tmp_path, capsys) -> None:
    out = tmp_path / "out"
    with opened(out, Part(0, 2), IDENTITY) as late:
        (late.path / "job.json").unlink()  # as the one that wrote removes the folder
        out.mkdir()
        (out / "result").touch()
        assert not late.finish_part()
    assert f"another process has written {out}" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    for part, keep in ((Part(1, 2), True), (EVERYTHING, True), (EVERYTHING, False)):
        opening = opened(out, part, IDENTITY, keep_identity=keep)
        with pytest.raises(UserError, match="is not an empty folder"), opening:
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("writer", [Part(0, 2), EVERYTHING])
def test_a_part_started_once_more_while_another_process_writes_leaves_it_to_that_one(tmp_path, capsys, writer) -> None:
    out = tmp_path / "out"
    with opened(out, Part(1, 2), IDENTITY) as folder:
        assert not folder.finish_part()
    if writer.is_all:
        (folder.path / "part_0_of_2.drawn").touch()
    with opened(out, writer, IDENTITY) as writing:
        assert writer.is_all or writing.finish_part()
        with opened(out, Part(1, 2), IDENTITY) as again:
            assert again is None
        assert "another process that is at work" in capsys.readouterr().out and writing.path.exists()
        other = opened(out, Part(1, 2), IDENTITY | {"weights": "v"})
        with pytest.raises(UserError, match="of other weights is there"), other:
            pass


@pytest.mark.parametrize("is_removed", [False, True])
def test_a_part_that_finds_the_output_written_as_it_joins_has_nothing_to_do(
    tmp_path, capsys, monkeypatch, is_removed
) -> None:
    out, join = tmp_path / "out", job_folder.JobFolder._join

    def join_late(folder, identity):  # the other one ends between the two looks at the output
        out.mkdir()
        (out / "summary.json").write_text(json.dumps({"job": job_folder.digest(identity)}))
        if not is_removed:
            (folder.path / "job.json").write_text(json.dumps(identity))
        return join(folder, identity)

    monkeypatch.setattr(job_folder.JobFolder, "_join", join_late)
    with opened(out, Part(1, 2), IDENTITY) as late:
        assert late is None
    assert "nothing is left for part 1 of 2" in capsys.readouterr().out
    assert (tmp_path / ".out.job").exists() != is_removed


def test_the_folder_is_the_writers_to_remove(tmp_path) -> None:
    out = tmp_path / "out"
    with opened(out, Part(0, 2), IDENTITY) as late:
        out.mkdir()
        (out / "result").touch()
        assert not late.finish_part()
    assert late.path.exists()


def test_where_files_cannot_be_locked_no_part_takes_itself_for_the_last(tmp_path, monkeypatch, capsys) -> None:
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    file_lock._say_that_it_cannot_lock.cache_clear()
    out = tmp_path / "out"
    for index in (0, 1):
        with opened(out, Part(index, 2), IDENTITY) as folder:
            assert not folder.finish_part()
    said = capsys.readouterr()
    assert "give the command without --part" in said.out and said.err.count("cannot lock") == 1
    with opened(out, EVERYTHING, IDENTITY) as folder:
        folder.remove()
    assert not list(tmp_path.iterdir())
