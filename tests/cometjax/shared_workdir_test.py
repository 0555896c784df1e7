"""A mark in the workdir tells whether the processes see one folder; between real processes: processes_test.py."""

import shutil
import threading

import pytest

from cometjax import shared_workdir
from data_pipeline.errors import UserError


@pytest.fixture
def hosts(tmp_path):
    """The first process's folder, and that of another, where the mark of an earlier start is."""
    first, other = tmp_path / "first", tmp_path / "other"
    for folder in (first, other):
        folder.mkdir()
        shared_workdir._leave_mark(folder)
    return first, other


def test_a_mark_that_a_slow_file_system_shows_late_is_found(hosts):
    first, other = hosts
    mark = shared_workdir._leave_mark(first)
    late = threading.Timer(0.3, lambda: shutil.copytree(first, other, dirs_exist_ok=True))
    late.start()
    shared_workdir._find(other, mark)
    late.join()


def test_a_folder_without_the_mark_of_this_start_is_refused(hosts, monkeypatch):
    first, other = hosts
    monkeypatch.setattr(shared_workdir, "_SECONDS", 0.3)
    mark = shared_workdir._leave_mark(first)
    for folder in (other, other / "absent"):
        with pytest.raises(UserError, match=f"{folder.name}: is not the folder that the first process writes to; give"):
            shared_workdir._find(folder, mark)
