import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

PROGRAM = """
    import hashlib, threading, time
    from data_pipeline import command_line, interrupts
    {imports}

    def main():
        with interrupts.resumable(lambda: "from step 3"){block}:
            print("ready", flush=True)
            {main_thread}

    interrupts.SECONDS_TO_ANSWER = 0.5
    command_line.run(main)
"""
# Minutes of machine code, as in a compiler, where no handler of Python's runs.
MACHINE_CODE = 'hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000_000)'


def interrupted(main_thread, *, imports="", block=""):
    """(seconds until it ended, its code, what it said) of a program that gets Ctrl-C as soon as it is ready."""
    return interrupt("-c", textwrap.dedent(PROGRAM).format(main_thread=main_thread, imports=imports, block=block))


def interrupt(*arguments, **options):
    """The same of Python with these arguments."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, *arguments], stdout=pipe, stderr=pipe, text=True, **options)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    since = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    return time.monotonic() - since, process.returncode, err


@pytest.mark.parametrize(
    "main_thread",
    [
        "time.sleep(60)",
        MACHINE_CODE,
        # A thread that an end in order would wait for.
        "threading.Thread(target=time.sleep, args=(60,)).start(); time.sleep(60)",
    ],
)
def test_ctrl_c_says_how_to_go_on_and_ends_whatever_the_program_is_doing(main_thread) -> None:
    seconds, code, said = interrupted(main_thread)
    assert (code, said) == (130, "interrupted; from step 3\n")
    assert seconds < 5


def test_signals_reach_both_listeners_where_training_listens_for_sigterm() -> None:
    seconds, code, said = interrupted(
        MACHINE_CODE, imports="from cometjax import preemption", block=", preemption.listening()"
    )
    assert (code, said) == (130, "interrupted; from step 3\n")
    assert seconds < 5


def test_a_ctrl_c_that_is_lost_in_a_callback_comes_again() -> None:
    # Wherever the interpreter collects garbage: here for half a second, the signal comes after 0.1 s.
    lost = "import gc; gc.callbacks.append(lambda phase, _: time.sleep(0.5)); gc.disable()"
    seconds, code, said = interrupted("gc.collect(); gc.callbacks.clear(); time.sleep(60)", imports=lost)
    assert (code, said) == (130, "interrupted; from step 3\n")
    assert seconds < 5


def test_who_answers_in_time_ends_in_order() -> None:
    imports = "import contextlib, sys, types; tidy = lambda: (time.sleep(1), print('tidy', file=sys.stderr))"
    block = ", contextlib.closing(types.SimpleNamespace(close=tidy))"
    _, code, said = interrupted("time.sleep(60)", imports=imports, block=block)
    assert (code, said) == (130, "tidy\ninterrupted; from step 3\n")


@pytest.mark.parametrize("command", ["data_pipeline.build", "cometjax.loss", "experiments.launch"])
def test_ctrl_c_while_a_command_imports_what_it_needs_is_a_line_too(tmp_path, command) -> None:
    for name in ("absl", "jax", "numpy"):  # whichever comes first
        (tmp_path / f"{name}.py").write_text("import time; print('ready', flush=True); time.sleep(60)")
    path = os.pathsep.join([str(tmp_path), str(pathlib.Path(__file__).parents[2])])
    _, code, said = interrupt("-m", command, env=os.environ | {"PYTHONPATH": path})
    assert (code, said) == (130, "interrupted\n")


def test_a_command_that_was_imported_answers_for_itself() -> None:
    imports = "import sys; sys.argv[0] = '-m'; interrupts.answer_while_importing(); sys.argv[0] = 'program'"
    _, code, said = interrupted("time.sleep(60)", imports=imports)
    assert (code, said) == (130, "interrupted; from step 3\n")


def test_who_imports_a_package_keeps_its_own_answer_to_ctrl_c() -> None:
    imports = "import cometjax, signal; print(signal.getsignal(2) is signal.default_int_handler)"
    assert subprocess.run([sys.executable, "-c", imports], capture_output=True, check=True).stdout == b"True\n"
