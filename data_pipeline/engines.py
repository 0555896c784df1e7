"""Engines: how the jobs of a build, one per shard, are run; results come in the order of the jobs."""

import concurrent.futures
import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tqdm

from data_pipeline import build_shards, code_maps, meds


@contextlib.contextmanager
def local(workers: int, dataset: meds.MedsDataset, code_map: code_maps.CodeMap) -> Iterator[Callable[..., list[Any]]]:
    """A function run(title, job, arguments) that gives the jobs' results in order, with a progress bar."""
    if workers == 1:
        build_shards.start_worker(dataset, code_map)
        yield lambda title, job, args: [job(*arg) for arg in tqdm.tqdm(args, title, unit="shard", disable=None)]
        return
    # Spawned and not forked: polars and Arrow hold threads. One polars thread each, as there is a process per core.
    threads = os.environ.get("POLARS_MAX_THREADS")
    os.environ["POLARS_MAX_THREADS"] = "1"
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), build_shards.start_worker, (dataset, code_map)
    )

    def run(title: str, job: Callable[..., Any], args: Sequence[tuple[Any, ...]]) -> list[Any]:
        futures = [pool.submit(job, *arg) for arg in args]
        return [future.result() for future in tqdm.tqdm(futures, title, unit="shard", disable=None)]

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)
        os.environ.pop("POLARS_MAX_THREADS")
        if threads is not None:
            os.environ["POLARS_MAX_THREADS"] = threads
