"""The same backbone with a linear head, trained on a task's labels: as a probe of the frozen weights, and in full.

B batch rows   L row length   P prompts of a batch   N prompts   D embed

A prompt is summed up by the final hidden state at its last token. The probe is a logistic regression on that vector.
Full fine-tuning begins with the probe's solution as its head, so that the first steps do not tear up features that are
good already (arXiv 2202.10054), lowers the learning rate to zero, and keeps the weights of the epoch with the least
loss on subjects held apart; epoch 0, before any step, is one of them.

Prompts are packed into rows of the length that the model was trained with: one shape, compiled once for all tasks.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import polars as pl
from absl import logging
from flax import nnx

from cometjax.baselines import TrainingRows, fit_regression
from cometjax.labels import row_hash
from cometjax.model import Decoder
from cometjax.optimizer import make_optimizer
from cometjax.train_step import model_graph

# Prompts shorter than this, on average, leave a batch's rows partly empty.
_TOKENS_PER_SLOT = 32
_HEAD = "risk_head"


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """How to fit a head.

    Attributes:
        max_rows: training rows learned from, drawn by hash; probe and fine-tuning alike.
        epochs: passes over them, in fine-tuning.
        batch_tokens: of an update.
        learning_rate_share: the highest rate, as a share of pretraining's highest.
        warmup_share: of all updates, with a rising rate.
        validation_share: of the subjects, held apart to choose the epoch.
    """

    max_rows: int = 2000
    epochs: int = 4
    batch_tokens: int = 8192
    learning_rate_share: float = 0.1
    warmup_share: float = 0.1
    validation_share: float = 0.2


@dataclasses.dataclass(frozen=True)
class Probe:
    """A linear head: the logit of a hidden state x is x · weight_D + bias. C is the regression's inverse penalty."""

    weight_D: np.ndarray
    bias: float
    inverse_penalty: float

    def predict(self, hidden_NxD: np.ndarray) -> np.ndarray:
        """Probabilities, float64 [N]."""
        return 1 / (1 + np.exp(-(hidden_NxD @ self.weight_D + self.bias)))


