"""SIGTERM: save at the next step and leave with code 143, whatever the run is doing.

- Between steps, in an evaluation, during a save: the loop polls, saves its step, waits for that save, and leaves.
- Before the first step (reading, restoring, compiling) nothing is unsaved, and the process ends at once. The main
  thread may be inside the compiler for minutes, where Python handles no signals, so another thread reads them.
- On several processes, whoever gets the signal tells the others, and all save the same step.
- More SIGTERMs change nothing: schedulers send several, to the batch shell and to the step. SIGKILL ends at once, at
  the cost of the steps since the last save.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Iterator

from cometjax import agreement

# 128 + SIGTERM, what a shell reports of a program that the signal ended.
EXIT_CODE = 143


class Preemption:
    """Whether a signal asked this run to stop; `poll` answers alike in every process."""

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._unsaved = False
        self._poll = agreement.Poll(first=False)

    def request(self) -> None:
        """Ask the run to stop."""
        self._requested.set()

    def work_begins(self) -> None:
        """From here on there is something to save."""
        self._unsaved = True

    def poll(self) -> bool:
        """Whether to stop here. With several processes, called by all at the same places."""
        return self._poll.ask(self._requested.is_set())

    def _signalled(self) -> None:
        """Runs in the thread that reads signals."""
        self.request()
        if self._unsaved:
            return
        # Past Python's buffers: the main thread may hold their lock.
        os.write(1, b"SIGTERM: nothing to save; start again with the same workdir to go on\n")
        for child in multiprocessing.active_children():  # they outlive a process that ends without cleaning up
            child.kill()
        # Not SystemExit in the main thread: raised in a callback of the compiler's it is ignored, and elsewhere
        # the interpreter takes apart, and crashes in, what the compiler's threads still use. Every file is written
        # so that a kill may come at any time, and this is one.
        os._exit(EXIT_CODE)


@contextlib.contextmanager
def listening() -> Iterator[Preemption]:
    """A Preemption that SIGTERM requests, for as long as the block lasts; before `work_begins`, it ends the process."""
    preemption = Preemption()
    # Only the main thread may listen; a caller that trains in another one handles signals itself.
    if threading.current_thread() is not threading.main_thread():
        yield preemption
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    handler = signal.signal(signal.SIGTERM, lambda *_: preemption.request())
    # The interpreter's own C handler writes each signal's number there, without waiting for the main thread.
    descriptor = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_read_signals, args=(ours, descriptor, preemption), name="signals", daemon=True)
    thread.start()
    try:
        yield preemption
    finally:
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGTERM, handler)
        theirs.close()
        thread.join()
        ours.close()


def _read_signals(ours: socket.socket, descriptor: int, preemption: Preemption) -> None:
    while numbers := ours.recv(1024):
        if signal.SIGTERM in numbers:
            preemption._signalled()
        if descriptor != -1:  # who read signals before this reads them still: Ctrl-C (`data_pipeline.interrupts`)
            os.write(descriptor, numbers)
