"""Run trials on this machine: a few worker processes, each taking the longest trial that is left.

Kill -9 of the launcher ends its workers too (their input ends); Ctrl-C and SIGTERM let them save first. Either way the
same command goes on, and a finished trial is not run again.
"""

import contextlib
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from data_pipeline.errors import UserError
from experiments.scaling import trials
from experiments.scaling.plan import Plan, PlannedTrial

_SAVE_SECONDS = 60  # how long workers may take to save when the study is stopped


def run_all(
    plan: Plan, plan_path: pathlib.Path, chosen: Sequence[PlannedTrial], workdir: pathlib.Path, *,
    workers: int, pin: bool, say: Callable[[str], None] = print,
) -> None:  # fmt: skip
    """Run those of the chosen trials that are not finished.

    Args:
        plan: that holds them.
        plan_path: where it lies, for the workers.
        chosen: of its trials.
        workdir: of the study.
        workers: processes at once; 0 = one for each core.
        pin: whether each has a core of its own.
        say: told of every finished trial.

    Raises UserError when a trial cannot be trained, naming it; the others' results stay.
    """
    waiting = [trial for trial in chosen if not trials.is_finished(workdir, trial)]
    done = len(chosen) - len(waiting)
    if not waiting:
        return
    # Longest first: the last to finish are short, and no core waits long.
    waiting.sort(key=lambda trial: -(trial.seconds or trial.flops))
    count = min(workers or len(os.sched_getaffinity(0)), len(waiting))
    with _Pool(plan_path, workdir, count, pin) as pool:
        started = time.perf_counter()
        for index in range(count):
            pool.give(index, waiting.pop(0))
        while pool.busy:
            index, trial, answer = pool.next_answer()
            if "error" in answer:
                raise UserError(str(answer["error"]), where=f"trial {trial.name}")
            done += 1
            left = sum(other.seconds or 0.0 for other in waiting) / count
            say(
                f"[{done}/{len(chosen)}] {trial.name}: loss {answer['loss']:.4f}, {answer['seconds']:.0f} s; "
                f"{time.perf_counter() - started:.0f} s so far" + (f", about {left:.0f} s to go" if left else "")
            )
            if waiting:
                pool.give(index, waiting.pop(0))


class _Pool:
    """Worker processes, and a thread for each that waits for its answers."""

    def __init__(self, plan_path: pathlib.Path, workdir: pathlib.Path, count: int, pin: bool) -> None:
        self.busy: dict[int, PlannedTrial] = {}
        self._answers: list[tuple[int, str]] = []
        self._changed = threading.Condition()
        command = [sys.executable, "-m", "experiments.scaling.worker", f"--plan={plan_path}", f"--workdir={workdir}"]
        log = (workdir / "workers.log").open("a")
        # A session of its own: Ctrl-C reaches the launcher only, which then stops its workers in order.
        self._processes = [
            subprocess.Popen(
                [*command, f"--core={index if pin else -1}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                text=True, start_new_session=True,
            )
            for index in range(count)
        ]  # fmt: skip
        log.close()
        self._log = workdir / "workers.log"
        for index in range(count):
            threading.Thread(target=self._listen, args=(index,), daemon=True).start()

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            if self.busy and process.poll() is None:
                process.send_signal(signal.SIGTERM)  # save at the next step, and leave
            elif process.stdin:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
        deadline = time.monotonic() + _SAVE_SECONDS
        for process in self._processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()

    def give(self, index: int, trial: PlannedTrial) -> None:
        """Hand a trial to a worker that has none."""
        self.busy[index] = trial
        stdin = self._processes[index].stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died; its answer says so
            stdin.write(trial.name + "\n")
            stdin.flush()

    def next_answer(self) -> tuple[int, PlannedTrial, dict[str, object]]:
        """Wait for a worker to be done with its trial; raises UserError when one has died."""
        with self._changed:
            while not self._answers:
                # Not for ever: the kernel may give SIGINT to another thread, and then this one would sleep through it.
                self._changed.wait(0.5)
            index, line = self._answers.pop(0)
        if not line:
            trial, code = self.busy[index], self._processes[index].wait()
            raise UserError(
                f"its process ended with code {code}",
                where=f"trial {trial.name}",
                fix=f"see {self._log}, and start the same command again to go on",
            )
        return index, self.busy.pop(index), json.loads(line)

    def _listen(self, index: int) -> None:
        stdout = self._processes[index].stdout
        assert stdout is not None
        for line in itertools.chain(stdout, [""]):
            with self._changed:
                self._answers.append((index, line))
                self._changed.notify()
