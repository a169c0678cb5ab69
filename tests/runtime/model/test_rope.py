"""Both spellings of the rope settings mean the same; a disagreement is an error, not a choice."""

import math

import numpy as np
import pytest

from kensho.base.errors import ModelError, UnknownArchitecture
from kensho.runtime.model.config_reader import ConfigReader
from kensho.runtime.model.rope import Bands, Rope, read_ropes, rope_tables


def _read(**config: object) -> tuple[Rope, Rope]:
    return read_ropes(ConfigReader(config), full_theta=1e6, local_theta=1e4)


@pytest.mark.parametrize(
    "config",
    [
        {"rope_theta": 5e5, "rope_local_base_freq": 2e4},
        {"rope_theta": 500_000, "rope_local_base_freq": 20_000, "rope_scaling": None},
        {"rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "default"}},
        {"rope_parameters": {"full_attention": {"rope_theta": 5e5}, "sliding_attention": {"rope_theta": 2e4}}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "rope_local_base_freq": 2e4},
        {
            "rope_theta": 5e5,
            "rope_local_base_freq": 2e4,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 1.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
            },
        },
    ],
)
def test_every_spelling_of_the_same_settings_is_the_same(config: dict[str, object]) -> None:
    assert _read(**config) == (Rope(5e5), Rope(2e4))


def test_absent_settings_are_the_defaults_of_the_family() -> None:
    assert _read() == (Rope(1e6), Rope(1e4))
    assert _read(rope_parameters={"sliding_attention": {"rope_theta": 5.0}}) == (Rope(1e6), Rope(5.0))


@pytest.mark.parametrize("kind", ["rope_type", "type"])
def test_linear_scaling_is_for_the_full_layers_only(kind: str) -> None:
    assert _read(rope_scaling={kind: "linear", "factor": 8}) == (Rope(1e6, 8.0), Rope(1e4))
    nested = {"full_attention": {kind: "linear", "factor": 8.0, "rope_theta": 1e6}}
    assert _read(rope_parameters=nested) == (Rope(1e6, 8.0), Rope(1e4))


def test_a_disagreement_is_refused() -> None:
    with pytest.raises(ModelError, match="disagree"):
        _read(rope_theta=1e6, rope_parameters={"full_attention": {"rope_theta": 5e5}})
    with pytest.raises(ModelError, match="disagree"):
        _read(rope_scaling={"rope_type": "linear", "factor": 8.0}, rope_parameters={"rope_theta": 1e6})


@pytest.mark.parametrize(
    "scaling",
    [{"rope_type": "yarn"}, {"rope_type": "linear"}, {"rope_type": "default", "factor": 8.0}, {"mrope_section": [1]}],
)
def test_unknown_or_half_settings_are_refused(scaling: dict[str, object]) -> None:
    with pytest.raises(ModelError):
        _read(rope_scaling=scaling)
    with pytest.raises(UnknownArchitecture):
        _read(rope_parameters={"rope_theta": 1e6, "partial_rotary_factor": 0.5})


def test_the_tables_are_the_angles_of_the_definition() -> None:
    cos, sin = rope_tables(Rope(1e4, 2.0), 8, 100)
    assert cos.shape == sin.shape == (100, 4)
    assert cos.dtype == np.float32
    for position, pair in ((0, 0), (7, 1), (99, 3)):
        angle = position / 2.0 / 1e4 ** (2 * pair / 8)
        assert cos[position, pair] == pytest.approx(math.cos(angle), abs=1e-5)
        assert sin[position, pair] == pytest.approx(math.sin(angle), abs=1e-5)


def test_llama_3_slows_down_slow_pairs_only_and_blends_between() -> None:
    """Values of `_compute_llama3_parameters` by its own words, in float64."""
    rope, head_dim = Rope(5e5, 8.0, Bands(1.0, 4.0, 8192)), 64
    _, sin = rope_tables(rope, head_dim, 2)
    kinds = set()
    for pair in range(head_dim // 2):
        plain = 5e5 ** (-2 * pair / head_dim)
        wavelength = 2 * math.pi / plain
        if wavelength < 8192 / 4:
            kind, expected = "fast", plain
        elif wavelength > 8192 / 1:
            kind, expected = "slow", plain / 8
        else:
            share = (8192 / wavelength - 1) / (4 - 1)
            kind, expected = "between", (1 - share) * plain / 8 + share * plain
        kinds.add(kind)
        assert math.asin(float(sin[1, pair])) == pytest.approx(expected, rel=1e-5)
    assert kinds == {"fast", "slow", "between"}


def test_ropes_that_differ_have_tables_of_different_names() -> None:
    ropes = [Rope(1e4), Rope(1e4, 8.0), Rope(1e4, 8.0, Bands(1.0, 4.0, 32)), Rope(1e4, 8.0, Bands(1.0, 4.0, 64))]
    assert len({rope.name for rope in ropes}) == 4
