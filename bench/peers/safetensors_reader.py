"""The benchmark model's tensors as float32, for the programs that write it in each peer's own format. numpy only.

They run under the peers' interpreter, which has no Kensho.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class Weights:
    """The tensors of one bf16 safetensors file and its config.json."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        file = folder / "model.safetensors"
        with file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            self._table = {name: entry for name, entry in json.loads(stream.read(size)).items() if name[0] != "_"}
        self._bytes = np.memmap(file, np.uint8, "r", offset=8 + size)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        entry = self._table[name]
        begin, end = entry["data_offsets"]
        halves = self._bytes[begin:end].view(np.uint16)
        return (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
