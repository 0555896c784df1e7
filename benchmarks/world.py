"""Speed of the synthetic world: from a seed to finished parquet, in tokens per second.

    python -m benchmarks.world --patients 6000

The last line is one JSON object: tokens_per_s (all tokens of the corpus built from the world, over the wall time of
data_pipeline.world alone), tokens, subjects, events, seconds.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

from data_pipeline import build_config, world
from data_pipeline.build import build_corpus


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        start = time.perf_counter()
        summary = world.write_world(root / "meds", args.patients, args.seed)
        seconds = time.perf_counter() - start
        config = build_config.get_config()
        config.code_map = "world"
        corpus = build_corpus(root / "meds", root / "corpus", config)
    tokens = sum(split["tokens"] for split in corpus.manifest["splits"].values())
    figures = {
        "tokens_per_s": round(tokens / seconds),
        "tokens": tokens,
        "subjects": summary.subjects,
        "events": summary.events,
        "seconds": round(seconds, 3),
        "cores": os.cpu_count(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
