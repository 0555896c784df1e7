"""What the training loop costs beside its step: a loop's seconds a step against calling the jitted step bare.

    python -m benchmarks.loop_overhead
    python -m benchmarks.loop_overhead --config=experiments/configs/comet_s.py --corpus=CORPUS --seconds=300

In one process, in turn: blocks of five steps by `cometjax.train_loop` as training runs them (loader, transfers, figures
fetched, counted and written, one line of metrics a block: five times as many as the demo writes), and of the same
compiled step on the same batches, which lie on the devices already, with nothing fetched. Either block begins with idle
devices and ends when they are. Checkpoints and evaluations are not in it: their time is known by cause
(docs/observability.md).

The demo's configuration on a small synthetic world by default; under three minutes on two quiet CPU cores. The last
line is one JSON object; `ratio` is the median over pairs of blocks of loop over bare, `overhead_ms` what a step pays.
"""

import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import jax
from absl import flags
from ml_collections import config_flags

from cometjax import preemption, profiling, sharding
from cometjax.compiled_step import make_compiled_steps
from cometjax.model import ModelConfig
from cometjax.train_loop import TrainLoop
from cometjax.train_step import TokenTables
from data_pipeline import build_config, command_line
from data_pipeline.build import build_corpus
from data_pipeline.corpus import Corpus
from data_pipeline.loader import LoaderConfig, batch_at, training_plan
from data_pipeline.world import write_world

BLOCK = 5
MIN_PAIRS = 6
BAR = 1.02
PATIENTS = 300
NEVER = 10**6


def define_flags() -> None:
    """Flags of this command."""
    config_flags.DEFINE_config_file("config", "experiments/configs/demo.py", "what is trained")
    flags.DEFINE_string("corpus", "", "on what; default: a small synthetic world, made on the spot")
    flags.DEFINE_float("seconds", 90.0, "how long to measure; at least six pairs of blocks", lower_bound=0)


def _small_world(root: pathlib.Path) -> pathlib.Path:
    write_world(root / "meds", patients=PATIENTS, seed=1, shards=1)
    config = build_config.get_config()
    config.update(code_map="world", min_subjects_per_code=3, min_values_per_code=20)
    build_corpus(root / "meds", root / "corpus", config, workers=1)
    return root / "corpus"


def _bare(cfg, model, corpus, mesh) -> tuple[Callable[[int], list], Callable[[list], None]]:
    """(the batches of the block that begins at a step, on the devices; the steps on them)."""
    tables = TokenTables.from_vocabulary(corpus.vocabulary, model.vocab_size)
    steps = make_compiled_steps(cfg, model, tables, mesh)
    split = corpus.split("train")
    settings = LoaderConfig(
        cfg.train.batch_rows, cfg.train.row_length, cfg.seed, group_by_length=cfg.train.group_by_length
    )
    plan = training_plan(split, settings)
    state = steps.init()

    def batches_from(step: int) -> list:
        found = [sharding.put_batch(mesh, batch_at(split, plan, settings, step + i)) for i in range(BLOCK)]
        return jax.block_until_ready(found)

    def run(batches: list) -> None:
        nonlocal state
        for batch in batches:
            state, figures = steps.train(state, batch)
        jax.block_until_ready((state, figures))

    return batches_from, run


def measure(cfg, root: pathlib.Path, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds a step of each block: (by the loop, bare)."""
    corpus = Corpus.open(cfg.corpus)
    model = ModelConfig.from_config(cfg.model, len(corpus.vocabulary))
    mesh = sharding.make_mesh(cfg.mesh)
    # Compiled once for both: the very same program.
    jax.config.update("jax_compilation_cache_dir", str(root / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    by_loop, bare = [], []
    with jax.set_mesh(mesh):
        asked = {"preempted": preemption.Preemption(), "profile_request": profiling.Request()}
        loop = TrainLoop(cfg, model, root / "run", corpus, mesh, **asked)
        try:
            batches_from, run = _bare(cfg, model, corpus, mesh)
            loop.train_to(BLOCK)  # both compile
            run(batches_from(0))
            done, began = BLOCK, time.perf_counter()
            while len(bare) < MIN_PAIRS or time.perf_counter() < began + seconds:
                batches = batches_from(done)
                blocks = [(by_loop, lambda: loop.train_to(done + BLOCK)), (bare, lambda: run(batches))]  # noqa: B023
                for spent, block in blocks if len(bare) % 2 else reversed(blocks):
                    start = time.perf_counter()
                    block()
                    spent.append((time.perf_counter() - start) / BLOCK)
                done += BLOCK
        finally:
            loop.close()
    return by_loop, bare


def main() -> None:
    """Print the comparison."""
    values = flags.FLAGS
    cfg = values.config
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        cfg.corpus = values.corpus or str(_small_world(root))
        cfg.train.update(steps=NEVER, log_every=BLOCK, eval_every=NEVER, checkpoint_every=NEVER)
        by_loop, bare = measure(cfg, root, values.seconds)
    ratios = [of_loop / of_step for of_loop, of_step in zip(by_loop, bare, strict=True)]
    ratio = statistics.median(ratios)
    bare_ms = 1e3 * statistics.median(bare)
    print(
        json.dumps(
            {
                "benchmark": "loop_overhead",
                "device": jax.devices()[0].device_kind,
                "steps_a_block": BLOCK,
                "pairs": len(bare),
                "bare_ms": round(bare_ms, 2),
                "loop_ms": round(1e3 * statistics.median(by_loop), 2),
                "overhead_ms": round((ratio - 1) * bare_ms, 3),
                "ratio": round(ratio, 4),
                "quartiles": [round(quartile, 4) for quartile in statistics.quantiles(ratios, n=4)],
                "bar": BAR,
                "passed": ratio < BAR,
            }
        )
    )


if __name__ == "__main__":
    command_line.run(main, define_flags)
