"""Make the folder of the model's second version: the first one with the tensors that the fine-tune changed.

Only the changed tensors ship with Kensho; the rest of version 2 is version 1, byte for byte, as after any fine-tune
of a few layers.
"""

import json
import shutil
from pathlib import Path

from kensho.base.errors import ModelError

HEADER_LENGTH_BYTES = 8
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def copy_model(source: Path, target: Path) -> None:
    """The files of a model folder, without what else lies beside them."""
    target.mkdir(parents=True)
    for name in MODEL_FILES:
        shutil.copyfile(source / name, target / name)


def make_second_version(first: Path, changes: Path, target: Path) -> None:
    """Copy `first` to `target` and put the tensors of `changes` in their places.

    Raises ModelError if a changed tensor is not in the first version with the same size.
    """
    copy_model(first, target)
    data = bytearray((first / "model.safetensors").read_bytes())
    changed = changes.read_bytes()
    places, where = _tensors(data), _tensors(changed)
    for name, (begin, end) in where.items():
        to_begin, to_end = places.get(name, (0, -1))
        if to_end - to_begin != end - begin:
            raise ModelError(f"tensor {name} of the second version does not fit", advice="train the model again")
        data[to_begin:to_end] = changed[begin:end]
    (target / "model.safetensors").write_bytes(data)


def _tensors(data: bytes | bytearray) -> dict[str, tuple[int, int]]:
    """Name -> (begin, end) in the file. For our own files, whose bytes came with the package."""
    length = int.from_bytes(data[:HEADER_LENGTH_BYTES], "little")
    start = HEADER_LENGTH_BYTES + length
    header = json.loads(bytes(data[HEADER_LENGTH_BYTES:start]))
    spans = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return {name: (start + begin, start + end) for name, (begin, end) in spans.items()}
