"""One process at a time writes in a workdir."""

import threading
import time

import pytest

from cometjax import workdir as workdirs
from data_pipeline.errors import UserError


def test_a_run_waits_for_another_to_leave_and_says_so(tmp_path, caplog):
    first = workdirs.held(tmp_path / "run")
    first.__enter__()
    threading.Timer(0.3, first.__exit__, (None, None, None)).start()
    begin = time.monotonic()
    with workdirs.held(tmp_path / "run"):
        assert time.monotonic() - begin > 0.2
    assert caplog.text.count("run: another process trains here; waiting 120 s for its end") == 1


def test_one_that_does_not_leave_is_told_and_the_lock_stays_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(workdirs, "LOCK_SECONDS", 0)
    with workdirs.held(tmp_path):
        for _ in range(2):
            with pytest.raises(UserError, match="another process trains here; wait"), workdirs.held(tmp_path):
                pass
    with workdirs.held(tmp_path):
        pass


def test_a_corpus_is_no_workdir_and_stays_as_it_was(tmp_path):
    for name in ("corpus.json", "vocabulary.json"):
        (tmp_path / name).write_text("of the corpus")
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="holds train and is no run's folder"), workdirs.held(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.json", "train", "vocabulary.json"]
    assert (tmp_path / "corpus.json").read_text() == "of the corpus"


def test_a_file_is_no_workdir(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match="run: is a file"), workdirs.held(tmp_path / "run"):
        pass


def test_a_run_begins_where_one_was_killed_early_or_a_job_has_its_log(tmp_path):
    for name in ("lock", "vocabulary.json", "corpus.json", "config.json.tmp", "train-17.log", ".nfs0001"):
        (tmp_path / name).touch()
    with workdirs.held(tmp_path):
        pass
    for name in ("config.json", "checkpoints"):  # it has begun: whatever else lies there is the user's
        (tmp_path / name).touch()
    with workdirs.held(tmp_path):
        pass
