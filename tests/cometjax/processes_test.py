"""Several processes train one run: the losses and batches of one alone, whoever is lost and however many come back."""

import itertools
import os
import signal

import pytest

from cometjax import checkpoint_files, metrics, preemption
from cometjax.checkpoint_files import FOLDER
from cometjax.hosts import LOST_PEER_EXIT_CODE
from cometjax.train import train
from data_pipeline.corpus import Corpus
from data_pipeline.length_groups import places_of_steps
from data_pipeline.loader import LoaderConfig, batch_at, training_plan
from tests.cometjax.processes import LOST_SECONDS, Group, Host, digests, observed, two_hosts
from tests.cometjax.tiny_run import CONFIG, config_of, losses, write_corpus

STEPS, ROWS = 20, 8
KEYS = {"steps": STEPS, "eval_every": 8, "eval_batches": 2, "checkpoint_every": 6}
# The tiny run's own rate doubles a difference in rounding every step.
LEARNING_RATE = 2e-3
OVERRIDES = [
    *(f"--config.train.{key}={value}" for key, value in KEYS.items()),
    f"--config.optimizer.learning_rate={LEARNING_RATE}",
]


def config(folder):
    """What OVERRIDES make of the tiny run, for a process that is alone."""
    config = config_of(folder, **KEYS)
    config.optimizer.learning_rate = LEARNING_RATE
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    write_corpus(folder / "corpus")
    (folder / "config.py").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    """The losses of one process with one device."""
    train(config(folder), folder / "alone", progress=False)
    return losses(folder / "alone")


@pytest.fixture
def group(folder):
    """Start the processes of a run; what a failed test leaves is killed."""
    groups = []

    def start(workdir, hosts, *overrides, **kwargs):
        hosts = [Host()] * hosts if isinstance(hosts, int) else hosts
        groups.append(Group(folder, workdir, hosts, [*OVERRIDES, *overrides], **kwargs))
        return groups[-1]

    yield start
    for each in groups:
        each.kill()


def assert_losses(workdir, expected):
    found = losses(workdir)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key].keys() == values.keys()
        for name, value in values.items():
            # Of a kind with a handful of tokens in a batch the mean shows rounding that the loss does not.
            near = 1e-5 if name == "loss" else 1e-4
            assert found[key][name] == (None if value is None else pytest.approx(value, abs=near)), (key, name)


def rows_of(folder, step):
    """(digests, records) of the rows of a step's global batch."""
    split = Corpus.open(folder / "corpus").split("train")
    train = config(folder).train
    settings = LoaderConfig(ROWS, train.row_length, config(folder).seed, group_by_length=train.group_by_length)
    plan = training_plan(split, settings)
    places = places_of_steps(plan, ROWS, settings.group_by_length, settings.seed)(step)
    return digests(batch_at(split, plan, settings, step)), [plan.stream(place).record_S.tolist() for place in places]


def assert_each_reads_only_its_rows(folder, group, parts, steps):
    """`parts[process]` is its part of the global batch."""
    share = ROWS // (max(parts) + 1)
    for step in steps:
        rows, records = rows_of(folder, step)
        for process, part in enumerate(parts):
            mine = slice(part * share, (part + 1) * share)
            at = step - steps[0]
            assert group.read(process, "rows")[at] == rows[mine]
            assert group.read(process, "records")[at] == list(itertools.chain(*records[mine]))


def step_reached(workdir, step):
    return lambda: bool(lines := metrics.read(workdir)) and lines[-1]["step"] >= step


def saved_and_reached(workdir, step):
    return lambda: step_reached(workdir, step)() and bool(checkpoint_files.whole_steps(workdir / FOLDER))


def assert_told_that_one_is_lost(ended):
    """By this program in a line, or by JAX before it aborts; within a minute either way."""
    assert ended.seconds < LOST_SECONDS, ended.out
    assert ended.code in (LOST_PEER_EXIT_CODE, -signal.SIGABRT), ended.out
    told = "error: another process of this run was lost (" if ended.code > 0 else "another task died"
    assert told in ended.out
    assert "most recent call first" not in ended.out and "Traceback" not in ended.out


