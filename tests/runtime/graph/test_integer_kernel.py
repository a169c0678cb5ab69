"""A CPU whose integer sums overflow is recognised by the worst case, exactly."""

import numpy as np
import pytest

from kensho.runtime.graph.graph_int8 import FORMS
from kensho.runtime.graph.integer_kernel import Multiply, multiply_mapped, multiply_packed, sums_are_exact

U8, S8, U7 = FORMS


def _exact(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return activations.astype(np.int32) @ weights.astype(np.int32)


def _sums_in_16_bits(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    products = activations[:, :, None].astype(np.int32) * weights[None, :, :].astype(np.int32)
    return np.clip(products[:, 0::2] + products[:, 1::2], -32768, 32767).sum(axis=1)


def _wrong_with_several_rows(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return (_exact if len(activations) == 1 else _sums_in_16_bits)(activations, weights)


def test_u8_needs_wide_sums_and_u7_does_not() -> None:
    assert sums_are_exact(U8, _exact)
    assert not sums_are_exact(U8, _sums_in_16_bits)
    assert not sums_are_exact(U8, _wrong_with_several_rows)
    assert sums_are_exact(U7, _sums_in_16_bits)


@pytest.mark.parametrize("multiply", [multiply_mapped, multiply_packed])
def test_u7_is_exact_on_every_cpu(multiply: Multiply) -> None:
    random = np.random.default_rng(0)
    activations = random.integers(1, U7.largest, (4, 64), np.uint8, endpoint=True)
    weights = random.integers(-127, 127, (64, 32), np.int8, endpoint=True)
    assert sums_are_exact(U7, multiply)
    assert (multiply(activations, weights) == _exact(activations, weights)).all()


@pytest.mark.parametrize("multiply", [multiply_mapped, multiply_packed])
def test_signed_activations_are_multiplied_as_signed(multiply: Multiply) -> None:
    random = np.random.default_rng(0)
    activations = random.integers(-127, 127, (4, 64), np.int8, endpoint=True)
    weights = random.integers(-127, 127, (64, 32), np.int8, endpoint=True)
    assert sums_are_exact(S8, _exact)
    assert (multiply(activations, weights) == _exact(activations, weights)).all()
