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