def test_of_two_processes_one_is_killed_and_the_other_ends_and_one_alone_goes_on(folder, alone, group, tmp_path):
    workdir = tmp_path / "run"
    started = group(workdir, 2)
    started.wait_until(saved_and_reached(workdir, 8))
    started.processes[1].kill()
    first, _ = started.end()
    assert_told_that_one_is_lost(first)
    lost_at = metrics.read(workdir)[-1]["step"]
    assert_each_reads_only_its_rows(folder, started, [0, 1], range(lost_at))

    (saved,) = checkpoint_files.whole_steps(workdir / FOLDER)[-1:]
    with observed(tmp_path / "rows.jsonl"):
        train(config(folder), workdir, progress=False)
    started.logs = tmp_path
    (tmp_path / "rows.jsonl").rename(tmp_path / "0.jsonl")
    assert_each_reads_only_its_rows(folder, started, [0], range(saved, STEPS))
    assert_losses(workdir, alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "mesh", "parts"),
    [
        (2, {}, [0, 1]),
        (4, {}, [0, 1, 2, 3]),
        (4, {"data": 2, "fsdp": 2}, [0, 1, 2, 3]),
        (4, {"fsdp": 2, "tensor": 2}, [0, 0, 1, 1]),
        (4, {"slices": 4, "data": 4, "fsdp": 1}, [0, 1, 2, 3]),
    ],
)
def test_processes_have_the_losses_of_one_and_each_reads_only_its_rows(
    folder, alone, group, tmp_path, processes, mesh, parts
):
    workdir = tmp_path / "run"
    started = group(workdir, processes, *(f"--config.mesh.{axis}={size}" for axis, size in mesh.items()))
    assert [ended.code for ended in started.end()] == [0] * processes, started.out()
    assert_losses(workdir, alone)
    assert_each_reads_only_its_rows(folder, started, parts, range(STEPS))
    # Waiting for the devices is a step's time, wherever the loop does it.
    last = metrics.read(workdir)[-1]
    assert last["seconds/other"] < last["seconds/step"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "moment", "back"),
    [(0, "in the steps", 2), (2, "in the steps", 1), (0, "in a save", 2), (3, "in a save", 4)],
)
def test_whichever_of_four_is_killed_the_others_end_and_fewer_go_on(
    folder, alone, group, tmp_path, victim, moment, back
):
    workdir = tmp_path / "run"
    started = group(workdir, 4)
    arrived = {
        "in the steps": saved_and_reached(workdir, 8),
        "in a save": lambda: any((workdir / FOLDER).glob("12.partial*")),
    }
    started.wait_until(arrived[moment])
    started.processes[victim].kill()
    for process, ended in enumerate(started.end()):
        if process != victim:
            assert_told_that_one_is_lost(ended)
    (saved,) = checkpoint_files.whole_steps(workdir / FOLDER)[-1:]
    again = group(workdir, back)
    assert [ended.code for ended in again.end()] == [0] * back, again.out()
    assert f"resumed at step {saved}" in again.out()
    assert_losses(workdir, alone)


@pytest.mark.slow
def test_sigterm_to_one_of_two_saves_the_same_step_in_both_and_four_go_on(folder, alone, group, tmp_path):
    workdir = tmp_path / "run"
    # By the first one's clock, at steps of which nobody knows beforehand.
    by_the_clock = ("checkpoint_minutes=0.0001", "checkpoint_every=1000", "keep_checkpoints=1000")
    started = group(workdir, 2, *(f"--config.train.{key}" for key in by_the_clock))
    started.wait_until(step_reached(workdir, 8))
    assert len(checkpoint_files.whole_steps(workdir / FOLDER)) > 1
    os.kill(started.processes[1].pid, signal.SIGTERM)
    ended = started.end()
    assert [each.code for each in ended] == [preemption.EXIT_CODE] * 2, started.out()
    (saved,) = checkpoint_files.whole_steps(workdir / FOLDER)[-1:]
    assert f"SIGTERM: saved at step {saved}; start again" in ended[0].out
    assert metrics.read(workdir)[-1]["step"] == saved
    again = group(workdir, 4)
    assert [each.code for each in again.end()] == [0] * 4, again.out()
    assert f"resumed at step {saved}" in again.out()
    assert_losses(workdir, alone)


