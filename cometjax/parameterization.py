"""How initial values and learning rates follow the width: `standard` (they do not) or `mup`.

muP (Tensor Programs V, arXiv 2203.03466, table 8, for Adam) keeps the size of activations, and of their changes in a
step, the same at every width, so the learning rate that is best for a narrow model is best for a wide one. With
m = width / mup_base_width:

    parameters                                 initial value   learning rate   weight decay per step
    matrices of the layers (fan-in grows)      0.02 / sqrt(m)  peak / m        peak * weight_decay
    final norm (the output multiplier 1/m)     1 / m           peak / m        none
    embedding                                  0.02            peak            none
    untied head                                0.02            peak            peak * weight_decay
    other norms; biases                        1; 0            peak            none

At m = 1 both parameterizations are the same, bit for bit.

The table's output multiplier 1/m stands in the final norm's scale, which multiplies nothing but the logits: under Adam,
scaling a parameter's start and learning rate by 1/m is scaling it in the forward pass (the paper's lemma J.1). So there
is no multiplier anywhere in the model: simulation, evaluation and export to Hugging Face take the weights as they are,
tied embeddings or not.

Not touched by the width: attention's 1/sqrt(head_dim), which is muP's 1/head_dim up to a constant while head_dim is
one. So a family of widths must hold head_dim, layers, and the ratios of heads and mlp_width to width. The weight decay
is independent of a group's learning rate (arXiv 2309.14322): divided by m with it, wide models would hardly decay.
"""

import dataclasses
import re
from typing import Protocol

PARAMETERIZATIONS = ("standard", "mup")


class Shaped(Protocol):
    """What is read of a ModelConfig, or of `config.model`."""

    @property
    def parameterization(self) -> str:
        """One of PARAMETERIZATIONS."""

    @property
    def width(self) -> int:
        """Of the residual stream."""

    @property
    def mup_base_width(self) -> int:
        """The width at which the parameterizations are the same."""


@dataclasses.dataclass(frozen=True)
class _Exponents:
    """Powers of the width multiplier by which initial value and learning rate are scaled."""

    initial: float
    learning_rate: float


# The first pattern found in a parameter's path; what none names does not depend on the width.
_MUP: tuple[tuple[str, _Exponents], ...] = (
    (r"layers/(query|key|value|attention_out|mlp_gate|mlp_up|mlp_down)$", _Exponents(-0.5, -1.0)),
    (r"^final_norm$", _Exponents(-1.0, -1.0)),
)


def initial_scale(name: str, model: Shaped) -> float:
    """What the standard initial value of the parameter at path `name` is multiplied by."""
    return _width_multiplier(model) ** _exponents(name).initial


def learning_rate_scale(name: str, model: Shaped) -> float:
    """The learning rate of the parameter at path `name`, over the schedule's."""
    return _width_multiplier(model) ** _exponents(name).learning_rate


def _width_multiplier(model: Shaped) -> float:
    return model.width / model.mup_base_width if model.parameterization == "mup" else 1.0


def _exponents(name: str) -> _Exponents:
    return next((exponents for pattern, exponents in _MUP if re.search(pattern, name)), _Exponents(0.0, 0.0))
