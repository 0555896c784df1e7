"""The codes of a MEDS data set that a vocabulary does not know, however rare: clinical content, for the data's owner.

The manifest names only codes that enough training subjects have; this reads the data again, all splits, and names all.
"""

import polars as pl

from data_pipeline import meds
from data_pipeline.code_maps import ROLES_WITHOUT_EVENT
from data_pipeline.coverage import is_unknown
from data_pipeline.progress_bar import progress_bar
from data_pipeline.vocabulary import Vocabulary


def unknown_codes(dataset: meds.MedsDataset, vocabulary: Vocabulary) -> tuple[pl.DataFrame, int]:
    """Count the events whose codes become UNKNOWN//<kind>.

    Returns:
        [code, kind, subjects, events], most events first; and how many events make tokens, known or not. Rows without
        a time, and those that say who a subject is, make none.
    """
    counts: pl.DataFrame | None = None
    for shard in progress_bar(dataset.shards, desc="counting codes", unit="shard"):
        part = (
            meds.read_shard(shard)
            .filter(pl.col("time").is_not_null())
            .group_by("code")
            .agg(subjects=pl.col("subject_id").n_unique(), events=pl.len())
            .cast({"subjects": pl.Int64, "events": pl.Int64})
        )
        # A subject lies in one shard: subjects add up.
        counts = part if counts is None else pl.concat([counts, part]).group_by("code").sum()
    assert counts is not None  # A data set has a shard.
    concepts = vocabulary.code_map.map_codes(counts["code"].to_list())
    makes_event = [concept.role not in ROLES_WITHOUT_EVENT for concept in concepts]
    unknown = [is_unknown(concept, vocabulary) for concept in concepts]
    table = counts.with_columns(kind=pl.Series([concept.kind for concept in concepts], dtype=pl.String))
    lost = table.filter(pl.Series(unknown, dtype=pl.Boolean)).sort("events", "code", descending=[True, False])
    return lost.select("code", "kind", "subjects", "events"), int(table.filter(pl.Series(makes_event))["events"].sum())
