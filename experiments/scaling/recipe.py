"""A recipe: everything about a trial that follows from its size and its tokens, frozen before the first trial runs.

Width decides the shape; parameters N and tokens D decide learning rate, batch and length. What a recipe does not name
(optimizer, attention, mesh, ...) stands in the base configuration, the same for every trial.

- Shape: layers = width / width_per_layer, rounded, within bounds; heads = width / head_dim, rounded; the mlp is
  mlp_ratio times the width.
- Learning rate: coefficient * N^n_exponent * D^d_exponent (as arXiv 2401.02954, section 3.1, who fit theirs to C).
  With `parameterization="mup"` the width is taken care of, and n_exponent is 0.
- Batch: rows * (D / batch_reference_tokens)^batch_exponent, rounded to a multiple; exponent 0 keeps it.
- Schedule: linear warm-up over a share of the steps, then cosine to zero at the trial's own last step. A loss read off
  the middle of a longer schedule is not the loss of a shorter run (arXiv 2203.15556, appendix B).
"""

import dataclasses
import math
from typing import Any

import ml_collections

from cometjax import flops
from cometjax.model import ModelConfig
from data_pipeline.errors import UserError


@dataclasses.dataclass(frozen=True)
class Shape:
    """A decoder's shape, as `config.model` names it."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int

    def model(self, vocab_size: int) -> ModelConfig:
        """The model of this shape with everything else at its default: for counting, not for training."""
        return ModelConfig(vocab_size=vocab_size, **dataclasses.asdict(self))

    def parameters_without_embeddings(self) -> int:
        """Layers and final norm: attention with QKV biases, SwiGLU, two norms."""
        query, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer = self.width * (2 * query + 2 * kv + 3 * self.mlp_width) + query + 2 * kv + 2 * self.width
        return self.layers * layer + self.width

    def parameters(self, vocab_size: int, *, tied: bool = True) -> int:
        """All parameters; a tied embedding is one matrix."""
        return self.parameters_without_embeddings() + (1 if tied else 2) * vocab_size * self.width

    def flops(self, vocab_size: int, *, tokens: float, sum_segment_squared: float) -> float:
        """Exact training FLOPs (`cometjax.flops`): with attention and head, without embedding lookups."""
        return flops.train_flops(
            self.model(vocab_size), tokens=round(tokens), sum_segment_squared=round(sum_segment_squared)
        )


@dataclasses.dataclass(frozen=True)
class LearningRate:
    """coefficient * N^n_exponent * D^d_exponent."""

    coefficient: float
    n_exponent: float = 0.0
    d_exponent: float = 0.0

    def __call__(self, n: float, d: float) -> float:
        """The peak learning rate of N parameters (embeddings included) and D tokens."""
        return self.coefficient * n**self.n_exponent * d**self.d_exponent


@dataclasses.dataclass(frozen=True)
class Recipe:
    """See the module. Widths are multiples of `width_multiple` between `min_width` and `max_width`."""

    width_multiple: int
    min_width: int
    max_width: int
    width_per_layer: float
    min_layers: int
    max_layers: int
    head_dim: int
    queries_per_kv: int
    mlp_ratio: float
    parameterization: str
    mup_base_width: int
    learning_rate: LearningRate
    row_length: int
    batch_rows: int
    batch_multiple: int
    batch_exponent: float
    batch_reference_tokens: float
    warmup_fraction: float
    final_fraction: float

    @classmethod
    def from_config(cls, config: Any) -> "Recipe":
        """The recipe of `config.recipe`; raises UserError for a value that makes no sense."""
        values = config.to_dict()
        if not 0 < values["min_width"] <= values["max_width"] or values["width_multiple"] < 1:
            raise UserError("no widths between min_width and max_width", where="config.recipe")
        if not 0 <= values["warmup_fraction"] < 1:
            raise UserError(f"{values['warmup_fraction']} is not in [0, 1)", where="config.recipe.warmup_fraction")
        if values["parameterization"] == "mup" and values["learning_rate"]["n_exponent"]:
            raise UserError(
                "mup already scales learning rates with the width",
                where="config.recipe.learning_rate.n_exponent",
                fix="set it to 0, or parameterization to standard",
            )
        return cls(**(values | {"learning_rate": LearningRate(**values["learning_rate"])}))

    def shape(self, width: int) -> Shape:
        """The shape of one width."""
        layers = min(max(round(width / self.width_per_layer), self.min_layers), self.max_layers)
        kv_heads = max(1, round(width / self.head_dim / self.queries_per_kv))
        mlp_width = self.width_multiple * max(1, round(self.mlp_ratio * width / self.width_multiple))
        return Shape(layers, width, kv_heads * self.queries_per_kv, kv_heads, self.head_dim, mlp_width)

    def ladder(self) -> tuple[Shape, ...]:
        """Every shape there is, smallest first."""
        first = self.width_multiple * math.ceil(self.min_width / self.width_multiple)
        return tuple(self.shape(width) for width in range(first, self.max_width + 1, self.width_multiple))

    def larger_ladder(self) -> tuple[Shape, ...]:
        """Shapes for models beyond the trials: widths are multiples of 128, up to 32,768.

        head_dim is 64 (128 from a width of 4,096 on) and a layer comes for each 128 of width, as in the published
        CoMET-S (6 x 768) and CoMET-L (16 x 2048).
        """
        large = dataclasses.replace(
            self, width_multiple=128, min_width=128, max_width=32_768, width_per_layer=128.0, min_layers=2,
            max_layers=256, head_dim=64, mlp_ratio=4.0,
        )  # fmt: skip
        wide = dataclasses.replace(large, head_dim=128, min_width=4_096)
        return tuple(shape for shape in large.ladder() if shape.width < wide.min_width) + wide.ladder()

    def nearest(self, n: float, vocab_size: int, *, tied: bool) -> Shape:
        """The shape whose parameters (embeddings included) are nearest to `n` as a ratio.

        It is one of the recipe's own, or a larger one than all of these from the larger ladder.
        """

        def parameters(shape: Shape) -> int:
            return shape.parameters(vocab_size, tied=tied)

        own = self.ladder()
        larger = [shape for shape in self.larger_ladder() if parameters(shape) > parameters(own[-1])]
        return min([*own, *larger], key=lambda shape: abs(math.log(parameters(shape) / n)))

    def rows(self, d: float) -> int:
        """Rows of a batch for a run of `d` tokens."""
        rows = self.batch_rows * (d / self.batch_reference_tokens) ** self.batch_exponent
        return self.batch_multiple * max(1, round(rows / self.batch_multiple))

    def overrides(self, shape: Shape, *, n: int, steps: int, rows: int, tokens: float, seed: int) -> dict[str, Any]:
        """Key of the training configuration → value, for a trial of `steps` steps that are `tokens` tokens."""
        warmup = min(max(1, round(self.warmup_fraction * steps)), steps - 1)
        values = {f"model.{key}": value for key, value in dataclasses.asdict(shape).items()}
        return values | {
            "model.parameterization": self.parameterization,
            "model.mup_base_width": self.mup_base_width,
            "optimizer.learning_rate": float(f"{self.learning_rate(n, tokens):.4g}"),
            "optimizer.warmup_steps": warmup,
            "optimizer.final_fraction": self.final_fraction,
            "train.row_length": self.row_length,
            "train.batch_rows": rows,
            "train.steps": steps,
            # Once at the end, on the whole tuning split: the same tokens for every trial.
            "train.eval_every": steps,
            "train.log_every": max(1, steps // 60),
            "train.checkpoint_every": max(20, -(-steps // 4)),
            "train.keep_checkpoints": 1,
            "seed": seed,
        }


def default_config() -> ml_collections.ConfigDict:
    """A recipe's keys, at the values for models of tens of millions of parameters and more."""
    recipe = ml_collections.ConfigDict()
    recipe.width_multiple = 128  # every width is a multiple of it
    recipe.min_width = 128  # of the trials,
    recipe.max_width = 8192  # and their widest
    recipe.width_per_layer = 128.0  # layers are the width over it, rounded; published: S 128, M 64, L 128
    recipe.min_layers = 2  # however narrow the model,
    recipe.max_layers = 128  # and however wide
    recipe.head_dim = 64  # the width over it, rounded, is the number of query heads
    recipe.queries_per_kv = 1  # query heads that share one key/value head
    recipe.mlp_ratio = 4.0  # as published; SwiGLU has three such matrices
    recipe.parameterization = "standard"  # or "mup"
    recipe.mup_base_width = 256  # the width at which "mup" equals "standard"
    recipe.learning_rate = ml_collections.ConfigDict(
        # Of coefficient * N^n_exponent * D^d_exponent; what the pilot finds takes their place.
        {"coefficient": 1e-3, "n_exponent": 0.0, "d_exponent": 0.0}
    )
    recipe.row_length = 8192  # tokens in a packed row
    recipe.batch_rows = 64  # of a run of batch_reference_tokens
    recipe.batch_multiple = 8  # rows are a multiple of it
    recipe.batch_exponent = 0.0  # rows grow with the run's tokens to this power; 0: they do not
    recipe.batch_reference_tokens = 1e9  # of the run whose batch is batch_rows
    recipe.warmup_fraction = 0.05  # of a trial's steps
    recipe.final_fraction = 0.0  # the last learning rate over the peak
    return recipe
