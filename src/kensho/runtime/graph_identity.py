"""What decides which compiled graph belongs to a model on this machine, from what is already known and verified.

No tensor and no numpy here: this is on the start path of every program that answers.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from kensho.base.errors import ModelError
from kensho.base.ids import Digest
from kensho.runtime.header import KeyFields, join_digests
from kensho.runtime.machine import Machine

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
    try:
        with (folder / "config.json").open("rb") as file:
            stated = json.loads(file.read(_MAX_CONFIG_BYTES)).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError, RecursionError):
        return _UNLIMITED
    return stated if type(stated) is int and stated > 0 else _UNLIMITED
