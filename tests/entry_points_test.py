"""Every entry point explains itself, and answers a mistake on its command line with one line and exit code 2."""

import datetime
import os
import re
import subprocess
import sys

import polars as pl
import pytest
from absl import flags
from ml_collections import config_flags

from data_pipeline import command_line

ENTRY_POINTS = (
    "data_pipeline.world",
    "data_pipeline.build",
    "data_pipeline.show",
    "cometjax.train",
    "cometjax.plan",
    "cometjax.simulate",
    "cometjax.evaluate",
    "cometjax.compare_models",
    "cometjax.export",
    "cometjax.loss",
    "cometjax.embed",
    "experiments.demo",
    "experiments.estimator_check",
    "experiments.launch",
    "experiments.mup_transfer",
    "experiments.tasks",
    "experiments.plausibility",
    "experiments.scaling.fit",
    "experiments.scaling.family",
    "experiments.scaling_sweep",
)
# That `make demo` leaves below runs/demo.
DEMO_FOLDERS = {"meds", "corpus", "model", "evaluation"}


def run(*args: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, "-m", *args], capture_output=True, text=True, timeout=120, check=False, env=environment
    )


@pytest.mark.parametrize("module", ENTRY_POINTS)
def test_help_shows_what_it_does_and_an_example(module) -> None:
    done = run(module, "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert f"python -m {module} --" in done.stdout and "\nFlags:" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    # An example can be typed as it stands: lines that go on end with a backslash, and inputs are the demo's.
    assert not re.search(r"python -m .*\S {3,}--", done.stdout)
    assert set(re.findall(r"--(?:workdir|meds|corpus|config\.corpus)[ =]runs/demo/(\w+)", done.stdout)) <= DEMO_FOLDERS


@pytest.mark.parametrize("module", ENTRY_POINTS)
def test_an_unknown_flag_is_one_line_and_exit_code_2(module) -> None:
    done = run(module, "--no_such_flag=1")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "no_such_flag" in done.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (
            ["cometjax.train", "--config=experiments/configs/demo.py", "--config.train.stepz=3"],
            "--config.train.stepz: unknown key; did you mean 'steps'?",
        ),
        (
            ["cometjax.train", "--config=experiments/configs/demo.py", "--config.train.steps=many"],
            "--config.train.steps: 'many' is not a whole number;",
        ),
        (["cometjax.train", "--config=no/such/file.py"], "--config=no/such/file.py: no such file;"),
        (["data_pipeline.build", "--meds=x", "--out=y", "--config.code_mop=world"], "did you mean 'code_map'?"),
        (["data_pipeline.build", "--meds=no-such-folder", "--out=y"], "no-such-folder"),
        (["data_pipeline.build", "--meds=setup.cfg", "--out=y"], "setup.cfg: is a file;"),
        (["data_pipeline.build", "--out=y"], "--meds: is missing;"),
        (["cometjax.evaluate", "--tasks=experiments/tasks/suite.py:complete"], "unknown censoring 'complete'; use"),
        (["experiments.tasks", "--list", "--censoring=2023-02-30"], "--censoring: '2023-02-30' is not a date;"),
        (["cometjax.simulate", "--seed=-4"], "--seed: -4 is not an integer in the range"),
        (["data_pipeline.show", "--corpus=no-such-folder"], "no-such-folder"),
    ],
)
def test_a_mistake_is_named(args, says) -> None:
    extra = ["--workdir=never-made"] if args[0] == "cometjax.train" else []
    done = run(*args, *extra)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ") and says in done.stderr
    assert not os.path.exists("never-made")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def get_config():\n    return no_such_name\n", "line 2: NameError: name 'no_such_name' is not defined"),
        ("x = 1 / 0\n", "line 1: ZeroDivisionError: division by zero"),
        ("def get_config(:\n", "line 1: SyntaxError: "),
        ("x = 1\n", "config.py: has no get_config()"),
        ("def get_config():\n    pass\n", "config.py: get_config() returns None"),
        (
            "from cometjax.config import default_config\n\n"
            "def get_config():\n    config = default_config()\n    config.train.stepz = 3\n    return config\n",
            'line 5: AttributeError: Key "stepz" does not exist and cannot be added since the config is locked.',
        ),
    ],
)
def test_a_broken_configuration_file_is_named_with_the_line(tmp_path, monkeypatch, capsys, text, says) -> None:
    config = tmp_path / "config.py"
    config.write_text(text)
    argv = ["program", f"--broken={config}"]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.delitem(sys.modules, "broken_config", raising=False)
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    with pytest.raises(SystemExit) as left:
        command_line._parse_flags(
            argv,
            lambda: (
                config_flags.DEFINE_config_file("broken", None, "", flag_values=flags.FLAGS),
                flags.mark_flag_as_required("broken", flags.FLAGS),
            ),
        )
    told = capsys.readouterr().err
    assert left.value.code == 2 and told.count("\n") == 1, told
    assert "config.py" in told and says in told


def test_a_label_of_an_unknown_subject_is_named_by_its_row(world_meds, tmp_path) -> None:
    subjects, time = [999_999_999], [datetime.datetime(2020, 1, 1)]
    labels = tmp_path / "labels.parquet"
    pl.DataFrame({"subject_id": subjects, "prediction_time": time}).write_parquet(labels)
    out = tmp_path / "out"
    done = run(
        "cometjax.simulate", f"--meds={world_meds}", f"--labels={labels}", f"--workdir={tmp_path}", f"--out={out}"
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "labels.parquet" in done.stderr and "row 0" in done.stderr and "999" not in done.stderr
    assert not out.exists()
