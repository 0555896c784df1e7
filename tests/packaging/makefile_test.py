"""What make answers to a mistake."""

import pathlib
import subprocess

ROOT = pathlib.Path(__file__).parents[2]


def test_a_benchmark_that_is_not_there_is_answered_by_those_that_are() -> None:
    command = ["make", "--old-file=setup", "bench", "BENCH=nosuch"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 2 and done.stdout == ""
    assert "no benchmark is called nosuch" in done.stderr and " decode loader " in done.stderr