class Backbone:
    """A pretrained decoder that reads prompts, on the first local device."""

    def __init__(self, model: Decoder, config: ml_collections.ConfigDict, settings: FineTuning = FineTuning()) -> None:
        self.config, self.settings, self.shape = config, settings, model.config
        self.length = config.train.row_length
        self.rows = max(1, settings.batch_tokens // self.length)
        self.params: dict[str, Any] = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        graph = model_graph(model.config)

        def hidden(params: Any, batch: Any) -> jax.Array:
            decoder = nnx.merge(graph, {name: tree for name, tree in params.items() if name != _HEAD})
            x_BxLxD = decoder.hidden_of_rows(batch["tokens_BxL"], batch["segment_ids_BxL"], batch["positions_BxL"])
            return x_BxLxD.reshape(-1, x_BxLxD.shape[-1])[batch["last_P"]].astype(jnp.float32)

        def logits(params: Any, batch: Any) -> jax.Array:
            return hidden(params, batch) @ params[_HEAD]["weight"] + params[_HEAD]["bias"]

        def loss(params: Any, batch: Any, labels_P: jax.Array, weights_P: jax.Array) -> jax.Array:
            nats_P = optax.sigmoid_binary_cross_entropy(logits(params, batch), labels_P)
            return jnp.sum(weights_P * nats_P) / jnp.sum(weights_P > 0)

        self._optimizer = make_optimizer(config)

        def update(
            params: Any, state: Any, batch: Any, labels_P: jax.Array, weights_P: jax.Array, rate: jax.Array
        ) -> tuple[Any, Any]:
            gradients = jax.grad(loss)(params, batch, labels_P, weights_P)
            directions, state = self._optimizer.update(gradients, state, params)
            return jax.tree.map(lambda p, d: (p - rate * d).astype(p.dtype), params, directions), state

        self._hidden, self._logits = jax.jit(hidden), jax.jit(logits)
        self._update = jax.jit(update, donate_argnums=(0, 1))

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the weights."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.params):
            digest.update(np.ascontiguousarray(leaf).view(np.uint8).data)
        return digest.hexdigest()

    def hidden_states(self, prompts: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [N, D]: the final hidden state at the last token of each prompt (int32 tokens)."""
        return self._of_prompts(self._hidden, self.params, prompts, (self.shape.width,))

    def fit_probe(self, hidden_NxD: np.ndarray, training: TrainingRows, seed: int) -> Probe:
        """Logistic regression on hidden states, each of them standardized, its penalty chosen by cross-validation."""
        mean_D, scale_D = hidden_NxD.mean(0), hidden_NxD.std(0)
        scale_D = np.where(scale_D > 0, scale_D, 1.0)
        regression, penalty = fit_regression((hidden_NxD - mean_D) / scale_D, training, seed)
        weight_D = regression.coef_[0] / scale_D
        return Probe(weight_D, float(regression.intercept_[0] - mean_D @ weight_D), penalty)

    def fine_tune(self, prompts: Sequence[np.ndarray], training: TrainingRows, seed: int) -> "Tuned | str":
        """Train all weights on labelled prompts; a reason (str) where no subjects can be held apart."""
        is_apart_N = held_apart(training.subjects_N, self.settings.validation_share, seed)
        parts = [training.part(np.flatnonzero(mask_N)) for mask_N in (~is_apart_N, is_apart_N)]
        if reason := parts[0].lacks_a_class() or parts[1].lacks_a_class():
            return f"no subjects can be held apart to choose the epoch by: {reason}"
        learned = [prompt for prompt, apart in zip(prompts, is_apart_N, strict=True) if not apart]
        judged = [prompt for prompt, apart in zip(prompts, is_apart_N, strict=True) if apart]
        probe = self.fit_probe(self.hidden_states(learned), parts[0], seed)
        head = {"weight": jnp.asarray(probe.weight_D, jnp.float32), "bias": jnp.asarray(probe.bias, jnp.float32)}
        # A copy, for the updates give their arguments' memory away.
        params = jax.tree.map(jnp.copy, self.params) | {_HEAD: head}
        state = self._optimizer.init(params)
        best = Tuned(self, jax.device_get(params), 0, parts[1].loss(self._risks(params, judged)))
        shuffled = np.random.default_rng(seed)
        for epoch in range(self.settings.epochs):
            order_N = shuffled.permutation(len(learned))
            done = 0
            for batch, row_P in pack(learned, order_N, self.rows, self.length):
                there_P = row_P >= 0
                rate = self._rate((epoch + done / len(learned)) / self.settings.epochs)
                labels_P = parts[0].labels_N[row_P].astype(np.float32)
                weights_P = np.where(there_P, parts[0].weights_N[row_P], 0).astype(np.float32)
                params, state = self._update(params, state, batch, labels_P, weights_P, np.float32(rate))
                done += int(there_P.sum())
            loss = parts[1].loss(self._risks(params, judged))
            logging.info("fine-tuning: epoch %d, log loss on subjects held apart %.4f", epoch + 1, loss)
            if loss < best.validation_loss:
                best = Tuned(self, jax.device_get(params), epoch + 1, loss)
        return best

    def _rate(self, progress: float) -> float:
        """The learning rate when this share of all training is done: a short rise, then a straight line to zero."""
        peak = self.config.optimizer.learning_rate * self.settings.learning_rate_share
        return peak * min((progress + 1e-3) / self.settings.warmup_share, 1 - progress, 1.0)

    def _risks(self, params: Any, prompts: Sequence[np.ndarray]) -> np.ndarray:
        logits_N = self._of_prompts(self._logits, params, prompts, ()).astype(np.float64)
        return 1 / (1 + np.exp(-logits_N))

    def _of_prompts(
        self, function: Any, params: Any, prompts: Sequence[np.ndarray], shape: tuple[int, ...]
    ) -> np.ndarray:
        result = np.zeros((len(prompts), *shape), np.float32)
        for batch, row_P in pack(prompts, np.arange(len(prompts)), self.rows, self.length):
            there_P = row_P >= 0
            result[row_P[there_P]] = np.asarray(function(params, batch))[there_P]
        return result


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A fine-tuned backbone with its head: the weights after `epoch`, and their log loss on subjects held apart."""

    backbone: Backbone
    params: Any
    epoch: int
    validation_loss: float

    def predict(self, prompts: Sequence[np.ndarray]) -> np.ndarray:
        """Probabilities for prompts (int32 tokens), float64 [N]."""
        return self.backbone._risks(jax.device_put(self.params), prompts)


def held_apart(subjects_N: np.ndarray, share: float, seed: int) -> np.ndarray:
    """bool [N]: rows of a share of the subjects, drawn by a hash of (seed, subject)."""
    subjects = pl.Series(np.unique(subjects_N))
    keys = row_hash(subjects, pl.ones(len(subjects), pl.Int64, eager=True), seed)
    apart = subjects.to_numpy()[np.argsort(keys, kind="stable")[: round(share * len(subjects))]]
    return np.isin(subjects_N, apart)


def pack(
    prompts: Sequence[np.ndarray], order_N: np.ndarray, rows: int, length: int
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Batches of prompts in this order: (tokens_BxL, segment_ids_BxL, positions_BxL, last_P; which prompt, -1: none).

    A prompt goes into the first row with room; `last_P` is its last token's place in the flattened rows.
    """
    slots = rows * max(1, length // _TOKENS_PER_SLOT)

    def empty() -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, int]:
        names = ("tokens_BxL", "segment_ids_BxL", "positions_BxL")
        batch = {name: np.zeros((rows, length), np.int32) for name in names}
        return batch | {"last_P": np.zeros(slots, np.int32)}, np.full(slots, -1), np.zeros(rows, np.int64), 0

    batch, row_P, used_B, slot = empty()
    for index in order_N.tolist():
        tokens_T = prompts[index]
        fitting = np.flatnonzero(used_B + len(tokens_T) <= length)
        if slot == slots or not len(fitting):
            yield batch, row_P
            batch, row_P, used_B, slot = empty()
            fitting = np.arange(rows)
        row = int(fitting[0])
        place = slice(used_B[row], used_B[row] + len(tokens_T))
        batch["tokens_BxL"][row, place] = tokens_T
        batch["segment_ids_BxL"][row, place] = slot + 1
        batch["positions_BxL"][row, place] = np.arange(len(tokens_T))
        batch["last_P"][slot] = row * length + place.stop - 1
        row_P[slot] = index
        used_B[row] += len(tokens_T)
        slot += 1
    if slot:
        yield batch, row_P
