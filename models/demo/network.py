"""The network's shape, its tokenizer, and the int8 arithmetic that Kensho runs it with.

The shape is Gemma 3's (`Gemma3ForCausalLM`), very small. `Int8` makes torch compute what the int8 artefact computes:
weights rounded per output row, activations rounded per token, both symmetric, to nearest.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import Gemma3ForCausalLM, Gemma3TextConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

VOCAB = 1024
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
ACCENTED = "éèêëàâäçùûüôöîïœæÉÈÊÀÂÇÙÔÎŒ«»’–—…€°"
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "sliding_window": 64,
    "max_position_embeddings": 1024,
    "query_pre_attn_scalar": 32,
    "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
}
CONFIG = {
    **SHAPE,
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "dtype": "bfloat16",
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "tie_word_embeddings": True,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n'"
    " + (message['content'] | trim) + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def new_network() -> Gemma3ForCausalLM:
    """A fresh network in fp32 with random weights (seed torch first)."""
    plain = {k: v for k, v in CONFIG.items() if k not in ("architectures", "dtype")}
    config = Gemma3TextConfig(**plain, attn_implementation="sdpa")
    return Gemma3ForCausalLM(config).float()


def train_tokenizer(texts: list[str]) -> dict[str, object]:
    """The tokenizer.json of a BPE with byte fallback in Gemma's style, learnt from `texts`.

    Merges are learnt inside words (a word keeps the space before it), and used as Gemma does, on the whole text.
    """
    basic = [*SPECIAL, *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "\n", *map(chr, range(33, 127)), *ACCENTED]
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "\u2581")
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex("\u2581"), "merged_with_next"),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=4 * VOCAB, min_frequency=2, initial_alphabet=basic[262:], special_tokens=[], show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    learnt = _merges(learner)
    tokens, merges = list(basic), []
    for left, right in learnt:
        if len(tokens) == VOCAB:
            break
        if left + right not in tokens:
            tokens.append(left + right)
        merges.append([left, right])
    special = [
        {
            "id": i,
            "content": t,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, t in enumerate(SPECIAL)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": merges,
        },
    }


def _merges(learner: Tokenizer) -> list[tuple[str, str]]:
    merges = json.loads(learner.to_str())["model"]["merges"]
    return [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in merges]


def round_rows(x: Tensor) -> Tensor:
    """Symmetric int8 of the last axis: each row by its own largest value, rounded to nearest, and back.

    The gradient passes as if nothing had been rounded (straight-through).
    """
    scale = x.detach().abs().amax(dim=-1, keepdim=True).clamp_min(1e-12) / 127
    rounded = (x.detach() / scale).round().clamp(-127, 127) * scale
    return x + (rounded - x.detach())


@contextmanager
def int8_arithmetic() -> Iterator[None]:
    """Inside, every linear layer and the tied embedding compute with int8 weights and int8 activations."""
    linear: Callable[..., Tensor] = nn.Linear.forward
    embedding: Callable[..., Tensor] = Gemma3TextScaledWordEmbedding.forward

    def linear_int8(self: nn.Linear, x: Tensor) -> Tensor:
        return functional.linear(round_rows(x), round_rows(self.weight), self.bias)

    def embedding_int8(self: Gemma3TextScaledWordEmbedding, ids: Tensor) -> Tensor:
        return functional.embedding(ids, round_rows(self.weight)) * self.embed_scale.to(self.weight.dtype)

    nn.Linear.forward, Gemma3TextScaledWordEmbedding.forward = linear_int8, embedding_int8  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Linear.forward, Gemma3TextScaledWordEmbedding.forward = linear, embedding  # type: ignore[method-assign]


def round_to_bf16(network: nn.Module) -> None:
    """Round every weight to bf16 (and keep computing in fp32): what is on disk is what was checked."""
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(weight.bfloat16().float())
