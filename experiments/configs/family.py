"""A member of a family that a scaling study found: by name, or the compute-optimal model of a budget in FLOPs.

    python -m cometjax.train --config experiments/configs/family.py:5p92e12 --workdir runs/best --config.corpus=CORPUS
    python -m cometjax.train --config experiments/configs/family.py:1e15,runs/other/family.json ...

Without a file the family is runs/scaling/family.json, where `make scaling-sweep` leaves it.
"""

import ml_collections

from data_pipeline.errors import UserError
from experiments.scaling import family

DEFAULT = "runs/scaling/family.json"


def get_config(wanted: str = "") -> ml_collections.ConfigDict:
    """The configuration of "NAME", "FLOPS", "NAME,FILE" or "FLOPS,FILE"; raises UserError for what is not there."""
    name, _, file = wanted.partition(",")
    found = family.load(file or DEFAULT)
    if not name:
        names = ", ".join(one["name"] for one in found["members"])
        raise UserError("no member is named", where="--config", fix=f"as in family.py:NAME; there are {names}")
    return family.config_of(found, family.find(found, name)).lock()
