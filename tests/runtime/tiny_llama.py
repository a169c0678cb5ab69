"""Write a Hugging Face folder of the Llama architecture with random bf16 weights: config.json and model.safetensors.

    python tests/runtime/tiny_llama.py OUT '{"tie_word_embeddings": true}'

The second argument changes config.json; the tensors follow it. Same arguments, same bytes. numpy only, so that the
tests need no torch; `tests/goldens/make_goldens.py` asks transformers about the same folders.
"""

import json
import math
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make_llama(folder: Path, changes: Mapping[str, object]) -> None:
    """Write the folder. `changes` are laid over `CONFIG`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | dict(changes)
    random = np.random.default_rng(7)
    table, data = {}, b""
    for name, shape in _shapes(config):
        # Scaled so that every layer matters; gains around 1.
        values = random.standard_normal(shape, np.float32)
        values = 1 + values / 8 if len(shape) == 1 else values / math.sqrt(shape[1]) * 1.5
        bf16 = (values.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
        table[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [len(data), len(data) + len(bf16)]}
        data += bf16
    header = json.dumps(table).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    (folder / "config.json").write_text(json.dumps(config))


def _shapes(config: Mapping[str, object]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner, heads, kv_heads, vocab, layers = (
        int(str(config[name]))
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "num_key_value_heads",
            "vocab_size",
            "num_hidden_layers",
        )
    )
    head = int(str(config.get("head_dim") or hidden // heads))
    yield "model.embed_tokens.weight", (vocab, hidden)
    for index in range(layers):
        at = f"model.layers.{index}."
        yield f"{at}input_layernorm.weight", (hidden,)
        yield f"{at}post_attention_layernorm.weight", (hidden,)
        yield f"{at}self_attn.q_proj.weight", (heads * head, hidden)
        yield f"{at}self_attn.k_proj.weight", (kv_heads * head, hidden)
        yield f"{at}self_attn.v_proj.weight", (kv_heads * head, hidden)
        yield f"{at}self_attn.o_proj.weight", (hidden, heads * head)
        yield f"{at}mlp.gate_proj.weight", (inner, hidden)
        yield f"{at}mlp.up_proj.weight", (inner, hidden)
        yield f"{at}mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocab, hidden)


if __name__ == "__main__":
    make_llama(Path(sys.argv[1]), json.loads(sys.argv[2]) if sys.argv[2:] else {})
