"""int8 rows: each weight within half a step, whatever the storage type and however the rows are cut into blocks."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kensho.base.errors import ModelError
from kensho.runtime.graph.quantize import LIMIT, quantize_block, quantize_rows
from kensho.runtime.model.safetensors import Tensor
from kensho.runtime.model.tensor_reader import TensorReader


@given(hnp.arrays(np.float32, (3, 8), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_every_weight_is_within_half_a_step(weights: np.ndarray) -> None:
    scales, quantized = quantize_block(weights.copy())
    assert np.abs(quantized.astype(int)).max() <= LIMIT
    normal = np.abs(weights).max(axis=1) > 1e-30  # below, float32 has too few digits left for the promise
    error = np.abs(quantized * scales[:, None].astype(np.float64) - weights)[normal]
    assert (error <= scales[normal, None] * 0.5001).all()


def test_a_row_of_zeros_stays_zero() -> None:
    scales, quantized = quantize_block(np.zeros((2, 4), np.float32))
    assert (scales == 1).all()
    assert (quantized == 0).all()


def _file(folder: Path, *arrays: np.ndarray) -> list[Tensor]:
    """The arrays in one file, each as the type of its dtype (uint16 = bf16 bits), at odd offsets."""
    names = {np.dtype(np.uint16): "BF16", np.dtype(np.float16): "F16", np.dtype(np.float32): "F32"}
    data, tensors = b"x", []
    for index, array in enumerate(arrays):
        tensors.append(Tensor(f"t{index}", names[array.dtype], array.shape, "w", len(data), array.nbytes))
        data += array.tobytes()
    (folder / "w").write_bytes(data)
    return tensors


def _bf16(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def test_every_storage_type_is_read_exactly(tmp_path: Path) -> None:
    values = np.array([[0.0, -1.5], [384.0, 2.0**-10]], np.float32)
    tensors = _file(tmp_path, _bf16(values), values.astype(np.float16), values)
    with TensorReader(tmp_path) as reader:
        for tensor in tensors:
            assert (reader.rows(tensor, 0, 2) == values).all()
            assert (reader.rows(tensor, 1, 2) == values[1:]).all()


def test_sources_lie_side_by_side_and_blocks_leave_no_seam(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    first, second = (random.standard_normal((rows, 700)).astype(np.float32) for rows in (900, 3))
    tensors = _file(tmp_path, first, second)
    target = np.zeros((700, 903), np.int8)
    written: list[int] = []
    with TensorReader(tmp_path) as reader:
        scales = quantize_rows(reader, tuple(tensors), target, written.append)
    expected_scales, expected = quantize_block(np.concatenate([first, second]))
    assert (target == expected.T).all()
    assert (scales.scales == expected_scales).all()
    assert (scales.sums == expected.sum(axis=1, dtype=np.int64)).all()
    assert sum(written) == target.size
    assert len(written) > 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused(tmp_path: Path, bad: float) -> None:
    weights = np.ones((4, 4), np.float32)
    weights[2, 1] = bad
    (tensor,) = _file(tmp_path, weights)
    with TensorReader(tmp_path) as reader, pytest.raises(ModelError, match="t0 holds a value that is not finite"):
        quantize_rows(reader, (tensor,), np.zeros((4, 4), np.int8))


def test_a_file_that_became_shorter_or_vanished_is_a_model_error(tmp_path: Path) -> None:
    (tensor,) = _file(tmp_path, np.ones((4, 4), np.float32))
    (tmp_path / "w").write_bytes(b"xx")
    with TensorReader(tmp_path) as reader, pytest.raises(ModelError, match="shorter"):
        reader.rows(tensor, 0, 4)
    (tmp_path / "w").unlink()
    with TensorReader(tmp_path) as reader, pytest.raises(ModelError, match="cannot be mapped"):
        reader.rows(tensor, 0, 4)
