"""Write a trained model as a folder that Hugging Face transformers loads, and `cometjax.train` starts from.

    python -m cometjax.export --workdir runs/mine --out runs/mine-hf

The folder holds model.safetensors (or several files and their index), config.json, generation_config.json, the
tokenizer's files, vocabulary.json and README.md. There:

    model = transformers.AutoModelForCausalLM.from_pretrained("runs/mine-hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained("runs/mine-hf")
    tokenizer("SEX//F\\nRACE//WHITE", return_tensors="pt")  # a line a token

Here: python -m cometjax.train ... --config.init_from=runs/mine-hf. The weights are those of the newest whole
checkpoint, or of --step (a number, or best), in the precision that they were trained in unless --dtype says otherwise.
--out must be new or empty.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from absl import flags

from cometjax import checkpoint_choice, checkpoints, hf_tokenizer, output_folder, safetensors_files
from cometjax import workdir as workdirs
from cometjax.huggingface import to_hf_config, to_hf_state
from data_pipeline import command_line
from data_pipeline.vocabulary import PAD, TIMELINE_END, Vocabulary

DTYPES = ("auto", "float32", "bfloat16")
# What transformers keeps to as well (its max_shard_size).
MAX_FILE_BYTES = 5_000_000_000


def export(
    workdir: pathlib.Path,
    out: pathlib.Path,
    *,
    step: checkpoint_choice.Step = None,
    dtype: str = "auto",
    max_file_bytes: int = MAX_FILE_BYTES,
) -> dict[str, Any]:
    """Write the model of a workdir to `out`; returns step, parameters, bytes and the files of weights.

    Raises:
      UserError: `out` is not empty or cannot be written; no checkpoint (as `checkpoints.load_for_inference`); a model
        that Qwen2 cannot express. Nothing is left at `out` then.
    """
    output_folder.refuse_taken(out)
    model, vocabulary, config, used = checkpoints.load_for_inference(workdir, step=step)
    hf_config = to_hf_config(model.config, max_positions=config.train.row_length)
    tensors = to_hf_state(model)
    if dtype != "auto":
        hf_config["dtype"] = dtype
        tensors = {name: tensor.astype(jnp.dtype(dtype), copy=False) for name, tensor in tensors.items()}
    with output_folder.whole(out) as partial:
        files = safetensors_files.write(partial, tensors, max_file_bytes=max_file_bytes)
        _write_descriptions(partial, hf_config, vocabulary, used)
    return {
        "step": used,
        "parameters": sum(tensor.size for tensor in tensors.values()),
        "bytes": sum(tensor.nbytes for tensor in tensors.values()),
        "files": files,
    }


def _write_descriptions(folder: pathlib.Path, hf_config: Mapping[str, Any], vocabulary: Vocabulary, step: int) -> None:
    ends = {"pad_token_id": PAD, "bos_token_id": None, "eos_token_id": vocabulary.ids[TIMELINE_END]}
    # The model's own distribution, whole: transformers' default keeps the 50 likeliest tokens.
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    _write_json(folder / "config.json", {**hf_config, **ends})
    _write_json(folder / "generation_config.json", {**ends, **sampling})
    hf_tokenizer.write(folder, vocabulary, max_positions=hf_config["max_position_embeddings"])
    vocabulary.save(folder / workdirs.VOCABULARY)
    (folder / "README.md").write_text(_README.format(step=step, tokens=len(vocabulary)))


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


_README = """\
---
library_name: transformers
pipeline_tag: text-generation
---

A generative model of patients' medical events (Qwen2 architecture), trained by cometjax for {step:,} steps.

    import transformers
    model = transformers.AutoModelForCausalLM.from_pretrained(".")
    tokenizer = transformers.AutoTokenizer.from_pretrained(".")

It reads timelines, not text: {tokens:,} tokens, one a line ("SEX//F", "INTERVAL//1d-3d", ...). `vocabulary.json` says
what each token stands for, how events of MEDS data become tokens, and how long an interval lasts. A timeline begins
with the static prefix (sex, race, age, calendar period). No timeline in training was longer than `config.json`'s
max_position_embeddings. It is no medical device.
"""


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "folder of a training run, with its checkpoints", required=True)
    flags.DEFINE_string("out", None, "folder to write; must be new or empty", required=True)
    checkpoint_choice.define_flag()
    flags.DEFINE_enum("dtype", "auto", DTYPES, "precision of the weights; auto = as trained")
    flags.DEFINE_float("max_file_gb", MAX_FILE_BYTES / 1e9, "size at which weights go on in another file", 1e-6)


def main() -> None:
    """Export as the flags say."""
    values = flags.FLAGS
    out = pathlib.Path(values.out)
    done = export(
        pathlib.Path(values.workdir),
        out,
        step=values.step,
        dtype=values.dtype,
        max_file_bytes=int(values.max_file_gb * 1e9),
    )
    print(
        f"step {done['step']}, {done['parameters']:,} parameters, {done['bytes'] / 1e6:,.1f} MB in "
        f"{', '.join(done['files'])}: {out}"
    )


if __name__ == "__main__":
    command_line.run(main, _define_flags)
