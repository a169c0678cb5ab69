"""What decides which compiled graph belongs to a model on this machine, from what is already known and verified.

No tensor and no numpy here: this is on the start path of every program that answers.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from kensho.base.errors import ModelError
from kensho.base.ids import Digest
from kensho.runtime.cache.header import KeyFields, join_digests
from kensho.runtime.system.machine import Machine

RAW_RECIPE = "raw"
_MAX_CONFIG_BYTES = 1 << 20
_UNLIMITED = 1 << 30


def key_fields(digests: Mapping[str, Digest], machine: Machine, max_positions: int) -> KeyFields:
    """The key of the int8 graph of a model whose files have these digests (path -> SHA-256). Pure.

    Raises ModelError when a file without which there is no model is not among them.
    """
    weights = {path: digest for path, digest in digests.items() if path.endswith(".safetensors")}
    absent = [name for name in ("config.json", "tokenizer.json") if name not in digests]
    if not weights or absent:
        raise ModelError(
            f"the model has no {absent[0] if absent else 'model.safetensors'}", advice="publish the whole model folder"
        )
    return KeyFields(
        weights_digest=join_digests(weights),
        config_digest=digests["config.json"],
        tokenizer_digest=digests["tokenizer.json"],
        engine_version=machine.engine_version,
        arch=machine.arch,
        system=machine.system,
        cpu_features=machine.cpu_features,
        max_positions=max_positions,
    )


def stated_context(folder: Path) -> int:
    """How many tokens the model in `folder` says it can take: only a bound, the graph itself knows exactly.

    The compiler checks config.json in full; here one number is read, since those checks import numpy (40 to 100 ms).
    """
    return _number(_read_config(folder), "max_position_embeddings") or _UNLIMITED


def stated_kv_bytes(folder: Path) -> int:
    """Bytes of KV cache (fp32) that one token costs, as config.json says; 0 where it does not say. An estimate."""
    config = _read_config(folder)
    heads = _number(config, "num_attention_heads")
    head_dim = _number(config, "head_dim") or _number(config, "hidden_size") // max(1, heads)
    layers, kv_heads = _number(config, "num_hidden_layers"), _number(config, "num_key_value_heads") or heads
    return 2 * 4 * layers * kv_heads * head_dim


def stated_vocab_size(folder: Path) -> int:
    """How many token ids the model in `folder` says it knows; 1 where it does not say: id 0 is always one."""
    return _number(_read_config(folder), "vocab_size") or 1


def _read_config(folder: Path) -> dict[str, object]:
    try:
        with (folder / "config.json").open("rb") as file:
            config = json.loads(file.read(_MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _number(config: Mapping[str, object], name: str) -> int:
    stated = config.get(name)
    return stated if type(stated) is int and 0 < stated <= _UNLIMITED else 0
