"""SIGTERM: save at the next step and leave with code 143, whatever the run is doing.

- Between steps, in an evaluation, during a save: the loop polls, saves its step, waits for that save, and leaves.
- Before the first step (reading, restoring, compiling) nothing is unsaved: the process leaves within seconds. The main
  thread may be inside the compiler for minutes, where Python handles no signals, so another thread reads them.
- On several processes, whoever gets the signal tells the others, and all save the same step.
- More SIGTERMs change nothing: schedulers send several, to the batch shell and to the step. SIGKILL ends at once, at
  the cost of the steps since the last save.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cometjax import hosts

# 128 + SIGTERM, what a shell reports of a program that the signal ended.
EXIT_CODE = 143
# How long the main thread may take to leave by itself when nothing is unsaved.
_GRACE_SECONDS = 3.0


class Preemption:
    """Whether a signal asked this run to stop; `poll` answers alike in every process."""

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._unsaved = False
        self._left = threading.Event()
        self._answer: jax.Array | None = None

    def request(self) -> None:
        """Ask the run to stop."""
        self._requested.set()

    def work_begins(self) -> None:
        """From here on there is something to save."""
        self._unsaved = True

    def poll(self) -> bool:
        """Whether to stop here. With several processes, called by all at the same places.

        Then the answer is that of the poll before, so that no process waits for another: it was computed on the devices
        behind the step that they have finished since.
        """
        if jax.process_count() == 1:
            return self._requested.is_set()
        before, self._answer = self._answer, _any_process(self._requested.is_set())
        return before is not None and bool(jax.device_get(before))

    def _leave_if_nothing_is_unsaved(self) -> None:
        """Runs in the main thread, as soon as it executes Python."""
        self.request()
        if not self._unsaved:
            print("SIGTERM: nothing to save; start again with the same workdir to go on", flush=True)
            self._left.set()
            raise hosts.LeaveAlone(EXIT_CODE)

    def _leave_for_a_busy_main_thread(self) -> None:
        """Runs in the thread that reads signals."""
        self.request()
        if self._unsaved or self._left.wait(_GRACE_SECONDS) or self._unsaved:
            return
        print("SIGTERM: nothing to save; start again with the same workdir to go on", flush=True)
        for child in multiprocessing.active_children():  # they outlive a process that ends without cleaning up
            child.kill()
        os._exit(EXIT_CODE)


@contextlib.contextmanager
def listening() -> Iterator[Preemption]:
    """A Preemption that SIGTERM requests, for as long as the block lasts.

    Raises SystemExit with EXIT_CODE out of the block when the signal comes before `work_begins`.
    """
    preemption = Preemption()
    # Only the main thread may listen; a caller that trains in another one handles signals itself.
    if threading.current_thread() is not threading.main_thread():
        yield preemption
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    handler = signal.signal(signal.SIGTERM, lambda *_: preemption._leave_if_nothing_is_unsaved())
    # The interpreter's own C handler writes each signal's number there, without waiting for the main thread.
    descriptor = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_read_signals, args=(ours, preemption), name="signals", daemon=True)
    thread.start()
    try:
        yield preemption
    finally:
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGTERM, handler)
        theirs.close()
        thread.join()
        ours.close()


def _read_signals(ours: socket.socket, preemption: Preemption) -> None:
    while numbers := ours.recv(1024):
        if signal.SIGTERM in numbers:
            preemption._leave_for_a_busy_main_thread()


def _any_process(flag: bool) -> jax.Array:
    """A global scalar, not yet computed: whether `flag` is set in any process."""
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    everywhere = NamedSharding(mesh, PartitionSpec("devices"))
    with jax.transfer_guard_host_to_device("allow"):
        flags_D = jax.make_array_from_process_local_data(everywhere, np.full(jax.local_device_count(), flag))
    return _any(mesh)(flags_D)


@functools.lru_cache(maxsize=1)
def _any(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))
