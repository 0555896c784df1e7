"""Ctrl-C: a line that says from where the same command goes on, and an end soon after, with code 130.

The main thread may be inside a compiler for minutes, where Python handles no signals, so another thread reads them
(as `cometjax.preemption` does for SIGTERM). Where the main thread does not answer, that thread ends the program. Every
file is written so that a kill may come at any time, and this is one.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

# What a shell gives a program that Ctrl-C has ended.
EXIT_CODE = 130
# How long the main thread may take to answer: a training step on CPUs takes seconds, and what then ends in order is
# worth them.
SECONDS_TO_ANSWER = 5.0

_resumption: Callable[[], str] | None = None


@contextlib.contextmanager
def resumable(resumption: Callable[[], str]) -> Iterator[None]:
    """For the block: what a line about Ctrl-C says of how to go on, asked for when the line is written."""
    global _resumption
    before, _resumption = _resumption, resumption
    try:
        yield
    except KeyboardInterrupt as interrupt:
        # Of blocks within blocks the innermost knows best.
        raise KeyboardInterrupt(*(interrupt.args or (resumption(),))) from None
    finally:
        _resumption = before


def answer_while_importing() -> None:
    """For a package's first lines: until the command that `python -m` loads has begun, a Ctrl-C ends it with a line and
    EXIT_CODE. Programs that merely import the package keep their own answer."""
    # So runpy has it while it imports the packages that the command's module lies in, and not when they run it.
    if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_before_the_command)


def _end_before_the_command(_: int, __: FrameType | None) -> None:
    _end("")


@contextlib.contextmanager
def ending_the_program() -> Iterator[None]:
    """For a program's main thread: a Ctrl-C in the block ends the program with a line and EXIT_CODE."""
    if signal.getsignal(signal.SIGINT) not in (signal.default_int_handler, _end_before_the_command):
        # A shell's background job ignores it.
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    answered = threading.Event()

    def answer(number: int, frame: FrameType | None) -> None:
        answered.set()
        signal.default_int_handler(number, frame)

    # The interpreter's own C handler writes each signal's number there, without waiting for the main thread.
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_read_signals, args=(ours, answered), name="interrupts", daemon=True).start()
    signal.signal(signal.SIGINT, answer)
    sys.unraisablehook = _Repeated(sys.unraisablehook, answered)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        # One more ends the program at once and without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        _end(str(interrupt))


class _Repeated:
    """Instead of `sys.unraisablehook`: a Ctrl-C that a callback swallowed, of XLA's say, comes again."""

    def __init__(self, before: Callable[[Any], Any], answered: threading.Event) -> None:
        self._before, self._answered = before, answered

    def __call__(self, told: Any) -> None:
        if not issubclass(told.exc_type, KeyboardInterrupt):
            self._before(told)
            return
        self._answered.clear()
        # A little later, when the callback is over.
        again = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()


def _read_signals(signals: socket.socket, answered: threading.Event) -> None:
    while numbers := signals.recv(1024):
        if signal.SIGINT in numbers and not answered.wait(SECONDS_TO_ANSWER):
            _end(_resumption() if _resumption else "")


def _end(resumption: str) -> None:
    """End the program now: at its usual end it would wait for threads, such as those of a compiler."""
    # Past Python's buffers: the main thread may hold their lock.
    os.write(2, f"interrupted{'; ' if resumption else ''}{resumption}\n".encode())
    for child in multiprocessing.active_children():  # they outlive a process that ends without cleaning up
        child.kill()
    os._exit(EXIT_CODE)
