"""Read weights from the safetensors files as float32, a few rows at a time. Files are mapped, never copied whole."""

import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kensho.base.errors import ModelError
from kensho.runtime.model.safetensors import Tensor

StoredItem = np.uint16 | np.float16 | np.float32
Stored = np.dtype[np.uint16] | np.dtype[np.float16] | np.dtype[np.float32]
_STORED: dict[str, Stored] = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}


class TensorReader:
    """The weights of one model folder. Close it (or use `with`) to unmap the files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._maps: dict[str, mmap.mmap] = {}

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._maps.clear()  # a map is closed with the last array over it

    def rows(self, tensor: Tensor, begin: int, end: int) -> NDArray[np.float32]:
        """Rows [begin, end) of a matrix as a new (end - begin, columns) array; exact for BF16, F16 and F32."""
        return _to_float32(self._stored(tensor)[begin:end], tensor.dtype)

    def vector(self, tensor: Tensor) -> NDArray[np.float32]:
        """The whole tensor as a new array of its shape: for the small ones (norm gains). ModelError if not finite."""
        values = _to_float32(self._stored(tensor), tensor.dtype)
        if not np.isfinite(values).all():
            raise not_finite(tensor)
        return values

    def _stored(self, tensor: Tensor) -> NDArray[StoredItem]:
        if tensor.file not in self._maps:
            try:
                with (self._folder / tensor.file).open("rb") as file:
                    self._maps[tensor.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise ModelError(f"{tensor.file} cannot be mapped ({error})", advice="check the folder") from error
        dtype = _STORED[tensor.dtype]
        count = tensor.size_bytes // dtype.itemsize
        try:
            flat = np.frombuffer(self._maps[tensor.file], dtype, count, tensor.offset)
        except ValueError as error:
            raise ModelError(f"{tensor.file} became shorter while it was read", advice="verify the model") from error
        return flat.reshape(tensor.shape)  # type: ignore[return-value]


def not_finite(tensor: Tensor) -> ModelError:
    """The error for a tensor that holds NaN or infinity, wherever it is noticed."""
    return ModelError(
        f"tensor {tensor.name} holds a value that is not finite",
        advice="the weights are broken; download or export the model again",
        tensor=tensor.name,
    )


def _to_float32(stored: NDArray[StoredItem], dtype: str) -> NDArray[np.float32]:
    if dtype == "BF16":  # the upper half of a float32
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32)
