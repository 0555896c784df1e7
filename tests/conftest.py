"""Fixtures that several test modules share: hand-made MEDS data sets, a small world, its corpus, the MIMIC demo."""

import datetime
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import polars as pl
import pytest

Row = tuple[int, datetime.datetime | None, str, float | None]
_SCHEMA = {
    "subject_id": pl.Int64,
    "time": pl.Datetime("us"),
    "code": pl.String,
    "numeric_value": pl.Float32,
}


def events_frame(rows: Sequence[Row]) -> pl.DataFrame:
    """A MEDS events frame from (subject, time, code, value) rows."""
    return pl.DataFrame(rows, schema=_SCHEMA, orient="row")


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is tested keeps what it keeps in a folder of this process; what was compiled once is read, here as there.

    A folder of each of pytest-xdist's processes: JAX's entries are not written at one stroke, and who reads one that
    another is writing warns of it.
    """
    os.environ["COMETJAX_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    if "jax" in sys.modules:  # and so in some test that was collected
        from cometjax import compile_cache

        compile_cache.turn_on()


@pytest.fixture
def hurried_compiler() -> Iterator[None]:
    """LLVM does not try hard: for large programs that are run a few times, such as the parts of interpreted kernels."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def write_meds(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """write_meds({"train/0": rows, ...}, splits={subject: split}) -> root of a MEDS data set."""

    def write(
        shards: Mapping[str, Sequence[Row]], splits: Mapping[int, str], root: pathlib.Path = tmp_path / "meds"
    ) -> pathlib.Path:
        for name, rows in shards.items():
            path = root / "data" / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            events_frame(rows).write_parquet(path)
        (root / "metadata").mkdir(parents=True, exist_ok=True)
        table = {"subject_id": list(splits), "split": list(splits.values())}
        pl.DataFrame(table, schema={"subject_id": pl.Int64, "split": pl.String}).write_parquet(
            root / "metadata" / "subject_splits.parquet"
        )
        (root / "metadata" / "dataset.json").write_text('{"dataset_name": "hand-made", "meds_version": "0.4.0"}')
        return root

    return write


@pytest.fixture(scope="session")
def world_meds(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A synthetic MEDS data set of 300 patients."""
    from data_pipeline.world import write_world

    root = tmp_path_factory.mktemp("world") / "meds"
    write_world(root, patients=300, seed=1, shards=3)
    return root


@pytest.fixture(scope="session")
def world_corpus(world_meds: pathlib.Path) -> pathlib.Path:
    """The corpus of `world_meds`, with a low rarity threshold."""
    from data_pipeline import build_config
    from data_pipeline.build import build_corpus

    config = build_config.get_config()
    config.update(code_map="world", min_subjects_per_code=3, min_values_per_code=20)
    root = world_meds.parent / "corpus"
    build_corpus(world_meds, root, config, workers=1)
    return root


@pytest.fixture(scope="session")
def mimic_demo() -> pathlib.Path:
    """The MIMIC-IV demo as MEDS: $COMETJAX_MIMIC_DEMO, or shared/data beside the checkout."""
    checkout = pathlib.Path(__file__).resolve().parents[1]
    place = os.environ.get("COMETJAX_MIMIC_DEMO", checkout.parent / "shared" / "data" / "mimic-iv-demo-meds")
    root = pathlib.Path(place)
    if not (root / "data").is_dir():
        pytest.skip(f"SKIPPED FOR LACK OF DATA: no MIMIC-IV demo in MEDS at {root}; set COMETJAX_MIMIC_DEMO")
    return root
