"""Unigram and bigram count models: what a language model of timelines has to beat, on the very same targets.

V vocabulary   T targets (positions with weight, flattened)

The bigram interpolates absolute discounting (Ney, Essen and Kneser 1994) with one discount for pairs seen once and one
for the rest, backing off to the unigram or to Kneser-Ney's continuation counts; which, and the discounts, are chosen on
a slice of the training split, and the counts of that slice are then added back. So the rival is as strong as a bigram
gets without having seen the tuning split.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# One training row in this many chooses the smoothing.
VALIDATION_EVERY = 10
DISCOUNTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97)
PSEUDO_COUNTS = (0.01, 0.1, 0.5, 1.0)
_PARTS_HELD = 64
Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Counts:
    """How often each target and each (input, target) pair occurs, weighted.

    Attributes:
        targets_V: float64, by target.
        keys: int64, sorted: input * V + target of each pair seen.
        pairs: float64, the counts of `keys`.
    """

    targets_V: np.ndarray
    keys: np.ndarray
    pairs: np.ndarray

    @property
    def vocab_size(self) -> int:
        """V."""
        return len(self.targets_V)

    @classmethod
    def total(cls, parts: Sequence["Counts"], vocab_size: int) -> "Counts":
        """The sum of the parts; no parts is no counts."""
        keys = np.concatenate([np.zeros(0, np.int64), *(part.keys for part in parts)])
        pairs = np.concatenate([np.zeros(0), *(part.pairs for part in parts)])
        return cls(sum((part.targets_V for part in parts), np.zeros(vocab_size)), *_sum_by_key(keys, pairs))


@dataclasses.dataclass(frozen=True)
class Smoothing:
    """What is tuned: the unigram's pseudo-count, the bigram's two discounts and what it backs off to."""

    pseudo_count: float
    discount_once: float
    discount: float
    continuation: bool


class Unigram:
    """P(target) from counts with a pseudo-count for each token."""

    def __init__(self, counts_V: np.ndarray, pseudo_count: float) -> None:
        smoothed_V = counts_V + pseudo_count
        self.probabilities_V = smoothed_V / smoothed_V.sum()

    def probability(self, inputs_T: np.ndarray, targets_T: np.ndarray) -> np.ndarray:
        """P(target | input), float64 [T]; the input is not looked at."""
        del inputs_T
        return self.probabilities_V[targets_T]


class Bigram:
    """P(target | input) = max(count - discount, 0) / total + (mass discounted) * P(target) of the lower order."""

    def __init__(self, counts: Counts, smoothing: Smoothing) -> None:
        vocab_size = counts.vocab_size
        contexts, targets = np.divmod(counts.keys, vocab_size)
        lower_V = np.bincount(targets, minlength=vocab_size) if smoothing.continuation else counts.targets_V
        self.lower_V = Unigram(lower_V.astype(np.float64), smoothing.pseudo_count).probabilities_V
        discounts = np.where(counts.pairs <= 1.0, smoothing.discount_once, smoothing.discount)
        discounts = np.minimum(discounts, counts.pairs)
        totals_V = np.bincount(contexts, weights=counts.pairs, minlength=vocab_size)
        freed_V = np.bincount(contexts, weights=discounts, minlength=vocab_size)
        # An input never seen leaves everything to the lower order.
        self.freed_V = np.divide(freed_V, totals_V, out=np.ones(vocab_size), where=totals_V > 0)
        self.keys = counts.keys
        self.kept = (counts.pairs - discounts) / totals_V[contexts]

    def probability(self, inputs_T: np.ndarray, targets_T: np.ndarray) -> np.ndarray:
        """P(target | input), float64 [T]."""
        wanted_T = inputs_T.astype(np.int64) * len(self.lower_V) + targets_T
        found_T = np.minimum(np.searchsorted(self.keys, wanted_T), max(0, len(self.keys) - 1))
        seen_T = self.keys[found_T] == wanted_T if len(self.keys) else np.zeros(len(wanted_T), bool)
        kept_T = np.where(seen_T, self.kept[found_T], 0.0) if len(self.keys) else 0.0
        return kept_T + self.freed_V[inputs_T] * self.lower_V[targets_T]


def ngram_losses(training: Iterable[Batch], tuning: Iterable[Batch], vocab_size: int) -> dict[str, Any]:
    """Fit on the training batches, score the tuning batches; both as loader.evaluation_batches gives them.

    Returns unigram_loss and bigram_loss (nats per target with weight), `targets` scored, and the smoothing chosen.
    """
    fitting, choosing = _count_training(training, vocab_size)
    smoothing = choose_smoothing(fitting, choosing)
    counts = Counts.total([fitting, choosing], vocab_size)
    # Scored from counts too: a loss only needs how often each pair occurs.
    scored = count_pairs(tuning, vocab_size)
    unigram = Unigram(counts.targets_V, smoothing.pseudo_count)
    return {
        "unigram_loss": loss(unigram, scored),
        "bigram_loss": loss(Bigram(counts, smoothing), scored),
        "targets": float(scored.pairs.sum()),
        "training_targets": float(counts.pairs.sum()),
        "smoothing": dataclasses.asdict(smoothing),
    }


def count_pairs(batches: Iterable[Batch], vocab_size: int) -> Counts:
    """Count the (input, target) pairs of all positions with weight."""
    parts: list[Counts] = []
    for batch in batches:
        _append(parts, _count_rows(batch, slice(None), vocab_size), vocab_size)
    return Counts.total(parts, vocab_size)


def choose_smoothing(fitting: Counts, choosing: Counts) -> Smoothing:
    """The smoothing with the lowest loss on `choosing`; the discount for single pairs is searched after the other."""
    pseudo_count = min(PSEUDO_COUNTS, key=lambda value: loss(Unigram(fitting.targets_V, value), choosing))

    def bigram_loss(smoothing: Smoothing) -> float:
        return loss(Bigram(fitting, smoothing), choosing)

    equal = (Smoothing(pseudo_count, d, d, c) for d, c in itertools.product(DISCOUNTS, (False, True)))
    best = min(equal, key=bigram_loss)
    best = min([best, *(dataclasses.replace(best, discount_once=d) for d in DISCOUNTS)], key=bigram_loss)
    best = min([best, *(dataclasses.replace(best, discount=d) for d in DISCOUNTS)], key=bigram_loss)
    return best


def loss(model: Unigram | Bigram, counts: Counts) -> float:
    """Mean -log P over the counted targets, nats; NaN when there are none."""
    if not len(counts.keys):
        return float("nan")
    inputs, targets = np.divmod(counts.keys, counts.vocab_size)
    with np.errstate(divide="ignore"):
        surprise = -np.log(model.probability(inputs, targets))
    return float((counts.pairs * surprise).sum() / counts.pairs.sum())


def _count_training(batches: Iterable[Batch], vocab_size: int) -> tuple[Counts, Counts]:
    """(counts to fit, counts to choose the smoothing): every VALIDATION_EVERY-th row of the stream is for choosing."""
    fitting: list[Counts] = []
    choosing: list[Counts] = []
    seen = 0
    for batch in batches:
        is_choosing = (seen + np.arange(len(batch["tokens_BxL"]))) % VALIDATION_EVERY == VALIDATION_EVERY - 1
        _append(fitting, _count_rows(batch, ~is_choosing, vocab_size), vocab_size)
        _append(choosing, _count_rows(batch, is_choosing, vocab_size), vocab_size)
        seen += len(is_choosing)
    return Counts.total(fitting, vocab_size), Counts.total(choosing, vocab_size)


def _append(parts: list[Counts], part: Counts, vocab_size: int) -> None:
    """Add to the parts, summing them up now and then: memory stays near that of the sum."""
    parts.append(part)
    if len(parts) >= _PARTS_HELD:
        parts[:] = [Counts.total(parts, vocab_size)]


def _count_rows(batch: Batch, rows: slice | np.ndarray, vocab_size: int) -> Counts:
    weights = batch["loss_weights_BxL"][rows]
    used = weights > 0
    inputs = batch["tokens_BxL"][rows][used].astype(np.int64)
    targets = batch["targets_BxL"][rows][used].astype(np.int64)
    weights = weights[used].astype(np.float64)
    keys, pairs = _sum_by_key(inputs * vocab_size + targets, weights)
    return Counts(np.bincount(targets, weights=weights, minlength=vocab_size), keys, pairs)


def _sum_by_key(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    unique, inverse = np.unique(keys, return_inverse=True)
    return unique, np.bincount(inverse, weights=values, minlength=len(unique))
