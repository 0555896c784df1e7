r"""A vector for each patient at each prediction time: the model's last hidden state, for a model or index of your own.

    python -m cometjax.embed --workdir runs/demo/model --meds runs/demo/meds \
        --labels labels.parquet --out embeddings.parquet

--labels is a MEDS label file, or a folder of them: columns subject_id and prediction_time are used. The
model reads each subject's events up to and including the prediction time, and nothing later, cut as
simulation cuts them. --out is a parquet file with a row for each distinct label row, in their order:
subject_id, prediction_time, and embedding, as many float32 as the model is wide. Its schema's
metadata name the checkpoint and the vocabulary. This is what the baseline `probe` of
cometjax.evaluate learns from. The first local device holds the whole model.
"""

import pathlib

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet
from absl import flags

from cometjax import checkpoint_choice, checkpoints, compile_cache, output_folder
from cometjax.fine_tuned import Backbone
from cometjax.futures import start_of, token_bounds
from data_pipeline import command_line, meds, prompts
from data_pipeline.errors import UserError
from data_pipeline.vocabulary import PREFIX_LENGTH


def embed(
    workdir: pathlib.Path,
    meds_root: pathlib.Path,
    labels: pathlib.Path,
    out: pathlib.Path,
    *,
    step: checkpoint_choice.Step = None,
    max_prompt_tokens: int = 0,
) -> tuple[int, int]:
    """Write the embeddings of label rows to the parquet file `out`; returns (rows, dimensions).

    `max_prompt_tokens` bounds a history's tokens, of which the latest count; 0: as in simulation by default.

    Raises:
      UserError: `out` is there or cannot be written, no checkpoint, unusable data or labels, a bound out of range.
    """
    if out.exists():
        raise UserError("is there already", where=str(out), fix="give a new file, or remove this one")
    dataset = meds.open_dataset(meds_root)
    rows = meds.read_labels(labels, dataset.splits["subject_id"], meds.first_events(dataset))
    rows = rows.select("subject_id", "prediction_time").unique(maintain_order=True)
    model, vocabulary, run, used = checkpoints.load_for_inference(workdir, step=step)
    limit, _ = token_bounds(run.train.row_length, max_prompt_tokens, 0)
    if not PREFIX_LENGTH < limit <= run.train.row_length:
        raise UserError(
            f"{limit} is not more than the {PREFIX_LENGTH} tokens of the static prefix and at most the"
            f" {run.train.row_length} of the model's rows",
            where="max_prompt_tokens",
        )
    histories = prompts.build_prompts(dataset, rows, vocabulary)
    states_NxD = Backbone(model, run).hidden_states([start_of(p, vocabulary, limit).tokens_T for p in histories])
    about = {"workdir": workdir.resolve().name, "step": str(used), "vocabulary": vocabulary.fingerprint}
    _write(out, rows, states_NxD, about)
    return states_NxD.shape


def _write(out: pathlib.Path, rows: pl.DataFrame, states_NxD: np.ndarray, about: dict[str, str]) -> None:
    width = states_NxD.shape[1]
    columns = {
        "subject_id": pa.array(rows["subject_id"].to_numpy(), pa.int64()),
        "prediction_time": pa.array(rows["prediction_time"].to_numpy(), pa.timestamp("us")),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(states_NxD.ravel(), pa.float32()), width),
    }
    table = pa.table(columns).replace_schema_metadata({f"cometjax.{name}": value for name, value in about.items()})
    with output_folder.whole_file(out) as partial:
        pyarrow.parquet.write_table(table, partial)


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "folder of a training run, with its checkpoints", required=True)
    checkpoint_choice.define_flag()
    flags.DEFINE_string("meds", None, "folder of the MEDS data set", required=True)
    flags.DEFINE_string("labels", None, "MEDS label file, or folder of label files", required=True)
    flags.DEFINE_string("out", None, "parquet file to write; must be new", required=True)
    flags.DEFINE_integer("max_prompt_tokens", 0, "bound on a history's tokens; 0 = half the model's row length")


def main() -> None:
    """Embed as the flags say."""
    values = flags.FLAGS
    compile_cache.turn_on()
    out = pathlib.Path(values.out)
    rows, width = embed(
        pathlib.Path(values.workdir),
        pathlib.Path(values.meds),
        pathlib.Path(values.labels),
        out,
        step=values.step,
        max_prompt_tokens=values.max_prompt_tokens,
    )
    print(f"{rows:,} rows of {width} dimensions: {out}")


if __name__ == "__main__":
    command_line.run(main, _define_flags)
