"""An output folder appears whole or not at all."""

import errno
import pathlib

import pytest

from cometjax import output_folder
from data_pipeline.errors import UserError


def test_a_folder_appears_when_it_is_whole_and_an_empty_one_is_taken(tmp_path):
    out = tmp_path / "new" / "out"
    for _ in range(2):
        with output_folder.whole(out) as partial:
            (partial / "file").write_text("all of it")
            assert not (out / "file").exists()
        assert [path.name for path in out.parent.iterdir()] == ["out"] and (out / "file").read_text() == "all of it"
        with pytest.raises(UserError, match="out: is not an empty folder"):
            output_folder.refuse_taken(out)
        (out / "file").unlink()
        output_folder.refuse_taken(out)


@pytest.mark.parametrize("out", [".", "..", "/", "a/.."])
def test_a_folder_without_a_name_of_its_own_is_refused(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)  # empty
    with pytest.raises(UserError, match="is not the name of a folder"):
        output_folder.refuse_taken(pathlib.Path(out))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_leaves_nothing_and_a_disk_is_told_in_one_line(tmp_path, error):
    with (
        pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt) as raised,
        output_folder.whole(tmp_path / "out") as partial,
    ):
        (partial / "file").write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []
    if isinstance(error, OSError):
        assert "out: cannot be written (No space left on device)" in str(raised.value)


def test_a_file_appears_when_it_is_whole_and_a_full_disk_leaves_none(tmp_path, monkeypatch):
    file = tmp_path / "plan.json"
    output_folder.write_file(file, "{}")

    def full(path: pathlib.Path, text: str) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", full)
    with pytest.raises(UserError, match=r"plan.json: cannot be written \(No space left"):
        output_folder.write_file(file, "[]")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"] and file.read_text() == "{}"


def test_a_device_is_written_to_and_not_replaced():
    with pytest.raises(UserError, match="/dev/full: cannot be written"):
        output_folder.write_file(pathlib.Path("/dev/full"), "{}")
    assert pathlib.Path("/dev/full").is_char_device()
