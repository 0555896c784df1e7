import json
import math

import pytest

from cometjax import metrics


def write_lines(workdir, steps, *, resumed_step=0):
    writer = metrics.MetricsWriter(workdir, resumed_step=resumed_step, enabled=True)
    for step in steps:
        writer.write(step, "train", {"loss": 1.0 / step})
    writer.close()


def test_a_resumed_file_reads_as_one_uninterrupted_run(tmp_path):
    write_lines(tmp_path, range(1, 8))
    with (tmp_path / metrics.METRICS_FILE).open("a") as file:
        file.write('{"step": 3, "split": "tra')  # what a kill leaves
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    write_lines(tmp_path, [5, 6], resumed_step=4)
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_floats_come_back_exactly(tmp_path):
    writer = metrics.MetricsWriter(tmp_path, resumed_step=0, enabled=True)
    writer.write(1, "train", {"loss": 0.1 + 0.2, "mfu": None})
    writer.close()
    assert metrics.read(tmp_path) == [{"step": 1, "split": "train", "loss": 0.1 + 0.2, "mfu": None}]


def test_what_is_not_finite_is_written_as_null(tmp_path):
    writer = metrics.MetricsWriter(tmp_path, resumed_step=0, enabled=True)
    writer.write(1, "train", {"loss": math.nan, "gradient_norm": math.inf})
    writer.close()
    (line,) = (tmp_path / metrics.METRICS_FILE).read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "step": 1, "split": "train", "loss": None, "gradient_norm": None,
    }  # fmt: skip


def test_other_processes_than_the_first_write_nothing(tmp_path):
    writer = metrics.MetricsWriter(tmp_path, resumed_step=0, enabled=False)
    writer.write(1, "train", {"loss": 1.0})
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_clock_carries_time_and_work_over_a_restart():
    clock = metrics.Clock()
    with clock.measure("step"):
        pass
    clock.tokens, clock.flops = 10, 5.0
    clock.seconds |= {"step": 3.0, "input": 1.0}
    again = metrics.Clock(json.loads(json.dumps(clock.to_dict() | {"wall": 6.0})))
    assert (again.tokens, again.flops, again.training) == (10, 5.0, 4.0)
    assert again.wall >= 6.0 and again.goodput == pytest.approx(0.5, abs=0.01)


def test_progress_off_a_terminal_prints_lines_and_silent_prints_nothing(capsys):
    for enabled in (True, False):
        progress = metrics.Progress(start=0, steps=4, enabled=enabled)
        progress.advance()
        progress.train(2, {"loss": 1.5, "tokens_per_second": 1000.0})
        progress.say("saved")
        progress.close()
        out = capsys.readouterr().out
        assert out == ("step 2/4  loss 1.5000  1,000 tokens/s\nsaved\n" if enabled else "")