@pytest.mark.slow
def test_two_processes_continue_the_run_of_one_and_are_refused_alike_where_they_cannot(folder, alone, group, tmp_path):
    started = group(tmp_path / "run", 2, f"--config.continue_from={folder / 'alone'}:18")
    assert [ended.code for ended in started.end()] == [0, 0], started.out()
    assert started.out().count(f"continued from {folder / 'alone'}:18") == 1
    assert_losses(tmp_path / "run", {key: values for key, values in alone.items() if key[0] > 18})
    assert_each_reads_only_its_rows(folder, started, [0, 1], range(18, STEPS))
    for ended in group(tmp_path / "other", 2, f"--config.continue_from={folder / 'alone'}:7").end():
        assert ended.code == 2 and len(errors(ended)) == 1 and "no checkpoint of step 7" in errors(ended)[0], ended.out
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_mistake_of_all_or_of_one_is_the_same_line_from_each_and_writes_nothing(group, tmp_path):
    cases = (
        (3, lambda index: (), "8 rows cannot be split over 3 devices"),
        (2, lambda index: (f"--config.corpus={tmp_path}",), "no corpus.json"),
        (2, lambda index: (f"--config.seed={index}",), "another configuration than in the first process"),
    )
    for processes, own, says in cases:
        for ended in group(tmp_path / "run", processes, own=own).end():
            assert ended.code == 2, ended.out
            assert len(errors(ended)) == 1 and says in errors(ended)[0], ended.out
    assert not (tmp_path / "run").exists()


def errors(ended):
    return [line for line in ended.out.splitlines() if line.startswith("error: ")]


@pytest.mark.slow
def test_where_one_process_cannot_write_all_go_on_and_at_the_end_all_say_so(group, tmp_path):
    workdir = tmp_path / "run"
    # No file of more than 16000 bytes: its part of a checkpoint has larger ones.
    started = group(workdir, [Host(), Host(prefix=("prlimit", "--fsize=16000"))])
    ended = started.end()
    assert [each.code for each in ended] == [2, 2], started.out()
    for step in (6, 12, 18):
        said = f"step {step} could not be saved: process 1: File too large; training goes on"
        assert [each.out.count(said) for each in ended] == [1, 0]
    assert errors(ended[0]) == errors(ended[1])
    assert len(errors(ended[0])) == 1 and "step 20 could not be saved: process 1: File too large" in errors(ended[0])[0]
    assert [path.name for path in (workdir / FOLDER).iterdir()] == []
    assert not (workdir / "result.json").exists()


@pytest.mark.slow
def test_where_the_first_process_cannot_name_a_checkpoint_all_stop_as_told(group, tmp_path):
    workdir = tmp_path / "run"
    (workdir / FOLDER).mkdir(parents=True)
    (workdir / FOLDER / "6").write_text("in the way")
    started = group(workdir, 2, "--config.train.on_checkpoint_error=stop")
    ended = started.end()
    assert [each.code for each in ended] == [2, 2], started.out()
    assert errors(ended[0]) == errors(ended[1])
    assert len(errors(ended[0])) == 1 and "step 6 could not be saved: process 0: Not a directory" in errors(ended[0])[0]


@pytest.mark.slow
def test_workdirs_that_the_hosts_do_not_share_are_refused_by_all(group, tmp_path):
    started = group(tmp_path / "run", 2, own=lambda index: (f"--workdir={tmp_path / f'host{index}'}",))
    for ended in started.end():
        assert ended.code == 2, started.out()
        (error,) = errors(ended)
        assert error.startswith(f"error: process 1: {tmp_path / 'host1'}: is not the folder that the first process")
    assert not (tmp_path / "host1").exists()
    assert not (tmp_path / "host0" / FOLDER).exists()


@pytest.mark.slow
def test_hosts_with_addresses_of_their_own_train_and_notice_a_cut_cable(folder, alone, group, tmp_path):
    with two_hosts(tmp_path) as (hosts, cut):
        workdir = tmp_path / "run"
        started = group(workdir, hosts)
        assert [ended.code for ended in started.end()] == [0, 0], started.out()
        assert_losses(workdir, alone)
        assert_each_reads_only_its_rows(folder, started, [0, 1], range(STEPS))

        # A cable that is cut says nothing: only silence tells.
        started = group(tmp_path / "cut", hosts)
        started.wait_until(step_reached(tmp_path / "cut", 3))
        cut()
        for ended in started.end():
            assert_told_that_one_is_lost(ended)
