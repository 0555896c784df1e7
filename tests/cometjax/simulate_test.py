"""From a workdir, MEDS data and labels to trajectories on disk: nothing leaks, nothing is half written."""

import dataclasses
import datetime
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import types

import numpy as np
import polars as pl
import pytest

from benchmarks import decode
from cometjax import checkpoints, engine, finished_prompts, simulate, trajectories
from cometjax.engine import SimulationConfig
from cometjax.futures import token_bounds
from cometjax.job_folder import Part
from cometjax.model import ModelConfig
from data_pipeline import build, build_config
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = SimulationConfig(
    samples=3, horizon_seconds=365 * 86_400, max_new_tokens=8, max_prompt_tokens=100, batch_rows=8, chunk_steps=4
)
# As of the configuration of a run.
RUN = types.SimpleNamespace(train=types.SimpleNamespace(row_length=128))


@pytest.fixture
def workdir(world_corpus: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A run of a random model; loading a real checkpoint is tested where checkpoints are."""
    vocabulary = Corpus.open(world_corpus).vocabulary
    model = decode.lively_model(ModelConfig(len(vocabulary), 1, 16, 2, 2, 8, 32, tied_embeddings=False))
    monkeypatch.setattr(checkpoints, "load_for_inference", lambda _, **__: (model, vocabulary, RUN, 7))
    return pathlib.Path("unused")


@pytest.fixture
def labels(world_meds: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """Prediction times in the middle of six subjects' histories."""
    events = pl.read_parquet(world_meds / "data" / "**" / "*.parquet").drop_nulls("time")
    rows = events.group_by("subject_id", maintain_order=True).agg(
        prediction_time=pl.col("time").sort().get(pl.len() // 2)
    )
    rows.sort("subject_id").head(6).write_parquet(tmp_path / "labels.parquet")
    return tmp_path / "labels.parquet"


@pytest.fixture(scope="session")
def fused_corpus(world_meds: pathlib.Path) -> pathlib.Path:
    """The world's corpus with one token for a code and its value."""
    config = build_config.get_config()
    config.update(code_map="world", min_subjects_per_code=3, min_values_per_code=20, value_encoding="fused")
    return build.build_corpus(world_meds, world_meds.parent / "fused", config, workers=1).root


def test_futures_with_fused_values_have_their_values(
    fused_corpus, workdir, world_meds, labels, tmp_path, monkeypatch
) -> None:
    vocabulary = Corpus.open(fused_corpus).vocabulary
    model = decode.lively_model(ModelConfig(len(vocabulary), 1, 16, 2, 2, 8, 32, tied_embeddings=False))
    monkeypatch.setattr(checkpoints, "load_for_inference", lambda _, **__: (model, vocabulary, RUN, 7))
    summary = simulate.simulate(
        workdir=workdir,
        meds_root=world_meds,
        labels=labels,
        out=tmp_path / "out",
        settings=lambda _: CONFIG,
        progress=False,
    )
    assert summary["futures"] == 18
    rows = pl.concat(read(tmp_path / "out")).filter(pl.col("numeric_value").is_not_null())
    means = {event.concept: np.float32(event.means) for event in vocabulary.events}
    assert len(rows) and all(value in means[code] for code, value in rows.select("code", "numeric_value").iter_rows())


def read(out: pathlib.Path) -> list[pl.DataFrame]:
    return [pl.read_parquet(path) for path in sorted((out / "trajectories").iterdir())]


def test_each_sample_is_a_file_with_a_trajectory_for_every_label_row(workdir, world_meds, labels, tmp_path) -> None:
    out = tmp_path / "out"
    summary = simulate.simulate(
        workdir=workdir, meds_root=world_meds, labels=labels, out=out, settings=lambda _: CONFIG, progress=False
    )
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["prompts"] == 6 and summary["futures"] == 18 == sum(summary["stops"].values())
    assert summary["checkpoint_step"] == 7 and 0 <= summary["invalid_rate"] <= 1 and summary["tokens"] <= 18 * 8
    files = read(out)
    wanted = pl.read_parquet(labels)
    assert len(files) == 3
    for rows in files:
        assert rows.schema == pl.Schema(trajectories.SCHEMA)
        ends = rows.filter(pl.col("code").str.starts_with(trajectories.END_CODE))
        assert ends.select("subject_id", "prediction_time").rows() == wanted.rows()
        assert (rows["time"] >= rows["prediction_time"]).all()


def test_nothing_after_the_prediction_time_changes_the_futures(workdir, world_meds, labels, tmp_path) -> None:
    """Every later row is replaced: another code, another value, another time, and one row more."""
    times = pl.read_parquet(labels)
    changed = tmp_path / "changed"
    for path in world_meds.rglob("*"):
        target = changed / path.relative_to(world_meds)
        if path.is_dir():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if "data" not in path.relative_to(world_meds).parts:
            target.write_bytes(path.read_bytes())
            continue
        events = pl.read_parquet(path).join(times, on="subject_id", how="left", maintain_order="left")
        later = (pl.col("time") > pl.col("prediction_time")).fill_null(False)
        events = events.with_columns(
            code=pl.when(later).then(pl.lit("ICD10CM//I10")).otherwise("code"),
            numeric_value=pl.when(later).then(None).otherwise("numeric_value"),
            time=pl.when(later).then(pl.col("time") + datetime.timedelta(days=3)).otherwise("time"),
        )
        events.drop("prediction_time").write_parquet(target)
    for root, name in ((world_meds, "a"), (changed, "b")):
        simulate.simulate(
            workdir=workdir,
            meds_root=root,
            labels=labels,
            out=tmp_path / name,
            settings=lambda _: CONFIG,
            progress=False,
        )
    before, after = read(tmp_path / "a"), read(tmp_path / "b")
    assert all(first.equals(second) for first, second in zip(before, after, strict=True))
    assert sum(len(rows) for rows in before) > 18


def test_an_earlier_event_does_change_the_futures(workdir, world_meds, labels, tmp_path) -> None:
    moved = pl.read_parquet(labels).with_columns(pl.col("prediction_time") + datetime.timedelta(days=200))
    moved.write_parquet(tmp_path / "moved.parquet")
    for file, name in ((labels, "a"), (tmp_path / "moved.parquet", "b")):
        simulate.simulate(
            workdir=workdir,
            meds_root=world_meds,
            labels=file,
            out=tmp_path / name,
            settings=lambda _: CONFIG,
            progress=False,
        )
    codes = [np.concatenate([rows["code"].to_numpy() for rows in read(tmp_path / name)]) for name in "ab"]
    assert codes[0].tolist() != codes[1].tolist()


@pytest.mark.parametrize(
    ("asked", "bounds"), [((0, 0), (64, 64)), ((0, 100), (64, 100)), ((0, 28), (100, 28)), ((100, 0), (100, 64))]
)
def test_by_default_a_history_and_its_future_fill_the_rows_that_the_model_was_trained_with(asked, bounds) -> None:
    assert token_bounds(RUN.train.row_length, *asked) == bounds


def test_flags_of_no_bounds_are_filled_in_by_the_checkpoints_row_length(workdir, monkeypatch) -> None:
    given = {"samples": 2, "horizon_days": 1.0, "max_new_tokens": 0, "max_prompt_tokens": 0, "temperature": 1.0}
    given |= {"max_windows": 3, "seed": 0, "timeline_end": "", "batch_rows": 8, "grammar": False}
    given |= {"cache_dtype": "", "step": "best", "part": ""}
    values = types.SimpleNamespace(**given, workdir="w", meds="m", labels="l", out="o")
    monkeypatch.setattr(simulate, "flags", types.SimpleNamespace(FLAGS=values))
    monkeypatch.setattr(simulate.compile_cache, "turn_on", lambda: None)
    found = {}

    def stop(**arguments) -> None:
        found.update(config=arguments["settings"](128), step=arguments["step"])
        raise KeyboardInterrupt

    monkeypatch.setattr(simulate, "simulate", stop)
    with pytest.raises(KeyboardInterrupt):
        simulate.main()
    config = found["config"]
    assert (config.max_prompt_tokens, config.max_new_tokens, config.max_windows) == (64, 64, 3)
    assert found["step"] == "best"


def test_a_label_row_given_twice_is_simulated_once(workdir, world_meds, labels, tmp_path) -> None:
    rows = pl.read_parquet(labels)
    pl.concat([rows, rows.head(2)]).write_parquet(tmp_path / "twice.parquet")
    summary = simulate.simulate(
        workdir=workdir, meds_root=world_meds, labels=tmp_path / "twice.parquet", out=tmp_path / "out",
        settings=lambda _: CONFIG, progress=False,
    )  # fmt: skip
    assert summary["prompts"] == 6


def test_a_row_without_history_is_named_as_the_file_has_it(workdir, write_meds, tmp_path) -> None:
    days = [datetime.datetime(2020, 1, day) for day in (3, 3, 4, 4, 1)]
    root = write_meds({"train/0": [(7, days[0], "CPT//99213", None)]}, {7: "train"})
    file = tmp_path / "dup.parquet"
    pl.DataFrame({"subject_id": [7] * 5, "prediction_time": days}).write_parquet(file)
    with pytest.raises(UserError, match=r"dup\.parquet, row 4, column prediction_time: the subject has no data"):
        simulate.simulate(workdir=workdir, meds_root=root, labels=file, out=tmp_path / "out", settings=lambda _: CONFIG)


def test_a_folder_with_something_in_it_is_refused_and_left_alone(workdir, world_meds, labels, tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not an empty folder"):
        simulate.simulate(workdir=workdir, meds_root=world_meds, labels=labels, out=out, settings=lambda _: CONFIG)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_unknown_subjects_are_refused_and_nothing_is_written(workdir, world_meds, labels, tmp_path) -> None:
    rows = pl.read_parquet(labels).with_columns(pl.col("subject_id") + 10**12)
    rows.write_parquet(tmp_path / "unknown.parquet")
    with pytest.raises(UserError, match="subject"):
        simulate.simulate(
            workdir=workdir, meds_root=world_meds, labels=tmp_path / "unknown.parquet", out=tmp_path / "out",
            settings=lambda _: CONFIG,
        )  # fmt: skip
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


KILLED_AFTER_TWO_PARTS = """
import os, pathlib, signal, sys
from benchmarks import decode
from cometjax import checkpoints, finished_prompts, simulate
from cometjax.model import ModelConfig
from data_pipeline.corpus import Corpus
from tests.cometjax import simulate_test

corpus, meds, labels, out = map(pathlib.Path, sys.argv[1:])
vocabulary = Corpus.open(corpus).vocabulary
model = decode.lively_model(ModelConfig(len(vocabulary), 1, 16, 2, 2, 8, 32, tied_embeddings=False))
checkpoints.load_for_inference = lambda _, **__: (model, vocabulary, simulate_test.RUN, 7)
finished_prompts.PART_SECONDS = 0.0
write_part, written = finished_prompts.FinishedPrompts._write_part, []

def write_two(finished, folder, part):
    write_part(finished, folder, part)
    written.append(part)
    if len(written) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

finished_prompts.FinishedPrompts._write_part = write_two
simulate.simulate(
    workdir=out, meds_root=meds, labels=labels, out=out, settings=lambda _: simulate_test.SLOW, progress=False
)
"""
# One prompt at a time.
SLOW = dataclasses.replace(CONFIG, batch_rows=2, pool_batches=1)


def test_a_killed_job_goes_on_where_it_was(workdir, world_corpus, world_meds, labels, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    arguments = [str(path) for path in (world_corpus, world_meds, labels, out)]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AFTER_TWO_PARTS, *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        timeout=280,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    parts = list((tmp_path / ".out.job" / "parts").iterdir())
    assert len(parts) == 2 and not out.exists()

    drawn = []
    iter_futures = engine.iter_futures

    def watched(model, vocabulary, prompts, config, **rest):
        drawn.extend(prompts)
        return iter_futures(model, vocabulary, prompts, config, **rest)

    monkeypatch.setattr(engine, "iter_futures", watched)
    simulate_to = functools.partial(simulate.simulate, workdir=workdir, meds_root=world_meds, labels=labels)
    with pytest.raises(UserError, match="of other settings"):
        simulate_to(out=out, settings=lambda _: dataclasses.replace(SLOW, seed=1), progress=False)
    with monkeypatch.context() as another_step, pytest.raises(UserError, match="of other weights"):
        vocabulary = Corpus.open(world_corpus).vocabulary
        other = decode.lively_model(ModelConfig(len(vocabulary), 1, 16, 2, 2, 8, 16, tied_embeddings=False))
        another_step.setattr(checkpoints, "load_for_inference", lambda _, **__: (other, vocabulary, RUN, 8))
        simulate_to(out=out, settings=lambda _: SLOW, step=8, progress=False)
    assert drawn == []
    summary = simulate_to(out=out, settings=lambda _: CONFIG, progress=False)  # another batch size is no other job
    assert 6 <= summary["resumed_futures"] < 18 and len(drawn) == 6 - summary["resumed_futures"] // 3
    assert not (tmp_path / ".out.job").exists()
    simulate_to(out=tmp_path / "whole", settings=lambda _: CONFIG, progress=False)
    assert len(drawn) == 6 - summary["resumed_futures"] // 3 + 6
    assert all(one.equals(other) for one, other in zip(read(out), read(tmp_path / "whole"), strict=True))


def test_parts_draw_together_what_one_process_draws(workdir, world_meds, labels, tmp_path, monkeypatch, capsys) -> None:
    """The second of three parts is stopped while it draws, and started again when the others have ended."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    drawn, iter_futures, stops_after = [], engine.iter_futures, [100]

    def watched(model, vocabulary, prompts, config, **rest):
        for at, futures in iter_futures(model, vocabulary, prompts, config, **rest):
            if len(drawn) == stops_after[0]:
                raise KeyboardInterrupt
            drawn.append(prompts[at].subject_id)
            yield at, futures

    monkeypatch.setattr(engine, "iter_futures", watched)
    monkeypatch.setattr(finished_prompts, "PART_SECONDS", 0.0)

    def run(out: pathlib.Path, part: str, **settings) -> dict:
        return simulate.simulate(
            workdir=workdir, meds_root=world_meds, labels=labels, out=out, part=Part.parse(part), progress=False,
            settings=lambda _: dataclasses.replace(CONFIG, **settings),
        )  # fmt: skip

    run(whole, "")
    everyone = sorted(drawn)
    drawn.clear()
    assert run(out, "2/3") == {} and len(drawn) == 2
    assert "parts 0, 1 (from 0) not yet" in capsys.readouterr().out
    written = list((tmp_path / ".out.job" / "parts").iterdir())  # names that no other part takes
    assert written and all(path.name.startswith("part_2_of_3_") for path in written)
    stops_after[0] = 3
    with pytest.raises(KeyboardInterrupt):
        run(out, "1/3")
    stops_after[0] = 100
    with pytest.raises(UserError, match="of other settings"):
        run(out, "0/3", seed=1)
    assert run(out, "0/3") == {} and not out.exists() and len(drawn) == 5
    summary = run(out, "1/3")
    assert sorted(drawn) == everyone and summary["resumed_futures"] == 15
    assert all(one.equals(other) for one, other in zip(read(whole), read(out), strict=True))
    alone = json.loads((whole / "summary.json").read_text())
    timed = ("seconds", "tokens_per_second", "resumed_futures")
    assert {key: alone[key] for key in alone if key not in timed} == {
        key: summary[key] for key in summary if key not in timed
    }
    capsys.readouterr()
    assert run(out, "1/3") == {}  # as a scheduler does that starts a finished job again
    assert capsys.readouterr().out == f"{out}: already written by this job; nothing is left for part 1 of 3\n"
    for other in ({"seed": 1}, {}):
        with pytest.raises(UserError, match="is not an empty folder"):
            run(out, "1/3" if other else "", **other)
    assert len(drawn) == 6 and json.loads((out / "summary.json").read_text()) == summary
    assert {path.name for path in tmp_path.iterdir()} == {"labels.parquet", "whole", "out"}


def test_without_a_part_the_command_ends_what_parts_have_left(workdir, world_meds, labels, tmp_path) -> None:
    arguments = {"workdir": workdir, "meds_root": world_meds, "labels": labels, "progress": False}
    arguments |= {"out": tmp_path / "out", "settings": lambda _: CONFIG}
    assert simulate.simulate(**arguments, part=Part(1, 2)) == {}
    assert simulate.simulate(**arguments)["resumed_futures"] == 9
    assert len(read(tmp_path / "out")) == 3 and not (tmp_path / ".out.job").exists()


def test_under_the_grammar_the_summary_tells_of_no_invalid_event(workdir, world_meds, labels, tmp_path) -> None:
    rates = {}
    for keep in (False, True):
        summary = simulate.simulate(
            workdir=workdir, meds_root=world_meds, labels=labels, out=tmp_path / f"{keep}",
            settings=lambda _, keep=keep: dataclasses.replace(CONFIG, grammar=keep), progress=False,
        )  # fmt: skip
        rates[keep] = summary["invalid_rate"]
    assert rates[True] == 0 < rates[False]
