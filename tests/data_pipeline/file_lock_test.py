import errno
import fcntl

from data_pipeline import file_lock


def test_a_lock_has_one_holder_and_ends_with_it(tmp_path):
    path = tmp_path / "lock"
    with path.open("a") as second:
        with path.open("a") as first:
            assert file_lock.take(first.fileno(), tmp_path)
            assert not file_lock.take(second.fileno(), tmp_path)
        assert file_lock.take(second.fileno(), tmp_path)


def test_a_file_system_that_cannot_lock_is_told_and_used(tmp_path, monkeypatch, capsys):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (tmp_path / "lock").open("a") as file:
        assert file_lock.take(file.fileno(), tmp_path)
    said = f"{tmp_path}: this file system cannot lock files (No locks available): see that nothing else writes here\n"
    assert capsys.readouterr().err == said
