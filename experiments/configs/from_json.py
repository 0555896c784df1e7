"""A training configuration that was written as JSON: `config.json` of a workdir, or a scaling study's `base.json`.

    python -m cometjax.train --config experiments/configs/from_json.py:runs/scaling/base.json --workdir runs/again \
        --config.corpus=CORPUS
"""

import json
import pathlib

import ml_collections

from data_pipeline.errors import UserError


def get_config(path: str = "") -> ml_collections.ConfigDict:
    """The configuration in the file at `path`; raises UserError where there is none."""
    if not path:
        raise UserError("no file is named", where="--config", fix="as in experiments/configs/from_json.py:FILE")
    try:
        content = json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError("not a readable JSON file", where=path) from error
    return ml_collections.ConfigDict(content).lock()
