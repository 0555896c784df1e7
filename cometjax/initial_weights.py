"""A run's first parameters from a folder that `cometjax.export` (or transformers' `save_pretrained`) wrote.

`config.init_from` names it. Optimizer, step and learning rate begin as in any new run; once there is a checkpoint, the
folder is no longer read.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from cometjax import huggingface, safetensors_files
from cometjax import workdir as workdirs
from cometjax.model import ModelConfig
from data_pipeline.errors import UserError
from data_pipeline.vocabulary import Vocabulary


def refuse_unfit(folder: pathlib.Path, model: ModelConfig, vocabulary: Vocabulary) -> None:
    """Raise UserError, with both values, unless the folder holds a model of this shape for this vocabulary.

    Reads the descriptions, and of the weights only that they are there and whole in length.
    """
    path = folder / "config.json"
    try:
        hf_config = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            "cannot be read", where=f"config.init_from, {path}", fix="give a folder that cometjax.export wrote"
        ) from error
    different = huggingface.differences(hf_config, model)
    if different:
        raise UserError(
            f"another model: {'; '.join(different)}", where=f"config.init_from, {path}", fix="set config.model to match"
        )
    _refuse_other_vocabulary(folder / workdirs.VOCABULARY, vocabulary)
    safetensors_files.read(folder)


def load(folder: pathlib.Path, model: ModelConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    """The folder's parameters as numpy arrays, in the model's param_dtype; a cast is told in a warning.

    Raises UserError as `refuse_unfit`, and for tensors of other shapes than config.json says.
    """
    refuse_unfit(folder, model, vocabulary)
    tensors = safetensors_files.read(folder)
    wanted = jnp.dtype(model.param_dtype)
    for dtype in sorted({str(tensor.dtype) for tensor in tensors.values()} - {str(wanted)}):
        logging.warning("%s: saved in %s, loaded in %s (config.model.param_dtype)", folder, dtype, wanted)
    return huggingface.params_from_hf_state(tensors, model)


def place(params: dict[str, Any], like: Any) -> Any:
    """Host arrays as jax arrays that lie as `like`'s do; each process hands over only what its devices hold."""
    return jax.tree.map(
        lambda new, old: jax.make_array_from_callback(old.shape, old.sharding, lambda index: new[index]), params, like
    )


def _refuse_other_vocabulary(path: pathlib.Path, vocabulary: Vocabulary) -> None:
    if not path.exists():
        raise UserError(
            "is missing: nothing tells which event a token id means",
            where=f"config.init_from, {path}",
            fix="copy it from the folder that cometjax.export wrote",
        )
    theirs = Vocabulary.load(path)
    if theirs.fingerprint != vocabulary.fingerprint:
        raise UserError(
            f"vocabulary {theirs.fingerprint[:12]} ({len(theirs)} tokens), and config.corpus has "
            f"{vocabulary.fingerprint[:12]} ({len(vocabulary)} tokens)",
            where=f"config.init_from, {path}",
            fix="build the corpus with --vocabulary=CORPUS, the corpus that the model was trained on",
        )
