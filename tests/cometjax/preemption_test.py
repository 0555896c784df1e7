import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from cometjax import preemption
from tests.cometjax.tiny_run import CONFIG, ROOT, start, write_corpus

# What a main thread does when the signal comes: Python that can be interrupted, or minutes of machine code, as in the
# compiler, where no Python handler runs.
PROGRAM = """
    import hashlib, sys, time
    from cometjax import preemption
    with preemption.listening() as preempted:
        if {unsaved}:
            preempted.work_begins()
        print("ready", flush=True)
        {main_thread}
        while not preempted.poll():
            time.sleep(0.01)
        print("polled", flush=True)
        sys.stdin.read()  # until all signals are sent: one that comes after this block is not ours
        sys.exit(preemption.EXIT_CODE)
"""
MACHINE_CODE = 'hashlib.pbkdf2_hmac("sha256", b"", b"", {rounds})'


def signalled(*, unsaved, main_thread="pass", signals=1):
    """(seconds until it ended, its code, its output) of a program that gets SIGTERM as soon as it is ready."""
    program = textwrap.dedent(PROGRAM).format(unsaved=unsaved, main_thread=main_thread)
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    since = time.monotonic()
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=100)
    return time.monotonic() - since, process.returncode, out


def test_with_work_unsaved_a_signal_is_left_to_the_poll_however_often_it_comes():
    _, code, out = signalled(unsaved=True, signals=3)
    assert (code, out) == (143, "polled\n")


def test_with_nothing_unsaved_a_signal_ends_the_program():
    # Asleep, and not at the poll: which of the two would be first there is chance, and nothing hangs on it.
    seconds, code, out = signalled(unsaved=False, main_thread="time.sleep(20)")
    assert (code, out.count("SIGTERM: nothing to save"), "polled" in out) == (143, 1, False)
    assert seconds < 5


def test_a_main_thread_in_machine_code_does_not_hold_the_end_up():
    since = time.monotonic()
    exec("import hashlib;" + MACHINE_CODE.format(rounds=1_000_000))
    minutes = int(120 / (time.monotonic() - since)) * 1_000_000
    seconds, code, out = signalled(unsaved=False, main_thread=MACHINE_CODE.format(rounds=minutes))
    assert (code, out.count("SIGTERM: nothing to save")) == (143, 1)
    assert seconds < 5


def test_the_handler_before_is_put_back_and_none_is_set_outside_the_main_thread():
    before = signal.getsignal(signal.SIGTERM)
    with preemption.listening():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before

    def elsewhere():
        with preemption.listening() as preempted:
            found.extend([signal.getsignal(signal.SIGTERM) == before, preempted.poll()])
            preempted.request()
            found.append(preempted.poll())

    found = []
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [True, False, True]


def test_a_run_that_is_preempted_before_its_first_step_leaves_at_once(tmp_path):
    write_corpus(tmp_path / "corpus")
    (tmp_path / "config.py").write_text(CONFIG)
    # Before the first step there is the compiler: by its sheer depth, it takes long here.
    overrides = ["--config.model.layers=60", "--config.train.steps=5"]
    process = start(tmp_path, tmp_path / "run", *overrides)
    while not (tmp_path / "run" / "config.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(2)
    since = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == preemption.EXIT_CODE == 143, err
    assert "SIGTERM: nothing to save" in out and "step 1/5" not in out
    assert time.monotonic() - since < 5
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
