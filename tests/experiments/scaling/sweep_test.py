"""The command trains a study for real: killed in the middle, it goes on, and no finished trial is trained again."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments.scaling import trials
from experiments.scaling.plan import Plan
from tests.cometjax.tiny_run import HURRIED
from tests.experiments.scaling import made_up_study

ROOT = pathlib.Path(__file__).resolve().parents[3]
CONFIG = """
import pathlib
from tests.experiments.scaling import made_up_study

def get_config():
    return made_up_study.config(pathlib.Path({folder!r}), grid__budgets=(5e8, 1e9), grid__sizes=4, grid__spread=2.0,
                                grid__rehearsal=True, pilot__tokens_per_parameter=4.0)
"""


def start(folder: pathlib.Path) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "experiments.scaling_sweep", f"--config={folder / 'study_file.py'}",
        f"--workdir={folder / 'run'}", "--yes",
    ]  # fmt: skip
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | HURRIED | {"JAX_PLATFORMS": "cpu"}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def results(workdir: pathlib.Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in (workdir / trials.TRIALS).glob("*/result.json")}


def workers_of(workdir: pathlib.Path) -> list[int]:
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode().split("\0")
        except (OSError, UnicodeDecodeError):
            continue
        if "experiments.scaling.worker" in line and f"--workdir={workdir}" in line:
            found.append(int(path.parent.name))
    return found


def wait_for(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.timeout(900)  # two processes compile eight programs; on a busy machine that takes minutes
@pytest.mark.skipif(not pathlib.Path("/proc").exists(), reason="looks for processes in /proc")
def test_a_killed_sweep_goes_on_without_its_workers_and_without_redoing_a_trial(tmp_path) -> None:
    made_up_study.config(tmp_path)  # the corpus
    (tmp_path / "study_file.py").write_text(CONFIG.format(folder=str(tmp_path)))
    killed = start(tmp_path)
    wait_for(lambda: results(tmp_path / "run") or killed.poll() is not None, 200)
    assert killed.poll() is None, killed.communicate()
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    # Their input has ended with their launcher.
    wait_for(lambda: not workers_of(tmp_path / "run"), 60)
    before = results(tmp_path / "run")
    planned = Plan.load(tmp_path / "run" / "plan.json").trials
    assert 1 <= len(before) < len(planned) == 8
    again = start(tmp_path)
    output, errors = again.communicate(timeout=600)
    assert again.returncode == 0, errors
    after = results(tmp_path / "run")
    assert len(after) == 8 and {name: after[name] for name in before} == before
    assert f"[{len(before) + 1}/8]" in output and f"[{len(before)}/8]" not in output
    # Four sizes of two budgets are too few: the report says so, and there is no family to go wrong with.
    fit = json.loads((tmp_path / "run" / "fit.json").read_text())
    assert any("5 sizes" in reason for reason in fit["refused"]) and "REFUSED" in output
    assert "REFUSED" in (tmp_path / "run" / "report.html").read_text()
    assert not (tmp_path / "run" / "family.json").exists()
    # What was planned is what was trained.
    for trial in planned:
        result = json.loads(after[trial.name])
        assert result["step"] == trial.steps
        assert result["tokens"] == pytest.approx(trial.tokens, rel=0.05)
        assert result["flops"] == pytest.approx(trial.flops, rel=0.05)
