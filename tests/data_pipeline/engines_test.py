"""Processes that run a build's jobs."""

import pathlib
import signal
import subprocess
import sys
import textwrap


def write_blocked_signals(folder: str, number: int) -> None:
    (pathlib.Path(folder) / str(number)).write_text(str(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])))


def test_no_worker_gets_ctrl_c_the_first_one_of_a_process_included(tmp_path) -> None:
    """In a process of its own, because only the first worker of a process was ever left open to the signal."""
    program = f"""
        import signal
        from data_pipeline import engines
        from tests.data_pipeline.engines_test import write_blocked_signals

        if __name__ == "__main__":
            jobs = [engines.Job(str(n), write_blocked_signals, ({str(tmp_path)!r}, n)) for n in range(4)]
            with engines.local(2, len(jobs)) as engine:
                engine.run("signals", jobs)
            assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    """
    repository = pathlib.Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, cwd=repository)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys("0123", "True")
