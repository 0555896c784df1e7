"""The configuration of a training run: every key with its meaning, and what values make sense.

A configuration file builds on `default_config()` and returns the result from `get_config()`; flags override single
keys (`--config.train.steps=200`). The dictionary is locked: a key that is not listed here is refused by name.
"""

import math
from collections.abc import Iterator
from typing import Any

import ml_collections

from cometjax.attention import AUTO, IMPLEMENTATIONS
from cometjax.model import REMAT_POLICIES
from cometjax.parameterization import PARAMETERIZATIONS
from data_pipeline.errors import UserError
from data_pipeline.packing import MAX_SEED

COMPUTE_DTYPES = ("auto", "float32", "bfloat16")
PARAM_DTYPES = ("float32", "bfloat16")
OPTIMIZERS = ("adamw", "muon")
DECAYS = ("cosine", "linear", "sqrt")
ON_CHECKPOINT_ERROR = ("continue", "stop")


def default_config() -> ml_collections.ConfigDict:
    """The complete, locked configuration of a small model; configuration files change what they need."""
    config = ml_collections.ConfigDict()
    config.seed = 0  # of initialisation and of the order of the data
    config.corpus = ""  # a build's folder (or gs://, s3:// URL), or a mixture: FOLDER=WEIGHT,FOLDER=WEIGHT
    config.init_from = ""  # a folder of cometjax.export whose weights the run begins with; empty: drawn from the seed
    # WORKDIR or WORKDIR:STEP (a number, or best): the run begins with that run's checkpoint, and goes on from its step.
    config.continue_from = ""
    config.model = _model()
    config.optimizer = _optimizer()
    config.train = _train()
    config.loader = _loader()
    config.mesh = _mesh()
    return config.lock()


def _model() -> ml_collections.ConfigDict:
    model = ml_collections.ConfigDict()
    model.vocab_size = 0  # 0 = the corpus vocabulary's
    model.layers = 4  # blocks of attention and SwiGLU
    model.width = 256  # of the residual stream
    model.heads = 4  # query heads
    model.kv_heads = 4  # key/value heads; heads must be a multiple (grouped queries when fewer)
    model.head_dim = 64  # even; heads * head_dim need not equal width
    model.mlp_width = 1024  # inside a SwiGLU
    model.rope_theta = 10_000.0  # base of the rotary wavelengths
    model.norm_eps = 1e-6  # added to the mean square in RMSNorm
    model.tied_embeddings = True  # one matrix embeds tokens and scores them
    model.qkv_bias = True  # as Qwen2
    model.compute_dtype = "auto"  # "auto" (bfloat16 on accelerators, float32 on CPU), "float32" or "bfloat16"
    model.param_dtype = "float32"  # of the weights; or "bfloat16"
    model.attention = "auto"  # by name in cometjax/attention.py; "auto": the platform's default there
    model.scan_layers = True  # loop over one compiled layer; False unrolls: compiles longer; on GPU a fifth faster
    model.remat = "none"  # recomputation in the backward pass, per layer: "none", "dots" or "full"
    model.parameterization = "standard"  # or "mup": learning rates carry over from width to width (parameterization.py)
    model.mup_base_width = 256  # the width at which "mup" equals "standard"; a learning rate holds for one base width
    return model


def _optimizer() -> ml_collections.ConfigDict:
    optimizer = ml_collections.ConfigDict()
    optimizer.name = "adamw"  # or "muon": orthogonal steps for the layers' matrices, AdamW for the rest (optimizer.py)
    optimizer.learning_rate = 1e-3  # the peak, reached after the warm-up
    optimizer.warmup_steps = 100  # linear from zero
    optimizer.stable_steps = 0  # at the peak after it, before the decay; all that are left: no decay
    optimizer.decay = "cosine"  # or "linear", "sqrt": from the peak, after warm-up and stable steps, to the last step
    optimizer.final_fraction = 0.1  # the last learning rate over the peak
    optimizer.weight_decay = 0.1  # decoupled (AdamW)
    optimizer.b1 = 0.9  # what a step keeps of Adam's mean of the gradients,
    optimizer.b2 = 0.95  # and of their squares
    optimizer.eps = 1e-8  # added to the root of that, which Adam divides by
    optimizer.muon_momentum = 0.95  # of the gradients that Muon makes orthogonal
    optimizer.clip_norm = 1.0  # global gradient norm
    return optimizer


