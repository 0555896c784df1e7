"""The planner's command: reports, search, mistakes; and, where libtpu is installed, the compiler's word."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from cometjax import plan, plan_report, plan_search, pod_compiler, roofline
from cometjax.chips import parse_topology
from cometjax.collectives import Collective
from cometjax.config import default_config
from cometjax.pod_run import PAPER_VOCABULARY, pod_run
from experiments.configs import comet_l

NEEDS_LIBTPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="SKIPPED FOR LACK OF LIBTPU: nothing was compiled for a TPU; pip install -e '.[plan]'",
)


def small_config():
    config = default_config()
    config.model.update(vocab_size=512, layers=3, width=256, heads=4, kv_heads=4, head_dim=64, mlp_width=512)
    config.train.update(batch_rows=16, row_length=512)
    return config


def command(*args: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TPU_")}
    return subprocess.run(
        [sys.executable, "-m", "cometjax.plan", *args],
        capture_output=True, text=True, timeout=280, check=False, env=environment | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


def test_a_plan_for_gpus_says_that_it_is_analytic_and_adds_up(tmp_path) -> None:
    done = command(
        "--config=experiments/configs/comet_s.py", "--topology=h100:64", "--tokens=62e9", "--price=2", "--mfu=0.3",
        f"--json={tmp_path / 'plan.json'}", "--config.train.microbatches=1",
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == ""
    assert "ANALYTIC" in done.stdout and "DOES NOT FIT" not in done.stdout
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["source"] == "analytic" and found["chips"] == 64 and found["model"]["vocab_size"] == PAPER_VOCABULARY
    memory, budget = found["memory"], found["budget"]
    parts = ("parameters", "optimizer", "activations", "batch")
    assert memory["total"] == sum(memory[part] for part in parts) and memory["fits"]
    assert budget["roofline"]["money"] == pytest.approx(2 * budget["roofline"]["chip_hours"])
    assert budget["roofline"]["chip_hours"] == pytest.approx(64 * 24 * budget["roofline"]["days"])
    slowdown = found["roofline"]["mfu_bound"] / 0.3
    assert budget["at_mfu"]["days"] == pytest.approx(budget["roofline"]["days"] * slowdown)


def test_what_does_not_fit_says_so_and_exits_with_1() -> None:
    done = command(
        "--config=experiments/configs/comet_l.py", "--topology=v5e:2x4", "--nocompile", "--config.model.remat=none"
    )
    assert done.returncode == 1 and done.stderr == ""
    assert "DOES NOT FIT: needs" in done.stdout and "of 15.75 GiB" in done.stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--topology=v9:2x2", "--nocompile"], "error: --topology: 'v9:2x2' is not known; known: v5e:16x16"),
        (["--topology=v5e:16x16", "--nocompile"], "error: config.train.batch_rows: 64 rows cannot be split over 256"),
        (["--topology=h100:8", "--price=1"], "error: --price: needs a budget"),
        (["--topology=h100:8", "--mfu=0.4"], "error: --mfu: needs a budget"),
        (["--topology=h100:8", "--batch_rows=64"], "error: --batch_rows: needs --search"),
        (["--topology=h100:8", "--json=/"], "error: /: cannot be written"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(args, says) -> None:
    done = command("--config=experiments/configs/comet_l.py", *args)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(says) and done.stderr.count("\n") == 1


def test_a_plan_cannot_be_written_where_there_is_no_folder(tmp_path) -> None:
    with pytest.raises(pod_compiler.UserError, match=r"folder/plan.json: cannot be written"):
        plan._require_writable(tmp_path / "folder" / "plan.json")


def test_without_libtpu_the_fix_is_named(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(pod_compiler.UserError, match=r"libtpu; pip install -e '\.\[plan\]'"):
        pod_compiler.require_libtpu()


def test_search_ranks_what_fits_first_and_the_fastest_of_it() -> None:
    candidates = plan_search.search(small_config(), parse_topology("v5e:4x4"), batch_rows=[16, 8192])
    fits = [one.fits for one in candidates]
    assert fits == sorted(fits, reverse=True) and True in fits and False in fits
    speeds = [one.plan.tokens_per_second for one in candidates if one.fits]
    assert speeds == sorted(speeds, reverse=True)
    assert {one.config.model.remat for one in candidates} == {"none", "dots", "full"}
    assert {one.config.mesh.tensor for one in candidates} == {1, 2, 4}
    again = pod_run(candidates[0].config, parse_topology("v5e:4x4"))
    assert roofline.plan_of(again) == candidates[0].plan


def test_search_over_slices_keeps_tensor_and_fsdp_within_one() -> None:
    for candidate in plan_search.search(small_config(), parse_topology("2xv5e:2x4"), batch_rows=[16]):
        assert candidate.config.mesh.slices == 2 and candidate.config.mesh.data % 2 == 0


def test_the_compilers_figures_replace_the_analytic_ones() -> None:
    run = pod_run(small_config(), parse_topology("v5p:2x2x2"))
    analytic = roofline.plan_of(run)
    arguments = analytic.memory.parameters + analytic.memory.optimizer + analytic.memory.batch
    gathers = Collective("all-gather", 8, True, False, 6, 6_000_000, 600_000_000)
    sums = Collective("all-reduce", 8, False, False, 2, 600_000, 1_200_000)
    step = pod_compiler.CompiledStep(
        60.0, argument_bytes=arguments, temporary_bytes=10**9, output_bytes=500, code_bytes=7, flops=1e9,
        collectives=(gathers, sums),
    )  # fmt: skip
    found = plan_report.report(run, analytic, step, plan_report.Budget())
    memory = found["memory"]
    assert memory["total"] == arguments + 10**9 + 500 and memory["activations"] == 10**9 + 500
    assert memory["optimizer"] == analytic.memory.optimizer
    links = 3 * 100e9  # of v5p:2x2x2, three dimensions without rings
    assert found["roofline"]["seconds"]["hidden collectives"] == pytest.approx(600_000_000 / links)
    at_once = max(600_000_000 / links, analytic.seconds["compute"], analytic.seconds["memory"])
    assert found["roofline"]["step_seconds"] == pytest.approx(at_once + 1_200_000 / links)
    assert "all-gather         hidden" in plan_report.text(found)
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (29.38G) exceeds available HBM (15.75G). HLO module: jit_train_step.",
            round(29.38 * 2**30),
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.5M of 15.75G hbm.",
            round(512.5 * 2**20),
        ),
        ("INTERNAL: something else", None),
    ],
)
def test_the_compilers_refusal_is_read(message, needed) -> None:
    assert pod_compiler._needed_bytes(message) == needed


def test_unrolled_layers_that_keep_a_number_are_planned() -> None:
    done = command(
        "--config=experiments/configs/demo.py", "--topology=v5e:2x2", "--config.model.attention=reference",
        "--config.train.batch_rows=4", "--config.train.row_length=128", "--config.model.vocab_size=512", "--nocompile",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "memory a chip" in done.stdout


HOLD = """
from cometjax import chips, pod_compiler
print(len(pod_compiler.pod_devices(chips.parse_topology("v5e:2x2"))), flush=True)
input()
"""


@NEEDS_LIBTPU
def test_two_plans_ask_the_compiler_at_once() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("TPU_", "ALLOW_"))}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )
        for _ in range(2)
    ]  # fmt: skip
    chips = [process.stdout.readline() for process in started]  # each keeps libtpu until its input ends
    for process in started:
        process.communicate()
    assert chips == ["4\n", "4\n"]


@NEEDS_LIBTPU
def test_the_step_compiles_for_a_pod_and_memory_and_collectives_come_back() -> None:
    done = command(
        "--config=experiments/configs/demo.py", "--topology=v5e:2x2", "--config.model.attention=reference",
        "--config.train.batch_rows=4", "--config.train.row_length=128", "--config.model.vocab_size=512",
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == ""
    assert "compiled by the TPU's compiler" in done.stdout and "all-reduce" in done.stdout


@NEEDS_LIBTPU
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_large_model_is_planned_for_64_chips_and_too_much_is_refused(tmp_path) -> None:
    run = pod_run(comet_l.get_config(), parse_topology("v5p:4x4x4"))
    step = pod_compiler.compile_step(run)
    assert step.fits and step.collectives
    assert roofline.plan_of(run).memory.total == pytest.approx(step.total_bytes, rel=0.15)
    config = comet_l.get_config()
    config.model.remat = "none"
    refused = pod_compiler.compile_step(pod_run(config, parse_topology("v5e:8x8")))
    assert not refused.fits and refused.total_bytes > 15.75 * 2**30
