"""Write the benchmark model (bench/data/make_gemma.py) as GGUF for llama.cpp, weights in q8_0.

    python write_gguf.py MODEL_FOLDER OUT.gguf [--no-vocab]

As llama.cpp's converter does for Gemma 3: matrices q8_0, norms float32 with their 1 added, the embedding tied. With
--no-vocab it has no tokenizer, which is most of what llama.cpp loads for 262,144 tokens.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors_reader import Weights

LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
Q8_0 = gguf.GGMLQuantizationType.Q8_0


def main(folder: Path, out: Path, *, has_vocab: bool) -> None:
    weights = Weights(folder)
    config = weights.config
    writer = gguf.GGUFWriter(out, "gemma3")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    if has_vocab:
        add_vocab(writer, folder)
    else:
        writer.add_tokenizer_model("no_vocab")
        writer.add_vocab_size(config["vocab_size"])
    for name in weights:
        value = weights[name]
        if "norm" in name:
            writer.add_tensor(gguf_name(name), value + np.float32(1))
        else:
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(value, Q8_0), raw_dtype=Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    stem = name.removeprefix("model.").removesuffix(".weight")
    if stem in ("embed_tokens", "norm"):
        return {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight"}[stem]
    _, layer, part = stem.split(".", 2)
    return f"blk.{layer}.{LAYER[part]}.weight"


def add_vocab(writer: gguf.GGUFWriter, folder: Path) -> None:
    tokens = list(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    kinds = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.UNKNOWN] + [gguf.TokenType.BYTE] * 256
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(len(tokens))])
    writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * (len(tokens) - len(kinds)))
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_add_space_prefix(False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), has_vocab="--no-vocab" not in sys.argv)
