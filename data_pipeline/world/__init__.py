"""A synthetic health system whose rules are known: a MEDS data set from nothing but (patients, seed)."""

from data_pipeline.world.writer import write_world

__all__ = ["write_world"]
