"""Lines of metrics on disk: exact, whole, and never waited for by who hands them over."""

import contextlib
import json
import math
import resource
import struct
import threading

import pytest
from tensorboardX.proto.event_pb2 import Event

from cometjax import metrics, tensorboard_files
from cometjax.metrics_writer import MetricsWriter


def write_lines(workdir, steps, *, resumed_step=0):
    writer = MetricsWriter(workdir, resumed_step=resumed_step, enabled=True)
    for step in steps:
        writer.write(step, "train", {"loss": 1.0 / step})
    writer.close()


def steps_in(workdir):
    return [line["step"] for line in metrics.read(workdir)]


def test_a_resumed_file_reads_as_one_uninterrupted_run(tmp_path):
    write_lines(tmp_path, range(1, 8))
    with (tmp_path / metrics.METRICS_FILE).open("a") as file:
        file.write('{"step": 3, "split": "tra')  # what a kill leaves
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5, 6, 7]
    write_lines(tmp_path, [5, 6], resumed_step=4)
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_floats_come_back_exactly_and_what_is_not_finite_as_null(tmp_path):
    writer = MetricsWriter(tmp_path, resumed_step=0, enabled=True)
    writer.write(1, "train", {"loss": 0.1 + 0.2, "mfu": None, "gradient_norm": math.inf, "gap": math.nan})
    writer.close()
    (line,) = (tmp_path / metrics.METRICS_FILE).read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "step": 1, "split": "train", "loss": 0.1 + 0.2, "mfu": None, "gradient_norm": None, "gap": None,
    }  # fmt: skip


def events(path):
    """The events of a TensorBoard file: length, its checksum, event, its checksum."""
    content, found = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        found.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


def test_tensorboard_gets_each_finite_figure_and_is_told_where_a_resumed_run_begins(tmp_path):
    writer = MetricsWriter(tmp_path, resumed_step=4, enabled=True)
    writer.write(5, "train", {"loss": 0.5, "loss/LAB": 0.25, "mfu": None})
    assert writer.flush(timeout=60)
    (file,) = (tmp_path / "tensorboard" / "train").iterdir()
    assert len(events(file)) == 3  # whatever befalls the process from here on
    writer.write(5, "tuning", {"loss": 1.5})
    writer.close()
    version, start, train = events(file)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (5, start.session_log.START)
    assert {value.tag: value.simple_value for value in train.summary.value} == {"learning/loss": 0.5, "loss/LAB": 0.25}
    # The same tag in another run: both curves are in one chart.
    (file,) = (tmp_path / "tensorboard" / "tuning").iterdir()
    _, _, tuning = events(file)
    assert (tuning.step, tuning.summary.value[0].tag) == (5, "learning/loss")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("loss", "learning/loss"),
        ("bits_per_event", "learning/bits_per_event"),
        ("loss/LAB", "loss/LAB"),
        ("gradient_norm", "learning/gradient_norm"),
        ("gradient_norm/layer_3", "norms/gradient_norm/layer_3"),
        ("tokens_per_second", "speed/tokens_per_second"),
        ("seconds/compile", "seconds/compile"),
    ],
)
def test_in_tensorboard_a_figure_is_in_the_group_of_its_likes(key, expected):
    assert tensorboard_files.tag(key) == expected


def test_other_processes_than_the_first_write_nothing(tmp_path):
    writer = MetricsWriter(tmp_path, resumed_step=0, enabled=False)
    writer.write(1, "train", {"loss": 1.0})
    assert writer.flush(timeout=0)
    writer.close()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def stuck(monkeypatch):
    """The file system hangs until this event is set."""
    released, append = threading.Event(), MetricsWriter._append

    def hanging(self, line):
        assert released.wait(60)
        append(self, line)

    monkeypatch.setattr(MetricsWriter, "_append", hanging)
    return released


def test_handing_lines_over_waits_for_nothing_and_what_finds_no_room_is_counted_in_one_line(tmp_path, stuck, caplog):
    writer = MetricsWriter(tmp_path, resumed_step=0, enabled=True, queue_lines=3)
    for step in range(1, 8):
        writer.write(step, "train", {"loss": 1.0})  # would hang for ever if it waited
    assert not writer.flush(timeout=0.05)
    assert caplog.text.count("lines are dropped") == 1
    stuck.set()
    assert writer.flush(timeout=60)
    assert steps_in(tmp_path) == [1, 2, 3]
    writer.write(8, "train", {"loss": 1.0})
    writer.close()
    assert steps_in(tmp_path) == [1, 2, 3, 8]
    assert "4 lines of metrics are lost" in caplog.text


@contextlib.contextmanager
def small_files():
    """Files may not grow past 200 bytes; not for longer than that, since pytest's own output may go to a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_lines_that_the_disk_refuses_are_told_once_and_written_when_there_is_room(tmp_path, caplog):
    with small_files():
        writer = MetricsWriter(tmp_path, resumed_step=0, enabled=True)
        for step in range(1, 11):
            writer.write(step, "train", {"loss": 1.0 / step})
        assert not writer.flush(timeout=0.2)
        written = (tmp_path / metrics.METRICS_FILE).read_text()
    assert 100 < len(written) <= 200 and written.endswith("}\n")
    assert writer.flush(timeout=60)
    writer.close()
    assert steps_in(tmp_path) == list(range(1, 11))
    assert caplog.text.count("metrics cannot be written (File too large); tried again") == 1
    assert "are lost" not in caplog.text


def test_lines_that_the_disk_refuses_to_the_end_are_counted_and_tensorboards_files_end(tmp_path, caplog):
    with small_files():
        write_lines(tmp_path, range(1, 200))
    kept = steps_in(tmp_path)
    assert kept == list(range(1, len(kept) + 1)) and len(kept) > 2
    assert f"{199 - len(kept)} lines of metrics are lost" in caplog.text
    assert "TensorBoard's files end here (File too large)" in caplog.text
