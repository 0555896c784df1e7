"""Profiler traces of a running job: of chosen steps by a flag, or of the next ones by a signal.

    python -m cometjax.train ... --profile_steps=100:105    steps 100 to 104, of the first process
    kill -USR1 PID                                          the next SIGNALLED_STEPS steps of that process

A trace goes to WORKDIR/profile/step_FIRST/plugins/profile/TIME/HOST.xplane.pb. It covers whole steps: it begins when
the devices have finished the step before, and ends when they have finished the last. No other step waits. A trace that
cannot be made or written is told in a line, and training goes on. After one that could not be written JAX begins no
other in that process.
"""

import contextlib
import pathlib
import re
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

from data_pipeline.errors import UserError

FOLDER = "profile"
SIGNALLED_STEPS = 5


def parse_steps(text: str) -> range:
    """`A:B` as the steps A to B - 1, counted from 1; empty text: none. Raises UserError for anything else."""
    if not text:
        return range(0)
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or not 1 <= int(match[1]) < int(match[2]):
        raise UserError(
            f"{text!r} is not A:B with 1 <= A < B", where="--profile_steps", fix="give steps as --profile_steps=100:105"
        )
    return range(int(match[1]), int(match[2]))


class Request:
    """Whether a trace of the next steps has been asked for; set by a signal, taken by the loop."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        """Ask for a trace of the next steps."""
        self._asked = True

    def take(self) -> bool:
        """Whether one was asked for since the last call."""
        asked, self._asked = self._asked, False
        return asked


@contextlib.contextmanager
def listening() -> Iterator[Request]:
    """A Request that SIGUSR1 makes, for as long as the block lasts."""
    request = Request()
    # Only the main thread may listen; a caller that trains in another one handles signals itself.
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    handler = signal.signal(signal.SIGUSR1, lambda *_: request.ask())
    try:
        yield request
    finally:
        signal.signal(signal.SIGUSR1, handler)


class Profiler:
    """Starts and ends traces between steps. `say` is told where a trace lies, or why there is none."""

    def __init__(self, workdir: pathlib.Path, steps: range, request: Request, say: Callable[[str], None]) -> None:
        self._folder, self._steps, self._request, self._say = workdir / FOLDER, steps, request, say
        self._tracing: range | None = None  # the steps of the trace under way

    @contextlib.contextmanager
    def step(self, step: int, before: Any) -> Iterator[None]:
        """`step` is dispatched in the block; `before` are arrays of the step before it, or None."""
        if self._tracing is None and (wanted := self._wanted_from(step)):
            self._begin(wanted, before)
        if self._tracing is None:
            yield
            return
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def _wanted_from(self, step: int) -> range:
        if self._request.take():
            return range(step, step + SIGNALLED_STEPS)
        return range(step, self._steps.stop) if step in self._steps else range(0)

    def dispatched(self, step: int, arrays: Any) -> None:
        """`step` gave `arrays`, which the devices may still compute: a trace ends with them when it was its last."""
        if self._tracing is not None and step >= self._tracing[-1]:
            jax.block_until_ready(arrays)
            self.end(last=step)

    def _begin(self, steps: range, before: Any) -> None:
        jax.block_until_ready(before)
        try:
            jax.profiler.start_trace(str(self._folder / f"step_{steps[0]}"))
        except (OSError, RuntimeError) as error:  # another trace is under way, by a profiler server, say
            self._say(f"no trace of steps {steps[0]} to {steps[-1]}: {error}")
            self._steps = range(0)
        else:
            self._tracing = steps

    def end(self, last: int) -> None:
        """End the trace under way, if any, with step `last`."""
        if self._tracing is None:
            return
        first, self._tracing = self._tracing[0], None
        which = f"steps {first} to {last}"
        try:
            jax.profiler.stop_trace()
        except (OSError, RuntimeError) as error:  # a full disk
            self._say(f"no trace of {which}: {error}")
        else:
            self._say(f"trace of {which}: {self._folder / f'step_{first}'}")
