"""AdamW or Muon, learning rates that warm up and decay, global-norm clipping, and weight decay where it is due.

Weights shrink, but for norms, biases and embeddings. Learning rates of single parameters follow the width by
`cometjax.parameterization`.

Muon (https://kellerjordan.github.io/posts/muon) takes, for the matrices of the layers, the nearest orthogonal matrix to
their gradients' momentum: every direction that the gradients point in gets the same step. Embedding, head, norms and
biases stay with AdamW. Its steps are scaled to the size of AdamW's (a root mean square of 0.2, arXiv 2502.16982), so
that a learning rate found with the one will do for the other.
"""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import optax.contrib

from cometjax import parameterization
from cometjax.model import compute_dtype
from cometjax.sharding import constrain_like_parameters, path_name, share_layers
from data_pipeline.errors import UserError

_MUON_RMS = 0.2
# The matrices of all layers in a stack, N x inputs x outputs: which axes are which.
_MATRICES = {
    "query": optax.contrib.MuonDimensionNumbers(1, (2, 3)),  # NxDxHxC
    "key": optax.contrib.MuonDimensionNumbers(1, (2, 3)),  # NxDxKxC
    "value": optax.contrib.MuonDimensionNumbers(1, (2, 3)),  # NxDxKxC
    "attention_out": optax.contrib.MuonDimensionNumbers((1, 2), 3),  # NxHxCxD
    "mlp_gate": optax.contrib.MuonDimensionNumbers(1, 2),  # NxDxF
    "mlp_up": optax.contrib.MuonDimensionNumbers(1, 2),  # NxDxF
    "mlp_down": optax.contrib.MuonDimensionNumbers(1, 2),  # NxFxD
}
# Embeddings are left out too: a rare code's row gets a gradient in few steps but would shrink in every one
# (OLMo 2, arXiv 2501.00656, section 3.4).
_UNDECAYED = re.compile(r"norm|bias|embed")


def decayed(params: Any) -> Any:
    """A tree of booleans like `params`: true where weight decay applies."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not _UNDECAYED.search(path_name(path)), params)


def learning_rate_schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
    """Step (from 0) → learning rate: linear warm-up to `learning_rate`, there for `stable_steps`, then down.

    The first step already moves (1 / warmup_steps of the peak), and the last one, train.steps - 1, is at the end of the
    decay, `final_fraction` of the peak: half a cosine, a line, or one minus a square root, which falls fast at first
    (arXiv 2405.18392). Stable steps up to the last one leave no decay: a run to be continued (`cometjax.continuation`;
    arXiv 2404.06395). Raises UserError when the warm-up leaves no step after it.
    """
    optimizer, steps = config.optimizer, config.train.steps
    if optimizer.warmup_steps >= steps:
        raise UserError(
            f"{optimizer.warmup_steps} warm-up steps leave none of the {steps} training steps",
            where="optimizer.warmup_steps",
            fix="lower it or raise train.steps",
        )
    peak, last, stable = optimizer.learning_rate, optimizer.final_fraction, optimizer.stable_steps
    falling = max(1, steps - optimizer.warmup_steps - stable)
    decays = {
        "cosine": optax.cosine_decay_schedule(peak, falling, alpha=last),
        "linear": optax.linear_schedule(peak, last * peak, falling),
        "sqrt": lambda step: peak * (1 - (1 - last) * jnp.sqrt(jnp.clip(step / falling, 0, 1))),
    }
    warmup, decay = optax.linear_schedule(0.0, peak, optimizer.warmup_steps), decays[optimizer.decay]
    phases, ends = [warmup, decay], [optimizer.warmup_steps]
    if stable:
        # Runs that decay after different stable steps are to share the rates before, to the bit, though each compiles
        # a step of its own. So no sum, which a compiler rounds once or twice; and the last stable step is at the peak
        # itself, not at the decay's beginning, which is the peak but for rounding.
        phases = [lambda step: peak * (step / max(1, optimizer.warmup_steps)), optax.constant_schedule(peak)]
        phases.append(lambda step: decay(step + 1))
        ends.append(optimizer.warmup_steps + stable + 1)
    schedule = optax.join_schedules(phases, ends)
    return lambda step: schedule(step + 1)


def make_optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Gradients → the direction of AdamW or Muon, not yet scaled by the learning rate.

    The train step scales it by `learning_rate_schedule` of its own step: a skipped step must not slow the schedule, but
    must not touch the optimizer's state (and with it the moments' bias correction) either.
    """
    optimizer = config.optimizer
    return optax.chain(
        optax.clip_by_global_norm(optimizer.clip_norm),
        _scale_by_muon(config) if optimizer.name == "muon" else _scale_by_adam(optimizer),
        optax.stateless(lambda directions, _: _scaled(directions, config.model)),
        # After the scaling: the decay is the schedule's rate times weight_decay, whatever the parameter's own rate.
        optax.add_decayed_weights(optimizer.weight_decay, mask=decayed),
    )


def _scale_by_adam(optimizer: ml_collections.ConfigDict) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=optimizer.b1, b2=optimizer.b2, eps=optimizer.eps)


def _scale_by_muon(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    def name(path: Any) -> str:
        return path_name(path).rpartition("/")[2]

    def labels(tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: "muon" if name(path) in _MATRICES else "adam", tree)

    def axes(tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: _MATRICES[name(path)], tree)

    muon = optax.chain(
        optax.trace(decay=config.optimizer.muon_momentum, nesterov=True),
        optax.stateless(lambda momenta, _: _orthogonal(momenta, axes(momenta), compute_dtype(config.model))),
    )
    return optax.partition({"muon": muon, "adam": _scale_by_adam(config.optimizer)}, labels)


def _orthogonal(momenta: Any, axes: Any, dtype: str) -> Any:
    """The nearest orthogonal matrices, of the size of Adam's directions; each device has its share of the layers."""
    muon = optax.contrib.scale_by_muon(beta=0.0, nesterov=False, weight_dimension_numbers=axes)  # Newton-Schulz alone
    split = jax.tree.map(lambda x: share_layers(x.astype(dtype)), momenta)
    directions, _ = muon.update(split, muon.init(split))
    sized = jax.tree.map(lambda d, of: share_layers(_to_adams_size(d, of)), directions, axes)
    return constrain_like_parameters(jax.tree.map(lambda d, x: d.astype(x.dtype), sized, momenta))


def _to_adams_size(direction: jax.Array, axes: optax.contrib.MuonDimensionNumbers) -> jax.Array:
    inputs, outputs = (
        math.prod(direction.shape[axis] for axis in np.atleast_1d(of)) for of in (axes.reduction_axis, axes.output_axis)
    )
    return direction * (_MUON_RMS * math.sqrt(max(inputs, outputs)))


def _scaled(directions: Any, model: ml_collections.ConfigDict) -> Any:
    """Each parameter's direction times its learning rate over the schedule's."""
    return jax.tree_util.tree_map_with_path(
        lambda path, d: d * parameterization.learning_rate_scale(path_name(path), model), directions
    )
