"""The probability of each decile of a test's value: the world's noise, integrated between the corpus's own edges."""

import dataclasses

import numpy as np
from scipy import special

from data_pipeline.vocabulary import DECILES, Vocabulary
from data_pipeline.world import catalogue, laboratory

# Values are written in float32: a value that is a reported one to this share of a step is that one.
_ROUNDING = 0.01


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Where deciles begin, for each test L of catalogue.LABS.

    Attributes:
        z_LxD1: decile d (from 1) is z in [z[d - 1], z[d]), z as in laboratory.Lab; -inf and inf at the ends.
        valued_L: whether the vocabulary gives the test's values deciles.
    """

    z_LxD1: np.ndarray
    valued_L: np.ndarray

    def probability(self, lab_n: np.ndarray, decile_n: np.ndarray, mean_n: np.ndarray) -> np.ndarray:
        """P(decile | expected z), exact in both tails."""
        low_n = (self.z_LxD1[lab_n, decile_n - 1] - mean_n) / laboratory.NOISE
        high_n = (self.z_LxD1[lab_n, decile_n] - mean_n) / laboratory.NOISE
        upper_n = low_n > 0
        low_n, high_n = np.where(upper_n, -high_n, low_n), np.where(upper_n, -low_n, high_n)
        return special.ndtr(high_n) - special.ndtr(low_n)


def thresholds(vocabulary: Vocabulary) -> Thresholds:
    """The thresholds that this vocabulary's decile edges make."""
    z_LxD1 = np.full((len(catalogue.LABS), DECILES + 1), np.inf)
    z_LxD1[:, 0] = -np.inf
    valued_L = np.zeros(len(catalogue.LABS), bool)
    concepts = vocabulary.code_map.map_codes([f"LOINC//{lab.code}" for lab in catalogue.LABS])
    for index, (lab, concept) in enumerate(zip(catalogue.LABS, concepts, strict=True)):
        event = vocabulary.event_of_concept.get(concept.name)
        if event is not None and vocabulary.events[event].edges:
            valued_L[index] = True
            z_LxD1[index, 1:-1] = [_z_above(lab, edge) for edge in vocabulary.events[event].edges]
    return Thresholds(z_LxD1, valued_L)


def _z_above(lab: laboratory.Lab, edge: float) -> float:
    """The least z whose reported value exceeds the edge: rules.lab_values, inverted."""
    steps = edge * 10.0**lab.decimals
    nearest = round(steps)
    reported = nearest if abs(steps - nearest) < _ROUNDING else np.floor(steps)
    # Values are rounded to the nearest step, after they are clipped.
    least = (reported + 0.5) / 10.0**lab.decimals
    if least > lab.high:
        return np.inf
    if least <= lab.low:
        return -np.inf
    return float(np.log(least / lab.centre) if lab.skewed else least - lab.centre) / lab.spread