def _train() -> ml_collections.ConfigDict:
    train = ml_collections.ConfigDict()
    train.steps = 1000  # of the whole run, however often it is resumed
    train.batch_rows = 16  # global, over all hosts
    train.microbatches = 1  # parts in which a step computes its batch, one after another: less memory, same result
    train.row_length = 1024  # tokens in a packed row
    # Steps among which rows are dealt so that those of one step cost attention alike, and no device waits for another.
    # 1: a step's own rows, ordered so that devices' shares are alike; 0: as they come (data_pipeline/length_groups.py).
    train.group_by_length = 1
    train.log_every = 10  # steps between lines of training metrics
    train.eval_every = 250  # steps between evaluations on the tuning split
    train.eval_batches = 0  # batches of an evaluation; 0 = the whole tuning split
    train.last_eval_batches = 0  # of the one after the last step; 0 = the whole tuning split
    train.checkpoint_every = 250  # steps between checkpoints
    train.checkpoint_minutes = 0.0  # after the last save another is due, whatever the step; 0 = never
    train.keep_checkpoints = 2  # the newest this many stay,
    train.keep_every = 0  # and those of steps that this divides (0: none),
    train.keep_best = 0  # and this many with the lowest tuning loss, of evaluations on as many batches
    train.on_checkpoint_error = "continue"  # a full disk, say: "continue" training, or "stop"; either says so
    train.verify_checkpoints = True  # compare every file with its checksum before going on from a checkpoint
    train.spike_threshold = 10.0  # robust standard deviations above which a step is skipped (step_guard.py); 0 = never
    train.max_skipped_steps = 10  # training stops after this many skipped steps in a row, whatever the cause
    return train


def _loader() -> ml_collections.ConfigDict:
    loader = ml_collections.ConfigDict()
    loader.workers = 0  # processes that read ahead; 0 = in this process
    loader.prefetch = 2  # batches held ready
    return loader


def _mesh() -> ml_collections.ConfigDict:
    mesh = ml_collections.ConfigDict()  # devices along each axis; at most one may be -1 = what remains
    mesh.slices = 1  # TPU slices (or GPU nodes) that `data` spans; the other axes stay within one
    mesh.data = 1  # replicas, across slices
    mesh.fsdp = -1  # parameters and batch sharded
    mesh.tensor = 1  # heads, mlp and vocabulary sharded
    return mesh


def validate(config: ml_collections.ConfigDict) -> None:
    """Check every value that can be checked without devices or data.

    Raises:
      UserError: names the key, its value and what to do.
    """
    _validate_keys(config)
    _validate_model(config)
    _validate_train(config)
    _validate_optimizer(config)


def _validate_keys(config: ml_collections.ConfigDict) -> None:
    known, given = dict(_leaves(default_config())), dict(_leaves(config))
    for key in sorted(given.keys() - known.keys()):
        raise UserError("unknown key", where=key, fix="see cometjax/config.py for the keys")
    for key in sorted(known.keys() - given.keys()):
        raise UserError("missing key", where=key, fix="build the configuration on cometjax.config.default_config()")
    for key, default in known.items():
        value = given[key]
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            continue
        if type(value) is not type(default):
            raise UserError(f"{value!r} is a {type(value).__name__}", where=key, fix=f"use {type(default).__name__}")
    refuse_not_finite(config)
    if config.init_from and config.continue_from:
        _refuse(config, "init_from", "leave it out: config.continue_from brings weights of its own")


def refuse_not_finite(config: ml_collections.ConfigDict) -> None:
    """Raise UserError for a number, or one in a tuple of them, that is NaN or infinite: every comparison with NaN is
    false, so that no bound refuses it."""
    for key, value in _leaves(config):
        numbers = value if isinstance(value, tuple | list) else (value,)
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise UserError(f"{value!r} cannot be used", where=key, fix="use a finite value")


