"""The rival of benchmarks/train_step.py: Hugging Face's Qwen2 in a process of its own, which makes steps when told.

Reads a line of JSON that describes the model and batch, answers with a line of JSON that says what it runs on; then
makes as many steps as each further line says, one after another, and answers with the seconds of one and the last one's
loss. float32 on CPU; on GPU bfloat16 autocast, torch.compile, fused AdamW. A process of its own, so that two thread
pools and two GPU allocators do not meet in one.
"""

import json
import sys
import time
from typing import Any


def _model(shape: dict[str, int], attention: str) -> Any:
    import transformers

    config = transformers.Qwen2Config(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["width"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        intermediate_size=shape["mlp_width"],
        max_position_embeddings=shape["row_length"],
        tie_word_embeddings=True,
        use_cache=False,
        attn_implementation=attention,
    )
    return transformers.Qwen2ForCausalLM(config)


def main() -> None:
    """Serve steps until stdin ends."""
    import numpy as np
    import torch
    import transformers

    shape = json.loads(sys.stdin.readline())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    batch = np.load(shape["batch"])
    tokens, targets, positions = (
        torch.tensor(batch[name], dtype=torch.long, device=device)
        for name in ("tokens_BxL", "targets_BxL", "positions_BxL")
    )
    packed = bool((batch["segment_ids_BxL"] > 1).any())
    # With packed rows, position_ids that restart make transformers mask by segment; flex attention then skips blocks.
    attention = "flex_attention" if packed and device == "cuda" else "sdpa"
    model = _model(shape, attention).to(device).train()
    compiled = torch.compile(model) if device == "cuda" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, betas=(0.9, 0.95), fused=True)

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            logits = compiled(input_ids=tokens, position_ids=positions if packed else None).logits
        loss = torch.nn.functional.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets.view(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    what = {"torch": torch.__version__, "transformers": transformers.__version__, "attention": attention}
    print(json.dumps(what | {"compiled": device == "cuda", "threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        steps = int(line)
        began = time.perf_counter()
        for _ in range(steps):
            loss = step()
        answer = {"loss": loss.item()}  # waits for the last
        answer["seconds"] = (time.perf_counter() - began) / steps
        if device == "cuda":
            answer["peak_bytes"] = torch.cuda.max_memory_allocated()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
