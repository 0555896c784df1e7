"""Make the golden vectors that `huggingface_test.py` compares with, from transformers' own Qwen2 (needs torch).

    python tests/cometjax/make_golden.py

Run it in the environment of `make test-parity`; it writes tests/cometjax/golden/qwen2_{tied,untied}.npz: weights,
tokens and logits of a tiny model with random weights. The arrays are plain (no pickle); the sizes are in the arrays.
"""

import json
import pathlib

import numpy as np
import torch
import transformers

FOLDER = pathlib.Path(__file__).parent / "golden"
SIZES = {"vocab_size": 61, "layers": 2, "width": 24, "heads": 4, "kv_heads": 2, "head_dim": 8, "mlp_width": 40}
ROPE_THETA = 10_000.0
NORM_EPS = 1e-6


def main() -> None:
    """Write both files."""
    FOLDER.mkdir(exist_ok=True)
    for name, tied in (("tied", True), ("untied", False)):
        torch.manual_seed(7)
        model = qwen2(tied)
        tokens_BxL = np.random.default_rng(7).integers(0, SIZES["vocab_size"], (3, 19))
        with torch.no_grad():
            logits_BxLxV = model(input_ids=torch.from_numpy(tokens_BxL)).logits.numpy()
        state = {f"state/{key}": tensor.numpy() for key, tensor in model.state_dict().items()}
        config = {**SIZES, "tied_embeddings": tied, "rope_theta": ROPE_THETA, "norm_eps": NORM_EPS}
        path = FOLDER / f"qwen2_{name}.npz"
        about = f"transformers {transformers.__version__}, torch {torch.__version__}, seed 7"
        np.savez_compressed(
            path, config=json.dumps(config), about=about, tokens_BxL=tokens_BxL, logits_BxLxV=logits_BxLxV, **state
        )
        print(f"{path}: {path.stat().st_size} bytes, {about}")


def qwen2(tied: bool) -> transformers.Qwen2ForCausalLM:
    """A tiny Qwen2 whose every parameter is random and far from its initial value: biases and norms too."""
    config = transformers.Qwen2Config(
        vocab_size=SIZES["vocab_size"],
        hidden_size=SIZES["width"],
        intermediate_size=SIZES["mlp_width"],
        num_hidden_layers=SIZES["layers"],
        num_attention_heads=SIZES["heads"],
        num_key_value_heads=SIZES["kv_heads"],
        head_dim=SIZES["head_dim"],
        rms_norm_eps=NORM_EPS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    model = transformers.Qwen2ForCausalLM(config).to(torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.3)
    return model


if __name__ == "__main__":
    main()