def _leaves(config: ml_collections.ConfigDict, prefix: str = "config") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _leaves(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", value


def _validate_model(config: ml_collections.ConfigDict) -> None:
    model = config.model
    _at_least(config, 0, "seed", "model.vocab_size")
    if config.seed >= MAX_SEED:
        _refuse(config, "seed", "use less than 2**32")
    _at_least(config, 1, *(f"model.{key}" for key in ("layers", "width", "heads", "kv_heads", "head_dim", "mlp_width")))
    _at_least(config, 1, "model.mup_base_width")
    _above(config, 0, "model.rope_theta", "model.norm_eps")
    _one_of(config, "model.compute_dtype", COMPUTE_DTYPES)
    _one_of(config, "model.param_dtype", PARAM_DTYPES)
    _one_of(config, "model.attention", (AUTO, *IMPLEMENTATIONS))
    _one_of(config, "model.remat", tuple(REMAT_POLICIES))
    _one_of(config, "model.parameterization", PARAMETERIZATIONS)
    if model.heads % model.kv_heads:
        _refuse(config, "model.kv_heads", f"use a divisor of config.model.heads ({model.heads})")
    if model.head_dim % 2:
        _refuse(config, "model.head_dim", "use an even number: rotary embedding turns pairs")


def _validate_optimizer(config: ml_collections.ConfigDict) -> None:
    _above(config, 0, "optimizer.learning_rate", "optimizer.eps", "optimizer.clip_norm")
    _at_least(config, 0, "optimizer.warmup_steps", "optimizer.stable_steps", "optimizer.weight_decay")
    _one_of(config, "optimizer.name", OPTIMIZERS)
    _one_of(config, "optimizer.decay", DECAYS)
    if config.optimizer.name == "muon" and config.model.parameterization == "mup":
        _refuse(
            config, "optimizer.name", 'use "adamw": the table of config.model.parameterization "mup" holds for Adam'
        )
    for key in ("optimizer.b1", "optimizer.b2", "optimizer.muon_momentum"):
        if not 0 <= _value(config, key) < 1:
            _refuse(config, key, "use a value in [0, 1)")
    if not 0 <= config.optimizer.final_fraction <= 1:
        _refuse(config, "optimizer.final_fraction", "use a value in [0, 1]")
    if config.optimizer.warmup_steps >= config.train.steps:
        _refuse(config, "optimizer.warmup_steps", f"use less than config.train.steps ({config.train.steps})")
    left = config.train.steps - config.optimizer.warmup_steps
    if config.optimizer.stable_steps > left:
        _refuse(config, "optimizer.stable_steps", f"use at most {left}, what warm-up leaves of config.train.steps")


def _validate_train(config: ml_collections.ConfigDict) -> None:
    positive = (
        "steps",
        "batch_rows",
        "microbatches",
        "log_every",
        "eval_every",
        "checkpoint_every",
        "keep_checkpoints",
    )
    _at_least(config, 1, *(f"train.{key}" for key in positive), "train.max_skipped_steps", "loader.prefetch")
    _at_least(
        config,
        0,
        "train.spike_threshold",
        "train.checkpoint_minutes",
        "train.group_by_length",
        "train.eval_batches",
        "train.last_eval_batches",
        "train.keep_every",
        "train.keep_best",
        "loader.workers",
    )
    _one_of(config, "train.on_checkpoint_error", ON_CHECKPOINT_ERROR)
    _at_least(config, 8, "train.row_length")  # the static prefix and something after it
    _at_least(config, 1, "mesh.slices")
    for axis in ("data", "fsdp", "tensor"):
        if config.mesh[axis] != -1 and config.mesh[axis] < 1:
            _refuse(config, f"mesh.{axis}", "use a number of devices, or -1 for what remains")
    if [config.mesh[axis] for axis in ("data", "fsdp", "tensor")].count(-1) > 1:
        _refuse(config, "mesh", "at most one axis may be -1")


def _at_least(config: ml_collections.ConfigDict, low: float, *keys: str) -> None:
    for key in keys:
        if _value(config, key) < low:
            _refuse(config, key, f"use {low} or more")


def _above(config: ml_collections.ConfigDict, low: float, *keys: str) -> None:
    for key in keys:
        if _value(config, key) <= low:
            _refuse(config, key, f"use a value above {low}")


def _one_of(config: ml_collections.ConfigDict, key: str, allowed: tuple[str, ...]) -> None:
    if _value(config, key) not in allowed:
        _refuse(config, key, f"use one of {', '.join(allowed)}")


def _refuse(config: ml_collections.ConfigDict, key: str, fix: str) -> None:
    value = _value(config, key)
    shown = dict(value) if isinstance(value, ml_collections.ConfigDict) else repr(value)
    raise UserError(f"{shown} cannot be used", where=f"config.{key}", fix=fix)


def _value(config: ml_collections.ConfigDict, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config
