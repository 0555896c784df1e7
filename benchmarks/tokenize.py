"""Tokenizing speed: MEDS parquet to finished corpus, beside a floor that only reads, joins and sorts the same files.

    python -m benchmarks.tokenize --meds ../shared/data/mimic-iv-demo-meds --repeats 50

Without --meds a synthetic world of 2,000 patients is the data set. It is repeated under new subject ids, each copy in
--files_per_copy files, so that files are of one size whatever the number of copies. The last line is one JSON object:
events_per_s (all rows of the input over the wall time of data_pipeline.build), floor_events_per_s (polars: read every
shard, join its splits, sort by subject, time and code), their ratio, and peak_rss_bytes of the whole process tree
during the build.
"""

import sys

# This script bears the name of a standard module, which its own folder on the path would hide from every library.
if sys.path[0].endswith("benchmarks"):
    del sys.path[0]

import argparse
import json
import os
import pathlib
import tempfile
import threading
import time

import polars as pl

from data_pipeline import build_config, meds, world
from data_pipeline.build import build_corpus


def repeat(dataset: meds.MedsDataset, out: pathlib.Path, repeats: int, files_per_copy: int) -> int:
    """Write `repeats` copies of a data set under new subject ids; returns the number of events."""
    events = pl.concat([meds.read_shard(path) for path in dataset.shards], how="diagonal")
    ids = dataset.splits["subject_id"]
    stride = int(ids.max()) - int(ids.min()) + 1  # type: ignore[arg-type]
    copies = [(pl.col("subject_id") + stride * copy) for copy in range(repeats)]
    (out / "metadata").mkdir(parents=True)
    (out / "data").mkdir()
    (out / "metadata" / "dataset.json").write_text(json.dumps({"dataset_name": "repeated", "meds_version": "0.4.0"}))
    pl.concat([dataset.splits.with_columns(copy) for copy in copies]).write_parquet(
        out / "metadata" / "subject_splits.parquet"
    )
    part = (pl.col("subject_id").rank("dense") - 1) * files_per_copy // len(ids)
    for copy, shifted in enumerate(copies):
        for (piece,), rows in events.with_columns(part=part).partition_by("part", as_dict=True).items():
            rows.drop("part").with_columns(shifted).write_parquet(out / "data" / f"{copy:04d}_{piece}.parquet")
    return len(events) * repeats


def floor_seconds(root: pathlib.Path) -> float:
    """Seconds to read every shard, join its splits and sort its rows, and nothing else."""
    start = time.perf_counter()
    splits = pl.read_parquet(root / "metadata" / "subject_splits.parquet")
    for path in sorted((root / "data").glob("*.parquet")):
        pl.read_parquet(path).join(splits, on="subject_id", how="left").sort("subject_id", "time", "code")
    return time.perf_counter() - start


class PeakMemory:
    """Largest resident memory of this process and its children together, sampled every 50 ms."""

    def __enter__(self) -> "PeakMemory":
        self.bytes, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.bytes = max(self.bytes, sum(map(_resident_bytes, _process_tree(os.getpid()))))


def _process_tree(pid: int) -> list[int]:
    try:
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(below for child in children for below in _process_tree(int(child)))]


def _resident_bytes(pid: int) -> int:
    try:
        return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meds", type=pathlib.Path)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--files_per_copy", type=int, default=2)
    parser.add_argument("--code_map", default=None, help="default: mimic with --meds, world without")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        if args.meds is None:
            world.write_world(root / "world", patients=2000, seed=0)
        dataset = meds.open_dataset(args.meds or root / "world")
        events = repeat(dataset, root / "meds", args.repeats, args.files_per_copy)
        config = build_config.get_config()
        config.code_map = args.code_map or ("mimic" if args.meds else "world")
        floor = floor_seconds(root / "meds")
        start = time.perf_counter()
        with PeakMemory() as memory:
            corpus = build_corpus(root / "meds", root / "corpus", config)
        seconds = time.perf_counter() - start
    figures = {
        "events": events,
        "files": corpus.manifest["source"]["shards"],
        "tokens": sum(split["tokens"] for split in corpus.manifest["splits"].values()),
        "events_per_s": round(events / seconds),
        "floor_events_per_s": round(events / floor),
        "ratio_to_floor": round(floor / seconds, 3),
        "peak_rss_bytes": memory.bytes,
        "data": dataset.name,
        "cores": os.cpu_count(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
